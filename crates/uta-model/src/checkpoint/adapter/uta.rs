//! This program's own names.

use super::layout::Layout;
use super::rules::{Adapter, Has, SAME};

impl Adapter {
    /// This program's own files, and UTA's and EVA-CLIP's official ones where q, k and v are apart; those store rotary
    /// tables besides.
    pub const UTA: Adapter = Adapter {
        family: "uta, eva-clip",
        layout: Layout::Uta,
        signs: &[Has("visual.blocks.0.attn.q_proj.weight")],
        expresses: |_| true,
        parts: &[("", "", SAME)],
        ignored: &["visual.rope.*", "visual.blocks.*.attn.rope.*", "text.attn_mask"],
    };
}
