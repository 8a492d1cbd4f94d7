//! What a shard's headers say, kept beside it, so that a thousand shards open without being read through.
//!
//! `NAME.tar.idx` is a [`sidecar`]: its line holds the size and the time of change that the tar had, and then comes for each
//! sample where its run of members begins (u64) and how long it is (u32), little-endian. An index of another tar is as none.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::shards::Scan;
use crate::sidecar;

const VERSION: u32 = 2;

/// Bytes of a sample.
const ENTRY: usize = 12;

#[derive(Serialize, Deserialize)]
struct Header {
    uta_index: u32,
    /// Of the tar.
    bytes: u64,
    /// Of the tar: seconds and nanoseconds since 1970.
    changed: (u64, u32),
    samples: u64,
    members: usize,
    problems: Vec<String>,
}

/// The index of a shard.
pub(crate) fn beside(shard: &Path) -> PathBuf {
    let mut name = shard.as_os_str().to_owned();
    name.push(".idx");
    name.into()
}

fn changed(tar: &Metadata) -> Option<(u64, u32)> {
    let since = tar.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((since.as_secs(), since.subsec_nanos()))
}

/// The scan of a shard as its index tells it, if the index is there, whole, and of this very tar.
pub(crate) fn load(shard: &Path, tar: &Metadata) -> Option<Scan> {
    let (header, body): (Header, _) = sidecar::load(&beside(shard))?;
    let (entries, rest) = body.as_chunks::<ENTRY>();
    let fits = header.uta_index == VERSION
        && header.bytes == tar.len()
        && Some(header.changed) == changed(tar)
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

/// Writes the index of a shard beside it.
pub(crate) fn store(shard: &Path, tar: &Metadata, scan: &Scan) -> std::io::Result<()> {
    let Some(changed) = changed(tar) else { return Ok(()) };
    let entries = scan.spans.iter().map(|(offset, length)| {
        let mut entry = [0; ENTRY];
        entry[..8].copy_from_slice(&offset.to_le_bytes());
        entry[8..].copy_from_slice(&length.to_le_bytes());
        entry
    });
    let entries = entries.collect::<Vec<_>>().concat();
    let header = Header {
        uta_index: VERSION,
        bytes: tar.len(),
        changed,
        samples: scan.spans.len() as u64,
        members: scan.members,
        problems: scan.problems.clone(),
    };
    sidecar::store(&beside(shard), &header, &[&entries])
}
