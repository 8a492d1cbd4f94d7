//! Sets that are made from public downloads: `uta data get`.

pub mod emoji;
mod parallel;
