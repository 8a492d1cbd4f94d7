//! Files that have their names once they are whole.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A file in the making: it lies beside its place, and half of one is none. What is there already and no regular file (a pipe,
/// a link such as `/dev/stdout`) is written to directly.
pub struct Whole {
    out: BufWriter<File>,
    /// Where it lies until it is whole, and where it will.
    places: Option<(PathBuf, PathBuf)>,
}

impl Whole {
    /// # Errors
    /// The operating system's.
    pub fn create(path: &Path) -> io::Result<Whole> {
        let special = fs::symlink_metadata(path).is_ok_and(|about| !about.is_file());
        let places = (!special).then(|| {
            let mut beside = OsString::from(path);
            beside.push(".tmp");
            (PathBuf::from(beside), path.to_owned())
        });
        let file = File::create(places.as_ref().map_or(path, |(beside, _)| beside))?;
        Ok(Whole { out: BufWriter::new(file), places })
    }

    /// Puts it into its place, once the disk has it.
    ///
    /// # Errors
    /// The operating system's; a former file of that name is then as it was.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.flush()?;
        match &self.places {
            Some((beside, path)) => {
                self.out.get_ref().sync_all()?;
                fs::rename(beside, path)
            }
            None => Ok(()),
        }
    }
}

impl Write for Whole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        if let Some((beside, _)) = &self.places {
            let _ = fs::remove_file(beside);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_takes_its_place_when_it_is_finished_and_leaves_the_former_one_until_then() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        fs::write(&path, "before").unwrap();
        let mut half = Whole::create(&path).unwrap();
        half.write_all(b"ha").unwrap();
        drop(half);
        assert_eq!(fs::read(&path).unwrap(), b"before");
        let mut whole = Whole::create(&path).unwrap();
        whole.write_all(b"after").unwrap();
        whole.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"after");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_regular_file_is_written_to_and_stays_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "before").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mut out = Whole::create(&link).unwrap();
        out.write_all(b"after").unwrap();
        out.finish().unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"after");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
