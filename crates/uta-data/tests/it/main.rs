//! Data from files to batches, beside what other programs make of the same files.
#![allow(clippy::unwrap_used)]

mod bombs;
mod faults;
mod golden;
mod other_programs;
mod pixels;
