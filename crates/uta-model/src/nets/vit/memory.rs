//! Memory of a block: what it keeps for the backward pass, and what is alive for a moment while it runs. Counted from shapes;
//! no net is made.
//!
//! Shapes: T tokens (`[CLS]` and the patches that are processed), D width, F channels inside the feed-forward network, H heads.
//! Counts are bytes a token, of one image.

use tch::Device;
use torch_ext::{Precision, attends};

use crate::{Ffn, RelPos, VitConfig};

/// Bytes of an f32: the residual stream, norms inside branches on a GPU.
const F32_BYTES: i64 = 4;

/// Which kernels run: they don't keep the same things for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// CUDA's: attention is fused, and norms inside branches run in f32.
    Gpu,
    /// A CPU's: fused loops keep less, and norms come in the type of their input.
    Cpu {
        /// Whether attention is fused too: it isn't on every processor, nor for each type.
        attends: bool,
    },
}

impl Kernels {
    /// Those of this machine's CPU for products in `precision`.
    pub fn of_this_cpu(precision: impl Into<Precision>) -> Kernels {
        Kernels::Cpu { attends: attends(Device::Cpu, precision.into().kind()) }
    }

    /// Whether they are a GPU's.
    pub fn is_gpu(self) -> bool {
        self == Kernels::Gpu
    }
}

/// How blocks are computed, as far as their memory goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compute {
    /// The type of products.
    pub precision: Precision,
    /// The kernels.
    pub kernels: Kernels,
}

impl Compute {
    /// Bytes of a value in the type that products compute in.
    pub fn bytes(self) -> i64 {
        match self.precision {
            Precision::F32 => F32_BYTES,
            Precision::Bf16 => 2,
        }
    }

    fn narrow(self) -> bool {
        self.precision == Precision::Bf16
    }

    /// Whether scores and probabilities of the attention of `c` never lie in memory as whole matrices: in f32, libtorch's own
    /// attention sees to that where ours doesn't.
    fn fuses_attention(self, c: &VitConfig) -> bool {
        self.kernels.is_gpu() || self.takes_attention(c) || self.precision == Precision::F32
    }

    /// Whether `torch_ext::attention` takes that of `c`.
    fn takes_attention(self, c: &VitConfig) -> bool {
        let fits = c.rel_pos == RelPos::None && c.width % (2 * c.heads) == 0;
        self.kernels == Kernels::Cpu { attends: true } && fits
    }
}

impl VitConfig {
    /// The number of weights of blocks and head that products read: those that are frozen or cast to the compute type.
    pub fn product_weights(&self) -> i64 {
        // One token's products, less those of its attention to itself.
        self.macs(0) as i64 - 2 * self.width * self.depth
    }

    /// Bytes a token that a block keeps for the backward pass, of images of `tokens` tokens.
    ///
    /// | kept by | f32 on the CPU | bf16 on the CPU | f32 on a GPU | bf16 on a GPU |
    /// |---|---|---|---|---|
    /// | two norms: their input, the stream | 8 D | 8 D | 8 D | 8 D |
    /// | q, k, v: the norm's output | 4 D | 2 D | 4 D | 2 D |
    /// | attention: q, k, v, and the projection's input | 16 D | 8 D | 16 D | 8 D |
    /// | `inner_attn_ln`: its output beside its input | 4 D | 2 D | 4 D | 6 D |
    /// | w1, w2 (or fc1 alone): the norm's output | 4 D | 2 D | 4 D | 2 D |
    /// | SwiGLU: w1 x, w2 x, their product or its norm | 12 F | 6 F | 12 F | 6 F |
    /// | SwiGLU: SiLU, and the product beside its norm | | | 8 F | 6 F |
    /// | GELU and its input; the fast one's sigmoid too | 8 F (12 F) | 4 F (6 F) | 8 F (12 F) | 4 F (6 F) |
    /// | layer scale: both branches | 8 D | 4 D | 8 D | 4 D |
    /// | without `torch_ext::attention`: output in its own order, or probabilities | 4 D | 2 H T | | |
    ///
    /// On a GPU `ffn_ln` reads and keeps an f32 copy, so that the product itself goes: 4 F + 2 F instead of 2 F + 2 F. The
    /// statistics of norms and softmax, below a hundredth, and biases of relative positions aren't counted.
    pub fn kept_by_block(&self, tokens: i64, compute: Compute) -> i64 {
        let e = compute.bytes();
        let d = self.width;
        let gpu = compute.kernels.is_gpu();
        let some = |there: bool, bytes: i64| if there { bytes } else { 0 };
        // A norm inside a branch: its output, and on a GPU its input in f32 in the place of that in bf16.
        let widened = some(compute.narrow() && gpu, F32_BYTES - e);
        let stream = 2 * F32_BYTES * d;
        let normed = e * d;
        let apart = match (gpu || compute.takes_attention(self), compute.narrow()) {
            (true, _) => 0,
            (false, true) => self.scores(tokens, compute),
            (false, false) => e * d,
        };
        let norm = some(self.attn_norm, (e + F32_BYTES * i64::from(widened > 0)) * d);
        let attention = normed + 4 * e * d + apart + norm;
        stream + attention + self.kept_by_ffn(compute) + some(self.layer_scale, 2 * e * d)
    }

    /// The part of [`VitConfig::kept_by_block`] that its feed-forward network keeps, with the norm's output.
    fn kept_by_ffn(&self, compute: Compute) -> i64 {
        let e = compute.bytes();
        let d = self.width;
        let f = self.hidden;
        let gpu = compute.kernels.is_gpu();
        // Nothing in f32.
        let widened = if gpu { F32_BYTES - e } else { 0 };
        let inside = match self.ffn {
            Ffn::SwiGlu if gpu => 4 * e * f + if self.ffn_norm { (e + widened) * f } else { 0 },
            Ffn::SwiGlu | Ffn::QuickGelu => 3 * e * f,
            Ffn::Gelu => 2 * e * f,
        };
        e * d + inside
    }

    /// Scores of attention among `tokens` tokens, or probabilities: a number for each head and token.
    fn scores(&self, tokens: i64, compute: Compute) -> i64 {
        compute.bytes() * self.heads * tokens
    }

    /// Bytes a token that are alive at most while the backward pass of a block begins, beyond what blocks keep: in its
    /// feed-forward network, gradients of the stream and the branch, and of what is inside, and the operand that
    /// `torch_ext::linear` turns on the CPU; or in its attention, gradients of the stream, of queries, keys, values and output,
    /// and of scores and probabilities where those lie in memory, when what the feed-forward network kept is gone.
    pub fn backward_transient(&self, tokens: i64, compute: Compute) -> i64 {
        let e = compute.bytes();
        let inside = match self.ffn {
            Ffn::SwiGlu => 3,
            Ffn::Gelu | Ffn::QuickGelu => 2,
        };
        let turned = match compute.kernels {
            Kernels::Cpu { .. } if compute.narrow() => e * self.width.min(self.hidden),
            _ => 0,
        };
        let ffn = (F32_BYTES + e) * self.width + inside * e * self.hidden + turned;
        let scores =
            if compute.fuses_attention(self) { 0 } else { 2 * self.scores(tokens, compute) };
        let attention = (F32_BYTES + 4 * e) * self.width + scores - self.kept_by_ffn(compute);
        ffn.max(attention)
    }

    /// Bytes a token that are alive at most in a forward pass that keeps nothing: the stream in f32, a norm's output, and the
    /// larger of a block's two branches.
    pub fn forward_transient(&self, tokens: i64, compute: Compute) -> i64 {
        let e = compute.bytes();
        let d = self.width;
        // q, k, v and the output; q and k turned, but where the CPU's attention does it.
        let turned = if self.rope && !compute.takes_attention(self) { 2 * e * d } else { 0 };
        let qkv = 3 * e * d + turned;
        let attention = if compute.fuses_attention(self) {
            qkv + e * d
        } else {
            // Scores and probabilities; then these, the values in their order, and the output.
            let scores = self.scores(tokens, compute);
            qkv + (2 * scores).max(scores + 2 * e * d)
        };
        let ffn = match self.ffn {
            Ffn::SwiGlu => 3 * e * self.hidden,
            Ffn::Gelu | Ffn::QuickGelu => 2 * e * self.hidden,
        };
        (F32_BYTES + e) * d + attention.max(ffn)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Head;

    /// ViT-B/14 at ratio 0.4.
    const TOKENS: i64 = 155;

    fn kept(c: &VitConfig, precision: Precision, kernels: Kernels) -> i64 {
        c.kept_by_block(TOKENS, Compute { precision, kernels })
    }

    fn b14() -> VitConfig {
        VitConfig::preset("uta-b14").unwrap()
    }

    #[test]
    fn weights_that_products_read_are_all_but_vectors_and_embeddings() {
        for name in crate::preset_names() {
            let c = VitConfig::preset(&name).unwrap();
            let ffn = if c.ffn == Ffn::SwiGlu { 3 } else { 2 };
            let head = if c.head == Head::None { 0 } else { c.width * c.out };
            let matrices = c.depth * (4 * c.width.pow(2) + ffn * c.width * c.hidden) + head;
            assert_eq!(c.product_weights(), matrices, "{name}");
        }
    }

    /// Sizes that autograd's saved tensors hold for such a block in PyTorch on the CPU (`tests/golden/block_memory.py`), statistics
    /// apart. A GPU's attention keeps its output in one order only and no probabilities, its `ffn_ln` an f32 input; and ours
    /// casts a norm's output once, not for each of five products.
    #[test]
    fn a_block_on_a_gpu_keeps_what_autograd_saves() {
        let d = 768;
        let f = 2048;
        let heads = 12;
        for (precision, bytes) in [
            (Precision::Bf16, 44192 - 24 - 2 * heads * TOKENS + 2 * f - 6 * d),
            (Precision::F32, 68680 - 72 - 4 * d),
        ] {
            assert_eq!(kept(&b14(), precision, Kernels::Gpu), bytes, "{precision:?}");
        }
    }

    #[test]
    fn a_block_on_the_cpu_keeps_less_than_on_a_gpu() {
        for precision in [Precision::Bf16, Precision::F32] {
            let [cpu, gpu] = [Kernels::Cpu { attends: true }, Kernels::Gpu]
                .map(|kernels| kept(&b14(), precision, kernels));
            assert!(cpu < gpu, "{precision:?}: {cpu} and {gpu}");
        }
    }

    #[test]
    fn attention_that_is_not_fused_keeps_probabilities_in_bf16_and_a_second_output_in_f32() {
        let d = 768;
        let heads = 12;
        for (precision, more) in [(Precision::Bf16, 2 * heads * TOKENS), (Precision::F32, 4 * d)] {
            let by = |c: &VitConfig| {
                [true, false].map(|attends| kept(c, precision, Kernels::Cpu { attends }))
            };
            let [fused, apart] = by(&b14());
            assert_eq!(apart - fused, more, "{precision:?}");
            // Heads of an odd width aren't taken by the fused loops.
            let [one, other] = by(&VitConfig { rope: false, width: 756, ..b14() });
            assert_eq!(one, other, "{precision:?}");
        }
    }
}
