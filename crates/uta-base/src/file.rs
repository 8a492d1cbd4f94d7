//! Files and folders that appear only when they are complete.
//!
//! Each is written under a temporary name in the folder of its target: the target's name between a dot and `.tmp`, which no
//! reader of data takes for data. When it is complete its bytes are synced to the disk, it takes the target's name in one
//! step, and the folder is synced. So a write that fails, a process that is killed and a power cut leave either the old file
//! or the whole new one. The temporary file of a failed write is removed; the next write to the same target reuses what a
//! killed process left. Several processes may write the same target at once: the last one to finish wins.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempPath;

/// Writes `bytes` to the file at `path`, which appears only when it is complete ([`AtomicFile`]).
///
/// # Errors
/// Those of the operating system; a former file of that name is then as it was, and nothing is left beside it.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_with(path, |file| file.write_all(bytes))
}

/// Writes the file at `path` by `write`; it appears only when it is complete ([`AtomicFile`]).
///
/// # Errors
/// As [`write_atomically`], and those of `write`.
pub fn write_with(
    path: &Path,
    write: impl FnOnce(&mut AtomicFile) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    write(&mut file)?;
    file.finish()
}

/// A file that is being written under a temporary name and gets its own name when it is [finished](AtomicFile::finish).
/// Dropped before that, it is removed.
#[derive(Debug)]
pub struct AtomicFile {
    /// `None`: what is at the path is written to directly. Removed while the file is open, and so still locked.
    place: Option<Place>,
    out: BufWriter<File>,
}

#[derive(Debug)]
struct Place {
    temporary: TempPath,
    path: PathBuf,
}

impl AtomicFile {
    /// Begins a file that will replace whatever is at `path` (a link too, and not the file that it points to). Its
    /// permissions are those of any new file.
    ///
    /// # Errors
    /// Those of the operating system, for instance when the folder does not exist.
    pub fn create(path: &Path) -> io::Result<AtomicFile> {
        let name = path.file_name().ok_or(ErrorKind::IsADirectory)?;
        let (file, temporary) = match take_over(&path.with_file_name(temporary_name(name)))? {
            Some(taken) => taken,
            None => create_another(folder_of(path), name)?,
        };
        let place = Place { temporary, path: path.to_owned() };
        Ok(AtomicFile { place: Some(place), out: BufWriter::new(file) })
    }

    /// Begins a file that a user named on the command line: as [`create`](AtomicFile::create), but what is there and no
    /// regular file (a pipe, a device, a link such as `/dev/stdout`) is written to directly and stays what it is.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn create_or_write_through(path: &Path) -> io::Result<AtomicFile> {
        if fs::symlink_metadata(path).is_ok_and(|about| !about.is_file()) {
            let out = BufWriter::new(File::create(path)?);
            return Ok(AtomicFile { place: None, out });
        }
        AtomicFile::create(path)
    }

    /// The open file, for writing at positions and setting its length. Bytes that were written through [`Write`] may still be
    /// in memory.
    pub fn file(&self) -> &File {
        self.out.get_ref()
    }

    /// Syncs the file and gives it its name, in the place of a former file.
    ///
    /// # Errors
    /// Those of the operating system; a former file of that name is then as it was, and nothing is left beside it.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.flush()?;
        let Some(place) = self.place else { return Ok(()) };
        self.out.get_ref().sync_all()?;
        place.give_name()?;
        // Closed, and with that unlocked, only now: until it has its name no other process may take it over.
        drop(self.out);
        Ok(())
    }

    /// Syncs and closes the file, which waits for its name: for several files that are to appear together. Until then no other
    /// process may write the same target.
    ///
    /// # Errors
    /// Those of the operating system; nothing is left.
    pub fn complete(mut self) -> io::Result<CompleteFile> {
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        // Only files begun by `create_or_write_through` have no place, and they are at theirs already.
        Ok(CompleteFile { place: self.place })
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.out.seek(to)
    }
}

/// A complete, closed file that waits for its name. Dropped, it is removed.
#[derive(Debug)]
pub struct CompleteFile {
    place: Option<Place>,
}

impl CompleteFile {
    /// Gives the file its name.
    ///
    /// # Errors
    /// Those of the operating system; a former file of that name is then as it was.
    pub fn give_name(self) -> io::Result<()> {
        self.place.map_or(Ok(()), Place::give_name)
    }
}

impl Place {
    fn give_name(self) -> io::Result<()> {
        let Place { temporary, path } = self;
        temporary.persist(&path).map_err(|e| e.error)?;
        sync(folder_of(&path))
    }
}

/// Syncs a complete file that another program wrote at `from`, and moves it to `path` on the same disk.
///
/// # Errors
/// Those of the operating system; a former file at `path` is then as it was.
pub fn move_into_place(from: &Path, path: &Path) -> io::Result<()> {
    sync(from)?;
    fs::rename(from, path)?;
    sync(folder_of(path))
}

/// A folder that is being filled under a temporary name and gets its own name when it is [finished](AtomicFolder::finish).
/// Dropped before that, it is removed with all that is in it. Only one process at a time may make the same folder; a
/// [`Lock`](crate::Lock) sees to that.
#[derive(Debug)]
pub struct AtomicFolder {
    target: PathBuf,
    filled: PathBuf,
    named: bool,
}

impl AtomicFolder {
    /// Begins a folder that will be at `path`, and removes what a killed process left of it.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn create(path: &Path) -> io::Result<AtomicFolder> {
        let name = path.file_name().ok_or(ErrorKind::IsADirectory)?;
        let temporary = path.with_file_name(temporary_name(name));
        for left in [&temporary, &former(path)] {
            remove(left)?;
        }
        fs::create_dir(&temporary)?;
        Ok(AtomicFolder { target: path.to_owned(), filled: temporary, named: false })
    }

    /// Where to put the files, until the folder has its own name.
    pub fn path(&self) -> &Path {
        &self.filled
    }

    /// Syncs all that is in the folder and gives it its name, in the place of a former folder. Killed in the very moment of
    /// replacing, it leaves nothing at the path, and the former folder as `.NAME.old` beside it until the next try.
    ///
    /// # Errors
    /// Those of the operating system; a former folder is then as it was.
    pub fn finish(mut self) -> io::Result<()> {
        sync_all(&self.filled)?;
        let former = former(&self.target);
        let replaces = match fs::rename(&self.target, &former) {
            Err(e) if e.kind() == ErrorKind::NotFound => false,
            other => other.map(|()| true)?,
        };
        if let Err(e) = fs::rename(&self.filled, &self.target) {
            if replaces {
                let _ = fs::rename(&former, &self.target);
            }
            return Err(e);
        }
        self.named = true;
        sync(folder_of(&self.target))?;
        remove(&former)
    }
}

impl Drop for AtomicFolder {
    fn drop(&mut self) {
        if !self.named {
            // The error that led here is the one to tell; the next try removes what is left.
            let _ = fs::remove_dir_all(&self.filled);
        }
    }
}

/// Whether the operating system's answer is that there is no more room: on the disk, in a quota, or for a file.
pub fn is_full(error: &io::Error) -> bool {
    use ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// `.NAME.tmp`; of a name that is nearly as long as a system allows, its beginning.
fn temporary_name(name: &OsStr) -> OsString {
    const MAX_BYTES: usize = 200;
    let bytes = name.as_bytes();
    let mut temporary = OsString::from(".");
    temporary.push(OsStr::from_bytes(&bytes[..bytes.len().min(MAX_BYTES)]));
    temporary.push(".tmp");
    temporary
}

/// The name of a folder while another takes its place.
fn former(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".old");
    path.with_file_name(name)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Creates and locks the file at `path`, or empties one that a killed process left there. `None` when another write uses it, or
/// it is not a file to be taken over.
fn take_over(path: &Path) -> io::Result<Option<(File, TempPath)>> {
    let there = fs::symlink_metadata(path);
    if there.as_ref().is_ok_and(|there| !there.is_file()) {
        return Ok(None);
    }
    // Not emptied before it is locked.
    let file = match OpenOptions::new().create(true).truncate(false).write(true).open(path) {
        Ok(file) => file,
        // Another user's.
        Err(_) if there.is_ok() => return Ok(None),
        Err(e) => return Err(e),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        // A file system without locks: nobody there uses this name.
        Err(TryLockError::Error(_)) => {
            let _ = fs::remove_file(path);
            return Ok(None);
        }
    }
    // Another write may have been faster, and have given this very file its own name.
    let id = |about: fs::Metadata| (about.dev(), about.ino());
    if !fs::symlink_metadata(path)
        .is_ok_and(|there| file.metadata().is_ok_and(|f| id(f) == id(there)))
    {
        return Ok(None);
    }
    let temporary = TempPath::try_from_path(path)?;
    file.set_len(0)?;
    Ok(Some((file, temporary)))
}

/// Creates a file for `name` in `folder` under a temporary name that nobody else has.
fn create_another(folder: &Path, name: &OsStr) -> io::Result<(File, TempPath)> {
    let mut prefix = temporary_name(name);
    prefix.push(".");
    let file = tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".tmp")
        // Less what the umask takes away.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    Ok(file.into_parts())
}

/// Syncs a file or folder.
fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Syncs a folder and all that is in it.
fn sync_all(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_all(&entry.path())?;
        } else if kind.is_file() {
            sync(&entry.path())?;
        }
    }
    sync(folder)
}

/// Removes a folder, if it is there.
fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::Command;

    fn names(dir: &Path) -> Vec<String> {
        let list = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> =
            list.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_when_it_is_finished_and_the_former_one_stays_until_then() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        fs::write(&path, "before").unwrap();
        let mut half = AtomicFile::create(&path).unwrap();
        half.write_all(b"ha").unwrap();
        half.flush().unwrap();
        assert_eq!(names(dir.path()), [".out.tmp", "out"]);
        drop(half);
        assert_eq!(fs::read(&path).unwrap(), b"before");
        assert_eq!(names(dir.path()), ["out"]);
        write_atomically(&path, b"after").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"after");
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn positions_and_a_length_can_be_written_before_it_is_finished() {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let file = AtomicFile::create(&path).unwrap();
        file.file().set_len(4).unwrap();
        file.file().write_all_at(b"z", 2).unwrap();
        file.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"\0\0z\0");
    }

    #[test]
    fn permissions_are_those_of_any_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        fs::write(dir.path().join("plain"), "").unwrap();
        let first = AtomicFile::create(&dir.path().join("a")).unwrap();
        let second = AtomicFile::create(&dir.path().join("a")).unwrap();
        second.finish().unwrap();
        assert_eq!(mode("a"), mode("plain"));
        first.finish().unwrap();
        assert_eq!(mode("a"), mode("plain"));
    }

    #[test]
    fn two_writes_of_one_target_dont_mix_and_the_last_to_finish_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let [mut one, mut two] = [(); 2].map(|()| AtomicFile::create(&path).unwrap());
        two.write_all(b"two").unwrap();
        one.write_all(b"one").unwrap();
        two.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        one.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(names(dir.path()), ["out"]);

        std::thread::scope(|scope| {
            for letter in b'a'..b'i' {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..20 {
                        write_atomically(path, &[letter; 20_000]).unwrap();
                        let read = fs::read(path).unwrap();
                        assert!(read.len() == 20_000 && read.iter().all(|&b| b == read[0]));
                    }
                });
            }
        });
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn several_files_can_wait_for_their_names_and_appear_together() {
        let dir = tempfile::tempdir().unwrap();
        let complete = |name: &str| {
            let mut file = AtomicFile::create(&dir.path().join(name)).unwrap();
            file.write_all(name.as_bytes()).unwrap();
            file.complete().unwrap()
        };
        let [a, b, never] = ["a", "b", "never"].map(complete);
        assert_eq!(names(dir.path()), [".a.tmp", ".b.tmp", ".never.tmp"]);
        drop(never);
        a.give_name().unwrap();
        b.give_name().unwrap();
        assert_eq!(names(dir.path()), ["a", "b"]);
        assert_eq!(fs::read(dir.path().join("b")).unwrap(), b"b");
    }

    #[test]
    fn links_are_replaced_but_written_through_where_a_user_named_them() {
        let dir = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| dir.path().join(name));
        fs::write(&file, "before").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mut out = AtomicFile::create_or_write_through(&link).unwrap();
        out.write_all(b"after").unwrap();
        out.finish().unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"after");
        assert_eq!(names(dir.path()), ["file", "link"]);

        write_atomically(&link, b"own").unwrap();
        assert!(!link.is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"after");
        assert_eq!(fs::read(&link).unwrap(), b"own");
    }

    #[test]
    fn a_device_is_written_to_and_its_refusal_is_told() {
        let mut out = AtomicFile::create_or_write_through(Path::new("/dev/null")).unwrap();
        out.write_all(b"text").unwrap();
        out.finish().unwrap();
        let mut out = AtomicFile::create_or_write_through(Path::new("/dev/full")).unwrap();
        out.write_all(b"text").unwrap();
        assert!(is_full(&out.finish().unwrap_err()));
    }

    #[test]
    fn a_missing_folder_and_a_path_without_a_name_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let e = write_atomically(&dir.path().join("no/out"), b"").unwrap_err();
        assert_eq!(e.kind(), ErrorKind::NotFound);
        assert!(!e.to_string().contains("tmp"), "{e}");
        assert!(write_atomically(Path::new("/"), b"").is_err());
        fs::create_dir(dir.path().join("folder")).unwrap();
        assert!(write_atomically(&dir.path().join("folder"), b"").is_err());
        assert_eq!(names(dir.path()), ["folder"]);
        assert!(AtomicFolder::create(&dir.path().join("no/out")).is_err());
        let long = dir.path().join("n".repeat(255));
        write_atomically(&long, b"long").unwrap();
        assert_eq!(fs::read(long).unwrap(), b"long");
    }

    #[test]
    fn what_is_no_file_of_ours_is_not_taken_for_a_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        std::os::unix::fs::symlink(&precious, dir.path().join(".out.tmp")).unwrap();
        write_atomically(&dir.path().join("out"), b"out").unwrap();
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
        assert_eq!(names(dir.path()), [".out.tmp", "out", "precious"]);
    }

    /// The folder that this process works in, where a test began it to be killed or to meet a full disk.
    const FOLDER: &str = "UTA_BASE_TEST_FOLDER";

    /// Runs the test `name` of this program in another process, after `setup` in its shell, and returns whether it ended well.
    fn elsewhere(name: &str, setup: &str, dir: &Path) -> bool {
        let line = format!("{setup}exec \"$0\" --exact file::tests::{name} --nocapture");
        let output = Command::new("bash")
            .args(["-c", &line])
            .arg(std::env::current_exe().unwrap())
            .env(FOLDER, dir)
            .output()
            .unwrap();
        output.status.success()
    }

    #[test]
    fn a_killed_write_leaves_the_former_file_and_the_next_write_reuses_what_it_left() {
        let large = vec![7; 1 << 16];
        if let Some(dir) = std::env::var_os(FOLDER) {
            let dir = Path::new(&dir);
            let mut file = AtomicFile::create(&dir.join("out")).unwrap();
            file.write_all(&large).unwrap();
            let folder = AtomicFolder::create(&dir.join("folder")).unwrap();
            fs::write(folder.path().join("half"), "half").unwrap();
            std::process::abort();
        }
        let dir = tempfile::tempdir().unwrap();
        write_atomically(&dir.path().join("out"), b"before").unwrap();
        let name = "a_killed_write_leaves_the_former_file_and_the_next_write_reuses_what_it_left";
        assert!(!elsewhere(name, "ulimit -c 0; ", dir.path()));
        assert_eq!(names(dir.path()), [".folder.tmp", ".out.tmp", "out"]);
        assert_eq!(fs::read(dir.path().join("out")).unwrap(), b"before");
        write_atomically(&dir.path().join("out"), b"after").unwrap();
        assert_eq!(fs::read(dir.path().join("out")).unwrap(), b"after");
        let folder = AtomicFolder::create(&dir.path().join("folder")).unwrap();
        assert_eq!(names(folder.path()), [""; 0]);
        folder.finish().unwrap();
        assert_eq!(names(dir.path()), ["folder", "out"]);
    }

    #[test]
    fn a_full_disk_leaves_the_former_file_and_nothing_beside_it() {
        if let Some(dir) = std::env::var_os(FOLDER) {
            let path = Path::new(&dir).join("out");
            let e = write_atomically(&path, &vec![7; 1 << 16]).unwrap_err();
            assert!(is_full(&e), "{e}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        write_atomically(&dir.path().join("out"), b"before").unwrap();
        // Files of 8 KiB at most; the signal that tells of a larger one is ignored.
        let setup = "trap '' XFSZ; ulimit -f 8; ";
        let name = "a_full_disk_leaves_the_former_file_and_nothing_beside_it";
        assert!(elsewhere(name, setup, dir.path()));
        assert_eq!(names(dir.path()), ["out"]);
        assert_eq!(fs::read(dir.path().join("out")).unwrap(), b"before");
    }

    #[test]
    fn a_folder_appears_with_all_that_is_in_it_and_replaces_a_former_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("set");
        let fill = |word: &str| {
            let folder = AtomicFolder::create(&path).unwrap();
            fs::create_dir(folder.path().join("sub")).unwrap();
            fs::write(folder.path().join("sub").join(word), word).unwrap();
            folder
        };
        let first = fill("first");
        assert!(!path.exists());
        first.finish().unwrap();
        assert_eq!(names(&path.join("sub")), ["first"]);
        drop(fill("never"));
        assert_eq!(names(&path.join("sub")), ["first"]);
        fs::create_dir(dir.path().join(".set.old")).unwrap();
        fill("second").finish().unwrap();
        assert_eq!(names(&path.join("sub")), ["second"]);
        assert_eq!(names(dir.path()), ["set"]);
    }
}
