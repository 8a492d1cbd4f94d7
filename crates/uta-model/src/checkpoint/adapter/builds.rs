//! Builds of image encoders that checkpoint families have names for.

use crate::{Ffn, Head, Pool, RelPos, VitConfig};

pub(super) fn is_split(c: &VitConfig) -> bool {
    c.ffn == Ffn::SwiGlu && c.ffn_norm && c.rel_pos == RelPos::None && is_eva(c)
}

pub(super) fn is_packed(c: &VitConfig) -> bool {
    let swiglu = c.ffn == Ffn::SwiGlu && !c.ffn_norm && !c.attn_norm;
    swiglu && c.rel_pos == RelPos::None && is_eva(c)
}

pub(super) fn is_fused(c: &VitConfig) -> bool {
    c.ffn == Ffn::Gelu && !c.attn_norm && !c.rope && is_eva(c)
}

fn is_eva(c: &VitConfig) -> bool {
    !c.k_bias && !c.norm_pre && c.head != Head::Plain
}

fn is_plain(c: &VitConfig) -> bool {
    let mlp = matches!(c.ffn, Ffn::Gelu | Ffn::QuickGelu);
    let places = c.abs_pos && c.rel_pos == RelPos::None && !c.rope;
    mlp && c.k_bias && places && !c.attn_norm && !c.post_norm && !c.mask_token
}

pub(crate) fn is_clip(c: &VitConfig) -> bool {
    is_plain(c) && c.norm_pre && c.head == Head::Plain && c.pool == Pool::Cls
}

/// The ways in which an image encoder differs from OpenAI's, in words.
pub(super) fn in_words(c: &VitConfig) -> Vec<&'static str> {
    let marks = [
        (c.rel_pos != RelPos::None, "relative positions"),
        (!c.abs_pos, "no position embedding"),
        (c.rope, "rotary embedding"),
        (c.ffn == Ffn::SwiGlu, "SwiGLU"),
        (c.layer_scale, "layer scale"),
        (c.mask_token, "a mask token"),
        (c.attn_norm, "a norm inside attention"),
        (c.post_norm, "post-norm blocks"),
        (!c.norm_pre, "no norm before the blocks"),
        (!c.k_bias, "no bias on keys"),
        (c.pool == Pool::Mean, "mean pooling"),
        (c.head == Head::None, "no head"),
        (c.head == Head::Biased, "a head with a bias"),
        (c.head == Head::Plain, "a head without a bias"),
    ];
    marks.into_iter().filter(|(there, _)| *there).map(|(_, words)| words).collect()
}

pub(super) fn is_timm_vit(c: &VitConfig) -> bool {
    is_plain(c) && c.head != Head::Plain
}

pub(super) fn is_trunk_vit(c: &VitConfig) -> bool {
    is_plain(c) && c.head != Head::None
}
