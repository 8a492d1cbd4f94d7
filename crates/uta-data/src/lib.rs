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
mod rejected;
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
pub use self::image::crop::CropBox;
pub use self::image::decode::{
    DecodeOptions, MAX_PIXELS, Rgb, decode, decode_with, dimensions, is_image,
};
pub use self::image::resize::Filter;
pub use self::rejected::Rejected;
pub use self::source::file::open_files;
pub use self::source::folder::{Folder, holds_images, subfolders};
pub use self::source::open::{Set, open, open_all, open_sets, open_with};
pub use self::source::pairs::PairOptions;
pub use self::source::sample::{Captions, OddClass, Sample};
pub use self::source::shards;
pub use self::source::spec::{expand, is_table};
pub use self::source::{Part, Source};
pub use self::storage::{is_url, tars};
pub use self::stream::batch::{Batch, Item};
pub use self::stream::order::{Draw, Order, OrderKind};
pub use self::stream::sweep::{Share, Sweep, sweep};
pub use self::stream::{Stream, StreamOptions, require_captions};
pub use self::text::tokenizer::Tokenizer;
pub use self::text::without_mark;
pub use self::transform::color::{ColorJitter, PhotometricDistortion};
pub use self::transform::erasing::{ErasingMode, RandomErasing};
pub use self::transform::eval::{Convention, EvalTransform, Fit};
pub use self::transform::pixels::{Interpolation, resample};
pub use self::transform::rand_augment::{PolicyError, RandAugment};
pub use self::transform::train::{MixupMode, TrainTransform};
pub use uta_base::{cache_folder, is_full, progress, rng, sha256};
