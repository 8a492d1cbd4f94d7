//! The npm packages behind the emoji set: fetched once through the npm client, pinned, checked at every use, and read
//! without unpacking.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};
use uta_base::{Lock, move_into_place};

use crate::error::{DataError, PackageError};
use crate::sha256::{add_file, hex};

/// One pinned npm package.
#[derive(Clone, Copy, Debug)]
pub(super) struct Package<'a> {
    /// npm name, with its scope.
    pub name: &'a str,
    /// Exact version.
    pub version: &'a str,
    /// SHA-256 of the .tgz, in lower-case hexadecimal.
    pub sha256: &'a str,
}

impl Package<'_> {
    /// `name@version`, as npm writes it.
    pub fn spec(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    /// The name that `npm pack` gives the file: the scope's `@` is dropped and its `/` becomes `-`.
    pub fn file_name(&self) -> String {
        format!("{}-{}.tgz", self.name.trim_start_matches('@').replace('/', "-"), self.version)
    }

    fn check(&self, path: &Path) -> Result<Result<(), PackageError>, DataError> {
        let found = sha256(path)?;
        Ok(if found == self.sha256 {
            Ok(())
        } else {
            Err(PackageError::Checksum {
                package: self.spec(),
                pinned: self.sha256.to_owned(),
                found,
            })
        })
    }
}

/// Where packages are kept and how a missing one is fetched. Holds a lock: another process with the same cache waits.
pub(super) struct Store<'a> {
    cache: &'a Path,
    offline: bool,
    /// The npm client: a name looked up in `PATH`, or a path.
    npm: &'a OsStr,
    _lock: Lock,
}

impl<'a> Store<'a> {
    /// Opens, and makes where needed, the folder `cache`; `offline` never fetches.
    pub fn open(cache: &'a Path, offline: bool, npm: &'a OsStr) -> Result<Store<'a>, DataError> {
        fs::create_dir_all(cache).map_err(DataError::io("create", cache))?;
        let path = cache.join(".lock");
        let lock = Lock::hold(&path).map_err(DataError::io("lock", &path))?;
        Ok(Store { cache, offline, npm, _lock: lock })
    }

    /// The path of a package's .tgz, checked against its pin; fetches what is missing or damaged.
    pub fn provide(&self, package: &Package<'_>) -> Result<PathBuf, DataError> {
        let path = self.cache.join(package.file_name());
        let whole = path.exists() && package.check(&path)?.is_ok();
        if !whole {
            if self.offline {
                return Err(PackageError::Offline { path }.into());
            }
            self.fetch(package, &path)?;
        }
        Ok(path)
    }

    /// Fetches into a folder beside, checks, and only then renames into place.
    fn fetch(&self, package: &Package<'_>, path: &Path) -> Result<(), DataError> {
        let beside = self.cache.join(".partial");
        if beside.exists() {
            // Left by a killed process: whoever holds the lock owns the folder.
            fs::remove_dir_all(&beside).map_err(DataError::io("remove", &beside))?;
        }
        fs::create_dir(&beside).map_err(DataError::io("create", &beside))?;
        let fetched = self.npm_pack(package, &beside).and_then(|()| {
            let file = beside.join(package.file_name());
            if !file.exists() {
                let reason = format!("npm pack wrote no {}", package.file_name());
                return Err(PackageError::Npm { package: package.spec(), reason }.into());
            }
            package.check(&file)??;
            move_into_place(&file, path).map_err(DataError::io("create", path))
        });
        // Nothing to add when even this fails: the folder is swept at the next fetch.
        let _ = fs::remove_dir_all(&beside);
        fetched
    }

    fn npm_pack(&self, package: &Package<'_>, into: &Path) -> Result<(), DataError> {
        // A network that is down is said within seconds instead of npm's minutes.
        let options = [
            "--ignore-scripts",
            "--loglevel=error",
            "--fetch-retries=2",
            "--fetch-retry-mintimeout=1000",
            "--fetch-retry-maxtimeout=5000",
        ];
        let mut destination = OsString::from("--pack-destination=");
        destination.push(fs::canonicalize(into).map_err(DataError::io("find", into))?);
        let output = Command::new(self.npm)
            .args(["pack", &package.spec()])
            .args(options)
            .arg(destination)
            .stdin(Stdio::null())
            .output()
            .map_err(|source| PackageError::NpmMissing {
                package: package.spec(),
                file: package.file_name(),
                cache: self.cache.to_owned(),
                source,
            })?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("ENOSPC") {
            let full = io::Error::from(io::ErrorKind::StorageFull);
            return Err(DataError::io("write", self.cache)(full));
        }
        let reason = npm_reason(&said).unwrap_or_else(|| output.status.to_string());
        Err(PackageError::Npm { package: package.spec(), reason }.into())
    }
}

/// npm's code and first sentence out of its many lines: `npm error code E404`, `npm error 404 Not Found - ...`.
fn npm_reason(stderr: &str) -> Option<String> {
    let lines =
        stderr.lines().filter_map(|l| l.strip_prefix("npm error ").or(l.strip_prefix("npm ERR! ")));
    let (mut code, mut sentence) = (None, None);
    for line in lines {
        match line.strip_prefix("code ") {
            Some(word) => code = code.or(Some(word)),
            // A sentence, not one of the `key value` lines that describe a system call.
            None if line.split_whitespace().count() > 2 => sentence = sentence.or(Some(line)),
            None => {}
        }
    }
    match (code, sentence) {
        (Some(code), Some(sentence)) => {
            Some(format!("{code}, {}", sentence.trim().trim_end_matches('.')))
        }
        (found, None) | (None, found) => found.map(|s| s.trim().to_owned()),
    }
}

/// Lower-case hexadecimal SHA-256 of a file.
pub(super) fn sha256(path: &Path) -> Result<String, DataError> {
    let mut hash = Sha256::new();
    add_file(&mut hash, path).map_err(DataError::io("read", path))?;
    Ok(hex(&hash.finalize()))
}

/// The members `wanted` of an npm archive, by name below its `package/` folder. Nothing is unpacked to a disk, and an
/// archive with any path that points out of the package is refused as a whole.
pub(super) fn read_members<const N: usize>(
    archive: &Path,
    wanted: [&str; N],
) -> Result<[Vec<u8>; N], DataError> {
    let format = |reason: String| PackageError::Format { archive: archive.to_owned(), reason };
    let broken = |error: io::Error| format(format!("not a readable .tgz: {error}"));
    let file = File::open(archive).map_err(DataError::io("read", archive))?;
    let mut tar = tar::Archive::new(GzDecoder::new(io::BufReader::new(file)));
    let mut members = [const { None }; N];
    for entry in tar.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let member = entry.path().map_err(broken)?.into_owned();
        if !member.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
            return Err(PackageError::Traversal { archive: archive.to_owned(), member }.into());
        }
        let name = member.strip_prefix("package").ok().and_then(Path::to_str);
        if let Some(i) = wanted.iter().position(|w| Some(*w) == name) {
            let mut bytes = Vec::with_capacity(usize::try_from(entry.size()).unwrap_or(0));
            entry.read_to_end(&mut bytes).map_err(broken)?;
            members[i] = Some(bytes);
        }
    }
    if let Some(i) = members.iter().position(Option::is_none) {
        return Err(format(format!("package/{} is missing", wanted[i])).into());
    }
    Ok(members.map(Option::unwrap_or_default))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;

    use super::*;

    /// SHA-256 of "abc", from FIPS 180-2.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const PACKAGE: Package<'static> =
        Package { name: "@scope/thing", version: "1.2.3", sha256: ABC };

    /// A stand-in for npm: a script that is run with npm's arguments, `$DIR` being the destination.
    #[cfg(unix)]
    fn npm(dir: &Path, body: &str) -> PathBuf {
        let (text, path) = (dir.join("npm.sh"), dir.join("npm"));
        let head = "for a; do case $a in --pack-destination=*) DIR=${a#*=};; esac; done";
        fs::write(&text, format!("#!/bin/sh\n{head}\n{body}\n")).unwrap();
        // Another process writes the script that is run: had this one ever held it open for writing, a child that
        // another test's thread forks meanwhile would hold it too, and running it would fail as "text file busy".
        let installed = Command::new("install").args(["-m", "755"]).args([&text, &path]).status();
        assert!(installed.unwrap().success());
        path
    }

    /// Provides [`PACKAGE`] with that npm; also what is left in the cache.
    #[cfg(unix)]
    fn provide(body: &str, damaged: bool) -> (Result<String, String>, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let npm = npm(dir.path(), body);
        let cache = dir.path().join("cache");
        if damaged {
            fs::create_dir(&cache).unwrap();
            fs::write(cache.join(PACKAGE.file_name()), "ab").unwrap();
        }
        let store = Store::open(&cache, false, npm.as_os_str()).unwrap();
        let provided = store.provide(&PACKAGE);
        let mut left: Vec<String> = fs::read_dir(&cache)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.retain(|name| name != ".lock");
        (provided.map(|path| fs::read_to_string(path).unwrap()).map_err(|e| e.to_string()), left)
    }

    #[test]
    #[cfg(unix)]
    fn fetches_what_is_missing_or_damaged_and_checks_it() {
        let good = r#"[ "$1 $2" = "pack @scope/thing@1.2.3" ] && printf abc > "$DIR/scope-thing-1.2.3.tgz""#;
        for damaged in [false, true] {
            let (provided, left) = provide(good, damaged);
            assert_eq!((provided.unwrap().as_str(), left), ("abc", vec![PACKAGE.file_name()]));
        }
    }

    #[test]
    #[cfg(unix)]
    fn a_package_with_another_checksum_is_refused_and_not_kept() {
        let (provided, left) = provide(r#"printf abd > "$DIR/scope-thing-1.2.3.tgz""#, false);
        let error = provided.unwrap_err();
        assert!(
            error.contains("@scope/thing@1.2.3 has sha256 a52d159f") && error.contains(ABC),
            "{error}"
        );
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    #[cfg(unix)]
    fn npm_failures_become_one_line() {
        let failing = "printf 'npm error code ECONNREFUSED\nnpm error syscall connect\nnpm error FetchError: request to \
                       x failed\nnpm error at y z w\n' >&2; exit 1";
        let (provided, left) = provide(failing, false);
        assert_eq!(
            provided.unwrap_err(),
            "npm cannot fetch @scope/thing@1.2.3: ECONNREFUSED, FetchError: request to x failed; check the network and \
             `npm config get registry`"
        );
        assert!(left.is_empty());

        let (provided, _) = provide("exit 3", false);
        assert!(provided.unwrap_err().contains("exit status: 3"));
        let (provided, _) = provide("exit 0", false);
        assert!(provided.unwrap_err().contains("wrote no scope-thing-1.2.3.tgz"));
        let (provided, _) = provide("echo 'npm error code ENOSPC' >&2; exit 1", false);
        let error = provided.unwrap_err();
        assert!(
            error.starts_with("cannot write ") && error.contains("no storage space"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_npm_is_one_line_that_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("no-npm-here");
        let store = Store::open(dir.path(), false, nowhere.as_os_str()).unwrap();
        let error = store.provide(&PACKAGE).unwrap_err();
        assert!(matches!(error, DataError::Package(PackageError::NpmMissing { .. })));
        let line = error.to_string();
        assert!(
            line.contains("install Node.js") && line.contains("scope-thing-1.2.3.tgz"),
            "{line}"
        );
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn offline_never_starts_npm() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), true, OsStr::new("/no/npm")).unwrap();
        assert!(matches!(
            store.provide(&PACKAGE),
            Err(DataError::Package(PackageError::Offline { .. }))
        ));
        fs::write(dir.path().join(PACKAGE.file_name()), "abc").unwrap();
        assert!(store.provide(&PACKAGE).is_ok());
    }

    /// A .tgz of one member whose path is written as it is, which `tar` itself would refuse to do.
    fn archive(dir: &Path, member: &str) -> PathBuf {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..member.len()].copy_from_slice(member.as_bytes());
        header.set_size(2);
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        let path = dir.join("package.tgz");
        let mut gzip = flate2::write::GzEncoder::new(
            File::create(&path).unwrap(),
            flate2::Compression::fast(),
        );
        gzip.write_all(header.as_bytes()).unwrap();
        let mut block = [0u8; 512 * 3];
        block[..2].copy_from_slice(b"hi");
        gzip.write_all(&block).unwrap();
        gzip.finish().unwrap();
        path
    }

    #[test]
    fn reads_members_and_refuses_paths_that_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let good = archive(dir.path(), "package/a.txt");
        assert_eq!(read_members(&good, ["a.txt"]).unwrap(), [b"hi".to_vec()]);
        let missing = read_members(&good, ["a.txt", "b.txt"]).unwrap_err().to_string();
        assert!(missing.ends_with("package/b.txt is missing"), "{missing}");
        for evil in ["package/../../a.txt", "/package/a.txt", "../a.txt"] {
            let error = read_members(&archive(dir.path(), evil), ["a.txt"]).unwrap_err();
            assert!(
                matches!(error, DataError::Package(PackageError::Traversal { .. })),
                "{evil}: {error}"
            );
        }
    }

    #[test]
    fn an_archive_that_is_none_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tgz");
        fs::write(&path, "not gzip").unwrap();
        assert!(matches!(
            read_members(&path, ["a"]),
            Err(DataError::Package(PackageError::Format { .. }))
        ));
    }
}
