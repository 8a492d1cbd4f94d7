//! The folder of the set: made anew as a whole, or found whole.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;
use uta_base::{AtomicFolder, Lock};

use super::report::Contents;
use crate::DataError;

/// `dataset.json`: what was made of what. Written last, so its presence says that the rest is there.
#[derive(Serialize, Deserialize)]
struct Manifest {
    name: String,
    /// Everything that the bytes depend on.
    made_from: MadeFrom,
    contents: Contents,
    /// Sizes of all other files, by path below the folder.
    files: BTreeMap<String, u64>,
}

#[derive(PartialEq, Serialize, Deserialize)]
pub(super) struct MadeFrom {
    pub(super) format: u32,
    pub(super) size: u32,
    /// SHA-256 by `name@version`.
    pub(super) packages: BTreeMap<String, String>,
}

const NAME: &str = "emoji";
const MANIFEST: &str = "dataset.json";

/// The set's folder under a lock that makes a second `get` wait.
pub(super) struct Place<'a> {
    out: &'a Path,
    _lock: Lock,
}

impl Place<'_> {
    pub(super) fn lock(out: &Path) -> Result<Place<'_>, DataError> {
        let name = out.file_name().and_then(OsStr::to_str).ok_or_else(|| DataError::Option {
            field: "out",
            value: out.display().to_string(),
            reason: "the path of a new folder is needed".into(),
        })?;
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(DataError::io("create", parent))?;
        let path = out.with_file_name(format!(".{name}.lock"));
        let lock = Lock::hold(&path).map_err(DataError::io("lock", &path))?;
        Ok(Place { out, _lock: lock })
    }

    /// Contents of the folder, when it is whole and made from just this. An error when it is not ours to replace.
    pub(super) fn existing(&self, made_from: &MadeFrom) -> Result<Option<Contents>, DataError> {
        let entries = match fs::read_dir(self.out) {
            Ok(mut entries) => entries.next(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(DataError::io("read", self.out)(e)),
        };
        if entries.is_none() {
            return Ok(None);
        }
        let text = fs::read(self.out.join(MANIFEST)).unwrap_or_default();
        let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        if manifest["name"] != NAME {
            return Err(DataError::Option {
                field: "out",
                value: self.out.display().to_string(),
                reason: format!(
                    "the folder holds other things (no {MANIFEST} of an emoji set): name a new one"
                ),
            });
        }
        // One that an older program wrote may lack fields: ours, but to be made anew.
        let Ok(manifest) = serde_json::from_value::<Manifest>(manifest) else { return Ok(None) };
        let size_of = |path: &String| fs::metadata(self.out.join(path)).map(|m| m.len()).ok();
        let whole = manifest.files.iter().all(|(path, &size)| size_of(path) == Some(size));
        Ok((whole && manifest.made_from == *made_from).then_some(manifest.contents))
    }

    /// Fills a folder that takes the place of the old one, if `fill` succeeds.
    pub(super) fn replace(
        &self,
        fill: impl FnOnce(&Path) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let folder = AtomicFolder::create(self.out).map_err(DataError::io("create", self.out))?;
        fill(folder.path())?;
        folder.finish().map_err(DataError::io("create", self.out))
    }
}

/// Counts the files and writes the manifest.
pub(super) fn seal(
    folder: &Path,
    made_from: MadeFrom,
    contents: &mut Contents,
) -> Result<(), DataError> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(&at).map_err(DataError::io("read", &at))? {
            let path = entry.map_err(DataError::io("read", &at))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Some(name) = path.strip_prefix(folder).ok().and_then(Path::to_str) {
                let size = fs::metadata(&path).map_err(DataError::io("read", &path))?.len();
                files.insert(name.to_owned(), size);
            }
        }
    }
    contents.bytes = files.values().sum();
    let manifest = Manifest { name: NAME.into(), made_from, contents: contents.clone(), files };
    write_file(&folder.join(MANIFEST), &format!("{:#}\n", json!(manifest)))
}

pub(super) fn write_file(path: &Path, text: &str) -> Result<(), DataError> {
    fs::write(path, text).map_err(DataError::io("write", path))
}
