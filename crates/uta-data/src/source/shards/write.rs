//! Writing shards.

use std::fs;
use std::path::{Path, PathBuf};

use uta_base::{AtomicFile, CompleteFile};

use crate::error::DataError;
use crate::source::shards::scan::stays_inside;
use crate::source::shards::sizes;

/// When a shard is full; whichever is reached first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Samples in a shard.
    pub samples: usize,
    /// Bytes of a shard.
    pub bytes: u64,
}

impl Default for Limit {
    /// WebDataset's habits: 10,000 samples or 1 GB.
    fn default() -> Limit {
        Limit { samples: 10_000, bytes: 1_000_000_000 }
    }
}

/// Writes `{dir}/{prefix}-000000.tar`, `-000001.tar`, ..., and `sizes.json`; nothing has its final name before
/// [`ShardWriter::finish`].
pub struct ShardWriter {
    dir: PathBuf,
    prefix: String,
    limit: Limit,
    /// The shard being written, and its bytes.
    open: Option<(tar::Builder<AtomicFile>, u64)>,
    shards: Vec<Begun>,
}

/// A shard that was begun.
struct Begun {
    path: PathBuf,
    samples: usize,
    /// Once it is closed, until it has its name.
    complete: Option<CompleteFile>,
}

impl ShardWriter {
    /// Starts a set of shards; makes `dir` where needed.
    ///
    /// # Errors
    /// When shards of that prefix are already there, or a `sizes.json` that is no list of sizes, or the folder can't be made.
    pub fn create(
        dir: impl AsRef<Path>,
        prefix: &str,
        limit: Limit,
    ) -> Result<ShardWriter, DataError> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir).map_err(DataError::io("create", dir))?;
        let path = dir.join(format!("{prefix}-000000.tar"));
        if path.exists() {
            return Err(DataError::Exists { path });
        }
        // Not after hours of packing.
        sizes::of(dir)?;
        let prefix = prefix.to_owned();
        Ok(ShardWriter { dir: dir.to_owned(), prefix, limit, open: None, shards: vec![] })
    }

    /// Adds one sample: a member `{key}.{ext}` for each of `members`.
    ///
    /// # Errors
    /// A bad key or extension, or a disk that refuses.
    pub fn write(&mut self, key: &str, members: &[(&str, &[u8])]) -> Result<(), DataError> {
        let base = key.rsplit('/').next().unwrap_or_default();
        if base.is_empty() || base.contains('.') || !stays_inside(Path::new(key)) {
            return Err(DataError::Sample {
                key: key.to_owned(),
                reason: "is no key: it must be a relative path without a dot in its name".into(),
            });
        }
        // A header and its padding for each member.
        let bytes: u64 = members.iter().map(|(_, data)| 1024 + data.len() as u64).sum();
        let samples = self.shards.last().map_or(0, |shard| shard.samples);
        let full = self.open.as_ref().is_some_and(|&(_, written)| {
            samples >= self.limit.samples || written + bytes > self.limit.bytes
        });
        if full {
            self.close()?;
        }
        if self.open.is_none() {
            let name = format!("{}-{:06}.tar", self.prefix, self.shards.len());
            let path = self.dir.join(name);
            if path.exists() {
                return Err(DataError::Exists { path });
            }
            let file = AtomicFile::create(&path).map_err(DataError::io("create", &path))?;
            self.shards.push(Begun { path, samples: 0, complete: None });
            self.open = Some((tar::Builder::new(file), 0));
        }
        let shard = self.shards.last_mut().expect("a shard is open");
        let (builder, written) = self.open.as_mut().expect("a shard is open");
        for (extension, data) in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(0);
            builder
                .append_data(&mut header, format!("{key}.{extension}"), *data)
                .map_err(DataError::io("write", &shard.path))?;
        }
        shard.samples += 1;
        *written += bytes;
        Ok(())
    }

    /// Ends and syncs the open shard, which gets its name with all others.
    fn close(&mut self) -> Result<(), DataError> {
        let Some((builder, ..)) = self.open.take() else { return Ok(()) };
        let shard = self.shards.last_mut().expect("a shard is open");
        let complete = builder.into_inner().and_then(AtomicFile::complete);
        shard.complete = Some(complete.map_err(DataError::io("write", &shard.path))?);
        Ok(())
    }

    /// Ends, syncs and renames every shard into place, and adds them to `sizes.json`; returns their paths.
    ///
    /// # Errors
    /// A disk that refuses; none of the shards is then left.
    pub fn finish(mut self) -> Result<Vec<PathBuf>, DataError> {
        self.close()?;
        let mut named = vec![];
        if let Err(e) = self.give_names(&mut named) {
            // They would be in the way of another try.
            for path in named {
                let _ = fs::remove_file(path);
            }
            return Err(e);
        }
        Ok(named)
    }

    /// Gives every shard its name, which is added to `named`.
    fn give_names(&mut self, named: &mut Vec<PathBuf>) -> Result<(), DataError> {
        for Begun { path, complete, .. } in &mut self.shards {
            let complete = complete.take().expect("every shard is closed");
            complete.give_name().map_err(DataError::io("rename", &*path))?;
            named.push(path.clone());
        }
        sizes::add(&self.dir, self.shards.iter().map(|shard| (&*shard.path, shard.samples)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Source as _;
    use crate::testing::{keys, open_shard, three_a_shard};

    #[test]
    fn keys_that_a_reader_would_cut_or_that_lead_outside_are_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(dir.path(), "w", Limit::default()).unwrap();
        for key in ["../x", "/x", "a.b", "", "folder/"] {
            assert!(writer.write(key, &[("png", b"x")]).is_err(), "{key:?}");
        }
    }

    #[test]
    fn an_unfinished_set_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(dir.path(), "w", Limit::default()).unwrap();
        writer.write("x", &[("png", b"x")]).unwrap();
        drop(writer);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_same_samples_give_the_same_bytes() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (a, b) in three_a_shard(a.path(), 4).iter().zip(three_a_shard(b.path(), 4)) {
            assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap());
        }
    }

    #[test]
    fn long_names_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(dir.path(), "w", Limit::default()).unwrap();
        let long = format!("{}/{}", "folder".repeat(30), "name".repeat(30));
        for key in ["first", &long, "last"] {
            writer.write(key, &[("png", b"x"), ("txt", key.as_bytes())]).unwrap();
        }
        let shards = open_shard(&writer.finish().unwrap()[0]);
        assert_eq!(keys(&shards), ["first", &long, "last"]);
        assert_eq!(shards.read(1).unwrap().captions, [long]);
    }

    #[test]
    fn shards_split_at_the_limit_and_read_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let paths = three_a_shard(dir.path(), 7);
        assert_eq!(paths.len(), 3);
        let shards = open_shard(&paths[1]);
        assert_eq!(keys(&shards), ["s3", "s4", "s5"]);
        assert_eq!(shards.problems(), Vec::<String>::new());
        let sample = shards.read(1).unwrap();
        assert_eq!((sample.key.as_str(), sample.image), ("s4", vec![4u8; 700]));
        assert_eq!(sample.captions, ["words"]);
        let again = ShardWriter::create(dir.path(), "set", Limit::default()).err().unwrap();
        assert!(again.to_string().contains("is already there"), "{again}");
    }
}
