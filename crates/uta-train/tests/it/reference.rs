//! The optimiser equals PyTorch's AdamW and clip_grad_norm_ on the same gradients (`tests/golden/optim.py` made the values), and
//! masked image modelling EVA-02's.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};
use uta_model::safetensors_io::Checkpoint;
use uta_model::{Clip, ClipConfig, Layer, Parameter, VitConfig};
use uta_train::recipe::Optim;
use uta_train::{Mode, Optimizer, Recipe, Task};

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

/// Tasks `mim` and `uta-mim` equal EVA-02's own pre-training (`modeling_pretrain.py` and the loss of
/// `engine_for_pretraining.py`), its gradients included. `tests/golden/mim.py` made the values.
#[test]
fn masked_image_modelling_and_its_gradients_equal_evas_own() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/mim.safetensors");
    let golden: BTreeMap<String, Tensor> = Checkpoint::open(&path).unwrap().tensors;
    let masked = &golden["masked"]; // [B, N]
    let b = masked.size()[0];
    let kept = masked.logical_not().nonzero().select(1, 1).view([b, -1]);
    for (task, section, prefix) in
        [("mim", "", "grad."), ("uta-mim", "[mim]\nweight = 0.5", "both.")]
    {
        let text = format!(
            "task = \"{task}\"\n[model]\nimage_size = 32\npatch_size = 2\nwidth = 32\ndepth = 2\nheads = 1\nhidden = 32\n\
             out = 24\npatch_grad = 0.1\ndrop_path = 0.0\n[teacher]\narch = \"uta-b14\"\n[data]\ntrain = [\"none\"]\n{section}\n\
             [train]\nsteps = 1\nbatch = 2\ndevice = \"cpu\"\nprecision = \"f32\"\n"
        );
        let recipe = Recipe::from_table(text.parse().unwrap()).unwrap();
        let vision = VitConfig { depth: 1, ..recipe.model.vision.clone() };
        let teacher = Clip::new(&ClipConfig::new(vision, None), Device::Cpu);
        let task = uta_train::distill(&recipe, teacher, Device::Cpu).unwrap().unwrap();
        let names: BTreeMap<String, Tensor> = task
            .parameters()
            .into_iter()
            .map(|p| (p.name.replace("visual.head", "lm_head").replace("visual.", ""), p.tensor))
            .collect();
        let weights: Vec<&String> = golden.keys().filter(|key| key.starts_with("param.")).collect();
        assert_eq!(weights.len(), names.len());
        tch::no_grad(|| {
            for (name, tensor) in &names {
                tensor.shallow_clone().copy_(&golden[&format!("param.{name}")]);
            }
        });
        let output = task.loss(&golden["images"], Some(&kept), &golden["target"], Mode::Train);
        let [at_masked, at_kept] = ["loss.masked", "loss.kept"].map(|key| &golden[key]);
        let metric = |wanted| &output.metrics.iter().find(|(name, _)| *name == wanted).unwrap().1;
        let loss = if prefix == "grad." { at_masked.copy() } else { (at_masked + at_kept) / 2.0 };
        for (what, found, expected) in [
            ("masked", -metric("cosine_masked"), at_masked),
            ("kept", -metric("cosine_kept"), at_kept),
            ("loss", output.loss.detach(), &loss),
        ] {
            let error = (found - expected).abs().double_value(&[]);
            assert!(error < 1e-6, "{what}: {error:e}");
        }
        output.loss.backward();
        for (name, tensor) in &names {
            let expected = &golden[&format!("{prefix}{name}")];
            let largest = expected.abs().max().double_value(&[]);
            let error = (tensor.grad() - expected).abs().max().double_value(&[]);
            assert!(error <= 1e-5 * largest, "{name}: {error:e} of {largest:e}");
        }
    }
}
