//! The networks: a file or folder a model, which reads from its layers up to its forward pass.
//!
//! `layers` has the layers that models share, `parameter` what an optimiser needs to know of their tensors, `config` their
//! sizes, `preprocess` the settings of the images that they get, and `net` the enum of all kinds. None knows of files.

pub mod clip;
pub mod config;
pub(crate) mod layers;
pub mod net;
pub mod parameter;
pub mod preprocess;
#[cfg(test)]
pub(crate) mod testing;
pub mod text;
pub mod vit;
