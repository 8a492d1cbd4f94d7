//! From a decoded image to the square a model sees: torchvision's training and evaluation transforms on bytes.

use serde::{Deserialize, Serialize};

use crate::rng::Rng;
use crate::{DataError, Rgb};

/// A part of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropBox {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// torchvision's `ColorJitter`: how far each factor may stray from none; 0 leaves it alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColorJitter {
    /// Brightness factor in [1 - b, 1 + b].
    pub brightness: f64,
    /// Contrast factor.
    pub contrast: f64,
    /// Saturation factor.
    pub saturation: f64,
    /// Hue shift in [-h, h], in turns; at most 0.5.
    pub hue: f64,
}

/// The training transform: random resized crop (bicubic, antialiased), flip, colours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainTransform {
    /// Side of the result, in pixels.
    pub size: u32,
    /// The crop's share of the image's area.
    pub scale: (f64, f64),
    /// The crop's width over its height.
    pub ratio: (f64, f64),
    /// Probability of a mirror image.
    pub hflip: f64,
    /// How far colours stray.
    pub color_jitter: ColorJitter,
    /// Probability that colours stray at all.
    pub color_jitter_prob: f64,
    /// Probability of a gray image.
    pub grayscale: f64,
}

impl Default for TrainTransform {
    /// EVA-02's pre-training: crops of 20 % to 100 %, flips, no colours, at 224 pixels.
    fn default() -> TrainTransform {
        TrainTransform {
            size: 224,
            scale: (0.2, 1.0),
            ratio: (3.0 / 4.0, 4.0 / 3.0),
            hflip: 0.5,
            color_jitter: ColorJitter::default(),
            color_jitter_prob: 1.0,
            grayscale: 0.0,
        }
    }
}

impl TrainTransform {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field out of its range.
    pub fn validate(&self) -> Result<(), DataError> {
        Ok(())
    }

    /// Draws a view: `[size, size, 3]` bytes.
    ///
    /// # Errors
    /// When the image has no pixels.
    pub fn apply(&self, image: &Rgb, rng: &mut Rng) -> Result<Vec<u8>, DataError> {
        let _ = (image, rng);
        todo!()
    }
}

/// The evaluation transform: shorter side to `size` (bicubic, antialiased), centre crop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalTransform {
    /// Side of the result, in pixels.
    pub size: u32,
}

impl Default for EvalTransform {
    fn default() -> EvalTransform {
        EvalTransform { size: 224 }
    }
}

impl EvalTransform {
    /// The view: `[size, size, 3]` bytes.
    ///
    /// # Errors
    /// When the image has no pixels.
    pub fn apply(&self, image: &Rgb) -> Result<Vec<u8>, DataError> {
        let _ = image;
        todo!()
    }
}
