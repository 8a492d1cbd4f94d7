//! Pillow's resizing: antialiased filters in two passes with whole levels in between, or the nearest pixel.
//!
//! [`rgb`] is fast, and a fraction of a percent of its bytes is off by a level, a few in a million by two: less than what
//! JPEG loses, and what training draws. [`exact`] has Pillow's integers (its `src/libImaging/Resample.c`): for files that
//! lose nothing, and for colours weighted by a low alpha, where a level of error would be multiplied.

use std::cell::RefCell;
use std::f64::consts::PI;

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ImageView, ResizeAlg, ResizeOptions, Resizer};

use crate::error::DataError;

/// How pixels are made of others; all but the nearest are antialiased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// The mean of those covered.
    Box,
    /// Linear.
    Bilinear,
    /// Pillow's Hamming window.
    Hamming,
    /// The cubic with a = -0.5; torch's own has -0.75 and is not meant.
    #[default]
    Bicubic,
    /// Lanczos of three lobes.
    Lanczos,
}

impl Filter {
    /// Its weight at `x` source pixels from the centre, where nothing shrinks.
    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) };
        let far = x.abs();
        match self {
            Filter::Nearest | Filter::Box => f64::from(x > -0.5 && x <= 0.5),
            Filter::Bilinear => (1.0 - far).max(0.0),
            Filter::Hamming if far >= 1.0 => 0.0,
            // Pillow has its constants in f32.
            Filter::Hamming => {
                sinc(far) * (f64::from(0.54f32) + f64::from(0.46f32) * (PI * far).cos())
            }
            Filter::Bicubic if far < 1.0 => (1.5 * far - 2.5) * far * far + 1.0,
            Filter::Bicubic if far < 2.0 => (((far - 5.0) * far + 8.0) * far - 4.0) * -0.5,
            Filter::Bicubic => 0.0,
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Lanczos => 0.0,
        }
    }

    /// Where its weight ends.
    fn support(self) -> f64 {
        match self {
            Filter::Nearest | Filter::Box => 0.5,
            Filter::Bilinear | Filter::Hamming => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn algorithm(self) -> ResizeAlg {
        ResizeAlg::Convolution(match self {
            Filter::Nearest => return ResizeAlg::Nearest,
            Filter::Box => FilterType::Box,
            Filter::Bilinear => FilterType::Bilinear,
            Filter::Hamming => FilterType::Hamming,
            Filter::Bicubic => FilterType::CatmullRom,
            Filter::Lanczos => FilterType::Lanczos3,
        })
    }
}

/// A side of an image, resized, and the part of it that is wanted. Only that is computed: what is cut away from a panorama
/// may be a thousand times more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Side {
    /// Pixels of the image.
    pub source: u32,
    /// Pixels of the resized image.
    pub full: u64,
    /// The first of them that is wanted.
    pub start: u64,
    /// How many are.
    pub len: u32,
}

/// The first source pixel of a pixel, and the weights of those from there on, in units of 2^-22.
type Taps = (usize, Vec<i32>);

const BITS: u32 = 22;
const HALF: i32 = 1 << (BITS - 1);

impl Side {
    /// Source pixels a pixel.
    fn scale(&self) -> f64 {
        f64::from(self.source) / self.full as f64
    }

    /// The wanted part in source pixels: where it begins, and its length.
    pub(crate) fn part(&self) -> (f64, f64) {
        let start = self.start as f64 * self.scale();
        // Rounding must not put the end a hair beyond the image.
        (start, (f64::from(self.len) * self.scale()).min(f64::from(self.source) - start))
    }

    fn taps(&self, filter: Filter) -> Vec<Taps> {
        let stretch = self.scale().max(1.0);
        let reach = filter.support() * stretch;
        let tap = |at: u64| {
            let centre = (at as f64 + 0.5) * self.scale();
            let first = (centre - reach + 0.5).max(0.0) as usize;
            let end = ((centre + reach + 0.5) as usize).min(self.source as usize);
            let weights = (first..end).map(|x| filter.weight((x as f64 - centre + 0.5) / stretch));
            let weights: Vec<f64> = weights.collect();
            let sum: f64 = weights.iter().sum();
            let sum = if sum == 0.0 { 1.0 } else { sum };
            (
                first,
                weights.iter().map(|w| (w / sum * f64::from(1 << BITS)).round() as i32).collect(),
            )
        };
        (self.start..).take(self.len as usize).map(tap).collect()
    }

    /// The source pixel of each pixel, as Pillow steps through them.
    pub(crate) fn nearest(&self) -> impl Iterator<Item = usize> {
        let (scale, last) = (self.scale(), self.source as usize - 1);
        let all = std::iter::successors(Some(0.5 * scale), move |at| Some(at + scale));
        let picked = all.skip(self.start as usize).take(self.len as usize);
        picked.map(move |at| (at as usize).min(last))
    }
}

/// Which pass comes first; what overshoots at edges is clamped in between, so that it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// Each row is resized, then each column: Pillow before version 13.
    Rows,
    /// Columns where the height loses more than twice as many pixels as the width, else rows: Pillow 13.0.0
    /// (python-pillow/Pillow#9549; the factor is measured).
    Cheaper,
}

impl First {
    fn columns(self, [x, y]: [Side; 2]) -> bool {
        let lost = |side: Side| i64::from(side.source) - side.full as i64;
        self == First::Cheaper && lost(y) > 0 && lost(y) > 2 * lost(x)
    }
}

/// Pixels to resize: a part of an image, or all of it. One type for both, because the resizer is compiled anew for each.
pub(crate) type View<'a> = TypedCroppedImage<'a, TypedImageRef<'a, U8x3>>;

/// The part of `[width, height]` pixels, rows of RGB, that begins at `[left, top]` and is `part` in size. Nothing outside it
/// is looked at.
///
/// # Errors
/// When it is empty or reaches beyond the pixels.
pub(crate) fn view(
    pixels: &[u8],
    [width, height]: [u32; 2],
    [left, top]: [u32; 2],
    part: [u32; 2],
) -> Result<View<'_>, DataError> {
    let failed = |e: &dyn std::fmt::Display| {
        let [w, h] = part;
        DataError::Image(format!("{w} x {h} pixels at {left}, {top} of {width} x {height}: {e}"))
    };
    let whole = TypedImageRef::from_buffer(width, height, pixels).map_err(|e| failed(&e))?;
    TypedCroppedImage::new(whole, left, top, part[0], part[1]).map_err(|e| failed(&e))
}

/// `source` resized, `[y.len, x.len, 3]` bytes, near Pillow's.
pub(crate) fn rgb(
    source: &View<'_>,
    sides: [Side; 2],
    filter: Filter,
    first_pass: First,
) -> Result<Vec<u8>, DataError> {
    thread_local! {
        /// Keeps its buffers, and the rows between the passes, from one image to the next.
        static RESIZER: RefCell<(Resizer, Vec<u8>)> = RefCell::new((Resizer::new(), vec![]));
    }
    let [(left, width), (top, height)] = sides.map(|side| side.part());
    let [columns, rows] = sides.map(|side| side.len);
    let failed = |e: &dyn std::fmt::Display| DataError::Image(format!("cannot resize: {e}"));
    let options = ResizeOptions::new().resize_alg(filter.algorithm()).use_alpha(false);
    let mut pixels = vec![0; 3 * columns as usize * rows as usize];
    let mut out =
        TypedImage::<U8x3>::from_buffer(columns, rows, &mut pixels).map_err(|e| failed(&e))?;
    RESIZER.with_borrow_mut(|(resizer, between)| {
        if first_pass.columns(sides) {
            // The resizer itself takes columns first.
            let options = options.crop(left, top, width, height);
            return resizer.resize_typed(source, &mut out, &options).map_err(|e| failed(&e));
        }
        // Rows that no pixel of the result reaches aren't computed: of a sliver they may be millions.
        let reach = filter.support() * sides[1].scale().max(1.0) + 1.0;
        let first = (top - reach).max(0.0) as u32;
        let end = ((top + height + reach) as u32).saturating_add(1).min(source.height());
        let top = top - f64::from(first);
        let height = height.min(f64::from(end - first) - top);
        between.resize(3 * columns as usize * (end - first) as usize, 0);
        let mut narrow = TypedImage::<U8x3>::from_buffer(columns, end - first, between)
            .map_err(|e| failed(&e))?;
        let across = options.crop(left, f64::from(first), width, f64::from(end - first));
        resizer.resize_typed(source, &mut narrow, &across).map_err(|e| failed(&e))?;
        let down = options.crop(0.0, top, f64::from(columns), height);
        let size = [columns, end - first];
        resizer
            .resize_typed(&view(between, size, [0; 2], size)?, &mut out, &down)
            .map_err(|e| failed(&e))
    })?;
    Ok(pixels)
}

/// Type of a channel, and how Pillow sums it.
pub(crate) trait Level: Copy {
    /// A sum of levels, in units of 2^-22.
    type Sum: Copy + From<i32>;
    fn add(self, weight: i32, sum: &mut Self::Sum);
    /// A sum, rounded beforehand, cut to the range of levels.
    fn of(sum: Self::Sum) -> Self;
}

impl Level for u8 {
    type Sum = i32;
    // No filter's weights sum up to twice a level; wrapping is for the vectors of the machine.
    fn add(self, weight: i32, sum: &mut i32) {
        *sum = sum.wrapping_add(weight.wrapping_mul(self.into()));
    }
    fn of(sum: i32) -> u8 {
        (sum >> BITS).clamp(0, 255) as u8
    }
}

impl Level for u16 {
    type Sum = i64;
    fn add(self, weight: i32, sum: &mut i64) {
        *sum += i64::from(weight) * i64::from(self);
    }
    fn of(sum: i64) -> u16 {
        (sum >> BITS).clamp(0, u16::MAX.into()) as u16
    }
}

/// `pixels` of `C` channels resized by Pillow 13's own integers: `[y.len, x.len]`.
pub(crate) fn exact<T: Level, const C: usize>(
    pixels: &[[T; C]],
    [x, y]: [Side; 2],
    filter: Filter,
    first_pass: First,
) -> Vec<[T; C]> {
    let width = x.source as usize;
    let (columns, mut rows) = (x.taps(filter), y.taps(filter));
    if first_pass.columns([x, y]) {
        return across(&down(pixels, width, &rows), width, &columns);
    }
    let first = rows.first().map_or(0, |(at, _)| *at);
    let end = rows.last().map_or(0, |(at, weights)| at + weights.len());
    rows.iter_mut().for_each(|(at, _)| *at -= first);
    down(&across(&pixels[first * width..end * width], width, &columns), columns.len(), &rows)
}

fn across<T: Level, const C: usize>(
    pixels: &[[T; C]],
    width: usize,
    columns: &[Taps],
) -> Vec<[T; C]> {
    let mut out = Vec::with_capacity(pixels.len() / width * columns.len());
    for row in pixels.chunks_exact(width) {
        out.extend(columns.iter().map(|(at, weights)| {
            let mut sums = [T::Sum::from(HALF); C];
            for (pixel, &weight) in row[*at..].iter().zip(weights) {
                sums.iter_mut().zip(pixel).for_each(|(sum, level)| level.add(weight, sum));
            }
            sums.map(T::of)
        }));
    }
    out
}

fn down<T: Level, const C: usize>(pixels: &[[T; C]], width: usize, rows: &[Taps]) -> Vec<[T; C]> {
    let mut out = Vec::with_capacity(rows.len() * width);
    let mut sums = vec![[T::Sum::from(HALF); C]; width];
    for (at, weights) in rows {
        sums.fill([T::Sum::from(HALF); C]);
        for (row, &weight) in pixels[at * width..].chunks_exact(width).zip(weights) {
            let levels = sums.as_flattened_mut().iter_mut().zip(row.as_flattened());
            levels.for_each(|(sum, level)| level.add(weight, sum));
        }
        out.extend(sums.iter().map(|sums| sums.map(T::of)));
    }
    out
}
