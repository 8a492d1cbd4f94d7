//! Files of this machine: those that are held open, and folders.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
#[cfg(target_os = "linux")]
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use crate::error::DataError;
use crate::storage::span::{Bytes, Span, Stamp, Together, gather};

/// Bytes of the largest text that is read: the sizes of a million shards with long names need less.
const MAX_TEXT: u64 = 1 << 28;

/// Files held open, at most [`MAX_OPEN`] of them.
pub(crate) struct OpenFiles {
    /// A file may only be in the slot of its number modulo their count.
    slots: Vec<Slot>,
}

/// An open file, by its number.
type Slot = Mutex<Option<(u64, Arc<File>)>>;

impl OpenFiles {
    /// A pool for so many files, numbered from 0.
    pub(crate) fn new(files: u64) -> OpenFiles {
        let slots = (0..files.clamp(1, MAX_OPEN)).map(|_| Mutex::new(None)).collect();
        OpenFiles { slots }
    }

    /// The file of that number, from the pool or by `open`.
    ///
    /// # Errors
    /// As `open`.
    pub(crate) fn get<E>(
        &self,
        number: u64,
        open: impl FnOnce() -> Result<File, E>,
    ) -> Result<Arc<File>, E> {
        let slot = &self.slots[(number % self.slots.len() as u64) as usize];
        // A slot is only ever replaced as a whole, so a panic elsewhere can't have spoilt it.
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Some((holds, file)) if *holds == number => Ok(file.clone()),
            _ => {
                let file = Arc::new(open()?);
                *slot = Some((number, file.clone()));
                Ok(file)
            }
        }
    }
}

/// Shards on a disk.
pub(crate) struct LocalShards {
    paths: Vec<PathBuf>,
    open: OpenFiles,
}

impl LocalShards {
    pub(crate) fn new(paths: &[PathBuf]) -> LocalShards {
        LocalShards { paths: paths.to_vec(), open: OpenFiles::new(paths.len() as u64) }
    }

    fn file(&self, shard: u32) -> io::Result<Arc<File>> {
        self.open.get(shard.into(), || File::open(&self.paths[shard as usize]))
    }
}

impl Bytes for LocalShards {
    fn read(&self, _: usize, span: Span, run: &mut [u8]) -> Result<(), (&'static str, io::Error)> {
        let file = self.file(span.shard).map_err(|e| ("open shard", e))?;
        file.read_exact_at(run, span.offset).map_err(|e| ("read shard", e))
    }

    fn expect(&self, samples: &mut dyn Iterator<Item = (usize, Span)>) {
        // A sample alone is as soon read as asked for.
        let several = |together: &Together| together.samples.len() > 1;
        for Together { shard, range, .. } in gather(samples).into_iter().filter(several) {
            // Whoever reads it is told why it can't be opened.
            if let Ok(file) = self.file(shard) {
                fetch(&file, range);
            }
        }
    }
}

/// Has the system read a part of a file in the background, though its samples are asked for in another order.
fn fetch(file: &File, range: Range<u64>) {
    // Advice: refused, reading is slower and no more.
    #[cfg(target_os = "linux")]
    for start in range.clone().step_by(ADVICE) {
        let length = NonZeroU64::new((range.end - start).min(ADVICE as u64));
        let _ = rustix::fs::fadvise(file, start, length, rustix::fs::Advice::WillNeed);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, range);
}

/// Bytes of a file that Linux may be advised of: of more it reads no more than its read-ahead, this much unless it is set.
#[cfg(target_os = "linux")]
const ADVICE: usize = 128 << 10;

/// Files held open at once, far below the usual limit of 1024.
const MAX_OPEN: u64 = 128;

/// The state of the file that is there now.
pub(crate) fn stamp(path: &Path) -> io::Result<Stamp> {
    let file = fs::metadata(path)?;
    let since = file.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let changed = since.map_or((0, 0), |since| (since.as_secs(), since.subsec_nanos()));
    Ok(Stamp { bytes: file.len(), changed, etag: None })
}

/// The text of a file, if it is there.
pub(crate) fn text(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut text = String::new();
    file.take(MAX_TEXT).read_to_string(&mut text)?;
    Ok(Some(text))
}

/// The plain files of a folder that end in `.tar`, sorted, hidden ones left out.
pub(crate) fn tars(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let is_shard = |path: &PathBuf| has_extension(path, "tar") && path.is_file();
    Ok(list(dir)?.into_iter().filter(is_shard).collect())
}

/// The sorted entries of a folder, hidden ones and [junk](is_passed_over) left out.
pub(crate) fn list(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut paths = vec![];
    for entry in fs::read_dir(dir).map_err(DataError::io("list", dir))? {
        let entry = entry.map_err(DataError::io("list", dir))?;
        if !is_passed_over(&entry.file_name()) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Whether a path ends in `.wanted`, in whatever case.
pub(crate) fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(wanted))
}

/// Names that systems and programs leave behind in folders: no class, no picture.
const JUNK: [&str; 9] = [
    "__MACOSX",
    "lost+found",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "RECYCLER",
    "System Volume Information",
    "Thumbs.db",
    "desktop.ini",
];

/// Whether a file or a folder of that name is no part of a set: hidden (`.ipynb_checkpoints`, `._0001.jpg`), or left behind by
/// a system or a program.
pub(crate) fn is_passed_over(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".") || JUNK.iter().any(|junk| name.eq_ignore_ascii_case(junk))
}
