//! Hugging Face's names: `CLIPModel`.

use super::builds::is_clip;
use super::layout::Layout;
use super::rules::{Adapter, Batched, Has, Rule, SAME, SCALE, Same, Transposed};

/// Hugging Face's image encoder (`transformers/models/clip/modeling_clip.py`; the misspelt norm is theirs).
const HF_VISION: &[Rule] = &[
    (&["embeddings.class_embedding"], &["cls_token"], Batched(2)),
    (&["embeddings.position_embedding.weight"], &["pos_embed"], Batched(1)),
    (&["embeddings.patch_embedding.*"], &["patch_embed.proj.*"], Same),
    (&["pre_layrnorm.*"], &["norm_pre.*"], Same),
    (&["encoder.layers.*.layer_norm1.*"], &["blocks.*.norm1.*"], Same),
    (&["encoder.layers.*.layer_norm2.*"], &["blocks.*.norm2.*"], Same),
    (&["encoder.layers.*.self_attn.q_proj.bias"], &["blocks.*.attn.q_bias"], Same),
    (&["encoder.layers.*.self_attn.k_proj.bias"], &["blocks.*.attn.k_bias"], Same),
    (&["encoder.layers.*.self_attn.v_proj.bias"], &["blocks.*.attn.v_bias"], Same),
    (&["encoder.layers.*.self_attn.out_proj.*"], &["blocks.*.attn.proj.*"], Same),
    (&["encoder.layers.*.self_attn.*.weight"], &["blocks.*.attn.*.weight"], Same),
    (&["encoder.layers.*.mlp.*.*"], &["blocks.*.mlp.*.*"], Same),
    (&["post_layernorm.*"], &["norm.*"], Same),
];

/// Hugging Face's text encoder.
const HF_TEXT: &[Rule] = &[
    (&["embeddings.token_embedding.weight"], &["token_embedding.weight"], Same),
    (&["embeddings.position_embedding.weight"], &["positional_embedding"], Same),
    (&["encoder.layers.*.layer_norm1.*"], &["transformer.resblocks.*.ln_1.*"], Same),
    (&["encoder.layers.*.layer_norm2.*"], &["transformer.resblocks.*.ln_2.*"], Same),
    (
        &[
            "encoder.layers.*.self_attn.q_proj.weight",
            "encoder.layers.*.self_attn.k_proj.weight",
            "encoder.layers.*.self_attn.v_proj.weight",
        ],
        &["transformer.resblocks.*.attn.in_proj_weight"],
        Same,
    ),
    (
        &[
            "encoder.layers.*.self_attn.q_proj.bias",
            "encoder.layers.*.self_attn.k_proj.bias",
            "encoder.layers.*.self_attn.v_proj.bias",
        ],
        &["transformer.resblocks.*.attn.in_proj_bias"],
        Same,
    ),
    (
        &["encoder.layers.*.self_attn.out_proj.*"],
        &["transformer.resblocks.*.attn.out_proj.*"],
        Same,
    ),
    (&["encoder.layers.*.mlp.fc1.*"], &["transformer.resblocks.*.mlp.c_fc.*"], Same),
    (&["encoder.layers.*.mlp.fc2.*"], &["transformer.resblocks.*.mlp.c_proj.*"], Same),
    (&["final_layer_norm.*"], &["ln_final.*"], Same),
];

/// A `CLIPModel`.
pub(super) const CLIP: Adapter = Adapter {
    family: "hugging face clip",
    layout: Layout::Hf,
    signs: &[Has("vision_model.encoder.layers.0.self_attn.q_proj.weight")],
    expresses: is_clip,
    parts: &[
        ("vision_model.", "visual.", HF_VISION),
        ("visual_projection.", "visual.head.", SAME),
        ("text_model.", "text.", HF_TEXT),
        ("", "text.", &[(&["text_projection.weight"], &["text_projection"], Transposed)]),
        SCALE,
    ],
    ignored: &["vision_model.embeddings.position_ids", "text_model.embeddings.position_ids"],
};
