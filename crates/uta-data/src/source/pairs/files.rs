//! Images of a table as files: their names, and where on the disk they lie.

use std::path::{Component, Path, PathBuf};

use crate::error::DataError;

/// Where COCO's and Flickr's images lie below the folder that was named, as their archives unpack.
const FOLDERS: [&str; 9] = [
    "",
    "val2014",
    "train2014",
    "val2017",
    "train2017",
    "flickr30k-images",
    "flickr30k_images",
    "images",
    "Images",
];

/// Images as files.
pub(super) struct Files {
    pub(super) names: Strings,
    pub(super) root: PathBuf,
    /// Whether nothing outside of the root is read.
    pub(super) fenced: bool,
    /// Which of [`FOLDERS`] they lie in.
    pub(super) folder: &'static str,
    /// Whether the folders that names begin with are not on the disk.
    pub(super) flat: bool,
}

impl Files {
    /// Where the image of that name is, or why it isn't looked for.
    pub(super) fn locate(&self, name: &str) -> Result<PathBuf, String> {
        if name.contains("://") {
            return Err("only files of this machine are read".into());
        }
        let written = Path::new(name);
        let written = match self.flat {
            true => Path::new(written.file_name().unwrap_or_default()),
            false => written,
        };
        let path = match written.is_absolute() {
            true => written.to_owned(),
            false => self.root.join(self.folder).join(written),
        };
        let up = written.components().any(|part| part == Component::ParentDir);
        if self.fenced && (up || !path.starts_with(&self.root)) {
            return Err(format!("lies outside of {}", self.root.display()));
        }
        Ok(path)
    }

    /// Finds out how the images lie on the disk, from some of them.
    ///
    /// # Errors
    /// When none of these is there in any way.
    pub(super) fn settle(&mut self, table: &Path, known_set: bool) -> Result<(), DataError> {
        const PROBED: usize = 64;
        let n = self.names.len();
        let probes: Vec<usize> = (0..n.min(PROBED)).map(|i| i * n / n.min(PROBED)).collect();
        let ways = if known_set { &FOLDERS[..] } else { &FOLDERS[..1] };
        for flat in [false, true].into_iter().take(if known_set { 2 } else { 1 }) {
            for folder in ways {
                (self.folder, self.flat) = (folder, flat);
                let there =
                    |&i: &usize| self.locate(self.names.get(i)).is_ok_and(|path| path.is_file());
                if probes.iter().any(there) {
                    return Ok(());
                }
            }
        }
        (self.folder, self.flat) = ("", false);
        let first = match self.locate(self.names.get(0)) {
            Ok(path) => format!("no {}", path.display()),
            Err(reason) => format!("{} {reason}", self.names.get(0)),
        };
        let also = if known_set { ", nor in folders like val2014/" } else { "" };
        let reason = format!(
            "none of its {n} images is there ({first}{also}); say where they are (--images DIR; images in a recipe's [data.pairs])"
        );
        Err(DataError::Table { path: table.to_owned(), reason })
    }
}

/// Many strings in one.
#[derive(Default)]
pub(super) struct Strings {
    text: String,
    ends: Vec<u64>,
}

impl Strings {
    pub(super) fn push(&mut self, s: &str) {
        self.text.push_str(s);
        self.ends.push(self.text.len() as u64);
    }

    pub(super) fn get(&self, i: usize) -> &str {
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        &self.text[start..self.ends[i] as usize]
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }
}
