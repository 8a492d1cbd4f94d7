//! The networks: one file a model, which reads from its layers up to its forward pass.

pub mod clip;
pub mod config;
pub(crate) mod layers;
pub mod net;
pub mod parameter;
pub mod preprocess;
pub mod text;
pub mod vit;
