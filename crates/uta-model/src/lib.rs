//! The networks of Unmasked Token Alignment, and their checkpoints.
//!
//! ```
//! use tch::{Device, Kind, Tensor};
//! use uta_model::{Clip, ClipConfig, TextConfig, VitConfig, unit};
//!
//! # fn main() -> Result<(), uta_model::ModelError> {
//! let vision = VitConfig { width: 64, depth: 2, heads: 2, hidden: 96, out: 32, ..VitConfig::preset("uta-b14")? };
//! let text = TextConfig { width: 64, heads: 2, layers: 1, out: 32, ..TextConfig::preset("vit-b-32")? };
//! let clip = Clip::new(&ClipConfig::new(vision, Some(text)), Device::Cpu); // Clip::load reads a file or folder
//!
//! let pixels = Tensor::zeros([1, 224, 224, 3], (Kind::Uint8, Device::Cpu));
//! let image = clip.encode_image(&clip.normalise(&pixels)); // [1, 32]
//! let tokens = Tensor::from_slice(&[49406i64, 320, 1125, 49407]).view([1, 4]); // <start> a photo <end>
//! let text = clip.encode_text(&tokens).expect("a text encoder"); // [1, 32]
//! let cosine = unit(&image).matmul(&unit(&text).tr()); // [1, 1]
//! # assert!(cosine.double_value(&[0, 0]).abs() <= 1.0 + 1e-6);
//! # Ok(())
//! # }
//! ```
//!
//! - `nets`: a file or folder a model, which reads from its layers up to its forward pass, and in which the path of a variable is
//!   its key in a checkpoint. [`Vit`] is the student and, with other sizes, the vision half of the teacher; [`TextTower`] is the
//!   text half; [`Clip`] is the pair. [`Net`] is a net of any kind, [`NetConfig`] its `config.json`. Nets list their
//!   [`Parameter`]s with what an optimiser needs to know of each.
//! - [`checkpoint`]: everybody's files. [`checkpoint::load`] reads a net from whatever a user has, [`Origin`] says first what that
//!   is, [`Clip::export`] writes what other programs read, [`transfer()`] starts a net from another. A family's names are the
//!   table of an [`Adapter`].
//!
//! Model code is single-device and plain; precision (autocast) and distribution are applied from outside.

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
    pub use crate::checkpoint::safetensors::save;
    pub use crate::checkpoint::{Checkpoint, load_into};
}
