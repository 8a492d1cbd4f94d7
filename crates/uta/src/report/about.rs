//! The run in words: model, measurements, data, cost, recipe and machine.

use std::path::Path;

use serde_json::Value;
use uta_train::recipe::TaskKind;

use super::metrics::Model;
use super::run::Run;
use super::words::{date_time, duration, grouped, listed, plain};

/// A line of the recipe, its first part in the colour of `class`.
pub struct RecipeLine<'a> {
    pub class: &'static str,
    pub key: &'a str,
    pub rest: &'a str,
}

/// A sentence or two on what was trained.
pub fn lead(run: &Run) -> String {
    let teacher = run.recipe_text("teacher.path").map(|path| {
        let name = Path::new(path).file_name().unwrap_or_default();
        format!(", {}", name.to_string_lossy())
    });
    let lead = run.task().map_or("", |task| task.words().lead);
    let mut text = lead.replace("{teacher}", &teacher.unwrap_or_default());
    let model = |key: &str| run.recipe_number(&format!("model.{key}"));
    if let (Some(width), Some(depth), Some(size), Some(patch)) =
        (model("width"), model("depth"), model("image_size"), model("patch_size"))
    {
        text += &format!(
            " Width {width}, depth {depth}, images of {size} pixels in patches of {patch}."
        );
    }
    text.trim_start().to_owned()
}

/// Sentences on what was measured, on which sets, against whom.
pub fn measured(run: &Run) -> String {
    let metrics = &run.metrics;
    let of = |set: &&str, metric: &str| metrics.evaluation(Model::Student, set, metric).is_some();
    let mut kinds: Vec<(&str, Vec<&str>)> = Vec::new();
    for (metric, kind) in [
        ("top1", "zero-shot classification on"),
        ("text_to_image/r1", "retrieval on"),
        ("loss", "the loss on"),
    ] {
        let sets = metrics.sets(metric).into_iter().filter(|set| of(set, metric));
        kinds.push((kind, sets.collect()));
    }
    kinds.retain(|(_, sets)| !sets.is_empty());
    if kinds.is_empty() {
        let Some(task) = run.task() else { return String::new() };
        let what = task.words().loss;
        return format!(
            "Measured: nothing but the training itself ({what}). data.val and eval.sets in a recipe add measurements."
        );
    }
    let parts = kinds.iter().map(|(kind, sets)| format!("{kind} {}", listed(sets)));
    let mut text = format!("Measured: {}", parts.collect::<Vec<_>>().join("; "));
    let against =
        [(Model::Teacher, "the teacher on the same pictures"), (Model::Chance, "guessing")];
    let against: Vec<&str> = against
        .into_iter()
        .filter(|(model, _)| metrics.evaluations.iter().any(|e| e.model == *model))
        .map(|(_, words)| words)
        .collect();
    if !against.is_empty() {
        text += &format!(", against {}", against.join(" and "));
    }
    text += ".";
    let seen = |set: &&str| run.reference.sets.get(*set).is_some_and(|about| about.trained_on);
    let known = run.reference.sets.keys().map(String::as_str);
    let (seen, unseen): (Vec<&str>, Vec<&str>) = known.partition(seen);
    if !seen.is_empty() {
        text += &format!(" The run was trained on the pictures of {}", listed(&seen));
        text += &match unseen[..] {
            [] => ".".to_owned(),
            _ => format!(" among others, not on the files of {}.", listed(&unseen)),
        };
    } else if !unseen.is_empty() {
        text += " None of these files is among those that it was trained on.";
    }
    text
}

/// Whether the run's samples are texts alone.
fn trains_on_texts(run: &Run) -> bool {
    run.task().is_some_and(TaskKind::reads_texts_alone)
}

/// The sets that the run was trained and measured on.
pub fn data(run: &Run) -> Vec<(String, String)> {
    let specs = |key: &str| -> Vec<String> {
        let list = run.recipe(key).and_then(toml::Value::as_array).into_iter().flatten();
        let spec = |set: &toml::Value| {
            let weight = set.get("weight").and_then(toml::Value::as_float);
            let weight = weight.map(|weight| format!(" (weight {weight})")).unwrap_or_default();
            set.as_str().or(set.get("data")?.as_str()).map(|spec| format!("{spec}{weight}"))
        };
        list.filter_map(|set| spec(set).or(set.as_str().map(str::to_owned))).collect()
    };
    let mut rows = Vec::new();
    let images = |n: usize| format!("{} image{}", grouped(n as u64), if n == 1 { "" } else { "s" });
    let train = specs("data.train");
    if !train.is_empty() {
        let samples = |n: u64| match trains_on_texts(run) {
            true => {
                format!("the captions of {} sample{}: ", grouped(n), if n == 1 { "" } else { "s" })
            }
            false => images(n as usize) + ": ",
        };
        let count = run.state["data"].as_u64().map(samples);
        rows.push(("trained on".to_owned(), count.unwrap_or_default() + &train.join(", ")));
    }
    if let Some(rejected) = run.state["rejected"].as_u64().filter(|&n| n > 0) {
        let draws = format!("{}, named in rejected.jsonl", grouped(rejected));
        rows.push(("samples that could not be used".to_owned(), draws));
    }
    let val = specs("data.val");
    if !val.is_empty() {
        rows.push(("validation loss on".to_owned(), val.join(", ")));
    }
    let sets = run.recipe("eval.sets").and_then(toml::Value::as_array).into_iter().flatten();
    for set in sets {
        let text = |key: &str| set.get(key).and_then(toml::Value::as_str).unwrap_or_default();
        let about = run.reference.sets.get(text("name")).cloned().unwrap_or_default();
        let (kind, holds) = match (text("kind"), about.images, about.pairs) {
            ("zeroshot", n, _) if n > 0 => {
                ("classified", format!("{}, {} names: ", images(n), grouped(about.classes as u64)))
            }
            ("retrieval", _, (n, captions)) if n > 0 => {
                ("retrieved", format!("{}, {} captions: ", images(n), grouped(captions as u64)))
            }
            (kind, ..) => (kind, String::new()),
        };
        rows.push((format!("{}, {kind}", text("name")), holds + text("data")));
    }
    rows
}

/// Time, steps, images, speed and machine.
pub fn facts(run: &Run) -> Vec<(&'static str, String)> {
    let metrics = &run.metrics;
    let mut facts = Vec::new();
    let mut add = |name, value: Option<String>| facts.extend(value.map(|value| (name, value)));
    let number = |key: &str| run.demo[key].as_f64();
    let seconds = number("seconds").map(|seconds| ("Time", seconds));
    let seconds = seconds.or(metrics.training_seconds(0).map(|seconds| ("Time in steps", seconds)));
    if let Some((name, seconds)) = seconds {
        add(name, Some(duration(seconds)));
    }
    if metrics.steps > 0 {
        let planned = run.recipe_number("train.steps").map(|steps| steps as u64);
        let steps = match planned.filter(|&planned| planned > metrics.steps) {
            Some(planned) => format!("{} of {}", grouped(metrics.steps), grouped(planned)),
            None => grouped(metrics.steps),
        };
        add("Steps", Some(steps));
    }
    if metrics.samples > 0 {
        let epochs = if metrics.epochs > 0.0 {
            format!(" ({:.1} epochs)", metrics.epochs)
        } else {
            String::new()
        };
        let seen = if trains_on_texts(run) { "Texts seen" } else { "Images seen" };
        add(seen, Some(grouped(metrics.samples) + &epochs));
    }
    let speed = number("images_per_second")
        .or_else(|| metrics.curve("images_per_second").and_then(|curve| median(curve)));
    let rate = if trains_on_texts(run) { "Texts per second" } else { "Images per second" };
    add(rate, speed.map(|speed| grouped(speed.round() as u64)));
    let text = |key: &str| run.environment.get(key).map(plain).filter(|text| !text.is_empty());
    let gpu = run.environment.get("gpus").and_then(|gpus| gpus.get(0)).map(plain);
    let device = match (text("device"), gpu, text("cpu")) {
        (Some(device), _, Some(cpu)) if device == "cpu" => Some(cpu),
        (Some(device), Some(gpu), _) if device.starts_with("cuda") => Some(gpu),
        (device, ..) => device,
    };
    let cores = text("cores").filter(|_| device.is_some() && device == text("cpu"));
    let cores = cores.map(|cores| format!(", {cores} cores")).unwrap_or_default();
    add("Device", device.map(|device| device + &cores));
    add("Started", run.environment.get("started").and_then(Value::as_f64).map(date_time));
    facts
}

fn median(curve: &[(f64, f64)]) -> Option<f64> {
    let mut values: Vec<f64> = curve.iter().map(|point| point.1).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The recipe's tables, each with its lines.
pub fn recipe_blocks(text: &str) -> Vec<Vec<RecipeLine<'_>>> {
    let mut blocks: Vec<Vec<RecipeLine<'_>>> = vec![Vec::new()];
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let table = line.starts_with('[');
        let line = match line.split_once('=') {
            _ if table => RecipeLine { class: "table", key: line, rest: "" },
            _ if line.starts_with('#') => RecipeLine { class: "comment", key: line, rest: "" },
            Some((key, _)) => RecipeLine { class: "key", key, rest: &line[key.len()..] },
            None => RecipeLine { class: "value", key: "", rest: line },
        };
        if table {
            blocks.push(Vec::new());
        }
        if let Some(block) = blocks.last_mut() {
            block.push(line);
        }
    }
    blocks.retain(|block| !block.is_empty());
    blocks
}

/// environment.json as names and values, as its writer named them.
pub fn environment(values: &serde_json::Map<String, Value>) -> Vec<(String, String)> {
    let readable = |(name, value): (&String, &Value)| {
        let text = match (name.as_str(), value.as_f64()) {
            ("started" | "finished", Some(seconds)) => date_time(seconds),
            ("command", _) if value.is_array() => {
                let words = value.as_array().into_iter().flatten().map(plain);
                words.collect::<Vec<_>>().join(" ")
            }
            _ => plain(value),
        };
        (name.replace('_', " "), text)
    };
    values.iter().map(readable).filter(|(_, text)| !text.is_empty()).collect()
}
