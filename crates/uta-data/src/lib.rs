//! Bytes to batches: everything between a file on a disk and the `[B, S, S, 3]` bytes that a model normalises.
//!
//! ```text
//! open(spec) -> Source -> Stream (decode, augment, in threads) -> Batch       training, endless, shuffled
//!                                                   \-> with a cache, the targets of each crop (targets)
//!                      -> sweep  (decode, resize)              -> Batch       evaluation, every sample once, in order
//! ```
//!
//! No tensor is made here: pixels stay `u8` and are normalised on the device. Every draw of randomness is a pure function
//! of a seed, a purpose and counters ([`rng`]), so a stream gives the same batches whatever the number of threads, and
//! starts at any batch without replaying the ones before.

mod ahead;
mod color;
mod decode;
pub mod emoji;
mod erasing;
mod error;
mod index;
mod jpeg;
mod listing;
pub mod machine;
pub mod mask;
mod mix;
mod order;
mod orientation;
pub mod pack;
mod pairs;
mod parallel;
mod pillow;
mod png;
mod quietly;
mod rand_augment;
#[cfg(feature = "remote")]
mod remote;
mod repair;
mod resize;
mod scans;
pub mod shards;
mod sidecar;
mod sizes;
mod source;
pub mod stats;
mod stream;
pub mod targets;
#[cfg(test)]
mod testing;
mod tokenizer;
mod transform;
pub mod verify;

pub use color::{ColorJitter, PhotometricDistortion};
pub use decode::{DecodeOptions, MAX_PIXELS, Rgb, decode, decode_with, dimensions, is_image};
pub use erasing::{ErasingMode, RandomErasing};
pub use error::{DataError, Fault};
pub use mix::MixupMode;
pub use order::{Draw, Order, OrderKind, Part};
pub use pairs::{Captions, PairOptions};
pub use rand_augment::{PolicyError, RandAugment};
pub use resize::Filter;
pub use sizes::without_mark;
pub use source::{
    Folder, OddClass, Sample, Set, Source, expand, holds_images, is_table, is_url, open, open_all,
    open_files, open_sets, open_with, subfolders, tars,
};
pub use stream::{
    Batch, Item, Rejected, Share, Stream, StreamOptions, Sweep, require_captions, sweep,
};
pub use tokenizer::Tokenizer;
pub use transform::{
    Convention, CropBox, EvalTransform, Fit, Interpolation, TrainTransform, resample,
};
pub use uta_base::{cache_folder, is_full, progress, rng, sha256};
