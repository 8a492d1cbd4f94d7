//! The networks of the paper, one file each, and their checkpoints.

mod clip;
mod config;
mod error;
pub mod safetensors_io;
mod text;
mod vit;

pub use clip::Clip;
pub use config::{ClipConfig, Ffn, TextConfig, VitConfig, preset_names};
pub use error::ModelError;
pub use text::TextTower;
pub use vit::Vit;
