//! Pixels of a part of an image at another size, and in a mirror.

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::image::crop::CropBox;
use crate::image::decode::Rgb;
use crate::image::resize::{self, Filter, First, Side};
use crate::rng::Rng;

/// How training views are resampled, in timm's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// The nearest pixel.
    Nearest,
    /// Linear.
    Bilinear,
    /// Pillow's cubic.
    #[default]
    Bicubic,
    /// Bilinear or bicubic, drawn each time.
    Random,
}

impl Interpolation {
    pub(crate) fn draw(self, rng: &mut Rng) -> Filter {
        match self {
            Interpolation::Nearest => Filter::Nearest,
            Interpolation::Bilinear => Filter::Bilinear,
            Interpolation::Bicubic => Filter::Bicubic,
            Interpolation::Random if rng.below(2) == 0 => Filter::Bilinear,
            Interpolation::Random => Filter::Bicubic,
        }
    }
}

/// `crop` of the image at `size` x `size`, as Pillow's `image.crop(..).resize(..)`: nothing outside the crop is looked at.
/// Rows come first, as the published networks saw their images.
///
/// # Errors
/// When the crop is empty or reaches beyond the image.
pub fn resample(
    image: &Rgb,
    crop: CropBox,
    size: u32,
    filter: Filter,
) -> Result<Vec<u8>, DataError> {
    let CropBox { left, top, width, height } = crop;
    let sides =
        [width, height].map(|source| Side { source, full: size.into(), start: 0, len: size });
    resized(image, [left, top], sides, filter, First::Rows)
}

/// The part of the image that begins at `corner`, left and top, and has the sides' source pixels, resized.
pub(super) fn resized(
    image: &Rgb,
    corner: [u32; 2],
    sides: [Side; 2],
    filter: Filter,
    first: First,
) -> Result<Vec<u8>, DataError> {
    let size = [image.width, image.height];
    let part = resize::view(&image.pixels, size, corner, sides.map(|side| side.source))?;
    match filter {
        Filter::Nearest => Ok(nearest(image, corner, sides)),
        filter => resize::rgb(&part, sides, filter, first),
    }
}

/// The view by the nearest pixels of a part of the image that begins at `left` and `top`.
pub(super) fn nearest(image: &Rgb, [left, top]: [u32; 2], [x, y]: [Side; 2]) -> Vec<u8> {
    let (pixels, _) = image.pixels.as_chunks::<3>();
    let columns: Vec<usize> = x.nearest().map(|x| left as usize + x).collect();
    y.nearest()
        .map(|y| top as usize + y)
        .flat_map(|y| columns.iter().map(move |x| y * image.width as usize + x))
        .flat_map(|i| pixels[i])
        .collect()
}

/// Mirrors a view `[size, size, 3]`, left to right.
pub(super) fn mirror(view: &mut [u8], size: u32) {
    for row in view.chunks_exact_mut(3 * size as usize) {
        let (pixels, _) = row.as_chunks_mut::<3>();
        pixels.reverse();
    }
}

pub(super) fn empty_image(image: &Rgb) -> DataError {
    DataError::Image(format!("the image has {} x {} pixels", image.width, image.height))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rng::Purpose;
    use crate::testing::ramp;
    use crate::{EvalTransform, TrainTransform};

    #[test]
    fn slivers_and_single_pixels_have_views() {
        for (width, height) in [(1, 1), (1, 3000), (3000, 1), (2, 5)] {
            let image = ramp(width, height);
            let eval = EvalTransform::new(24).apply(&image).unwrap();
            let mut rng = Rng::new(1, Purpose::Augment, &[]);
            let train = TrainTransform { size: 24, ..TrainTransform::default() };
            let train = train.apply(&image, &mut rng).unwrap();
            assert_eq!((eval.len(), train.len()), (24 * 24 * 3, 24 * 24 * 3));
        }
        let none = Rgb { width: 0, height: 0, pixels: vec![] };
        assert!(EvalTransform::new(24).apply(&none).is_err());
    }
}
