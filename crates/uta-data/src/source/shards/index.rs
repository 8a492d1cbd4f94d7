//! What a shard's headers say, kept beside it, so that a thousand shards open without being read through.
//!
//! `.NAME.tar.uta-index` is a [`sidecar`]: its line holds the size and the time of change that the tar had, and then comes for
//! each sample where its run of members begins (u64) and how long it is (u32), little-endian. An index of another tar is not
//! used. (`NAME.tar.idx` is what other programs call their own indices.)
//! That of a shard elsewhere is kept in [`cache_folder`](crate::cache_folder), under the checksum of its URL.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::source::shards::Scan;
use crate::storage::sidecar;
use crate::{sha256, source};

const VERSION: u32 = 4;

/// Bytes of a sample.
const ENTRY: usize = 12;

#[derive(Serialize, Deserialize)]
struct Header {
    uta_index: u32,
    #[serde(flatten)]
    tar: Stamp,
    samples: u64,
    members: usize,
    problems: Vec<String>,
}

/// What tells a tar from another that takes its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub(crate) bytes: u64,
    /// Seconds and nanoseconds since 1970.
    pub(crate) changed: (u64, u32),
    /// What its server calls this state of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) etag: Option<String>,
}

impl Stamp {
    /// Of the tar that is there now.
    pub(crate) fn of(shard: &Path) -> io::Result<Stamp> {
        #[cfg(feature = "remote")]
        if source::is_url(shard) {
            return crate::storage::remote::stamp(shard);
        }
        let tar = fs::metadata(shard)?;
        Ok(Stamp { bytes: tar.len(), changed: changed(&tar), etag: None })
    }
}

fn changed(tar: &Metadata) -> (u64, u32) {
    let since = tar.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since.map_or((0, 0), |since| (since.as_secs(), since.subsec_nanos()))
}

/// The index of a shard; None where nothing can be kept.
pub(crate) fn place(shard: &Path) -> Option<PathBuf> {
    if source::is_url(shard) {
        let sum = sha256::hex(&Sha256::digest(shard.as_os_str().as_encoded_bytes()));
        return Some(crate::cache_folder()?.join("indices").join(format!("{sum}.idx")));
    }
    let mut name = OsString::from(".");
    name.push(shard.file_name()?);
    name.push(".uta-index");
    Some(shard.with_file_name(name))
}

/// The scan of a shard as its index tells it, if the index is there, whole, and of this very tar.
pub(crate) fn load(shard: &Path, tar: &Stamp) -> Option<Scan> {
    let (header, body): (Header, _) = sidecar::load(&place(shard)?)?;
    let (entries, rest) = body.as_chunks::<ENTRY>();
    let fits = header.uta_index == VERSION
        && header.tar == *tar
        && header.samples == entries.len() as u64
        && rest.is_empty();
    let spans = entries.iter().map(|entry| {
        let (offset, length) = entry.split_first_chunk::<8>().expect("an entry has 12 bytes");
        let length = length.try_into().expect("an entry has 12 bytes");
        (u64::from_le_bytes(*offset), u32::from_le_bytes(length))
    });
    fits.then(|| Scan {
        spans: spans.collect(),
        members: header.members,
        problems: header.problems,
        imageless: 0,
    })
}

/// Writes the index of a shard.
pub(crate) fn store(shard: &Path, tar: &Stamp, scan: &Scan) -> io::Result<()> {
    let Some(place) = place(shard) else { return Ok(()) };
    if source::is_url(shard) {
        fs::create_dir_all(place.parent().unwrap_or(Path::new(".")))?;
    }
    let entries = scan.spans.iter().map(|(offset, length)| {
        let mut entry = [0; ENTRY];
        entry[..8].copy_from_slice(&offset.to_le_bytes());
        entry[8..].copy_from_slice(&length.to_le_bytes());
        entry
    });
    let entries = entries.collect::<Vec<_>>().concat();
    let header = Header {
        uta_index: VERSION,
        tar: tar.clone(),
        samples: scan.spans.len() as u64,
        members: scan.members,
        problems: scan.problems.clone(),
    };
    sidecar::store(&place, &header, &[&entries])
}
