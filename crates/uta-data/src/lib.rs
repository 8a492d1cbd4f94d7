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

mod chores;
mod error;
mod get;
mod image;
pub mod machine;
pub mod mask;
mod quietly;
mod source;
mod storage;
mod stream;
pub mod targets;
#[cfg(test)]
mod testing;
mod text;
mod transform;

pub use self::chores::{pack, stats, verify};
pub use self::error::{DataError, Fault};
pub use self::get::emoji;
pub use self::image::decode::{
    DecodeOptions, MAX_PIXELS, Rgb, decode, decode_with, dimensions, is_image,
};
pub use self::image::resize::Filter;
pub use self::source::pairs::{Captions, PairOptions};
pub use self::source::shards;
pub use self::source::shards::sizes::without_mark;
pub use self::source::{
    Folder, OddClass, Sample, Set, Source, expand, holds_images, is_table, is_url, open, open_all,
    open_files, open_sets, open_with, subfolders, tars,
};
pub use self::stream::order::{Draw, Order, OrderKind, Part};
pub use self::stream::{
    Batch, Item, Rejected, Share, Stream, StreamOptions, Sweep, require_captions, sweep,
};
pub use self::text::tokenizer::Tokenizer;
pub use self::transform::color::{ColorJitter, PhotometricDistortion};
pub use self::transform::erasing::{ErasingMode, RandomErasing};
pub use self::transform::mix::MixupMode;
pub use self::transform::rand_augment::{PolicyError, RandAugment};
pub use self::transform::{
    Convention, CropBox, EvalTransform, Fit, Interpolation, TrainTransform, resample,
};
pub use uta_base::{cache_folder, is_full, progress, rng, sha256};
