//! Pictures and targets of them, for the tests.
#![allow(clippy::unwrap_used)]

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Cropping, TargetKind, TargetSet, TargetWriter, crops};
use crate::{DataError, DecodeOptions, Sample, Source, TrainTransform};

/// Pictures whose colour is their number and a shade; number 5 is broken.
pub(super) struct Colours(pub(super) u8);

impl Source for Colours {
    fn len(&self) -> usize {
        11
    }
    fn read(&self, i: usize) -> Result<Sample, DataError> {
        let image = match i {
            5 => b"no picture".to_vec(),
            _ => gradient(i as u8, self.0),
        };
        Ok(Sample { key: self.key(i), image, ..Sample::default() })
    }
    fn key(&self, i: usize) -> String {
        format!("c{i}")
    }
    fn class_names(&self) -> Option<&[String]> {
        None
    }
}

/// No two crops of it are the same.
fn gradient(i: u8, shade: u8) -> Vec<u8> {
    use image::{ImageFormat, Rgb, RgbImage};
    let mut bytes = io::Cursor::new(vec![]);
    let pixel = |x: u32, y: u32| Rgb([i, (x * 7) as u8, (y * 7) as u8 ^ shade]);
    RgbImage::from_fn(36, 30, pixel).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

pub(super) const K: u64 = 3;

pub(super) fn transform() -> TrainTransform {
    TrainTransform { size: 8, ..TrainTransform::default() }
}

pub(super) fn set(dir: &Path) -> TargetSet {
    TargetSet {
        dir: dir.to_owned(),
        name: "train",
        mark: "this one".into(),
        samples: 11,
        crops: K,
        shard_samples: 4,
        tokens: 5,
        width: 6,
        kind: TargetKind::I8,
    }
}

/// Row `token` of a crop.
pub(super) fn row(sample: u64, crop: u64, token: u64) -> Vec<u8> {
    (0..6).map(|i| (100 * crop + 40 * token + 7 * sample + i) as u8).collect()
}

fn write(set: &TargetSet) {
    let cropping = Cropping::Train(Box::new(transform()), 9);
    for shard in 0..set.shards() {
        let samples: Vec<u64> = set.samples_of(shard).collect();
        let decode = DecodeOptions::default();
        let source = Arc::new(Colours(0));
        let all = crops(source, cropping.clone(), decode, K, samples.clone(), (2, 3));
        let mut writer = TargetWriter::create(set, shard).unwrap();
        for (sample, views) in samples.into_iter().zip(all) {
            for (crop, (view, _)) in (0..).zip(views.into_iter().flatten()) {
                let rows = (0..5).flat_map(|token| row(sample, crop, token));
                writer.put(sample, crop, view, &rows.collect::<Vec<u8>>()).unwrap();
            }
        }
        writer.finish().unwrap();
    }
}

pub(super) fn written() -> (tempfile::TempDir, TargetSet) {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path());
    write(&set);
    (dir, set)
}
