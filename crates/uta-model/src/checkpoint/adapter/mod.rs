//! Checkpoint families: the same networks under other names. An [`Adapter`] is a table from a family's keys to ours and
//! back; model code knows our names only.
//!
//! A family is a constant in the file of the program that writes it. To add one: its constant, and its line in
//! [`Adapter::ALL`].

mod builds;
mod eva;
mod hugging_face;
mod layout;
mod open_clip;
mod rules;
mod timm;
mod uta;

use std::collections::BTreeMap;

use tch::Tensor;

pub(crate) use self::builds::is_clip;
pub use self::layout::Layout;
pub use self::rules::Adapter;
use self::rules::{Has, Packed, Sign};
use crate::{ModelError, VitConfig};

impl Adapter {
    /// Every family, those with the more telling signs first.
    pub const ALL: &'static [Adapter] = &[
        hugging_face::CLIP,
        open_clip::CLIP,
        open_clip::EVA02_TRUNK,
        open_clip::PACKED_EVA02_TRUNK,
        open_clip::EVA_TRUNK,
        open_clip::VIT_TRUNK,
        eva::FUSED_CLIP,
        eva::SPLIT_CLIP,
        Adapter::UTA,
        timm::VIT,
        Adapter::TIMM_EVA02,
        timm::PACKED_EVA02,
        eva::PRETRAINING,
        eva::FUSED_PRETRAINING,
        Adapter::TIMM_EVA01,
    ];

    /// The family of a file, told by its keys; `None` when it is none of them.
    pub fn detect(tensors: &BTreeMap<String, Tensor>) -> Option<&'static Adapter> {
        let size =
            |key: &str, dim: usize| tensors.get(key).and_then(|t| t.size().get(dim).copied());
        let holds = |sign: &Sign| match sign {
            Has(key) => tensors.contains_key(*key),
            Packed(up, down) => {
                size(up, 0).is_some() && size(up, 0) == size(down, 1).map(|n| 2 * n)
            }
        };
        Adapter::ALL.iter().find(|adapter| adapter.signs.iter().all(holds))
    }

    /// The names that `layout` has for such an image encoder.
    ///
    /// # Errors
    /// When it has none.
    pub fn for_export(layout: Layout, vision: &VitConfig) -> Result<&'static Adapter, ModelError> {
        let fits = |a: &&Adapter| a.layout == layout && (a.expresses)(vision);
        Adapter::ALL.iter().find(fits).ok_or_else(|| {
            let name = Layout::ALL.iter().find(|(_, l)| *l == layout).map_or("", |(name, _)| name);
            let build = builds::in_words(vision).join(", ");
            ModelError::Config(format!(
                "the layout {name} has no names for an image encoder of this build: {build}; --to uta comes with a loader \
                 for PyTorch"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::nets::testing::seeded;
    use crate::{Clip, ClipConfig, Ffn, Head, Pool, RelPos, TextConfig};

    fn small(preset: &str) -> VitConfig {
        let preset = VitConfig::preset(preset).unwrap();
        let out = if preset.head == Head::None { 16 } else { 8 };
        VitConfig {
            image_size: 16,
            patch_size: 8,
            width: 16,
            depth: 2,
            heads: 2,
            hidden: 24,
            out,
            ..preset
        }
    }

    fn plain() -> VitConfig {
        VitConfig {
            ffn: Ffn::QuickGelu,
            rope: false,
            norm_pre: true,
            k_bias: true,
            head: Head::Plain,
            eps: 1e-5,
            ..small("uta-b14")
        }
    }

    fn beit() -> VitConfig {
        VitConfig {
            ffn: Ffn::Gelu,
            rope: false,
            abs_pos: false,
            rel_pos: RelPos::Blocks,
            layer_scale: true,
            pool: Pool::Mean,
            ..small("uta-b14")
        }
    }

    fn packed() -> VitConfig {
        VitConfig { ffn_norm: false, mask_token: true, ..small("uta-b14") }
    }

    /// Every tensor of a small net, its values its own.
    fn tensors(vision: &VitConfig, text: bool) -> BTreeMap<String, Tensor> {
        let text = text.then_some(TextConfig {
            context_length: 6,
            vocab_size: 20,
            width: 16,
            heads: 2,
            layers: 2,
            out: vision.out,
            quick_gelu: false,
        });
        let _rng = seeded(0);
        let clip = Clip::new(&ClipConfig::new(vision.clone(), text), Device::Cpu);
        let draw = |(key, t): (String, Tensor)| (key, t.detach().randn_like());
        clip.variables().into_iter().map(draw).collect()
    }

    fn copy(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        tensors.iter().map(|(key, tensor)| (key.clone(), tensor.shallow_clone())).collect()
    }

    #[test]
    fn every_family_gives_back_every_tensor_and_is_known_by_its_keys() {
        let nets = [
            small("uta-b14"),
            VitConfig { attn_norm: true, ..small("uta-b14") },
            VitConfig { mask_token: true, ..small("uta-b14") },
            small("eva01-g-14-plus"),
            VitConfig { mask_token: true, ..small("eva01-g-14-plus") },
            packed(),
            VitConfig { mask_token: false, ..packed() },
            plain(),
            VitConfig { norm_pre: false, head: Head::None, out: 16, ..plain() },
            beit(),
            VitConfig { rel_pos: RelPos::Shared, mask_token: true, pool: Pool::Cls, ..beit() },
        ];
        let mut used = vec![];
        for net in &nets {
            for adapter in Adapter::ALL.iter().filter(|adapter| (adapter.expresses)(net)) {
                let ours = tensors(net, matches!(adapter.layout, Layout::OpenClip | Layout::Hf));
                let theirs = adapter.export(copy(&ours));
                let found = Adapter::detect(&theirs).unwrap();
                let again = found.import(theirs);
                assert!(again.keys().eq(ours.keys()), "{} as {}", adapter.family, found.family);
                for (key, tensor) in &ours {
                    assert_eq!(&again[key], tensor, "{} {key}", adapter.family);
                }
                used.push(adapter.family);
            }
        }
        for adapter in Adapter::ALL {
            assert!(used.contains(&adapter.family), "{} has no test", adapter.family);
        }
    }

    #[test]
    fn names_are_timms() {
        let theirs = Adapter::TIMM_EVA02.export(tensors(&small("uta-b14"), false));
        for key in [
            "patch_embed.proj.weight",
            "blocks.1.attn.q_proj.bias",
            "blocks.1.attn.k_proj.weight",
            "blocks.1.mlp.fc1_g.weight",
            "blocks.1.mlp.fc1_x.bias",
            "blocks.1.mlp.norm.weight",
            "blocks.1.mlp.fc2.weight",
            "head.weight",
        ] {
            assert!(theirs.contains_key(key), "{key}");
        }
        let theirs = Adapter::TIMM_EVA01.export(tensors(&small("eva01-g-14-plus"), false));
        assert_eq!(theirs["blocks.1.attn.qkv.weight"].size(), [48, 16]);
        assert!(
            theirs.contains_key("blocks.1.attn.q_bias")
                && theirs.contains_key("blocks.1.mlp.fc1.bias")
        );
    }

    #[test]
    fn buffers_are_ignored_and_unknown_names_are_kept() {
        let import = |adapter: &Adapter, key: &str| {
            let found = adapter.import([(key.to_owned(), Tensor::from(0f32))].into());
            found.into_keys().next()
        };
        for (family, key) in [
            ("uta, eva-clip", "visual.rope.freqs_cos"),
            ("uta, eva-clip", "visual.blocks.11.attn.rope.freqs_sin"),
            ("openai, open_clip", "attn_mask"),
            ("openai, open_clip", "input_resolution"),
            ("openai, open_clip", "logit_bias"),
            ("hugging face clip", "text_model.embeddings.position_ids"),
            ("timm eva, beit", "blocks.3.attn.relative_position_index"),
        ] {
            let adapter = Adapter::ALL.iter().find(|a| a.family == family).unwrap();
            assert_eq!(import(adapter, key), None, "{family} {key}");
            assert_eq!(
                import(adapter, "odd.thing").unwrap().trim_start_matches("visual."),
                "odd.thing"
            );
        }
    }

    #[test]
    fn what_can_not_be_cut_turned_or_joined_keeps_its_name() {
        let open_clip = &Adapter::ALL[1];
        let hf = &Adapter::ALL[0];
        for (adapter, key, shape) in [
            (open_clip, "visual.transformer.resblocks.0.attn.in_proj_weight", &[][..]),
            (open_clip, "visual.transformer.resblocks.0.attn.in_proj_weight", &[4, 4]),
            (open_clip, "visual.proj", &[4]),
            (hf, "text_model.encoder.layers.0.self_attn.q_proj.weight", &[4, 4]),
        ] {
            let tensor = Tensor::zeros(shape, (Kind::Float, Device::Cpu));
            let found = adapter.import([(key.to_owned(), tensor)].into());
            assert!(found.keys().eq([key]), "{found:?}");
        }
    }

    #[test]
    fn a_layout_without_names_for_a_net_says_so() {
        let e = Adapter::for_export(Layout::Hf, &small("uta-b14")).unwrap_err().to_string();
        assert!(e.contains("layout hf") && e.contains("rotary embedding"), "{e}");
        let relative = VitConfig { rel_pos: RelPos::Blocks, ..plain() };
        let swiglu = VitConfig { rel_pos: RelPos::Blocks, ..small("uta-b14") };
        for (net, layouts) in [
            (&relative, &[Layout::Hf, Layout::OpenClip, Layout::Timm, Layout::EvaClip][..]),
            (&beit(), &[Layout::Hf, Layout::OpenClip]),
            (&swiglu, &[Layout::Hf, Layout::OpenClip, Layout::Timm]),
        ] {
            for layout in layouts {
                let e = Adapter::for_export(*layout, net).unwrap_err().to_string();
                assert!(e.contains("relative positions"), "{layout:?}: {e}");
            }
        }
        assert!(Adapter::for_export(Layout::Timm, &beit()).is_ok());
        let e = "onnx".parse::<Layout>().unwrap_err().to_string();
        assert!(e.contains("open-clip"), "{e}");
    }
}
