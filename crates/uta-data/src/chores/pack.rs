//! `uta data pack`: a folder of images to shards, with what lies beside them and classes from folders.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, fs};

use indicatif::ProgressBar;
use serde::Serialize;

use crate::progress::counted;
use crate::rejected::guarded;
use crate::source::shards::{CLASS_NAMES, Limit, ShardWriter};
use crate::storage;
use crate::stream::ahead::Ahead;
use crate::stream::parallel::Ordered;
use crate::{DataError, Rejected, Sample, Source, decode, open, progress};

/// How to pack.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// When a shard is full.
    pub limit: Limit,
    /// Whether to draw a progress bar on standard error.
    pub progress: bool,
}

impl Default for PackOptions {
    fn default() -> PackOptions {
        PackOptions { limit: Limit::default(), progress: true }
    }
}

/// Result of packing.
#[derive(Clone, Debug, Serialize)]
pub struct Packed {
    /// Samples written.
    pub samples: usize,
    /// Samples with a caption.
    pub captioned: usize,
    /// Classes, where the folder has class folders; their names are in `classnames.txt` beside the shards.
    pub classes: Option<usize>,
    /// The shards.
    pub shards: Vec<PathBuf>,
    /// Their size.
    pub bytes: u64,
    /// Images left out because they can't be decoded.
    pub broken: Vec<Rejected>,
}

impl fmt::Display for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (samples, shards) = (self.samples, self.shards.len());
        let megabytes = self.bytes as f64 / 1e6;
        let (samples, shards) = (counted(samples, "sample"), counted(shards, "shard"));
        writeln!(f, "{samples} in {shards}, {megabytes:.1} MB")?;
        let classes = counted(self.classes.unwrap_or(0), "class");
        writeln!(f, "{} with captions, {classes}", self.captioned)?;
        for Rejected { key, reason, .. } in &self.broken {
            writeln!(f, "left out: {key}: {reason}")?;
        }
        for shard in &self.shards {
            writeln!(f, "{}", shard.display())?;
        }
        Ok(())
    }
}

/// Packs the images of `dir` into `{out}/{name of dir}-000000.tar`, ...
///
/// # Errors
/// A folder without images, or without one that can be decoded; shards already there, or some with other class names; a disk
/// that refuses.
pub fn pack(dir: &Path, out: &Path, options: &PackOptions) -> Result<Packed, DataError> {
    let source = open(&dir.to_string_lossy())?;
    let whole = fs::canonicalize(dir).map_err(DataError::io("read", dir))?;
    let prefix = whole.file_name().map_or("images".into(), |name| name.to_string_lossy());
    let names = out.join(CLASS_NAMES);
    let there = storage::text(&names)?;
    if let (Some(here), Some(there)) = (source.class_names(), &there)
        && !there.lines().map(str::trim).eq(here.iter().map(|name| name.trim()))
    {
        let (first, second) = (names.display().to_string(), dir.display().to_string());
        return Err(DataError::ClassNames { first, second });
    }
    let mut writer = ShardWriter::create(out, &prefix.replace('.', "-"), options.limit)?;
    let bar = bar(source.len(), options.progress, "packing");
    let samples = inspect(&source);
    let (mut written, mut captioned, mut broken) = (0, 0, vec![]);
    for (i, sample) in samples.enumerate() {
        bar.inc(1);
        match sample {
            Ok(Inspected { sample, format, .. }) => {
                captioned += usize::from(!sample.captions.is_empty());
                write(&mut writer, i, &sample, format)?;
                written += 1;
            }
            Err(rejected) => broken.push(rejected),
        }
    }
    bar.finish_and_clear();
    if let (0, Some(first)) = (written, broken.first()) {
        return Err(DataError::AllBroken {
            path: dir.to_owned(),
            images: broken.len(),
            key: first.key.clone(),
            reason: first.reason.clone(),
        });
    }
    if let (Some(here), None) = (source.class_names(), there) {
        let text = here.join("\n") + "\n";
        uta_base::write_atomically(&names, text.as_bytes())
            .map_err(DataError::io("write", &names))?;
    }
    let shards = writer.finish()?;
    let sizes = shards.iter().map(|path| fs::metadata(path).map(|m| m.len()));
    let bytes = sizes.sum::<std::io::Result<u64>>().map_err(DataError::io("read", out))?;
    let classes = source.class_names().map(<[String]>::len);
    Ok(Packed { samples: written, captioned, classes, shards, bytes, broken })
}

fn write(
    writer: &mut ShardWriter,
    i: usize,
    sample: &Sample,
    format: &str,
) -> Result<(), DataError> {
    // Two pictures may differ by their extension only, and names may hold dots: the number keeps keys apart.
    let name = sample.key.rsplit('/').next().unwrap_or_default().replace('.', "-");
    let captions = sample.captions.join("\n");
    // What gives no class here may mean one to others.
    let odd = sample.odd_class.as_ref().map(|odd| odd.text.clone());
    let class = sample.class.map(|class| class.to_string()).or(odd);
    let mut members = vec![(format, sample.image.as_slice())];
    if !captions.is_empty() {
        members.push(("txt", captions.as_bytes()));
    }
    if let Some(class) = &class {
        members.push(("cls", class.as_bytes()));
    }
    if !sample.meta.is_empty() {
        members.push(("json", &sample.meta));
    }
    writer.write(&format!("{i:08}-{name}"), &members)
}

/// A sample that could be read and decoded.
pub(crate) struct Inspected {
    pub(crate) sample: Sample,
    /// (width, height)
    pub(crate) size: (u32, u32),
    /// The extension that the image's bytes ask for.
    pub(crate) format: &'static str,
}

/// Every sample read and decoded on all cores, in order; those that can't be, by name.
pub(crate) fn inspect(
    source: &Arc<dyn Source>,
) -> impl Iterator<Item = Result<Inspected, Rejected>> + use<> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let (source, length) = (Arc::clone(source), source.len() as u64);
    let coming = Ahead::new(source.clone(), 0..length, 0, vec![], |i| i as usize);
    Ordered::new(workers, 64, 0..length, move |i| {
        coming.pass(i);
        let inspected = || {
            let sample = source.read(i as usize)?;
            let image = decode(&sample.image)?;
            let format = crate::image::decode::format(&sample.image)?;
            Ok(Inspected { sample, size: (image.width, image.height), format })
        };
        guarded(inspected).map_err(|e| Rejected::new(source.as_ref(), i as usize, &e))
    })
}

/// A bar over images, where one is wanted.
pub(crate) fn bar(length: usize, shown: bool, verb: &'static str) -> ProgressBar {
    match shown {
        true => progress::bar(length as u64, 0, "images").with_prefix(verb),
        false => ProgressBar::hidden(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::png;

    #[test]
    fn a_packed_folder_reads_back_with_classes_and_captions_and_names_broken_images() {
        let dir = tempfile::tempdir().unwrap();
        let (from, out) = (dir.path().join("my.pictures"), dir.path().join("out"));
        for (path, bytes) in [
            ("cat/a.b.png", png(3, 3, [1, 1, 1])),
            ("cat/a.txt", vec![]),
            ("dog/d.png", png(3, 3, [2, 2, 2])),
            ("dog/d.txt", b"a dog".to_vec()),
            ("dog/d.json", br#"{"from":"a shelter"}"#.to_vec()),
            ("dog/broken.jpg", b"??".to_vec()),
        ] {
            let path = from.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let options = PackOptions { progress: false, ..PackOptions::default() };
        let packed = pack(&from, &out, &options).unwrap();
        assert_eq!((packed.samples, packed.captioned, packed.classes), (2, 1, Some(2)));
        assert_eq!(packed.broken[0].key, "dog/broken");
        let source = open(out.to_str().unwrap()).unwrap();
        assert_eq!(source.class_names().unwrap(), ["cat", "dog"]);
        let dog = source.read(1).unwrap();
        assert_eq!((dog.class, dog.captions.as_slice()), (Some(1), &["a dog".to_owned()][..]));
        assert_eq!(dog.meta, br#"{"from":"a shelter"}"#);
        assert!(source.read(0).unwrap().meta.is_empty());
        assert!(pack(&from, &out, &options).is_err(), "shards are never overwritten");
    }

    #[test]
    fn folders_packed_together_have_the_same_class_names() {
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str, class: &str| {
            let folder = dir.path().join(name);
            fs::create_dir_all(folder.join(class)).unwrap();
            fs::write(folder.join(class).join("a.png"), png(3, 3, [1, 1, 1])).unwrap();
            folder
        };
        let out = dir.path().join("out");
        let options = PackOptions { progress: false, ..PackOptions::default() };
        let files = || fs::read_dir(&out).unwrap().count();
        pack(&folder("train", "cat"), &out, &options).unwrap();
        assert_eq!(files(), 3, "more than shard, sizes and names");
        let e = pack(&folder("other", "dog"), &out, &options).unwrap_err().to_string();
        assert!(e.contains("out/classnames.txt and ") && e.contains("/other name their"), "{e}");
        assert_eq!(files(), 3);
        assert_eq!(fs::read_to_string(out.join(CLASS_NAMES)).unwrap(), "cat\n");
        assert_eq!(pack(&folder("val", "cat"), &out, &options).unwrap().samples, 1);
    }

    #[test]
    fn a_folder_of_broken_images_only_is_an_error_that_names_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let (from, out) = (dir.path().join("from"), dir.path().join("out"));
        fs::create_dir(&from).unwrap();
        for name in ["a.png", "b.jpg"] {
            fs::write(from.join(name), b"<html>not found</html>").unwrap();
        }
        let options = PackOptions { progress: false, ..PackOptions::default() };
        let e = pack(&from, &out, &options).unwrap_err().to_string();
        assert!(e.contains("none of the 2 images") && e.contains("the first, a: not a PNG"), "{e}");
        let left = fs::read_dir(&out).map_or(0, |entries| entries.count());
        assert_eq!(left, 0, "an empty shard was left");
    }

    #[test]
    fn a_png_that_is_called_jpeg_is_read_as_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("n02105855_2933.JPEG"), png(4, 2, [9, 8, 7])).unwrap();
        let out = dir.path().join("out");
        let options = PackOptions { progress: false, ..PackOptions::default() };
        assert_eq!(pack(dir.path(), &out, &options).unwrap().samples, 1);
        let sample = open(out.to_str().unwrap()).unwrap().read(0).unwrap();
        assert_eq!(decode(&sample.image).unwrap().pixels, [9, 8, 7].repeat(8));
    }
}
