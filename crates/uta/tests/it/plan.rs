//! `uta plan` as its users meet it, and beside what `uta bench step` measures.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn uta(args: &[&str]) -> Output {
    uta_with(&[], args)
}

/// With variables of the environment.
fn uta_with(variables: &[(&str, &str)], args: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut command = Command::new(env!("CARGO_BIN_EXE_uta"));
    // Freed memory goes back at once, so that a peak is that of tensors and not of gaps in the heap.
    command.envs([("MALLOC_MMAP_MAX_", "1000000"), ("MALLOC_MMAP_THRESHOLD_", "65536")]);
    command.envs(variables.iter().copied());
    command.args(args).current_dir(root).stdin(Stdio::null()).output().unwrap()
}

fn json(args: &[&str]) -> Value {
    json_with(&[], args)
}

fn json_with(variables: &[(&str, &str)], args: &[&str]) -> Value {
    let out = uta_with(variables, &[args, &["--json"]].concat());
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// 4,096 images a step of 14.2 million are 3,467 steps an epoch, some 520,000 in 150 epochs.
#[test]
fn the_papers_run_is_planned_without_its_data_and_weights() {
    let recipe = "recipes/pretrain/uta-b14-in21k.toml";
    let plan = json(&["plan", recipe, "--device", "h100", "--count", "64"]);
    let number = |path: &str| plan.pointer(path).unwrap().as_f64().unwrap();
    assert_eq!(number("/steps"), 520_020.0);
    assert_eq!((number("/micro_batch"), number("/student/tokens")), (64.0, 155.0));
    // Rates, FLOPs and hours are those of one and the same run.
    let flops = number("/student/image_flops") + number("/teacher/image_flops");
    let peak = 64.0 * 989e12 * 0.4;
    assert!((number("/live/images_per_second") * flops / peak - 1.0).abs() < 1e-9);
    let images = number("/live/images_per_second") * 3600.0 * number("/live/hours");
    assert!((images / number("/samples") - 1.0).abs() < 1e-9);
    // 257 tokens of 1,024 bytes an image.
    assert_eq!(number("/cache_bytes"), 257.0 * 1024.0 * 14.2e6);
    // Two text towers of 354 million parameters come with the teacher.
    assert!((number("/memory/text") / 1e9 - 2.832).abs() < 1e-3);

    let fewer = ["plan", recipe, "--samples-per-epoch", "4096", "--set", "train.epochs=2"];
    assert_eq!(json(&fewer)["steps"], 2);
    let page = String::from_utf8(uta(&["plan", recipe, "--count", "8"]).stdout).unwrap();
    assert!(page.contains("fits in 72.0 GB") && page.contains("0.59 of that without"), "{page}");
    let page = String::from_utf8(uta(&["plan", recipe]).stdout).unwrap();
    assert!(page.contains("DOES NOT FIT") && page.contains("train.accumulate=8"), "{page}");
}

#[test]
fn views_of_a_sample_lengthen_the_epoch_and_share_one_picture_and_weights_leave_the_cache_as_it_is()
{
    let dir = tempfile::tempdir().unwrap();
    let picture = image::RgbImage::new(2, 2);
    for name in ["a", "b", "c", "d"] {
        picture.save(dir.path().join(format!("{name}.png"))).unwrap();
    }
    let recipe = "recipes/pretrain/uta-b14-in21k.toml";
    let train = format!("data.train=[{{data={:?},weight=0.5}}]", dir.path());
    // A GPU's run is planned where there is none.
    let sets = [train.as_str(), "train.epochs=1024", "train.batch=8", "train.device=cuda"];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let once: Vec<&str> = ["plan", recipe].into_iter().chain(sets).collect();
    let [once, twice] = [json(&once), json(&[&once[..], &["--set", "data.repeats=2"]].concat())];
    // Half of the four pictures, or of their views.
    assert_eq!((&once["steps"], &twice["steps"]), (&256.into(), &512.into()));
    for plan in [&once, &twice] {
        assert_eq!((&plan["epochs"], &plan["samples_per_epoch"]), (&1024.0.into(), &2.into()));
        assert_eq!(plan["cache_bytes"], 4 * 257 * 1024);
    }
    let traffic = |plan: &Value| plan["live"]["data_bytes_per_second"].as_f64().unwrap();
    assert!((traffic(&once) / traffic(&twice) - 2.0).abs() < 1e-9);
}

#[test]
fn another_teachers_width_is_planned_with_where_none_is_written() {
    let recipe = "recipes/pretrain/uta-b14-in21k.toml";
    let flops = |sets: &[&str]| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let plan = json(&["plan", recipe].into_iter().chain(sets).collect::<Vec<_>>());
        plan["student"]["image_flops"].as_f64().unwrap()
    };
    // Of 155 tokens, a head of 768 by 256 channels less, forward and backward.
    let narrower = flops(&[]) - flops(&["teacher.arch=vit-l-14"]);
    assert_eq!(narrower, 6.0 * 155.0 * 768.0 * 256.0);
    let written = flops(&["teacher.arch=vit-l-14", "model.out=768"]);
    assert_eq!(flops(&["teacher.arch=vit-l-14"]), written);
}

#[test]
fn a_run_with_cached_targets_is_planned_without_a_teacher() {
    let recipe = "recipes/pretrain/uta-b14-in21k.toml";
    let live = json(&["plan", recipe, "--count", "64"]);
    // Before there is a cache: the teacher's sizes are its preset's.
    let set = ["--set", "teacher.cache=no/such/folder"];
    let cached = json(&[&["plan", recipe, "--count", "64"], &set[..]].concat());
    let number = |plan: &Value, path: &str| plan.pointer(path).unwrap().as_f64().unwrap();
    assert_eq!(
        (number(&cached, "/teacher/run_flops"), number(&cached, "/memory/teacher")),
        (0.0, 0.0)
    );
    assert_eq!(number(&cached, "/student/share"), 1.0);
    assert_eq!(2.0 * number(&cached, "/memory/text"), number(&live, "/memory/text"));
    // 155 rows of 1,024 bytes an image.
    let [rate, images] =
        ["/cache_bytes_per_second", "/cached/images_per_second"].map(|path| number(&cached, path));
    assert!((rate / images - 155.0 * 1024.0).abs() < 1e-6);
    let page = String::from_utf8(uta(&[&["plan", recipe], &set[..]].concat()).stdout).unwrap();
    assert!(page.contains("targets are read from the cache"), "{page}");
}

#[test]
fn what_cannot_be_planned_is_said_in_one_line() {
    let recipe = "recipes/pretrain/uta-b14-in21k.toml";
    for (args, words) in [
        (&["--device", "h900"][..], "h100, h200 and cpu"),
        (&["--count", "7"], "train.batch = 4096: must be a multiple of 7"),
        (&["--count", "4", "--set", "data.repeats=2048"], "must be a multiple of 8192"),
        (&["--set", "train.device=gpu"], "none of auto, cpu, cuda, cuda:N"),
        (&["--utilisation", "40"], "at most 1"),
        (&["--set", "teacher={path=\"no/such\"}"], "no/such: not there; say what it is with"),
        (
            &["--set", "teacher.arch=vit-l-14", "--set", "model.out=1024"],
            "model.out = 1024: must be the teacher's, 768, which it is where it isn't written",
        ),
        (&["--set", "model.preset=uta-b16"], "model.patch_size = 16: must be the teacher's, 14"),
    ] {
        let out = uta(&[&["plan", recipe], args].concat());
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(words) && text.trim().lines().count() == 1, "{args:?}: {text}");
    }
    // Every row of the ablations, whose teachers aren't here.
    let rows =
        fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/ablation")).unwrap();
    let rows: Vec<_> = rows.map(|row| row.unwrap().path().display().to_string()).collect();
    assert_eq!(rows.len(), 15);
    for row in rows {
        let out = uta(&["plan", &row, "--json"]);
        assert!(out.status.success(), "{row}: {}", String::from_utf8_lossy(&out.stderr));
        let plan: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert!(plan["steps"].as_u64().unwrap() > 300_000, "{row}: {plan}");
    }
    let out = uta(&["plan", "recipes/mini/clip-emoji.toml"]);
    assert!(
        String::from_utf8_lossy(&out.stderr)
            .contains("task \"contrastive\": its runs can't be planned yet")
    );
}

/// Between two batches, and between checkpointed blocks and others, so that what a process needs for itself falls out. What is
/// kept depends on the kernels that a processor gets: those of poorer ones are tried on this one too.
#[test]
fn memory_is_what_was_planned_by_whichever_kernels() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("r.toml");
    let text = "task = \"align\"\n[model]\npreset = \"uta-b14\"\nwidth = 256\nheads = 4\nhidden = 682\ndepth = 3\n\
        out = 1024\n[teacher]\npath = \"none\"\narch = \"uta-ti14\"\n[mask]\nratio = 0.4\n[data]\ntrain = [\"none\"]\n\
        [train]\nsteps = 1\nbatch = 64\nprecision = \"bf16\"\ndevice = \"cpu\"\n";
    fs::write(&recipe, text).unwrap();
    let recipe = recipe.to_str().unwrap();
    // A CPU without bf16 takes minutes for it.
    let narrow = torch_ext::cpu_has_bf16();
    let no_tiles = ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16");
    let apart = ("UTA_FUSE_ATTENTION", "0");
    for (precision, variables, runs) in [
        ("train.precision=f32", &[][..], true),
        ("train.precision=f32", &[apart], true),
        ("train.precision=bf16", &[], narrow),
        ("train.precision=bf16", &[no_tiles], narrow && torch_ext::cpu_has_tiles()),
    ] {
        if !runs {
            continue;
        }
        let with = |command: &[&str], sets: &[&str]| {
            let sets = sets.iter().flat_map(|set| ["--set", set]);
            let sets = sets.chain(["--set", precision]);
            json_with(variables, &command.iter().copied().chain(sets).collect::<Vec<_>>())
        };
        let measured = |batch: &str, sets: &[&str]| {
            let bench =
                ["bench", "step", recipe, "--part", "student", "--steps", "1", "--batch", batch];
            with(&bench, sets)["peak_memory_bytes"].as_f64().unwrap()
        };
        let planned = |batch: &str, sets: &[&str]| {
            let batch = format!("train.batch={batch}");
            let plan = ["plan", recipe, "--device", "cpu", "--set", &batch];
            with(&plan, sets)["memory"]["step"].as_f64().unwrap()
        };
        let checkpointed = ["train.checkpoint_blocks=true"];
        let [less, more] = ["8", "32"].map(|batch| (measured(batch, &[]), planned(batch, &[])));
        let saved = (measured("32", &checkpointed), planned("32", &checkpointed));
        for (what, (large, small)) in
            [("24 images take", (more, less)), ("checkpointing saves", (more, saved))]
        {
            let (measured, planned) = (large.0 - small.0, large.1 - small.1);
            let off = (measured / planned - 1.0).abs();
            let line = format!("{precision} {variables:?}: {what} {measured}, planned {planned}");
            println!("{line}: {off:.3}");
            assert!(off < 0.15, "{line}");
        }
    }
}
