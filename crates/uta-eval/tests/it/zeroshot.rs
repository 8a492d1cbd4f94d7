//! Zero-shot classification beside open_clip's modules under CLIP_benchmark's protocol: the demo's teacher on emoji that it
//! has never seen (`tests/golden/zeroshot.py`).

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tch::Device;
use uta_eval::{ClassSet, EvalOptions, ZeroShot};
use uta_model::Clip;

#[derive(Deserialize)]
struct Expected {
    acc1: f64,
    acc5: f64,
    mean_per_class_recall: f64,
    predictions: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    file: String,
    label: u32,
    top5: Vec<u32>,
    scores: Vec<f32>,
}

fn root(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(below)
}

#[test]
fn labels_and_accuracies_equal_clip_benchmarks_on_pictures_never_seen() {
    let golden = root("tests/golden/zeroshot");
    let text = std::fs::read_to_string(golden.join("expected.json")).unwrap();
    let expected: Expected = serde_json::from_str(&text).unwrap();
    let model = Clip::load(&root("assets/clip-emoji"), Device::Cpu).unwrap();
    let spec = golden.join("twemoji-small.tar").to_str().unwrap().to_owned();
    let set = ClassSet::open(&[spec], None, None, None).unwrap();
    let task = ZeroShot::new("twemoji", set.source, set.prompts, EvalOptions::default());
    let mut found = Vec::new();
    let report = task.predict(&model, |prediction| found.push(prediction)).unwrap();

    let n = expected.predictions.len();
    assert_eq!((report.n, found.len()), (n, n));
    let (mut equal, mut apart) = (0, 0f32);
    for (ours, theirs) in found.iter().zip(&expected.predictions) {
        assert_eq!((&ours.file, ours.label), (&theirs.file, theirs.label));
        equal += usize::from(ours.top5[0] == theirs.top5[0]);
        let pairs = ours.scores.iter().zip(&theirs.scores);
        apart = pairs.fold(apart, |most, (a, b)| most.max((a - b).abs()));
    }
    assert!(equal as f64 >= 0.995 * n as f64, "{equal} of {n} labels are equal");
    // A level more or less in what a JPEG decodes to.
    assert!(apart < 1e-2, "scores are {apart} apart");
    for (ours, theirs) in [
        (report.top1, expected.acc1),
        (report.top5, expected.acc5),
        (report.mean_per_class, expected.mean_per_class_recall),
    ] {
        assert!((ours - theirs).abs() < 1e-3, "{ours} and {theirs}");
    }
}
