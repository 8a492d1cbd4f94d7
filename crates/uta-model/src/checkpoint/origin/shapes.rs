//! The net that has tensors of such shapes, and what is assumed where shapes don't tell.

use std::collections::BTreeMap;
use std::path::Path;

use tch::Tensor;

use crate::nets::config::{IMAGENET_MEAN, IMAGENET_STD};
use crate::{ClipConfig, Ffn, Head, ModelError, Pool, RelPos, TextConfig, VitConfig};

/// Channels of a head, where it isn't 64, by a tower's width: open_clip's and EVA's configs.
const HEAD_WIDTHS: [(i64, i64); 4] = [(1280, 80), (1408, 88), (1664, 104), (1792, 112)];

/// The width of bigE, the one EVA net with post-norm blocks: no shape tells them from pre-norm ones.
const POST_NORM_WIDTH: i64 = 1792;

/// Parts of file and folder names that tell whether the activation is QuickGELU, the more telling first
/// (`open_clip/pretrained.py`).
const QUICK_GELU_TAGS: [(&str, bool); 9] = [
    ("quickgelu", true),
    ("laion", false),
    ("datacomp", false),
    ("commonpool", false),
    ("dfn2b_s39b", false),
    ("openai", true),
    ("metaclip", true),
    ("dfn2b", true),
    ("dfn5b", true),
];

/// Whether an encoder is MAE's or BEiT's, which saw ImageNet's pixel statistics.
pub(super) fn knows_no_clip(c: &VitConfig) -> bool {
    c.rel_pos != RelPos::None || (c.k_bias && !c.norm_pre)
}

/// The net that has such tensors, under this program's names.
pub(super) fn infer(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<ClipConfig, ModelError> {
    let size = |key: &str, dim: usize| tensors.get(key).and_then(|t| t.size().get(dim).copied());
    let need = |key: &str, dim: usize| {
        size(key, dim).filter(|&n| n > 0).ok_or_else(|| {
            let message = format!("has no {key} of use, so that the net must be named: --arch");
            ModelError::format(path, message)
        })
    };
    let has = |key: &str| tensors.contains_key(key);
    let blocks = |prefix: &str| {
        let number =
            |key: &String| key.strip_prefix(prefix)?.split('.').next()?.parse::<i64>().ok();
        tensors.keys().filter_map(number).max().map_or(0, |last| last.saturating_add(1))
    };

    let width = need("visual.cls_token", 2)?;
    let patch_size = need("visual.patch_embed.proj.weight", 2)?;
    let tables = [
        (RelPos::Blocks, "visual.blocks.0.attn.relative_position_bias_table"),
        (RelPos::Shared, "visual.rel_pos_bias.relative_position_bias_table"),
    ];
    let table = tables.iter().find(|(_, key)| has(key));
    let grid = match table {
        Some((_, key)) => ((need(key, 0)? - 3).max(0).isqrt() + 1) / 2,
        None => (need("visual.pos_embed", 1)? - 1).isqrt(),
    };
    let heads = match table {
        Some((_, key)) => need(key, 1)?,
        None => {
            let known = HEAD_WIDTHS.iter().find(|(w, _)| *w == width);
            (width / known.map_or(64, |(_, head_width)| *head_width)).max(1)
        }
    };
    let gated = has("visual.blocks.0.mlp.w1.weight");
    let hidden =
        if gated { "visual.blocks.0.mlp.w1.weight" } else { "visual.blocks.0.mlp.fc1.weight" };
    let head = match (has("visual.head.weight"), has("visual.head.bias")) {
        (true, true) => Head::Biased,
        (true, false) => Head::Plain,
        (false, _) => Head::None,
    };
    let k_bias = has("visual.blocks.0.attn.k_bias");
    let norm_pre = has("visual.norm_pre.weight");
    let vision = VitConfig {
        image_size: grid.saturating_mul(patch_size),
        patch_size,
        width,
        depth: blocks("visual.blocks."),
        heads,
        hidden: need(hidden, 0)?,
        out: size("visual.head.weight", 0).unwrap_or(width),
        ffn: if gated { Ffn::SwiGlu } else { Ffn::Gelu },
        rope: gated,
        drop_path: 0.0,
        patch_grad: 1.0,
        ffn_norm: !gated || has("visual.blocks.0.mlp.ffn_ln.weight"),
        attn_norm: has("visual.blocks.0.attn.inner_attn_ln.weight"),
        post_norm: width == POST_NORM_WIDTH && !k_bias,
        norm_pre,
        k_bias,
        head,
        pool: if has("visual.fc_norm.weight") { Pool::Mean } else { Pool::Cls },
        abs_pos: has("visual.pos_embed"),
        rel_pos: table.map_or(RelPos::None, |(kind, _)| *kind),
        layer_scale: has("visual.blocks.0.gamma_1"),
        mask_token: has("visual.mask_token"),
        eps: if norm_pre { 1e-5 } else { 1e-6 },
    };
    let text = if has("text.token_embedding.weight") {
        let width = need("text.token_embedding.weight", 1)?;
        Some(TextConfig {
            context_length: need("text.positional_embedding", 0)?,
            vocab_size: need("text.token_embedding.weight", 0)?,
            width,
            heads: width / 64,
            layers: blocks("text.transformer.resblocks."),
            out: need("text.text_projection", 1)?,
            quick_gelu: false,
        })
    } else {
        None
    };
    let mut config = ClipConfig::new(vision, text);
    if knows_no_clip(&config.vision) && config.text.is_none() {
        (config.mean, config.std) = (IMAGENET_MEAN, IMAGENET_STD);
    }
    Ok(config)
}

/// Assumes what shapes don't tell, where there is no configuration, and notes it.
pub(super) fn assume(
    weights: &Path,
    openai: bool,
    config: &mut ClipConfig,
    notes: &mut Vec<String>,
) {
    let vision = &config.vision;
    let known = |name: &String| {
        VitConfig::preset(name).is_ok_and(|p| {
            (p.width, p.depth, p.heads) == (vision.width, vision.depth, vision.heads)
        })
    };
    // A table of relative positions has a column for each head.
    if vision.rel_pos == RelPos::None && !crate::preset_names().iter().any(known) {
        notes.push(format!(
            "{} attention heads of {} channels assumed, because no shape tells and no known net has these sizes; \
             --arch takes a configuration file that says it",
            vision.heads,
            vision.head_width()
        ));
    }
    if knows_no_clip(vision) && config.text.is_none() {
        let what = "pixels are normalised as ImageNet's, as MAE's and BEiT v2's were: nothing beside the weights tells";
        notes.push(what.into());
    }
    if !(vision.k_bias && vision.norm_pre) {
        return;
    }
    let names = [weights.parent().and_then(Path::file_name), weights.file_name()];
    let names: Vec<String> =
        names.into_iter().flatten().map(|n| n.to_string_lossy().to_lowercase()).collect();
    let tag = QUICK_GELU_TAGS.iter().find(|(tag, _)| names.iter().any(|name| name.contains(tag)));
    let quick = match (openai, tag) {
        (true, _) => true,
        (false, Some((tag, quick))) => {
            let activation = if *quick { "QuickGELU" } else { "GELU" };
            notes.push(format!("{activation} taken, because the name says {tag}"));
            *quick
        }
        (false, None) => {
            let what = "GELU assumed, as in LAION's and DataComp's weights, because neither the file nor its name tells; \
                        OpenAI's, MetaCLIP's and DFN's have QuickGELU, and the wrong one costs points silently: name the \
                        net with --arch (vit-b-32-quickgelu, ...)";
            notes.push(what.into());
            false
        }
    };
    set_quick_gelu(config, quick);
}

fn set_quick_gelu(config: &mut ClipConfig, quick: bool) {
    config.vision.ffn = if quick { Ffn::QuickGelu } else { Ffn::Gelu };
    if let Some(text) = &mut config.text {
        text.quick_gelu = quick;
    }
}
