//! An image encoder and a text encoder of one space.

use tch::{Device, Kind, Tensor, nn, no_grad};

use super::layers::Scope;
use super::parameter::{self, Parameter};
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
    /// Assumptions that were made while it was read, and why; for the user to read.
    pub notes: Vec<String>,
    /// The logit scale, where there is one.
    own: Vec<Parameter>,
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
        let mean = config.mean;
        let std = config.std;
        let per_channel = |value: fn(f64, f64) -> f64| {
            let values = [0, 1, 2].map(|i| value(mean[i], std[i]) as f32);
            Tensor::from_slice(&values).to_device(device)
        };
        Clip {
            visual,
            text,
            logit_scale,
            own: root.parameters(),
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

    /// The trainable tensors of both encoders, and the logit scale where it learns, sorted by name. A tensor that was taken
    /// out of learning (`set_requires_grad(false)`) is left out.
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut parameters = self.visual.parameters();
        parameters.extend(self.text.iter().flat_map(TextTower::parameters));
        parameters.extend(parameter::trainable(&self.own));
        parameters.sort_by(|a, b| a.name.cmp(&b.name));
        parameters
    }

    /// All variables of both encoders, whether they learn or not, sorted by name.
    pub(crate) fn all_parameters(&self) -> Vec<Parameter> {
        let text = self.text.iter().flat_map(TextTower::all_parameters);
        let all = self.visual.all_parameters().iter().chain(text);
        let mut parameters: Vec<Parameter> = all.map(Parameter::shallow_clone).collect();
        parameters.sort_by(|a, b| a.name.cmp(&b.name));
        parameters
    }

    /// All variables, sorted by key.
    pub fn variables(&self) -> Vec<(String, Tensor)> {
        let mut variables: Vec<(String, Tensor)> = self.store.variables().into_iter().collect();
        variables.sort_by(|a, b| a.0.cmp(&b.0));
        variables
    }

    /// Copies another CLIP's variables whose key starts with `prefix`.
    ///
    /// # Errors
    /// When names or shapes differ; [`Clip::start_from`] resizes.
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

    /// Pixels u8 [B, S, S, 3] on the model's device, normalised for the image encoder: f32 [B, 3, S, S].
    pub fn normalise(&self, pixels: &Tensor) -> Tensor {
        let images = self.shift.addcmul(&pixels.to_kind(Kind::Float), &self.scale);
        // Channels stay last in memory, because cutting patches moves every pixel anyway.
        images.permute([0, 3, 1, 2])
    }

    /// Freezes the image encoder permanently: [`Vit::freeze`]. It can't be saved afterwards.
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
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nets::testing::{seeded, small};
    use crate::{Head, Pool, RelPos, TextConfig, VitConfig};

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

    /// The rule as it was written over names, before nets said their layers themselves (EVA-02, `optim_factory.py`): the share
    /// of the learning rate, and whether a tensor decays.
    mod by_name {
        use std::collections::BTreeMap;

        use tch::Tensor;

        pub fn decays(name: &str, tensor: &Tensor) -> bool {
            let last = name.rsplit('.').next().unwrap_or(name);
            tensor.dim() > 1
                && !name.ends_with(".bias")
                && !["pos_embed", "positional_embedding", "cls_token", "mask_token"].contains(&last)
        }

        fn block(name: &str) -> (&str, Option<u32>) {
            let mut parts = name.split('.');
            let tower = parts.next().unwrap_or("");
            let index = parts
                .skip_while(|&part| part != "blocks" && part != "resblocks")
                .nth(1)
                .and_then(|index| index.parse().ok());
            (tower, index)
        }

        pub fn depths<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<String, u32> {
            let mut depths = BTreeMap::new();
            for name in names {
                let (tower, index) = block(name);
                let depth = depths.entry(tower.to_owned()).or_insert(0);
                *depth = index.map_or(0, |i| i + 1).max(*depth);
            }
            depths
        }

        pub fn lr_scale(name: &str, depths: &BTreeMap<String, u32>, decay: f64) -> f64 {
            let (tower, index) = block(name);
            let last = depths.get(tower).copied().unwrap_or(0) + 1;
            let embeds = ["patch_embed", "pos_embed", "cls_token", "mask_token"]
                .iter()
                .chain(&["token_embedding", "positional_embedding"])
                .any(|part| name.split('.').any(|p| p == *part));
            let id = match index {
                Some(i) => i + 1,
                None if embeds => 0,
                None => last,
            };
            decay.powi((last - id) as i32)
        }
    }

    #[test]
    fn layers_and_decay_are_those_that_names_gave_for_every_preset_and_build() {
        let mut configs: Vec<ClipConfig> = crate::preset_names()
            .iter()
            .map(|name| {
                let text = TextConfig::preset(name).ok();
                ClipConfig::new(VitConfig::preset(name).unwrap(), text)
            })
            .collect();
        let builds = [
            VitConfig { mask_token: true, attn_norm: true, ..small().vision },
            VitConfig { rel_pos: RelPos::Shared, abs_pos: false, rope: false, ..small().vision },
            VitConfig { rel_pos: RelPos::Blocks, layer_scale: true, ..small().vision },
            VitConfig { norm_pre: true, k_bias: true, head: Head::Plain, ..small().vision },
            VitConfig { pool: Pool::Mean, head: Head::None, out: 16, ..small().vision },
        ];
        configs.extend(builds.map(|vision| ClipConfig::new(vision, None)));
        configs.push(small());
        for config in configs {
            let clip = Clip::build(&config, Device::Cpu, true);
            let parameters = clip.parameters();
            let variables = clip.variables();
            let names = parameters.iter().map(|parameter| &parameter.name);
            assert!(names.eq(variables.iter().map(|(name, _)| name)));
            let depths = by_name::depths(variables.iter().map(|(name, _)| name.as_str()));
            for Parameter { name, tensor, layer, decays } in &parameters {
                assert_eq!(*decays, by_name::decays(name, tensor), "{name}");
                for decay in [0.7, 0.85, 1.0] {
                    let wanted = by_name::lr_scale(name, &depths, decay);
                    assert_eq!(layer.lr_scale(decay), wanted, "{name} {layer:?}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_learn_is_no_parameter() {
        let _rng = seeded(0);
        let mut clip = Clip::new(&small(), Device::Cpu);
        let count = |clip: &Clip, prefix: &str| {
            clip.parameters().iter().filter(|p| p.name.starts_with(prefix)).count()
        };
        assert!(count(&clip, "visual.") > 20 && count(&clip, "text.") > 10);
        assert_eq!(count(&clip, "logit_scale"), 1);
        for (name, tensor) in clip.variables() {
            if !name.starts_with("visual.") {
                let _ = tensor.set_requires_grad(false);
            }
        }
        assert_eq!(count(&clip, "visual."), clip.parameters().len());
        clip.freeze(torch_ext::Precision::F32);
        assert_eq!(clip.parameters().len(), 0);
    }
}
