//! The chunks of a PNG.

use flate2::Crc;

use crate::error::DataError;

/// A chunk that is wholly there.
pub(crate) struct Chunk<'a> {
    pub(crate) kind: [u8; 4],
    pub(crate) data: &'a [u8],
    /// Length, kind, data and checksum.
    whole: &'a [u8],
}

impl Chunk<'_> {
    fn checksum(kind: [u8; 4], data: &[u8]) -> [u8; 4] {
        let mut crc = Crc::new();
        crc.update(&kind);
        crc.update(data);
        crc.sum().to_be_bytes()
    }

    fn sound(&self) -> bool {
        self.whole.ends_with(&Self::checksum(self.kind, self.data))
    }
}

/// The chunks up to the first that is cut.
pub(crate) fn chunks(png: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    let mut rest = png.get(8..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (&[a, b, c, d, kind @ ..], after) = rest.split_first_chunk::<8>()?;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let whole = rest.get(..length.checked_add(12)?)?;
        let data = after.get(..length)?;
        rest = &rest[whole.len()..];
        Some(Chunk { kind, data, whole })
    })
}

/// The PNG less all that pixels don't depend on: colour profiles, texts and the like inflate to any size in a decoder that
/// reads them. A palette loses the bytes that are no whole colour, as in Pillow.
///
/// # Errors
/// When a checksum before the pixels is wrong.
pub(crate) fn essential(png: &[u8]) -> Result<Vec<u8>, DataError> {
    let mut out = Vec::with_capacity(png.len());
    out.extend_from_slice(png.get(..8).unwrap_or_default());
    // The colour type, at the same place in every PNG.
    let indexed = png.get(25) == Some(&3);
    let (mut pixels, mut at) = (false, out.len());
    for chunk in chunks(png) {
        at += chunk.whole.len();
        let critical = chunk.kind[0] & 0x20 == 0;
        let palette = &chunk.kind == b"PLTE";
        pixels |= &chunk.kind == b"IDAT";
        if (palette || !critical && !pixels) && !chunk.sound() {
            let kind = chunk.kind.escape_ascii();
            return Err(DataError::Image(format!("damaged PNG: the checksum of {kind} is wrong")));
        }
        if palette && indexed {
            let colours = &chunk.data[..chunk.data.len() / 3 * 3];
            out.extend_from_slice(&(colours.len() as u32).to_be_bytes());
            out.extend_from_slice(b"PLTE");
            out.extend_from_slice(colours);
            out.extend_from_slice(&Chunk::checksum(*b"PLTE", colours));
        } else if critical && !palette || &chunk.kind == b"tRNS" {
            out.extend_from_slice(chunk.whole);
        }
        if &chunk.kind == b"IEND" {
            return Ok(out);
        }
    }
    // Pixels of a file that is cut: the decoder says so.
    if let Some(rest) = png.get(at..)
        && rest.get(4..8) == Some(b"IDAT")
    {
        out.extend_from_slice(rest);
    }
    Ok(out)
}
