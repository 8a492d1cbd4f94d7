//! WebDataset tar shards: a writer whose bytes depend on its input only, and an index for random access.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Component, Path, PathBuf};

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

/// Writes `{dir}/{prefix}-000000.tar`, `-000001.tar`, ...; nothing has its final name before [`ShardWriter::finish`].
pub struct ShardWriter {
    dir: PathBuf,
    prefix: String,
    limit: Limit,
    /// The shard being written, its samples and bytes.
    open: Option<(tar::Builder<BufWriter<File>>, usize, u64)>,
    /// Shards begun: (beside, final name).
    shards: Vec<(PathBuf, PathBuf)>,
}

impl ShardWriter {
    /// Starts a set of shards; makes `dir` where needed.
    ///
    /// # Errors
    /// When shards of that prefix are already there, or the folder can't be made.
    pub fn create(
        dir: impl AsRef<Path>,
        prefix: &str,
        limit: Limit,
    ) -> Result<ShardWriter, DataError> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir).map_err(DataError::io("create", dir))?;
        let first = dir.join(format!("{prefix}-000000.tar"));
        if first.exists() {
            return Err(DataError::Shard {
                path: first,
                reason: "is there already; remove it or choose another --out".into(),
            });
        }
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
        let full = self.open.as_ref().is_some_and(|&(_, samples, written)| {
            samples >= self.limit.samples || written + bytes > self.limit.bytes
        });
        if full {
            self.close()?;
        }
        if self.open.is_none() {
            let name = format!("{}-{:06}.tar", self.prefix, self.shards.len());
            let beside = self.dir.join(format!(".{name}.tmp"));
            let file = File::create(&beside).map_err(DataError::io("create", &beside))?;
            self.shards.push((beside, self.dir.join(name)));
            self.open = Some((tar::Builder::new(BufWriter::new(file)), 0, 0));
        }
        let path = &self.shards.last().expect("a shard is open").0;
        let (builder, samples, written) = self.open.as_mut().expect("a shard is open");
        for (extension, data) in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(0);
            builder
                .append_data(&mut header, format!("{key}.{extension}"), *data)
                .map_err(DataError::io("write", path))?;
        }
        *samples += 1;
        *written += bytes;
        Ok(())
    }

    fn close(&mut self) -> Result<(), DataError> {
        let Some((builder, ..)) = self.open.take() else { return Ok(()) };
        let path = &self.shards.last().expect("a shard is open").0;
        builder
            .into_inner()
            .and_then(|mut writer| {
                writer.flush()?;
                writer.get_ref().sync_all()
            })
            .map_err(DataError::io("write", path))
    }

    /// Ends, syncs and renames every shard into place; returns their paths.
    ///
    /// # Errors
    /// A disk that refuses.
    pub fn finish(mut self) -> Result<Vec<PathBuf>, DataError> {
        self.close()?;
        let shards = std::mem::take(&mut self.shards);
        for (beside, path) in &shards {
            fs::rename(beside, path).map_err(DataError::io("rename", path))?;
        }
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(DataError::io("sync", &self.dir))?;
        Ok(shards.into_iter().map(|(_, path)| path).collect())
    }
}

impl Drop for ShardWriter {
    /// An unfinished set leaves nothing behind.
    fn drop(&mut self) {
        for (beside, _) in &self.shards {
            let _ = fs::remove_file(beside);
        }
    }
}

/// A sample of a shard: its key and where its members lie.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// (extension in lower case, offset, bytes)
    pub(crate) members: Vec<(String, u64, u64)>,
}

/// The largest member that is believed.
const MAX_MEMBER: u64 = 1 << 30;

/// Reads the headers of a tar: its samples, and what is wrong with it, a line each. Samples before a cut are usable.
///
/// # Errors
/// When the file can't be read at all.
pub(crate) fn index(path: &Path) -> Result<(Vec<Entry>, Vec<String>), DataError> {
    let file = File::open(path).map_err(DataError::io("open", path))?;
    let length = file.metadata().map_err(DataError::io("read", path))?.len();
    let mut archive = tar::Archive::new(std::io::BufReader::new(file));
    let (mut entries, mut problems) = (Vec::<Entry>::new(), vec![]);
    let mut problem = |text: String| problems.push(format!("{}: {text}", path.display()));
    let members = archive.entries_with_seek().map_err(DataError::io("read", path))?;
    for member in members {
        let member = match member {
            Ok(member) => member,
            Err(e) => {
                problem(format!("cut short or damaged after {} samples: {e}", entries.len()));
                break;
            }
        };
        let kind = member.header().entry_type();
        if kind.is_dir() {
            continue;
        }
        let name = member.path().map(|p| p.into_owned()).unwrap_or_default();
        if !kind.is_file() || !stays_inside(&name) {
            problem(format!("member {} refused: no plain file inside the archive", name.display()));
            continue;
        }
        let (offset, size) = (member.raw_file_position(), member.size());
        if size > MAX_MEMBER {
            problem(format!("member {} refused: {size} bytes", name.display()));
            continue;
        }
        if offset + size > length {
            problem(format!("cut short inside {}", name.display()));
            // A sample with a missing member would be a different sample.
            let key = split(&name).map(|(key, _)| key);
            if entries.last().map(|e| &e.key) == key.as_ref() {
                entries.pop();
            }
            break;
        }
        let Some((key, extension)) = split(&name) else { continue };
        match entries.last_mut().filter(|entry| entry.key == key) {
            Some(entry) => entry.members.push((extension, offset, size)),
            None => entries.push(Entry { key, members: vec![(extension, offset, size)] }),
        }
    }
    Ok((entries, problems))
}

/// WebDataset's rule: the key ends at the first dot of the file name.
fn split(path: &Path) -> Option<(String, String)> {
    let text = path.to_str()?;
    let name = text.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name + text[name..].find('.').filter(|&dot| dot > 0)?;
    Some((text[..dot].to_owned(), text[dot + 1..].to_lowercase()))
}

fn stays_inside(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn write(dir: &Path, samples: usize) -> Vec<PathBuf> {
        let mut writer =
            ShardWriter::create(dir, "set", Limit { samples: 3, bytes: 1 << 20 }).unwrap();
        for i in 0..samples {
            writer.write(&format!("s{i}"), &[("png", &[i as u8; 700]), ("txt", b"words")]).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn shards_split_at_the_limit_and_index_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let shards = write(dir.path(), 7);
        assert_eq!(shards.len(), 3);
        let (entries, problems) = index(&shards[1]).unwrap();
        assert!(problems.is_empty());
        let keys: Vec<&str> = entries.iter().map(|e| e.key.as_str()).collect();
        assert_eq!(keys, ["s3", "s4", "s5"]);
        let bytes = fs::read(&shards[1]).unwrap();
        let (extension, offset, size) = &entries[1].members[0];
        assert_eq!(extension, "png");
        assert_eq!(&bytes[*offset as usize..(offset + size) as usize], &[4u8; 700]);
        assert!(ShardWriter::create(dir.path(), "set", Limit::default()).is_err());
    }

    #[test]
    fn a_cut_tar_keeps_the_samples_before_the_cut_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let shard = write(dir.path(), 3).remove(0);
        let bytes = fs::read(&shard).unwrap();
        // Each sample takes 512 + 1024 + 512 + 512 bytes; this cuts inside the second picture.
        fs::write(&shard, &bytes[..2560 + 900]).unwrap();
        let (entries, problems) = index(&shard).unwrap();
        assert_eq!(entries.len(), 1);
        assert!(problems[0].contains("cut short"), "{problems:?}");
    }

    #[test]
    fn members_that_would_leave_the_folder_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bad.tar");
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        let mut header = tar::Header::new_ustar();
        header.set_size(1);
        header.as_mut_bytes()[..12].copy_from_slice(b"../evil.png\0");
        header.set_cksum();
        builder.append(&header, &b"x"[..]).unwrap();
        builder.finish().unwrap();
        let (entries, problems) = index(&path).unwrap();
        assert!(entries.is_empty() && problems[0].contains("refused"), "{problems:?}");
        let mut writer = ShardWriter::create(dir.path(), "w", Limit::default()).unwrap();
        assert!(writer.write("../x", &[("png", b"x")]).is_err());
        assert!(writer.write("a.b", &[("png", b"x")]).is_err());
    }

    #[test]
    fn an_unfinished_set_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(dir.path(), "w", Limit::default()).unwrap();
        writer.write("x", &[("png", b"x")]).unwrap();
        drop(writer);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
