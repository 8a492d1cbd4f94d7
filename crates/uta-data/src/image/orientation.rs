//! The orientation that a file asks for, wherever Pillow's `ImageOps.exif_transpose` looks for one: EXIF of a JPEG, PNG (`eXIf`
//! before or after the pixels, or ImageMagick's text of it) or WebP, and where that has none, XMP.

use std::io::Read;

use flate2::read::ZlibDecoder;
use image::ImageFormat;
use image::metadata::Orientation;
use memchr::memmem;

use crate::image::png;

/// Pillow's limit of an inflated text.
const MAX_TEXT: u64 = 1 << 20;

/// Metadata as the file has it.
#[derive(Default)]
struct Metadata {
    exif: Option<Vec<u8>>,
    xmp: Option<Vec<u8>>,
}

/// The turn that makes the picture upright; `None` where nothing asks for it.
pub(crate) fn orientation(bytes: &[u8], format: ImageFormat) -> Option<Orientation> {
    let metadata = match format {
        ImageFormat::Jpeg => of_jpeg(bytes),
        ImageFormat::Png => of_png(bytes),
        ImageFormat::WebP => of_webp(bytes),
        _ => Metadata::default(),
    };
    let number = match metadata.exif.as_deref().and_then(in_exif) {
        Some(number) => number,
        None => in_xmp(metadata.xmp.as_deref()?)?,
    };
    Orientation::from_exif(number)
}

fn of_jpeg(bytes: &[u8]) -> Metadata {
    let mut metadata = Metadata::default();
    let mut rest = bytes.get(2..).unwrap_or_default();
    while let Some(at) = memchr::memchr(0xff, rest) {
        rest = &rest[at + 1..];
        match rest.first() {
            None | Some(0xd9 | 0xda) => break,
            Some(0 | 1 | 0xd0..=0xd8 | 0xff) => continue,
            Some(_) => {}
        }
        let length = rest.get(1..3).map_or(0, |l| usize::from(u16::from_be_bytes([l[0], l[1]])));
        let Some(segment) = rest.get(3..length + 1) else { break };
        if rest[0] == 0xe1 && segment.starts_with(b"Exif\0\0") {
            // A large one is spread over several.
            match &mut metadata.exif {
                Some(exif) => exif.extend_from_slice(&segment[6..]),
                None => metadata.exif = Some(segment.to_vec()),
            }
        } else if let Some(xmp) = segment.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0")
            && rest[0] == 0xe1
        {
            metadata.xmp = Some(xmp.to_vec());
        }
        rest = &rest[length + 1..];
    }
    metadata
}

fn of_png(bytes: &[u8]) -> Metadata {
    let (mut metadata, mut text) = (Metadata::default(), None);
    for chunk in png::chunks(bytes) {
        if &chunk.kind == b"eXIf" {
            metadata.exif = Some(chunk.data.to_vec());
        }
        let Some((key, value)) = text_of(&chunk) else { continue };
        match key {
            b"Raw profile type exif" => text = Some(value),
            b"XML:com.adobe.xmp" => metadata.xmp = Some(value),
            _ => {}
        }
    }
    if metadata.exif.is_none() {
        metadata.exif = text.and_then(|text| raw_profile(&text));
    }
    metadata
}

/// The keyword and the text of a chunk, inflated as far as Pillow does; None for another chunk.
fn text_of<'a>(chunk: &png::Chunk<'a>) -> Option<(&'a [u8], Vec<u8>)> {
    let inflated = |data: &[u8]| {
        let mut text = vec![];
        ZlibDecoder::new(data).take(MAX_TEXT + 1).read_to_end(&mut text).ok()?;
        (text.len() as u64 <= MAX_TEXT).then_some(text)
    };
    let to_zero = |data: &'a [u8]| {
        let end = memchr::memchr(0, data)?;
        Some((&data[..end], &data[end + 1..]))
    };
    let (key, rest) = to_zero(chunk.data)?;
    let text = match &chunk.kind {
        b"tEXt" => rest.to_vec(),
        b"zTXt" => inflated(rest.strip_prefix(&[0])?)?,
        b"iTXt" => {
            let (&[compressed, _], rest) = rest.split_first_chunk::<2>()?;
            let (_, text) = to_zero(to_zero(rest)?.1)?;
            if compressed == 0 { text.to_vec() } else { inflated(text)? }
        }
        _ => return None,
    };
    Some((key, text))
}

/// ImageMagick's: an empty line, `exif`, the length, and hexadecimal digits.
fn raw_profile(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.splitn(4, |&byte| byte == b'\n').nth(3)?;
    let digits: Vec<u8> = digits.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
    let (pairs, &[]) = digits.as_chunks::<2>() else { return None };
    let byte = |pair: &[u8; 2]| {
        let digit = |c: u8| char::from(c).to_digit(16);
        Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8)
    };
    pairs.iter().map(byte).collect()
}

fn of_webp(bytes: &[u8]) -> Metadata {
    let mut metadata = Metadata::default();
    let mut rest = bytes.get(12..).unwrap_or_default();
    while let Some((head, after)) = rest.split_first_chunk::<8>() {
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let Some(data) = after.get(..length) else { break };
        let place = match &head[..4] {
            b"EXIF" => Some(&mut metadata.exif),
            b"XMP " => Some(&mut metadata.xmp),
            _ => None,
        };
        if let Some(place @ None) = place {
            *place = Some(data.to_vec());
        }
        rest = after.get(length + length % 2..).unwrap_or_default();
    }
    metadata
}

/// The value of the first directory's orientation, whatever type of number it is; 0 for what is none of 1 to 8. None where
/// there is no such entry.
fn in_exif(mut exif: &[u8]) -> Option<u8> {
    for _ in 0..2 {
        exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    }
    let little = match exif.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let read = exif.get(at..at.checked_add(bytes)?)?;
        let add = |sum: u64, &byte: &u8| sum << 8 | u64::from(byte);
        Some(if little { read.iter().rev().fold(0, add) } else { read.iter().fold(0, add) })
    };
    let directory = number(4, 4)? as usize;
    let mut found = None;
    for i in 0..number(directory, 2)? as usize {
        let entry = directory + 2 + 12 * i;
        let (Some(tag), Some(kind)) = (number(entry, 2), number(entry + 2, 2)) else { break };
        if tag != 0x112 {
            continue;
        }
        let (size, count) = match kind {
            6 => (1, 1),
            3 | 8 => (2, 1),
            4 | 9 | 11 | 13 => (4, 1),
            5 | 10 => (8, 4),
            12 | 16 => (8, 1),
            // Text and raw bytes are no number to Pillow.
            _ => {
                found = Some(0);
                continue;
            }
        };
        // Where it doesn't fit into the entry, the entry says where it is.
        let all = size * number(entry + 4, 4)? as usize;
        let at = if all <= 4 { entry + 8 } else { number(entry + 8, 4)? as usize };
        let value = match kind {
            _ if all == 0 => return None,
            5 | 10 => {
                let (over, under) = (number(at, count)?, number(at + 4, 4)?);
                if under == 0 {
                    0
                } else if over % under == 0 {
                    over / under
                } else {
                    0
                }
            }
            11 => whole(f32::from_bits(number(at, 4)? as u32).into()),
            12 => whole(f64::from_bits(number(at, 8)?)),
            _ => number(at, size)?,
        };
        found = Some(u8::try_from(value).unwrap_or(0));
    }
    found
}

fn whole(value: f64) -> u64 {
    if value.fract() == 0.0 { value as u64 } else { 0 }
}

/// Pillow's `tiff:Orientation(="|>)([0-9])`.
fn in_xmp(xmp: &[u8]) -> Option<u8> {
    memmem::find_iter(xmp, b"tiff:Orientation").find_map(|at| {
        let rest = &xmp[at + b"tiff:Orientation".len()..];
        let rest = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?;
        rest.first().filter(|digit| digit.is_ascii_digit()).map(|digit| digit - b'0')
    })
}
