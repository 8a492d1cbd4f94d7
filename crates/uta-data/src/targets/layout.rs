//! The files of targets: their sizes, their headers, and how a part of one is read and checked.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use crc32c::crc32c;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::DataError;

/// Bytes of a shard's header, the eight of its length included.
const HEADER: usize = 1024;

/// Bytes of a crop in `views`.
pub(super) const VIEW: u64 = 24;

/// Bytes of a row in `checks`.
pub(super) const CHECK: u64 = 4;

/// How a target's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetKind {
    /// A byte each: the row's direction alone.
    I8,
    /// Half precision.
    F16,
    /// As they were computed.
    F32,
}

impl TargetKind {
    /// Bytes of a number.
    pub fn bytes(self) -> u64 {
        match self {
            TargetKind::I8 => 1,
            TargetKind::F16 => 2,
            TargetKind::F32 => 4,
        }
    }

    fn dtype(self) -> &'static str {
        match self {
            TargetKind::I8 => "I8",
            TargetKind::F16 => "F16",
            TargetKind::F32 => "F32",
        }
    }
}

/// The targets of all samples of one source: how many, how large, where.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetSet {
    /// The folder.
    pub dir: PathBuf,
    /// How its shards' names begin.
    pub name: &'static str,
    /// Mark that tells its shards from those of other caches.
    pub mark: String,
    /// Samples of the source.
    pub samples: u64,
    /// k, the crops of a sample.
    pub crops: u64,
    /// Samples of a shard; the last one may have fewer.
    pub shard_samples: u64,
    /// T, the rows of a crop.
    pub tokens: u64,
    /// E, the numbers of a row.
    pub width: u64,
    /// How they are stored.
    pub kind: TargetKind,
}

/// Where the parts of a shard begin, and where it ends.
pub(super) struct Places {
    pub(super) views: u64,
    pub(super) checks: u64,
    pub(super) targets: u64,
    pub(super) end: u64,
}

impl TargetSet {
    /// Whether the sizes, which come from a file, are such that arithmetic with them is safe.
    pub fn is_sane(&self) -> bool {
        let sizes = [self.crops, self.shard_samples, self.tokens, self.width];
        let numbers = sizes.into_iter().try_fold(1u64, |product, size| product.checked_mul(size));
        self.samples < 1 << 40 && numbers.is_some_and(|numbers| (1..1 << 44).contains(&numbers))
    }

    /// How many shards there are.
    pub fn shards(&self) -> u64 {
        self.samples.div_ceil(self.shard_samples)
    }

    /// The samples of a shard.
    pub fn samples_of(&self, shard: u64) -> Range<u64> {
        let first = shard * self.shard_samples;
        first..(first + self.shard_samples).min(self.samples)
    }

    /// The file of a shard.
    pub fn path(&self, shard: u64) -> PathBuf {
        self.dir.join(format!("{}-{shard:06}.safetensors", self.name))
    }

    /// Bytes of all shards.
    pub fn bytes(&self) -> u64 {
        (0..self.shards()).map(|shard| self.places(shard).end).sum()
    }

    pub(super) fn row(&self) -> u64 {
        self.width * self.kind.bytes()
    }

    fn rows_of(&self, shard: u64) -> u64 {
        let samples = self.samples_of(shard);
        (samples.end - samples.start) * self.crops
    }

    /// The header of a shard, with its length before it.
    pub(super) fn header(&self, shard: u64) -> Vec<u8> {
        let (r, t, e) = (self.rows_of(shard), self.tokens, self.width);
        let views = r * VIEW;
        let checks = views + r * t * CHECK;
        let targets = checks + r * t * self.row();
        let samples = self.samples_of(shard);
        let header = json!({
            "__metadata__": {
                "cache": self.mark,
                "samples": format!("{}..{}", samples.start, samples.end),
                "crops": self.crops.to_string(),
            },
            "views": { "dtype": "U64", "shape": [r, 3], "data_offsets": [0, views] },
            "checks": { "dtype": "U32", "shape": [r, t], "data_offsets": [views, checks] },
            "targets": { "dtype": self.kind.dtype(), "shape": [r, t, e], "data_offsets": [checks, targets] },
        });
        let mut whole = (HEADER as u64 - 8).to_le_bytes().to_vec();
        whole.extend_from_slice(header.to_string().as_bytes());
        assert!(whole.len() <= HEADER, "sane sizes have few digits");
        whole.resize(HEADER, b' ');
        whole
    }

    pub(super) fn places(&self, shard: u64) -> Places {
        let rows = self.rows_of(shard);
        let views = HEADER as u64;
        let checks = views + rows * VIEW;
        let targets = checks + rows * self.tokens * CHECK;
        Places { views, checks, targets, end: targets + rows * self.tokens * self.row() }
    }

    /// Opens a shard whose length and header are what they must be.
    pub(super) fn open(&self, shard: u64) -> Result<File, DataError> {
        let path = self.path(shard);
        let wrong = |reason: String| DataError::Targets { path: path.clone(), reason };
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(wrong(
                    "is missing: run uta cache again, which makes what isn't there".into(),
                ));
            }
            other => other.map_err(DataError::io("open", &path))?,
        };
        let (found, whole) =
            (file.metadata().map_err(DataError::io("read", &path))?.len(), self.places(shard).end);
        if found != whole {
            let what = if found < whole { "cut short" } else { "too long" };
            let redo = "run uta cache again, which makes it anew";
            return Err(wrong(format!("{what}: {found} bytes of {whole}; {redo}")));
        }
        let header = self.header(shard);
        let mut there = vec![0; header.len()];
        file.read_exact_at(&mut there, 0).map_err(DataError::io("read", &path))?;
        if there != header {
            let redo = "remove it and run uta cache again";
            return Err(wrong(format!("is of another cache, or damaged in its header; {redo}")));
        }
        Ok(file)
    }

    /// Whether a shard is there with the right length and header; with `thoroughly`, whether every row is what was written.
    pub fn is_whole(&self, shard: u64, thoroughly: bool) -> Result<bool, DataError> {
        let file = match self.open(shard) {
            Err(DataError::Targets { .. }) => return Ok(false),
            other => Arc::new(other?),
        };
        if !thoroughly {
            return Ok(true);
        }
        let (all, mut rows) = ((0..self.tokens).collect::<Vec<u64>>(), vec![]);
        for r in 0..self.rows_of(shard) {
            let place = Place { file: file.clone(), shard, r };
            rows.clear();
            let read = self.view(&place).and_then(|view| match view {
                Some(_) => self.read(&place, &all, &mut rows),
                None => Ok(()),
            });
            match read {
                Err(DataError::Targets { .. }) => return Ok(false),
                other => other?,
            }
        }
        Ok(true)
    }

    pub(super) fn view(&self, place: &Place) -> Result<Option<View>, DataError> {
        let mut bytes = [[0; 8]; 3];
        place
            .file
            .read_exact_at(
                bytes.as_flattened_mut(),
                self.places(place.shard).views + place.r * VIEW,
            )
            .map_err(DataError::io("read", self.path(place.shard)))?;
        if bytes.as_flattened() == UNUSABLE {
            return Ok(None);
        }
        let [state, crc, _] = bytes.map(u64::from_le_bytes);
        let view = View { state, crc: crc as u32 };
        if view.bytes() != bytes {
            return Err(self.damaged(place, "its place in the table of views"));
        }
        Ok(Some(view))
    }

    /// The sample and which of its crops.
    pub(super) fn crop_at(&self, place: &Place) -> (u64, u64) {
        let sample = self.samples_of(place.shard).start + place.r / self.crops;
        (sample, place.r % self.crops)
    }

    fn damaged(&self, place: &Place, what: &str) -> DataError {
        let (sample, crop) = self.crop_at(place);
        let redo = "run uta cache again with --check, which makes the shard anew";
        let reason = format!("damaged: sample {sample}, crop {crop}, {what}; {redo}");
        DataError::Targets { path: self.path(place.shard), reason }
    }

    /// Appends the wanted rows of a crop, neighbours in one read.
    pub(super) fn read(
        &self,
        place: &Place,
        rows: &[u64],
        into: &mut Vec<u8>,
    ) -> Result<(), DataError> {
        let path = self.path(place.shard);
        let io = || DataError::io("read", &path);
        let places = self.places(place.shard);
        let first = place.r * self.tokens;
        let mut checks = vec![0; (self.tokens * CHECK) as usize];
        place.file.read_exact_at(&mut checks, places.checks + first * CHECK).map_err(io())?;
        let (checks, _) = checks.as_chunks::<4>();
        let row = self.row() as usize;
        for run in rows.chunk_by(|a, b| a + 1 == *b) {
            let start = into.len();
            into.resize(start + run.len() * row, 0);
            let offset = places.targets + (first + run[0]) * self.row();
            place.file.read_exact_at(&mut into[start..], offset).map_err(io())?;
            for (token, bytes) in run.iter().zip(into[start..].chunks_exact(row)) {
                if crc32c(bytes) != u32::from_le_bytes(checks[*token as usize]) {
                    return Err(self.damaged(place, &format!("token {token}")));
                }
            }
        }
        Ok(())
    }
}

/// A crop in an open shard.
pub(super) struct Place {
    pub(super) file: Arc<File>,
    pub(super) shard: u64,
    /// Which of the shard's crops.
    pub(super) r: u64,
}

/// A crop: everything random about it (box, flip, colours), and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// State of the generator that it is drawn from.
    pub(super) state: u64,
    /// CRC of its pixels.
    pub(super) crc: u32,
}

/// Entry in `views` of the crops of an unusable sample.
const UNUSABLE: [u8; VIEW as usize] = [0xff; VIEW as usize];

impl View {
    /// The crop drawn from a generator of this state, by its pixels.
    pub fn new(state: u64, pixels: &[u8]) -> View {
        View { state, crc: crc32c(pixels) }
    }

    pub(super) fn bytes(self) -> [[u8; 8]; 3] {
        let [state, crc] = [self.state, self.crc.into()].map(u64::to_le_bytes);
        [state, crc, u64::from(crc32c([state, crc].as_flattened())).to_le_bytes()]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::*;
    use crate::targets::Targets;
    use crate::targets::testing::{set, written};

    #[test]
    fn sizes_that_would_overflow_are_no_sane_ones() {
        let set = set(Path::new("."));
        assert!(set.is_sane());
        assert!(!TargetSet { crops: 0, ..set.clone() }.is_sane());
        assert!(!TargetSet { shard_samples: 0, ..set.clone() }.is_sane());
        assert!(!TargetSet { shard_samples: u64::MAX, ..set.clone() }.is_sane());
        assert!(!TargetSet { samples: 1 << 50, ..set }.is_sane());
    }

    #[test]
    fn a_shard_with_any_byte_changed_or_cut_or_added_is_not_whole() {
        let (_dir, set) = written();
        let path = set.path(2);
        let whole = std::fs::read(&path).unwrap();
        assert!(set.is_whole(2, true).unwrap());
        for i in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[i] ^= 0x04;
            std::fs::write(&path, &damaged).unwrap();
            assert!(!set.is_whole(2, true).unwrap(), "byte {i}");
        }
        for length in [0, 7, 1000, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(!set.is_whole(2, false).unwrap());
            let e = Targets::open(set.clone()).unwrap_err().to_string();
            assert!(e.contains("train-000002") && e.contains("cut short"), "{e}");
        }
        std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert!(Targets::open(set.clone()).unwrap_err().to_string().contains("too long"));
        std::fs::remove_file(&path).unwrap();
        assert!(Targets::open(set.clone()).unwrap_err().to_string().contains("is missing"));
        // One of another cache, of the very same sizes.
        std::fs::write(&path, &whole).unwrap();
        let other = TargetSet { mark: "that one".into(), ..set };
        assert!(Targets::open(other).unwrap_err().to_string().contains("of another cache"));
    }
}
