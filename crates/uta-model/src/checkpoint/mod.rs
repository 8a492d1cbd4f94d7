//! Files of weights: everybody's formats, names and configurations.
//!
//! `file` opens, [`safetensors`] and [`torch`] read and write a format each, `weights` has the tensors by name, `adapter` the
//! names of each family, `origin` finds out what a user's file or folder is, [`resize`](mod@resize) and `transfer` make a net fit
//! another, and `export` writes what other programs read.

pub(crate) mod adapter;
pub(crate) mod export;
mod file;
mod hints;
pub(crate) mod origin;
pub mod resize;
pub mod safetensors;
pub mod torch;
pub(crate) mod transfer;
pub(crate) mod weights;

use std::path::Path;

use tch::Device;

use self::origin::Origin;
pub use self::weights::{Checkpoint, load_into};
use crate::{ModelError, Net};

/// Reads a net of any kind from what a user has: see [`Origin::open`], which says what `path` and `arch` may be.
///
/// # Errors
/// Says what was looked for, what isn't known, or which names don't fit.
pub fn load(path: &Path, arch: Option<&str>, device: Device) -> Result<Net, ModelError> {
    Origin::open(path, arch)?.into_net(device)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tch::{Device, Kind, Tensor};

    use crate::Clip;
    use crate::nets::testing::{seeded, small};

    #[test]
    fn a_saved_clip_loads_to_the_same_embeddings() {
        let dir = tempfile::tempdir().unwrap();
        let _rng = seeded(0);
        let clip = Clip::new(&small(), Device::Cpu);
        clip.save(dir.path(), Kind::Float).unwrap();
        let again = Clip::load(dir.path(), Device::Cpu).unwrap();
        let images = Tensor::randn([2, 3, 16, 16], (Kind::Float, Device::Cpu));
        let tokens = Tensor::from_slice(&[598i64, 3, 599, 0]).view([1, 4]);
        assert_eq!(clip.encode_image(&images), again.encode_image(&images));
        assert_eq!(clip.encode_text(&tokens), again.encode_text(&tokens));
        assert_eq!(clip.config, again.config);
        assert!((again.logit_scale.unwrap().double_value(&[]) - 2.6592).abs() < 1e-3);
    }

    #[test]
    fn a_folder_without_a_model_says_what_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let e = Clip::load(dir.path(), Device::Cpu).unwrap_err().to_string();
        assert!(e.contains("config.json") && e.contains("a folder without a model"), "{e}");
        std::fs::create_dir(dir.path().join("checkpoints")).unwrap();
        let e = Clip::load(dir.path(), Device::Cpu).unwrap_err().to_string();
        assert!(e.contains("--resume"), "{e}");
    }
}
