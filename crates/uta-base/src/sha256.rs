//! SHA-256 of files, and how hashes are written.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

/// Adds the contents of a file to `hash`, and returns how many bytes that is.
///
/// # Errors
/// When it can't be read.
pub fn add_file(hash: &mut Sha256, path: &Path) -> io::Result<u64> {
    let (mut file, mut bytes, mut buffer) = (File::open(path)?, 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(n) => {
                hash.update(&buffer[..n]);
                bytes += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
