//! A transformer block: attention and a feed-forward network, each a branch of the residual stream.

use tch::{Kind, Tensor};
use torch_ext::{Activation, PackedLinear};

use super::positions::{Places, Rope, bias, table};
use crate::nets::layers::{self, LayerNorm, Linear, Scope, Stream, quick_gelu};
use crate::{Ffn, RelPos, VitConfig};

/// x += attention(norm1(x)); x += mlp(norm2(x)), each branch dropped for some samples while training. Post-norm blocks
/// normalise the branch's result instead; layer scale multiplies it by a vector.
#[derive(Debug)]
pub(super) struct Block {
    norm1: LayerNorm,
    pub attn: Attention,
    gamma_1: Option<Tensor>, // [D]
    norm2: LayerNorm,
    pub mlp: Mlp,
    gamma_2: Option<Tensor>, // [D]
    post_norm: bool,
    drop_path: f64,
}

impl Block {
    pub fn new(s: &Scope, c: &VitConfig, index: i64) -> Block {
        // Small, as BEiT's: blocks start near the identity.
        let gamma = |name| c.layer_scale.then(|| s.constant(name, &[c.width], 1e-5));
        Block {
            norm1: LayerNorm::new(&(s / "norm1"), c.width, c.eps),
            attn: Attention::new(&(s / "attn"), c),
            gamma_1: gamma("gamma_1"),
            norm2: LayerNorm::new(&(s / "norm2"), c.width, c.eps),
            mlp: Mlp::new(&(s / "mlp"), c),
            gamma_2: gamma("gamma_2"),
            post_norm: c.post_norm,
            drop_path: c.drop_path * index as f64 / (c.depth - 1).max(1) as f64,
        }
    }

    /// Attends to all tokens; the first `wanted` of them go on.
    pub fn forward_t(&self, x: &mut Stream, at: &Places, wanted: i64, train: bool) {
        let scaled = |branch: Tensor, gamma: &Option<Tensor>| match gamma {
            Some(gamma) => branch * gamma,
            None => branch,
        };
        let attended = if self.post_norm {
            self.norm1.forward(&self.attn.forward(&x.value(), at, wanted))
        } else {
            scaled(self.attn.forward(&x.norm(&self.norm1), at, wanted), &self.gamma_1)
        };
        x.keep_first(wanted);
        x.add(self.drop(attended, train));
        let fed = if self.post_norm {
            self.norm2.forward(&self.mlp.forward(&x.value()))
        } else {
            scaled(self.mlp.forward(&x.norm(&self.norm2)), &self.gamma_2)
        };
        x.add(self.drop(fed, train));
    }

    /// Stochastic depth: a whole branch of a sample, by libtorch's generator.
    fn drop(&self, branch: Tensor, train: bool) -> Tensor {
        if !train || self.drop_path == 0.0 {
            return branch;
        }
        let keep = 1.0 - self.drop_path;
        let b = branch.size()[0];
        let device = branch.device();
        let kept = Tensor::rand([b, 1, 1], (Kind::Float, device)).lt(keep).to_kind(branch.kind());
        branch * (kept / keep)
    }
}

#[derive(Debug)]
pub(super) struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    q_bias: Tensor,                               // [D]
    k_bias: Option<Tensor>,                       // [D]
    v_bias: Tensor,                               // [D]
    relative_position_bias_table: Option<Tensor>, // [offsets, H]
    inner_attn_ln: Option<LayerNorm>,
    proj: Linear,
    heads: i64,
    /// Queries, keys and values in one product, in a frozen net.
    qkv: Option<PackedLinear>,
}

impl Attention {
    pub fn new(s: &Scope, c: &VitConfig) -> Attention {
        let d = c.width;
        let gain = sub_ln_gain(c);
        Attention {
            q_proj: Linear::xavier(&(s / "q_proj"), (d, d), false, 1.0),
            k_proj: Linear::xavier(&(s / "k_proj"), (d, d), false, 1.0),
            v_proj: Linear::xavier(&(s / "v_proj"), (d, d), false, gain),
            q_bias: s.zeros("q_bias", &[d]),
            k_bias: c.k_bias.then(|| s.zeros("k_bias", &[d])),
            v_bias: s.zeros("v_bias", &[d]),
            relative_position_bias_table: (c.rel_pos == RelPos::Blocks).then(|| table(s, c)),
            inner_attn_ln: c.attn_norm.then(|| LayerNorm::new(&(s / "inner_attn_ln"), d, c.eps)),
            proj: Linear::xavier(&(s / "proj"), (d, d), true, gain),
            heads: c.heads,
            qkv: None,
        }
    }

    /// Freezes the layers: from now on they run forward only, in `kind`.
    pub fn freeze(&mut self, kind: Kind) {
        let zero = self.q_bias.zeros_like();
        let bias = [&self.q_bias, self.k_bias.as_ref().unwrap_or(&zero), &self.v_bias];
        let weights = [&mut self.q_proj, &mut self.k_proj, &mut self.v_proj];
        let weight = Tensor::cat(&weights.each_ref().map(|linear| &linear.weight), 0);
        self.qkv = layers::pack(&weight, Some(&Tensor::cat(&bias, 0)), kind);
        for linear in weights {
            layers::retire(&mut linear.weight, self.qkv.is_some(), kind);
        }
        self.proj.freeze(kind);
    }

    /// Queries, keys and values of x [B, T, D]: side by side [B, T, 3 D] where one product makes them all, or [B, T, D] each.
    fn qkv(&self, x: &Tensor) -> Vec<Tensor> {
        if let Some(packed) = &self.qkv {
            return vec![packed.forward(x, Activation::None).expect(layers::FITS)];
        }
        let layers = [
            (&self.q_proj.weight, Some(&self.q_bias)),
            (&self.k_proj.weight, self.k_bias.as_ref()),
            (&self.v_proj.weight, Some(&self.v_bias)),
        ];
        match layers::joint(x, &layers) {
            Some(joint) => vec![joint],
            None => layers.map(|(weight, bias)| layers::linear(x, weight, bias)).into(),
        }
    }

    /// [B, T, D] -> [B, wanted, D]: the first tokens attend to all.
    fn forward(&self, x: &Tensor, at: &Places, wanted: i64) -> Tensor {
        let own = self.relative_position_bias_table.as_ref().zip(at.offsets.as_ref());
        let own = own.map(|(table, offsets)| bias(table, offsets));
        let bias = own.as_ref().or(at.bias.as_ref()).map(|bias| bias.narrow(2, 0, wanted));
        let qkv = self.qkv(x);
        let pairs = x.size()[2] % (2 * self.heads) == 0; // of numbers, in a head
        let fused = pairs && bias.is_none() && torch_ext::attends(x.device(), qkv[0].kind());
        let out = if fused {
            let qkv: Vec<_> = qkv.iter().collect();
            torch_ext::attention(&qkv, at.rotations.as_ref(), self.heads, wanted)
                .expect(layers::FITS)
        } else {
            let qkv = if qkv.len() == 1 { qkv[0].chunk(3, -1) } else { qkv };
            let [q, k, v] = [0, 1, 2].map(|i| qkv[i].unflatten(-1, [self.heads, -1]));
            let heads_first = |x: Tensor| x.transpose(1, 2); // [B, H, T, head_width]
            let (q, k) = match &at.rotations {
                Some(rotations) => (Rope::apply(&q, rotations), Rope::apply(&k, rotations)),
                None => (heads_first(q), heads_first(k)),
            };
            let q = q.narrow(2, 0, wanted);
            let out = layers::attention(&q, &k, &heads_first(v), bias.as_ref(), false);
            out.transpose(1, 2).flatten(2, 3)
        };
        match &self.inner_attn_ln {
            Some(norm) => norm.forward(&out).apply(&self.proj),
            None => out.apply(&self.proj),
        }
    }
}

#[derive(Debug)]
pub(super) enum Mlp {
    SwiGlu { w1: Linear, w2: Linear, ffn_ln: Option<LayerNorm>, w3: Linear },
    Gelu { fc1: Linear, fc2: Linear, quick: bool },
}

impl Mlp {
    pub fn new(s: &Scope, c: &VitConfig) -> Mlp {
        let d = c.width;
        let h = c.hidden;
        let gain = sub_ln_gain(c);
        match c.ffn {
            Ffn::SwiGlu => Mlp::SwiGlu {
                w1: Linear::xavier(&(s / "w1"), (d, h), true, gain),
                w2: Linear::xavier(&(s / "w2"), (d, h), true, gain),
                ffn_ln: c.ffn_norm.then(|| LayerNorm::new(&(s / "ffn_ln"), h, c.eps)),
                w3: Linear::xavier(&(s / "w3"), (h, d), true, gain),
            },
            Ffn::Gelu | Ffn::QuickGelu => Mlp::Gelu {
                fc1: Linear::xavier(&(s / "fc1"), (d, h), true, 1.0),
                fc2: Linear::xavier(&(s / "fc2"), (h, d), true, 1.0),
                quick: c.ffn == Ffn::QuickGelu,
            },
        }
    }

    /// Freezes the layers: from now on they run forward only, in `kind`.
    pub fn freeze(&mut self, kind: Kind) {
        match self {
            Mlp::SwiGlu { w1, w2, w3, .. } => [w1, w2, w3].into_iter().for_each(|w| w.freeze(kind)),
            Mlp::Gelu { fc1, fc2, .. } => [fc1, fc2].into_iter().for_each(|w| w.freeze(kind)),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Mlp::SwiGlu { w1, w2, ffn_ln, w3 } => w1.gate(w2, ffn_ln.as_ref(), x).apply(w3),
            Mlp::Gelu { fc1, fc2, quick: false } => fc1.activated(x, Activation::Gelu).apply(fc2),
            Mlp::Gelu { fc1, fc2, quick: true } => quick_gelu(&x.apply(fc1)).apply(fc2),
        }
    }
}

/// The factor of some initial weights in networks with an inner LayerNorm (EVA-02, `modeling_pretrain.py`).
fn sub_ln_gain(c: &VitConfig) -> f64 {
    match c.ffn {
        Ffn::SwiGlu if c.ffn_norm => (2.0 * c.depth as f64).ln().sqrt(),
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tch::{Device, nn};

    use super::super::tests::small;
    use super::super::{Vit, lock};
    use super::*;
    use crate::nets::testing::seeded;

    #[test]
    fn drop_path_rises_over_depth_and_keeps_the_mean() {
        let _rng = seeded(7);
        let vs = nn::VarStore::new(Device::Cpu);
        let vit = Vit::new(&vs.root(), &VitConfig { drop_path: 0.5, ..small() });
        let rates: Vec<f64> = vit.blocks.iter().map(|block| lock(block).drop_path).collect();
        assert_eq!(rates, [0.0, 0.25, 0.5]);
        let branch = Tensor::ones([4000, 2, 1], (Kind::Float, Device::Cpu));
        let dropped = Block::drop(&lock(&vit.blocks[1]), branch, true);
        let first = dropped.select(1, 0);
        let second = dropped.select(1, 1);
        assert_eq!(first, second, "a sample is dropped whole");
        assert!((first.max().double_value(&[]) - 1.0 / 0.75).abs() < 1e-6);
        assert!((first.mean(Kind::Float).double_value(&[]) - 1.0).abs() < 0.05);
    }
}
