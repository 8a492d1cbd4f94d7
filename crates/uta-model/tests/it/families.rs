//! Checkpoints as users have them, written by the original's own library (`tests/golden/families.py`), give the original's
//! numbers, and are written again so that they read back the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};
use uta_model::safetensors_io::{self, Checkpoint};
use uta_model::{
    Clip, ClipConfig, Convention, Ffn, Layout, NetConfig, Origin, TextConfig, VitConfig,
};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/families")
}

/// Every folder of `families/`.
fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        golden().read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 25, "{folders:?}");
    folders
}

/// The sizes of the CLIP at `path`.
fn config(path: &Path) -> ClipConfig {
    sizes(&Origin::open(path, None).unwrap())
}

fn sizes(origin: &Origin) -> ClipConfig {
    origin.clip_config("a test").unwrap().clone()
}

/// The net by what a user would name: the folder, or the lone file of official weights, and the architecture where shapes
/// don't tell.
fn load(folder: &Path) -> Clip {
    let official = ["weights.safetensors", "weights.pt"].map(|name| folder.join(name));
    let path = official.iter().find(|path| path.is_file()).map_or(folder, PathBuf::as_path);
    let arch = folder.join("arch.json");
    let clip = match arch.is_file() {
        true => Clip::load_as(path, arch.to_str().unwrap(), Device::Cpu),
        false => Clip::load(path, Device::Cpu),
    };
    clip.unwrap_or_else(|e| panic!("{folder:?}: {e}"))
}

fn expected(folder: &Path) -> BTreeMap<String, Tensor> {
    Checkpoint::open(&folder.join("expected.safetensors")).unwrap().tensors
}

/// The largest difference, as a share of the largest value.
fn error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let difference = (found.to_kind(Kind::Float) - expected).abs().max().double_value(&[]);
    difference / expected.abs().max().double_value(&[])
}

fn outputs(clip: &Clip, expected: &BTreeMap<String, Tensor>) -> Vec<(&'static str, Tensor)> {
    let images = &expected["input.images"];
    let mut outputs = vec![
        ("output.image", clip.encode_image(images)),
        ("output.tokens", clip.visual.forward_t(images, None, false)),
    ];
    if let Some(tokens) = expected.get("input.tokens") {
        outputs.push(("output.text", clip.encode_text(tokens).unwrap()));
    }
    outputs
}

#[test]
fn every_layout_gives_the_originals_embeddings_and_tokens() {
    for folder in folders() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let clip = load(&folder);
        let expected = expected(&folder);
        tch::no_grad(|| {
            for (what, found) in outputs(&clip, &expected) {
                let error = error(&found, &expected[what]);
                println!("{name} {what} f32 {error:.1e}");
                assert!(error < 1e-5, "{name} {what}: relative error {error:e}");
            }
            let bf16 = torch_ext::autocast(Device::Cpu, torch_ext::Precision::Bf16, || {
                outputs(&clip, &expected)
            });
            for (what, found) in bf16 {
                let error = error(&found, &expected[what]);
                println!("{name} {what} bf16 {error:.1e}");
                assert!(error < 1e-2, "{name} {what}: relative error {error:e} in bf16");
            }
        });
    }
}

#[test]
fn a_frozen_net_gives_the_same_and_cannot_be_saved() {
    use torch_ext::Precision;
    for folder in folders() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let expected = expected(&folder);
        let images = &expected["input.images"];
        for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 1.2e-2)] {
            let plain = load(&folder);
            let mut clip = load(&folder);
            clip.freeze(precision);
            let (features, found) = tch::no_grad(|| {
                torch_ext::autocast(Device::Cpu, precision, || {
                    (clip.visual.features(images, &[0, 2]).unwrap(), outputs(&clip, &expected))
                })
            });
            let embedding = ("output.image", features.embedding.shallow_clone());
            let projected = ("output.tokens", features.projected.shallow_clone());
            for (what, found) in found.into_iter().chain([embedding, projected]) {
                let error = error(&found, &expected[what]);
                println!("{name} {what} {precision:?} {error:.1e}");
                assert!(error < tolerance, "{name} {what}: relative error {error:e} {precision:?}");
            }
            let unfrozen = tch::no_grad(|| plain.visual.features(images, &[0, 2]).unwrap());
            for (found, expected) in features.hidden.iter().zip(&unfrozen.hidden) {
                assert!(error(found, expected) < tolerance, "{name}: hidden states");
            }
            let dir = tempfile::tempdir().unwrap();
            assert!(clip.save(dir.path(), Kind::Float).unwrap_err().to_string().contains("frozen"));
        }
    }
}

#[test]
fn hidden_states_lead_to_the_tokens() {
    for folder in folders() {
        let clip = load(&folder);
        let expected = expected(&folder);
        let images = &expected["input.images"];
        tch::no_grad(|| {
            let features = clip.visual.features(images, &[2, 0, 1]).unwrap();
            assert!(error(&features.projected, &expected["output.tokens"]) < 1e-5);
            let c = &clip.config.vision;
            for hidden in features.hidden.iter().chain([&features.tokens]) {
                assert_eq!(hidden.size(), [2, 1 + c.num_patches(), c.width]);
            }
            assert_ne!(features.hidden[0], features.hidden[2]);
        });
        let e = clip.visual.features(images, &[3]).unwrap_err().to_string();
        assert!(e.contains("layers 0 to 2"), "{e}");
    }
}

#[test]
fn kept_patches_in_any_order_equal_the_whole_image() {
    for folder in folders() {
        let clip = load(&folder);
        let expected = expected(&folder);
        let n = clip.config.vision.num_patches();
        let order: Vec<i64> = (0..n).map(|i| (i * 5 + 3) % n).collect();
        let kept = Tensor::from_slice(&order).unsqueeze(0).repeat([2, 1]);
        tch::no_grad(|| {
            let tokens = clip.visual.forward_t(&expected["input.images"], Some(&kept), false);
            let whole = uta_model::same_tokens(&expected["output.tokens"], &kept);
            assert!(error(&tokens, &whole) < 1e-5, "{folder:?}");
        });
    }
}

#[test]
fn masked_patches_are_replaced_as_in_beits_pre_training() {
    let folder = golden().join("official_beit2");
    let (clip, expected) = (load(&folder), expected(&folder));
    let (images, masked) = (&expected["input.images"], &expected["input.masked"]);
    let found = tch::no_grad(|| clip.visual.forward_masked_t(images, masked, false));
    assert!(error(&found, &expected["output.masked"]) < 1e-5);
}

#[test]
fn a_preset_names_a_net_with_the_text_encoder_that_the_weights_have() {
    let folder = golden().join("official_uta");
    let weights = folder.join("weights.safetensors");
    let e = Clip::load_as(&weights, "uta-b16", Device::Cpu).unwrap_err().to_string();
    assert!(e.contains("the net has 440"), "{e}");
    let e = Clip::load_as(&weights, "mae-b-16", Device::Cpu).unwrap_err().to_string();
    assert!(e.contains("mae-b-16 has no text encoder"), "{e}");
}

/// Between any two layouts that can express a net, and back.
#[test]
fn every_layout_reads_back_what_another_was_written_as() {
    let dir = tempfile::tempdir().unwrap();
    let mut written = vec![];
    for folder in folders() {
        let clip = load(&folder);
        for (name, layout) in Layout::ALL {
            let out = dir.path().join(name);
            let Ok(exported) = clip.export(layout, &out, None) else { continue };
            let again = Clip::load(&out, Device::Cpu).unwrap();
            let mut config = match layout {
                Layout::Timm => ClipConfig { text: None, ..clip.config.clone() },
                _ => clip.config.clone(),
            };
            // What no setting tells is done in the way of the program that it was written for.
            config.preprocess.convention = match layout {
                Layout::OpenClip => Convention::OpenClip,
                Layout::Timm => Convention::Timm,
                Layout::Hf => Convention::Hf,
                Layout::Uta | Layout::EvaClip => config.preprocess.convention,
            };
            config.vision.mask_token &= matches!(layout, Layout::Uta | Layout::EvaClip);
            assert_eq!(again.config, config, "{folder:?} as {name}");
            assert!(again.notes.is_empty(), "{:?}", again.notes);
            let variables: BTreeMap<String, Tensor> = clip.variables().into_iter().collect();
            assert_eq!(variables.len(), again.variables().len() + exported.left_out.len());
            for (key, tensor) in again.variables() {
                assert_eq!(tensor, variables[&key], "{folder:?} as {name}: {key}");
            }
            written.push((folder.file_name().unwrap().to_string_lossy().into_owned(), name));
            std::fs::remove_dir_all(&out).unwrap();
        }
    }
    for pair in [("open_clip", "hf"), ("hf_clip", "open-clip"), ("timm_mae", "timm")] {
        assert!(written.iter().any(|(folder, name)| (folder.as_str(), *name) == pair), "{pair:?}");
    }
}

/// A net of masked image modelling goes to EVA-02's pre-training and back; one that was aligned too is a CLIP for others, who have no
/// place for its mask token.
#[test]
fn nets_with_a_mask_token_are_written_as_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let preset = VitConfig::preset("eva02-b14-mim").unwrap();
    let vision = VitConfig {
        image_size: 32,
        patch_size: 8,
        width: 64,
        depth: 1,
        heads: 1,
        hidden: 86,
        out: 48,
        ..preset
    };
    let text = TextConfig {
        width: 64,
        heads: 1,
        layers: 1,
        out: 48,
        ..TextConfig::preset("vit-b-32").unwrap()
    };
    let mim = ClipConfig::new(vision, Some(text));
    assert!(!mim.is_aligned());
    let both = ClipConfig { aligned: Some(true), ..mim.clone() };
    for (config, layout, keeps_token, keeps_text) in [
        (&mim, Layout::Uta, true, true),
        (&mim, Layout::EvaClip, true, false),
        (&mim, Layout::Timm, false, false),
        (&both, Layout::Uta, true, true),
        (&both, Layout::Timm, false, false),
    ] {
        let clip = Clip::new(config, Device::Cpu);
        let out = dir.path().join("out");
        let exported = clip.export(layout, &out, None).unwrap();
        let again = Clip::load(&out, Device::Cpu).unwrap();
        assert_eq!(again.config.vision.mask_token, keeps_token, "{layout:?}");
        assert_eq!(again.config.text.is_some(), keeps_text, "{layout:?}");
        if keeps_token {
            assert_eq!(again.config.is_aligned(), config.is_aligned(), "{layout:?}");
        }
        assert_eq!(exported.left_out.contains(&"visual.mask_token".to_owned()), !keeps_token);
        let theirs = again.variables().into_iter().collect::<BTreeMap<String, Tensor>>();
        let ours = clip.variables();
        assert_eq!(ours.len(), theirs.len() + exported.left_out.len(), "{layout:?}");
        assert!(ours.iter().all(|(key, tensor)| theirs.get(key).is_none_or(|t| t == tensor)));
        std::fs::remove_dir_all(&out).unwrap();
    }
}

/// A lone file: sizes come from its tensors, and what they don't tell is said.
#[test]
fn sizes_come_from_the_tensors_where_no_configuration_is() {
    let dir = tempfile::tempdir().unwrap();
    let lone = |folder: &str, file: &str, name: &str| {
        let to = dir.path().join(name);
        std::fs::copy(golden().join(folder).join(file), &to).unwrap();
        Origin::open(&to, None).unwrap()
    };
    let file = "open_clip_model.safetensors";
    let eva = lone("open_clip_eva02", file, "eva02.safetensors");
    let told = config(&golden().join("open_clip_eva02"));
    assert_eq!(sizes(&eva).vision, told.vision);
    // These nets are too small to be known ones; of a known one the heads would be no assumption.
    let [heads] = &eva.notes[..] else { panic!("{:?}", eva.notes) };
    assert!(heads.contains("attention heads of 64 channels assumed"), "{heads}");

    let unknown = lone("open_clip_quickgelu", file, "clip.safetensors");
    assert_eq!(sizes(&unknown).vision.ffn, Ffn::Gelu);
    assert!(unknown.notes[1].contains("GELU assumed") && unknown.notes[1].contains("--arch"));
    let tagged = lone("open_clip_quickgelu", file, "ViT-B-32-openai.safetensors");
    assert_eq!(sizes(&tagged).vision.ffn, Ffn::QuickGelu);
    assert!(sizes(&tagged).text.unwrap().quick_gelu && tagged.notes[1].contains("openai"));
    let tagged = lone("open_clip", file, "laion2b_s34b.safetensors");
    assert_eq!(sizes(&tagged).vision.ffn, Ffn::Gelu);

    let beit = lone("official_beit2_finetuned", "weights.safetensors", "beit.safetensors");
    let [pixels] = &beit.notes[..] else { panic!("{:?}", beit.notes) };
    assert!(sizes(&beit).vision.heads == 2 && pixels.contains("ImageNet"), "{pixels}");

    let mae = lone("timm_mae", "model.safetensors", "mae.safetensors");
    assert!(mae.notes[1].contains("ImageNet"), "{:?}", mae.notes);
}

#[test]
fn a_named_architecture_stands_above_what_lies_beside_the_weights() {
    let folder = golden().join("timm_mae");
    let e = Clip::load_as(&folder, "mae-b-16", Device::Cpu).unwrap_err().to_string();
    assert!(e.contains("holds 80576 numbers"), "{e}");
    let dir = tempfile::tempdir().unwrap();
    let config = config(&folder);
    let file = dir.path().join("arch.json");
    std::fs::write(&file, NetConfig::Clip(config.clone()).to_json().to_string()).unwrap();
    let clip = Clip::load_as(&folder, file.to_str().unwrap(), Device::Cpu).unwrap();
    assert_eq!(clip.config, config);
    let e = Clip::load_as(&folder, "vit-b", Device::Cpu).unwrap_err().to_string();
    assert!(e.contains("no preset") && e.contains("mae-b-16"), "{e}");
}

#[test]
fn configurations_of_other_nets_are_refused_by_the_field() {
    let dir = tempfile::tempdir().unwrap();
    let change = |folder: &str, file: &str, from: &str, to: &str| {
        for entry in golden().join(folder).read_dir().unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        let config = dir.path().join(file);
        let text = std::fs::read_to_string(&config).unwrap();
        assert!(text.contains(from), "{from}");
        std::fs::write(&config, text.replace(from, to)).unwrap();
        let e = Clip::load(dir.path(), Device::Cpu).unwrap_err().to_string();
        std::fs::remove_file(config).unwrap();
        e
    };
    let open_clip = |from: &str, to: &str| change("open_clip", "open_clip_config.json", from, to);
    let e = open_clip("\"heads\": 2", "\"heads\": 2, \"pool_type\": \"last\"");
    assert!(e.contains("text_cfg.pool_type = \"last\""), "{e}");
    let e = open_clip("\"layers\": 2", "\"layers\": 3");
    assert!(e.contains("missing") && e.contains("transformer.resblocks.2"), "{e}");
    let e = open_clip("\"width\": 64", "\"width\": 1000000");
    assert!(e.contains("width = 1000000"), "{e}");
    let e = open_clip("\"width\": 64", "\"width\": 6400");
    assert!(e.contains("parameters") || e.contains("missing"), "{e}");
    let e = change("hf_clip", "config.json", "\"quick_gelu\"", "\"relu\"");
    assert!(e.contains("hidden_act = \"relu\""), "{e}");
    let e =
        change("timm_mae", "config.json", "\"global_pool\": \"token\"", "\"global_pool\": \"map\"");
    assert!(e.contains("global_pool = \"map\""), "{e}");
}

/// timm's first versions wrote what they say of pictures among the rest of `config.json`.
#[test]
fn a_configuration_of_timms_first_form_has_the_same_pixels() {
    let folder = golden().join("timm_mae");
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let own = [("mean", [0.5; 3]), ("std", [0.25; 3])];
    for (key, numbers) in own {
        value["pretrained_cfg"][key] = numbers.to_vec().into();
    }
    value["pretrained_cfg"]["crop_pct"] = 0.9.into();
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let config = |value: &serde_json::Value| {
        std::fs::write(dir.path().join("config.json"), value.to_string()).unwrap();
        self::config(dir.path())
    };
    let usual = config(&value);
    let part = value.as_object_mut().unwrap().remove("pretrained_cfg").unwrap();
    value.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
    let first = config(&value);
    assert_eq!(first, usual);
    assert_eq!((first.mean, first.std, first.preprocess.crop_pct), ([0.5; 3], [0.25; 3], 0.9));
}

#[test]
fn pytorchs_own_files_hold_the_same_nets() {
    let folder = golden().join("official_mae");
    let (clip, again) =
        (load(&folder), Clip::load(&folder.join("checkpoint.pth"), Device::Cpu).unwrap());
    assert_eq!(clip.config, again.config);
    assert_eq!(clip.variables(), again.variables());
}

/// As transformers writes a large CLIPModel, and as it used to.
#[test]
fn an_index_names_the_files_of_one_net_and_nothing_elsewhere() {
    const SAFE: &str = "model.safetensors.index.json";
    let folder = golden().join("hf_sharded");
    let origin = Origin::open(&folder, None).unwrap();
    assert!(origin.shards().len() > 1 && origin.weights.ends_with(SAFE), "{origin:?}");
    let whole = load(&folder).variables();

    let dir = tempfile::tempdir().unwrap();
    for file in origin.shards() {
        let name = file.file_name().unwrap().to_str().unwrap().replace("safetensors", "bin");
        std::fs::copy(file, dir.path().join(name)).unwrap();
    }
    std::fs::copy(folder.join("config.json"), dir.path().join("config.json")).unwrap();
    let index = std::fs::read_to_string(folder.join(SAFE)).unwrap().replace("safetensors", "bin");
    let path = dir.path().join("pytorch_model.bin.index.json");
    std::fs::write(&path, &index).unwrap();
    for path in [dir.path(), &path] {
        assert_eq!(Clip::load(path, Device::Cpu).unwrap().variables(), whole);
    }

    let refusal = |index: &str| {
        std::fs::write(&path, index).unwrap();
        Clip::load(dir.path(), Device::Cpu).unwrap_err().to_string()
    };
    let (first, second) = ("model-00001-of-", "model-00002-of-");
    assert!(index.contains(first) && index.contains(second));
    for (index, words) in [
        (index.replace(first, &format!("../x/{first}")), "no file of weights beside it"),
        (index.replace(first, &format!("/etc/{first}")), "no file of weights beside it"),
        (index.replace(first, &format!("sub/{first}")), "no file of weights beside it"),
        (index.replace(first, "none-"), "No such file"),
        (index.replace(first, second), "which hasn't it"),
        (index.replacen("logit_scale", "logit_scales", 1), "doesn't say that \"logit_scale\""),
        (index.replacen("weight_map", "map", 1), "missing field `weight_map`"),
        (r#"{"weight_map": {"a": "pytorch_model.bin.index.json"}}"#.into(), "no file of weights"),
        (r#"{"weight_map": {"a": ".."}}"#.into(), "no file of weights"),
        (r#"{"weight_map": {}}"#.into(), "no known family"),
        (String::new(), "is no index of weights"),
    ] {
        let e = refusal(&index);
        assert!(e.contains(words) && !e.contains('\n'), "{e} ({words})");
    }
}

#[test]
fn names_in_errors_are_those_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = |folder: &str, file: &str, change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        for entry in golden().join(folder).read_dir().unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        let path = dir.path().join(file);
        let mut tensors = Checkpoint::open(&golden().join(folder).join(file)).unwrap().tensors;
        change(&mut tensors);
        let tensors: Vec<(String, Tensor)> = tensors.into_iter().collect();
        safetensors_io::save(&tensors, &path, &BTreeMap::new(), None).unwrap();
        let e = Clip::load(dir.path(), Device::Cpu).unwrap_err().to_string();
        for entry in dir.path().read_dir().unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        e
    };
    let (open_clip, hf) = ("open_clip_model.safetensors", "model.safetensors");
    let joined = "visual.transformer.resblocks.1.attn.in_proj_weight";
    let e = refusal("open_clip", open_clip, &|tensors| {
        tensors.remove(joined);
        let post = tensors.remove("visual.ln_post.weight").unwrap();
        tensors.insert("visual.ln_pots.weight".into(), post);
    });
    assert!(
        e.contains(&format!(
            "2 missing: visual.ln_post.weight (the file has visual.ln_pots.weight), {joined};"
        )),
        "{e}"
    );
    assert!(
        e.contains("1 unexpected: visual.ln_pots.weight (the network has visual.ln_post"),
        "{e}"
    );

    let e = refusal("open_clip", open_clip, &|tensors| {
        let proj = &tensors["visual.proj"];
        tensors.insert("visual.proj".into(), proj.narrow(0, 0, 32).copy());
        let whole = &tensors[joined];
        tensors.insert(joined.into(), whole.narrow(1, 0, 16).copy());
    });
    assert!(e.contains("visual.proj [32, 48], here [64, 48]"), "{e}");
    assert!(e.contains(&format!("{joined} [192, 16], here [192, 64]")), "{e}");
    assert!(e.contains("2 of another shape"), "{e}");

    // One of three that are joined here: the other two are where they should be.
    let q = "text_model.encoder.layers.0.self_attn.q_proj.weight";
    let e = refusal("hf_clip", hf, &|tensors| drop(tensors.remove(q)));
    assert!(e.contains(&format!("1 missing: {q}")) && !e.contains("unexpected"), "{e}");
}

/// OpenAI's archive says by its three sizes whose it is, and so which GELU it computes with.
#[test]
fn openais_archive_and_its_state_dict_hold_one_net() {
    let folder = golden().join("official_openai");
    let archive = folder.join("weights.pt");
    let origin = Origin::open(&archive, None).unwrap();
    assert_eq!(sizes(&origin).vision.ffn, Ffn::QuickGelu);
    let kind = |key: &str| origin.tensors()[key].kind();
    assert_eq!(kind("visual.head.weight"), Kind::Half);
    assert_eq!(kind("visual.norm.weight"), Kind::Float);

    let dir = tempfile::tempdir().unwrap();
    let dict = dir.path().join("dict.safetensors");
    let tensors: Vec<(String, Tensor)> =
        uta_model::torch_file::read(&archive).unwrap().into_iter().collect();
    assert!(tensors.iter().any(|(key, _)| key == "input_resolution"));
    safetensors_io::save(&tensors, &dict, &BTreeMap::new(), Some(Kind::Half)).unwrap();
    let (clip, again) = (load(&folder), Clip::load(&dict, Device::Cpu).unwrap());
    assert_eq!(clip.config, again.config);
    assert_eq!(clip.variables(), again.variables());
}

/// Pieces of a fused tensor in a mapped file are views: nothing is copied before it is filled in.
#[test]
fn pieces_of_a_mapped_file_are_views_of_it() {
    let origin = Origin::open(&golden().join("timm_eva01_clip"), None).unwrap();
    let at = |key: &str| origin.tensors()[key].data_ptr() as usize;
    let [q, k] = ["q", "k"].map(|name| at(&format!("visual.blocks.0.attn.{name}_proj.weight")));
    assert_eq!(k - q, 64 * 64 * Kind::Half.elt_size_in_bytes());
}

/// Whatever container, and however wrappers lie in each other.
#[test]
fn what_trainers_put_around_names_is_taken_off() {
    let dir = tempfile::tempdir().unwrap();
    let folder = golden().join("open_clip");
    let plain = load(&folder);
    let stored = Checkpoint::open(&folder.join("open_clip_model.safetensors")).unwrap().tensors;
    fs::copy(folder.join("open_clip_config.json"), dir.path().join("open_clip_config.json"))
        .unwrap();
    let wrap = |name: &str, outer: &str, inner: &str| {
        format!("{outer}{}", name.replace("resblocks.", &format!("resblocks.{inner}")))
    };
    for (outer, inner) in [
        ("module.", ""),
        ("_orig_mod.", ""),
        ("model.", ""),
        ("_orig_mod.module.", ""),
        ("module._orig_mod.model.", ""),
        ("state_dict.model.module.", ""),
        ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module."),
        ("", "_orig_mod."),
    ] {
        let renamed = stored.iter().map(|(n, t)| (wrap(n, outer, inner), t.shallow_clone()));
        let mut renamed: Vec<(String, Tensor)> = renamed.collect();
        renamed.push(("n_averaged".into(), Tensor::from(3i64)));
        let file = dir.path().join("open_clip_model.safetensors");
        safetensors_io::save(&renamed, &file, &BTreeMap::new(), None).unwrap();
        let found = Clip::load(dir.path(), Device::Cpu).unwrap_or_else(|e| panic!("{outer}: {e}"));
        assert_eq!(found.config, plain.config);
        assert_eq!(found.variables(), plain.variables(), "{outer} {inner}");
    }
    // Names that would be one are no net.
    let first = stored.iter().next().unwrap();
    let twice = ["", "module."].map(|outer| (wrap(first.0, outer, ""), first.1.shallow_clone()));
    let file = dir.path().join("twice.safetensors");
    safetensors_io::save(&twice, &file, &BTreeMap::new(), None).unwrap();
    let e = Clip::load(&file, Device::Cpu).unwrap_err().to_string();
    assert!(e.contains(&format!("holds {:?} twice", first.0)), "{e}");
}
