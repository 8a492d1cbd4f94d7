//! Files that options name, which have their names once they are whole.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use uta_model::safetensors_io::Beside;

/// A file in the making: it lies beside its place, and half of one is none. What is there already and no regular file (a pipe,
/// a link such as `/dev/stdout`) is written to directly.
pub enum Whole {
    /// A file.
    Beside(Beside),
    /// Anything else.
    Direct(BufWriter<File>),
}

impl Whole {
    /// # Errors
    /// The operating system's.
    pub fn create(path: &Path) -> io::Result<Whole> {
        match fs::symlink_metadata(path).is_ok_and(|about| !about.is_file()) {
            true => Ok(Whole::Direct(BufWriter::new(File::create(path)?))),
            false => Ok(Whole::Beside(Beside::create(path)?)),
        }
    }

    /// Puts it into its place, once the disk has it.
    ///
    /// # Errors
    /// The operating system's; a former file of that name is then as it was.
    pub fn finish(self) -> io::Result<()> {
        match self {
            Whole::Beside(file) => file.finish(),
            Whole::Direct(mut out) => out.flush(),
        }
    }

    fn out(&mut self) -> &mut dyn Write {
        match self {
            Whole::Beside(file) => file,
            Whole::Direct(out) => out,
        }
    }
}

impl Write for Whole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out().flush()
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
