//! Evaluations beside the libraries whose numbers they repeat.
#![allow(clippy::unwrap_used)]

mod preprocess;
mod zeroshot;
