//! Targets that were computed once: what a frozen teacher says of seeded crops, in shards that are read row by row.
//!
//! A shard `{set}-000003.safetensors` is of a range of samples, k crops of each, R in all; each crop has T rows of E numbers:
//!
//! ```text
//! views    U64 [R, 3]             the state of the generator that the crop is drawn from; the CRC-32C of its pixels; of both
//! checks   U32 [R, T]             the CRC-32C of each row of targets
//! targets  I8, F16 or F32 [R, T, E]
//! ```
//!
//! All sizes are known before anything is computed. So a row's place is arithmetic, and so are a shard's header and length,
//! by which a missing, cut or strange file is found. Whatever else may be damaged is under a checksum that is looked at
//! whenever it is read. What the numbers are, and of which teacher, this module doesn't know.

use crc32c::crc32c;

use self::layout::Place;
use crate::error::DataError;
use crate::image::decode::DecodeOptions;
use crate::rejected::guarded;
use crate::source::Source;
use crate::storage::local::OpenFiles;

mod crops;
mod layout;
pub(crate) mod replay;
#[cfg(test)]
mod testing;
mod write;

pub use self::crops::{Cropping, crops};
pub use self::layout::{TargetKind, TargetSet, View};
pub use self::replay::{Replay, Wanted};
pub use self::write::{TargetWriter, lock};

/// Samples looked at before a set of targets is believed to be of a source.
const PROBES: u64 = 16;

/// The targets of a source, for reading from any thread.
pub struct Targets {
    set: TargetSet,
    files: OpenFiles,
}

impl Targets {
    /// Opens the shards of `set`, every one of which must be there and have its length.
    ///
    /// # Errors
    /// Names the first that isn't.
    pub fn open(set: TargetSet) -> Result<Targets, DataError> {
        for shard in 0..set.shards() {
            set.open(shard)?;
        }
        Ok(Targets::unchecked(set))
    }

    /// As [`open`](Targets::open), of a set that may lack shards yet.
    pub fn unchecked(set: TargetSet) -> Targets {
        let files = OpenFiles::new(set.shards());
        Targets { set, files }
    }

    /// Their set.
    pub fn set(&self) -> &TargetSet {
        &self.set
    }

    fn place(&self, sample: u64, crop: u64) -> Result<Place, DataError> {
        let set = &self.set;
        if sample >= set.samples || crop >= set.crops {
            let reason = format!("has no crop {crop} of sample {sample}");
            return Err(DataError::Targets { path: set.dir.clone(), reason });
        }
        let shard = sample / set.shard_samples;
        let file = self.files.get(shard, || set.open(shard))?;
        Ok(Place { file, shard, r: (sample % set.shard_samples) * set.crops + crop })
    }

    /// Appends the wanted rows of a crop, `[rows, E]`, and checks that they are what was written. Nothing else is read.
    ///
    /// # Errors
    /// When they can't be read or are damaged.
    pub fn read(
        &self,
        (sample, crop): (u64, u64),
        rows: &[u64],
        into: &mut Vec<u8>,
    ) -> Result<(), DataError> {
        self.set.read(&self.place(sample, crop)?, rows, into)
    }

    /// As [`read`](Targets::read), for someone who has `pixels` and wants them to be those that the targets are of.
    ///
    /// # Errors
    /// When they aren't.
    pub fn read_for(
        &self,
        (sample, crop): (u64, u64),
        pixels: &[u8],
        rows: &[u64],
        into: &mut Vec<u8>,
    ) -> Result<(), DataError> {
        let (place, view) = self.usable(sample, crop)?;
        self.read_seen(&place, view, pixels, rows, into)
    }

    /// Where a crop is, and what came of it.
    fn usable(&self, sample: u64, crop: u64) -> Result<(Place, View), DataError> {
        let place = self.place(sample, crop)?;
        match self.set.view(&place)? {
            Some(view) => Ok((place, view)),
            None => {
                let reason = format!("sample {sample} was unusable when they were computed");
                Err(DataError::Targets { path: self.set.path(place.shard), reason })
            }
        }
    }

    /// The rows of a crop whose view is known, if `pixels` are what came of it.
    fn read_seen(
        &self,
        place: &Place,
        view: View,
        pixels: &[u8],
        rows: &[u64],
        into: &mut Vec<u8>,
    ) -> Result<(), DataError> {
        if view.crc != crc32c(pixels) {
            let (sample, crop) = self.set.crop_at(place);
            let reason = format!(
                "sample {sample}, crop {crop}, isn't the picture that the targets are of: it, or how it is decoded or cropped, has changed"
            );
            return Err(DataError::Targets { path: self.set.path(place.shard), reason });
        }
        self.set.read(place, rows, into)
    }

    /// Whether these are targets of `source`: as many samples, and some of them with the same pixels.
    ///
    /// # Errors
    /// Says what differs.
    pub fn are_of(
        &self,
        source: &dyn Source,
        cropping: &Cropping,
        decode: &DecodeOptions,
    ) -> Result<(), DataError> {
        let (samples, here) = (self.set.samples, source.len() as u64);
        let wrong = |reason| Err(DataError::Targets { path: self.set.dir.clone(), reason });
        if samples != here {
            let name = self.set.name;
            return wrong(format!("is of other {name} data: {samples} samples there, {here} here"));
        }
        for probe in 0..PROBES.min(samples) {
            let i = probe * samples / PROBES.min(samples);
            // What isn't there, or damaged, is told of elsewhere.
            let Ok(place) = self.place(i, 0) else { continue };
            let Ok(Some(view)) = self.set.view(&place) else { continue };
            let look = || {
                let sample = source.read(i as usize)?;
                cropping.view(&sample.image, decode, view.state)
            };
            let Ok(pixels) = guarded(look) else { continue };
            if crc32c(&pixels) != view.crc {
                let (name, key) = (self.set.name, source.key(i as usize));
                return wrong(format!(
                    "is of other {name} data: {key}, sample {i}, isn't the picture that was there"
                ));
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Targets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.set.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::testing::{Colours, row, transform, written};
    use super::*;
    use crate::{Sample, TrainTransform};

    #[test]
    fn rows_are_read_back_and_a_damaged_one_hurts_only_who_wants_it() {
        let (_dir, set) = written();
        assert_eq!(std::fs::read_dir(&set.dir).unwrap().count(), 3);
        let targets = Targets::open(set.clone()).unwrap();
        let mut rows = vec![];
        targets.read((6, 2), &[0, 2, 3], &mut rows).unwrap();
        assert_eq!(rows, [0, 2, 3].map(|token| row(6, 2, token)).concat());
        // Sample 6 is the third of shard 1; its crop 2 is the ninth there.
        let path = set.path(1);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = set.places(1).targets as usize + (8 * 5 + 1) * 6;
        assert_eq!(bytes[at..at + 6], row(6, 2, 1));
        bytes[at + 3] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let targets = Targets::open(set).unwrap();
        targets.read((6, 2), &[0, 2, 3, 4], &mut rows).unwrap();
        let e = targets.read((6, 2), &[0, 1], &mut rows).unwrap_err().to_string();
        assert!(e.contains("train-000001") && e.contains("sample 6, crop 2, token 1"), "{e}");
        assert!(targets.read((11, 0), &[0], &mut rows).is_err());
        assert!(targets.read((0, 3), &[0], &mut rows).is_err());
    }

    #[test]
    fn other_pictures_other_crops_and_another_number_are_refused() {
        let (_dir, set) = written();
        let targets = Targets::open(set.clone()).unwrap();
        let decode = DecodeOptions::default();
        let cropping = Cropping::Train(Box::new(transform()), 9);
        targets.are_of(&Colours(0), &cropping, &decode).unwrap();
        let e = targets.are_of(&Colours(64), &cropping, &decode).unwrap_err().to_string();
        assert!(e.contains("other train data: c0, sample 0"), "{e}");
        let flat = TrainTransform { scale: (0.9, 1.0), ..transform() };
        assert!(targets.are_of(&Colours(0), &Cropping::Train(Box::new(flat), 9), &decode).is_err());
        // Who has a picture and its targets is told when they don't belong together.
        let mut rows = vec![];
        let e = targets.read_for((1, 0), &[7; 192], &[0], &mut rows).unwrap_err().to_string();
        assert!(e.contains("sample 1, crop 0, isn't the picture"), "{e}");
        let e = targets.read_for((5, 0), &[7; 192], &[0], &mut rows).unwrap_err().to_string();
        assert!(e.contains("sample 5 was unusable"), "{e}");
        struct Fewer;
        impl Source for Fewer {
            fn len(&self) -> usize {
                10
            }
            fn read(&self, i: usize) -> Result<Sample, DataError> {
                Colours(0).read(i)
            }
            fn key(&self, i: usize) -> String {
                Colours(0).key(i)
            }
            fn class_names(&self) -> Option<&[String]> {
                None
            }
        }
        let e = targets.are_of(&Fewer, &cropping, &decode).unwrap_err().to_string();
        assert!(e.contains("11 samples there, 10 here"), "{e}");
    }
}
