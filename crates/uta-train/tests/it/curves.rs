//! Fast paths of the step change no learning curve: fused loops and products, the packed teacher, and checkpointed blocks,
//! beside the same step of plain operators.

use std::collections::BTreeMap;

use crate::small::{batch, recipe, teacher};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::{Precision, autocast};
use uta_model::{Ffn, Parameter, VitConfig, same_tokens};
use uta_train::{Mode, Optimizer, Task};

const STEPS: usize = 60;

/// A vision transformer of plain operators over somebody's weights.
struct Plain {
    config: VitConfig,
    weights: BTreeMap<String, Tensor>,
}

impl Plain {
    /// With copies of the weights, which learn for themselves.
    fn of(config: &VitConfig, weights: impl IntoIterator<Item = (String, Tensor)>) -> Plain {
        let copy = |t: Tensor| t.detach().copy().set_requires_grad(true);
        let own =
            |(name, t): (String, Tensor)| Some((name.strip_prefix("visual.")?.into(), copy(t)));
        Plain { config: config.clone(), weights: weights.into_iter().filter_map(own).collect() }
    }

    fn get(&self, name: &str) -> Option<&Tensor> {
        self.weights.get(name)
    }

    fn norm(&self, name: &str, x: &Tensor) -> Tensor {
        match self.get(&format!("{name}.weight")) {
            Some(weight) => {
                let bias = self.get(&format!("{name}.bias"));
                x.layer_norm(weight.size(), Some(weight), bias, self.config.eps, false)
            }
            None => x.shallow_clone(),
        }
    }

    fn linear(&self, name: &str, x: &Tensor) -> Tensor {
        x.linear(&self.weights[&format!("{name}.weight")], self.get(&format!("{name}.bias")))
    }

    /// cos and sin of the tokens at `places` [B, T]: [B, 1, T, head_width / 2] each.
    fn turns(&self, places: &Tensor) -> (Tensor, Tensor) {
        let (grid, half) = (self.config.grid(), self.config.head_width() / 2);
        let rates = Tensor::arange(half / 2, (Kind::Double, Device::Cpu)) * (-2.0 / half as f64);
        let rates = Tensor::from(10_000f64).pow(&rates) * (16.0 / grid as f64);
        let patch = places - 1;
        let angles = [patch.divide_scalar_mode(grid, "floor"), patch.remainder(grid)]
            .map(|along| along.to_kind(Kind::Double).unsqueeze(-1) * &rates);
        let there = places.gt(0).unsqueeze(-1).to_kind(Kind::Double);
        let angles = (Tensor::cat(&angles, -1) * there).unsqueeze(1);
        (angles.cos().to_kind(Kind::Float), angles.sin().to_kind(Kind::Float))
    }

    /// Every token after the head, [B, T, E], of `[CLS]` and the patches at `places` [B, T].
    fn forward(&self, images: &Tensor, places: &Tensor) -> Tensor {
        let VitConfig { width, heads, depth, .. } = self.config;
        let (b, t) = places.size2().unwrap();
        let at =
            |x: &Tensor| x.gather(1, &places.unsqueeze(-1).expand([b, t, width], false), false);
        let (weight, bias) =
            (&self.weights["patch_embed.proj.weight"], self.get("patch_embed.proj.bias"));
        let p = self.config.patch_size;
        let patches = images.conv2d(weight, bias, [p, p], 0, 1, 1).flatten(2, 3).transpose(1, 2);
        let cls = self.weights["cls_token"].expand([b, 1, width], false);
        let x = Tensor::cat(&[cls, patches.to_kind(Kind::Float)], 1);
        let mut x = at(&(x + &self.weights["pos_embed"]));
        let turns = self.config.rope.then(|| self.turns(places));
        let turned = |x: Tensor| match &turns {
            Some((cos, sin)) => {
                let pairs = x.to_kind(Kind::Float).unflatten(-1, [-1, 2]);
                let (re, im) = (pairs.select(-1, 0), pairs.select(-1, 1));
                let turned = [&re * cos - &im * sin, &re * sin + &im * cos];
                Tensor::stack(&turned, -1).flatten(-2, -1).to_kind(x.kind())
            }
            None => x,
        };
        let heads_first = |x: Tensor| x.unflatten(-1, [heads, -1]).transpose(1, 2);
        for l in 0..depth {
            let block = |name: &str| format!("blocks.{l}.{name}");
            let normed = self.norm(&block("norm1"), &x);
            let [q, k, v] = ["q", "k", "v"].map(|which| {
                let weight = &self.weights[&block(&format!("attn.{which}_proj.weight"))];
                let bias = self.get(&block(&format!("attn.{which}_bias")));
                heads_first(normed.linear(weight, bias))
            });
            let (q, k) = (turned(q), turned(k));
            let scores = q.matmul(&k.transpose(-2, -1)) / (self.config.head_width() as f64).sqrt();
            let found = scores.softmax(-1, scores.kind()).matmul(&v).transpose(1, 2).flatten(2, 3);
            let found = self.norm(&block("attn.inner_attn_ln"), &found);
            x = &x + self.linear(&block("attn.proj"), &found);
            let normed = self.norm(&block("norm2"), &x);
            let mlp = |name: &str, x: &Tensor| self.linear(&block(&format!("mlp.{name}")), x);
            let fed = match self.config.ffn {
                Ffn::SwiGlu => {
                    let hidden = mlp("w1", &normed).silu() * mlp("w2", &normed);
                    mlp("w3", &self.norm(&block("mlp.ffn_ln"), &hidden))
                }
                _ => mlp("fc2", &mlp("fc1", &normed).gelu("none")),
            };
            x = &x + fed;
        }
        self.linear("head", &self.norm("norm", &x))
    }
}

/// The losses of the first steps: of the program's own step, and of plain operators.
fn curves(precision: &str, seed: i64, checkpointed: bool, steps: usize) -> [Vec<f64>; 2] {
    let recipe = recipe(precision, seed, checkpointed);
    let precision = Precision::from(recipe.train.precision);
    let teacher = teacher(seed, Device::Cpu);
    let plain_teacher = Plain::of(&teacher.config.vision, teacher.variables());
    tch::manual_seed(seed);
    let task = crate::small::task(&recipe, teacher, Device::Cpu);
    let start = task.parameters().into_iter().map(|p| (p.name, p.tensor));
    let student = Plain::of(&recipe.model.vision, start);
    let own = task.parameters();
    let parameters: Vec<Parameter> = student
        .weights
        .iter()
        .map(|(name, t)| {
            let name = format!("visual.{name}");
            let like = own.iter().find(|p| p.name == name).unwrap();
            Parameter { name, tensor: t.shallow_clone(), layer: like.layer, decays: like.decays }
        })
        .collect();
    let mut ours = Optimizer::new(&task.parameters(), &recipe.optim);
    let mut theirs = Optimizer::new(&parameters, &recipe.optim);
    let mut losses = [vec![], vec![]];
    for step in 0..steps {
        let batch = batch(step);
        let (a, b) = autocast(Device::Cpu, precision, || {
            let a = task.forward(&batch, Mode::Train).unwrap().loss;
            a.backward();
            let (images, kept) = (task.images(&batch), task.kept(&batch, Mode::Train).unwrap());
            let all = Tensor::arange(17, (Kind::Int64, Device::Cpu)).expand([8, 17], false);
            let target = no_grad(|| plain_teacher.forward(&images, &all));
            let places = (&kept + 1).constant_pad_nd([1, 0]);
            let tokens = student.forward(&images, &places);
            let [x, y] = [tokens, same_tokens(&target, &kept)].map(|t| t.to_kind(Kind::Float));
            let norms = [&x, &y].map(|t| t.square().sum_dim_intlist(-1, false, Kind::Float).sqrt());
            let dot = (x * y).sum_dim_intlist(-1, false, Kind::Float);
            let b = -(dot / (&norms[0] * &norms[1])).mean(Kind::Float);
            b.backward();
            (a, b)
        });
        let _norms = (ours.step(1e-3).unwrap(), theirs.step(1e-3).unwrap());
        losses[0].push(a.double_value(&[]));
        losses[1].push(b.double_value(&[]));
    }
    losses
}

#[test]
fn fused_packed_and_checkpointed_steps_learn_as_plain_ones() {
    let _turn = crate::generator();
    let mut whole = vec![];
    for checkpointed in [false, true] {
        let [ours, plain] = curves("f32", 1, checkpointed, STEPS);
        assert!(plain[STEPS - 1] < plain[0] - 0.1, "it learns: {plain:?}");
        let off = ours.iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off < 1e-6, "checkpointed {checkpointed}: {off:e}");
        whole.push(ours);
    }
    assert_eq!(whole[0], whole[1], "checkpointing changes the curve");

    // The mean of the last 20 losses.
    let end = |curve: &[f64]| curve[STEPS - 20..].iter().sum::<f64>() / 20.0;
    let ends: Vec<[f64; 2]> =
        (1..=3).map(|seed| curves("bf16", seed, false, STEPS).map(|curve| end(&curve))).collect();
    let of = |i: usize| ends.iter().map(move |pair| pair[i]);
    let spread = of(1).fold(f64::MIN, f64::max) - of(1).fold(f64::MAX, f64::min);
    for [ours, plain] in &ends {
        assert!((ours - plain).abs() < spread / 10.0, "{ours} and {plain}, seeds {spread} apart");
    }
}
