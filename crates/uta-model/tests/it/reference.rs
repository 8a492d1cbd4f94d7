//! The networks equal timm's and open_clip's with the same weights, outputs and gradients, within 1e-5 of the largest
//! value in f32. `tests/golden/model.py` made the values.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tch::{Device, Kind, Tensor};
use uta_model::safetensors_io::Checkpoint;
use uta_model::{Adapter, Clip, ClipConfig, Ffn, TextConfig, VitConfig, resize};

const TOLERANCE: f64 = 1e-5;

struct Golden(BTreeMap<String, Tensor>);

impl Golden {
    fn open(name: &str) -> Golden {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/golden")
            .join(name)
            .with_extension("safetensors");
        Golden(Checkpoint::open(&path).unwrap().tensors)
    }

    fn get(&self, name: &str) -> &Tensor {
        &self.0[name]
    }

    /// The tensors whose names start so, under our names.
    fn adapted(&self, prefix: &str, adapter: &Adapter) -> BTreeMap<String, Tensor> {
        let part = self.0.iter().filter_map(|(name, tensor)| {
            Some((name.strip_prefix(prefix)?.to_owned(), tensor.shallow_clone()))
        });
        adapter.import(part.collect())
    }
}

/// `clip` with the weights of a golden file; those of its other half stay as they are.
fn filled(config: ClipConfig, weights: BTreeMap<String, Tensor>, prefix: &str) -> Clip {
    config.check().unwrap();
    let clip = Clip::new(&config, Device::Cpu);
    let variables: BTreeMap<String, Tensor> =
        clip.variables().into_iter().filter(|(name, _)| name.starts_with(prefix)).collect();
    assert!(variables.keys().eq(weights.keys()));
    tch::no_grad(|| {
        for (name, variable) in &variables {
            assert_eq!(variable.size(), weights[name].size(), "{name}");
            variable.shallow_clone().copy_(&weights[name]);
        }
    });
    clip
}

fn assert_close(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let error = (found - expected).abs().max().double_value(&[]);
    let error = error / expected.abs().max().double_value(&[]);
    assert!(error < TOLERANCE, "{what}: relative error {error:e}");
}

fn assert_gradients_close(clip: &Clip, expected: &BTreeMap<String, Tensor>) {
    let variables: BTreeMap<String, Tensor> = clip.variables().into_iter().collect();
    for (name, gradient) in expected {
        assert_close(&format!("gradient of {name}"), &variables[name].grad(), gradient);
    }
}

fn vision(ffn: Ffn, rope: bool) -> VitConfig {
    VitConfig {
        image_size: 32,
        patch_size: 8,
        width: 32,
        depth: 2,
        heads: 2,
        hidden: 44,
        out: 24,
        ffn,
        rope,
        drop_path: 0.0,
        patch_grad: 1.0,
        ..VitConfig::preset("uta-b14").unwrap()
    }
}

fn vit_equals_timms(name: &str, vision: VitConfig, adapter: &Adapter) {
    let golden = Golden::open(name);
    let weights = golden.adapted("weights.", adapter);
    let clip = filled(ClipConfig::new(vision, None), weights, "visual.");
    let (images, kept) = (golden.get("input.images"), golden.get("input.kept"));

    let all = clip.visual.forward_t(images, None, true);
    assert_close("every token", &all, golden.get("output.all"));
    let cls = golden.get("output.all").select(1, 0);
    assert_close("the embedding", &clip.encode_image(images), &cls);

    let tokens = clip.visual.forward_t(images, Some(kept), true);
    assert_close("kept tokens", &tokens, golden.get("output.kept"));
    (tokens * golden.get("probe.kept")).sum(Kind::Float).backward();
    assert_gradients_close(&clip, &golden.adapted("grad.", adapter));
}

#[test]
fn student_equals_timms_eva02() {
    vit_equals_timms("vit_eva02", vision(Ffn::SwiGlu, true), &Adapter::TIMM_EVA02);
}

#[test]
fn teacher_equals_timms_eva01() {
    vit_equals_timms("vit_eva01", vision(Ffn::Gelu, false), &Adapter::TIMM_EVA01);
}

#[test]
fn text_tower_equals_open_clips() {
    let golden = Golden::open("text");
    let under_text = |prefix: &str| {
        let part = golden.adapted(prefix, &Adapter::UTA);
        part.into_iter().map(|(name, tensor)| (format!("text.{name}"), tensor)).collect()
    };
    let config = TextConfig {
        context_length: 12,
        vocab_size: 64,
        width: 32,
        heads: 2,
        layers: 2,
        out: 24,
        quick_gelu: false,
    };
    let config = ClipConfig::new(vision(Ffn::SwiGlu, true), Some(config));
    let clip = filled(config, under_text("weights."), "text.");
    let embeddings = clip.encode_text(golden.get("input.tokens")).unwrap();
    assert_close("text embeddings", &embeddings, golden.get("output.text"));
    (embeddings * golden.get("probe.text")).sum(Kind::Float).backward();
    assert_gradients_close(&clip, &under_text("grad."));
}

/// bf16 takes another path through attention on the CPU; its results must be those of f32, but for rounding.
#[test]
fn bf16_differs_from_f32_by_rounding_only() {
    let golden = Golden::open("vit_eva02");
    let weights = golden.adapted("weights.", &Adapter::TIMM_EVA02);
    let clip = filled(ClipConfig::new(vision(Ffn::SwiGlu, true), None), weights, "visual.");
    let bf16 = torch_ext::autocast(Device::Cpu, torch_ext::Precision::Bf16, || {
        clip.visual.forward_t(golden.get("input.images"), None, false)
    });
    let expected = golden.get("output.all");
    let error = (bf16.to_kind(Kind::Float) - expected).norm() / expected.norm();
    assert!(error.double_value(&[]) < 0.02, "{error}");
}

/// `tests/golden/resize.py` made the values.
#[test]
fn embeddings_are_resized_as_torch_does() {
    let golden = Golden::open("resize");
    for grid in [3, 6] {
        let found = resize::position_embedding(golden.get("input.pos"), grid);
        assert_close("positions", &found, golden.get(&format!("output.pos.{grid}")));
        assert_eq!(found.get(0).get(0), golden.get("input.pos").get(0).get(0), "[CLS]");
    }
    let found = resize::patch_embedding(golden.get("input.patch"), 16);
    assert_close("patches", &found, golden.get("output.patch"));
}

#[test]
fn a_resized_net_keeps_every_other_tensor() {
    let clip = Clip::new(&ClipConfig::new(vision(Ffn::SwiGlu, true), None), Device::Cpu);
    let resized = clip.resized(60, 10).unwrap();
    let keys: Vec<&str> = resized.changed.iter().map(|(key, ..)| key.as_str()).collect();
    assert_eq!(keys, ["visual.patch_embed.proj.weight", "visual.pos_embed"]);
    assert_eq!(resized.changed[1].2, [1, 37, 32]);
    let before: BTreeMap<String, Tensor> = clip.variables().into_iter().collect();
    for (key, tensor) in resized.clip.variables() {
        assert!(keys.contains(&key.as_str()) || tensor == before[&key], "{key}");
    }
    let images = Tensor::zeros([1, 3, 60, 60], (Kind::Float, Device::Cpu));
    assert_eq!(resized.clip.encode_image(&images).size(), [1, 24]);
    let e = clip.resized(60, 16).unwrap_err().to_string();
    assert!(e.contains("a multiple of patch_size, 16"), "{e}");
}
