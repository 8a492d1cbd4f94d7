//! Files that are kept beside data, so that it opens without being read through: a line of JSON whose first key begins with
//! `uta_`, whatever bytes follow it, and the CRC-32 of both, little-endian. One that is missing, damaged, or of another
//! version is not used. A file that does not begin so is another program's, and is never written over.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::Crc;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How each of these files begins.
const MARK: &[u8] = b"{\"uta_";

/// What is kept at `path`: the line, and the bytes behind it.
pub(crate) fn load<H: DeserializeOwned>(path: &Path) -> Option<(H, Vec<u8>)> {
    let mut file = fs::read(path).ok()?;
    let sum = *file.last_chunk::<4>()?;
    file.truncate(file.len() - sum.len());
    let mut crc = Crc::new();
    crc.update(&file);
    if crc.sum() != u32::from_le_bytes(sum) {
        return None;
    }
    let end = file.iter().position(|&b| b == b'\n')?;
    let header = serde_json::from_slice(&file[..end]).ok()?;
    file.drain(..=end);
    Some((header, file))
}

/// Writes it as [`replace`] does. Fails with [`ErrorKind::AlreadyExists`] where another program's file is in its place.
pub(crate) fn store(path: &Path, header: &impl Serialize, body: &[&[u8]]) -> io::Result<()> {
    let line = serde_json::to_vec(header)?;
    debug_assert!(line.starts_with(MARK), "the first key begins with uta_");
    if !is_free(path)? {
        let reason = format!("{} is another program's file and is left alone", path.display());
        return Err(io::Error::new(ErrorKind::AlreadyExists, reason));
    }
    replace(path, |out| {
        let mut crc = Crc::new();
        for part in [&line[..], b"\n"].iter().chain(body) {
            crc.update(part);
            out.write_all(part)?;
        }
        out.write_all(&crc.sum().to_le_bytes())
    })
}

/// Whether nothing is at `path` but perhaps a file that [`store`] wrote.
fn is_free(path: &Path) -> io::Result<bool> {
    let mut start = vec![];
    match File::open(path) {
        Ok(file) => file.take(MARK.len() as u64).read_to_end(&mut start)?,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(e),
    };
    Ok(start == MARK)
}

/// Writes a file under another name, synced, and renamed; several processes may do so at once.
pub(crate) fn replace(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let which = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}-{which}.tmp", std::process::id()));
    let written = File::create(&temporary).and_then(|file| {
        let mut out = BufWriter::new(file);
        write(&mut out)?;
        out.flush()?;
        out.get_ref().sync_all()?;
        fs::rename(&temporary, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// The folder for what can be computed again, by the XDG base directory specification: `$XDG_CACHE_HOME/uta`, else
/// `~/.cache/uta`.
pub fn cache_folder() -> Option<PathBuf> {
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("uta"))
}
