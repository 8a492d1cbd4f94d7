//! Chores of data sets, one for each of `uta data pack`, `stats` and `verify`.

pub mod pack;
pub mod stats;
pub mod verify;
