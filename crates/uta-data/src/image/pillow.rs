//! Pillow's `ImageOps`, `ImageEnhance` and `Image.transform` on RGB bytes, in their own integers.
//!
//! Sources: Pillow's `ImageOps.py`, `ImageEnhance.py`, and `Blend.c`, `Convert.c`, `Filter.c` and `Geometry.c` in its
//! `libImaging`. (imageproc, the crate for such things, rounds elsewhere: its rotation is in f32, its equalisation of gray
//! images alone.) A view is `[H, W, 3]` bytes, changed in place.

use std::array;

use pulp::{Arch, NullaryFnOnce};

use crate::image::resize::Filter;

/// A new level for each level of a channel.
type Table = [u8; 256];

/// Each channel by its own table, made of its histogram.
fn point(view: &mut [u8], table: impl Fn([u32; 256]) -> Table) {
    let (pixels, _) = view.as_chunks_mut::<3>();
    let mut counts = [[0; 256]; 3];
    for pixel in pixels.iter() {
        (0..3).for_each(|c| counts[c][usize::from(pixel[c])] += 1);
    }
    let tables = counts.map(table);
    for pixel in pixels {
        *pixel = array::from_fn(|c| tables[c][usize::from(pixel[c])]);
    }
}

/// Every level by a rule.
fn levels(view: &mut [u8], rule: impl Fn(u8) -> u8) {
    view.iter_mut().for_each(|level| *level = rule(*level));
}

fn identity() -> Table {
    array::from_fn(|level| level as u8)
}

/// The darkest level of each channel becomes 0, the brightest 255.
pub(crate) fn autocontrast(view: &mut [u8]) {
    point(view, |counts| {
        let low = counts.iter().position(|&n| n > 0).unwrap_or(0);
        let high = counts.iter().rposition(|&n| n > 0).unwrap_or(0);
        if high <= low {
            return identity();
        }
        let scale = 255.0 / (high - low) as f64;
        let offset = -(low as f64) * scale;
        array::from_fn(|level| (level as f64 * scale + offset) as u8)
    });
}

/// Levels spread so that each is met about as often.
pub(crate) fn equalize(view: &mut [u8]) {
    point(view, |counts| {
        let last = counts.iter().rfind(|&&n| n > 0).unwrap_or(&0);
        let step = (counts.iter().sum::<u32>() - last) / 255;
        if step == 0 {
            return identity();
        }
        let mut below = step / 2;
        array::from_fn(|level| {
            let new = below / step;
            below += counts[level];
            new.min(255) as u8
        })
    });
}

pub(crate) fn invert(view: &mut [u8]) {
    levels(view, |level| !level);
}

/// Keeps the high `bits` of each level; none of them is black, as before Pillow 13, which refuses that.
pub(crate) fn posterize(view: &mut [u8], bits: u32) {
    let mask = !u8::MAX.checked_shr(bits).unwrap_or(0);
    levels(view, |level| level & mask);
}

/// Inverts the levels from `threshold` on.
pub(crate) fn solarize(view: &mut [u8], threshold: u32) {
    levels(view, |level| if u32::from(level) < threshold { level } else { !level });
}

/// Adds to the levels below 128: timm's, of a table as the others.
pub(crate) fn solarize_add(view: &mut [u8], add: u8) {
    levels(view, |level| if level < 128 { level.saturating_add(add) } else { level });
}

/// From `low` at factor 0 over `high` at 1 and beyond.
fn blend(low: u8, high: u8, factor: f32) -> u8 {
    let (low, high) = (f32::from(low), f32::from(high));
    // `as` cuts what overshoots.
    (low + factor * (high - low)) as u8
}

/// Rec. 601 luma, as `convert("L")`.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    let [r, g, b] = [r, g, b].map(u32::from);
    ((19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16) as u8
}

/// `ImageEnhance.Color`: gray at 0.
pub(crate) fn color(view: &mut [u8], factor: f32) {
    let (pixels, _) = view.as_chunks_mut::<3>();
    for pixel in pixels {
        let gray = luma(*pixel);
        *pixel = pixel.map(|level| blend(gray, level, factor));
    }
}

/// `ImageEnhance.Contrast`: the mean luma at 0.
pub(crate) fn contrast(view: &mut [u8], factor: f32) {
    let (pixels, _) = view.as_chunks::<3>();
    let sum: u64 = pixels.iter().map(|&pixel| u64::from(luma(pixel))).sum();
    let mean = (sum as f64 / pixels.len() as f64 + 0.5) as u8;
    levels(view, |level| blend(mean, level, factor));
}

/// `ImageEnhance.Brightness`: black at 0.
pub(crate) fn brightness(view: &mut [u8], factor: f32) {
    levels(view, |level| blend(0, level, factor));
}

/// `ImageEnhance.Sharpness`: blurred at 0, by a 3 x 3 kernel that leaves the border as it is.
pub(crate) fn sharpness(view: &mut [u8], width: usize, factor: f32) {
    const SIDE: f32 = 1.0 / 13.0;
    const MIDDLE: f32 = 5.0 / 13.0;
    let source = view.to_vec();
    let stride = 3 * width;
    let height = source.len() / stride;
    for y in 1..height.saturating_sub(1) {
        let row = |y: usize| &source[y * stride..][..stride];
        let (above, here, below) = (row(y - 1), row(y), row(y + 1));
        let out = &mut view[y * stride..][..stride];
        for i in 3..stride.saturating_sub(3) {
            // Sums in Pillow's order, from the row below upwards.
            let three = |row: &[u8], middle: f32| {
                f32::from(row[i - 3]) * SIDE
                    + f32::from(row[i]) * middle
                    + f32::from(row[i + 3]) * SIDE
            };
            let sum = 0.5 + three(below, SIDE) + three(here, MIDDLE) + three(above, SIDE);
            out[i] = blend(sum as u8, here[i], factor);
        }
    }
}

/// A view in which the pixel at (x, y) comes from (a x + b y + c, d x + e y + f) of this one, `[a, b, c, d, e, f]`; places
/// outside are filled. `filter` is the nearest pixel, bilinear or else bicubic (a = -1), and nothing is antialiased.
pub(crate) fn affine(
    view: &mut [u8],
    width: usize,
    matrix: [f64; 6],
    filter: Filter,
    fill: [u8; 3],
) {
    let source = view.to_vec();
    let (source, _) = source.as_chunks::<3>();
    let (out, _) = view.as_chunks_mut::<3>();
    if filter == Filter::Nearest {
        return nearest(source, out, width, matrix, fill);
    }
    let wide = |&[r, g, b]: &[u8; 3]| [f64::from(r), f64::from(g), f64::from(b), 0.0];
    let source: Vec<Wide> = source.iter().map(wide).collect();
    let source = &source[..];
    match filter {
        Filter::Bilinear => {
            Arch::new().dispatch(Between::<2> { source, out, width, matrix, fill });
        }
        _ => Arch::new().dispatch(Between::<4> { source, out, width, matrix, fill }),
    }
}

/// `angle` degrees against the clock around the centre: the [`affine`] matrix of `Image.rotate`.
pub(crate) fn rotation(angle: f64, width: f64, height: f64) -> [f64; 6] {
    let angle = -angle.rem_euclid(360.0).to_radians();
    // Python's round(x, 15): to the nearest decimal.
    let round = |x: f64| format!("{x:.15}").parse().unwrap_or(x);
    let (cos, sin): (f64, f64) = (round(angle.cos()), round(angle.sin()));
    let (x, y) = (width / 2.0, height / 2.0);
    [cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y]
}

/// Three channels and a lane that stays empty, as registers have four.
type Wide = [f64; 4];

/// Each pixel from N x N others, by the widest registers of the machine, which round as the narrow ones. Loops and no
/// closures: what isn't inlined falls back to the narrow ones.
struct Between<'a, const N: usize> {
    source: &'a [Wide],
    out: &'a mut [[u8; 3]],
    width: usize,
    matrix: [f64; 6],
    fill: [u8; 3],
}

impl<const N: usize> NullaryFnOnce for Between<'_, N> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Between { source, out, width, matrix: [a, b, c, d, e, f], fill } = self;
        let height = source.len() / width;
        for (y, row) in out.chunks_exact_mut(width).enumerate() {
            for (x, pixel) in row.iter_mut().enumerate() {
                let (x, y) = (x as f64 + 0.5, y as f64 + 0.5);
                let (x, y) = (a * x + b * y + c, d * x + e * y + f);
                if !(x >= 0.0 && x < width as f64 && y >= 0.0 && y < height as f64) {
                    *pixel = fill;
                    continue;
                }
                let ((columns, dx), (lines, dy)) = (around::<N>(x, width), around::<N>(y, height));
                let (mut pixels, mut rows) = ([[0.0; 4]; N], [[0.0; 4]; N]);
                for (row, line) in rows.iter_mut().zip(lines) {
                    let line = &source[line * width..][..width];
                    for (pixel, column) in pixels.iter_mut().zip(columns) {
                        *pixel = line[column];
                    }
                    *row = weigh(&pixels, dx);
                }
                let levels = weigh(&rows, dy);
                // `as` cuts what overshoots.
                *pixel = [levels[0] as u8, levels[1] as u8, levels[2] as u8];
            }
        }
    }
}

/// The N pixels around a place of a side, and how far it lies between the middle two.
#[inline(always)]
fn around<const N: usize>(at: f64, length: usize) -> ([usize; N], f64) {
    let floor = (at - 0.5).floor();
    let first = floor as i32 + 1 - N as i32 / 2;
    let mut pixels = [0; N];
    for (i, pixel) in pixels.iter_mut().enumerate() {
        *pixel = (first + i as i32).clamp(0, length as i32 - 1) as usize;
    }
    (pixels, at - 0.5 - floor)
}

/// The levels at a share of the way from one to the other of two, or of the middle two of four.
#[inline(always)]
fn weigh<const N: usize>(pixels: &[Wide; N], t: f64) -> Wide {
    let mut out = [0.0; 4];
    for (i, out) in out.iter_mut().enumerate() {
        *out = match pixels[..] {
            [a, b] => a[i] + (b[i] - a[i]) * t,
            [a, b, c, d] => {
                let [a, b, c, d] = [a[i], b[i], c[i], d[i]];
                let (linear, square, cube) = (c - a, 2.0 * (a - b) + c - d, b - a - c + d);
                b + t * (linear + t * (square + t * cube))
            }
            _ => unreachable!("two or four"),
        };
    }
    out
}

/// Each pixel from the one that its place falls into: stepped through in f64 where nothing turns, else in 1 / 65536 of a
/// pixel.
fn nearest(
    source: &[[u8; 3]],
    out: &mut [[u8; 3]],
    width: usize,
    [a, b, c, d, e, f]: [f64; 6],
    fill: [u8; 3],
) {
    let height = source.len() / width;
    let inside = |at: i64, length: usize| (0..length as i64).contains(&at).then_some(at as usize);
    let fixed = |v: f64| (v * 65536.0 + 0.5).floor() as i64;
    let place: Box<dyn Fn(usize, usize) -> (i64, i64)> = if b == 0.0 && d == 0.0 {
        let steps = |start: f64, step: f64, n: usize| -> Vec<i64> {
            let all = std::iter::successors(Some(start + step * 0.5), |at| Some(at + step));
            all.take(n).map(|at| at.floor() as i64).collect()
        };
        let (columns, rows) = (steps(c, a, width), steps(f, e, height));
        Box::new(move |x, y| (columns[x], rows[y]))
    } else {
        let [start_x, start_y] = [c + a * 0.5 + b * 0.5, f + d * 0.5 + e * 0.5].map(fixed);
        let [a, b, d, e] = [a, b, d, e].map(fixed);
        Box::new(move |x, y| {
            let (x, y) = (x as i64, y as i64);
            ((start_x + a * x + b * y) >> 16, (start_y + d * x + e * y) >> 16)
        })
    };
    for (y, row) in out.chunks_exact_mut(width).enumerate() {
        for (x, pixel) in row.iter_mut().enumerate() {
            let (x, y) = place(x, y);
            let from = inside(x, width).zip(inside(y, height));
            *pixel = from.map_or(fill, |(x, y)| source[y * width + x]);
        }
    }
}
