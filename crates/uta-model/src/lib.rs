//! The networks of Unmasked Token Alignment and their checkpoints: one file a model, which reads from its layers up to
//! its forward pass, and in which the path of a variable is its key in a checkpoint.
//!
//! Model code is single-device and plain; precision (autocast) and distribution are applied from outside.
//!
//! - [`Vit`] is the student and, with other sizes, the vision half of the teacher; [`TextTower`] is the text half.
//! - [`Clip`] is the pair as it is stored: `config.json` beside `model.safetensors`.
//! - [`Origin`] finds out what a user's file or folder is; [`Clip::export`] writes what other programs read.
//! - [`safetensors_io`] reads and writes tensors by name; an [`Adapter`] knows a checkpoint family's names.

pub mod checkpoint;
mod error;
mod nets;

pub use checkpoint::adapter::{Adapter, Layout};
pub use checkpoint::export::Exported;
pub use checkpoint::origin::{Origin, run_of};
pub use checkpoint::resize::{self, Resized};
pub use checkpoint::torch as torch_file;
pub use checkpoint::transfer::{Transfer, transfer};
pub use error::ModelError;
pub use nets::clip::{Clip, unit};
pub use nets::config::{ClipConfig, Ffn, Head, Pool, RelPos, TextConfig, VitConfig, preset_names};
pub use nets::net::{Net, NetConfig};
pub use nets::parameter::{Layer, Parameter};
pub use nets::preprocess::{Convention, Interpolation, Preprocess, Resize};
pub use nets::text::{ByLength, TextTower};
pub use nets::vit::memory::{Compute, Kernels};
pub use nets::vit::{Features, Vit, same_tokens};

/// Named tensors in files: [`Checkpoint`](safetensors_io::Checkpoint) reads any file of weights, [`save`](safetensors_io::save)
/// writes a safetensors file.
pub mod safetensors_io {
    pub use crate::checkpoint::safetensors::{Beside, save, write_atomically};
    pub use crate::checkpoint::{Checkpoint, load_into};
}
