//! `uta data pack`: a folder of images to shards, with captions from the `.txt` beside them and classes from folders.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::shards::Limit;
use crate::{DataError, Rejected};

/// How to pack.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// When a shard is full.
    pub limit: Limit,
    /// Whether to draw a progress bar on standard error.
    pub progress: bool,
}

impl Default for PackOptions {
    fn default() -> PackOptions {
        PackOptions { limit: Limit::default(), progress: true }
    }
}

/// What was packed.
#[derive(Clone, Debug, Serialize)]
pub struct Packed {
    /// Samples written.
    pub samples: usize,
    /// Of them, with a caption.
    pub captioned: usize,
    /// Classes, where the folder has class folders; their names are in `classnames.txt` beside the shards.
    pub classes: Option<usize>,
    /// The shards.
    pub shards: Vec<PathBuf>,
    /// Their size.
    pub bytes: u64,
    /// Images left out because they can't be decoded.
    pub broken: Vec<Rejected>,
}

/// Packs the images of `dir` into `{out}/{name of dir}-000000.tar`, ...
///
/// # Errors
/// A folder without images, shards already there, a disk that refuses.
pub fn pack(dir: &Path, out: &Path, options: &PackOptions) -> Result<Packed, DataError> {
    let _ = (dir, out, options);
    todo!()
}
