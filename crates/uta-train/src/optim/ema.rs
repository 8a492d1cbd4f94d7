//! A moving average of the weights.

use tch::{TchError, Tensor, no_grad};
use uta_model::Parameter;

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use uta_model::Layer;

    use super::*;

    #[test]
    fn swapping_twice_brings_the_weights_back() {
        let p = [Parameter {
            name: "w".into(),
            tensor: Tensor::from_slice(&[1f32, 2.0]),
            layer: Layer { id: 0, of: 1 },
            decays: true,
        }];
        let ema = Ema::new(&p, 0.5);
        no_grad(|| p[0].tensor.shallow_clone().copy_(&Tensor::from_slice(&[3f32, 4.0])));
        ema.update(1000).unwrap();
        ema.swap();
        assert_eq!(Vec::<f32>::try_from(&p[0].tensor.detach()).unwrap(), [2.0, 3.0]);
        ema.swap();
        assert_eq!(Vec::<f32>::try_from(&p[0].tensor.detach()).unwrap(), [3.0, 4.0]);
    }
}
