//! Evaluation views: the whole image at the model's size, as open_clip, timm and transformers make them.

use std::fmt;

use crate::error::DataError;
use crate::image::crop::CropBox;
use crate::image::decode::{DecodeOptions, Held, Rgb, decode_held};
use crate::image::resize::{self, Filter, First, Side};
use crate::transform::pixels::{empty_image, nearest, resized};
use crate::transform::place::Placement;

/// How an image is brought to the size of the view, before its centre is cut out or what it lacks is filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fit {
    /// The shorter side fits, the longer one is cut.
    #[default]
    Shortest,
    /// The longer side fits, what the shorter one lacks is filled.
    Longest,
    /// Both sides fit, whatever becomes of the proportions.
    Squash,
}

/// Whose way is followed where libraries differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Convention {
    /// An image is resized as Pillow holds it and made RGB last.
    #[default]
    OpenClip,
    /// Made RGB first.
    Timm,
    /// Made RGB first, on white where there is an alpha channel (transformers 5); rows are resized before columns, and a
    /// centre between two pixels goes to the upper left, not to the even one.
    Hf,
}

/// The evaluation transform; by default torchvision's `Resize(size, BICUBIC)` and `CenterCrop(size)` on a PIL image.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalTransform {
    /// Side of the result, in pixels.
    pub size: u32,
    /// Pixels cut from each side before anything else: ObjectNet's images have a red frame of two (wise-ft cuts it).
    pub border: u32,
    /// The side that is resized to `size / crop_pct`.
    pub fit: Fit,
    /// By which filter.
    pub filter: Filter,
    /// The view's share of the resized image's side, in (0, 1]: timm's name for it.
    pub crop_pct: f64,
    /// Red, green and blue of what the image doesn't cover.
    pub fill: [u8; 3],
    /// Whose way is followed where libraries differ.
    pub convention: Convention,
}

impl Default for EvalTransform {
    fn default() -> EvalTransform {
        EvalTransform::new(224)
    }
}

/// For the reader of a report: what is done to an image.
impl fmt::Display for EvalTransform {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let EvalTransform { size, border, fit, filter, fill, convention, .. } = self;
        write!(f, "{size} x {size}, ")?;
        if *border > 0 {
            write!(f, "{border} pixels cut from each side, ")?;
        }
        match convention {
            Convention::OpenClip => {}
            Convention::Timm => write!(f, "made RGB, ")?,
            Convention::Hf => write!(f, "made RGB on white, ")?,
        }
        let side = self.side();
        write!(
            f,
            "{} resized{} ({}{})",
            match fit {
                Fit::Shortest => "shorter side",
                Fit::Longest => "longer side",
                Fit::Squash => "both sides",
            },
            if side > u64::from(*size) { format!(" to {side}") } else { String::new() },
            format!("{filter:?}").to_lowercase(),
            if *filter == Filter::Nearest { "" } else { ", antialiased" },
        )?;
        if *fit == Fit::Shortest || side > u64::from(*size) {
            write!(f, ", centre crop")?;
        }
        if *fit == Fit::Longest {
            write!(f, ", the rest filled with {fill:?}")?;
        }
        Ok(())
    }
}

impl EvalTransform {
    /// The shorter side at `size`, bicubic, and its centre.
    pub fn new(size: u32) -> EvalTransform {
        EvalTransform {
            size,
            border: 0,
            fit: Fit::Shortest,
            filter: Filter::Bicubic,
            crop_pct: 1.0,
            fill: [0; 3],
            convention: Convention::OpenClip,
        }
    }

    /// The view of an image file, `[size, size, 3]` bytes. In open_clip's way an image is resized as Pillow holds it and
    /// made RGB last: palette and bilevel images by the nearest pixel, transparent ones with their alpha as
    /// weight, 16-bit gray before it is clipped. Pillow's own integers are used but for CMYK images, which are [`apply`](EvalTransform::apply)'s.
    ///
    /// # Errors
    /// As [`decode`](crate::decode()), or when nothing is left within the border.
    pub fn view(&self, file: &[u8], options: &DecodeOptions) -> Result<Vec<u8>, DataError> {
        Ok(self.placed(file, options)?.0)
    }

    /// As [`view`](EvalTransform::view), with how the image lies in it.
    ///
    /// # Errors
    /// As [`view`](EvalTransform::view).
    pub fn placed(
        &self,
        file: &[u8],
        options: &DecodeOptions,
    ) -> Result<(Vec<u8>, Placement), DataError> {
        let (image, held) = decode_held(file, options)?;
        let (image, held) = match self.border {
            0 => (image, held),
            border => held.without_border(image, border)?,
        };
        let sides = self.sides(&image)?;
        let (image, held) = match (self.convention, held) {
            (_, Held::Cmyk) => (image, Held::Cmyk),
            (Convention::OpenClip, held) => (image, held),
            (Convention::Hf, Held::Alpha(alpha)) => (on_white(image, &alpha), Held::Filtered),
            (Convention::Timm | Convention::Hf, _) => (image, Held::Filtered),
        };
        let part = match held {
            Held::Cmyk => self.resized(&image, sides)?,
            _ if self.filter == Filter::Nearest => self.resized(&image, sides)?,
            // Pillow then leaves an image as it is, colours under an alpha of 0 included.
            _ if sides.iter().all(|side| side.full == u64::from(side.source)) => {
                self.resized(&image, sides)?
            }
            Held::Filtered => {
                let (pixels, _) = image.pixels.as_chunks::<3>();
                resize::exact(pixels, sides, self.filter, self.first()).into_flattened()
            }
            Held::Nearest => nearest(&image, [0; 2], sides),
            Held::Alpha(alpha) => {
                let (pixels, _) = image.pixels.as_chunks::<3>();
                let weighted = pixels.iter().zip(&alpha);
                let weighted = weighted.map(|(&[r, g, b], &a)| {
                    let [r, g, b] = [r, g, b].map(|c| times(c, a));
                    [r, g, b, a]
                });
                let weighted: Vec<[u8; 4]> = weighted.collect();
                let part = resize::exact(&weighted, sides, self.filter, self.first());
                part.iter().flat_map(|&[r, g, b, a]| [r, g, b].map(|c| over(c, a))).collect()
            }
            Held::Gray16(gray) => {
                let (gray, _) = gray.as_chunks::<1>();
                let part = resize::exact(gray, sides, self.filter, self.first());
                part.iter().flat_map(|&[gray]| [gray.min(255) as u8; 3]).collect()
            }
        };
        Ok((self.filled(part, sides), self.placement(sides)))
    }

    /// How the image lies in the view.
    fn placement(&self, sides: [Side; 2]) -> Placement {
        let [(left, width), (top, height)] = sides.map(|side| side.part());
        let border = f64::from(self.border);
        let part = [border + left, border + top, width, height];
        Placement { part, at: self.covered(sides), size: self.size, mirrored: false }
    }

    /// The part of the view that the image covers.
    fn covered(&self, [x, y]: [Side; 2]) -> CropBox {
        let (width, height) = (x.len, y.len);
        CropBox { left: (self.size - width) / 2, top: (self.size - height) / 2, width, height }
    }

    /// The view of an RGB image: `[size, size, 3]` bytes, a few in a thousand off by a level.
    ///
    /// # Errors
    /// When the image has no pixels, or none within the border.
    pub fn apply(&self, image: &Rgb) -> Result<Vec<u8>, DataError> {
        if self.border > 0 {
            let (image, _) = Held::Filtered.without_border(image.clone(), self.border)?;
            return EvalTransform { border: 0, ..self.clone() }.apply(&image);
        }
        let sides = self.sides(image)?;
        Ok(self.filled(self.resized(image, sides)?, sides))
    }

    fn resized(&self, image: &Rgb, sides: [Side; 2]) -> Result<Vec<u8>, DataError> {
        resized(image, [0; 2], sides, self.filter, self.first())
    }

    fn first(&self) -> First {
        match self.convention {
            Convention::OpenClip | Convention::Timm => First::Cheaper,
            Convention::Hf => First::Rows,
        }
    }

    /// The side that `fit` is about, once resized: timm's floor.
    fn side(&self) -> u64 {
        (f64::from(self.size) / self.crop_pct).floor() as u64
    }

    /// Width and height of the resized image, and the part of them that is in the view.
    fn sides(&self, image: &Rgb) -> Result<[Side; 2], DataError> {
        let [width, height] = [image.width, image.height];
        if width == 0 || height == 0 {
            return Err(empty_image(image));
        }
        let (side, w, h) = (self.side(), u64::from(width), u64::from(height));
        let resized = match self.fit {
            Fit::Squash => [side, side],
            // Integer division, as torchvision's int(size * long / short).
            Fit::Shortest if w <= h => [side, side * h / w],
            Fit::Shortest => [side * w / h, side],
            Fit::Longest => {
                let ratio = w.max(h) as f64 / side as f64;
                // Python rounds halves to even. A sliver keeps a pixel; theirs is an error.
                [w, h].map(|x| ((x as f64 / ratio).round_ties_even() as u64).max(1))
            }
        };
        let part = |source: u32, full: u64| {
            let middle = full.saturating_sub(self.size.into()) as f64 / 2.0;
            let start = match self.convention {
                Convention::OpenClip | Convention::Timm => middle.round_ties_even(),
                Convention::Hf => middle.floor(),
            };
            Side { source, full, start: start as u64, len: full.min(self.size.into()) as u32 }
        };
        Ok([part(width, resized[0]), part(height, resized[1])])
    }

    /// The view, of which the image covers `part`, in its middle.
    fn filled(&self, part: Vec<u8>, [x, y]: [Side; 2]) -> Vec<u8> {
        let size = self.size as usize;
        let CropBox { left, top, width, height } = self.covered([x, y]);
        let [left, top, width, height] = [left, top, width, height].map(|side| side as usize);
        if (width, height) == (size, size) {
            return part;
        }
        let mut view = self.fill.repeat(size * size);
        for (row, from) in part.chunks_exact(3 * width).enumerate() {
            view[3 * ((top + row) * size + left)..][..3 * width].copy_from_slice(from);
        }
        view
    }
}

/// The image on white paper, in Pillow's integers (its `alpha_composite`).
fn on_white(mut image: Rgb, alpha: &[u8]) -> Rgb {
    let (pixels, _) = image.pixels.as_chunks_mut::<3>();
    for (pixel, &alpha) in pixels.iter_mut().zip(alpha) {
        let alpha = u32::from(alpha);
        *pixel = pixel.map(|channel| {
            let sum = (u32::from(channel) * alpha + 255 * (255 - alpha) + 128) << 7;
            (((sum >> 8) + sum) >> 15) as u8
        });
    }
    image
}

/// Pillow's product of a channel and an alpha.
fn times(channel: u8, alpha: u8) -> u8 {
    let product = u32::from(channel) * u32::from(alpha) + 128;
    (((product >> 8) + product) >> 8) as u8
}

/// And the way back.
fn over(channel: u8, alpha: u8) -> u8 {
    match alpha {
        0 | 255 => channel,
        alpha => (u32::from(channel) * 255 / u32::from(alpha)).min(255) as u8,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::ramp;

    #[test]
    fn the_centre_of_an_image_of_any_size_is_within_it() {
        for size in [48, 224, 336] {
            let transform = EvalTransform::new(size);
            for width in 1..600 {
                for height in 1..600 {
                    let image = Rgb { width, height, pixels: vec![] };
                    for side in transform.sides(&image).unwrap() {
                        let (start, len) = side.part();
                        let inside = start + len <= f64::from(side.source);
                        assert!(inside, "{width} x {height} at {size}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_border_is_cut_before_anything_else() {
        let inner = ramp(40, 30);
        let mut framed = Rgb { width: 44, height: 34, pixels: [255, 0, 0].repeat(44 * 34) };
        for (row, from) in inner.pixels.chunks_exact(40 * 3).enumerate() {
            framed.pixels[((row + 2) * 44 + 2) * 3..][..40 * 3].copy_from_slice(from);
        }
        let cut = EvalTransform { border: 2, ..EvalTransform::new(24) };
        assert_eq!(cut.apply(&framed).unwrap(), EvalTransform::new(24).apply(&inner).unwrap());
        assert!(cut.to_string().contains("2 pixels cut from each side"), "{cut}");
        let e = cut.apply(&ramp(4, 30)).unwrap_err().to_string();
        assert!(e.contains("4 x 30 pixels, and none is left within a border of 2"), "{e}");
    }
}
