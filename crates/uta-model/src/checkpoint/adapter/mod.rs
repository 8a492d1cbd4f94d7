//! Checkpoint families: the same networks under other names. An [`Adapter`] is a table from a family's keys to ours and
//! back; model code knows our names only.

use std::collections::BTreeMap;

use tch::Tensor;

use crate::{Ffn, Head, ModelError, Pool, RelPos, VitConfig};

/// What a user asks a checkpoint to be written as. Each has one or more [`Adapter`]s, for nets of different build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// This program's own, which are UTA's official names: `config.json`, `model.safetensors` and, for PyTorch, a loader.
    Uta,
    /// open_clip's hub folder: `open_clip_config.json` and `open_clip_model.safetensors`.
    OpenClip,
    /// `eva_clip.pt`, and `eva_clip.json` for EVA-CLIP's factory; of a net with a mask token, EVA-02's pre-training's names.
    EvaClip,
    /// timm's hub folder: `config.json` and `model.safetensors`, the image encoder alone.
    Timm,
    /// Hugging Face's CLIPModel: `config.json` and `model.safetensors`.
    Hf,
}

impl Layout {
    /// All, by the name that a user gives them.
    pub const ALL: [(&'static str, Layout); 5] = [
        ("uta", Layout::Uta),
        ("open-clip", Layout::OpenClip),
        ("eva-clip", Layout::EvaClip),
        ("timm", Layout::Timm),
        ("hf", Layout::Hf),
    ];
}

impl std::str::FromStr for Layout {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Layout, ModelError> {
        let found = Layout::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, layout)| *layout).ok_or_else(|| {
            let names: Vec<&str> = Layout::ALL.iter().map(|(known, _)| *known).collect();
            ModelError::Config(format!("no layout {name:?}; there are {}", names.join(", ")))
        })
    }
}

/// How one checkpoint family names, joins and turns the tensors of a network.
#[derive(Debug)]
pub struct Adapter {
    /// The family.
    pub family: &'static str,
    /// The layout it belongs to.
    pub layout: Layout,
    /// What tells a file of this family from others; the first family of [`Adapter::ALL`] with all of its marks is it.
    marks: &'static [Mark],
    /// Whether the family has names for such an image encoder.
    expresses: fn(&VitConfig) -> bool,
    /// The first whose prefix and one of whose rules fits a key decides, in both directions.
    parts: &'static [Part],
    /// Their keys that carry nothing of the encoders: buffers that are computed, and parts of pre-training.
    ignored: &'static [&'static str],
}

#[derive(Debug)]
enum Mark {
    /// There is such a key.
    Has(&'static str),
    /// The first tensor has twice as many rows as the second has columns: a gate and its value packed together.
    Packed(&'static str, &'static str),
}
use Mark::{Has, Packed};

/// A part of the net: their prefix, ours, and the rules for what follows the prefix.
type Part = (&'static str, &'static str, &'static [Rule]);

/// Their names, ours, and how the tensors differ. One side may have several names: the other is theirs joined along the
/// first dimension.
///
/// A name is a pattern whose segments may be `*`, any one segment, or at the end `**`, everything that is left; all names
/// of a rule have the same of them in the same order.
type Rule = (&'static [&'static str], &'static [&'static str], Form);

#[derive(Clone, Copy, Debug)]
enum Form {
    /// Alike.
    Same,
    /// Ours has this many leading dimensions of size 1 more.
    Batched(usize),
    /// Ours is the transpose.
    Transposed,
}
use Form::{Batched, Same, Transposed};

const QKV: Rule = (
    &["blocks.*.attn.qkv.weight"],
    &["blocks.*.attn.q_proj.weight", "blocks.*.attn.k_proj.weight", "blocks.*.attn.v_proj.weight"],
    Same,
);
const QKV_BIAS: Rule = (
    &["blocks.*.attn.qkv.bias"],
    &["blocks.*.attn.q_bias", "blocks.*.attn.k_bias", "blocks.*.attn.v_bias"],
    Same,
);
const ANY: Rule = (&["**"], &["**"], Same);
const SAME: &[Rule] = &[ANY];

/// q, k and v are one, and so are a SwiGLU's gate and value: EVA-01, bigE, EVA-02 Ti and S, BEiT.
const FUSED: &[Rule] =
    &[QKV, (&["blocks.*.mlp.w12.*"], &["blocks.*.mlp.w1.*", "blocks.*.mlp.w2.*"], Same), ANY];

/// EVA-02 B and L in timm's words, q, k and v apart (`timm/models/eva.py`).
const TIMM_SPLIT: &[Rule] = &[
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
const TIMM_PACKED: &[Rule] = &[
    QKV,
    (&["blocks.*.mlp.fc1.*"], &["blocks.*.mlp.w1.*", "blocks.*.mlp.w2.*"], Same),
    (&["blocks.*.mlp.fc2.*"], &["blocks.*.mlp.w3.*"], Same),
    ANY,
];

/// timm's plain ViT (`timm/models/vision_transformer.py`), whose names MAE has too.
const TIMM_VIT: &[Rule] = &[
    QKV,
    QKV_BIAS,
    (&["blocks.*.ls1.gamma"], &["blocks.*.gamma_1"], Same),
    (&["blocks.*.ls2.gamma"], &["blocks.*.gamma_2"], Same),
    ANY,
];

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

const TEXT: Part = ("text.", "text.", SAME);
const FLAT_TEXT: Part = ("", "text.", CLIP_TEXT);
const SCALE: Part = ("", "", &[(&["logit_scale"], &["logit_scale"], Same)]);
const HEAD_PROJ: Part = ("visual.head.proj.", "visual.head.", &[(&["*"], &["*"], Same)]);
const MIM_HEAD: Part = ("lm_head.", "visual.head.", SAME);

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
const EVA_IGNORED: &[&str] = &[
    "rope.*",
    "blocks.*.attn.rope.*",
    "relative_position_index",
    "rel_pos_bias.relative_position_index",
    "blocks.*.attn.relative_position_index",
];

fn is_split(c: &VitConfig) -> bool {
    c.ffn == Ffn::SwiGlu && c.ffn_norm && c.rel_pos == RelPos::None && is_eva(c)
}

fn is_packed(c: &VitConfig) -> bool {
    let swiglu = c.ffn == Ffn::SwiGlu && !c.ffn_norm && !c.attn_norm;
    swiglu && c.rel_pos == RelPos::None && is_eva(c)
}

fn is_fused(c: &VitConfig) -> bool {
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

/// What tells an image encoder from OpenAI's, in words.
fn build(c: &VitConfig) -> Vec<&'static str> {
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

fn is_timm_vit(c: &VitConfig) -> bool {
    is_plain(c) && c.head != Head::Plain
}

fn is_trunk_vit(c: &VitConfig) -> bool {
    is_plain(c) && c.head != Head::None
}

impl Adapter {
    /// This program's own files, and UTA's and EVA-CLIP's official ones where q, k and v are apart; those store rotary
    /// tables besides.
    pub const UTA: Adapter = Adapter {
        family: "uta, eva-clip",
        layout: Layout::Uta,
        marks: &[Has("visual.blocks.0.attn.q_proj.weight")],
        expresses: |_| true,
        parts: &[("", "", SAME)],
        ignored: &["visual.rope.*", "visual.blocks.*.attn.rope.*", "text.attn_mask"],
    };

    /// The image encoder in timm's words where q, k and v are apart: EVA-02 B and L.
    pub const TIMM_EVA02: Adapter = Adapter {
        family: "timm eva02",
        layout: Layout::Timm,
        marks: &[Has("blocks.0.mlp.fc1_g.weight")],
        expresses: |c| is_split(c) && !c.mask_token,
        parts: &[("", "visual.", TIMM_SPLIT)],
        ignored: EVA_IGNORED,
    };

    /// The image encoder in timm's words where q, k and v are one: EVA-01 g (the paper's teacher), bigE, BEiT.
    pub const TIMM_EVA01: Adapter = Adapter {
        family: "timm eva, beit",
        layout: Layout::Timm,
        marks: &[Has("blocks.0.attn.qkv.weight"), Has("blocks.0.attn.q_bias")],
        expresses: |c| is_fused(c) && !c.mask_token,
        parts: &[("", "visual.", FUSED)],
        ignored: EVA_IGNORED,
    };

    /// Every family, those with the more telling marks first.
    pub const ALL: &'static [Adapter] = &[
        Adapter {
            family: "hugging face clip",
            layout: Layout::Hf,
            marks: &[Has("vision_model.encoder.layers.0.self_attn.q_proj.weight")],
            expresses: is_clip,
            parts: &[
                ("vision_model.", "visual.", HF_VISION),
                ("visual_projection.", "visual.head.", SAME),
                ("text_model.", "text.", HF_TEXT),
                ("", "text.", &[(&["text_projection.weight"], &["text_projection"], Transposed)]),
                SCALE,
            ],
            ignored: &[
                "vision_model.embeddings.position_ids",
                "text_model.embeddings.position_ids",
            ],
        },
        Adapter {
            family: "openai, open_clip",
            layout: Layout::OpenClip,
            marks: &[Has("visual.class_embedding"), Has("visual.conv1.weight")],
            expresses: is_clip,
            parts: &[("visual.", "visual.", CLIP_VISION), FLAT_TEXT, TEXT, SCALE],
            ignored: CLIP_IGNORED,
        },
        Adapter {
            family: "open_clip, timm eva02 trunk",
            layout: Layout::OpenClip,
            marks: &[Has("visual.trunk.blocks.0.mlp.fc1_g.weight")],
            expresses: |c| is_split(c) && !c.mask_token,
            parts: &[("visual.trunk.", "visual.", TIMM_SPLIT), HEAD_PROJ, TEXT, FLAT_TEXT, SCALE],
            ignored: CLIP_IGNORED,
        },
        Adapter {
            family: "open_clip, timm packed eva02 trunk",
            layout: Layout::OpenClip,
            marks: &[
                Packed(
                    "visual.trunk.blocks.0.mlp.fc1.weight",
                    "visual.trunk.blocks.0.mlp.fc2.weight",
                ),
                Has("visual.trunk.blocks.0.attn.q_bias"),
            ],
            expresses: |c| is_packed(c) && !c.mask_token,
            parts: &[("visual.trunk.", "visual.", TIMM_PACKED), HEAD_PROJ, TEXT, FLAT_TEXT, SCALE],
            ignored: CLIP_IGNORED,
        },
        Adapter {
            family: "open_clip, timm eva trunk",
            layout: Layout::OpenClip,
            marks: &[
                Has("visual.trunk.blocks.0.attn.qkv.weight"),
                Has("visual.trunk.blocks.0.attn.q_bias"),
            ],
            expresses: |c| is_fused(c) && c.rel_pos == RelPos::None && !c.mask_token,
            parts: &[("visual.trunk.", "visual.", FUSED), HEAD_PROJ, TEXT, FLAT_TEXT, SCALE],
            ignored: CLIP_IGNORED,
        },
        Adapter {
            family: "open_clip, timm vit trunk",
            layout: Layout::OpenClip,
            marks: &[Has("visual.trunk.blocks.0.attn.qkv.bias")],
            expresses: is_trunk_vit,
            parts: &[HEAD_PROJ, ("visual.trunk.", "visual.", TIMM_VIT), TEXT, FLAT_TEXT, SCALE],
            ignored: CLIP_IGNORED,
        },
        Adapter {
            family: "eva-clip, fused",
            layout: Layout::EvaClip,
            marks: &[Has("visual.blocks.0.attn.qkv.weight"), Has("visual.blocks.0.attn.q_bias")],
            expresses: |c| is_fused(c) && c.rel_pos == RelPos::None && !c.mask_token,
            parts: &[("visual.", "visual.", FUSED), TEXT, FLAT_TEXT, SCALE],
            ignored: &["visual.rope.*", "visual.blocks.*.attn.rope.*", "text.attn_mask"],
        },
        Adapter {
            layout: Layout::EvaClip,
            // Its SwiGLU comes with both inner norms or, with q, k and v in one, with none.
            expresses: |c| is_split(c) && c.attn_norm && !c.mask_token,
            ..Adapter::UTA
        },
        Adapter::UTA,
        Adapter {
            family: "timm vit, mae",
            layout: Layout::Timm,
            marks: &[Has("blocks.0.attn.qkv.bias"), Has("patch_embed.proj.weight")],
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
        },
        Adapter::TIMM_EVA02,
        Adapter {
            family: "timm packed eva02",
            layout: Layout::Timm,
            marks: &[
                Packed("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"),
                Has("blocks.0.attn.q_bias"),
            ],
            expresses: |c| is_packed(c) && !c.mask_token,
            parts: &[("", "visual.", TIMM_PACKED)],
            ignored: EVA_IGNORED,
        },
        Adapter {
            family: "eva02 pre-training",
            layout: Layout::EvaClip,
            marks: &[Has("blocks.0.attn.q_proj.weight"), Has("blocks.0.mlp.w1.weight")],
            expresses: |c| is_split(c) && c.mask_token,
            parts: &[MIM_HEAD, ("", "visual.", SAME)],
            ignored: EVA_IGNORED,
        },
        Adapter {
            family: "eva, beit pre-training",
            layout: Layout::EvaClip,
            marks: &[
                Has("blocks.0.attn.qkv.weight"),
                Has("blocks.0.attn.q_bias"),
                Has("mask_token"),
            ],
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
        },
        Adapter::TIMM_EVA01,
    ];

    /// The family of a file, told by its keys; `None` when it is none of them.
    pub fn detect(tensors: &BTreeMap<String, Tensor>) -> Option<&'static Adapter> {
        let size =
            |key: &str, dim: usize| tensors.get(key).and_then(|t| t.size().get(dim).copied());
        let holds = |mark: &Mark| match mark {
            Has(key) => tensors.contains_key(*key),
            Packed(up, down) => {
                size(up, 0).is_some() && size(up, 0) == size(down, 1).map(|n| 2 * n)
            }
        };
        Adapter::ALL.iter().find(|adapter| adapter.marks.iter().all(holds))
    }

    /// The names that `layout` has for such an image encoder.
    ///
    /// # Errors
    /// When it has none.
    pub fn for_export(layout: Layout, vision: &VitConfig) -> Result<&'static Adapter, ModelError> {
        let fits = |a: &&Adapter| a.layout == layout && (a.expresses)(vision);
        Adapter::ALL.iter().find(fits).ok_or_else(|| {
            let name = Layout::ALL.iter().find(|(_, l)| *l == layout).map_or("", |(name, _)| name);
            let build = build(vision).join(", ");
            ModelError::Config(format!(
                "the layout {name} has no names for an image encoder of this build: {build}; --to uta comes with a loader \
                 for PyTorch"
            ))
        })
    }

    /// Their tensors under our names, as views, but for what has to be joined. A key that no rule knows keeps its name, as
    /// does a tensor that can't be cut or turned: the reader of the result reports them.
    pub fn import(&self, tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        let mut out = BTreeMap::new();
        let mut joints = BTreeMap::new();
        for (key, tensor) in tensors {
            if self.ignored.iter().any(|pattern| matches(pattern, &key).is_some()) {
                continue;
            }
            let Some(found) = self.rule(&key, |part| part.0, |rule| rule.0) else {
                out.insert(key, tensor);
                continue;
            };
            let ours = found.names(found.part.1, found.rule.1);
            if found.rule.0.len() > 1 {
                let names = found.names(found.part.0, found.rule.0);
                let joint: &mut Joint = joints.entry(ours[0].clone()).or_insert(Joint::of(names));
                joint.pieces[found.place] = Some(tensor);
                continue;
            }
            let pieces = cut(&tensor, ours.len()).and_then(|pieces| {
                pieces.iter().map(|piece| turned(piece, found.rule.2)).collect::<Option<Vec<_>>>()
            });
            match pieces {
                // Of two of theirs for one of ours, the second is one too many.
                Some(pieces) if !ours.iter().any(|name| out.contains_key(name)) => {
                    out.extend(ours.into_iter().zip(pieces));
                }
                _ => drop(out.insert(key, tensor)),
            }
        }
        for (name, joint) in joints {
            joint.join(name, &mut out);
        }
        out
    }

    /// Our tensors under their names: what [`Adapter::import`] takes.
    ///
    /// # Panics
    /// When pieces of a joined tensor are missing: a network has all of them.
    pub fn export(&self, tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        let mut out = BTreeMap::new();
        let mut joints = BTreeMap::new();
        for (key, tensor) in tensors {
            let Some(found) = self.rule(&key, |part| part.1, |rule| rule.1) else {
                out.insert(key, tensor);
                continue;
            };
            let theirs = found.names(found.part.0, found.rule.0);
            if found.rule.1.len() > 1 {
                let names = found.names(found.part.1, found.rule.1);
                let joint: &mut Joint = joints.entry(theirs[0].clone()).or_insert(Joint::of(names));
                joint.pieces[found.place] = Some(tensor);
                continue;
            }
            let tensor = match found.rule.2 {
                Same => tensor,
                Batched(n) => (0..n).fold(tensor, |t, _| t.squeeze_dim(0)),
                Transposed => tensor.transpose(0, 1).contiguous(),
            };
            let pieces = cut(&tensor, theirs.len()).expect("a network's tensors can be cut");
            out.extend(theirs.into_iter().zip(pieces));
        }
        for (name, joint) in joints {
            assert!(joint.pieces.iter().all(Option::is_some), "pieces of {name}");
            joint.join(name, &mut out);
        }
        out
    }

    /// What a file of this family calls our tensor `name` of this shape: names and shapes, several where ours is theirs
    /// joined. A name that no rule knows is theirs already.
    pub(crate) fn theirs(&self, name: &str, shape: &[i64]) -> Vec<(String, Vec<i64>)> {
        let Some(found) = self.rule(name, |part| part.1, |rule| rule.1) else {
            return vec![(name.to_owned(), shape.to_vec())];
        };
        let (theirs, ours) = (found.rule.0.len() as i64, found.rule.1.len() as i64);
        let mut shape = match found.rule.2 {
            Same => shape.to_vec(),
            Batched(n) => shape.iter().skip(n).copied().collect(),
            Transposed => shape.iter().rev().copied().collect(),
        };
        if let Some(rows) = shape.first_mut() {
            *rows = *rows * ours / theirs;
        }
        found
            .names(found.part.0, found.rule.0)
            .into_iter()
            .map(|name| (name, shape.clone()))
            .collect()
    }

    /// The first rule one of whose names, on the side that `prefix` and `side` pick, is `key`.
    fn rule<'a>(
        &self,
        key: &'a str,
        prefix: fn(&Part) -> &'static str,
        side: fn(&Rule) -> &'static [&'static str],
    ) -> Option<Found<'a>> {
        self.parts.iter().find_map(|part| {
            let rest = key.strip_prefix(prefix(part))?;
            part.2.iter().find_map(|rule| {
                side(rule).iter().enumerate().find_map(|(place, pattern)| {
                    Some(Found { part, rule, place, parts: matches(pattern, rest)? })
                })
            })
        })
    }
}

/// A rule that knows a key.
struct Found<'a> {
    part: &'static Part,
    rule: &'static Rule,
    /// Which of the names it is.
    place: usize,
    /// What its `*` and `**` stand for.
    parts: Vec<&'a str>,
}

impl Found<'_> {
    fn names(&self, prefix: &str, patterns: &[&str]) -> Vec<String> {
        patterns.iter().map(|pattern| prefix.to_owned() + &fill(pattern, &self.parts)).collect()
    }
}

/// A tensor that is being put together.
struct Joint {
    names: Vec<String>,
    pieces: Vec<Option<Tensor>>,
}

impl Joint {
    fn of(names: Vec<String>) -> Joint {
        let pieces = names.iter().map(|_| None).collect();
        Joint { names, pieces }
    }

    /// Joined under `name`, or the pieces under their own names where they don't fit together.
    fn join(self, name: String, out: &mut BTreeMap<String, Tensor>) {
        let whole: Option<Vec<&Tensor>> = self.pieces.iter().map(Option::as_ref).collect();
        match whole.map(|pieces| Tensor::f_cat(&pieces, 0)) {
            Some(Ok(joined)) => drop(out.insert(name, joined)),
            _ => out
                .extend(self.names.into_iter().zip(self.pieces).filter_map(|(n, p)| Some((n, p?)))),
        }
    }
}

/// `tensor` in `count` equal parts along its first dimension.
fn cut(tensor: &Tensor, count: usize) -> Option<Vec<Tensor>> {
    let count = count as i64;
    match tensor.size().first() {
        _ if count == 1 => Some(vec![tensor.shallow_clone()]),
        Some(rows) if rows % count == 0 && *rows > 0 => Some(tensor.chunk(count, 0)),
        _ => None,
    }
}

/// Theirs as ours.
fn turned(tensor: &Tensor, form: Form) -> Option<Tensor> {
    match form {
        Same => Some(tensor.shallow_clone()),
        Batched(n) => Some((0..n).fold(tensor.shallow_clone(), |t, _| t.unsqueeze(0))),
        Transposed => (tensor.dim() == 2).then(|| tensor.transpose(0, 1)),
    }
}

/// What the `*` and `**` of `pattern` stand for in `key`.
fn matches<'a>(pattern: &str, key: &'a str) -> Option<Vec<&'a str>> {
    let mut found = Vec::new();
    let mut rest = Some(key);
    for part in pattern.split('.') {
        let left = rest?;
        if part == "**" {
            found.push(left);
            return Some(found);
        }
        let (segment, after) = match left.split_once('.') {
            Some((segment, after)) => (segment, Some(after)),
            None => (left, None),
        };
        match part {
            "*" => found.push(segment),
            _ if part == segment => {}
            _ => return None,
        }
        rest = after;
    }
    rest.is_none().then_some(found)
}

/// `pattern` with its `*` and `**` filled in.
fn fill(pattern: &str, parts: &[&str]) -> String {
    let mut parts = parts.iter();
    let segments = pattern.split('.').map(|segment| match segment {
        "*" | "**" => parts.next().expect("both sides of a rule have as many"),
        other => other,
    });
    segments.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nets::layers::testing::seeded;
    use crate::{Clip, ClipConfig, Pool, RelPos, TextConfig};
    use tch::{Device, Kind};

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

    #[test]
    fn patterns_match_whole_keys() {
        assert_eq!(matches("a.*.c", "a.1.c"), Some(vec!["1"]));
        assert_eq!(matches("a.*", "a.1.c"), None);
        assert_eq!(matches("a.**", "a.1.c"), Some(vec!["1.c"]));
        assert_eq!(matches("a.b.**", "a.b"), None);
        assert_eq!(matches("a.b", "a"), None);
    }
}
