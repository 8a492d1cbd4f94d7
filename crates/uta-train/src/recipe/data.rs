//! `[data]`: what a run trains and validates on.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uta_data::{
    Captions, DataError, DecodeOptions, MAX_PIXELS, OrderKind, PairOptions, Set, Source,
    TrainTransform,
};

/// `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Shards (globs and brace lists too), folders or tables of pairs to train on; with a weight as
    /// `{ data = "a.tar", weight = 2.0 }`.
    pub train: Vec<Set>,
    /// The same, for the validation loss.
    #[serde(default)]
    pub val: Vec<String>,
    /// Side of the images, in pixels; the model's own when left out.
    #[serde(default)]
    pub image_size: u32,
    /// Threads that decode and augment; 0 means one a core.
    #[serde(default)]
    pub workers: usize,
    /// Batches decoded ahead.
    #[serde(default = "two")]
    pub prefetch: usize,
    /// Whether a sample may lie anywhere (`indexed`), or shards are read one after the other (`streaming`).
    #[serde(default)]
    pub order: OrderKind,
    /// Samples of a process that the streaming order shuffles among each other.
    #[serde(default = "buffer")]
    pub shuffle_buffer: usize,
    /// Views of each sample in a batch: it is read and decoded once for all of them. An epoch then has as many times more
    /// images.
    #[serde(default = "one")]
    pub repeats: usize,
    /// Images of more pixels are refused by their header.
    #[serde(default = "max_pixels")]
    pub max_pixels: u64,
    /// Whether images are turned as their EXIF orientation says; CLIP's pipelines leave them as they are.
    #[serde(default)]
    pub orient: bool,
    /// The run stops when more than this share of recent samples can't be read.
    #[serde(default = "tenth")]
    pub max_rejected: f64,
    /// Crops, flips, colours.
    #[serde(default)]
    pub transforms: TrainTransform,
    /// How tables of pairs in `train` are read, and the `.txt` beside its images: each one caption if nothing is said.
    #[serde(default, skip_serializing_if = "PairOptions::is_plain")]
    pub pairs: PairOptions,
    /// How those in `val` are; as in `train` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_pairs: Option<PairOptions>,
}

/// The sources that a run trains on and validates on.
pub(crate) type Sources = (Arc<dyn Source>, Option<Arc<dyn Source>>);

impl Data {
    /// How images are decoded.
    pub fn decode(&self) -> DecodeOptions {
        DecodeOptions { max_pixels: self.max_pixels, orient: self.orient }
    }

    /// The sets to train on; of `texts` alone, pictures need not be there.
    ///
    /// # Errors
    /// When one can't be opened.
    pub(super) fn open_train(&self, texts: bool) -> Result<Arc<dyn Source>, DataError> {
        let open = if texts { uta_data::open_texts } else { uta_data::open_sets };
        // As open_clip trains, unless the recipe says otherwise.
        let whole = |pairs: &PairOptions| pairs.or_captions(Captions::File);
        let set = |set: &Set| Set { pairs: set.pairs.as_ref().map(whole), ..set.clone() };
        let sets: Vec<Set> = self.train.iter().map(set).collect();
        open(&sets, &whole(&self.pairs))
    }

    /// The sets to train on and those to validate on, where there are any; of `texts` alone, pictures need not be there. What is
    /// wrong with them is said in the log where `tell` says so.
    ///
    /// # Errors
    /// When one can't be opened.
    pub(super) fn open(&self, texts: bool, tell: bool) -> Result<Sources, DataError> {
        let told = |source: Arc<dyn Source>| {
            source
                .problems()
                .iter()
                .filter(|_| tell)
                .for_each(|problem| tracing::warn!("{problem}"));
            source
        };
        let train = told(self.open_train(texts)?);
        let val = match self.val.as_slice() {
            [] => None,
            val => {
                let pairs = self.val_pairs.as_ref().unwrap_or(&self.pairs);
                let open = if texts { uta_data::open_texts } else { uta_data::open_sets };
                let val: Vec<Set> = val.iter().map(|spec| Set::from(spec.as_str())).collect();
                Some(told(open(&val, &pairs.or_captions(Captions::File))?))
            }
        };
        Ok((train, val))
    }
}

fn one() -> usize {
    1
}

fn two() -> usize {
    2
}

fn buffer() -> usize {
    50_000
}

fn max_pixels() -> u64 {
    MAX_PIXELS
}

fn tenth() -> f64 {
    0.1
}
