//! Batches: an endless shuffled stream for training, and an ordered sweep for evaluation, both decoded in threads.

use std::sync::Arc;

use serde::Serialize;

use crate::{DataError, EvalTransform, Source, TrainTransform};

/// How a [`Stream`] runs.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamOptions {
    /// Samples in a batch of this rank.
    pub batch: usize,
    /// Seed of order, augmentation and captions.
    pub seed: u64,
    /// Decoding threads, at least 1. The batches don't depend on it.
    pub workers: usize,
    /// Batches decoded ahead, at least 1. Bounds the memory.
    pub prefetch: usize,
    /// This process among `world`.
    pub rank: usize,
    /// How many processes share a global batch.
    pub world: usize,
    /// Samples without a caption are unusable.
    pub captions: bool,
    /// The stream ends with an error when more than this share of the recent samples was unusable.
    pub max_rejected: f64,
}

impl Default for StreamOptions {
    fn default() -> StreamOptions {
        StreamOptions {
            batch: 256,
            seed: 0,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            prefetch: 2,
            rank: 0,
            world: 1,
            captions: false,
            max_rejected: 0.1,
        }
    }
}

/// Decoded samples, ready for the device.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Its number in the stream or sweep, from 0.
    pub index: u64,
    /// Side of the images, in pixels.
    pub size: usize,
    /// `[B, size, size, 3]` bytes.
    pub pixels: Vec<u8>,
    /// What the B images are.
    pub items: Vec<Item>,
    /// Samples met on the way that could not be used.
    pub rejected: Vec<Rejected>,
    /// Epochs done when the global batch is, in fractions.
    pub epoch: f64,
}

impl Batch {
    /// B.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

/// One image of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The sample's key.
    pub key: String,
    /// One of its captions, drawn anew each epoch; in a sweep the first.
    pub caption: Option<String>,
    /// Its class.
    pub class: Option<u32>,
    /// Its place in the whole stream, over all ranks; in a sweep its index.
    pub position: u64,
    /// Its index in the source.
    pub index: usize,
}

/// A sample that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// Its key.
    pub key: String,
    /// Why.
    pub reason: String,
}

/// An endless, shuffled, resumable stream of training batches.
pub struct Stream {}

impl Stream {
    /// Starts the threads; the first batch will be number `first_batch`.
    ///
    /// # Errors
    /// An option out of range; captions needed and none found.
    pub fn new(
        source: Arc<dyn Source>,
        transform: TrainTransform,
        options: StreamOptions,
        first_batch: u64,
    ) -> Result<Stream, DataError> {
        let _ = (source, transform, options, first_batch);
        todo!()
    }

    /// The next batch.
    ///
    /// # Errors
    /// When too many samples are unusable.
    pub fn next_batch(&mut self) -> Result<Batch, DataError> {
        todo!()
    }
}

/// The iterator of [`sweep`].
pub struct Sweep {}

impl Iterator for Sweep {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        todo!()
    }
}

/// Every sample once and in order, in batches of `batch`, the last one shorter; unusable ones are left out and reported.
pub fn sweep(source: Arc<dyn Source>, transform: EvalTransform, batch: usize, workers: usize) -> Sweep {
    let _ = (source, transform, batch, workers);
    todo!()
}
