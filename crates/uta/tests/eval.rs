//! `uta eval` and `uta data` at the command line: what scripts rely on (JSON, key names, exit status) and what a user
//! sees after a mistake.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tch::{Device, Kind};
use uta_model::{Clip, ClipConfig, Ffn, TextConfig, VitConfig};

/// A folder with a CLIP, a student without text, and twelve captioned pictures in three class folders.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let world = World { dir: tempfile::tempdir().unwrap() };
        let vision = VitConfig {
            image_size: 16,
            patch_size: 4,
            width: 16,
            depth: 1,
            heads: 2,
            hidden: 32,
            out: 16,
            ffn: Ffn::SwiGlu,
            rope: true,
            drop_path: 0.0,
            patch_grad: 1.0,
            ..VitConfig::preset("uta-b14").unwrap()
        };
        let text = TextConfig {
            context_length: 12,
            vocab_size: 600,
            width: 16,
            heads: 2,
            layers: 1,
            out: 16,
            quick_gelu: false,
        };
        let save = |config: &ClipConfig, name: &str| {
            Clip::new(config, Device::Cpu).save(&world.path(name), Kind::Float).unwrap();
        };
        save(&ClipConfig::new(vision.clone(), Some(text)), "clip");
        save(&ClipConfig::new(vision, None), "student");
        for i in 0..12u8 {
            let class = ["blue", "green", "red"][usize::from(i % 3)];
            let folder = world.path("set").join(class);
            fs::create_dir_all(&folder).unwrap();
            let colour = |x: u32, y: u32| image::Rgb([20 * i, (12 * x) as u8, (12 * y) as u8]);
            let picture = image::RgbImage::from_fn(20, 18, colour);
            picture.save(folder.join(format!("{i}.png"))).unwrap();
            fs::write(folder.join(format!("{i}.txt")), format!("number {i}\n{class} {i}")).unwrap();
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn uta(&self, args: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_uta"))
            .args(args.split_whitespace())
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// The one JSON object that a command prints.
    fn json(&self, args: &str) -> Value {
        let out = self.uta(args);
        assert!(out.status.success(), "{args}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    /// The one line of a mistake.
    fn mistake(&self, args: &str) -> String {
        let out = self.uta(args);
        let line = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(2), "{args}: {line}");
        assert!(out.stdout.is_empty(), "{args}: nothing belongs on standard output");
        assert_eq!(line.trim_end().lines().count(), 1, "{args}: {line}");
        line
    }
}

fn share(value: &Value) -> f64 {
    let share = value.as_f64().unwrap();
    assert!((0.0..=1.0).contains(&share), "{share}");
    share
}

#[test]
fn zeroshot_prints_one_object_and_predictions_that_add_up_to_it() {
    let world = World::new();
    fs::write(world.path("templates.txt"), "a {}\nthe {} one\n").unwrap();
    let found = world
        .json("eval zeroshot --model clip --data set --batch 5 --predictions out.jsonl --json");
    assert_eq!((&found["n"], &found["classes"]), (&12.into(), &3.into()));
    assert_eq!(share(&found["top5"]), 1.0);
    assert!(found["settings"]["templates"].as_str().unwrap().starts_with("2 from"));
    let predictions = fs::read_to_string(world.path("out.jsonl")).unwrap();
    let predictions: Vec<Value> =
        predictions.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(predictions.len(), 12);
    let right = predictions.iter().filter(|p| p["label"] == p["top5"][0]).count();
    assert!((share(&found["top1"]) - right as f64 / 12.0).abs() < 1e-9);
    let first = &predictions[0];
    assert_eq!(first["names"].as_array().unwrap().len(), first["scores"].as_array().unwrap().len());
}

#[test]
fn retrieval_prints_recall_both_ways() {
    let world = World::new();
    let found = world.json("eval retrieval --model clip --data set --json");
    assert_eq!((&found["images"], &found["captions"]), (&12.into(), &24.into()));
    for way in ["text_to_image", "image_to_text"] {
        let [r1, r5, r10] = ["r1", "r5", "r10"].map(|k| share(&found[way][k]));
        assert!(r1 <= r5 && r5 <= r10, "{way}: {found}");
    }
}

#[test]
fn align_compares_with_a_teacher_whole_or_masked() {
    let world = World::new();
    let itself = world.json("eval align --model clip --teacher clip --data set --json");
    for key in ["cosine", "cosine_cls", "cosine_patches"] {
        assert!((itself[key].as_f64().unwrap() - 1.0).abs() < 1e-5, "{key}: {itself}");
    }
    let masked = world.json(
        "eval align --model student --teacher clip --data set --mask-ratio 0.5 --mask-kind block-reversed --json",
    );
    assert_eq!((&masked["n"], &masked["kept"]), (&12.into(), &8.into()));
    assert_eq!(masked["per_image"].as_array().unwrap().len(), 12);
    assert!(masked["cosine"].as_f64().unwrap() < 0.99);
}

#[test]
fn a_student_uses_the_text_tower_that_it_is_given() {
    let world = World::new();
    let line = world.mistake("eval zeroshot --model student --data set --json");
    assert!(line.contains("--text-model"), "{line}");
    let found = world.json("eval zeroshot --model student --text-model clip --data set --json");
    assert_eq!(found["settings"]["text tower"], "clip");
    let given = "eval zeroshot --model student --text-model clip --text-arch clip/config.json";
    assert_eq!(world.json(&format!("{given} --data set --json")), found);
}

#[test]
fn a_broken_picture_is_counted_and_named() {
    let world = World::new();
    fs::write(world.path("set/red/broken.png"), b"\x89PNG but not really").unwrap();
    let found = world.json("eval zeroshot --model clip --data set --json");
    assert_eq!(found["n"], 12);
    assert!(found["rejected"][0]["key"].as_str().unwrap().contains("broken"), "{found}");
    let out = world.uta("eval zeroshot --model clip --data set");
    let (page, log) =
        (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    assert!(page.contains("unreadable") && page.contains("broken"), "{page}");
    assert!(page.contains("top-1") && page.contains("95 % interval"), "{page}");
    assert!(log.contains("broken"), "{log}");
}

#[test]
fn a_mistake_is_one_line_with_exit_status_2() {
    let world = World::new();
    fs::write(world.path("names.txt"), "one\ntwo\n").unwrap();
    for (args, says) in [
        ("eval zeroshot --model absent --data set", "absent"),
        ("eval zeroshot --model clip --data nowhere", "nowhere"),
        ("eval zeroshot --model clip --data set --classnames names.txt", "names.txt"),
        ("eval zeroshot --model clip --data set --classnames missing.txt", "missing.txt"),
        ("eval zeroshot --model clip --data set --batch 0", "--batch"),
        ("eval zeroshot --model clip --data set --device tpu", "tpu"),
        (
            "eval zeroshot --model clip --data set --predictions no/such/folder.jsonl",
            "folder.jsonl",
        ),
        ("eval align --model clip --data set", "--teacher"),
        ("eval align --model clip --teacher clip --data set --mask-ratio 1.5", "1.5"),
        (
            "eval align --model clip --teacher clip --teacher-arch vit-x --data set",
            "no preset \"vit-x\"",
        ),
        ("eval zeroshot --model student --text-model clip --text-arch vit-x --data set", "vit-x"),
        ("data stats nowhere", "nowhere"),
        ("data pack nowhere --out shards", "nowhere"),
    ] {
        let line = world.mistake(args);
        assert!(line.contains(says), "{args}: {line}");
    }
}

#[test]
fn a_packed_folder_scores_as_the_folder_does() {
    let world = World::new();
    let packed = world.json("data pack set --out shards --json");
    assert_eq!((&packed["samples"], &packed["captioned"]), (&12.into(), &12.into()));
    assert_eq!(world.json("data stats shards --json")["samples"], 12);
    let scores = |data: &str| {
        let found = world.json(&format!("eval zeroshot --model clip --data {data} --json"));
        (share(&found["top1"]), found["n"].clone(), found["classes"].clone())
    };
    assert_eq!(scores("set"), scores("shards"));
}
