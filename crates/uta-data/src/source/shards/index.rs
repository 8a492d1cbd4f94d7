//! The index of a shard's headers, kept beside it, so that a thousand shards open without being read through.
//!
//! `.NAME.tar.uta-index` is a [`sidecar`]: its line holds the size and the time of change that the tar had, and then comes for
//! each sample where its run of members begins (u64) and how long it is (u32), little-endian. An index of another tar is not
//! used. (`NAME.tar.idx` is what other programs call their own indices.)
//! That of a shard elsewhere is kept in [`cache_folder`](crate::cache_folder), under the checksum of its URL.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fmt, fs, io, thread};

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::progress::counted;
use crate::source::shards::scan::{Scan, scan};
use crate::source::shards::sizes;
use crate::source::spec::shards_of;
use crate::storage::span::Stamp;
use crate::storage::{self, sidecar};

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

/// The index of a shard; None where nothing can be kept.
fn place(shard: &Path) -> Option<PathBuf> {
    storage::kept(shard, "uta-index", ["indices", "idx"])
}

/// The scan of a shard as its index tells it, if the index is there, whole, and of this very tar.
fn load(shard: &Path, tar: &Stamp) -> Option<Scan> {
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
fn store(shard: &Path, tar: &Stamp, scan: &Scan) -> io::Result<()> {
    let Some(place) = place(shard) else { return Ok(()) };
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder)?;
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

/// Outcome of writing the index of a shard that lacked one.
type Stored = Option<io::Result<()>>;

/// A shard, what its headers say, and what came of writing that down.
pub(super) struct Found {
    pub(super) tar: Stamp,
    pub(super) scan: Scan,
    stored: Stored,
}

/// The headers of every shard, by their indices where they have one; else an index is made.
pub(super) fn scan_all(paths: &[PathBuf]) -> Result<Vec<Found>, DataError> {
    // Waiting for a disk or a network, not computing: more threads than cores pay.
    let threads = paths.len().min(8);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = vec![];
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(path) = paths.get(i) else { return done };
            done.push((i, indexed(path)));
        }
    };
    let mut scans: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|t| t.join().expect("a scan does not panic")).collect()
    });
    scans.sort_by_key(|(i, _)| *i);
    scans.into_iter().map(|(_, scan)| scan).collect()
}

/// The scan of a shard, by its index or to make one.
fn indexed(path: &Path) -> Result<Found, DataError> {
    let tar = storage::stamp(path).map_err(DataError::io("open shard", path))?;
    if let Some(scan) = load(path, &tar) {
        return Ok(Found { tar, scan, stored: None });
    }
    let scan = scan(path)?;
    let stored = store(path, &tar, &scan);
    match &stored {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            tracing::warn!("{} has no index, and is scanned each time: {e}", path.display());
        }
        // Shards on a disk that is only read are scanned each time.
        Err(e) => tracing::debug!("no index of {}: {e}", path.display()),
        Ok(()) => {}
    }
    Ok(Found { tar, scan, stored: Some(stored) })
}

/// Result of `uta data index`.
#[derive(Clone, Debug, Serialize)]
pub struct Indexed {
    /// Shards.
    pub shards: usize,
    /// Shards whose index was missing or of another tar.
    pub scanned: usize,
    /// Samples in all.
    pub samples: usize,
    /// Faults of whole shards.
    pub problems: Vec<String>,
}

impl fmt::Display for Indexed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "problem: {problem}")?;
        }
        let (samples, shards) = (counted(self.samples, "sample"), counted(self.shards, "shard"));
        write!(f, "{samples} in {shards}, {} of them scanned", self.scanned)
    }
}

/// Writes the index of every shard of a spec that lacks one.
///
/// # Errors
/// As [`open`](crate::open); a folder that can't be written to.
pub fn index(spec: &str) -> Result<Indexed, DataError> {
    let paths = shards_of(spec)?;
    let (mut scans, mut scanned) = (vec![], 0);
    for (path, Found { scan, stored, .. }) in paths.iter().zip(scan_all(&paths)?) {
        if let Some(stored) = stored {
            stored.map_err(DataError::io("write the index of", path))?;
            scanned += 1;
        }
        scans.push(scan);
    }
    Ok(Indexed {
        shards: paths.len(),
        scanned,
        samples: scans.iter().map(|scan| scan.spans.len()).sum(),
        problems: problems(&paths, scans.iter()),
    })
}

/// Faults of shards, and of the sizes that stand beside them.
pub(super) fn problems<'a>(
    paths: &[PathBuf],
    scans: impl Iterator<Item = &'a Scan> + Clone,
) -> Vec<String> {
    let told = paths.iter().zip(scans.clone()).flat_map(|(path, scan)| {
        scan.problems.iter().map(move |problem| format!("{}: {problem}", path.display()))
    });
    let samples = paths.iter().zip(scans).map(|(path, scan)| (path.as_path(), scan.spans.len()));
    told.chain(sizes::disagreements(samples)).collect()
}

/// Where an index, or img2dataset's `NAME_stats.json`, tells of another shard than the tar is, which is scanned anew: a line
/// each.
pub(crate) fn misled(paths: &[PathBuf]) -> Result<Vec<String>, DataError> {
    #[derive(Deserialize)]
    struct Stats {
        successes: usize,
    }
    let mut lines = vec![];
    for path in paths {
        let tar = storage::stamp(path).map_err(DataError::io("open shard", path))?;
        let scan = scan(path)?;
        let holds = format!("and the tar holds {}", scan.spans.len());
        if let Some((index, told)) = place(path).zip(load(path, &tar))
            && (&told.spans, &told.problems) != (&scan.spans, &scan.problems)
        {
            let (index, says) = (index.display(), told.spans.len());
            lines.push(format!(
                "{index}: tells of {says} samples, {holds}, or elsewhere: delete it"
            ));
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let stats = path.with_file_name(format!("{stem}_stats.json"));
        let told =
            storage::text(&stats).ok().flatten().and_then(|text| serde_json::from_str(&text).ok());
        if let Some(Stats { successes }) =
            told.filter(|told: &Stats| told.successes != scan.spans.len())
        {
            lines.push(format!("{}: says {successes} samples, {holds}", stats.display()));
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::File;

    use super::*;
    use crate::Source as _;
    use crate::testing::{keys, open_shard, three_a_shard};

    #[test]
    fn an_index_is_left_beside_and_believed_only_for_the_same_tar() {
        let dir = tempfile::tempdir().unwrap();
        let path = three_a_shard(dir.path(), 3).remove(0);
        let idx = dir.path().join(".set-000000.tar.uta-index");
        let spec = path.to_str().unwrap();
        assert_eq!(keys(&open_shard(&path)), ["s0", "s1", "s2"]);
        assert!(idx.is_file());
        let names = |dir: &Path| fs::read_dir(dir).unwrap().count();
        assert_eq!(names(dir.path()), 3, "more than shard, index and sizes.json");
        let again = super::index(spec).unwrap();
        assert_eq!((again.shards, again.scanned, again.samples), (1, 0, 3));
        // What it says is taken without a look at the tar: here of one that has become something else.
        let tar = fs::metadata(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, vec![7; bytes.len()]).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(tar.modified().unwrap())
            .unwrap();
        assert_eq!(open_shard(&path).len(), 3);
        // Another time of change or size, or a damaged index, and it is scanned.
        fs::write(&path, &bytes[..2 * 2560]).unwrap();
        let shards = open_shard(&path);
        assert_eq!((shards.len(), shards.problems().len()), (2, 2));
        assert_eq!(open_shard(&path).problems(), shards.problems(), "from the index");
        let whole = fs::read(&idx).unwrap();
        for i in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[i] ^= 0x10;
            fs::write(&idx, &damaged).unwrap();
            let shards = open_shard(&path);
            assert_eq!(keys(&shards), ["s0", "s1"], "byte {i} of the index");
        }
        fs::write(&idx, &whole[..whole.len() - 12]).unwrap();
        assert_eq!(open_shard(&path).len(), 2);
    }
}
