//! Samples: shards, image folders, class folders and pair tables, behind one trait with random access.

pub(crate) mod listing;
pub(crate) mod open;
pub(crate) mod pairs;
pub mod shards;

pub use open::*;
