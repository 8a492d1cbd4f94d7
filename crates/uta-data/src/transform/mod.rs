//! Samples to views: the squares of pixels that a model sees, and the labels that follow them.

use crate::error::DataError;
use crate::image::decode::MAX_PIXELS;
use crate::label::Label;
use crate::rng::{Purpose, Rng};
use crate::source::{Sample, Source};

pub(crate) mod boxes;
pub(crate) mod color;
pub(crate) mod erasing;
pub(crate) mod eval;
pub(crate) mod maps;
pub(crate) mod mix;
pub(crate) mod pixels;
pub(crate) mod place;
pub(crate) mod rand_augment;
pub(crate) mod train;
pub(crate) mod views;

/// A draw of a sample: which one it is, for the how-manieth time it comes, and at which place. All randomness of its view follows
/// from these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Seed of the stream.
    pub seed: u64,
    /// Its index in the source.
    pub index: usize,
    /// How often its part of the source has been gone through before; the epoch where the part's weight is 1.
    pub pass: u64,
    /// Which of the views of one sample in one batch, from 0.
    pub repeat: u64,
    /// The view's place among those of the whole stream, over all ranks; in a sweep the index.
    pub position: u64,
}

impl Draw {
    /// The generator of this draw for a purpose.
    pub fn rng(&self, purpose: Purpose) -> Rng {
        let (pass, index) = (self.pass, self.index as u64);
        match self.repeat {
            0 => Rng::new(self.seed, purpose, &[pass, index]),
            repeat => Rng::new(self.seed, purpose, &[pass, index, repeat]),
        }
    }
}

/// A view of a sample.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// `[size, size, 3]` bytes.
    pub pixels: Vec<u8>,
    /// The label, as it lies in the view.
    pub label: Label,
    /// Rows of targets that were computed before, `[rows, E]`, as they are stored; usually empty.
    pub targets: Vec<u8>,
}

/// The way from a sample to its views, in the decoding threads.
pub trait Transform: Send + Sync {
    /// Side of the views, in pixels.
    fn size(&self) -> u32;

    /// Pixels of the largest image that is decoded; samples with a larger one are unusable.
    fn max_pixels(&self) -> u64 {
        MAX_PIXELS
    }

    /// Checks every option.
    ///
    /// # Errors
    /// Names the first one that makes no sense.
    fn validate(&self) -> Result<(), DataError> {
        Ok(())
    }

    /// Whether the samples of `source` have what the views need, by the first of them.
    ///
    /// # Errors
    /// Says what is needed and wasn't found.
    fn check_source(&self, source: &dyn Source) -> Result<(), DataError> {
        let _ = source;
        Ok(())
    }

    /// A view for each of `draws`, which are all views of this sample in one batch. The result depends on nothing but the
    /// arguments.
    ///
    /// # Errors
    /// When the sample is unusable: another one is then drawn in its place, or in a sweep it is left out.
    fn views(&self, sample: &Sample, draws: &[Draw]) -> Result<Vec<View>, DataError>;
}
