//! AdamW over groups of parameters, with clipping by global norm, and a moving average of the weights. Nothing here waits
//! for the device: the norm and the count of skipped steps stay there until somebody reads them.

mod schedule;

use std::collections::BTreeMap;

use tch::{Device, Kind, TchError, Tensor, no_grad};
use torch_ext::AdamW;

use serde::{Deserialize, Serialize};

pub use schedule::{CosineSchedule, Schedule};

/// `[optim]`: AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Optim {
    /// Only `adamw`.
    pub name: OptimName,
    /// Peak learning rate, as it is: not scaled by the batch.
    pub lr: f64,
    /// Decay rates of the two moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices; vectors, biases, position embedding and `[CLS]` have none.
    pub weight_decay: f64,
    /// Each block's rate is this share of the next one's; 1 gives all the same.
    pub layer_decay: f64,
    /// Largest global norm of the gradient; 0 doesn't clip.
    pub clip: f64,
}

/// The optimisers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimName {
    /// Adam with decoupled weight decay.
    AdamW,
}

impl Default for Optim {
    /// EVA-02's pre-training (baaivision/EVA, `EVA-02/asuka`), which the paper builds on.
    fn default() -> Optim {
        Optim {
            name: OptimName::AdamW,
            lr: 1.5e-3,
            betas: (0.9, 0.98),
            eps: 1e-6,
            weight_decay: 0.05,
            layer_decay: 1.0,
            clip: 3.0,
        }
    }
}

/// A trainable tensor and its checkpoint key. Optimiser state is stored under the same key.
#[derive(Debug)]
pub struct Parameter {
    /// Checkpoint key.
    pub name: String,
    /// The leaf tensor.
    pub tensor: Tensor,
}

/// AdamW with EVA's groups: no decay for vectors, biases, position embeddings and `[CLS]`; a rate for each layer.
pub struct Optimizer {
    options: Optim,
    groups: Vec<Group>,
    /// Steps taken, f32: skipped ones don't count.
    taken: Tensor,
    /// Steps skipped: [in all, in a row], f32.
    skipped: Tensor,
}

struct Group {
    weight_decay: f64,
    lr_scale: f64,
    names: Vec<String>,
    params: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
}

impl Optimizer {
    /// An optimiser for `params`, which it keeps in the order of their names.
    pub fn new(params: &[Parameter], options: &Optim) -> Optimizer {
        let depths = depths(params.iter().map(|p| p.name.as_str()));
        let mut sorted: Vec<&Parameter> = params.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let mut groups: Vec<Group> = Vec::new();
        for p in sorted {
            let weight_decay = if decays(&p.name, &p.tensor) { options.weight_decay } else { 0.0 };
            let lr_scale = lr_scale(&p.name, &depths, options.layer_decay);
            let same = |g: &&mut Group| g.weight_decay == weight_decay && g.lr_scale == lr_scale;
            let group = match groups.iter_mut().find(same) {
                Some(group) => group,
                None => {
                    groups.push(Group {
                        weight_decay,
                        lr_scale,
                        names: vec![],
                        params: vec![],
                        exp_avgs: vec![],
                        exp_avg_sqs: vec![],
                    });
                    groups.last_mut().expect("just pushed")
                }
            };
            group.names.push(p.name.clone());
            group.params.push(p.tensor.shallow_clone());
            group.exp_avgs.push(no_grad(|| p.tensor.zeros_like()));
            group.exp_avg_sqs.push(no_grad(|| p.tensor.zeros_like()));
        }
        let device = params.first().map_or(Device::Cpu, |p| p.tensor.device());
        Optimizer {
            options: options.clone(),
            groups,
            taken: Tensor::zeros([], (Kind::Float, device)),
            skipped: Tensor::zeros([2], (Kind::Float, device)),
        }
    }

    /// One step at learning rate `lr` with the gradients that are on the parameters, which it then takes off. Returns the
    /// gradient's global norm before clipping (a scalar on the device). A non-finite norm skips the step.
    ///
    /// # Errors
    /// When a parameter has no gradient: the loss doesn't depend on it.
    pub fn step(&mut self, lr: f64) -> Result<Tensor, TchError> {
        no_grad(|| {
            let mut grads: Vec<Vec<Tensor>> = Vec::with_capacity(self.groups.len());
            for group in &self.groups {
                grads.push(group.params.iter().map(Tensor::grad).collect());
                if let Some(i) = grads.last().and_then(|g| g.iter().position(|g| !g.defined())) {
                    let message = format!("{} has no gradient", group.names[i]);
                    return Err(TchError::Torch(message));
                }
            }
            let all: Vec<Tensor> = grads.iter().flatten().map(Tensor::shallow_clone).collect();
            let norm = torch_ext::global_norm(&all)?;
            let finite = norm.isfinite().to_kind(Kind::Float);
            let found_inf = 1.0 - &finite;
            if self.options.clip > 0.0 {
                // clip_grad_norm_'s coefficient, epsilon included.
                let factor = (self.options.clip / (&norm + 1e-6)).clamp_max(1.0);
                torch_ext::scale_(&all, &factor)?;
            }
            // The kernel reads the number of this step, so it is counted first and taken back if skipped.
            let _ = self.taken.g_add_(&finite);
            let step_number = self.taken.maximum(&self.taken.ones_like());
            for (group, grads) in self.groups.iter().zip(&grads) {
                let steps: Vec<Tensor> =
                    grads.iter().map(|_| step_number.shallow_clone()).collect();
                torch_ext::fused_adamw(
                    &group.params,
                    grads,
                    &group.exp_avgs,
                    &group.exp_avg_sqs,
                    &steps,
                    AdamW {
                        lr: lr * group.lr_scale,
                        betas: self.options.betas,
                        eps: self.options.eps,
                        weight_decay: group.weight_decay,
                    },
                    Some(&found_inf),
                )?;
            }
            // [all + 1, (row + 1)] where skipped, [all, 0] otherwise.
            let grown = &self.skipped + &found_inf;
            let keep_row = Tensor::stack(&[found_inf.ones_like(), found_inf], 0);
            self.skipped.copy_(&(grown * keep_row));
            for group in &self.groups {
                torch_ext::drop_grads(&group.params);
            }
            Ok(norm)
        })
    }

    /// Multiplies the gradients that are on the parameters by `factor`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn scale_gradients(&self, factor: f64) -> Result<(), TchError> {
        no_grad(|| {
            let params = self.groups.iter().flat_map(|group| &group.params);
            let grads: Vec<Tensor> = params.map(Tensor::grad).filter(Tensor::defined).collect();
            torch_ext::scale_(&grads, &Tensor::from(factor as f32).to_device(self.taken.device()))
        })
    }

    /// How many steps were skipped: in all, and in a row up to now. Waits for the device.
    pub fn skipped(&self) -> (u64, u64) {
        (self.skipped.double_value(&[0]) as u64, self.skipped.double_value(&[1]) as u64)
    }

    /// Everything that must be saved beside the weights, by checkpoint key.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = vec![
            ("step".to_owned(), self.taken.shallow_clone()),
            ("skipped".to_owned(), self.skipped.shallow_clone()),
        ];
        for group in &self.groups {
            for (i, name) in group.names.iter().enumerate() {
                state.push((format!("exp_avg.{name}"), group.exp_avgs[i].shallow_clone()));
                state.push((format!("exp_avg_sq.{name}"), group.exp_avg_sqs[i].shallow_clone()));
            }
        }
        state
    }
}

/// A moving average of the parameters.
pub struct Ema {
    decay: f64,
    params: Vec<Tensor>,
    averages: Vec<(String, Tensor)>,
}

impl Ema {
    /// Starts at the parameters' present values.
    pub fn new(params: &[Parameter], decay: f64) -> Ema {
        let average =
            |p: &Parameter| (format!("ema.{}", p.name), no_grad(|| p.tensor.detach().copy()));
        Ema {
            decay,
            params: params.iter().map(|p| p.tensor.shallow_clone()).collect(),
            averages: params.iter().map(average).collect(),
        }
    }

    fn tensors(&self) -> Vec<Tensor> {
        self.averages.iter().map(|(_, t)| t.shallow_clone()).collect()
    }

    /// After step `step` (from 0). Early on the decay is smaller, (1 + t) / (10 + t), so that the start is soon forgotten.
    ///
    /// # Errors
    /// Never, while shapes stay as they were.
    pub fn update(&self, step: u64) -> Result<(), TchError> {
        let decay = self.decay.min((1.0 + step as f64) / (10.0 + step as f64));
        no_grad(|| torch_ext::lerp_(&self.tensors(), &self.params, 1.0 - decay))
    }

    /// Exchanges weights and averages; the same call brings them back.
    pub fn swap(&self) {
        no_grad(|| {
            for (param, (_, average)) in self.params.iter().zip(&self.averages) {
                let weight = param.detach().copy();
                param.detach().copy_(average);
                average.shallow_clone().copy_(&weight);
            }
        });
    }

    /// The averages, by checkpoint key.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.averages.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect()
    }
}

/// As in EVA-02 (`EVA-02/asuka/optim_factory.py`): matrices decay; vectors, biases, position embeddings, `[CLS]` and mask
/// tokens don't.
fn decays(name: &str, tensor: &Tensor) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    tensor.dim() > 1
        && !name.ends_with(".bias")
        && !["pos_embed", "positional_embedding", "cls_token", "mask_token"].contains(&last)
}

/// (tower, block) of a key such as `visual.blocks.3.norm1.weight` or `text.transformer.resblocks.3.ln_1.bias`.
fn block(name: &str) -> (&str, Option<u32>) {
    let mut parts = name.split('.');
    let tower = parts.next().unwrap_or("");
    let index = parts
        .skip_while(|&part| part != "blocks" && part != "resblocks")
        .nth(1)
        .and_then(|index| index.parse().ok());
    (tower, index)
}

/// The number of blocks of each tower.
fn depths<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<String, u32> {
    let mut depths = BTreeMap::new();
    for name in names {
        let (tower, index) = block(name);
        let depth = depths.entry(tower.to_owned()).or_insert(0);
        *depth = index.map_or(0, |i| i + 1).max(*depth);
    }
    depths
}

/// decay^(L + 1 - id): embeddings are layer 0, block i is layer i + 1, all that follows is layer L + 1 (EVA-02,
/// `optim_factory.py`).
fn lr_scale(name: &str, depths: &BTreeMap<String, u32>, decay: f64) -> f64 {
    let (tower, index) = block(name);
    let last = depths.get(tower).copied().unwrap_or(0) + 1;
    let embeds = ["patch_embed", "pos_embed", "cls_token", "mask_token"]
        .iter()
        .chain(&["token_embedding", "positional_embedding"])
        .any(|part| name.split('.').any(|p| p == *part));
    let id = match index {
        Some(i) => i + 1,
        None if embeds => 0,
        None => last,
    };
    decay.powi((last - id) as i32)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parameter(name: &str, values: &[f32], shape: &[i64]) -> Parameter {
        let tensor = Tensor::from_slice(values).reshape(shape).set_requires_grad(true);
        Parameter { name: name.into(), tensor }
    }

    #[test]
    fn layer_decay_gives_evas_rates() {
        let names: Vec<String> =
            (0..12).map(|i| format!("visual.blocks.{i}.norm1.weight")).collect();
        let depths = depths(names.iter().map(String::as_str));
        // By hand, B with decay 0.7.
        for (name, rate) in [
            ("visual.patch_embed.proj.weight", 0.009689),
            ("visual.blocks.0.norm1.weight", 0.013841),
            ("visual.blocks.11.norm1.weight", 0.7),
            ("visual.head.weight", 1.0),
        ] {
            assert!((lr_scale(name, &depths, 0.7) - rate).abs() < 1e-6, "{name}");
        }
    }

    #[test]
    fn vectors_biases_position_and_cls_do_not_decay() {
        for (name, shape, decay) in [
            ("visual.blocks.0.mlp.w1.weight", &[2, 2][..], true),
            ("visual.blocks.0.mlp.w1.bias", &[4], false),
            ("visual.blocks.0.norm1.weight", &[4], false),
            ("visual.pos_embed", &[1, 2, 2], false),
            ("visual.cls_token", &[1, 1, 4], false),
            ("text.positional_embedding", &[2, 2], false),
            ("text.token_embedding.weight", &[2, 2], true),
            ("logit_scale", &[1, 1, 1, 4], true),
        ] {
            assert_eq!(
                decays(name, &Tensor::zeros(shape, (Kind::Float, Device::Cpu))),
                decay,
                "{name}"
            );
        }
        assert!(!decays("logit_scale", &Tensor::from(1f32)));
    }

    #[test]
    fn a_non_finite_gradient_skips_the_step_and_is_counted() {
        let p = parameter("visual.head.weight", &[1.0, 2.0], &[1, 2]);
        let mut optimizer = Optimizer::new(std::slice::from_ref(&p), &Optim::default());
        (&p.tensor * f64::NAN).sum(Kind::Float).backward();
        let _ = optimizer.step(0.1).unwrap();
        (&p.tensor * f64::INFINITY).sum(Kind::Float).backward();
        let _ = optimizer.step(0.1).unwrap();
        assert_eq!(Vec::<f32>::try_from(p.tensor.reshape(-1)).unwrap(), [1.0, 2.0]);
        assert_eq!(optimizer.skipped(), (2, 2));
        p.tensor.sum(Kind::Float).backward();
        let norm = optimizer.step(0.1).unwrap();
        assert!((norm.double_value(&[]) - 2f64.sqrt()).abs() < 1e-6);
        assert_eq!(optimizer.skipped(), (2, 0));
        // The first real step of Adam is the full rate against the sign of the gradient.
        assert!((p.tensor.double_value(&[0, 0]) - (1.0 * (1.0 - 0.1 * 0.05) - 0.1)).abs() < 1e-4);
    }

    #[test]
    fn a_parameter_without_gradient_is_named() {
        let p = parameter("visual.head.weight", &[1.0], &[1, 1]);
        let mut optimizer = Optimizer::new(&[p], &Optim::default());
        assert!(optimizer.step(0.1).unwrap_err().to_string().contains("visual.head.weight"));
    }

    #[test]
    fn swapping_twice_brings_the_weights_back() {
        let p = [parameter("w", &[1.0, 2.0], &[2])];
        let ema = Ema::new(&p, 0.5);
        no_grad(|| p[0].tensor.shallow_clone().copy_(&Tensor::from_slice(&[3f32, 4.0])));
        ema.update(1000).unwrap();
        ema.swap();
        assert_eq!(Vec::<f32>::try_from(&p[0].tensor.detach()).unwrap(), [2.0, 3.0]);
        ema.swap();
        assert_eq!(Vec::<f32>::try_from(&p[0].tensor.detach()).unwrap(), [3.0, 4.0]);
    }
}
