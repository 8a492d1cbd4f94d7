//! Locks between processes.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

/// A lock on a file, held until it is dropped or the process ends, however it ends. The file itself is empty and stays.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock at `path`, or returns `None` where another process has it. Its folder must exist.
    ///
    /// # Errors
    /// When the file can't be created, or the file system has no locks.
    pub fn try_hold(path: &Path) -> io::Result<Option<Lock>> {
        let file = File::create(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    /// Takes the lock at `path`, as soon as no other process has it.
    ///
    /// # Errors
    /// As [`try_hold`](Lock::try_hold).
    pub fn hold(path: &Path) -> io::Result<Lock> {
        let file = File::create(path)?;
        file.lock()?;
        Ok(Lock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_at_a_time_holds_a_lock_and_the_next_has_it_once_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock");
        let held = Lock::try_hold(&path).unwrap().unwrap();
        assert!(Lock::try_hold(&path).unwrap().is_none());
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || Lock::hold(&path).unwrap()
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!waiting.is_finished());
        drop(held);
        drop(waiting.join().unwrap());
        assert!(Lock::try_hold(&path).unwrap().is_some());
        assert!(Lock::try_hold(&dir.path().join("no folder/.lock")).is_err());
    }
}
