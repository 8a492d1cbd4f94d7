//! Small pictures, and what the scripts of `tests/golden` wrote, for the tests.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{ImageFormat, Rgb, RgbImage};
use serde_json::Value;
use tar::EntryType;

use crate::shards::{Limit, ShardWriter};
use crate::source::shards::Shards;
use crate::{
    Captions, DataError, EvalTransform, EvalViews, LabelKind, Part, Sample, Source, TrainViews,
    Transform,
};

/// A PNG of one colour.
pub(crate) fn png(width: u32, height: u32, colour: [u8; 3]) -> Vec<u8> {
    let mut bytes = Cursor::new(vec![]);
    RgbImage::from_pixel(width, height, Rgb(colour))
        .write_to(&mut bytes, ImageFormat::Png)
        .expect("a picture in memory");
    bytes.into_inner()
}

/// A file of `tests/golden`.
pub(crate) fn golden(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)).unwrap()
}

/// The same, as JSON.
pub(crate) fn golden_json(name: &str) -> Value {
    serde_json::from_slice(&golden(name)).unwrap()
}

/// Draws of parameters, by their names in `augment/laws.json`.
#[derive(Default)]
pub(crate) struct Draws(BTreeMap<String, Vec<f64>>);

impl Draws {
    pub(crate) fn add(&mut self, name: impl Into<String>, value: impl Into<f64>) {
        self.0.entry(name.into()).or_default().push(value.into());
    }

    /// Kolmogorov's and Smirnov's test of two samples for each of `names` parameters, at one error in a thousand.
    pub(crate) fn follow_their_laws(mut self, names: usize) {
        let laws = golden_json("augment/laws.json");
        assert_eq!(self.0.len(), names, "{:?}", self.0.keys());
        for (name, draws) in &mut self.0 {
            let (law, n) = (&laws[name], draws.len() as f64);
            let m = law["n"].as_f64().unwrap_or_else(|| panic!("no law of {name}"));
            draws.sort_by(f64::total_cmp);
            let distance = |point: &Value| {
                let [x, theirs] = [0, 1].map(|i| point[i].as_f64().unwrap());
                // A hair more, for values that were computed in another order.
                let below = draws.partition_point(|&draw| draw <= x + x.abs() * 1e-12);
                (below as f64 / n - theirs).abs()
            };
            let furthest =
                law["points"].as_array().unwrap().iter().map(distance).fold(0.0, f64::max);
            let allowed = 1.95 * (1.0 / n + 1.0 / m).sqrt();
            println!("{name:40} {furthest:.4} of {allowed:.4}");
            assert!(furthest < allowed, "{name}: {furthest} is more than {allowed}");
        }
    }
}

/// Shards of three samples each, `s0`, `s1`, ...
pub(crate) fn three_a_shard(dir: &Path, samples: usize) -> Vec<PathBuf> {
    let mut writer = ShardWriter::create(dir, "set", Limit { samples: 3, bytes: 1 << 20 }).unwrap();
    for i in 0..samples {
        writer.write(&format!("s{i}"), &[("png", &[i as u8; 700]), ("txt", b"words")]).unwrap();
    }
    writer.finish().unwrap()
}

/// A shard, opened.
pub(crate) fn open_shard(path: &Path) -> Shards {
    Shards::open(vec![path.to_owned()], Captions::Lines).unwrap()
}

/// The keys of all samples.
pub(crate) fn keys(shards: &Shards) -> Vec<String> {
    (0..shards.len()).map(|i| shards.key(i)).collect()
}

/// A tar of (name, type, contents) without the writer's checks.
pub(crate) fn raw_tar(path: &Path, members: &[(&str, EntryType, &[u8])]) {
    let mut builder = tar::Builder::new(File::create(path).unwrap());
    for (name, kind, contents) in members {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(*kind);
        header.set_size(contents.len() as u64);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *contents).unwrap();
    }
    builder.finish().unwrap();
}

/// A ramp: red grows to the right, green downwards.
pub(crate) fn ramp(width: u32, height: u32) -> crate::Rgb {
    let pixel = |i: u32| [(i % width * 255 / width) as u8, (i / width * 255 / height) as u8, 7];
    crate::Rgb { width, height, pixels: (0..width * height).flat_map(pixel).collect() }
}

/// Pictures whose colour is their number, in shards of ten; some of them broken.
pub(crate) struct Colours {
    pub(crate) n: usize,
    pub(crate) broken: BTreeSet<usize>,
    pub(crate) captions: bool,
}

impl Source for Colours {
    fn len(&self) -> usize {
        self.n
    }
    fn read(&self, i: usize) -> Result<Sample, DataError> {
        let image = match self.broken.contains(&i) {
            true => b"no picture".to_vec(),
            false => png(8, 8, [i as u8; 3]),
        };
        let captions = match self.captions {
            true => vec![format!("{i}"), format!("number {i}")],
            false => vec![],
        };
        Ok(Sample { key: self.key(i), image, captions, class: Some(i as u32), ..Sample::default() })
    }
    fn key(&self, i: usize) -> String {
        format!("c{i}")
    }
    fn parts(&self) -> Vec<Part> {
        vec![Part { samples: self.n, weight: 1.0, shards: vec![10; self.n / 10] }]
    }
    fn class_names(&self) -> Option<&[String]> {
        None
    }
}

pub(crate) fn colours(n: usize, broken: &[usize]) -> Arc<dyn Source> {
    Arc::new(Colours { n, broken: broken.iter().copied().collect(), captions: true })
}

/// Views for training, with captions where asked for.
pub(crate) fn training(transform: crate::TrainTransform, label: LabelKind) -> Arc<dyn Transform> {
    Arc::new(TrainViews { label, ..TrainViews::new(transform) })
}

/// The views of evaluation at a size.
pub(crate) fn evaluation(size: u32) -> EvalViews {
    EvalViews::new(EvalTransform::new(size))
}
