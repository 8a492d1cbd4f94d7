//! The layers that the towers share, and how their weights start.

use std::cell::RefCell;
use std::ops::Div;
use std::rc::Rc;

use tch::nn::{self, Module};
use tch::{Device, Kind, Tensor};
use torch_ext::{Activation, Norm, PackedLinear};

use super::parameter::{Layer, Parameter};

/// A place in the tree of variables: a prefix of checkpoint keys, to which `/` adds a segment. It lists the variables that are
/// made in it, with their layers.
#[derive(Clone)]
pub(crate) struct Scope<'a> {
    path: nn::Path<'a>,
    /// Variables get memory without values, because a checkpoint follows: a billion draws take ten seconds.
    blank: bool,
    /// The layer of the variables that are made here.
    layer: Layer,
    /// Whether matrices that are made here decay.
    decays: bool,
    /// The variables of the tower, in the order in which they are made.
    made: Rc<RefCell<Vec<Parameter>>>,
}

impl<'a> Scope<'a> {
    pub(crate) fn new(path: &nn::Path<'a>, blank: bool) -> Scope<'a> {
        let layer = Layer { id: 1, of: 2 };
        Scope { path: path.clone(), blank, layer, decays: true, made: Rc::default() }
    }

    /// The same place as the root of a tower of `blocks` blocks: variables are of its last layer, unless they are said to be of
    /// another, and listed apart.
    pub(crate) fn tower(&self, blocks: i64) -> Scope<'a> {
        let last = blocks as u32 + 1;
        Scope { layer: Layer { id: last, of: last + 1 }, made: Rc::default(), ..self.clone() }
    }

    /// The same place in the tower's layer of embeddings.
    pub(crate) fn embeddings(&self) -> Scope<'a> {
        Scope { layer: Layer { id: 0, ..self.layer }, ..self.clone() }
    }

    /// The same place in the layer of the tower's block `index`.
    pub(crate) fn block(&self, index: i64) -> Scope<'a> {
        Scope { layer: Layer { id: index as u32 + 1, ..self.layer }, ..self.clone() }
    }

    /// The same place, where even matrices don't decay: for embeddings of positions and single tokens.
    pub(crate) fn undecayed(&self) -> Scope<'a> {
        Scope { decays: false, ..self.clone() }
    }

    /// Takes the list of the tower's variables.
    pub(crate) fn parameters(&self) -> Vec<Parameter> {
        self.made.borrow_mut().drain(..).collect()
    }

    pub(crate) fn device(&self) -> Device {
        self.path.device()
    }

    /// A variable whose value, where one is wanted, `draw` makes of an uninitialised tensor.
    fn var(&self, name: &str, shape: &[i64], draw: impl FnOnce(Tensor) -> Tensor) -> Tensor {
        let empty = Tensor::empty(shape, (Kind::Float, self.device()));
        let tensor = self.path.add(name, if self.blank { empty } else { draw(empty) }, true);
        self.made.borrow_mut().push(Parameter {
            name: self.path.path(name),
            tensor: tensor.shallow_clone(),
            layer: self.layer,
            decays: self.decays && shape.len() > 1,
        });
        tensor
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

    /// A normal draw of std 0.02 cut off at one std: EVA's `[CLS]`, mask token and position embedding, which don't decay.
    pub(crate) fn token(&self, name: &str, shape: &[i64]) -> Tensor {
        const STD: f64 = 0.02;
        // erf(1 / sqrt 2): a uniform draw within it goes through the inverse of the normal distribution.
        const ONE_STD: f64 = 0.682_689_492_137_086;
        self.undecayed().var(name, shape, |mut t| {
            t.uniform_(-ONE_STD, ONE_STD).erfinv() * (STD * std::f64::consts::SQRT_2)
        })
    }
}

impl<'a, T: ToString> Div<T> for &Scope<'a> {
    type Output = Scope<'a>;

    fn div(self, segment: T) -> Scope<'a> {
        Scope { path: self.path.sub(segment), ..self.clone() }
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
    pub(crate) weight: Tensor, // [out, in]; [0] where packed
    bias: Option<Tensor>,      // [out]
    packed: Option<PackedLinear>,
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
            packed: None,
        }
    }

    /// `act(x W^T + b)`.
    pub(crate) fn activated(&self, x: &Tensor, act: Activation) -> Tensor {
        if let Some(packed) = &self.packed {
            return packed.forward(x, act).expect(FITS);
        }
        let x = linear(x, &self.weight, self.bias.as_ref());
        match act {
            Activation::None => x,
            Activation::Gelu => x.gelu("none"),
            Activation::Silu => x.silu(),
        }
    }

    /// SwiGLU's gate, `silu(x W^T + b) * (x V^T + c)` with `other`'s V and c, and what `norm` makes of it.
    pub(crate) fn gate(&self, other: &Linear, norm: Option<&LayerNorm>, x: &Tensor) -> Tensor {
        let normed = |hidden: Tensor| match norm {
            Some(norm) => norm.forward(&hidden),
            None => hidden,
        };
        if let Some(packed) = &other.packed {
            return normed(packed.times(x, &self.activated(x, Activation::Silu)).expect(FITS));
        }
        if !torch_ext::fuses(x.device(), other.weight.size()[0]) {
            return normed(x.apply(self).silu() * x.apply(other));
        }
        let norm = norm.map(LayerNorm::view);
        match joint(x, &[(&self.weight, self.bias.as_ref()), (&other.weight, other.bias.as_ref())])
        {
            Some(both) => torch_ext::gate(&both, None, norm),
            None => torch_ext::gate(&x.apply(self), Some(&x.apply(other)), norm),
        }
        .expect(FITS)
    }

    /// Freezes the layer: from now on it runs forward only, in `kind`.
    pub(crate) fn freeze(&mut self, kind: Kind) {
        self.packed = pack(&self.weight, self.bias.as_ref(), kind);
        retire(&mut self.weight, self.packed.is_some(), kind);
    }
}

impl Module for Linear {
    fn forward(&self, x: &Tensor) -> Tensor {
        self.activated(x, Activation::None)
    }
}

/// `x W^T + b`, where autocast is on in its type.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    joint(x, &[(weight, bias)]).unwrap_or_else(|| x.linear(weight, bias))
}

/// `x W^T + b` of several layers side by side, as one product; `None` where that is no faster than one after the other: for
/// weights that don't learn, without autocast, or on a GPU.
pub(crate) fn joint(x: &Tensor, layers: &[(&Tensor, Option<&Tensor>)]) -> Option<Tensor> {
    let learning = layers.iter().all(|(weight, _)| weight.requires_grad());
    torch_ext::autocast_kind(Device::Cpu)
        .filter(|_| learning && x.device() == Device::Cpu)
        .map(|_| torch_ext::linear(x, layers).expect(FITS))
}

/// The reason why products of a net's layers don't fail.
pub(crate) const FITS: &str = "the layers of a net fit";

/// A copy of a layer as products read it; `None` where oneDNN can't make one.
pub(crate) fn pack(weight: &Tensor, bias: Option<&Tensor>, kind: Kind) -> Option<PackedLinear> {
    PackedLinear::new(weight, bias, kind).ok()
}

/// Freezes a weight permanently. Where it was packed its memory is given back, and every handle of it is then empty; else it is
/// stored as `kind`.
pub(crate) fn retire(weight: &mut Tensor, packed: bool, kind: Kind) {
    if packed {
        weight.set_data(&Tensor::empty([0], (weight.kind(), weight.device())));
    } else {
        let _ = weight.set_requires_grad(false);
        weight.set_data(&weight.detach().to_kind(kind));
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
        let weight = s.constant("weight", &[width], 1.0);
        let bias = s.zeros("bias", &[width]);
        LayerNorm { weight, bias, eps }
    }

    fn view(&self) -> Norm<'_> {
        Norm { weight: &self.weight, bias: &self.bias, eps: self.eps }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)
    }
}

/// The residual stream: what branches are added to and norms are taken of. Its sums stay f32 whatever the branches are, and
/// norms put out what products compute in: once for all of them.
///
/// A branch waits for the next norm, which adds it in the same pass over memory.
#[derive(Debug)]
pub(crate) struct Stream {
    x: Tensor, // [B, T, D]
    branch: Option<Tensor>,
    /// The compute type of a frozen net, whose sums are made in place; `None` in a net that learns.
    frozen: Option<Kind>,
    /// Whether a fused loop takes rows of this width.
    fused: bool,
}

impl Stream {
    /// A stream that begins with `x`, of which there must be no other handle.
    pub(crate) fn new(x: Tensor, frozen: Option<Kind>) -> Stream {
        let fused = torch_ext::fuses(x.device(), x.size().last().copied().unwrap_or(0));
        let x = x.to_kind(Kind::Float);
        let x = if fused { x.contiguous() } else { x };
        Stream { x, branch: None, frozen, fused }
    }

    /// x += branch
    pub(crate) fn add(&mut self, branch: Tensor) {
        self.add_branch();
        self.branch = Some(branch);
        if !self.fused {
            self.add_branch();
        }
    }

    /// norm(x)
    pub(crate) fn norm(&mut self, norm: &LayerNorm) -> Tensor {
        let kind = self.frozen.or_else(|| torch_ext::autocast_kind(self.x.device()));
        let kind = kind.unwrap_or(Kind::Float);
        if !self.fused {
            return norm.forward(&self.x).to_kind(kind);
        }
        let branch = self.branch.take();
        let norm = norm.view();
        if self.frozen.is_some() {
            return torch_ext::add_layer_norm(&mut self.x, branch.as_ref(), norm, kind).expect(F32);
        }
        let (x, normed) = torch_ext::layer_norm(&self.x, branch.as_ref(), norm, kind).expect(F32);
        self.x = x;
        normed
    }

    /// x as it is now; later sums don't change the result.
    pub(crate) fn value(&mut self) -> Tensor {
        self.add_branch();
        if self.frozen.is_some() { self.x.copy() } else { self.x.shallow_clone() }
    }

    /// x of the first `n` tokens only, from now on.
    pub(crate) fn keep_first(&mut self, n: i64) {
        self.add_branch();
        if self.x.size()[1] > n {
            self.x = self.x.narrow(1, 0, n);
            if self.fused {
                self.x = self.x.contiguous();
            }
        }
    }

    /// Adds the branch that waits.
    fn add_branch(&mut self) {
        match self.branch.take() {
            Some(branch) if self.frozen.is_some() => self.x += branch,
            Some(branch) => self.x = &self.x + branch,
            None => {}
        }
    }
}

/// The reason why the norm of a fused stream doesn't fail.
const F32: &str = "the stream is f32, contiguous, and of rows that fuse";

/// `x sigmoid(1.702 x)`, OpenAI's stand-in for GELU.
pub(crate) fn quick_gelu(x: &Tensor) -> Tensor {
    x * (x * 1.702).sigmoid()
}

/// Softmax attention, scaled by the root of the head width; [B, H, T, head_width] each. `bias`, [B or 1, H, T, T], is added
/// to the scores.
///
/// libtorch's fused kernel, but for bf16 on the CPU: its backward is up to four times slower there than two batched
/// products, and its forward is only faster where the CPU has tile registers.
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    bias: Option<&Tensor>,
    causal: bool,
) -> Tensor {
    let bias = bias.map(|bias| bias.to_kind(q.kind()));
    let narrow = q.device() == Device::Cpu && q.kind() != Kind::Float;
    if !narrow || (!q.requires_grad() && torch_ext::cpu_has_tiles()) {
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
    // In its place, so that the scores are gone.
    scores = scores.softmax(-1, scores.kind());
    scores.matmul(v)
}

/// Rows of a table [N, C] by index [...]: [..., C]. An embedding look-up rather than an index_select, because the sums of
/// its gradient have a fixed order on CUDA too.
pub(crate) fn rows(table: &Tensor, index: &Tensor) -> Tensor {
    Tensor::embedding(table, index, -1, false, false)
}
