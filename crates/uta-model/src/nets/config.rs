//! Sizes of the networks, as recipes and `config.json` hold them, and the presets of the paper.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ModelError, Preprocess};

/// The presets, as data: from jihaonew/UTA (`eva_vit_model/eva_vit.py`), baaivision/EVA (`EVA-02/asuka/modeling_pretrain.py`,
/// `EVA-CLIP/rei/eva_clip/model_configs`) and open_clip's `model_configs`. `uta-ti14` and `uta-s14` have the paper's family of
/// blocks (an inner LayerNorm in the SwiGLU), unlike EVA-02's own Ti and S, which go without it.
const PRESETS: &str = include_str!("presets.json");

/// CLIP's pixel statistics (open_clip, `constants.py`).
const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// ImageNet's: what MAE and BEiT v2 were trained with.
pub(crate) const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
pub(crate) const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

/// The most patches along a side: four times those of the largest net in use, detection at 1024 pixels.
const MAX_GRID: i64 = 256;

/// The feed-forward network of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ffn {
    /// `w3(LN(SiLU(w1 x) * (w2 x)))`: EVA-02, UTA; without the LN where [`VitConfig::ffn_norm`] is off.
    #[default]
    SwiGlu,
    /// `fc2(GELU(fc1 x))`: EVA-01, the paper's teacher; OpenCLIP, MAE, BEiT.
    Gelu,
    /// The same with `x sigmoid(1.702 x)` in GELU's place: OpenAI's CLIP.
    QuickGelu,
}

/// The last layer, which makes a token a point of the space shared with text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Head {
    /// `W x + b`: UTA, EVA.
    #[default]
    Biased,
    /// `W x`: OpenAI's CLIP and OpenCLIP.
    Plain,
    /// No head: encoders that know no text (MAE, BEiT, timm's EVA-02). Then `out` is the width.
    None,
}

/// The token that stands for the whole image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// `[CLS]`, after the final norm.
    #[default]
    Cls,
    /// The mean of the patches, then the final norm, whose key is then `fc_norm` as in timm and BEiT.
    Mean,
}

/// A learned bias of attention by how far apart two patches are (BEiT).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RelPos {
    /// No bias.
    #[default]
    None,
    /// One table for all blocks: BEiT while it is pre-trained.
    Shared,
    /// A table in each block: BEiT fine-tuned, and in timm.
    Blocks,
}

/// A vision transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Side of the image, in pixels.
    pub image_size: i64,
    /// Side of a patch, in pixels.
    pub patch_size: i64,
    /// Channels of a token, D.
    pub width: i64,
    /// Blocks, L.
    pub depth: i64,
    /// Attention heads, H.
    pub heads: i64,
    /// Channels inside the feed-forward network.
    pub hidden: i64,
    /// Channels of the head: the width of the space shared with text, E.
    pub out: i64,
    /// The feed-forward network.
    #[serde(default)]
    pub ffn: Ffn,
    /// Whether queries and keys of patches are rotated by their row and column.
    #[serde(default = "yes")]
    pub rope: bool,
    /// The share of residual branches dropped in the last block while training; rises linearly from 0 at the first.
    #[serde(default)]
    pub drop_path: f64,
    /// The share of the gradient that reaches the patch embedding; EVA-02 trains with 0.1.
    #[serde(default = "whole")]
    pub patch_grad: f64,
    /// Whether a SwiGLU has a LayerNorm before its last layer (`ffn_ln`).
    #[serde(default = "yes")]
    pub ffn_norm: bool,
    /// Whether attention has a LayerNorm before its last layer (`inner_attn_ln`): EVA02-CLIP.
    #[serde(default)]
    pub attn_norm: bool,
    /// Whether a block normalises a branch's output (`x + norm(f(x))`) instead of its input: EVA's bigE.
    #[serde(default)]
    pub post_norm: bool,
    /// Whether tokens are normalised before the first block; patches are then embedded without a bias: OpenAI's CLIP.
    #[serde(default)]
    pub norm_pre: bool,
    /// Whether keys have a bias as queries and values do: all but EVA's and BEiT's.
    #[serde(default)]
    pub k_bias: bool,
    /// The last layer.
    #[serde(default)]
    pub head: Head,
    /// The token that stands for the whole image.
    #[serde(default)]
    pub pool: Pool,
    /// Whether there is a learned position embedding: all but BEiT's.
    #[serde(default = "yes")]
    pub abs_pos: bool,
    /// The relative position bias.
    #[serde(default)]
    pub rel_pos: RelPos,
    /// Whether a branch's output is multiplied by a vector (`gamma_1`, `gamma_2`): BEiT.
    #[serde(default)]
    pub layer_scale: bool,
    /// Whether there is a token for masked patches: nets pre-trained by masked image modelling.
    #[serde(default)]
    pub mask_token: bool,
    /// LayerNorm's epsilon: 1e-6, but 1e-5 in OpenAI's CLIP and OpenCLIP.
    #[serde(default = "millionth")]
    pub eps: f64,
}

fn yes() -> bool {
    true
}
fn whole() -> f64 {
    1.0
}
fn millionth() -> f64 {
    1e-6
}

impl VitConfig {
    /// A preset of the paper.
    ///
    /// # Errors
    /// When there is none of that name; lists those there are.
    pub fn preset(name: &str) -> Result<VitConfig, ModelError> {
        take(presets().vision, name)
    }

    /// Patches along a side.
    pub fn grid(&self) -> i64 {
        self.image_size / self.patch_size
    }

    /// Patches of an image, N.
    pub fn num_patches(&self) -> i64 {
        self.grid() * self.grid()
    }

    /// Channels of a head.
    pub fn head_width(&self) -> i64 {
        self.width / self.heads
    }

    /// Rows of a table of relative positions: every offset on the grid, and three with `[CLS]`.
    pub(crate) fn offsets(&self) -> i64 {
        (2 * self.grid() - 1).pow(2) + 3
    }

    /// Multiply-accumulates of the products of a forward pass over one image of which `kept` patches are processed: what
    /// papers count as FLOPs. A backward pass takes twice as many.
    pub fn macs(&self, kept: i64) -> u64 {
        let t = 1 + kept;
        let d = self.width;
        let ffn = match self.ffn {
            Ffn::SwiGlu => 3 * d * self.hidden,
            Ffn::Gelu | Ffn::QuickGelu => 2 * d * self.hidden,
        };
        let block = t * (4 * d * d + ffn) + 2 * t * t * d;
        let patches = kept * 3 * self.patch_size * self.patch_size * d;
        let head = if self.head == Head::None { 0 } else { t * d * self.out };
        (patches + self.depth * block + head) as u64
    }

    /// Parameters, head included.
    pub fn parameters(&self) -> i64 {
        let d = self.width;
        let h = self.hidden;
        let n = self.num_patches();
        let some = |there: bool, count: i64| if there { count } else { 0 };
        let ffn = match self.ffn {
            Ffn::SwiGlu => 2 * (d * h + h) + some(self.ffn_norm, 2 * h) + h * d + d,
            Ffn::Gelu | Ffn::QuickGelu => d * h + h + h * d + d,
        };
        let table = self.offsets() * self.heads;
        // q, k, v, projection; biases of q, v and the projection; two norms.
        let block = 4 * d * d
            + 3 * d
            + 4 * d
            + ffn
            + some(self.k_bias, d)
            + some(self.attn_norm, 2 * d)
            + some(self.layer_scale, 2 * d)
            + some(self.rel_pos == RelPos::Blocks, table);
        let embedding = 3 * self.patch_size * self.patch_size * d
            + d
            + some(self.norm_pre, 2 * d)
            + some(!self.norm_pre, d)
            + some(self.abs_pos, (1 + n) * d)
            + some(self.mask_token, d)
            + some(self.rel_pos == RelPos::Shared, table);
        let head = match self.head {
            Head::Biased => d * self.out + self.out,
            Head::Plain => d * self.out,
            Head::None => 0,
        };
        embedding + self.depth * block + 2 * d + head
    }

    /// Checks that the sizes make a network.
    ///
    /// # Errors
    /// Names the size that makes none, and what is allowed.
    pub fn check(&self) -> Result<(), ModelError> {
        let sizes = [
            ("image_size", self.image_size, MAX_SIZE),
            ("patch_size", self.patch_size, MAX_SIZE),
            ("width", self.width, MAX_SIZE),
            ("depth", self.depth, MAX_BLOCKS),
            ("heads", self.heads, MAX_SIZE),
            ("hidden", self.hidden, MAX_SIZE),
            ("out", self.out, MAX_SIZE),
        ];
        within(&sizes)?;
        divides("image_size", self.image_size, "patch_size", self.patch_size)?;
        if self.grid() > MAX_GRID {
            let message =
                format!("image_size / patch_size = {}: must be at most {MAX_GRID}", self.grid());
            return Err(ModelError::Config(message));
        }
        divides("width", self.width, "heads", self.heads)?;
        if self.rope && self.head_width() % 4 != 0 {
            let message = format!(
                "width / heads = {}: must be a multiple of 4 for the rotary embedding",
                self.head_width()
            );
            return Err(ModelError::Config(message));
        }
        if self.rel_pos != RelPos::None {
            within(&[("image_size / patch_size", self.grid(), MAX_RELATIVE_GRID)])?;
        }
        if self.head == Head::None && self.out != self.width {
            let message =
                format!("out = {}: must be width, {}, without a head", self.out, self.width);
            return Err(ModelError::Config(message));
        }
        if self.post_norm && self.layer_scale {
            return Err(ModelError::Config("layer_scale goes with pre-norm blocks only".into()));
        }
        if !(self.eps > 0.0 && self.eps < 1.0) {
            return Err(ModelError::Config(format!(
                "eps = {}: must lie between 0 and 1",
                self.eps
            )));
        }
        share("drop_path", self.drop_path, 0.99)?;
        share("patch_grad", self.patch_grad, 1.0)
    }
}

/// A text tower: CLIP's causal transformer (openai/CLIP, `clip/model.py`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// Longest text, in tokens with the two markers.
    pub context_length: i64,
    /// Tokens; fewer than CLIP's 49408 mean its first merges only.
    pub vocab_size: i64,
    /// Channels.
    pub width: i64,
    /// Attention heads.
    pub heads: i64,
    /// Blocks.
    pub layers: i64,
    /// Width of the space shared with images.
    pub out: i64,
    /// Whether the activation is `x sigmoid(1.702 x)` instead of GELU: OpenAI's CLIP.
    #[serde(default)]
    pub quick_gelu: bool,
}

impl TextConfig {
    /// A preset: the text tower that is trained with the image encoder of that name.
    ///
    /// # Errors
    /// When there is none of that name; lists those there are.
    pub fn preset(name: &str) -> Result<TextConfig, ModelError> {
        take(presets().text, name)
    }

    /// Multiply-accumulates of the products of a forward pass over one text of full length.
    pub fn macs(&self) -> u64 {
        let (t, d) = (self.context_length, self.width);
        let block = t * 12 * d * d + 2 * t * t * d;
        (self.layers * block + d * self.out) as u64
    }

    /// Parameters.
    pub fn parameters(&self) -> i64 {
        let d = self.width;
        // q, k, v and projection; the feed-forward network; two norms.
        let block = 4 * (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + 4 * d;
        let embedding = (self.vocab_size + self.context_length) * d;
        embedding + self.layers * block + 2 * d + d * self.out
    }

    /// Checks that the sizes make a network.
    ///
    /// # Errors
    /// Names the size that makes none, and what is allowed.
    pub fn check(&self) -> Result<(), ModelError> {
        within(&[
            ("context_length", self.context_length, MAX_SIZE),
            ("vocab_size", self.vocab_size, MAX_TOKENS),
            ("width", self.width, MAX_SIZE),
            ("heads", self.heads, MAX_SIZE),
            ("layers", self.layers, MAX_BLOCKS),
            ("out", self.out, MAX_SIZE),
        ])?;
        divides("width", self.width, "heads", self.heads)
    }
}

/// An image encoder and, mostly, a text encoder of one space. This is `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// Width of the shared space, E.
    pub embed_dim: i64,
    /// The image encoder.
    pub vision: VitConfig,
    /// The text encoder.
    pub text: Option<TextConfig>,
    /// Mean of red, green and blue in 0..1, taken from the pixels.
    #[serde(default = "clip_mean")]
    pub mean: [f64; 3],
    /// Standard deviation of red, green and blue, by which pixels are then divided.
    #[serde(default = "clip_std")]
    pub std: [f64; 3],
    /// Resizing and cropping before that; left out of `config.json` where it is CLIP's.
    #[serde(default, skip_serializing_if = "Preprocess::is_default")]
    pub preprocess: Preprocess,
    /// Whether the image encoder was trained towards the shared space; where it isn't said, one with a mask token was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aligned: Option<bool>,
}

fn clip_mean() -> [f64; 3] {
    CLIP_MEAN
}
fn clip_std() -> [f64; 3] {
    CLIP_STD
}

impl ClipConfig {
    /// An image encoder and perhaps a text encoder, with CLIP's pixel statistics.
    pub fn new(vision: VitConfig, text: Option<TextConfig>) -> ClipConfig {
        ClipConfig {
            embed_dim: vision.out,
            vision,
            text,
            mean: CLIP_MEAN,
            std: CLIP_STD,
            preprocess: Preprocess::default(),
            aligned: None,
        }
    }

    /// Whether the image encoder's embeddings lie where texts do. Masked image modelling alone leaves them elsewhere.
    pub fn is_aligned(&self) -> bool {
        self.aligned.unwrap_or(!self.vision.mask_token)
    }

    /// A preset's image encoder alone, with CLIP's pixel statistics: a teacher needs no more.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn preset(name: &str) -> Result<ClipConfig, ModelError> {
        Ok(ClipConfig::new(VitConfig::preset(name)?, None))
    }

    /// Parameters, with the logit scale where there is a text encoder.
    pub fn parameters(&self) -> i64 {
        self.vision.parameters() + self.text.as_ref().map_or(0, |text| text.parameters() + 1)
    }

    /// Checks that the sizes make a network.
    ///
    /// # Errors
    /// Names the size that makes none, and what is allowed.
    pub fn check(&self) -> Result<(), ModelError> {
        self.vision.check()?;
        self.preprocess.check(self.vision.image_size)?;
        if !self.mean.iter().all(|mean| mean.is_finite()) {
            return Err(ModelError::Config(format!("mean = {:?}: must be numbers", self.mean)));
        }
        if !self.std.iter().all(|std| std.is_finite() && *std > 0.0) {
            return Err(ModelError::Config(format!("std = {:?}: must be above 0", self.std)));
        }
        let text = self.text.as_ref();
        text.map_or(Ok(()), TextConfig::check)?;
        for (what, out) in
            [("vision.out", Some(self.vision.out)), ("text.out", text.map(|t| t.out))]
        {
            if let Some(out) = out.filter(|&out| out != self.embed_dim) {
                let message = format!("{what} = {out}: must be embed_dim, {}", self.embed_dim);
                return Err(ModelError::Config(message));
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Presets {
    vision: BTreeMap<String, VitConfig>,
    text: BTreeMap<String, TextConfig>,
}

fn presets() -> Presets {
    serde_json::from_str(PRESETS).expect("the presets are tested")
}

/// The names of the presets of an image encoder.
pub fn preset_names() -> Vec<String> {
    presets().vision.into_keys().collect()
}

fn take<T>(mut presets: BTreeMap<String, T>, name: &str) -> Result<T, ModelError> {
    presets.remove(&name.to_lowercase()).ok_or_else(|| {
        let names = presets.into_keys().collect::<Vec<_>>().join(", ");
        ModelError::Config(format!("no preset {name:?}; there are {names}"))
    })
}

/// The largest size of a net, and of a vocabulary: parameters are then counted without overflow, whatever a file claims.
const MAX_SIZE: i64 = 1 << 16;
const MAX_BLOCKS: i64 = 1 << 12;
const MAX_TOKENS: i64 = 1 << 24;

/// The longest side of a grid with relative positions, which need a table of all pairs of patches.
const MAX_RELATIVE_GRID: i64 = 64;

fn within(sizes: &[(&str, i64, i64)]) -> Result<(), ModelError> {
    match sizes.iter().find(|(_, size, most)| !(1..=*most).contains(size)) {
        None => Ok(()),
        Some((name, size, most)) => {
            Err(ModelError::Config(format!("{name} = {size}: must be from 1 to {most}")))
        }
    }
}

fn divides(what: &str, size: i64, by: &str, part: i64) -> Result<(), ModelError> {
    if size % part == 0 {
        return Ok(());
    }
    Err(ModelError::Config(format!("{what} = {size}: must be a multiple of {by}, {part}")))
}

fn share(name: &str, value: f64, most: f64) -> Result<(), ModelError> {
    if (0.0..=most).contains(&value) {
        return Ok(());
    }
    Err(ModelError::Config(format!("{name} = {value}: must be from 0 to {most}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Counted by hand from the nets' shapes; and the paper's relative FLOPs of mask ratios 0.4, 0.5 and 0.7.
    #[test]
    fn multiply_accumulates_are_the_published_ones() {
        let net = |name, width| VitConfig { out: width, ..VitConfig::preset(name).unwrap() };
        for (name, giga) in
            [("uta-b14", 23.4), ("uta-l14", 81.3), ("uta-g14", 267.4), ("eva01-g-14-plus", 267.4)]
        {
            let found = net(name, 1024).macs(256) as f64 / 1e9;
            assert!((found - giga).abs() < 0.06, "{name}: {found}");
        }
        let b = net("uta-b14", 1024);
        // Only kept patches are embedded here; the published shares count all.
        let dropped = |kept| ((256 - kept) * 3 * 14 * 14 * b.width) as f64;
        for (kept, share) in [(154, 0.593), (128, 0.491), (77, 0.296)] {
            let found = (b.macs(kept) as f64 + dropped(kept)) / b.macs(256) as f64;
            assert!((found - share).abs() < 1e-3, "{kept}: {found}");
        }
    }

    /// In millions, of the released nets, head of 1024 included.
    #[test]
    fn parameter_counts_of_the_presets_are_the_published_ones() {
        for (name, millions) in [
            ("uta-b14", 86.55),
            ("uta-b16", 86.64),
            ("uta-l14", 304.32),
            ("uta-l14-336", 304.65),
            ("uta-g14", 1013.00),
            ("uta-g14-336", 1013.45),
            ("eva01-g-14-plus", 1012.59),
        ] {
            let config = VitConfig::preset(name).unwrap();
            config.check().unwrap();
            let found = config.parameters() as f64 / 1e6;
            assert!((found - millions).abs() < 0.006, "{name}: {found} M");
        }
        let text = TextConfig::preset("eva01-g-14-plus").unwrap();
        text.check().unwrap();
        let found = text.parameters() as f64 / 1e6;
        assert!((found - 354.03).abs() < 0.006, "{found} M");
    }

    /// open_clip's `docs/model_profile.csv`: image encoder, text encoder, both, in millions.
    #[test]
    fn parameter_counts_of_the_pairs_are_the_published_ones() {
        for (name, image, text, both) in [
            ("ViT-S-32-alt", 22.59, 20.63, 43.22),
            ("ViT-S-16", 21.81, 40.44, 62.26),
            ("ViT-M-16-alt", 38.53, 40.44, 78.98),
            ("ViT-B-32", 87.85, 63.43, 151.28),
            ("ViT-B-32-quickgelu", 87.85, 63.43, 151.28),
            ("ViT-B-32-plus-256", 119.13, 91.16, 210.3),
            ("ViT-B-16", 86.19, 63.43, 149.62),
            ("ViT-B-16-plus-240", 117.21, 91.16, 208.38),
            ("ViT-L-16-320", 304.3, 123.65, 427.95),
            ("ViT-L-14", 303.97, 123.65, 427.62),
            ("ViT-L-14-280", 304.11, 123.65, 427.76),
            ("ViT-L-14-336", 304.29, 123.65, 427.94),
            ("ViT-H-14", 632.08, 354.03, 986.11),
            ("ViT-g-14", 1012.65, 354.03, 1366.68),
            ("ViT-bigG-14", 1844.91, 694.66, 2539.57),
            ("ViT-e-14", 3807.72, 773.37, 4581.09),
            ("EVA01-g-14", 1012.59, 123.85, 1136.44),
            ("EVA01-g-14-plus", 1012.59, 354.03, 1366.62),
            ("EVA02-B-16", 86.26, 63.43, 149.69),
            ("EVA02-L-14", 304.11, 123.65, 427.76),
            ("EVA02-L-14-336", 304.43, 123.65, 428.08),
            ("EVA02-bigE-14", 4350.56, 354.03, 4704.59),
            ("EVA02-bigE-14-plus", 4350.56, 694.33, 5044.89),
            ("openai-l-14", 303.97, 123.65, 427.62),
        ] {
            let vision = VitConfig::preset(name).unwrap();
            let config = ClipConfig::new(vision, Some(TextConfig::preset(name).unwrap()));
            config.check().unwrap();
            let [image_count, text_count] =
                [config.vision.parameters(), config.text.as_ref().unwrap().parameters()];
            let counts = [(image, image_count), (text, text_count), (both, config.parameters())];
            for (millions, found) in counts {
                let found = found as f64 / 1e6;
                assert!((found - millions).abs() < 0.006, "{name}: {found} M, not {millions} M");
            }
        }
    }

    #[test]
    fn sizes_that_make_no_network_are_named() {
        let good = VitConfig::preset("uta-b14").unwrap();
        for (bad, words) in [
            (VitConfig { width: 770, ..good.clone() }, "a multiple of heads, 12"),
            (VitConfig { image_size: 225, ..good.clone() }, "a multiple of patch_size, 14"),
            (VitConfig { depth: 0, ..good.clone() }, "depth = 0"),
            (VitConfig { width: 72, ..good.clone() }, "a multiple of 4"),
            (VitConfig { drop_path: 1.5, ..good.clone() }, "drop_path = 1.5"),
        ] {
            let e = bad.check().unwrap_err().to_string();
            assert!(e.contains(words), "{e}");
        }
        assert!(VitConfig::preset("vit-b").unwrap_err().to_string().contains("uta-b14"));
    }

    #[test]
    fn statistics_that_make_no_pixels_are_named() {
        let good = ClipConfig::new(VitConfig::preset("uta-b14").unwrap(), None);
        good.check().unwrap();
        for (bad, words) in [
            (ClipConfig { std: [0.2, 0.0, 0.2], ..good.clone() }, "std = [0.2, 0.0, 0.2]"),
            (ClipConfig { std: [0.2, -1.0, 0.2], ..good.clone() }, "must be above 0"),
            (ClipConfig { mean: [f64::NAN, 0.5, 0.5], ..good.clone() }, "mean = [NaN"),
        ] {
            let e = bad.check().unwrap_err().to_string();
            assert!(e.contains(words), "{e}");
        }
    }
}
