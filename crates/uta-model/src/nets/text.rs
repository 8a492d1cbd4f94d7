//! CLIP's text transformer (openai/CLIP, `clip/model.py`): causal, pre-norm, GELU or QuickGELU, pooled at the end-of-text
//! token. Field names are checkpoint keys.

use tch::{Device, Kind, Tensor, nn};

use super::layers::{self, LayerNorm, Linear, Scope, quick_gelu, rows};
use super::parameter::{self, Parameter};
use crate::TextConfig;

/// LayerNorm's epsilon.
const EPS: f64 = 1e-5;

/// The text encoder.
#[derive(Debug)]
pub struct TextTower {
    token_embedding: Tensor,      // [V, D]
    positional_embedding: Tensor, // [context, D]
    resblocks: Vec<Block>,
    ln_final: LayerNorm,
    text_projection: Tensor, // [D, E]
    /// All variables, in the order in which they were made.
    parameters: Vec<Parameter>,
}

impl TextTower {
    /// A text tower with CLIP's initial weights, its variables under `p`.
    pub fn new(p: &nn::Path, config: &TextConfig) -> TextTower {
        TextTower::build(&Scope::new(p, false), config)
    }

    pub(crate) fn build(s: &Scope, c: &TextConfig) -> TextTower {
        let d = c.width;
        let s = &s.tower(c.layers);
        let embeddings = s.embeddings();
        TextTower {
            token_embedding: (&embeddings / "token_embedding").normal(
                "weight",
                &[c.vocab_size, d],
                0.02,
            ),
            positional_embedding: embeddings.undecayed().normal(
                "positional_embedding",
                &[c.context_length, d],
                0.01,
            ),
            resblocks: (0..c.layers)
                .map(|i| Block::new(&(s.block(i) / "transformer" / "resblocks" / i), c))
                .collect(),
            ln_final: LayerNorm::new(&(s / "ln_final"), d, EPS),
            text_projection: s.normal("text_projection", &[d, c.out], (d as f64).powf(-0.5)),
            parameters: s.parameters(),
        }
    }

    /// The trainable tensors.
    pub fn parameters(&self) -> Vec<Parameter> {
        parameter::trainable(&self.parameters)
    }

    /// All variables, whether they learn or not.
    pub(crate) fn all_parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Embeddings [B, E] of `tokens` [B, T] i64, T up to the context. The end-of-text token is the largest of its row.
    ///
    /// Hand the tokens over on the CPU: the columns after the last end of text, which change nothing, are then cut before
    /// the upload (of CLIP's 77 a caption fills a dozen). Tokens on another device are taken whole, because looking for
    /// the end there would wait for it.
    pub fn forward(&self, tokens: &Tensor) -> Tensor {
        let (b, mut t) = tokens.size2().expect("tokens are [B, T]");
        let device = self.token_embedding.device();
        let end = tokens.argmax(-1, false); // [B]
        if tokens.device() == Device::Cpu && b > 0 {
            t = end.max().int64_value(&[]) + 1;
        }
        let x = self.hidden(&tokens.narrow(1, 0, t).to_device(device), None); // [B, T, D]
        let first = Tensor::arange(b, (Kind::Int64, device)) * t;
        let pooled = x.flatten(0, 1).index_select(0, &(end.to_device(device) + first)); // [B, D]
        self.project(&pooled)
    }

    /// Every token after the final norm and the projection: [B, T, E], or [B, K, E] of the tokens `kept` [B, K] i64 alone, where the
    /// others are left out. Those that are kept stay at their own places and see the kept ones before them, so they are to be
    /// named in order. `tokens` [B, T] i64 lie on the tower's device.
    pub fn tokens(&self, tokens: &Tensor, kept: Option<&Tensor>) -> Tensor {
        self.project(&self.hidden(tokens, kept))
    }

    /// Tokens after the last block: [B, T, D], or [B, K, D] of those kept.
    fn hidden(&self, tokens: &Tensor, kept: Option<&Tensor>) -> Tensor {
        let mut x = match kept {
            None => {
                let t = tokens.size()[1];
                rows(&self.token_embedding, tokens) + self.positional_embedding.narrow(0, 0, t)
            }
            Some(kept) => {
                rows(&self.token_embedding, &tokens.gather(1, kept, false))
                    + rows(&self.positional_embedding, kept)
            }
        };
        for block in &self.resblocks {
            x = block.forward(&x);
        }
        x
    }

    fn project(&self, x: &Tensor) -> Tensor {
        self.ln_final.forward(x).matmul(&self.text_projection)
    }
}

/// Token rows in parts of similar length, so that little of what is encoded is padding. Causal attention and pooling at
/// the end of the text make the result independent of the split.
#[derive(Debug)]
pub struct ByLength {
    /// The rows of each part, and their tokens i64 [n, T] on the CPU, T being the longest text of the part.
    pub parts: Vec<(Vec<usize>, Tensor)>,
    /// Where each row stands in the parts laid end to end.
    pub place: Vec<i64>,
}

impl ByLength {
    /// Parts of `part` rows, shortest texts first; rows are equally long and padded with 0, which ends no text.
    pub fn new(rows: &[Vec<i64>], part: usize) -> ByLength {
        let length = |&i: &usize| rows[i].iter().rposition(|&t| t != 0).map_or(0, |last| last + 1);
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(length);
        let mut place = vec![0; rows.len()];
        for (at, &i) in order.iter().enumerate() {
            place[i] = at as i64;
        }
        let cut = |members: &[usize]| {
            let longest = members.last().map_or(0, length);
            let tokens: Vec<i64> =
                members.iter().flat_map(|&i| &rows[i][..longest]).copied().collect();
            let shape = [members.len() as i64, longest as i64];
            (members.to_vec(), Tensor::from_slice(&tokens).view(shape))
        };
        ByLength { parts: order.chunks(part.max(1)).map(cut).collect(), place }
    }
}

#[derive(Debug)]
struct Block {
    ln_1: LayerNorm,
    attn: Attention,
    ln_2: LayerNorm,
    c_fc: Linear,
    c_proj: Linear,
    quick_gelu: bool,
}

impl Block {
    fn new(s: &Scope, c: &TextConfig) -> Block {
        let d = c.width;
        let mlp = s / "mlp";
        Block {
            ln_1: LayerNorm::new(&(s / "ln_1"), d, EPS),
            attn: Attention::new(&(s / "attn"), c),
            ln_2: LayerNorm::new(&(s / "ln_2"), d, EPS),
            c_fc: Linear::normal(&(&mlp / "c_fc"), (d, 4 * d), true, (2.0 * d as f64).powf(-0.5)),
            c_proj: Linear::normal(&(&mlp / "c_proj"), (4 * d, d), true, residual_std(c)),
            quick_gelu: c.quick_gelu,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let x = x + self.attn.forward(&self.ln_1.forward(x));
        let hidden = self.ln_2.forward(&x).apply(&self.c_fc);
        let hidden = if self.quick_gelu { quick_gelu(&hidden) } else { hidden.gelu("none") };
        &x + hidden.apply(&self.c_proj)
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
    fn new(s: &Scope, c: &TextConfig) -> Attention {
        let d = c.width;
        Attention {
            in_proj_weight: s.normal("in_proj_weight", &[3 * d, d], (d as f64).powf(-0.5)),
            in_proj_bias: s.zeros("in_proj_bias", &[3 * d]),
            out_proj: Linear::normal(&(s / "out_proj"), (d, d), true, residual_std(c)),
            heads: c.heads,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let qkv = x.linear(&self.in_proj_weight, Some(&self.in_proj_bias)).chunk(3, -1);
        let heads_first = |x: &Tensor| x.unflatten(-1, [self.heads, -1]).transpose(1, 2);
        let q = heads_first(&qkv[0]);
        let k = heads_first(&qkv[1]);
        let v = heads_first(&qkv[2]);
        layers::attention(&q, &k, &v, None, true)
            .transpose(1, 2)
            .flatten(2, 3)
            .apply(&self.out_proj)
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
    use crate::nets::testing::seeded;

    #[test]
    fn rows_by_length_are_cut_to_their_longest_and_find_their_way_back() {
        let rows = vec![vec![9, 1, 2, 8], vec![9, 8, 0, 0], vec![9, 3, 8, 0]];
        let parts = ByLength::new(&rows, 2);
        assert_eq!(parts.place, [2, 0, 1]);
        let members: Vec<&[usize]> = parts.parts.iter().map(|(m, _)| m.as_slice()).collect();
        assert_eq!(members, [&[1, 2][..], &[0]]);
        let first = Tensor::from_slice(&[9i64, 8, 0, 9, 3, 8]).view([2, 3]);
        assert_eq!((&parts.parts[0].1, parts.parts[1].1.size()), (&first, vec![1, 4]));
    }

    #[test]
    fn ragged_texts_embed_as_padded_ones_do_and_the_order_of_words_counts() {
        let _rng = seeded(5);
        let vs = nn::VarStore::new(Device::Cpu);
        let config = TextConfig {
            context_length: 77,
            vocab_size: 100,
            width: 16,
            heads: 2,
            layers: 2,
            out: 12,
            quick_gelu: false,
        };
        let tower = TextTower::new(&vs.root(), &config);
        let texts = [3, 40, 1, 75, 12, 0].map(|words| {
            let mut text = [vec![98], (1..=words).collect(), vec![99]].concat();
            text.resize(77, 0);
            text
        });
        // The text that fills the context keeps the padding of the others from being cut.
        let padded = tower.forward(&Tensor::from_slice(&texts.concat()).view([6, 77]));
        let parts = ByLength::new(&texts, 2);
        let ragged: Vec<Tensor> = parts.parts.iter().map(|(_, part)| tower.forward(part)).collect();
        let ragged = Tensor::cat(&ragged, 0).index_select(0, &Tensor::from_slice(&parts.place));
        assert!((&ragged - &padded).abs().max().double_value(&[]) < 1e-5);

        // The end of text among all tokens, and where tokens before it are left out.
        let text = Tensor::from_slice(&texts[1][..42]).unsqueeze(0);
        let every = tower.tokens(&text, None);
        assert!(
            (every.select(1, 41) - padded.narrow(0, 1, 1)).abs().max().double_value(&[]) < 1e-5
        );
        let kept = Tensor::from_slice(&[0i64, 3, 7, 41]).unsqueeze(0);
        let some = tower.tokens(&text, Some(&kept));
        assert_eq!(some.size(), [1, 4, 12]);
        assert!((some.get(0).get(0) - every.get(0).get(0)).abs().max().double_value(&[]) < 1e-5);
        let all = Tensor::arange(42, (Kind::Int64, Device::Cpu)).unsqueeze(0);
        assert!((tower.tokens(&text, Some(&all)) - &every).abs().max().double_value(&[]) < 1e-5);
        // What is left out changes nothing, and what is kept does.
        let changed = |at: i64| {
            let other = text.copy();
            let _ = other.narrow(1, at, 1).fill_(55);
            (tower.tokens(&other, Some(&kept)) - &some).abs().max().double_value(&[])
        };
        assert_eq!(changed(5), 0.0);
        assert!(changed(7) > 1e-3);

        let embed = |tokens: &[i64]| tower.forward(&Tensor::from_slice(tokens).unsqueeze(0));
        let swapped = embed(&[98, 2, 1, 3, 99]);
        assert_eq!(swapped.size(), [1, 12]);
        assert!((embed(&[98, 1, 2, 3, 99]) - swapped).abs().max().double_value(&[]) > 1e-4);
    }
}
