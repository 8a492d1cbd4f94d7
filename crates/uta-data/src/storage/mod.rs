//! Bytes on disks and networks. A path that is a URL is told from a file of this machine here and nowhere else.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use self::span::{Bytes, Stamp};
use crate::error::DataError;
use crate::sha256;
use crate::text::without_mark;

pub(crate) mod local;
#[cfg(feature = "remote")]
pub(crate) mod remote;
pub(crate) mod sidecar;
pub(crate) mod span;

/// Whether a spec, or a path that it means, is a URL.
pub fn is_url(spec: impl AsRef<Path>) -> bool {
    spec.as_ref().to_str().is_some_and(|spec| spec.contains("://"))
}

/// Whether a plain file is at `path`. Only a request could tell it of a URL, which is taken for one.
pub(crate) fn is_file(path: &Path) -> bool {
    is_url(path) || path.is_file()
}

/// The state of the file at `path` now.
pub(crate) fn stamp(path: &Path) -> io::Result<Stamp> {
    #[cfg(feature = "remote")]
    if is_url(path) {
        return remote::stamp(path);
    }
    local::stamp(path)
}

/// The text of a small file, without a byte order mark; None where there is none.
///
/// # Errors
/// One that can't be read, or is no UTF-8.
pub(crate) fn text(path: &Path) -> Result<Option<String>, DataError> {
    let text = {
        #[cfg(feature = "remote")]
        if is_url(path) {
            remote::text(path)
        } else {
            local::text(path)
        }
        #[cfg(not(feature = "remote"))]
        local::text(path)
    };
    let text = text.map_err(DataError::io("read", path))?;
    Ok(text.map(|text| without_mark(&text).to_owned()))
}

/// The bytes of shards in the states that they were found in. Whether a file is still the same is not asked.
pub(crate) fn shards(paths: &[PathBuf], stamps: Vec<Stamp>) -> Box<dyn Bytes> {
    #[cfg(feature = "remote")]
    if paths.iter().any(is_url) {
        return Box::new(remote::Remote::new(paths, stamps));
    }
    drop(stamps);
    Box::new(local::LocalShards::new(paths))
}

/// The shards in a folder, on a disk or elsewhere: its plain files that end in `.tar`, sorted, hidden ones left out.
///
/// # Errors
/// When it can't be listed.
pub fn tars(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    if is_url(dir) {
        let spec = format!("{}/", dir.display());
        return tars_at(&spec).map_err(|reason| DataError::NotFound { spec, reason });
    }
    local::tars(dir)
}

/// The URLs of the shards that one without braces means, itself or those in the folder that it names; or why it means none.
#[cfg(feature = "remote")]
pub(crate) fn tars_at(url: &str) -> Result<Vec<PathBuf>, String> {
    remote::shards(url)
}

/// The URLs of the shards that one without braces means; or why it means none.
#[cfg(not(feature = "remote"))]
pub(crate) fn tars_at(url: &str) -> Result<Vec<PathBuf>, String> {
    /// Those that the feature reads.
    const SCHEMES: [&str; 9] = ["s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "http", "https"];
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    if !SCHEMES.contains(&scheme) {
        let hub = match scheme {
            "hf" => {
                "; fetch the files first (`hf download REPOSITORY --repo-type dataset --local-dir DIR`)"
            }
            _ => "",
        };
        return Err(format!("{scheme}:// is no kind of address that is read{hub}"));
    }
    let build = "cargo build --release -p uta --features remote";
    Err(format!("this program reads nothing from a network; one built by `{build}` does"))
}

/// The folder above a folder, where there is one.
pub(crate) fn above(folder: &Path) -> Option<PathBuf> {
    if is_url(folder) {
        return folder.parent().filter(|folder| is_url(folder)).map(Path::to_owned);
    }
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    Some(folder.join(".."))
}

/// Where something is kept that can be computed again from the file at `path`: `.NAME.ending` beside it, or for a URL
/// `folder/SUM.ending` in [`uta_base::cache_folder`], under the checksum of the URL. None where nothing can be
/// kept.
pub(crate) fn kept(path: &Path, ending: &str, [folder, url_ending]: [&str; 2]) -> Option<PathBuf> {
    if is_url(path) {
        let sum = sha256::hex(&Sha256::digest(path.as_os_str().as_encoded_bytes()));
        return Some(uta_base::cache_folder()?.join(folder).join(format!("{sum}.{url_ending}")));
    }
    let mut name = OsString::from(".");
    name.push(path.file_name()?);
    name.push(".");
    name.push(ending);
    Some(path.with_file_name(name))
}

/// A file that is read from its beginning to its end, with some steps ahead.
pub(crate) enum Reader {
    /// On a disk, with its length in bytes.
    Local(File, u64),
    /// Elsewhere.
    #[cfg(feature = "remote")]
    Remote(remote::Reader),
}

impl Reader {
    pub(crate) fn open(path: &Path) -> Result<Reader, DataError> {
        #[cfg(feature = "remote")]
        if is_url(path) {
            let reader = remote::Reader::open(path).map_err(DataError::io("open shard", path))?;
            return Ok(Reader::Remote(reader));
        }
        let file = File::open(path).map_err(DataError::io("open shard", path))?;
        let length = file.metadata().map_err(DataError::io("read shard", path))?.len();
        Ok(Reader::Local(file, length))
    }

    /// Its length in bytes.
    pub(crate) fn length(&self) -> u64 {
        match self {
            Reader::Local(_, length) => *length,
            #[cfg(feature = "remote")]
            Reader::Remote(reader) => reader.length(),
        }
    }

    /// The error that ended the reading, where the network is at fault and not the file.
    pub(crate) fn failure(self) -> Option<io::Error> {
        match self {
            Reader::Local(..) => None,
            #[cfg(feature = "remote")]
            Reader::Remote(reader) => reader.failure(),
        }
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Reader::Local(file, _) => file.read(buffer),
            #[cfg(feature = "remote")]
            Reader::Remote(reader) => reader.read(buffer),
        }
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self {
            Reader::Local(file, _) => file.seek(to),
            #[cfg(feature = "remote")]
            Reader::Remote(reader) => reader.seek(to),
        }
    }
}
