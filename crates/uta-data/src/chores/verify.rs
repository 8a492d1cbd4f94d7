//! `uta data verify`: every sample of a set read and decoded whole, and what stands beside its shards compared with them.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Serialize;

use crate::chores::pack::{Inspected, bar, inspect};
use crate::progress::counted;
use crate::source::shards::index::misled;
use crate::source::spec::shards_of;
use crate::{DataError, Fault, PairOptions, Rejected, Sample, open_with};

/// Faults of a kind that are shown; all are counted.
const SHOWN: usize = 5;

/// Samples at the start of a set that say whether its samples have captions and classes.
const LOOKED_AT: usize = 100;

/// Faults of data; `Display` is for people, `Serialize` the JSON.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verified {
    /// Samples that were found.
    pub samples: usize,
    /// Samples without a fault.
    pub sound: usize,
    /// By kind.
    pub faults: BTreeMap<Fault, Faults>,
}

/// Faults of a kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Faults {
    /// How many.
    pub count: usize,
    /// A few of them.
    pub first: Vec<Rejected>,
}

impl Verified {
    /// All faults; those of whole shards count as one each, however many samples are lost with them.
    pub fn count(&self) -> usize {
        self.faults.values().map(|faults| faults.count).sum()
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, Faults { count, first }) in &self.faults {
            writeln!(f, "{:11}{count}", kind.to_string())?;
            for Rejected { shard, key, reason, .. } in first {
                let places = [shard.as_deref().unwrap_or_default(), key];
                let place: Vec<&str> =
                    places.into_iter().filter(|place| !reason.contains(place)).collect();
                let colon = if place.is_empty() { "" } else { ": " };
                writeln!(f, "           {}{colon}{reason}", place.join(" "))?;
            }
            if *count > first.len() {
                writeln!(f, "           and {} more", count - first.len())?;
            }
        }
        let (samples, faults) = (counted(self.samples, "sample"), counted(self.count(), "fault"));
        let are = if self.samples == 1 { "is" } else { "are" };
        write!(f, "{} of {samples} {are} sound; {faults}", self.sound)
    }
}

/// Verifies each of `specs` on its own, with a progress bar on standard error where `progress`, and calls `each` with every
/// fault.
///
/// In a set one of whose first hundred samples has a caption all others need one, and so with classes.
///
/// # Errors
/// As [`open_with`]; those of `each`.
pub fn verify(
    specs: &[String],
    pairs: &PairOptions,
    progress: bool,
    mut each: impl FnMut(&Rejected) -> Result<(), DataError>,
) -> Result<Verified, DataError> {
    let mut verified = Verified::default();
    for spec in specs {
        let source = open_with(std::slice::from_ref(spec), pairs)?;
        let mut tell = |rejected: Rejected| {
            each(&rejected)?;
            let faults = verified.faults.entry(rejected.kind).or_default();
            faults.count += 1;
            if faults.first.len() < SHOWN {
                faults.first.push(rejected);
            }
            Ok::<_, DataError>(())
        };
        let mut parts = source.problems();
        if let Ok(paths) = shards_of(spec) {
            parts.extend(misled(&paths)?);
        }
        parts.into_iter().map(Rejected::part).try_for_each(&mut tell)?;

        let some = |has: fn(&Sample) -> bool| {
            let looked_at = source.len().min(LOOKED_AT);
            (0..looked_at).any(|i| source.read(i).is_ok_and(|sample| has(&sample)))
        };
        let captions = some(|sample| !sample.captions.is_empty());
        let classes = some(|sample| sample.class.is_some());
        let lacks = |sample: &Sample| {
            let key = sample.key.clone();
            if captions && sample.captions.is_empty() {
                return Some(DataError::Caption { key });
            }
            let reason = "has no class, and others have one".to_owned();
            match sample.class() {
                Ok(None) if classes => Some(DataError::Sample { key, reason }),
                class => class.err(),
            }
        };

        let bar = bar(source.len(), progress, "verifying");
        let (mut shard, mut keys) = (None, HashSet::new());
        for (i, inspected) in inspect(&source).enumerate() {
            bar.inc(1);
            let lies_in = source.shard(i);
            if lies_in != shard {
                (shard, keys) = (lies_in, HashSet::new());
            }
            let (key, fault) = match inspected {
                Ok(Inspected { sample, .. }) => {
                    let fault = lacks(&sample).map(|e| Rejected::new(source.as_ref(), i, &e));
                    (sample.key, fault)
                }
                Err(rejected) => (rejected.key.clone(), Some(rejected)),
            };
            let twice = (shard.is_some() && !keys.insert(key.clone())).then(|| Rejected {
                shard: shard.clone(),
                key,
                kind: Fault::Duplicate,
                reason: "its key comes more than once in the shard".into(),
            });
            verified.samples += 1;
            verified.sound += usize::from(fault.is_none() && twice.is_none());
            fault.into_iter().chain(twice).try_for_each(&mut tell)?;
        }
        bar.finish_and_clear();
    }
    Ok(verified)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::source::shards::{Limit, ShardWriter};
    use crate::testing::png;

    fn found(dir: &Path) -> (Verified, Vec<Rejected>) {
        let mut told = vec![];
        let spec = [dir.to_str().unwrap().to_owned()];
        let verified = verify(&spec, &PairOptions::default(), false, |rejected| {
            told.push(rejected.clone());
            Ok(())
        });
        (verified.unwrap(), told)
    }

    #[test]
    fn every_kind_of_fault_is_counted_and_named_and_a_sound_set_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let limit = Limit { samples: 10, bytes: 1 << 20 };
        let mut writer = ShardWriter::create(dir.path(), "set", limit).unwrap();
        let (picture, text, class) =
            (png(9, 9, [1, 2, 3]), ("txt", &b"words"[..]), ("cls", &b"1"[..]));
        let mut damaged = picture.clone();
        *damaged.last_chunk_mut::<20>().unwrap() = [7; 20];
        let image = ("png", &picture[..]);
        for i in 0..10 {
            writer.write(&format!("good{i}"), &[image, text, class]).unwrap();
        }
        writer.finish().unwrap();
        let (sound, told) = found(dir.path());
        assert_eq!((sound.samples, sound.sound, sound.count(), told.len()), (10, 10, 0, 0));

        let mut writer = ShardWriter::create(dir.path(), "worse", limit).unwrap();
        for (key, members) in [
            ("damaged", vec![("png", &damaged[..]), text, class]),
            ("no-words", vec![image, class]),
            ("no-class", vec![image, text]),
            ("odd-class", vec![image, text, ("cls", b"dog")]),
            ("twice", vec![image, text, class]),
            ("between", vec![image, text, class]),
            ("twice", vec![image, text, class]),
            ("no-image", vec![text, class]),
        ] {
            writer.write(key, &members).unwrap();
        }
        writer.finish().unwrap();
        let (verified, told) = found(dir.path());
        assert_eq!((verified.samples, verified.sound), (17, 12), "{verified}");
        let keys = |kind| {
            let of_kind = told.iter().filter(|rejected| rejected.kind == kind);
            of_kind.map(|rejected| rejected.key.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(keys(Fault::Image), ["damaged"]);
        assert_eq!(keys(Fault::Caption), ["no-words"]);
        assert_eq!(keys(Fault::Metadata), ["no-class", "odd-class"]);
        assert_eq!(keys(Fault::Duplicate), ["twice"]);
        // The key without an image, and sizes.json, which counts it.
        assert_eq!(keys(Fault::Shard), ["", ""]);
        assert_eq!((verified.count(), told.len()), (7, 7));
        let text = verified.to_string();
        assert!(text.ends_with("12 of 17 samples are sound; 7 faults"), "{text}");
    }

    #[test]
    fn an_index_or_a_count_that_is_not_the_tars_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let shard = |name: &str, second: &str| {
            let folder = dir.path().join(name);
            let mut writer = ShardWriter::create(folder, "set", Limit::default()).unwrap();
            for (key, extension) in [("k0", "png"), ("k1", second), ("k2", "png")] {
                writer.write(key, &[(extension, &png(9, 9, [1; 3]))]).unwrap();
            }
            writer.finish().unwrap().remove(0)
        };
        let path = shard("one", "png");
        let folder = dir.path().join("one");
        let stats = folder.join("set-000000_stats.json");
        fs::write(&stats, r#"{"count": 4, "successes": 3}"#).unwrap();
        assert_eq!(found(&folder).0.count(), 0);
        fs::write(&stats, r#"{"count": 4, "successes": 4}"#).unwrap();
        // Another tar of the same size, put there by a tool that keeps the time of change.
        let changed = fs::metadata(&path).unwrap().modified().unwrap();
        fs::rename(shard("other", "txt"), &path).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(changed).unwrap();
        let (verified, told) = found(&folder);
        let reasons: Vec<&str> = told.iter().map(|rejected| rejected.reason.as_str()).collect();
        for (reason, words) in reasons.iter().zip([
            ".set-000000.tar.uta-index: tells of 3 samples, and the tar holds 2",
            "_stats.json: says 4 samples, and the tar holds 2",
            "",
        ]) {
            assert!(reason.contains(words), "{reasons:#?}");
        }
        assert_eq!((verified.samples, verified.sound, told.len()), (3, 2, 3), "{reasons:#?}");
    }
}
