//! OpenAI's names, which are open_clip's too; and open_clip's around image encoders of timm.

use super::builds::{is_clip, is_fused, is_packed, is_split, is_trunk_vit};
use super::layout::Layout;
use super::rules::{
    Adapter, Batched, FUSED, Has, Packed, Part, Rule, SCALE, Same, TEXT, Transposed,
};
use super::timm::{TIMM_PACKED, TIMM_SPLIT, TIMM_VIT};
use crate::RelPos;

/// OpenAI's image encoder (`clip/model.py`; `open_clip/transformer.py`).
const CLIP_VISION: &[Rule] = &[
    (&["class_embedding"], &["cls_token"], Batched(2)),
    (&["positional_embedding"], &["pos_embed"], Batched(1)),
    (&["conv1.*"], &["patch_embed.proj.*"], Same),
    (&["ln_pre.*"], &["norm_pre.*"], Same),
    (&["transformer.resblocks.*.ln_1.*"], &["blocks.*.norm1.*"], Same),
    (&["transformer.resblocks.*.ln_2.*"], &["blocks.*.norm2.*"], Same),
    (
        &["transformer.resblocks.*.attn.in_proj_weight"],
        &[
            "blocks.*.attn.q_proj.weight",
            "blocks.*.attn.k_proj.weight",
            "blocks.*.attn.v_proj.weight",
        ],
        Same,
    ),
    (
        &["transformer.resblocks.*.attn.in_proj_bias"],
        &["blocks.*.attn.q_bias", "blocks.*.attn.k_bias", "blocks.*.attn.v_bias"],
        Same,
    ),
    (&["transformer.resblocks.*.attn.out_proj.*"], &["blocks.*.attn.proj.*"], Same),
    (&["transformer.resblocks.*.mlp.c_fc.*"], &["blocks.*.mlp.fc1.*"], Same),
    (&["transformer.resblocks.*.mlp.c_proj.*"], &["blocks.*.mlp.fc2.*"], Same),
    (&["transformer.resblocks.*.ls_1.gamma"], &["blocks.*.gamma_1"], Same),
    (&["transformer.resblocks.*.ls_2.gamma"], &["blocks.*.gamma_2"], Same),
    (&["ln_post.*"], &["norm.*"], Same),
    (&["proj"], &["head.weight"], Transposed),
];

/// OpenAI's text encoder at the root of a file, beside `visual.*`.
const CLIP_TEXT: &[Rule] = &[
    (&["token_embedding.weight"], &["token_embedding.weight"], Same),
    (&["positional_embedding"], &["positional_embedding"], Same),
    (&["transformer.**"], &["transformer.**"], Same),
    (&["ln_final.*"], &["ln_final.*"], Same),
    (&["text_projection"], &["text_projection"], Same),
];

pub(super) const FLAT_TEXT: Part = ("", "text.", CLIP_TEXT);

const HEAD_PROJ: Part = ("visual.head.proj.", "visual.head.", &[(&["*"], &["*"], Same)]);

/// Buffers, and a bias of logits that no embedding depends on.
const CLIP_IGNORED: &[&str] = &[
    "attn_mask",
    "transformer.resblocks.*.attn_mask",
    "text.attn_mask",
    "logit_bias",
    "input_resolution",
    "context_length",
    "vocab_size",
    "visual.trunk.rope.**",
];

/// OpenAI's own files, and open_clip's plain ViTs.
pub(super) const CLIP: Adapter = Adapter {
    family: "openai, open_clip",
    layout: Layout::OpenClip,
    signs: &[Has("visual.class_embedding"), Has("visual.conv1.weight")],
    expresses: is_clip,
    parts: &[("visual.", "visual.", CLIP_VISION), FLAT_TEXT, TEXT, SCALE],
    ignored: CLIP_IGNORED,
};

/// EVA-02 B and L of timm in open_clip.
pub(super) const EVA02_TRUNK: Adapter = Adapter {
    family: "open_clip, timm eva02 trunk",
    layout: Layout::OpenClip,
    signs: &[Has("visual.trunk.blocks.0.mlp.fc1_g.weight")],
    expresses: |c| is_split(c) && !c.mask_token,
    parts: &[("visual.trunk.", "visual.", TIMM_SPLIT), HEAD_PROJ, TEXT, FLAT_TEXT, SCALE],
    ignored: CLIP_IGNORED,
};

/// EVA-02 Ti and S of timm in open_clip.
pub(super) const PACKED_EVA02_TRUNK: Adapter = Adapter {
    family: "open_clip, timm packed eva02 trunk",
    layout: Layout::OpenClip,
    signs: &[
        Packed("visual.trunk.blocks.0.mlp.fc1.weight", "visual.trunk.blocks.0.mlp.fc2.weight"),
        Has("visual.trunk.blocks.0.attn.q_bias"),
    ],
    expresses: |c| is_packed(c) && !c.mask_token,
    parts: &[("visual.trunk.", "visual.", TIMM_PACKED), HEAD_PROJ, TEXT, FLAT_TEXT, SCALE],
    ignored: CLIP_IGNORED,
};

/// EVA-01 and bigE of timm in open_clip.
pub(super) const EVA_TRUNK: Adapter = Adapter {
    family: "open_clip, timm eva trunk",
    layout: Layout::OpenClip,
    signs: &[
        Has("visual.trunk.blocks.0.attn.qkv.weight"),
        Has("visual.trunk.blocks.0.attn.q_bias"),
    ],
    expresses: |c| is_fused(c) && c.rel_pos == RelPos::None && !c.mask_token,
    parts: &[("visual.trunk.", "visual.", FUSED), HEAD_PROJ, TEXT, FLAT_TEXT, SCALE],
    ignored: CLIP_IGNORED,
};

/// Plain ViTs of timm in open_clip.
pub(super) const VIT_TRUNK: Adapter = Adapter {
    family: "open_clip, timm vit trunk",
    layout: Layout::OpenClip,
    signs: &[Has("visual.trunk.blocks.0.attn.qkv.bias")],
    expresses: is_trunk_vit,
    parts: &[HEAD_PROJ, ("visual.trunk.", "visual.", TIMM_VIT), TEXT, FLAT_TEXT, SCALE],
    ignored: CLIP_IGNORED,
};
