//! An image encoder and a text encoder of one space.

use tch::{Device, Kind, Tensor, nn, no_grad};

use super::layers::Scope;
use crate::{ClipConfig, ModelError, TextTower, Vit};

/// Rows of unit length, in f32; a zero row stays zero, so that it ties with everything.
pub fn unit(x: &Tensor) -> Tensor {
    let x = x.to_kind(Kind::Float);
    &x / x.norm_scalaropt_dim(2.0, [-1i64], true).clamp_min(1e-12)
}

/// A CLIP. Keys are `visual.*`, `text.*` and `logit_scale`, as in the official checkpoints (jihaonew/UTA,
/// `eva_vit_model/uta_clip.py`).
#[derive(Debug)]
pub struct Clip {
    /// Its sizes.
    pub config: ClipConfig,
    /// The image encoder.
    pub visual: Vit,
    /// The text encoder, where there is one.
    pub text: Option<TextTower>,
    /// The logarithm of the logit scale, where there is a text encoder.
    pub logit_scale: Option<Tensor>,
    /// All variables by key.
    pub store: nn::VarStore,
    /// What was assumed while it was read, and why; for the user to read.
    pub notes: Vec<String>,
    /// Pixels 0..255 are normalised as `shift + scale * pixel`.
    scale: Tensor, // [3]
    shift: Tensor, // [3]
}

impl Clip {
    /// A CLIP with random weights, from libtorch's generator.
    ///
    /// # Panics
    /// When `config` doesn't pass [`ClipConfig::check`].
    pub fn new(config: &ClipConfig, device: Device) -> Clip {
        Clip::build(config, device, false)
    }

    /// `blank` leaves the weights undefined, because a checkpoint follows.
    fn build(config: &ClipConfig, device: Device, blank: bool) -> Clip {
        let store = nn::VarStore::new(device);
        let root = Scope::new(&store.root(), blank);
        let visual = Vit::build(&(&root / "visual"), &config.vision);
        let text = config.text.as_ref().map(|text| TextTower::build(&(&root / "text"), text));
        // ln(1 / 0.07), CLIP's.
        let logit_scale =
            text.is_some().then(|| root.constant("logit_scale", &[], (1.0 / 0.07f64).ln()));
        let (mean, std) = (config.mean, config.std);
        let per_channel = |value: fn(f64, f64) -> f64| {
            let values = [0, 1, 2].map(|i| value(mean[i], std[i]) as f32);
            Tensor::from_slice(&values).to_device(device)
        };
        Clip {
            visual,
            text,
            logit_scale,
            notes: Vec::new(),
            scale: per_channel(|_, std| 1.0 / (255.0 * std)),
            shift: per_channel(|mean, std| -mean / std),
            config: config.clone(),
            store,
        }
    }

    /// Without weights, because a checkpoint follows.
    pub(crate) fn blank(config: &ClipConfig, device: Device) -> Clip {
        Clip::build(config, device, true)
    }

    /// All variables, sorted by key.
    pub fn variables(&self) -> Vec<(String, Tensor)> {
        let mut variables: Vec<(String, Tensor)> = self.store.variables().into_iter().collect();
        variables.sort_by(|a, b| a.0.cmp(&b.0));
        variables
    }

    /// Takes over another's variables whose key starts with `prefix`.
    ///
    /// # Errors
    /// When names or shapes differ.
    pub fn copy_from(&self, other: &Clip, prefix: &str) -> Result<(), ModelError> {
        let theirs = other.store.variables();
        for (name, ours) in self.variables() {
            if !name.starts_with(prefix) {
                continue;
            }
            match theirs.get(&name).filter(|theirs| theirs.size() == ours.size()) {
                Some(theirs) => no_grad(|| ours.shallow_clone().copy_(theirs)),
                None => {
                    let message =
                        format!("{name} {:?}: the other model has none such", ours.size());
                    return Err(ModelError::Config(message));
                }
            }
        }
        Ok(())
    }

    /// Pixels u8 [B, S, S, 3] on the model's device to what the image encoder sees, f32 [B, 3, S, S].
    pub fn normalise(&self, pixels: &Tensor) -> Tensor {
        let images = self.shift.addcmul(&pixels.to_kind(Kind::Float), &self.scale);
        // Channels stay last in memory, because cutting patches moves every pixel anyway.
        images.permute([0, 3, 1, 2])
    }

    /// Makes the image encoder ready for looking forward only: [`Vit::freeze`]. It can't be saved afterwards.
    pub fn freeze(&mut self, precision: torch_ext::Precision) {
        self.visual.freeze(precision);
    }

    /// Image embeddings [B, E], not normalised, of `images` [B, 3, S, S].
    pub fn encode_image(&self, images: &Tensor) -> Tensor {
        self.visual.encode(images)
    }

    /// Text embeddings [B, E], not normalised, of `tokens` [B, T]; `None` without a text encoder.
    pub fn encode_text(&self, tokens: &Tensor) -> Option<Tensor> {
        self.text.as_ref().map(|text| text.forward(tokens))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nets::layers::testing::seeded;
    use crate::{TextConfig, VitConfig};

    pub(crate) fn small() -> ClipConfig {
        let vision = VitConfig {
            image_size: 16,
            patch_size: 8,
            width: 16,
            depth: 1,
            heads: 2,
            hidden: 24,
            out: 8,
            ..VitConfig::preset("uta-b14").unwrap()
        };
        let text = TextConfig {
            context_length: 8,
            vocab_size: 600,
            width: 16,
            heads: 2,
            layers: 1,
            out: 8,
            quick_gelu: false,
        };
        ClipConfig::new(vision, Some(text))
    }

    /// Memory that is never written costs nothing, so that even g/14 is built here.
    #[test]
    fn the_tensors_of_every_preset_are_as_many_as_its_sizes_say() {
        for name in crate::preset_names() {
            let text = TextConfig::preset(&name).ok();
            let config = ClipConfig::new(VitConfig::preset(&name).unwrap(), text);
            let clip = Clip::build(&config, Device::Cpu, true);
            let count = |prefix: &str| -> i64 {
                let variables = clip.variables();
                let part = variables.iter().filter(|(name, _)| name.starts_with(prefix));
                part.map(|(_, tensor)| tensor.numel() as i64).sum()
            };
            assert_eq!(count("visual."), config.vision.parameters(), "{name}");
            let text = config.text.as_ref().map_or(0, TextConfig::parameters);
            assert_eq!(count("text."), text, "{name}");
        }
    }

    #[test]
    fn pixels_are_normalised_as_clips() {
        let _rng = seeded(0);
        let clip = Clip::new(&small(), Device::Cpu);
        let pixels =
            Tensor::from_slice(&[255u8, 0, 128]).view([1, 1, 1, 3]).expand([1, 16, 16, 3], false);
        let images = clip.normalise(&pixels);
        assert_eq!(images.size(), [1, 3, 16, 16]);
        for (channel, value) in [(0, (1.0 - 0.48145466) / 0.26862954), (1, -0.4578275 / 0.26130258)]
        {
            assert!((images.double_value(&[0, channel, 3, 3]) - value).abs() < 1e-5);
        }
    }
}
