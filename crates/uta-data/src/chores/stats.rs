//! `uta data stats`: what is in a set.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::chores::pack::{Inspected, bar, inspect};
use crate::progress::counted;
use crate::{DataError, Rejected, Source};

/// Contents of a set; `Display` is the human table, `Serialize` the JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// Samples, broken ones included.
    pub samples: usize,
    /// Bytes of the images.
    pub image_bytes: u64,
    /// Images of each format.
    pub formats: BTreeMap<String, usize>,
    /// Smallest, median and largest (width, height), by area.
    pub sizes: Option<[(u32, u32); 3]>,
    /// Samples with a caption.
    pub captioned: usize,
    /// Captions in all.
    pub captions: usize,
    /// Words of a caption, on average.
    pub caption_words: f64,
    /// Samples with a class.
    pub labelled: usize,
    /// Classes that occur.
    pub classes: usize,
    /// Fewest and most samples of a class that occurs.
    pub class_sizes: Option<(usize, usize)>,
    /// A few captions, to look at.
    pub examples: Vec<String>,
    /// Faults of whole shards.
    pub problems: Vec<String>,
    /// Samples that can't be read or decoded.
    pub broken: Vec<Rejected>,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let formats: Vec<String> = self.formats.iter().map(|(k, n)| format!("{n} {k}")).collect();
        writeln!(f, "samples    {}", self.samples)?;
        let megabytes = self.image_bytes as f64 / 1e6;
        writeln!(f, "images     {} ({megabytes:.1} MB)", formats.join(", "))?;
        if let Some([small, median, large]) = self.sizes {
            let size = |(w, h)| format!("{w}x{h}");
            writeln!(f, "sizes      {} .. {} .. {}", size(small), size(median), size(large))?;
        }
        let on = |samples| counted(samples, "sample");
        match self.captions {
            0 => writeln!(f, "captions   none")?,
            n => writeln!(
                f,
                "captions   {n} on {}, {:.1} words each",
                on(self.captioned),
                self.caption_words
            )?,
        }
        match self.class_sizes {
            Some((few, many)) => writeln!(
                f,
                "classes    {} on {}, {few} to {many} each",
                self.classes,
                on(self.labelled)
            )?,
            None => writeln!(f, "classes    none")?,
        }
        for example in &self.examples {
            writeln!(f, "example    {example}")?;
        }
        for problem in &self.problems {
            writeln!(f, "problem    {problem}")?;
        }
        for Rejected { key, reason, .. } in self.broken.iter().take(10) {
            writeln!(f, "broken     {key}: {reason}")?;
        }
        write!(f, "broken     {} in all", self.broken.len())
    }
}

/// Reads and decodes every sample of `source`, with a progress bar on standard error where `progress`.
///
/// # Errors
/// There are none today: single broken samples are counted.
pub fn stats(source: &Arc<dyn Source>, progress: bool) -> Result<Stats, DataError> {
    let bar = bar(source.len(), progress, "reading");
    let mut stats = Stats {
        samples: source.len(),
        image_bytes: 0,
        formats: BTreeMap::new(),
        sizes: None,
        captioned: 0,
        captions: 0,
        caption_words: 0.0,
        labelled: 0,
        classes: 0,
        class_sizes: None,
        examples: vec![],
        problems: source.problems(),
        broken: vec![],
    };
    let (mut sizes, mut classes, mut words) = (vec![], BTreeMap::<u32, usize>::new(), 0);
    let mut odd: Option<(usize, String)> = None;
    for sample in inspect(source) {
        bar.inc(1);
        match sample {
            Err(rejected) => stats.broken.push(rejected),
            Ok(Inspected { sample, size, format }) => {
                stats.image_bytes += sample.image.len() as u64;
                *stats.formats.entry(format.to_owned()).or_default() += 1;
                sizes.push(size);
                stats.captioned += usize::from(!sample.captions.is_empty());
                stats.captions += sample.captions.len();
                words +=
                    sample.captions.iter().map(|c| c.split_whitespace().count()).sum::<usize>();
                if let Some(class) = sample.class {
                    stats.labelled += 1;
                    *classes.entry(class).or_default() += 1;
                }
                if let Err(e) = sample.class() {
                    odd.get_or_insert_with(|| (0, e.to_string())).0 += 1;
                }
                if stats.examples.len() < 3 {
                    stats.examples.extend(sample.captions.into_iter().next());
                }
            }
        }
    }
    bar.finish_and_clear();
    if let Some((count, first)) = odd {
        let files = crate::progress::counted(count, ".cls file");
        stats.problems.push(format!("{files} without a class in it: {first}"));
    }
    sizes.sort_by_key(|&(w, h)| (u64::from(w) * u64::from(h), w));
    if let (Some(&small), Some(&large)) = (sizes.first(), sizes.last()) {
        stats.sizes = Some([small, sizes[sizes.len() / 2], large]);
    }
    stats.caption_words = words as f64 / stats.captions.max(1) as f64;
    stats.classes = classes.len();
    stats.class_sizes = classes.values().min().copied().zip(classes.values().max().copied());
    Ok(stats)
}
