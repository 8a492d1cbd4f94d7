//! Files that are kept beside data, so that it opens without being read through: a line of JSON whose first key begins with
//! `uta_`, whatever bytes follow it, and the CRC-32 of both, little-endian. One that is missing, damaged, or of another
//! version is not used. A file that does not begin so is another program's, and is never written over.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

use flate2::Crc;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uta_base::AtomicFile;

/// How each of these files begins.
const MARK: &[u8] = b"{\"uta_";

/// The line that is kept at `path`, and the bytes behind it.
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

/// Writes it, complete or not at all. Fails with [`ErrorKind::AlreadyExists`] where another program's file is in its place.
pub(crate) fn store(path: &Path, header: &impl Serialize, body: &[&[u8]]) -> io::Result<()> {
    let line = serde_json::to_vec(header)?;
    debug_assert!(line.starts_with(MARK), "the first key begins with uta_");
    if !is_free(path)? {
        let reason = format!("{} is another program's file and is left alone", path.display());
        return Err(io::Error::new(ErrorKind::AlreadyExists, reason));
    }
    let mut out = AtomicFile::create(path)?;
    let mut crc = Crc::new();
    for part in [&line[..], b"\n"].iter().chain(body) {
        crc.update(part);
        out.write_all(part)?;
    }
    out.write_all(&crc.sum().to_le_bytes())?;
    out.finish()
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
