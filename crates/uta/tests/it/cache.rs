//! `uta cache` and runs with `teacher.cache`, as their users and their accidents meet them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::common::{json, mistake, uta};
use crate::world::{World, metrics};
use serde_json::Value;

/// A teacher, and a student's recipe that masks, averages, and measures retrieval.
fn world() -> World {
    let world = World::with_teacher();
    let recipe = world.path("align.toml");
    let more = "seed = 5\n[mask]\nratio = 0.5\n[[eval.sets]]\nname = \"pictures\"\nkind = \"retrieval\"\ndata = \"pictures\"\n";
    fs::write(&recipe, fs::read_to_string(&recipe).unwrap() + more).unwrap();
    world
}

/// Its words on standard error.
fn does(world: &World, args: &str) -> String {
    let out = uta(world.dir.path(), args);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{args}: {text}");
    text
}

fn refuses(world: &World, args: &str, words: &[&str]) {
    world.refuses(&args.split_whitespace().collect::<Vec<_>>(), words);
}

/// The files of a cache by their names.
fn files(world: &World, cache: &str) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(world.path(cache)).unwrap().map(|entry| entry.unwrap());
    files
        .map(|e| (e.file_name().to_string_lossy().into_owned(), fs::read(e.path()).unwrap()))
        .filter(|(name, _)| name != ".lock")
        .collect()
}

/// `targets` of a shard as floats, and E: by the file's own header.
fn targets(file: &Path) -> (Vec<f32>, usize) {
    let bytes = fs::read(file).unwrap();
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let length = u64::from_le_bytes(*length) as usize;
    let header: Value = serde_json::from_slice(&rest[..length]).unwrap();
    let about = &header["targets"];
    let at = |i: usize| length + about["data_offsets"][i].as_u64().unwrap() as usize;
    let data = &rest[at(0)..at(1)];
    let values = match about["dtype"].as_str().unwrap() {
        "I8" => data.iter().map(|&b| f32::from(b as i8)).collect(),
        _ => data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
    };
    (values, about["shape"][2].as_u64().unwrap() as usize)
}

#[test]
fn a_run_from_an_exact_cache_has_the_losses_of_one_with_the_teacher_and_needs_none() {
    let world = world();
    let tasks = ["align", "mim", "uta-mim"];
    for task in &tasks[1..] {
        let recipe = fs::read_to_string(world.path("align.toml")).unwrap();
        let recipe = recipe.replace("\"align\"", &format!("\"{task}\""));
        fs::write(world.path(&format!("{task}.toml")), recipe).unwrap();
    }
    for task in tasks {
        does(&world, &format!("train {task}.toml --out {task}-live"));
    }
    // One cache serves all of them.
    does(&world, "cache align.toml --out exact --crops 5 --store f32");
    does(&world, "cache mim.toml --out bytes --crops 5");
    fs::remove_dir_all(world.path("teacher")).unwrap();
    for task in tasks {
        does(&world, &format!("train {task}.toml --out {task}-exact --set teacher.cache=exact"));
        does(&world, &format!("train {task}.toml --out {task}-bytes --set teacher.cache=bytes"));
        let [live, ours, rough] = ["live", "exact", "bytes"]
            .map(|targets| metrics(&world.path(&format!("{task}-{targets}"))));
        assert_eq!(live.len(), ours.len());
        let mut compared = 0;
        for ((live, ours), rough) in live.iter().zip(&ours).zip(&rough) {
            assert_eq!(live.keys().collect::<Vec<_>>(), ours.keys().collect::<Vec<_>>());
            for key in live.keys() {
                let (Some(a), Some(b)) = (live[key].as_f64(), ours[key].as_f64()) else { continue };
                assert!(
                    (a - b).abs() <= 2e-5 * a.abs().max(1.0),
                    "{task} {key}: {live:?} {ours:?}"
                );
                if key == "loss" {
                    compared += 1;
                    let c = rough[key].as_f64().unwrap();
                    assert!((a - c).abs() < 2e-3, "{task}: {live:?} {rough:?}");
                }
            }
        }
        // Steps, and validation before the first and after each eighth.
        assert_eq!(compared, 24 + 4);
        let evaluated = |line: &&serde_json::Map<String, Value>| {
            line.get("eval").is_some_and(|eval| eval == "pictures")
        };
        assert!(live.iter().any(|line| evaluated(&line)));
    }
}

#[test]
fn bytes_point_where_the_small_clips_tokens_do() {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let emoji = root.join("tests/golden/zeroshot/twemoji-small.tar");
    let command = format!(
        "cache {} --set teacher.path={} --set data.train={} --set data.val=[] --set eval.sets=[] --crops 2 --json --out",
        root.join("recipes/mini/uta-emoji.toml").display(),
        root.join("assets/clip-emoji").display(),
        emoji.display()
    );
    let made = json(dir.path(), &format!("{command} bytes"));
    json(dir.path(), &format!("{command} exact --store f32"));
    let (exact, e) = targets(&dir.path().join("exact/train-000000.safetensors"));
    let (bytes, _) = targets(&dir.path().join("bytes/train-000000.safetensors"));
    assert_eq!((exact.len(), e), (bytes.len(), 128));
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let cosines: Vec<f64> = exact
        .chunks_exact(e)
        .zip(bytes.chunks_exact(e))
        .map(|(a, b)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt())
        .collect();
    // 17 tokens of two crops of each picture.
    assert!(cosines.len() > 1000 && cosines.len().is_multiple_of(34), "{}", cosines.len());
    let least = cosines.iter().copied().fold(1.0, f64::min);
    let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
    assert!(least > 0.999 && mean > 0.9998, "{mean} {least}");
    let told = |i: usize| made["cosine"][i].as_f64().unwrap();
    assert!((told(0) - mean).abs() < 1e-5 && (told(1) - least).abs() < 1e-5, "{made}");
}

#[test]
fn a_cache_killed_ten_times_is_the_same_to_the_last_byte_as_an_undisturbed_one() {
    let world = world();
    let cache = "cache align.toml --crops 3 --shard-samples 3 --batch 4 --out";
    does(&world, &format!("{cache} whole"));
    for kills in 0..10 {
        let mut child = world
            .command(&format!("{cache} killed").split(' ').collect::<Vec<_>>())
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(60 + 17 * kills));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let made = json(world.dir.path(), &format!("{cache} killed --json"));
    assert_eq!(made["shards"], 28);
    let mut killed = files(&world, "killed");
    killed.retain(|name, _| !name.ends_with(".tmp"));
    assert!(killed == files(&world, "whole"));
    // Nothing is left to do.
    let again = json(world.dir.path(), &format!("{cache} killed --json"));
    assert_eq!((&again["kept"], &again["computed"]), (&28.into(), &0.into()));
    assert!(again["cosine"].is_null());
}

#[test]
fn a_cache_of_another_teacher_other_crops_or_data_is_refused_by_what_differs() {
    let world = world();
    does(&world, "train clip.toml --out other --set train.steps=1 --set train.seed=8");
    world.pictures("shaded", 1);
    does(&world, "cache align.toml --out cache --crops 2");
    let holds = "cache: holds other targets";
    for (args, words) in [
        ("--set teacher.path=other", ["teacher.sha256", "there"]),
        ("--set train.seed=6", ["crops.seed is 5 there, 6 here", holds]),
        ("--set data.transforms.hflip=0.1", ["crops.transforms.hflip is 0.5 there, 0.1", holds]),
        ("--crops 3", ["crops.count is 2 there, 3 here", holds]),
        ("--store f16", ["targets.kind is \"i8\" there, \"f16\" here", holds]),
        ("--set data.val=[]", ["data.val is 40 there, 0 here", holds]),
        ("--set data.train=shaded", ["other train data", "p00, sample 0"]),
    ] {
        let crops = if args.starts_with("--crops") { "" } else { "--crops 2" };
        refuses(&world, &format!("cache align.toml --out cache {crops} {args}"), &words);
    }
    let train = "train align.toml --out run --set teacher.cache=cache";
    for (args, words) in [
        ("--set teacher.path=other", vec!["no cache for this recipe", "teacher.sha256 is"]),
        ("--set data.transforms.hflip=0.1", vec!["crops.transforms.hflip is 0.5 there, 0.1 here"]),
        ("--set data.orient=true", vec!["crops.orient is false there, true here"]),
        ("--set data.train=shaded", vec!["other train data", "p00, sample 0"]),
        ("--set data.train=[\"pictures\",\"shaded\"]", vec!["40 samples there, 80 here"]),
        ("--set data.val=shaded", vec!["other val data", "p00, sample 0"]),
        ("--set data.repeats=4", vec!["data.repeats = 4", "has 2 crops"]),
        ("--set model.out=8", vec!["model.out = 8", "the teacher's, 16"]),
        ("--set teacher.cache=pictures", vec!["pictures", "holds no cache", "uta cache"]),
    ] {
        refuses(&world, &format!("{train} {args}"), &words);
    }
    assert!(!world.path("run").exists(), "a run was begun");
    // Another order, other masks: seeds of their own. And two views of a picture are two crops.
    does(&world, &format!("{train} --set train.seed=77 --set data.repeats=2"));
    let bad = mistake(world.dir.path(), "cache clip.toml --out none");
    assert!(bad.contains("task \"contrastive\" has no teacher"), "{bad}");
}

#[test]
fn damage_is_found_told_and_mended() {
    let world = world();
    let cache = "cache align.toml --out cache --crops 2 --shard-samples 8";
    does(&world, cache);
    let whole = files(&world, "cache");
    let shard = world.path("cache/train-000001.safetensors");
    let bytes = fs::read(&shard).unwrap();

    fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap();
    let train = "train align.toml --set teacher.cache=cache --set data.max_rejected=0.9 --out";
    refuses(&world, &format!("{train} cut"), &["train-000001", "cut short", "uta cache again"]);
    does(&world, cache);
    assert!(files(&world, "cache") == whole, "a cut shard wasn't made anew");

    // One bit in each crop's row of [CLS].
    let mut damaged = bytes.clone();
    let rows = 16 * 17 * 16;
    let first = damaged.len() - rows;
    (0..16).for_each(|crop| damaged[first + crop * 17 * 16] ^= 1);
    fs::write(&shard, &damaged).unwrap();
    let log = does(&world, &format!("{train} flipped"));
    assert!(log.contains("unusable sample p08") && log.contains("damaged: sample 8"), "{log}");
    let last = metrics(&world.path("flipped")).into_iter().rev();
    let counted = last.filter_map(|line| line.get("rejected_samples")?.as_u64()).next().unwrap();
    let named = fs::read_to_string(world.path("flipped/rejected.jsonl")).unwrap();
    assert!(counted > 0 && named.lines().count() as u64 == counted);
    assert!(named.lines().all(|line| line.contains("\"kind\":\"targets\"")), "{named}");
    does(&world, cache);
    assert!(files(&world, "cache") != whole);
    let mended = json(world.dir.path(), &format!("{cache} --check --json"));
    assert_eq!((&mended["kept"], &mended["computed"]), (&9.into(), &16.into()));
    assert!(files(&world, "cache") == whole);

    fs::write(world.path("cache/cache.json"), "{}").unwrap();
    refuses(&world, &format!("{train} none"), &["cache.json", "is no cache's"]);
}

#[test]
fn a_run_from_a_cache_resumes_as_if_nothing_had_happened() {
    let world = world();
    does(&world, "cache align.toml --out cache --crops 2 --store f16");
    fs::remove_dir_all(world.path("teacher")).unwrap();
    let train = "train align.toml --set teacher.cache=cache --out";
    does(&world, &format!("{train} whole"));
    does(&world, &format!("{train} kept --set checkpoint.keep=8"));
    for step in [15, 18, 21, 24] {
        fs::remove_dir_all(world.path(&format!("kept/checkpoints/step-000000{step}"))).unwrap();
    }
    does(&world, "train --resume kept");
    assert_eq!(metrics(&world.path("kept")), metrics(&world.path("whole")));
    let model = |run: &str| fs::read(world.path(run).join("model.safetensors")).unwrap();
    assert!(model("kept") == model("whole"), "the final weights differ");
}

/// The limit on the size of a file stands for a full disk: both are a write that fails half-way.
#[test]
fn a_full_disk_is_one_line_and_whole_shards_stay() {
    let world = world();
    let cache = "cache align.toml --out cache --crops 2 --shard-samples 8";
    does(&world, cache);
    let whole = files(&world, "cache");
    fs::remove_file(world.path("cache/train-000003.safetensors")).unwrap();
    world.fails_within("-f 4", cache, &["train-000003", "make room"]);
    assert_eq!(files(&world, "cache").len(), whole.len() - 1, "half a shard stayed");
    does(&world, cache);
    assert!(files(&world, "cache") == whole);
}
