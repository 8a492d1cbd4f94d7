//! Image files to RGB bytes, as Pillow's `Image.open(..).convert("RGB")` gives them: alpha is dropped, not blended,
//! palettes are looked up, 16-bit gray is clipped at 255 and 16-bit colours keep their high byte, EXIF orientation is left
//! alone unless asked for.

use std::io::Cursor;

use gif::ColorOutput;
use image::codecs::{png::PngDecoder, webp::WebPDecoder};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, GrayImage, ImageBuffer, ImageDecoder, ImageFormat, RgbImage};

use crate::error::DataError;
use crate::image::crop::CropBox;
use crate::image::jpeg::Jpeg;
use crate::image::orientation::orientation;
use crate::image::png;
use crate::image::scans::Scans;

/// Images of more pixels are refused by their header, before memory is spent on them (open_clip's cap for Pillow); see
/// [`DecodeOptions::max_pixels`].
pub const MAX_PIXELS: u64 = 1 << 27;

/// How to decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Images of more pixels are refused by their header; at most 2^32.
    pub max_pixels: u64,
    /// Whether to turn and mirror an image as its orientation says, in EXIF or else in XMP (Pillow's
    /// `ImageOps.exif_transpose`). CLIP's and torchvision's pipelines don't.
    pub orient: bool,
}

impl Default for DecodeOptions {
    /// [`MAX_PIXELS`], and pixels as they are stored.
    fn default() -> DecodeOptions {
        DecodeOptions { max_pixels: MAX_PIXELS, orient: false }
    }
}

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
pub(crate) const EXTENSIONS: [&str; 7] = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif"];

/// Whether a file extension, in whatever case, is an image's.
pub fn is_image(extension: &str) -> bool {
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

/// Decodes a PNG, JPEG, WebP or GIF (its first frame), whatever its file is called.
///
/// # Errors
/// When the bytes are not such an image, are damaged or cut short, or have more than [`MAX_PIXELS`] pixels.
pub fn decode(bytes: &[u8]) -> Result<Rgb, DataError> {
    decode_with(bytes, &DecodeOptions::default())
}

/// [`decode`] with options.
///
/// # Errors
/// As [`decode`], with the options' limit.
pub fn decode_with(bytes: &[u8], options: &DecodeOptions) -> Result<Rgb, DataError> {
    decode_held(bytes, options).map(|(image, _)| image)
}

/// Effect of Pillow's mode for an image on its resizing before it becomes RGB.
pub(crate) enum Held {
    /// Filtered as the RGB image would be: L, RGB.
    Filtered,
    /// CMYK: Pillow filters the four channels, so that the RGB image's view is Pillow's within a level or two only.
    Cmyk,
    /// 1 and P: the nearest pixel is taken.
    Nearest,
    /// LA and RGBA: filtered with colours weighted by this alpha, `[height, width]`.
    Alpha(Vec<u8>),
    /// I;16: these levels, `[height, width]`, are filtered and clipped last.
    Gray16(Vec<u16>),
}

impl Held {
    /// The image less `border` pixels at each side.
    pub(crate) fn without_border(self, image: Rgb, border: u32) -> Result<(Rgb, Held), DataError> {
        let (width, height) = (image.width, image.height);
        let less = |side: u32| side.checked_sub(border.saturating_mul(2)).filter(|&side| side > 0);
        let Some((w, h)) = less(width).zip(less(height)) else {
            return Err(DataError::Image(format!(
                "the image has {width} x {height} pixels, and none is left within a border of {border}"
            )));
        };
        let held = match self {
            Held::Alpha(alpha) => Held::Alpha(inside(&alpha, [width, w, h], border, 1)),
            Held::Gray16(gray) => Held::Gray16(inside(&gray, [width, w, h], border, 1)),
            held => held,
        };
        let pixels = inside(&image.pixels, [width, w, h], border, 3);
        Ok((Rgb { width: w, height: h, pixels }, held))
    }
}

/// The `w` x `h` pixels within a border of an image of `width`.
fn inside<T: Copy>(all: &[T], sizes: [u32; 3], border: u32, channels: usize) -> Vec<T> {
    let [width, w, h] = sizes.map(|size| size as usize);
    let border = border as usize;
    let rows = all.chunks_exact(width * channels).skip(border).take(h);
    rows.flat_map(|row| &row[border * channels..(border + w) * channels]).copied().collect()
}

/// [`decode_with`], and how Pillow would have held the image.
pub(crate) fn decode_held(bytes: &[u8], options: &DecodeOptions) -> Result<(Rgb, Held), DataError> {
    let (mut image, mut held) = match open(bytes, options.max_pixels)? {
        Opened::Jpeg(scans) => decode_jpeg(bytes, *scans)?,
        Opened::Png(decoder) => {
            // Depth and colour type, at the same place in every PNG; the decoder hides palettes and transparent colours.
            let header = (bytes.get(24).copied(), bytes.get(25).copied());
            let (image, held) = read(*decoder, header == (Some(16), Some(0)))?;
            let held = match (header, held) {
                ((_, Some(3)) | (Some(1), _), _) => Held::Nearest,
                // A transparent colour is not looked at.
                ((_, Some(0 | 2)), Held::Alpha(_)) => Held::Filtered,
                (_, held) => held,
            };
            (image, held)
        }
        Opened::WebP(decoder) => read(decoder, false)?,
        Opened::Gif(decoder, frame) => decode_gif(*decoder, frame)?,
    };
    if options.orient
        && let Some(orientation) = orientation(bytes, guess(bytes)?)
        && orientation != Orientation::NoTransforms
    {
        (image, held) = turn(image, held, orientation)?;
    }
    Ok((image, held))
}

fn turn(image: Rgb, held: Held, orientation: Orientation) -> Result<(Rgb, Held), DataError> {
    let missing = || damaged("image", "it has too few pixels");
    let (width, height) = (image.width, image.height);
    let held = match held {
        Held::Alpha(alpha) => {
            let alpha = GrayImage::from_raw(width, height, alpha).ok_or_else(missing)?;
            let mut alpha = DynamicImage::ImageLuma8(alpha);
            alpha.apply_orientation(orientation);
            Held::Alpha(alpha.into_bytes())
        }
        Held::Gray16(gray) => {
            let gray = ImageBuffer::from_raw(width, height, gray).ok_or_else(missing)?;
            let mut gray = DynamicImage::ImageLuma16(gray);
            gray.apply_orientation(orientation);
            Held::Gray16(gray.into_luma16().into_raw())
        }
        held => held,
    };
    let pixels = RgbImage::from_raw(width, height, image.pixels).ok_or_else(missing)?;
    let mut pixels = DynamicImage::ImageRgb8(pixels);
    pixels.apply_orientation(orientation);
    let (width, height) = (pixels.width(), pixels.height());
    Ok((Rgb { width, height, pixels: pixels.into_bytes() }, held))
}

/// The (width, height) in the header.
///
/// # Errors
/// As [`decode`], as far as the header tells.
pub fn dimensions(bytes: &[u8]) -> Result<(u32, u32), DataError> {
    Ok(open(bytes, MAX_PIXELS)?.dimensions())
}

/// An image whose header was read and found to be of a bearable size.
enum Opened<'a> {
    Jpeg(Box<Scans<'a>>),
    Png(Box<PngDecoder<Cursor<Vec<u8>>>>),
    WebP(WebPDecoder<Cursor<&'a [u8]>>),
    Gif(Box<gif::Decoder<&'a [u8]>>, Frame),
}

/// A GIF's first frame and the canvas that it lies on.
struct Frame {
    /// (width, height) of the screen, enlarged where the frame reaches beyond it.
    canvas: (u32, u32),
    left: usize,
    top: usize,
    columns: usize,
    rows: usize,
    transparent: Option<u8>,
    palette: Option<Vec<u8>>,
}

impl Opened<'_> {
    fn dimensions(&self) -> (u32, u32) {
        match self {
            Opened::Jpeg(scans) => (scans.width, scans.height),
            Opened::Png(decoder) => decoder.dimensions(),
            Opened::WebP(decoder) => decoder.dimensions(),
            Opened::Gif(_, frame) => frame.canvas,
        }
    }
}

fn guess(bytes: &[u8]) -> Result<ImageFormat, DataError> {
    use ImageFormat::{Gif, Jpeg, Png, WebP};
    match image::guess_format(bytes) {
        Ok(format @ (Gif | Jpeg | Png | WebP)) => Ok(format),
        _ if bytes.is_empty() => Err(DataError::Image("the image file is empty".into())),
        _ => Err(DataError::Image("not a PNG, JPEG, WebP or GIF image".into())),
    }
}

fn open(bytes: &[u8], max_pixels: u64) -> Result<Opened<'_>, DataError> {
    let opened = match guess(bytes)? {
        ImageFormat::Jpeg => {
            Opened::Jpeg(Box::new(Scans::open(bytes).map_err(|e| damaged("JPEG", e))?))
        }
        ImageFormat::WebP => {
            Opened::WebP(WebPDecoder::new(Cursor::new(bytes)).map_err(|e| damaged("WebP", e))?)
        }
        ImageFormat::Gif => {
            let mut options = gif::DecodeOptions::new();
            options.set_color_output(ColorOutput::Indexed);
            options.set_memory_limit(gif::MemoryLimit::Unlimited);
            let mut decoder = options.read_info(bytes).map_err(|e| damaged("GIF", e))?;
            let screen = (u32::from(decoder.width()), u32::from(decoder.height()));
            let frame = decoder.next_frame_info().map_err(|e| damaged("GIF", e))?;
            let frame = frame.ok_or_else(|| damaged("GIF", "it has no frame"))?;
            let [left, top] = [frame.left, frame.top].map(u32::from);
            let [columns, rows] = [frame.width, frame.height].map(u32::from);
            let frame = Frame {
                // Pillow's, and browsers'.
                canvas: (screen.0.max(left + columns), screen.1.max(top + rows)),
                left: left as usize,
                top: top as usize,
                columns: columns as usize,
                rows: rows as usize,
                transparent: frame.transparent,
                palette: frame.palette.clone(),
            };
            Opened::Gif(Box::new(decoder), frame)
        }
        _ => {
            let file = Cursor::new(png::essential(bytes)?);
            let decoder = PngDecoder::new(file).map_err(|e| damaged("PNG", e))?;
            Opened::Png(Box::new(decoder))
        }
    };
    let (width, height) = opened.dimensions();
    if width == 0 || height == 0 {
        return Err(DataError::Image(format!("the image has {width} x {height} pixels")));
    }
    if u64::from(width) * u64::from(height) > max_pixels.min(1 << 32) {
        return Err(DataError::Image(format!(
            "the image claims {width} x {height} pixels, more than the {max_pixels} allowed"
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

fn decode_jpeg(bytes: &[u8], scans: Scans<'_>) -> Result<(Rgb, Held), DataError> {
    let (width, height) = (scans.width, scans.height);
    let mut pixels = vec![];
    if let Some(jpeg) = Jpeg::parse(bytes)
        && jpeg.decode(CropBox::whole(width, height), 1, &mut pixels).is_some()
    {
        return Ok((checked("JPEG", width, height, pixels)?, Held::Filtered));
    }
    let held = if scans.cmyk() { Held::Cmyk } else { Held::Filtered };
    let pixels = scans.decode().map_err(|e| damaged("JPEG", e))?;
    Ok((checked("JPEG", width, height, pixels)?, held))
}

/// The pixels, and how they are held. `gray16`: 16-bit gray without alpha, which is clipped.
fn read(decoder: impl ImageDecoder, gray16: bool) -> Result<(Rgb, Held), DataError> {
    let (width, height) = decoder.dimensions();
    let color = decoder.color_type();
    // Bounded by the limit in `open`.
    let mut raw = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut raw).map_err(|e| damaged("image", e))?;
    if gray16 {
        let (words, _) = raw.as_chunks::<2>();
        // A transparent level makes it two channels here.
        let step = usize::from(color.channel_count());
        let words = words.iter().step_by(step).map(|&word| u16::from_ne_bytes(word));
        let gray: Vec<u16> = words.collect();
        let pixels = gray.iter().flat_map(|&level| [level.min(255) as u8; 3]).collect();
        return Ok((checked("image", width, height, pixels)?, Held::Gray16(gray)));
    }
    let raw = match color {
        ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16 => high_bytes(&raw),
        _ => raw,
    };
    let (pixels, alpha) = match color {
        ColorType::L8 | ColorType::L16 => (to_rgb::<1>(&raw, true), None),
        ColorType::La8 | ColorType::La16 => (to_rgb::<2>(&raw, true), Some(last::<2>(&raw))),
        ColorType::Rgb8 | ColorType::Rgb16 => (raw, None),
        ColorType::Rgba8 | ColorType::Rgba16 => (to_rgb::<4>(&raw, false), Some(last::<4>(&raw))),
        other => {
            return Err(DataError::Image(format!("pixels of type {other:?} are not supported")));
        }
    };
    // An opaque image is as one without alpha.
    let alpha = alpha.filter(|alpha| alpha.iter().any(|&a| a != 255));
    Ok((checked("image", width, height, pixels)?, alpha.map_or(Held::Filtered, Held::Alpha)))
}

/// The first frame on its canvas, which Pillow fills with the transparent colour, or the palette's first.
fn decode_gif(mut decoder: gif::Decoder<&[u8]>, frame: Frame) -> Result<(Rgb, Held), DataError> {
    let (width, height) = frame.canvas;
    let palette = frame.palette.as_deref().or(decoder.global_palette());
    let palette = palette.ok_or_else(|| damaged("GIF", "it has no palette"))?.to_vec();
    let (colours, _) = palette.as_chunks::<3>();
    // A palette that is the gray scale is none to Pillow, and its image gray.
    let gray = colours.iter().enumerate().all(|(i, &[r, g, b])| [r, g, b] == [i as u8; 3]);
    let mut indices = vec![frame.transparent.unwrap_or(0); width as usize * height as usize];
    if frame.columns > 0 && frame.rows > 0 {
        let mut buffer = vec![0; frame.columns * frame.rows];
        decoder.read_into_buffer(&mut buffer).map_err(|e| damaged("GIF", e))?;
        for (row, from) in buffer.chunks_exact(frame.columns).enumerate() {
            let start = (frame.top + row) * width as usize + frame.left;
            indices[start..start + frame.columns].copy_from_slice(from);
        }
    }
    // What the palette lacks is black.
    let colour = |&i: &u8| colours.get(usize::from(i)).copied().unwrap_or_default();
    let pixels = indices.iter().flat_map(colour).collect();
    let image = checked("GIF", width, height, pixels)?;
    Ok((image, if gray { Held::Filtered } else { Held::Nearest }))
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

/// The last of each pixel's `C` channels.
fn last<const C: usize>(raw: &[u8]) -> Vec<u8> {
    let (pixels, _) = raw.as_chunks::<C>();
    pixels.iter().map(|p| p[C - 1]).collect()
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
    fn sixteen_bits_keep_their_high_byte_and_gray_ones_are_clipped() {
        let words: Vec<u16> = vec![0, 255, 256, 0x1234, 0xff00, 0xffff];
        let raw: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let encode = |width, color| {
            let mut png = vec![];
            PngEncoder::new(&mut png).write_image(&raw, width, 1, color).unwrap();
            decode(&png).unwrap().pixels
        };
        let high = [0u8, 0, 1, 0x12, 0xff, 0xff];
        let clipped = [0u8, 255, 255, 255, 255, 255];
        assert_eq!(encode(6, ExtendedColorType::L16), clipped.map(|b| [b; 3]).concat());
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

    #[test]
    fn the_limit_of_pixels_is_an_option_and_read_from_the_header() {
        let png = crate::testing::png(5, 3, [1, 2, 3]);
        let options = |max_pixels| DecodeOptions { max_pixels, ..DecodeOptions::default() };
        assert!(decode_with(&png, &options(15)).is_ok());
        // The pixels themselves are cut away: nothing but the header is looked at.
        let e = decode_with(&png[..png.len() - 20], &options(14)).unwrap_err().to_string();
        assert!(e.contains("5 x 3 pixels, more than the 14 allowed"), "{e}");
    }
}
