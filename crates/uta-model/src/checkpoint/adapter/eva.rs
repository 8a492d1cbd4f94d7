//! EVA's names: EVA-CLIP's, and those of its image encoders in pre-training, which are BEiT's too.

use super::builds::{is_fused, is_packed, is_split};
use super::layout::Layout;
use super::open_clip::FLAT_TEXT;
use super::rules::{Adapter, FUSED, Has, Part, SAME, SCALE, TEXT};
use super::timm::EVA_IGNORED;
use crate::RelPos;

const MIM_HEAD: Part = ("lm_head.", "visual.head.", SAME);

/// EVA-CLIP's names where q, k and v are one tensor.
pub(super) const FUSED_CLIP: Adapter = Adapter {
    family: "eva-clip, fused",
    layout: Layout::EvaClip,
    signs: &[Has("visual.blocks.0.attn.qkv.weight"), Has("visual.blocks.0.attn.q_bias")],
    expresses: |c| is_fused(c) && c.rel_pos == RelPos::None && !c.mask_token,
    parts: &[("visual.", "visual.", FUSED), TEXT, FLAT_TEXT, SCALE],
    ignored: &["visual.rope.*", "visual.blocks.*.attn.rope.*", "text.attn_mask"],
};

/// EVA-CLIP's names where q, k and v are three tensors: they are our own.
pub(super) const SPLIT_CLIP: Adapter = Adapter {
    layout: Layout::EvaClip,
    // Its SwiGLU comes with both inner norms or, with q, k and v in one, with none.
    expresses: |c| is_split(c) && c.attn_norm && !c.mask_token,
    ..Adapter::UTA
};

/// Names in EVA-02's pre-training.
pub(super) const PRETRAINING: Adapter = Adapter {
    family: "eva02 pre-training",
    layout: Layout::EvaClip,
    signs: &[Has("blocks.0.attn.q_proj.weight"), Has("blocks.0.mlp.w1.weight")],
    expresses: |c| is_split(c) && c.mask_token,
    parts: &[MIM_HEAD, ("", "visual.", SAME)],
    ignored: EVA_IGNORED,
};

/// Names in EVA-01's and BEiT's pre-training.
pub(super) const FUSED_PRETRAINING: Adapter = Adapter {
    family: "eva, beit pre-training",
    layout: Layout::EvaClip,
    signs: &[Has("blocks.0.attn.qkv.weight"), Has("blocks.0.attn.q_bias"), Has("mask_token")],
    expresses: |c| (is_fused(c) || is_packed(c)) && c.mask_token,
    parts: &[MIM_HEAD, ("", "visual.", FUSED)],
    // BEiT v2 trains a short second branch besides.
    ignored: &[
        "rope.*",
        "blocks.*.attn.rope.*",
        "rel_pos_bias.relative_position_index",
        "blocks.*.attn.relative_position_index",
        "cls_pt_layers.**",
        "cls_pt_norm.*",
        "cls_pt_lm_head.*",
    ],
};
