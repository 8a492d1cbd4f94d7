//! `uta embed` and `uta weights` on files that the originals' own code wrote (tests/golden/families).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use uta_model::safetensors_io::Checkpoint;
use uta_model::{Clip, ClipConfig, Ffn, TextConfig, VitConfig};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn uta(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_uta")).args(args).current_dir(dir).output().unwrap()
}

fn done(dir: &Path, args: &[&str]) -> String {
    let out = uta(dir, args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn json(dir: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&done(dir, args)).unwrap()
}

/// Exit status 2 and one line that holds all of `words`.
fn refused(dir: &Path, args: &[&str], words: &[&str]) {
    let out = uta(dir, args);
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{args:?}: {text}");
    let mut lines = text.lines();
    let line = lines.next().unwrap_or_default();
    assert!(
        line.starts_with("uta: ") && words.iter().all(|w| line.contains(w)),
        "{args:?}: {text}"
    );
    assert_eq!(lines.next(), None, "{text}");
}

fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    Checkpoint::open(path).unwrap().tensors
}

/// Four pictures whose names sort against the order in which they are written.
fn pictures(dir: &Path) {
    fs::create_dir(dir.join("pictures")).unwrap();
    for (i, name) in ["d.png", "b.png", "c.png", "a.png"].into_iter().enumerate() {
        let colour = |x: u32, y: u32| image::Rgb([(60 * i) as u8, (x * 6) as u8, (y * 6) as u8]);
        image::RgbImage::from_fn(40, 36, colour).save(dir.join("pictures").join(name)).unwrap();
    }
}

#[test]
fn embeddings_of_pictures_come_in_the_order_of_their_names_with_tokens_and_hidden_states() {
    let dir = tempfile::tempdir().unwrap();
    pictures(dir.path());
    let model = golden("families/hf_clip");
    let model = model.to_str().unwrap();
    let embed = |more: &[&str]| {
        done(
            dir.path(),
            &[&["embed", "--model", model, "--out", "out.safetensors"], more].concat(),
        );
        Checkpoint::open(&dir.path().join("out.safetensors")).unwrap()
    };
    let all = embed(&["--images", "pictures", "--tokens", "--layer", "1", "--batch", "3"]);
    let names: Vec<String> = serde_json::from_str(&all.metadata["names"]).unwrap();
    assert_eq!(names, ["a.png", "b.png", "c.png", "d.png"]);
    let (embeddings, tokens) = (&all.tensors["embeddings"], &all.tensors["tokens"]);
    assert_eq!((embeddings.kind(), embeddings.size()[0]), (Kind::Float, 4));
    assert_eq!(tokens.size()[0], 4);
    assert_eq!(all.tensors["hidden"].size()[..2], tokens.size()[..2]);
    assert!(tokens.select(1, 0).allclose(embeddings, 1e-5, 1e-5, false), "[CLS] is the embedding");

    let some = embed(&["--images", "pictures/d.png", "pictures/b.png"]);
    let names: Vec<String> = serde_json::from_str(&some.metadata["names"]).unwrap();
    assert_eq!(names, ["pictures/b.png", "pictures/d.png"]);
    let index = Tensor::from_slice(&[1i64, 3]);
    let expected = embeddings.index_select(0, &index);
    assert!(some.tensors["embeddings"].allclose(&expected, 1e-5, 1e-5, false));

    let words = ["--images", "pictures", "--layer", "9"];
    let args = [&["embed", "--model", model, "--out", "x"], &words[..]].concat();
    refused(dir.path(), &args, &["--layer 9", "layers 0 to 2"]);
}

#[test]
fn embeddings_of_texts_come_in_the_order_of_their_lines() {
    let dir = tempfile::tempdir().unwrap();
    let vision = "image_size = 16\npatch_size = 4\nwidth = 16\ndepth = 1\nheads = 2\nhidden = 32\nout = 16\n";
    let text = "[model.text]\ncontext_length = 12\nvocab_size = 1000\nwidth = 16\nheads = 2\nlayers = 1\nout = 16\n";
    pictures(dir.path());
    for name in ["a", "b", "c", "d"] {
        fs::write(dir.path().join(format!("pictures/{name}.txt")), name).unwrap();
    }
    let recipe = format!(
        "task = \"contrastive\"\n[model]\n{vision}{text}[data]\ntrain = [\"pictures\"]\n[train]\nsteps = 1\nbatch = 4\ndevice = \"cpu\"\n"
    );
    fs::write(dir.path().join("clip.toml"), recipe).unwrap();
    done(dir.path(), &["train", "clip.toml", "--out", "run"]);
    let embed = |lines: &str| {
        fs::write(dir.path().join("lines"), lines).unwrap();
        done(
            dir.path(),
            &["embed", "--model", "run", "--texts", "lines", "--out", "t.safetensors"],
        );
        Checkpoint::open(&dir.path().join("t.safetensors")).unwrap()
    };
    let both = embed("a longer line of words\nshort\n");
    let names: Vec<String> = serde_json::from_str(&both.metadata["names"]).unwrap();
    assert_eq!(names, ["a longer line of words", "short"]);
    // Nothing to embed, and endings of other formats, leave nothing behind.
    for blank in ["", "\n", " \n\n"] {
        fs::write(dir.path().join("lines"), blank).unwrap();
        let args = ["embed", "--model", "run", "--texts", "lines", "--out", "n.safetensors"];
        refused(dir.path(), &args, &["lines", "no text"]);
        assert!(!dir.path().join("n.safetensors").exists());
    }
    fs::write(dir.path().join("lines"), "short\n").unwrap();
    let args = ["embed", "--model", "run", "--texts", "lines", "--out", "n.npy"];
    refused(dir.path(), &args, &["n.npy", ".safetensors"]);
    let long = "word ".repeat(20);
    fs::write(dir.path().join("long"), &long).unwrap();
    let args = ["embed", "--model", "run", "--texts", "long", "--out", "l.safetensors"];
    done(dir.path(), &args);
    refused(dir.path(), &[&args[..], &["--whole-texts"]].concat(), &["word", "12"]);
    let one = embed("short\n");
    let expected = both.tensors["embeddings"].narrow(0, 1, 1);
    assert!(one.tensors["embeddings"].allclose(&expected, 1e-5, 1e-5, false));
}

#[test]
fn a_checkpoint_is_inspected_and_comes_back_unchanged_from_another_layout() {
    let dir = tempfile::tempdir().unwrap();
    let original = golden("families/open_clip");
    let original = original.to_str().unwrap();
    let found = json(dir.path(), &["weights", "inspect", original, "--tensors", "--json"]);
    assert_eq!(found["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(
        found["list"].as_array().unwrap().len(),
        found["tensors"].as_u64().unwrap() as usize
    );
    assert!(found["family"].as_str().unwrap().contains("open_clip"), "{found}");
    assert_eq!(found["dtypes"].as_object().unwrap().keys().collect::<Vec<_>>(), ["f16"]);

    for layout in ["hf", "uta"] {
        let there = ["weights", "convert", original, "--to", layout, "--out", layout, "--json"];
        assert_eq!(json(dir.path(), &there)["dtype"], "f16");
        let back = format!("{layout}-back");
        done(dir.path(), &["weights", "convert", layout, "--to", "open-clip", "--out", &back]);
        let file = "open_clip_model.safetensors";
        let (before, after) =
            (tensors(&Path::new(original).join(file)), tensors(&dir.path().join(&back).join(file)));
        assert!(before.keys().eq(after.keys()), "{layout}");
        for (name, tensor) in &before {
            assert_eq!(tensor, &after[name], "{layout}: {name}");
        }
    }
}

#[test]
fn a_resized_net_says_what_was_interpolated_and_loads() {
    let dir = tempfile::tempdir().unwrap();
    let model = golden("families/official_uta/weights.safetensors");
    let model = model.to_str().unwrap();
    let before = json(dir.path(), &["weights", "inspect", model, "--json"]);
    let size = before["config"]["vision"]["image_size"].as_i64().unwrap();
    let wanted = (size * 2).to_string();
    let args = ["weights", "resize", model, "--image-size", &wanted, "--out", "large", "--json"];
    let report = json(dir.path(), &args);
    assert_eq!(report["resized"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["resized"][0][0], "visual.pos_embed");
    let after = json(dir.path(), &["weights", "inspect", "large", "--json"]);
    assert_eq!(after["config"]["vision"]["image_size"], size * 2);
    refused(
        dir.path(),
        &[&args[..4], &["64", "--out", "large"]].concat(),
        &["holds a model already"],
    );
    let absurd = [&args[..4], &["8192", "--out", "absurd"]].concat();
    refused(dir.path(), &absurd, &["must be at most 256"]);
    let same = size.to_string();
    let args = ["weights", "resize", model, "--image-size", &same, "--out", "same"];
    refused(dir.path(), &args, &["already", "--image-size"]);
}

#[test]
fn files_that_are_no_weights_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("empty.pt"), b"").unwrap();
    fs::write(path("text.pt"), b"not a checkpoint, but a letter to a friend").unwrap();
    fs::write(path("README.md"), b"# UTA\n\nUnmasked tokens\n").unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    fs::write(path("pointer.safetensors"), pointer).unwrap();
    fs::write(path("page.pt"), "<!DOCTYPE html>\n<html><body>Sign in</body></html>").unwrap();
    fs::write(path("config.pth"), "{\n  \"model\": \"vit\"\n}\n").unwrap();
    fs::write(path("model.pt.gz"), b"\x1f\x8b\x08\0\0\0\0\0\0\0").unwrap();
    fs::write(path("noise.bin"), [0xc3; 600]).unwrap();
    fs::write(path("zeros.bin"), [0; 600]).unwrap();
    image::RgbImage::new(9, 9).save(path("picture.png")).unwrap();
    image::RgbImage::new(9, 9).save(path("picture.jpg")).unwrap();
    for folder in ["pointed", "bare", "named", "lone"] {
        fs::create_dir(path(folder)).unwrap();
    }
    fs::write(path("pointed/config.json"), pointer).unwrap();
    fs::write(path("pointed/model.safetensors"), pointer).unwrap();
    fs::write(path("bare/config.json"), "{}").unwrap();
    fs::write(path("named/config.json"), "{}").unwrap();
    fs::write(path("named/other.safetensors"), "").unwrap();
    fs::write(path("lone/weights.pt"), "").unwrap();
    fs::create_dir(path("folder")).unwrap();
    let mut huge = (1u64 << 60).to_le_bytes().to_vec();
    huge.extend(b"{}");
    fs::write(path("huge.safetensors"), huge).unwrap();
    let whole = golden("families/open_clip/open_clip_model.safetensors");
    let bytes = fs::read(&whole).unwrap();
    fs::write(path("cut.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    for (name, word) in [
        ("empty.pt", "empty"),
        ("text.pt", "begins like text (\"not a checkpoint, but"),
        ("README.md", "is no checkpoint: begins like text (\"# UTA\")"),
        ("pointer.safetensors", "is a Git LFS pointer, not the file itself: run `git lfs pull`"),
        ("page.pt", "an HTML page"),
        ("config.pth", "JSON; a configuration goes with --arch"),
        ("model.pt.gz", "packed by gzip: unpack it first"),
        ("noise.bin", "neither a safetensors nor a PyTorch file"),
        ("zeros.bin", "begins with zeros"),
        ("picture.png", "a picture (PNG)"),
        ("picture.jpg", "a picture (JPEG)"),
        ("folder", "is a folder without a model, which would be open_clip_config.json and"),
        ("pointed", "git lfs pull"),
        ("bare", "holds config.json but no weights beside it (model.safetensors"),
        ("named", "for other.safetensors give the file, named/other.safetensors"),
        ("lone", "give the file of weights, lone/weights.pt"),
        ("huge.safetensors", "header"),
        ("cut.safetensors", "cut short"),
        ("nowhere.pt", "nowhere.pt: there is no such file or folder"),
    ] {
        refused(dir.path(), &["weights", "inspect", name], &[name, word]);
    }
    for name in ["README.md", "folder", "nowhere.pt"] {
        let args = ["embed", "--model", name, "--texts", "text.pt", "--out", "o"];
        refused(dir.path(), &args, &[name]);
    }
    let evil: Vec<PathBuf> = fs::read_dir(golden("torch_files"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("bad_"))
        .collect();
    assert!(!evil.is_empty());
    for path in evil {
        refused(dir.path(), &["weights", "inspect", path.to_str().unwrap()], &[".pt"]);
    }
}

/// A small net with random weights, as this program's folder `name`.
fn net(dir: &Path, name: &str, vision: &VitConfig, vocab_size: i64) {
    let vision = VitConfig {
        image_size: 16,
        patch_size: 8,
        width: 64,
        depth: 1,
        heads: 1,
        ..vision.clone()
    };
    let vision = VitConfig { hidden: 96, out: 16, ..vision };
    let text = TextConfig {
        context_length: if vocab_size == 49408 { 77 } else { 16 },
        vocab_size,
        width: 64,
        heads: 1,
        layers: 1,
        out: 16,
        quick_gelu: vision.ffn == Ffn::QuickGelu,
    };
    let clip = Clip::new(&ClipConfig::new(vision, Some(text)), Device::Cpu);
    clip.save(&dir.join(name), Kind::Float).unwrap();
}

/// `tests/golden/exports.py` runs the printed lines in the programs themselves.
#[test]
fn every_layout_comes_with_what_its_program_looks_for_and_the_lines_that_load_it() {
    const TOKENISER: [&str; 4] =
        ["merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"];
    let dir = tempfile::tempdir().unwrap();
    let preset = |name: &str| VitConfig::preset(name).unwrap();
    net(dir.path(), "plain", &preset("openai-b-32"), 2000);
    net(dir.path(), "plain-clip", &preset("vit-b-32"), 49408);
    net(dir.path(), "student", &preset("uta-b14"), 2000);
    net(dir.path(), "eva", &preset("eva02-b-16"), 49408);
    let value = |path: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(dir.path().join(path)).unwrap()).unwrap()
    };
    for (net, layout, own, tokeniser, lines) in [
        (
            "plain",
            "hf",
            &["config.json", "model.safetensors", "preprocessor_config.json"][..],
            true,
            &[
                "from transformers import CLIPModel, CLIPProcessor, pipeline",
                "model = CLIPModel.from_pretrained(\"plain-hf\")",
                "processor = CLIPProcessor.from_pretrained(\"plain-hf\")",
                "classify = pipeline(\"zero-shot-image-classification\", \"plain-hf\")",
            ][..],
        ),
        (
            "plain",
            "open-clip",
            &["open_clip_config.json", "open_clip_model.safetensors"],
            true,
            &[
                "import open_clip; model, preprocess = open_clip.create_model_from_pretrained(\"local-dir:plain-open-clip\")",
                "tokenizer = open_clip.get_tokenizer(\"local-dir:plain-open-clip\")",
            ],
        ),
        // open_clip has CLIP's own tokeniser.
        (
            "plain-clip",
            "open-clip",
            &["open_clip_config.json", "open_clip_model.safetensors"],
            false,
            &["import open_clip;", "tokenizer = open_clip.get_tokenizer("],
        ),
        (
            "student",
            "uta",
            &["config.json", "model.safetensors", "uta_model.py"],
            true,
            &[
                "import sys; sys.path.insert(0, \"student-uta\")",
                "import uta_model; model = uta_model.load()",
            ],
        ),
        (
            "student",
            "timm",
            &["config.json", "model.safetensors"],
            false,
            &[
                "import timm; model = timm.create_model(\"local-dir:student-timm\", pretrained=True)",
            ],
        ),
        (
            "eva",
            "eva-clip",
            &["config.json", "eva_clip.json", "eva_clip.pt"],
            false,
            &[
                "import eva_clip; eva_clip.add_model_config(\"eva-eva-clip/eva_clip.json\")",
                "model, _, preprocess = eva_clip.create_model_and_transforms(\"eva_clip\", \"eva-eva-clip/eva_clip.pt\", \
                 image_mean=[0.48145466,0.4578275,0.40821073], image_std=[0.26862954,0.26130258,0.27577711])",
                "tokenizer = eva_clip.get_tokenizer(\"eva_clip\")",
            ],
        ),
    ] {
        let out = format!("{net}-{layout}");
        let printed = done(dir.path(), &["weights", "convert", net, "--to", layout, "--out", &out]);
        let (_, python) = printed.split_once("\nin Python:\n").expect(&printed);
        let printed: Vec<&str> = python.lines().map(str::trim_start).collect();
        assert_eq!(printed.len(), lines.len(), "{python}");
        assert!(printed.iter().zip(lines).all(|(found, line)| found.starts_with(line)), "{python}");

        let mut wanted = own.to_vec();
        wanted.extend(TOKENISER.iter().filter(|_| tokeniser));
        wanted.sort_unstable();
        let entries = fs::read_dir(dir.path().join(&out)).unwrap();
        let mut found: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        found.sort_unstable();
        assert_eq!(found, wanted, "{out}");
        // Whoever reads it next, it is the same net.
        let back = format!("{out}-back");
        done(dir.path(), &["weights", "convert", &out, "--to", "uta", "--out", &back]);
        let file = |folder: &str| tensors(&dir.path().join(folder).join("model.safetensors"));
        let (before, after) = (file(net), file(&back));
        assert!(after.iter().all(|(name, tensor)| before[name] == *tensor), "{out}");
        assert!(layout == "timm" || after.len() == before.len(), "{out}");
    }

    let tokeniser = value("plain-hf/tokenizer_config.json");
    assert_eq!(tokeniser["tokenizer_class"], "CLIPTokenizer");
    assert_eq!(
        (&tokeniser["model_max_length"], &tokeniser["pad_token"]),
        (&16.into(), &"<|endoftext|>".into())
    );
    let vocabulary = value("plain-hf/vocab.json");
    assert_eq!(vocabulary.as_object().unwrap().len(), 2000);
    assert_eq!((&vocabulary["<|startoftext|>"], &vocabulary["a</w>"]), (&1998.into(), &320.into()));
    assert_eq!(value("plain-hf/preprocessor_config.json")["processor_class"], "CLIPProcessor");
    let text = |name: &str| value(name)["model_cfg"]["text_cfg"]["hf_tokenizer_name"].clone();
    assert!(text("plain-open-clip/open_clip_config.json").is_string());
    assert!(text("plain-clip-open-clip/open_clip_config.json").is_null());
    let eva = value("eva-eva-clip/eva_clip.json");
    let vision = &eva["vision_cfg"];
    for key in ["rope", "intp_freq", "naiveswiglu", "subln"] {
        assert_eq!(vision[key], true, "{key}");
    }
    let ratio = vision["mlp_ratio"].as_f64().unwrap();
    assert_eq!(
        ((64.0 * ratio) as i64, &vision["layers"], &eva["embed_dim"]),
        (96, &1.into(), &16.into())
    );
    assert_eq!(eva["custom_text"], true);
    let names = uta_model::torch_file::read(&dir.path().join("eva-eva-clip/eva_clip.pt")).unwrap();
    assert!(names.contains_key("visual.blocks.0.attn.inner_attn_ln.weight"));

    // What no program builds is sent to the layout that comes with a loader.
    for layout in ["open-clip", "eva-clip", "hf"] {
        let args = ["weights", "convert", "student", "--to", layout, "--out", "none"];
        refused(dir.path(), &args, &["--to uta comes with a loader for PyTorch"]);
    }
}

#[test]
fn a_model_that_is_not_there_is_answered_by_what_may_have_been_meant() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("runs/photos-1")).unwrap();
    for name in ["ViT-B-32.pt", "vit_base.safetensors", "ViT-B-16.txt"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    for (name, words) in [
        ("ViT-B-16.pt", &["the nearest: ViT-B-32.pt", "OpenAI publishes it", "openai/CLIP"][..]),
        ("vit-base.safetensors", &["the nearest: vit_base.safetensors"]),
        ("runs/photos1", &["the nearest: photos-1"]),
        ("EVA02_CLIP_L_psz14_s4B.pt", &["huggingface.co: QuanSun/EVA-CLIP"]),
        ("mae_pretrain_vit_base.pth", &["facebookresearch/mae"]),
        ("RN50.pt", &["a ResNet, and only ViTs are read"]),
        ("laion/CLIP-ViT-B-16", &["`hf download laion/CLIP-ViT-B-16 --local-dir DIR`"]),
        ("hf-hub:laion/x", &["no address (hf-hub:)"]),
        ("hf://laion/x", &["no address (hf:)"]),
        ("uta-b14", &["uta-b14 names a net, not its weights", "--arch uta-b14"]),
        ("far/away/model.pt", &["nor a folder far/away"]),
    ] {
        let words = [&[name, "there is no such file or folder"][..], words].concat();
        let words: Vec<&str> = if name.contains(':') {
            words.iter().copied().filter(|w| !w.starts_with("there is no")).collect()
        } else {
            words
        };
        refused(dir.path(), &["weights", "inspect", name], &words);
    }
    // Nothing is told that isn't there.
    let out = uta(dir.path(), &["weights", "inspect", "ViT-B-16.pt"]);
    assert!(!String::from_utf8_lossy(&out.stderr).contains(".txt"));
    let e = uta(dir.path(), &["weights", "inspect", "qqqqqqqq"]).stderr;
    assert_eq!(String::from_utf8_lossy(&e), "uta: qqqqqqqq: there is no such file or folder\n");
}

#[test]
fn a_step_is_measured_without_data_and_says_where_its_time_goes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let recipe = "recipes/mini/uta-emoji.toml";
    for part in ["all", "student", "teacher"] {
        let args = ["bench", "step", recipe, "--part", part, "--batch", "4", "--steps", "1"];
        let found = json(&root, &[&args[..], &["--json", "--profile"]].concat());
        let number = |key: &str| found[key].as_f64().unwrap();
        assert_eq!((found["part"].as_str(), number("batch")), (Some(part), 4.0));
        assert!(number("images_per_second") > 0.0 && number("peak_memory_bytes") > 1e7, "{found}");
        let share = number("gflops") / number("ceiling_gflops");
        assert!((number("utilisation") - share).abs() < 1e-9 && share > 0.0, "{found}");
        let shares: f64 =
            found["profile"].as_array().unwrap().iter().map(|s| s["share"].as_f64().unwrap()).sum();
        assert!((shares - 1.0).abs() < 1e-6, "{found}");
    }
    let absent = "recipes/pretrain/uta-b14-in21k.toml";
    refused(&root, &["bench", "step", absent, "--set", "teacher.arch=vit-x"], &["vit-x"]);
    // A task without a teacher has the whole step alone.
    let pair = "recipes/mini/clip-emoji.toml";
    let found = json(&root, &["bench", "step", pair, "--batch", "4", "--steps", "1", "--json"]);
    assert_eq!(
        (found["task"].as_str(), found["part"].as_str()),
        (Some("contrastive"), Some("all"))
    );
    assert!(found["utilisation"].as_f64().unwrap() > 0.0, "{found}");
    refused(&root, &["bench", "step", pair, "--part", "student"], &["--part", "has no parts"]);
    for (recipe, kept) in [("mim", 16), ("uta-mim", 16), ("fd", 16), ("text", 0)] {
        let recipe = format!("recipes/mini/{recipe}-emoji.toml");
        let found =
            json(&root, &["bench", "step", &recipe, "--batch", "4", "--steps", "1", "--json"]);
        assert_eq!(found["kept"], kept, "{recipe}");
        assert!(found["utilisation"].as_f64().unwrap() > 0.0, "{found}");
    }
}
