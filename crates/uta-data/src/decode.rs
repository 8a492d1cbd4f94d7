//! Image files to RGB bytes, as Pillow's `Image.open(..).convert("RGB")` gives them: alpha is dropped, not blended,
//! palettes are looked up, EXIF orientation is left alone. One departure: 16-bit gray keeps its high byte, where Pillow
//! turns everything above 255 white.

use std::io::Cursor;

use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{ColorType, ImageDecoder, ImageFormat, ImageResult};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::DataError;

/// Images of more pixels are refused by their header, before memory is spent on them (open_clip's cap for Pillow).
pub const MAX_PIXELS: u64 = 1 << 27;

/// An RGB image, `[height, width, 3]` bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Rows from the top.
    pub pixels: Vec<u8>,
}

/// The image file formats that are read, by their file extensions.
pub(crate) const EXTENSIONS: [&str; 5] = ["jpg", "jpeg", "png", "webp", "gif"];

/// Whether a file extension, in whatever case, is an image's.
pub(crate) fn is_image(extension: &str) -> bool {
    EXTENSIONS.iter().any(|e| e.eq_ignore_ascii_case(extension))
}

/// The extension that an image's first bytes ask for, whatever its file is called.
pub(crate) fn format(bytes: &[u8]) -> Result<&'static str, DataError> {
    Ok(match guess(bytes)? {
        ImageFormat::Jpeg => "jpg",
        ImageFormat::WebP => "webp",
        ImageFormat::Gif => "gif",
        _ => "png",
    })
}

/// Decodes a PNG, JPEG, WebP or GIF (its first frame).
///
/// # Errors
/// When the bytes are not such an image, are damaged or cut short, or have more than [`MAX_PIXELS`] pixels.
pub fn decode(bytes: &[u8]) -> Result<Rgb, DataError> {
    match open(bytes)? {
        Opened::Jpeg(decoder, (width, height)) => decode_jpeg(bytes, decoder, width, height),
        Opened::Png(decoder) => decode_with(*decoder),
        Opened::WebP(decoder) => decode_with(decoder),
        Opened::Gif(decoder) => decode_with(*decoder),
    }
}

/// The (width, height) in the header.
///
/// # Errors
/// As [`decode`], as far as the header tells.
pub fn dimensions(bytes: &[u8]) -> Result<(u32, u32), DataError> {
    Ok(match open(bytes)? {
        Opened::Jpeg(_, dimensions) => dimensions,
        Opened::Png(decoder) => decoder.dimensions(),
        Opened::WebP(decoder) => decoder.dimensions(),
        Opened::Gif(decoder) => decoder.dimensions(),
    })
}

/// An image whose header was read and found to be of a bearable size.
enum Opened<'a> {
    Jpeg(Box<JpegDecoder<ZCursor<&'a [u8]>>>, (u32, u32)),
    Png(Box<PngDecoder<Cursor<&'a [u8]>>>),
    WebP(WebPDecoder<Cursor<&'a [u8]>>),
    Gif(Box<GifDecoder<Cursor<&'a [u8]>>>),
}

fn guess(bytes: &[u8]) -> Result<ImageFormat, DataError> {
    use ImageFormat::{Gif, Jpeg, Png, WebP};
    match image::guess_format(bytes) {
        Ok(format @ (Gif | Jpeg | Png | WebP)) => Ok(format),
        _ if bytes.is_empty() => Err(DataError::Image("the image file is empty".into())),
        _ => Err(DataError::Image("not a PNG, JPEG, WebP or GIF image".into())),
    }
}

fn open(bytes: &[u8]) -> Result<Opened<'_>, DataError> {
    let opened = match guess(bytes)? {
        ImageFormat::Jpeg => {
            // Limits of its own would be below ours; ours is checked next.
            let options = DecoderOptions::default().set_max_width(1 << 16).set_max_height(1 << 16);
            let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
            decoder.decode_headers().map_err(|e| damaged("JPEG", e))?;
            let (width, height) = decoder.dimensions().unwrap_or_default();
            Opened::Jpeg(Box::new(decoder), (width as u32, height as u32))
        }
        ImageFormat::WebP => {
            Opened::WebP(WebPDecoder::new(Cursor::new(bytes)).map_err(|e| damaged("WebP", e))?)
        }
        ImageFormat::Gif => {
            let decoder = GifDecoder::new(Cursor::new(bytes)).map_err(|e| damaged("GIF", e))?;
            Opened::Gif(Box::new(decoder))
        }
        _ => {
            let decoder = PngDecoder::new(Cursor::new(bytes)).map_err(|e| damaged("PNG", e))?;
            Opened::Png(Box::new(decoder))
        }
    };
    let (width, height) = match &opened {
        Opened::Jpeg(_, dimensions) => *dimensions,
        Opened::Png(decoder) => decoder.dimensions(),
        Opened::WebP(decoder) => decoder.dimensions(),
        Opened::Gif(decoder) => decoder.dimensions(),
    };
    if width == 0 || height == 0 {
        return Err(DataError::Image(format!("the image has {width} x {height} pixels")));
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(DataError::Image(format!(
            "the image claims {width} x {height} pixels, more than the {MAX_PIXELS} allowed"
        )));
    }
    Ok(opened)
}

fn damaged(format: &str, error: impl std::fmt::Display) -> DataError {
    // Decoders' messages may have several lines; an error here has one.
    let message = error.to_string();
    DataError::Image(format!(
        "damaged {format}: {}",
        message.split_whitespace().collect::<Vec<_>>().join(" ")
    ))
}

fn decode_jpeg(
    bytes: &[u8],
    mut decoder: Box<JpegDecoder<ZCursor<&[u8]>>>,
    width: u32,
    height: u32,
) -> Result<Rgb, DataError> {
    // A decoder that forgives fills what is missing with gray. Seen from its end, a whole JPEG shows the end-of-image
    // marker before a start of scan; neither can occur within the coded data.
    let last_marker = bytes.windows(2).rev().find(|m| m[0] == 0xff && matches!(m[1], 0xd9 | 0xda));
    if last_marker != Some(&[0xff, 0xd9]) {
        return Err(damaged("JPEG", "cut short"));
    }
    let gray = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let wanted = if gray { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(decoder.options().jpeg_set_out_colorspace(wanted));
    let pixels = decoder.decode().map_err(|e| damaged("JPEG", e))?;
    let pixels = if gray { to_rgb::<1>(&pixels, true) } else { pixels };
    checked("JPEG", width, height, pixels)
}

fn decode_with(decoder: impl ImageDecoder) -> Result<Rgb, DataError> {
    fn read(decoder: impl ImageDecoder) -> ImageResult<Vec<u8>> {
        // Bounded by MAX_PIXELS in `open`.
        let mut pixels = vec![0; decoder.total_bytes() as usize];
        decoder.read_image(&mut pixels)?;
        Ok(pixels)
    }
    let (width, height) = decoder.dimensions();
    let color = decoder.color_type();
    let raw = read(decoder).map_err(|e| damaged("image", e))?;
    let pixels = match color {
        ColorType::Rgb8 => raw,
        ColorType::L8 => to_rgb::<1>(&raw, true),
        ColorType::La8 => to_rgb::<2>(&raw, true),
        ColorType::Rgba8 => to_rgb::<4>(&raw, false),
        ColorType::L16 => to_rgb::<1>(&high_bytes(&raw), true),
        ColorType::La16 => to_rgb::<2>(&high_bytes(&raw), true),
        ColorType::Rgb16 => high_bytes(&raw),
        ColorType::Rgba16 => to_rgb::<4>(&high_bytes(&raw), false),
        other => {
            return Err(DataError::Image(format!("pixels of type {other:?} are not supported")));
        }
    };
    checked("image", width, height, pixels)
}

fn checked(format: &str, width: u32, height: u32, pixels: Vec<u8>) -> Result<Rgb, DataError> {
    if pixels.len() as u64 != 3 * u64::from(width) * u64::from(height) {
        return Err(damaged(format, "its size differs from its header's"));
    }
    Ok(Rgb { width, height, pixels })
}

/// Pixels of `C` channels to three: gray is repeated, alpha left out.
fn to_rgb<const C: usize>(raw: &[u8], gray: bool) -> Vec<u8> {
    let (pixels, _) = raw.as_chunks::<C>();
    pixels.iter().flat_map(|p| if gray { [p[0]; 3] } else { [p[0], p[1 % C], p[2 % C]] }).collect()
}

/// 16-bit channels in the machine's byte order, as `image` gives them, to their high bytes.
fn high_bytes(raw: &[u8]) -> Vec<u8> {
    let (channels, _) = raw.as_chunks::<2>();
    channels.iter().map(|&c| (u16::from_ne_bytes(c) >> 8) as u8).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

    use super::*;

    #[test]
    fn sixteen_bits_keep_their_high_byte() {
        let words: Vec<u16> = vec![0, 255, 256, 0x1234, 0xff00, 0xffff];
        let raw: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let encode = |width, color| {
            let mut png = vec![];
            PngEncoder::new(&mut png).write_image(&raw, width, 1, color).unwrap();
            decode(&png).unwrap().pixels
        };
        let high = [0u8, 0, 1, 0x12, 0xff, 0xff];
        assert_eq!(encode(6, ExtendedColorType::L16), high.map(|b| [b; 3]).concat());
        assert_eq!(encode(2, ExtendedColorType::Rgb16), high);
        assert_eq!(encode(3, ExtendedColorType::La16), [[0; 3], [1; 3], [0xff; 3]].concat());
    }

    #[test]
    fn the_header_gives_the_size_and_the_bytes_the_format() {
        let png = crate::testing::png(5, 3, [1, 2, 3]);
        assert_eq!(dimensions(&png).unwrap(), (5, 3));
        assert_eq!(format(&png).unwrap(), "png");
        assert_eq!(decode(&png).unwrap().pixels, [1, 2, 3].repeat(15));
        for (bytes, told) in [(&b""[..], "empty"), (b"<html></html>", "not a PNG")] {
            let e = decode(bytes).unwrap_err().to_string();
            assert!(e.contains(told), "{e}");
        }
    }
}
