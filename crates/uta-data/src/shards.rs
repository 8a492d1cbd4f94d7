//! WebDataset tar shards: a writer whose bytes depend on its input only, and a reader with random access.

use std::path::{Path, PathBuf};

use crate::DataError;

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

/// Writes `{dir}/{prefix}-000000.tar`, `-000001.tar`, ...
pub struct ShardWriter {}

impl ShardWriter {
    /// Starts a set of shards; makes `dir` where needed.
    ///
    /// # Errors
    /// When shards of that prefix are already there, or the folder can't be made.
    pub fn create(dir: impl AsRef<Path>, prefix: &str, limit: Limit) -> Result<ShardWriter, DataError> {
        let _ = (dir.as_ref(), prefix, limit);
        todo!()
    }

    /// Adds one sample: a member `{key}.{ext}` for each of `members`.
    ///
    /// # Errors
    /// A bad key or extension, or a disk that refuses.
    pub fn write(&mut self, key: &str, members: &[(&str, &[u8])]) -> Result<(), DataError> {
        let _ = (key, members);
        todo!()
    }

    /// Ends, syncs and renames every shard into place; returns their paths.
    ///
    /// # Errors
    /// A disk that refuses.
    pub fn finish(self) -> Result<Vec<PathBuf>, DataError> {
        todo!()
    }
}
