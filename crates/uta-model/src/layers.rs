//! The layers that the towers share, and how their weights start.

use std::ops::Div;

use tch::nn::{self, Module};
use tch::{Device, Kind, Tensor};

/// A place in the tree of variables: a prefix of checkpoint keys, to which `/` adds a segment.
pub(crate) struct Scope<'a> {
    path: nn::Path<'a>,
    /// Variables get memory without values, because a checkpoint follows: a billion draws take ten seconds.
    blank: bool,
}

impl<'a> Scope<'a> {
    pub(crate) fn new(path: &nn::Path<'a>, blank: bool) -> Scope<'a> {
        Scope { path: path.clone(), blank }
    }

    pub(crate) fn device(&self) -> Device {
        self.path.device()
    }

    /// A variable whose value, where one is wanted, `draw` makes of an uninitialised tensor.
    fn var(&self, name: &str, shape: &[i64], draw: impl FnOnce(Tensor) -> Tensor) -> Tensor {
        let empty = Tensor::empty(shape, (Kind::Float, self.device()));
        self.path.add(name, if self.blank { empty } else { draw(empty) }, true)
    }

    pub(crate) fn constant(&self, name: &str, shape: &[i64], value: f64) -> Tensor {
        self.var(name, shape, |mut t| t.fill_(value))
    }

    pub(crate) fn zeros(&self, name: &str, shape: &[i64]) -> Tensor {
        self.constant(name, shape, 0.0)
    }

    pub(crate) fn normal(&self, name: &str, shape: &[i64], std: f64) -> Tensor {
        self.var(name, shape, |mut t| t.normal_(0.0, std))
    }

    /// Xavier's uniform draw for `fan` = (in, out).
    pub(crate) fn xavier_uniform(&self, name: &str, shape: &[i64], fan: (i64, i64)) -> Tensor {
        let bound = (6.0 / (fan.0 + fan.1) as f64).sqrt();
        self.var(name, shape, |mut t| t.uniform_(-bound, bound))
    }

    /// A normal draw of std 0.02 cut off at one std: EVA's `[CLS]` and position embedding.
    pub(crate) fn token(&self, name: &str, shape: &[i64]) -> Tensor {
        const STD: f64 = 0.02;
        // erf(1 / sqrt 2): a uniform draw within it goes through the inverse of the normal distribution.
        const ONE_STD: f64 = 0.682_689_492_137_086;
        self.var(name, shape, |mut t| {
            t.uniform_(-ONE_STD, ONE_STD).erfinv() * (STD * std::f64::consts::SQRT_2)
        })
    }
}

impl<'a, T: ToString> Div<T> for &Scope<'a> {
    type Output = Scope<'a>;

    fn div(self, segment: T) -> Scope<'a> {
        Scope { path: self.path.sub(segment), blank: self.blank }
    }
}

impl<'a, T: ToString> Div<T> for Scope<'a> {
    type Output = Scope<'a>;

    fn div(self, segment: T) -> Scope<'a> {
        &self / segment
    }
}

/// `x W^T + b`.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Tensor, // [out, in]
    bias: Option<Tensor>,      // [out]
}

impl Linear {
    /// Xavier-normal weight times `gain`, zero bias.
    pub(crate) fn xavier(s: &Scope, fan: (i64, i64), bias: bool, gain: f64) -> Linear {
        Linear::normal(s, fan, bias, gain * (2.0 / (fan.0 + fan.1) as f64).sqrt())
    }

    /// Normal weight, zero bias; `fan` = (in, out).
    pub(crate) fn normal(s: &Scope, fan: (i64, i64), bias: bool, std: f64) -> Linear {
        Linear {
            weight: s.normal("weight", &[fan.1, fan.0], std),
            bias: bias.then(|| s.zeros("bias", &[fan.1])),
        }
    }
}

impl Module for Linear {
    fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}

#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn new(s: &Scope, width: i64, eps: f64) -> LayerNorm {
        let (weight, bias) = (s.constant("weight", &[width], 1.0), s.zeros("bias", &[width]));
        LayerNorm { weight, bias, eps }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)
    }
}

/// `x sigmoid(1.702 x)`, OpenAI's stand-in for GELU.
pub(crate) fn quick_gelu(x: &Tensor) -> Tensor {
    x * (x * 1.702).sigmoid()
}

/// Softmax attention, scaled by the root of the head width; [B, H, T, head_width] each. `bias`, [B or 1, H, T, T], is added
/// to the scores.
///
/// libtorch's fused kernel, but for bf16 on the CPU, where two batched products are up to 2.6 times faster (its flash
/// kernel is slow there for a few hundred tokens).
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    bias: Option<&Tensor>,
    causal: bool,
) -> Tensor {
    let bias = bias.map(|bias| bias.to_kind(q.kind()));
    if q.device() != Device::Cpu || q.kind() == Kind::Float {
        return Tensor::scaled_dot_product_attention(q, k, v, bias, 0.0, causal, None, false);
    }
    let size = q.size();
    let scale = (size[3] as f64).powf(-0.5);
    let mut scores = (q * scale).matmul(&k.transpose(-2, -1)); // [B, H, T, T]
    if let Some(bias) = bias {
        scores += bias;
    }
    if causal {
        let ahead = Tensor::ones([size[2], size[2]], (Kind::Bool, q.device())).triu(1);
        scores = scores.masked_fill(&ahead, f64::NEG_INFINITY);
    }
    scores.softmax(-1, scores.kind()).matmul(v)
}

/// Rows of a table [N, C] by index [...]: [..., C]. An embedding look-up rather than an index_select, because the sums of
/// its gradient have a fixed order on CUDA too.
pub(crate) fn rows(table: &Tensor, index: &Tensor) -> Tensor {
    Tensor::embedding(table, index, -1, false, false)
}

#[cfg(test)]
pub(crate) mod testing {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// Seeds libtorch's generator and keeps other tests off it: it is the process's only one.
    pub(crate) fn seeded(seed: i64) -> MutexGuard<'static, ()> {
        static GENERATOR: Mutex<()> = Mutex::new(());
        let guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
        tch::manual_seed(seed);
        guard
    }
}
