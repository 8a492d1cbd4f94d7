//! The vision transformer of UTA: EVA-02's, with a head on every token (the paper's Figure 2; jihaonew/UTA,
//! `eva_vit_model/eva_vit.py`).
//!
//! Learned position embedding and 2-D rotary embedding together, `[CLS]` without rotation, biases on q and v only, SwiGLU
//! with an inner LayerNorm, pre-norm, no layer scale. The fields of [`VitConfig`] turn it into its relatives: EVA-01 and
//! EVA-CLIP, OpenAI's and OpenCLIP's plain ViT, MAE's and BEiT's encoders. Field names are checkpoint keys.
//!
//! Shapes: B batch, N patches, K kept patches, T = 1 + K tokens, D width, H heads, E joint width.

mod block;
pub mod memory;
mod positions;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Kind, Tensor, nn};
use torch_ext::Precision;

use self::block::Block;
use self::positions::{Places, RelativePositions, Rope, bias, places};
use super::layers::{self, LayerNorm, Linear, Scope, Stream, rows};
use super::parameter::{self, Parameter};
use crate::{Head, ModelError, Pool, VitConfig};

/// A vision transformer that can look at some of the patches only.
#[derive(Debug)]
pub struct Vit {
    patch_embed: PatchEmbed,
    cls_token: Tensor,          // [1, 1, D]
    pos_embed: Option<Tensor>,  // [1, 1+N, D], row 0 for [CLS]
    mask_token: Option<Tensor>, // [1, 1, D]
    rope: Option<Rope>,
    rel_pos: Option<RelativePositions>,
    norm_pre: Option<LayerNorm>,
    /// Shared with autograd, which runs checkpointed blocks again, on a GPU on a thread of its own.
    blocks: Vec<Arc<Mutex<Block>>>,
    norm: LayerNorm,
    head: Option<Linear>,
    pool: Pool,
    /// The type that a frozen net computes in.
    frozen: Option<Kind>,
    checkpointed: bool,
    /// All variables, in the order in which they were made.
    parameters: Vec<Parameter>,
}

/// Tokens and hidden states of whole images.
#[derive(Debug)]
pub struct Features {
    /// The layers that were asked for, in the order of the request: [B, 1+N, D] each, `[CLS]` first, before the final norm.
    pub hidden: Vec<Tensor>,
    /// Every token after the final norm: [B, 1+N, D].
    pub tokens: Tensor,
    /// Every token after the head, in the space of the embeddings: [B, 1+N, E]; `tokens` where there is no head.
    pub projected: Tensor,
    /// The embedding of the whole image, [B, E].
    pub embedding: Tensor,
}

impl Vit {
    /// A vision transformer with EVA-02's initial weights of pre-training (`modeling_pretrain.py`), its variables under `p`.
    pub fn new(p: &nn::Path, config: &VitConfig) -> Vit {
        Vit::build(&Scope::new(p, false), config)
    }

    pub(crate) fn build(s: &Scope, c: &VitConfig) -> Vit {
        let s = &s.tower(c.depth);
        let embeddings = s.embeddings();
        let norm = match c.pool {
            Pool::Cls => "norm",
            Pool::Mean => "fc_norm",
        };
        let head = |bias| Linear::xavier(&(s / "head"), (c.width, c.out), bias, 1.0);
        Vit {
            patch_embed: PatchEmbed::new(&(&embeddings / "patch_embed" / "proj"), c),
            cls_token: embeddings.token("cls_token", &[1, 1, c.width]),
            pos_embed: c
                .abs_pos
                .then(|| embeddings.token("pos_embed", &[1, 1 + c.num_patches(), c.width])),
            mask_token: c.mask_token.then(|| embeddings.token("mask_token", &[1, 1, c.width])),
            rope: c.rope.then(|| Rope::new(c.grid(), c.head_width(), s.device())),
            rel_pos: RelativePositions::new(s, c),
            norm_pre: c.norm_pre.then(|| LayerNorm::new(&(s / "norm_pre"), c.width, c.eps)),
            blocks: (0..c.depth)
                .map(|i| Arc::new(Mutex::new(Block::new(&(s.block(i) / "blocks" / i), c, i))))
                .collect(),
            norm: LayerNorm::new(&(s / norm), c.width, c.eps),
            head: match c.head {
                Head::Biased => Some(head(true)),
                Head::Plain => Some(head(false)),
                Head::None => None,
            },
            pool: c.pool,
            frozen: None,
            checkpointed: false,
            parameters: s.parameters(),
        }
    }

    /// Turns checkpointing on or off: in training a block then keeps nothing but its input, and runs again in the backward pass,
    /// a third more work for less memory.
    pub fn checkpoint_blocks(&mut self, checkpointed: bool) {
        self.checkpointed = checkpointed;
    }

    /// Freezes the net permanently, so that it runs forward only, faster and in less memory: weights of products are stored in
    /// the compute type, queries, keys and values as one, on the CPU in oneDNN's own order and with activations fused in. Its
    /// variables are then empty, so that it can neither learn nor be saved. Sums, norms and softmax stay as they are under
    /// autocast.
    pub fn freeze(&mut self, precision: Precision) {
        let kind = precision.kind();
        for block in &self.blocks {
            let mut block = lock(block);
            block.attn.freeze(kind);
            block.mlp.freeze(kind);
        }
        self.head.iter_mut().for_each(|head| head.freeze(kind));
        self.frozen = Some(kind);
    }

    /// Whether [`Vit::freeze`] was called.
    pub fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// The trainable tensors; a frozen net has none.
    pub fn parameters(&self) -> Vec<Parameter> {
        if self.is_frozen() { vec![] } else { parameter::trainable(&self.parameters) }
    }

    /// All variables, whether they learn or not.
    pub(crate) fn all_parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Every token after the final norm and the head: [B, 1+K, E], `[CLS]` first.
    ///
    /// `images` [B, 3, S, S] normalised; `kept` [B, K] i64 names the patches (row by row from the upper left) that are
    /// embedded and processed, in any order, each at its own place; `None` keeps all N. Drop path is on while `train`.
    pub fn forward_t(&self, images: &Tensor, kept: Option<&Tensor>, train: bool) -> Tensor {
        let patches = self.patch_embed.forward_t(images, kept, train); // [B, K, D]
        self.project(self.hidden_t(patches, kept, train).norm(&self.norm))
    }

    /// Every token after the final norm and the head, [B, 1+N, E], of images in which the patches that `masked` [B, N] bool
    /// names are replaced by the mask token: masked image modelling. Drop path is on while `train`.
    ///
    /// # Panics
    /// When the net has no mask token ([`VitConfig::mask_token`]).
    pub fn forward_masked_t(&self, images: &Tensor, masked: &Tensor, train: bool) -> Tensor {
        let token = self.mask_token.as_ref().expect("a net with a mask token");
        let patches = self.patch_embed.forward_t(images, None, train);
        let patches = token.to_kind(patches.kind()).where_self(&masked.unsqueeze(-1), &patches);
        self.project(self.hidden_t(patches, None, train).norm(&self.norm))
    }

    /// The embedding of the whole image, [B, E]: that of `[CLS]`, or of the patches' mean ([`VitConfig::pool`]).
    pub fn cls_t(&self, images: &Tensor, train: bool) -> Tensor {
        let (mut x, at) = self.placed(self.patch_embed.forward_t(images, None, train), None);
        // After the last block `[CLS]` alone is looked at.
        let all = at.tokens;
        let (last, wanted) = match self.pool {
            Pool::Cls => (self.blocks.len() - 1, 1),
            Pool::Mean => (self.blocks.len(), all),
        };
        for (block, l) in self.blocks.iter().zip(0..) {
            self.block_t(block, &mut x, &at, if l == last { wanted } else { all }, train);
        }
        self.embedding(&x.value())
    }

    /// The embedding, [B, E], of tokens after the last block, [B, 1+N, D].
    fn embedding(&self, x: &Tensor) -> Tensor {
        let pooled = match self.pool {
            Pool::Cls => x.select(1, 0),
            Pool::Mean => x.narrow(1, 1, x.size()[1] - 1).mean_dim(1, false, x.kind()),
        };
        self.project(self.norm.forward(&pooled))
    }

    /// The embedding of whole images, as used zero-shot: [B, E].
    pub fn encode(&self, images: &Tensor) -> Tensor {
        self.cls_t(images, false)
    }

    /// Hidden states and tokens of `images` [B, 3, S, S]. Layer 0 is the input of the first block, layer l the output of the
    /// l-th.
    ///
    /// # Errors
    /// When a layer is beyond the net's depth.
    pub fn features(&self, images: &Tensor, layers: &[usize]) -> Result<Features, ModelError> {
        let depth = self.blocks.len();
        if let Some(layer) = layers.iter().find(|&&layer| layer > depth) {
            let message = format!("layer {layer}: the net has layers 0 to {depth}");
            return Err(ModelError::Config(message));
        }
        let (mut x, at) = self.placed(self.patch_embed.forward_t(images, None, false), None);
        let first = x.value();
        let mut hidden: Vec<Tensor> = layers.iter().map(|_| first.shallow_clone()).collect();
        for (block, l) in self.blocks.iter().zip(1..) {
            self.block_t(block, &mut x, &at, at.tokens, false);
            for (place, _) in layers.iter().enumerate().filter(|&(_, &layer)| layer == l) {
                hidden[place] = x.value();
            }
        }
        let tokens = x.norm(&self.norm);
        let projected = self.project(tokens.shallow_clone());
        Ok(Features { hidden, tokens, projected, embedding: self.embedding(&x.value()) })
    }

    fn project(&self, x: Tensor) -> Tensor {
        match &self.head {
            Some(head) => x.apply(head),
            None => x,
        }
    }

    /// Tokens after the last block, before the final norm, [B, 1+K, D], of patches [B, K, D].
    fn hidden_t(&self, patches: Tensor, kept: Option<&Tensor>, train: bool) -> Stream {
        let (mut x, at) = self.placed(patches, kept);
        for block in &self.blocks {
            self.block_t(block, &mut x, &at, at.tokens, train);
        }
        x
    }

    /// Runs a block, keeping nothing but its input where blocks are checkpointed.
    fn block_t(
        &self,
        block: &Arc<Mutex<Block>>,
        x: &mut Stream,
        at: &Places,
        wanted: i64,
        train: bool,
    ) {
        if !train || !self.checkpointed || !x.value().requires_grad() {
            return lock(block).forward_t(x, at, wanted, train);
        }
        let mine = |t: &Option<Tensor>| t.as_ref().map(Tensor::shallow_clone);
        let block = block.clone();
        let tokens = at.tokens;
        let rotations = mine(&at.rotations);
        let offsets = mine(&at.offsets);
        // A bias that blocks share is worked out anew: gradients reach its table from within.
        let table = self.rel_pos.as_ref().and_then(|rel_pos| mine(&rel_pos.shared));
        let out = torch_ext::checkpoint(&x.value(), move |x| {
            let bias = table.as_ref().zip(offsets.as_ref()).map(|(table, of)| bias(table, of));
            let at = Places { tokens, rotations: mine(&rotations), offsets: mine(&offsets), bias };
            let mut x = Stream::new(x.shallow_clone(), None);
            lock(&block).forward_t(&mut x, &at, wanted, train);
            x.value()
        });
        *x = Stream::new(out.expect(layers::FITS), None);
    }

    /// The first block's input, [B, 1+K, D], from patches [B, K, D], and their places.
    fn placed(&self, patches: Tensor, kept: Option<&Tensor>) -> (Stream, Places) {
        let b = patches.size()[0];
        let tokens = 1 + patches.size()[1];
        let cls = self.cls_token.expand([b, 1, -1], false);
        // Rows of the position embedding and of the rotations: 0 for [CLS], 1 + n for patch n.
        let places = kept.map(places);
        let x = Tensor::cat(&[cls, patches], 1); // [B, 1+K, D]
        let x = match (&self.pos_embed, &places) {
            (Some(pos_embed), Some(places)) => x + rows(&pos_embed.squeeze_dim(0), places),
            (Some(pos_embed), None) => x + pos_embed,
            (None, _) => x,
        };
        let x = match &self.norm_pre {
            Some(norm) => norm.forward(&x),
            None => x,
        };
        let rotations = self.rope.as_ref().map(|rope| rope.rotations(places.as_ref()));
        let offsets = self.rel_pos.as_ref().map(|rel_pos| rel_pos.offsets(places.as_ref()));
        let shared = self.rel_pos.as_ref().and_then(|rel_pos| rel_pos.shared.as_ref());
        let bias = shared.zip(offsets.as_ref()).map(|(table, offsets)| bias(table, offsets));
        (Stream::new(x, self.frozen), Places { tokens, rotations, offsets, bias })
    }
}

/// A block, locked while it runs.
fn lock(block: &Mutex<Block>) -> MutexGuard<'_, Block> {
    block.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `[CLS]` and the `kept` patches [B, K] of the tokens of whole images [B, 1+N, E]: [B, 1+K, E].
pub fn same_tokens(tokens: &Tensor, kept: &Tensor) -> Tensor {
    let index = places(kept).unsqueeze(-1).expand([-1, -1, tokens.size()[2]], false);
    tokens.gather(1, &index, false)
}

/// A patch's pixels times one matrix: the convolution of stride P, for the patches that are wanted only.
#[derive(Debug)]
struct PatchEmbed {
    weight: Tensor,       // [D, 3, P, P]
    bias: Option<Tensor>, // [D]
    image: i64,
    patch: i64,
    grad: f64,
}

impl PatchEmbed {
    fn new(s: &Scope, c: &VitConfig) -> PatchEmbed {
        let fan = (3 * c.patch_size * c.patch_size, c.width);
        let shape = [c.width, 3, c.patch_size, c.patch_size];
        PatchEmbed {
            weight: s.xavier_uniform("weight", &shape, fan),
            bias: (!c.norm_pre).then(|| s.zeros("bias", &[c.width])),
            image: c.image_size,
            patch: c.patch_size,
            grad: c.patch_grad,
        }
    }

    /// [B, 3, S, S] -> [B, K, D].
    fn forward_t(&self, images: &Tensor, kept: Option<&Tensor>, train: bool) -> Tensor {
        let (b, c, s, _) = images.size4().expect("images are [B, 3, S, S]");
        assert_eq!(s, self.image, "a network is made for one image size");
        let p = self.patch;
        let g = s / self.patch;
        let mut patches = images
            .reshape([b, c, g, p, g, p])
            .permute([0, 2, 4, 1, 3, 5]) // [B, g, g, 3, P, P], as in the convolution's weight
            .reshape([b * g * g, c * p * p]);
        if let Some(kept) = kept {
            let first = Tensor::arange(b, (Kind::Int64, kept.device())).unsqueeze(1) * (g * g);
            patches = patches.index_select(0, &(kept + first).flatten(0, 1));
        }
        let x = patches
            .view([b, -1, c * p * p])
            .linear(&self.weight.flatten(1, -1), self.bias.as_ref());
        match self.grad {
            share if train && share < 1.0 => x.detach() * (1.0 - share) + x * share,
            _ => x,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tch::Device;

    use super::*;
    use crate::nets::testing::seeded;
    use crate::{Ffn, RelPos};

    pub(super) fn small() -> VitConfig {
        VitConfig {
            image_size: 32,
            patch_size: 8,
            width: 32,
            depth: 3,
            heads: 2,
            hidden: 48,
            out: 24,
            ffn: Ffn::SwiGlu,
            rope: true,
            drop_path: 0.0,
            patch_grad: 1.0,
            ..VitConfig::preset("uta-b14").unwrap()
        }
    }

    #[test]
    fn all_patches_kept_in_any_order_equal_the_whole_image() {
        let _rng = seeded(1);
        let vs = nn::VarStore::new(Device::Cpu);
        let vit = Vit::new(&vs.root(), &small());
        let images = Tensor::randn([2, 3, 32, 32], (Kind::Float, Device::Cpu));
        let whole = vit.forward_t(&images, None, false);
        let order = Tensor::randperm(16, (Kind::Int64, Device::Cpu));
        let kept = order.unsqueeze(0).expand([2, -1], false).contiguous();
        let shuffled = vit.forward_t(&images, Some(&kept), false);
        let same = Tensor::cat(&[Tensor::from_slice(&[0i64]), order + 1], 0);
        let difference = (whole.index_select(1, &same) - shuffled).abs().max();
        assert!(difference.double_value(&[]) < 1e-5, "{difference}");
    }

    #[test]
    fn a_patch_that_is_not_kept_changes_nothing() {
        let _rng = seeded(2);
        let vs = nn::VarStore::new(Device::Cpu);
        let vit = Vit::new(&vs.root(), &small());
        let images = Tensor::randn([1, 3, 32, 32], (Kind::Float, Device::Cpu));
        let kept = Tensor::from_slice(&[1i64, 6, 11]).view([1, 3]);
        let before = vit.forward_t(&images, Some(&kept), false);
        let mut corner = images.narrow(2, 0, 8).narrow(3, 0, 8); // patch 0
        let _ = corner.fill_(9.0);
        assert_eq!(before, vit.forward_t(&images, Some(&kept), false));
        assert_eq!(before.size(), [1, 4, 24]);
    }

    #[test]
    fn drop_path_acts_in_training_only_and_follows_the_seed() {
        let _rng = seeded(3);
        let vs = nn::VarStore::new(Device::Cpu);
        let vit = Vit::new(&vs.root(), &VitConfig { drop_path: 0.5, ..small() });
        let images = Tensor::randn([4, 3, 32, 32], (Kind::Float, Device::Cpu));
        let run = |seed, train| {
            tch::manual_seed(seed);
            vit.forward_t(&images, None, train)
        };
        assert_eq!(run(7, true), run(7, true));
        assert_ne!(run(7, true), run(8, true));
        assert_eq!(run(7, false), run(8, false));
    }

    #[test]
    fn checkpointed_blocks_change_no_output_and_no_gradient() {
        let _rng = seeded(8);
        let images = Tensor::randn([3, 3, 32, 32], (Kind::Float, Device::Cpu));
        let kept = Tensor::from_slice(&[1i64, 6, 11, 0, 5, 9, 2, 3, 15]).view([3, 3]);
        let with_bias = VitConfig { rope: false, rel_pos: RelPos::Shared, ..small() };
        for (config, tolerance) in
            [(VitConfig { drop_path: 0.5, ..small() }, 0.0), (with_bias, 1e-6)]
        {
            for precision in [Precision::F32, Precision::Bf16] {
                let run = |checkpointed: bool, whole: bool| {
                    tch::manual_seed(9);
                    let vs = nn::VarStore::new(Device::Cpu);
                    let mut vit = Vit::new(&vs.root(), &config);
                    vit.checkpoint_blocks(checkpointed);
                    let out = torch_ext::autocast(Device::Cpu, precision, || {
                        let out = if whole {
                            vit.cls_t(&images, true)
                        } else {
                            vit.forward_t(&images, Some(&kept), true)
                        };
                        out.to_kind(Kind::Float).square().mean(Kind::Float).backward();
                        out
                    });
                    let mut all: Vec<(String, Tensor)> = vs.variables().into_iter().collect();
                    all.retain(|(_, variable)| variable.grad().defined());
                    all.sort_by(|a, b| a.0.cmp(&b.0));
                    let gradients = all.into_iter().map(|(name, v)| (name, v.grad()));
                    std::iter::once(("out".to_owned(), out.detach())).chain(gradients).collect()
                };
                for whole in [true, false] {
                    let plain: Vec<(String, Tensor)> = run(false, whole);
                    let checkpointed = run(true, whole);
                    assert!(plain.len() > 40 && plain.len() == checkpointed.len());
                    for ((name, a), (_, b)) in plain.iter().zip(&checkpointed) {
                        // A shared table adds up what blocks want of it in another order.
                        let exact = tolerance == 0.0 || !name.contains("rel_pos");
                        let limit = if exact { 0.0 } else { tolerance };
                        let limit = if precision == Precision::F32 { limit } else { 1e4 * limit };
                        let largest = a.abs().max().double_value(&[]);
                        let off = (a - b).abs().max().double_value(&[]);
                        assert!(off <= limit * largest, "{precision:?} {name}: {off}");
                    }
                }
            }
        }
    }

    #[test]
    fn variables_are_the_official_keys_with_their_shapes_and_count() {
        let vs = nn::VarStore::new(Device::Cpu);
        let _rng = seeded(0);
        let config = small();
        let _vit = Vit::new(&(vs.root() / "visual"), &config);
        let variables = vs.variables();
        let count: i64 = variables.values().map(|t| t.numel() as i64).sum();
        assert_eq!(count, config.parameters());
        for (name, shape) in [
            ("visual.cls_token", &[1, 1, 32][..]),
            ("visual.pos_embed", &[1, 17, 32]),
            ("visual.patch_embed.proj.weight", &[32, 3, 8, 8]),
            ("visual.blocks.2.attn.q_proj.weight", &[32, 32]),
            ("visual.blocks.2.attn.q_bias", &[32]),
            ("visual.blocks.2.attn.v_bias", &[32]),
            ("visual.blocks.0.attn.proj.bias", &[32]),
            ("visual.blocks.0.mlp.w1.weight", &[48, 32]),
            ("visual.blocks.0.mlp.ffn_ln.weight", &[48]),
            ("visual.blocks.0.mlp.w3.bias", &[32]),
            ("visual.norm.weight", &[32]),
            ("visual.head.weight", &[24, 32]),
        ] {
            assert_eq!(variables[name].size(), shape, "{name}");
        }
        assert!(
            variables.keys().all(|name| !name.contains("rope") && !name.ends_with("k_proj.bias"))
        );
    }

    /// EVA-02's pre-training: Xavier, times sqrt(ln(2 depth)) on the value path.
    #[test]
    fn weights_start_as_evas() {
        let _rng = seeded(6);
        let vs = nn::VarStore::new(Device::Cpu);
        let c = VitConfig { width: 192, heads: 3, hidden: 512, depth: 12, ..small() };
        let _vit = Vit::new(&vs.root(), &c);
        let variables = vs.variables();
        let std = |name: &str| variables[name].std(true).double_value(&[]);
        let gain = 24f64.ln().sqrt();
        for (name, expected) in [
            ("blocks.3.attn.q_proj.weight", (2.0 / 384f64).sqrt()),
            ("blocks.3.attn.v_proj.weight", (2.0 / 384f64).sqrt() * gain),
            ("blocks.3.attn.proj.weight", (2.0 / 384f64).sqrt() * gain),
            ("blocks.3.mlp.w2.weight", (2.0 / 704f64).sqrt() * gain),
            ("blocks.3.mlp.w3.weight", (2.0 / 704f64).sqrt() * gain),
            ("patch_embed.proj.weight", (2.0 / 384f64).sqrt()),
            // A normal cut off at one std keeps 0.53956 of it.
            ("pos_embed", 0.02 * 0.53956),
            ("blocks.3.mlp.w1.bias", 0.0),
        ] {
            let found = std(name);
            assert!((found - expected).abs() <= 0.03 * expected, "{name}: {found}, not {expected}");
        }
        assert!(variables["pos_embed"].abs().max().double_value(&[]) <= 0.02 + 1e-6);
    }

    #[test]
    fn the_patch_embedding_gets_the_asked_share_of_the_gradient() {
        let _rng = seeded(4);
        let grad = |patch_grad| {
            tch::manual_seed(4);
            let vs = nn::VarStore::new(Device::Cpu);
            let vit = Vit::new(&vs.root(), &VitConfig { patch_grad, ..small() });
            let images = Tensor::ones([1, 3, 32, 32], (Kind::Float, Device::Cpu));
            vit.forward_t(&images, None, true).square().sum(Kind::Float).backward();
            vs.variables()["patch_embed.proj.bias"].grad().norm().double_value(&[])
        };
        assert!((grad(0.1) / grad(1.0) - 0.1).abs() < 1e-5);
    }
}
