//! A file of weights, opened once: its first bytes tell what it is, and the reader of that format gets the open file.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::ModelError;

/// First bytes that are looked at to tell formats apart.
pub(crate) const HEAD: usize = 512;

/// An open file, its length and its first bytes.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub path: PathBuf,
    pub file: File,
    pub length: u64,
    /// The first [`HEAD`] bytes, or all of a shorter file.
    pub head: Vec<u8>,
}

impl OpenFile {
    /// Opens what must be a file, and reads its first bytes.
    ///
    /// # Errors
    /// The operating system's; and for a directory, or a pipe or device that may have no end.
    pub fn open(path: &Path) -> Result<OpenFile, ModelError> {
        // Before it is opened: opening a pipe would wait for its other end.
        let about = fs::metadata(path).map_err(ModelError::io(path))?;
        if about.is_dir() {
            return Err(ModelError::format(path, "is a directory, where a file is expected"));
        }
        if !about.is_file() {
            return Err(ModelError::format(path, "is no regular file"));
        }
        let mut file = File::open(path).map_err(ModelError::io(path))?;
        let length = file.metadata().map_err(ModelError::io(path))?.len();
        let mut head = Vec::new();
        let mut beginning = Read::by_ref(&mut file).take(HEAD as u64);
        beginning.read_to_end(&mut head).map_err(ModelError::io(path))?;
        Ok(OpenFile { path: path.to_owned(), file, length, head })
    }

    /// Goes to byte `start`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn seek(&mut self, start: u64) -> Result<(), ModelError> {
        self.file.seek(SeekFrom::Start(start)).map_err(ModelError::io(&self.path))?;
        Ok(())
    }
}
