//! Pictures to the squares that a model sees.

pub(crate) mod color;
pub(crate) mod erasing;
pub(crate) mod eval;
pub(crate) mod mix;
pub(crate) mod pixels;
pub(crate) mod rand_augment;
pub(crate) mod train;
