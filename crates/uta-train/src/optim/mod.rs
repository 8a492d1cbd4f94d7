//! AdamW with clipping by global norm, a moving average of the weights, and the learning rate over time. Nothing here waits
//! for the device: the norm and the count of skipped steps stay there until somebody reads them.

mod ema;
mod schedule;

use tch::{Device, Kind, TchError, Tensor, no_grad};
use torch_ext::AdamW;
use uta_model::Parameter;

use serde::{Deserialize, Serialize};

pub use ema::Ema;
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

/// AdamW over groups of parameters: those of one layer that decay, and those that don't.
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
        let mut sorted: Vec<&Parameter> = params.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let mut groups: Vec<Group> = Vec::new();
        for p in sorted {
            let weight_decay = if p.decays { options.weight_decay } else { 0.0 };
            let lr_scale = p.layer.lr_scale(options.layer_decay);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use uta_model::Layer;

    use super::*;

    fn parameter(name: &str, values: &[f32], shape: &[i64]) -> Parameter {
        let tensor = Tensor::from_slice(values).reshape(shape).set_requires_grad(true);
        Parameter { name: name.into(), tensor, layer: Layer { id: 0, of: 1 }, decays: true }
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
}
