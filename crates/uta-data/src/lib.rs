//! Bytes to batches: everything between a file on a disk and the `[B, S, S, 3]` bytes that a model normalises.
//!
//! ```text
//! open(spec) -> Source -> Stream (shuffled, endless) -> Batch      training
//!                      -> sweep  (in order, once)    -> Batch      evaluation
//!
//! each takes a Transform, from a Sample to its Views, in the decoding threads:
//!     TrainViews (augmented), EvalViews, targets::Replay (either, with targets that were computed before)
//! ```
//!
//! ```
//! use std::sync::Arc;
//! use uta_data::{Label, LabelKind, Stream, StreamOptions, TrainTransform, TrainViews, open};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = std::env::temp_dir().join(format!("uta-data-{}", std::process::id()));
//! # std::fs::create_dir_all(dir.join("cats"))?;
//! # image::RgbImage::new(40, 30).save(dir.join("cats/tom.png"))?;
//! let source = open(dir.to_str().ok_or("no UTF-8")?)?; // a folder of class folders, shards, a table of pairs, ...
//! let transform = TrainTransform { size: 224, ..TrainTransform::default() };
//! let views = TrainViews { label: LabelKind::Class, ..TrainViews::new(transform) };
//! let options = StreamOptions { batch: 8, seed: 1, ..StreamOptions::default() };
//! let mut stream = Stream::new(source, Arc::new(views), options, 0)?; // from batch 0 on
//! let batch = stream.next_batch()?;
//! assert_eq!(batch.pixels.len(), 8 * 224 * 224 * 3);
//! assert_eq!(batch.items[0].label, Label::Class(0));
//! # std::fs::remove_dir_all(dir)?;
//! # Ok(())
//! # }
//! ```
//!
//! No tensor is made here: pixels stay `u8` and are normalised on the device. Every draw of randomness is a pure function
//! of a seed, a purpose and counters ([`rng`]), so a stream gives the same batches whatever the number of threads, and
//! starts at any batch without replaying the ones before.

mod chores;
mod error;
mod get;
mod image;
mod label;
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
pub use self::label::{Label, LabelKind, LabelMap, Mask, Region, Role, Turn};
pub use self::rejected::Rejected;
pub use self::source::file::open_files;
pub use self::source::folder::{Folder, holds_images, subfolders};
pub use self::source::open::{Set, open, open_all, open_sets, open_texts, open_with};
pub use self::source::pairs::PairOptions;
pub use self::source::sample::{Captions, OddClass, Sample};
pub use self::source::shards;
pub use self::source::spec::{expand, is_table};
pub use self::source::{Part, Source};
pub use self::storage::{is_url, tars};
pub use self::stream::batch::{Batch, Item};
pub use self::stream::order::{Order, OrderKind, Pick};
pub use self::stream::sweep::{Share, Sweep, sweep};
pub use self::stream::{Stream, StreamOptions};
pub use self::text::tokenizer::Tokenizer;
pub use self::text::without_mark;
pub use self::transform::boxes::placed as place_regions;
pub use self::transform::color::{ColorJitter, PhotometricDistortion};
pub use self::transform::erasing::{ErasingMode, RandomErasing};
pub use self::transform::eval::{Convention, EvalTransform, Fit};
pub use self::transform::pixels::{Interpolation, resample};
pub use self::transform::place::Placement;
pub use self::transform::rand_augment::{PolicyError, RandAugment};
pub use self::transform::train::{MixupMode, TrainTransform};
pub use self::transform::views::{EvalViews, Redraw, TextViews, TrainViews, require_captions};
pub use self::transform::{Draw, Transform, View};
pub use uta_base::{cache_folder, is_full, progress, rng, sha256};
