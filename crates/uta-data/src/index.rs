//! What a shard's headers say, kept beside it, so that a thousand shards open without being read through.
//!
//! `NAME.tar.idx` is one line of JSON, which holds the size and the time of change that the tar had, and then for each sample
//! where its run of members begins (u64) and how long it is (u32), little-endian. An index of another tar, or one that is
//! damaged, is as none.

use std::fs::{self, File, Metadata};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::shards::Scan;

const VERSION: u32 = 1;

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
    /// Of what follows this line.
    crc32: u32,
}

/// The index of a shard.
fn beside(shard: &Path) -> PathBuf {
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
    let index = fs::read(beside(shard)).ok()?;
    let end = index.iter().position(|&b| b == b'\n')?;
    let header: Header = serde_json::from_slice(&index[..end]).ok()?;
    let (entries, rest) = index[end + 1..].as_chunks::<ENTRY>();
    let fits = header.uta_index == VERSION
        && header.bytes == tar.len()
        && Some(header.changed) == changed(tar)
        && header.samples == entries.len() as u64
        && rest.is_empty()
        && header.crc32 == crc(&index[end + 1..]);
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

/// Writes the index of a shard beside it: under another name, synced, and renamed.
pub(crate) fn store(shard: &Path, tar: &Metadata, scan: &Scan) -> std::io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
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
        crc32: crc(&entries),
    };
    let path = beside(shard);
    // Several processes may open the same shards for the first time.
    let which = COUNT.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("idx.{}-{which}.tmp", std::process::id()));
    let written = File::create(&temporary).and_then(|file| {
        let mut out = BufWriter::new(file);
        serde_json::to_writer(&mut out, &header)?;
        out.write_all(b"\n")?;
        out.write_all(&entries)?;
        out.flush()?;
        out.get_ref().sync_all()?;
        fs::rename(&temporary, &path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}
