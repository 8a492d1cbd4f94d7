//! timm's names of image encoders, alone in their file or, as a trunk, in open_clip's.

use super::builds::{is_fused, is_packed, is_split, is_timm_vit};
use super::layout::Layout;
use super::rules::{ANY, Adapter, FUSED, Has, Packed, QKV, QKV_BIAS, Rule, Same};

/// EVA-02 B and L in timm's words, q, k and v apart (`timm/models/eva.py`).
pub(super) const TIMM_SPLIT: &[Rule] = &[
    (&["blocks.*.attn.q_proj.bias"], &["blocks.*.attn.q_bias"], Same),
    (&["blocks.*.attn.v_proj.bias"], &["blocks.*.attn.v_bias"], Same),
    (&["blocks.*.attn.norm.*"], &["blocks.*.attn.inner_attn_ln.*"], Same),
    (&["blocks.*.mlp.fc1_g.*"], &["blocks.*.mlp.w1.*"], Same),
    (&["blocks.*.mlp.fc1_x.*"], &["blocks.*.mlp.w2.*"], Same),
    (&["blocks.*.mlp.norm.*"], &["blocks.*.mlp.ffn_ln.*"], Same),
    (&["blocks.*.mlp.fc2.*"], &["blocks.*.mlp.w3.*"], Same),
    ANY,
];

/// EVA-02 Ti and S in timm's words.
pub(super) const TIMM_PACKED: &[Rule] = &[
    QKV,
    (&["blocks.*.mlp.fc1.*"], &["blocks.*.mlp.w1.*", "blocks.*.mlp.w2.*"], Same),
    (&["blocks.*.mlp.fc2.*"], &["blocks.*.mlp.w3.*"], Same),
    ANY,
];

/// timm's plain ViT (`timm/models/vision_transformer.py`), whose names MAE has too.
pub(super) const TIMM_VIT: &[Rule] = &[
    QKV,
    QKV_BIAS,
    (&["blocks.*.ls1.gamma"], &["blocks.*.gamma_1"], Same),
    (&["blocks.*.ls2.gamma"], &["blocks.*.gamma_2"], Same),
    ANY,
];

pub(super) const EVA_IGNORED: &[&str] = &[
    "rope.*",
    "blocks.*.attn.rope.*",
    "relative_position_index",
    "rel_pos_bias.relative_position_index",
    "blocks.*.attn.relative_position_index",
];

/// timm's plain ViT, and MAE's, which has its names.
pub(super) const VIT: Adapter = Adapter {
    family: "timm vit, mae",
    layout: Layout::Timm,
    signs: &[Has("blocks.0.attn.qkv.bias"), Has("patch_embed.proj.weight")],
    expresses: is_timm_vit,
    parts: &[("", "visual.", TIMM_VIT)],
    // The rest of MAE's pre-training: its mask token is the decoder's.
    ignored: &[
        "mask_token",
        "decoder_pos_embed",
        "decoder_embed.*",
        "decoder_blocks.**",
        "decoder_norm.*",
        "decoder_pred.*",
    ],
};

/// EVA-02 Ti and S, where q, k and v are one tensor.
pub(super) const PACKED_EVA02: Adapter = Adapter {
    family: "timm packed eva02",
    layout: Layout::Timm,
    signs: &[
        Packed("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"),
        Has("blocks.0.attn.q_bias"),
    ],
    expresses: |c| is_packed(c) && !c.mask_token,
    parts: &[("", "visual.", TIMM_PACKED)],
    ignored: EVA_IGNORED,
};

impl Adapter {
    /// The image encoder in timm's words where q, k and v are apart: EVA-02 B and L.
    pub const TIMM_EVA02: Adapter = Adapter {
        family: "timm eva02",
        layout: Layout::Timm,
        signs: &[Has("blocks.0.mlp.fc1_g.weight")],
        expresses: |c| is_split(c) && !c.mask_token,
        parts: &[("", "visual.", TIMM_SPLIT)],
        ignored: EVA_IGNORED,
    };

    /// The image encoder in timm's words where q, k and v are one: EVA-01 g (the paper's teacher), bigE, BEiT.
    pub const TIMM_EVA01: Adapter = Adapter {
        family: "timm eva, beit",
        layout: Layout::Timm,
        signs: &[Has("blocks.0.attn.qkv.weight"), Has("blocks.0.attn.q_bias")],
        expresses: |c| is_fused(c) && !c.mask_token,
        parts: &[("", "visual.", FUSED)],
        ignored: EVA_IGNORED,
    };
}
