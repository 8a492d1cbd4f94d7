//! Writing targets, a shard at a time.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crc32c::crc32c;
use uta_base::{AtomicFile, Lock};

use crate::error::DataError;
use crate::targets::layout::{CHECK, Places, TargetSet, VIEW, View};

/// Writes one shard, in any order; it has its name only once it is [finished](TargetWriter::finish).
pub struct TargetWriter<'a> {
    set: &'a TargetSet,
    shard: u64,
    file: AtomicFile,
    places: Places,
    /// `views` and `checks`.
    tables: Vec<u8>,
}

impl<'a> TargetWriter<'a> {
    /// Begins a shard in which every sample is unusable.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn create(set: &'a TargetSet, shard: u64) -> Result<TargetWriter<'a>, DataError> {
        let path = set.path(shard);
        let places = set.places(shard);
        let file = AtomicFile::create(&path).map_err(DataError::io("create", &path))?;
        let mut tables = vec![0; (places.targets - places.views) as usize];
        tables[..(places.checks - places.views) as usize].fill(0xff);
        let writer = TargetWriter { set, shard, file, places, tables };
        // What is left unwritten reads as zeros.
        let out = writer.file.file();
        out.set_len(writer.places.end)
            .and_then(|()| out.write_all_at(&set.header(shard), 0))
            .map_err(DataError::io("write", path))?;
        Ok(writer)
    }

    /// Writes the `[T, E]` rows of a crop.
    ///
    /// # Errors
    /// When the disk refuses.
    ///
    /// # Panics
    /// When the sample is not of this shard, or the rows have another size.
    pub fn put(
        &mut self,
        sample: u64,
        crop: u64,
        view: View,
        rows: &[u8],
    ) -> Result<(), DataError> {
        let set = self.set;
        assert!(set.samples_of(self.shard).contains(&sample) && crop < set.crops);
        assert_eq!(rows.len() as u64, set.tokens * set.row());
        let r = (sample - self.shard * set.shard_samples) * set.crops + crop;
        let at = (r * VIEW) as usize;
        self.tables[at..at + VIEW as usize].copy_from_slice(view.bytes().as_flattened());
        let checks = (self.places.checks - self.places.views + r * set.tokens * CHECK) as usize;
        let (checks, _) = self.tables[checks..].as_chunks_mut::<4>();
        for (check, row) in checks.iter_mut().zip(rows.chunks_exact(set.row() as usize)) {
            *check = crc32c(row).to_le_bytes();
        }
        let offset = self.places.targets + r * set.tokens * set.row();
        self.file
            .file()
            .write_all_at(rows, offset)
            .map_err(DataError::io("write", set.path(self.shard)))
    }

    /// Syncs the shard and gives it its name.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(self) -> Result<(), DataError> {
        let path = self.set.path(self.shard);
        self.file
            .file()
            .write_all_at(&self.tables, self.places.views)
            .and_then(|()| self.file.finish())
            .map_err(DataError::io("write", path))
    }
}

/// Makes the folder of a cache where needed, and holds it until dropped, so that two processes never write the same one.
///
/// # Errors
/// When another process has it, or it can't be made.
pub fn lock(dir: &Path) -> Result<Lock, DataError> {
    fs::create_dir_all(dir).map_err(DataError::io("create", dir))?;
    let path = dir.join(".lock");
    let lock = Lock::try_hold(&path).map_err(DataError::io("lock", &path))?;
    lock.ok_or_else(|| {
        let reason = "another process is writing here".into();
        DataError::Targets { path: dir.to_owned(), reason }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::targets::testing::set;

    #[test]
    fn an_unfinished_shard_leaves_nothing_and_one_process_writes_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let set = set(dir.path());
        drop(TargetWriter::create(&set, 0).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let held = lock(dir.path()).unwrap();
        assert!(lock(dir.path()).unwrap_err().to_string().contains("another process"));
        drop(held);
        lock(dir.path()).unwrap();
    }
}
