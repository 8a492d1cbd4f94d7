//! The optimiser equals PyTorch's AdamW and clip_grad_norm_ on the same gradients. `tests/golden/optim.py` made the values.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Kind, Tensor};
use uta_model::safetensors_io::Checkpoint;
use uta_model::{Layer, Parameter};
use uta_train::Optimizer;
use uta_train::recipe::Optim;

const TOLERANCE: f64 = 1e-6;

fn assert_close(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let error = (found - expected).abs().max().double_value(&[]);
    let error = error / expected.abs().max().double_value(&[]);
    assert!(error < TOLERANCE, "{what}: relative error {error:e}");
}

#[test]
fn one_step_and_ten_equal_pytorchs_adamw_with_clipping() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/optim.safetensors");
    let golden: BTreeMap<String, Tensor> = Checkpoint::open(&path).unwrap().tensors;
    let under = |prefix: &str| -> BTreeMap<String, &Tensor> {
        let part = golden
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor)));
        part.collect()
    };
    let parameters: Vec<Parameter> = under("param.")
        .into_iter()
        .map(|(name, start)| {
            // Two blocks, so four layers.
            let id = match name.as_str() {
                _ if name.contains("blocks.0") => 1,
                _ if name.contains("blocks.1") => 2,
                _ if name.contains("head") || name.contains(".norm") => 3,
                _ => 0,
            };
            let embeds = name.ends_with("pos_embed") || name.ends_with("cls_token");
            Parameter {
                decays: start.dim() > 1 && !embeds,
                tensor: start.copy().set_requires_grad(true),
                layer: Layer { id, of: 4 },
                name,
            }
        })
        .collect();
    let options = Optim {
        weight_decay: 0.05,
        betas: (0.9, 0.98),
        eps: 1e-6,
        layer_decay: 0.7,
        clip: 3.0,
        ..Optim::default()
    };
    let mut optimizer = Optimizer::new(&parameters, &options);
    for step in 0..10 {
        let gradients = under(&format!("grad.{step}."));
        for p in &parameters {
            // A loss whose gradient is the wanted one, to the bit.
            (&p.tensor * gradients[&p.name]).sum(Kind::Float).backward();
        }
        let norm = optimizer.step(golden["lr"].double_value(&[step])).unwrap();
        assert_close(&format!("norm of step {step}"), &norm, &golden["norm"].get(step));
        for (name, expected) in under(&format!("after.{step}.")) {
            let found = parameters.iter().find(|p| p.name == name).unwrap();
            assert_close(&format!("{name} after step {step}"), &found.tensor.detach(), expected);
        }
    }
    let norms = &golden["norm"];
    assert!(norms.min().double_value(&[]) < 3.0 && norms.max().double_value(&[]) > 3.0);
}
