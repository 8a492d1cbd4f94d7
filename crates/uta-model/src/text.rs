//! CLIP's text transformer (facts 1.7): causal, pre-norm, exact GELU, pooled at the end-of-text token. Field names are
//! checkpoint keys.

use tch::{Kind, Tensor, nn};

use crate::TextConfig;
use crate::layers::{self, LayerNorm, Linear};

/// LayerNorm's epsilon (facts 1.7).
const EPS: f64 = 1e-5;

/// The text encoder.
#[derive(Debug)]
pub struct TextTower {
    token_embedding: Tensor,      // [V, D]
    positional_embedding: Tensor, // [context, D]
    resblocks: Vec<Block>,
    ln_final: LayerNorm,
    text_projection: Tensor, // [D, E]
}

impl TextTower {
    /// A text tower with CLIP's initial weights, its variables under `p`.
    pub fn new(p: &nn::Path, c: &TextConfig) -> TextTower {
        let blocks = p / "transformer" / "resblocks";
        TextTower {
            token_embedding: (p / "token_embedding").randn(
                "weight",
                &[c.vocab_size, c.width],
                0.0,
                0.02,
            ),
            positional_embedding: p.randn(
                "positional_embedding",
                &[c.context_length, c.width],
                0.0,
                0.01,
            ),
            resblocks: (0..c.layers).map(|i| Block::new(&(&blocks / i), c)).collect(),
            ln_final: LayerNorm::new(&(p / "ln_final"), c.width, EPS),
            text_projection: p.randn(
                "text_projection",
                &[c.width, c.out],
                0.0,
                (c.width as f64).powf(-0.5),
            ),
        }
    }

    /// Embeddings [B, E] of `tokens` [B, T] i64, T up to the context. The end-of-text token is the largest of its row;
    /// what follows it changes nothing, so rows may be cut to the longest text.
    pub fn forward(&self, tokens: &Tensor) -> Tensor {
        let (b, t) = tokens.size2().expect("tokens are [B, T]");
        let mut x = Tensor::embedding(&self.token_embedding, tokens, -1, false, false)
            + self.positional_embedding.narrow(0, 0, t); // [B, T, D]
        for block in &self.resblocks {
            x = block.forward(&x);
        }
        let end = tokens.argmax(-1, false); // [B]
        let row = Tensor::arange(b, (Kind::Int64, tokens.device()));
        let pooled = x.index(&[Some(row), Some(end)]); // [B, D]
        self.ln_final.forward(&pooled).matmul(&self.text_projection)
    }
}

#[derive(Debug)]
struct Block {
    ln_1: LayerNorm,
    attn: Attention,
    ln_2: LayerNorm,
    c_fc: Linear,
    c_proj: Linear,
}

impl Block {
    fn new(p: &nn::Path, c: &TextConfig) -> Block {
        let (d, mlp) = (c.width, p / "mlp");
        Block {
            ln_1: LayerNorm::new(&(p / "ln_1"), d, EPS),
            attn: Attention::new(&(p / "attn"), c),
            ln_2: LayerNorm::new(&(p / "ln_2"), d, EPS),
            c_fc: Linear::normal(&(&mlp / "c_fc"), d, 4 * d, true, (2.0 * d as f64).powf(-0.5)),
            c_proj: Linear::normal(&(&mlp / "c_proj"), 4 * d, d, true, residual_std(c)),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let x = x + self.attn.forward(&self.ln_1.forward(x));
        &x + self.ln_2.forward(&x).apply(&self.c_fc).gelu("none").apply(&self.c_proj)
    }
}

#[derive(Debug)]
struct Attention {
    in_proj_weight: Tensor, // [3D, D]
    in_proj_bias: Tensor,   // [3D]
    out_proj: Linear,
    heads: i64,
}

impl Attention {
    fn new(p: &nn::Path, c: &TextConfig) -> Attention {
        let d = c.width;
        Attention {
            in_proj_weight: p.randn("in_proj_weight", &[3 * d, d], 0.0, (d as f64).powf(-0.5)),
            in_proj_bias: p.zeros("in_proj_bias", &[3 * d]),
            out_proj: Linear::normal(&(p / "out_proj"), d, d, true, residual_std(c)),
            heads: c.heads,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let qkv = x.linear(&self.in_proj_weight, Some(&self.in_proj_bias)).chunk(3, -1);
        let heads_first = |x: &Tensor| x.unflatten(-1, [self.heads, -1]).transpose(1, 2);
        let (q, k, v) = (heads_first(&qkv[0]), heads_first(&qkv[1]), heads_first(&qkv[2]));
        layers::attention(&q, &k, &v, true).transpose(1, 2).flatten(2, 3).apply(&self.out_proj)
    }
}

/// The std of what is added to the residual stream: w^-0.5 (2 L)^-0.5.
fn residual_std(c: &TextConfig) -> f64 {
    (2.0 * (c.width * c.layers) as f64).powf(-0.5)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tch::Device;

    #[test]
    fn padding_changes_nothing_and_the_order_of_words_does() {
        tch::manual_seed(5);
        let vs = nn::VarStore::new(Device::Cpu);
        let config = TextConfig {
            context_length: 8,
            vocab_size: 50,
            width: 16,
            heads: 2,
            layers: 2,
            out: 12,
        };
        let tower = TextTower::new(&vs.root(), &config);
        let embed = |tokens: &[i64]| tower.forward(&Tensor::from_slice(tokens).unsqueeze(0));
        let short = embed(&[48, 7, 9, 49]);
        let padded = embed(&[48, 7, 9, 49, 0, 0, 0, 0]);
        assert!((&short - &padded).abs().max().double_value(&[]) < 1e-5);
        assert!((&short - embed(&[48, 9, 7, 49])).abs().max().double_value(&[]) > 1e-4);
        assert_eq!(short.size(), [1, 12]);
    }
}
