//! Pictures to the squares that a model sees.

pub(crate) mod color;
pub(crate) mod erasing;
pub(crate) mod mix;
pub(crate) mod rand_augment;
mod train;

pub use train::*;
