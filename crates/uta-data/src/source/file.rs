//! Image files named one by one, and what lies beside each.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::DataError;
use crate::image::decode::MAX_PIXELS;
use crate::source::Source;
use crate::source::sample::{Captions, Sample};
use crate::source::spec::absent;

/// Image files one by one, in the order of their paths; the folders that they lie in are no classes.
///
/// # Errors
/// When one isn't there.
pub fn open_files(mut paths: Vec<PathBuf>) -> Result<Arc<dyn Source>, DataError> {
    paths.sort();
    if let Some(path) = paths.iter().find(|path| !path.is_file()) {
        let spec = path.display().to_string();
        return Err(DataError::NotFound { spec, reason: absent(path) });
    }
    Ok(Arc::new(Files(paths)))
}

/// The bytes of an image file, of the sample `key`.
pub(crate) fn image_file(path: &Path, key: impl FnOnce() -> String) -> Result<Vec<u8>, DataError> {
    let found = fs::metadata(path).map_err(DataError::io("read", path))?;
    // No image of the allowed number of pixels needs more than this, whatever its format.
    let reason = match found.len() {
        _ if !found.is_file() => format!("{} is no file", path.display()),
        size if size > 8 * MAX_PIXELS => format!("{size} bytes are too many for an image"),
        _ => return fs::read(path).map_err(DataError::io("read", path)),
    };
    Err(DataError::Sample { key: key(), reason })
}

/// Image files named one by one.
struct Files(Vec<PathBuf>);

impl Source for Files {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn read(&self, i: usize) -> Result<Sample, DataError> {
        let (path, key) = (&self.0[i], self.key(i));
        let image = image_file(path, || key.clone())?;
        let mut sample = Sample { key, image, ..Sample::default() };
        sample.add_companions(path, SPELLINGS.into_iter(), Captions::default())?;
        Ok(sample)
    }

    fn key(&self, i: usize) -> String {
        self.0[i].with_extension("").to_string_lossy().into_owned()
    }

    fn name(&self, i: usize) -> Option<String> {
        Some(self.0[i].to_string_lossy().into_owned())
    }

    fn class_names(&self) -> Option<&[String]> {
        None
    }
}

/// How the extensions of a picture's companions are written, where no listing tells.
const SPELLINGS: [&str; 6] = ["CLS", "JSON", "TXT", "cls", "json", "txt"];

impl Sample {
    /// Takes in what lies beside an image file under these extensions; of two of a kind the later one.
    pub(super) fn add_companions<'a>(
        &mut self,
        image: &Path,
        spellings: impl Iterator<Item = &'a str>,
        captions: Captions,
    ) -> Result<(), DataError> {
        for extension in spellings {
            let beside = image.with_extension(extension);
            match fs::read(&beside) {
                Ok(contents) => self.add(extension, &contents, captions),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(DataError::io("read", &beside)(e)),
            }
        }
        Ok(())
    }
}
