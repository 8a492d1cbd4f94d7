//! The networks of Unmasked Token Alignment and their checkpoints: one file a model, which reads from its layers up to
//! its forward pass, and in which the path of a variable is its key in a checkpoint.
//!
//! Model code is single-device and plain; precision (autocast) and distribution are applied from outside.
//!
//! - [`Vit`] is the student and, with other sizes, the vision half of the teacher; [`TextTower`] is the text half.
//! - [`Clip`] is the pair as it is stored: `config.json` beside `model.safetensors`.
//! - [`Origin`] finds out what a user's file or folder is; [`Clip::export`] writes what other programs read.
//! - [`safetensors_io`] reads and writes tensors by name; an [`Adapter`] knows a checkpoint family's names.

mod adapter;
mod clip;
mod config;
mod error;
mod export;
mod hints;
mod layers;
mod origin;
mod preprocess;
pub mod resize;
pub mod safetensors_io;
mod text;
pub mod torch_file;
mod vit;

pub use adapter::{Adapter, Layout};
pub use clip::{Clip, unit};
pub use config::{ClipConfig, Ffn, Head, Pool, RelPos, TextConfig, VitConfig, preset_names};
pub use error::ModelError;
pub use export::Exported;
pub use origin::{Origin, run_of};
pub use preprocess::{Convention, Interpolation, Preprocess, Resize};
pub use resize::Resized;
pub use text::{ByLength, TextTower};
pub use vit::{Features, Vit, same_tokens};
