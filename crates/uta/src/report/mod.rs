//! RUN/report.html: what a run did, what it cost and what came of it, on one page.
//!
//! The page is made from the files of the run directory alone, so that it can be made again at any
//! time, of a run in progress too. It is self-contained: style, curves and pictures are inside.
//! A file that is missing takes its section with it.

mod axes;
mod chart;
pub mod metrics;
pub mod plot;
pub mod svg;

use crate::masks;
use crate::reference::{self, Reference, Shown};
use anyhow::Context;
use askama::Template;
use axes::Unit;
use base64::Engine as _;
use chart::{Chart, HEIGHT, Series, Stroke, WIDTH};
use metrics::{Metrics, Model};
use serde::Deserialize;
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::Path;
use svg::Drawing;
use toml::Table;
use uta_data::mask::{MaskGenerator, MaskKind};
use uta_model::safetensors_io::write_atomically;

/// Makes `RUN/report.html` of the run in `run_dir`.
pub fn write(run_dir: &Path) -> anyhow::Result<()> {
    let page = Page::of(&Run::read(run_dir)?)?.render()?;
    let path = run_dir.join("report.html");
    write_atomically(&path, |file| file.write_all(page.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// What a run directory holds.
struct Run {
    name: String,
    /// recipe.toml as text and as values.
    recipe: Option<(String, Table)>,
    environment: serde_json::Map<String, Value>,
    metrics: Metrics,
    demo: Value,
    reference: Reference,
    /// `state.json` of the newest checkpoint.
    state: Value,
    samples: Vec<Sample>,
}

/// A picture with what it is called.
struct Sample {
    shown: Shown,
    data_uri: String,
}

#[derive(Deserialize)]
struct Samples {
    samples: Vec<Shown>,
}

impl Run {
    fn read(dir: &Path) -> anyhow::Result<Self> {
        let whole = fs::canonicalize(dir)
            .with_context(|| format!("cannot read the run directory {}", dir.display()))?;
        let name = whole.file_name().map_or("run".into(), |name| name.to_string_lossy().into());
        let recipe = match read(dir, "recipe.toml")? {
            None => None,
            Some(text) => {
                let table = text.parse().with_context(|| in_file(dir, "recipe.toml"))?;
                Some((text, table))
            }
        };
        let demo: Option<Value> = json(dir, "demo.json")?;
        let reference: Reference = json(dir, reference::FILE)?.unwrap_or_default();
        let samples: Option<Samples> = json(dir, reference::PICTURES)?;
        let latest = read(dir, "checkpoints/latest")?.unwrap_or_default();
        let state = json(dir, &format!("checkpoints/{}/state.json", latest.trim()))?;
        let mut metrics = match dir.join("metrics.jsonl").exists() {
            true => Metrics::read(dir)?,
            false => Metrics::default(),
        };
        add_demo(&mut metrics, demo.as_ref());
        add_reference(&mut metrics, &reference);
        Ok(Self {
            name,
            recipe,
            environment: json(dir, "environment.json")?.unwrap_or_default(),
            metrics,
            demo: demo.unwrap_or_default(),
            reference,
            state: state.unwrap_or_default(),
            samples: samples.map_or_else(Vec::new, |list| with_pictures(dir, list.samples)),
        })
    }

    /// A value of the recipe, such as `model.width`.
    fn recipe(&self, path: &str) -> Option<&toml::Value> {
        let (_, table) = self.recipe.as_ref()?;
        let mut parts = path.split('.');
        let first = table.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))
    }

    fn recipe_number(&self, path: &str) -> Option<f64> {
        let value = self.recipe(path)?;
        value.as_float().or_else(|| value.as_integer().map(|i| i as f64))
    }

    fn recipe_text(&self, path: &str) -> Option<&str> {
        self.recipe(path)?.as_str()
    }
}

fn in_file(dir: &Path, file: &str) -> String {
    format!("cannot understand {}", dir.join(file).display())
}

/// The text of a file of the run, if it is there.
fn read(dir: &Path, file: &str) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(dir.join(file)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(error).with_context(|| format!("cannot read {}", dir.join(file).display()))
        }
    }
}

fn json<T: serde::de::DeserializeOwned>(dir: &Path, file: &str) -> anyhow::Result<Option<T>> {
    let text = read(dir, file)?;
    text.map(|text| serde_json::from_str(&text).with_context(|| in_file(dir, file))).transpose()
}

/// Takes over the final scores of demo.json, where student and teacher were measured alike:
/// {"student": {"set": {"metric": value}}, "teacher": the same, "chance": {"metric": value}}.
fn add_demo(metrics: &mut Metrics, demo: Option<&Value>) {
    let Some(demo) = demo else { return };
    let step = metrics.steps as f64;
    for (key, model) in [("student", Model::Student), ("teacher", Model::Teacher)] {
        for (set, numbers) in demo[key].as_object().into_iter().flatten() {
            for (metric, value) in numbers.as_object().into_iter().flatten() {
                // Evaluators write text_to_image/r1 for what is text_to_image_r1 there.
                let metric = match metric.rsplit_once("_r") {
                    Some((way, k)) if k.parse::<u32>().is_ok() => format!("{way}/r{k}"),
                    _ => metric.clone(),
                };
                if let Some(value) = value.as_f64() {
                    metrics.add_evaluation(model, set, &metric, (step, value));
                }
            }
        }
    }
    for (metric, value) in demo["chance"].as_object().into_iter().flatten() {
        let sets: Vec<String> = metrics.sets(metric).into_iter().map(str::to_owned).collect();
        let Some(value) = value.as_f64() else { continue };
        for set in sets {
            metrics.add_evaluation(Model::Chance, &set, metric, (step, value));
        }
    }
}

/// Takes over what the teacher reaches, and what guessing does, on every set that was evaluated.
fn add_reference(metrics: &mut Metrics, reference: &Reference) {
    let step = metrics.steps as f64;
    for (set, numbers) in &reference.teacher {
        for (metric, &value) in numbers {
            metrics.add_evaluation(Model::Teacher, set, metric, (step, value));
        }
    }
    let evaluated: Vec<(String, String)> =
        metrics.evaluations.iter().map(|e| (e.set.clone(), e.metric.clone())).collect();
    for (set, metric) in evaluated {
        if let Some(chance) = reference.sets.get(&set).and_then(|about| about.chance(&metric)) {
            metrics.add_evaluation(Model::Chance, &set, &metric, (step, chance));
        }
    }
}

/// The samples whose pictures are there, with them.
fn with_pictures(dir: &Path, samples: Vec<Shown>) -> Vec<Sample> {
    let load = |shown: Shown| {
        let kind = match Path::new(&shown.image).extension()?.to_str()? {
            "png" => "png",
            "jpg" | "jpeg" => "jpeg",
            "webp" => "webp",
            _ => return None,
        };
        let bytes = fs::read(dir.join(&shown.image)).ok()?;
        let text = base64::engine::general_purpose::STANDARD.encode(bytes);
        Some(Sample { shown, data_uri: format!("data:image/{kind};base64,{text}") })
    };
    samples.into_iter().filter_map(load).collect()
}

/// What the template shows, in its order.
#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    title: &'a str,
    eyebrow: String,
    lead: String,
    measured: String,
    headlines: Vec<Headline>,
    facts: Vec<(&'static str, String)>,
    tables: Vec<ScoreTable>,
    tables_have_teacher: bool,
    /// Where the bars of all tables end, in words.
    scale: String,
    data: Vec<(String, String)>,
    picture_sets: Vec<PictureSet<'a>>,
    pictures_named: bool,
    /// Each an SVG.
    charts: Vec<String>,
    mask: Option<MaskFigure>,
    recipe: Vec<Vec<RecipeLine<'a>>>,
    environment: Vec<(String, String)>,
    version: &'static str,
}

/// A number in large letters.
struct Headline {
    set: String,
    figure: String,
    /// What it is, and what it is held against, a line each.
    lines: Vec<String>,
}

/// One metric on every set, or every metric on one set. Columns that would be empty are left out.
struct ScoreTable {
    title: String,
    has_bars: bool,
    has_start: bool,
    has_teacher: bool,
    has_ratio: bool,
    has_chance: bool,
    rows: Vec<ScoreRow>,
}

struct ScoreRow {
    name: String,
    /// Whether the model was trained on these pictures.
    trained_on: bool,
    bar: Option<Bar>,
    start: String,
    student: String,
    teacher: String,
    ratio: String,
    chance: String,
}

/// In percent of the scale, which all tables share.
struct Bar {
    student: f64,
    teacher: Option<f64>,
}

struct PictureSet<'a> {
    set: &'a str,
    /// How many of the pictures are named rightly at once, by whom; of the whole set too.
    right: String,
    named: bool,
    pictures: Vec<Picture<'a>>,
}

struct Picture<'a> {
    data_uri: &'a str,
    truth: &'a str,
    guesses: Vec<Guess<'a>>,
    /// The teacher's first.
    teacher: Option<Guess<'a>>,
}

struct Guess<'a> {
    name: &'a str,
    right: bool,
    cosine: f64,
}

struct MaskFigure {
    figure: String,
    caption: String,
}

/// A line of the recipe, its first part in the colour of `class`.
struct RecipeLine<'a> {
    class: &'static str,
    key: &'a str,
    rest: &'a str,
}

impl<'a> Page<'a> {
    fn of(run: &'a Run) -> anyhow::Result<Self> {
        let picture_sets = picture_sets(run);
        let scale = scale(&run.metrics);
        let tables = score_tables(run, scale);
        let eyebrow = match run.recipe_text("task") {
            Some("align") => "Unmasked Token Alignment".into(),
            Some("contrastive") => "Contrastive pre-training".into(),
            Some(task) => task.to_owned(),
            None => "Training run".into(),
        };
        Ok(Self {
            title: &run.name,
            eyebrow,
            lead: lead(run),
            measured: measured(run),
            headlines: headlines(run),
            facts: facts(run),
            tables_have_teacher: tables.iter().any(|table| table.has_teacher),
            tables,
            scale: format!("{:.0} %", 100.0 * scale),
            data: data(run),
            pictures_named: picture_sets.iter().any(|set| set.named),
            picture_sets,
            charts: charts(&run.metrics),
            mask: mask_figure(run)?,
            recipe: run.recipe.as_ref().map_or_else(Vec::new, |(text, _)| recipe_blocks(text)),
            environment: environment(&run.environment),
            version: env!("CARGO_PKG_VERSION"),
        })
    }
}

/// What was trained, in a sentence or two.
fn lead(run: &Run) -> String {
    let mut text = match run.recipe_text("task") {
        Some("align") => {
            let teacher = run.recipe_text("teacher.path").map(|path| {
                let name = Path::new(path).file_name().unwrap_or_default();
                format!(", {}", name.to_string_lossy())
            });
            format!(
                "A vision transformer trained on images alone: the tokens of its visible patches are aligned with those \
                 of a frozen CLIP (the teacher{}), whose text encoder then names what it sees.",
                teacher.unwrap_or_default()
            )
        }
        Some("contrastive") => "An image and a text encoder trained together, so that a picture \
                                and its caption meet."
            .to_owned(),
        _ => String::new(),
    };
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

/// What was measured, on what, against what.
fn measured(run: &Run) -> String {
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
        let what = match run.recipe_text("task") {
            Some("align") => "its loss is minus the mean cosine of its tokens with the teacher's",
            _ => return String::new(),
        };
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

/// Names as a sentence has them: a, b and c.
fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// What the run was trained and measured on.
fn data(run: &Run) -> Vec<(String, String)> {
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
        let count = run.state["data"].as_u64().map(|n| images(n as usize) + ": ");
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

/// The main metric of a run: the first evaluated share, as top1.
fn main_metric(metrics: &Metrics) -> Option<&str> {
    metrics.evaluated().into_iter().find(|metric| Unit::of(metric) == Unit::Percent)
}

/// The student on the first sets of the recipe's evaluation, or else of the metrics, beside its teacher and chance.
fn headlines(run: &Run) -> Vec<Headline> {
    const SHOWN: usize = 3;
    let metrics = &run.metrics;
    let Some(metric) = main_metric(metrics) else { return cosine_headline(metrics) };
    let chosen: Vec<&str> = run
        .recipe("eval.sets")
        .and_then(toml::Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|set| set.get("name")?.as_str())
        .collect();
    let mut sets = metrics.sets(metric);
    if sets.iter().any(|set| chosen.contains(set)) {
        sets.retain(|set| chosen.contains(set));
    }
    let unit = Unit::of(metric);
    let name = plot::title(metric);
    let show = |set: &str| {
        let last = |model| latest(metrics, model, set, metric);
        let student = last(Model::Student)?;
        let about = run.reference.sets.get(set).cloned().unwrap_or_default();
        let mut lines = vec![match (about.images, about.classes) {
            (0, _) | (_, 0) => name.clone(),
            (images, names) => format!(
                "{name} among {} names, on {} pictures{}",
                grouped(names as u64),
                grouped(images as u64),
                if about.trained_on { " that it was trained on" } else { "" }
            ),
        }];
        if let Some(teacher) = last(Model::Teacher) {
            let ratio = if teacher > 0.0 { student / teacher } else { f64::NAN };
            let ratio =
                if ratio.is_finite() { format!(" (ratio {ratio:.2})") } else { String::new() };
            lines.push(format!("teacher {}{ratio}", unit.show(teacher)));
        }
        lines.extend(last(Model::Chance).map(|chance| format!("chance {}", unit.show(chance))));
        Some(Headline { set: set.to_owned(), figure: unit.show(student), lines })
    };
    sets.into_iter().filter_map(show).take(SHOWN).collect()
}

/// Where no share was measured: how close the student's tokens come to the teacher's.
fn cosine_headline(metrics: &Metrics) -> Vec<Headline> {
    let validation = latest(metrics, Model::Student, "validation", "cosine");
    let training = metrics.curve("cosine").and_then(|curve| curve.last()).map(|point| point.1);
    let (set, value) = match (validation, training) {
        (Some(value), _) => ("validation", value),
        (None, Some(value)) => ("last training batch", value),
        _ => return Vec::new(),
    };
    let lines = vec![
        "mean cosine of the student's tokens with the teacher's".to_owned(),
        "teacher 1, by definition; directions at random 0".to_owned(),
    ];
    vec![Headline { set: set.to_owned(), figure: Unit::Number.show(value), lines }]
}

fn latest(metrics: &Metrics, model: Model, set: &str, metric: &str) -> Option<f64> {
    metrics.evaluation(model, set, metric)?.last().map(|point| point.1)
}

/// What the run cost.
fn facts(run: &Run) -> Vec<(&'static str, String)> {
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
        add("Images seen", Some(grouped(metrics.samples) + &epochs));
    }
    let speed = number("images_per_second")
        .or_else(|| metrics.curve("images_per_second").and_then(|curve| median(curve)));
    add("Images per second", speed.map(|speed| grouped(speed.round() as u64)));
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

/// One table for each metric that several sets have, a row a set; then one for each set with metrics
/// of its own, a row a metric.
fn score_tables(run: &Run, scale: f64) -> Vec<ScoreTable> {
    let metrics = &run.metrics;
    let (shared, own): (Vec<&str>, Vec<&str>) =
        metrics.evaluated().into_iter().partition(|metric| metrics.sets(metric).len() > 1);
    let mut tables: Vec<ScoreTable> = Vec::new();
    for metric in shared {
        let rows = metrics.sets(metric).into_iter().map(|set| (set.to_owned(), set, metric));
        tables.extend(score_table(run, &plot::title(metric), rows.collect(), scale));
    }
    let mut sets: Vec<&str> = Vec::new();
    for set in own.iter().flat_map(|metric| metrics.sets(metric)) {
        if !sets.contains(&set) {
            sets.push(set);
        }
    }
    for set in sets {
        let rows = own.iter().filter(|metric| metrics.sets(metric).contains(&set));
        let rows = rows.map(|metric| (plot::title(metric), set, *metric));
        tables.extend(score_table(run, set, rows.collect(), scale));
    }
    tables
}

/// Where the bars of all tables end: a round share that none exceeds.
fn scale(metrics: &Metrics) -> f64 {
    let shares = metrics.evaluations.iter().filter(|e| Unit::of(&e.metric) == Unit::Percent);
    let largest = shares
        .filter(|e| e.model != Model::Chance)
        .filter_map(|e| e.curve.last())
        .fold(0.0, |largest, point| f64::max(largest, point.1));
    [0.01, 0.02, 0.05, 0.1, 0.2, 0.5].into_iter().find(|&end| largest <= end).unwrap_or(1.0)
}

/// A table of the given rows: name, set, metric. `None` when only chance has been measured.
fn score_table(
    run: &Run,
    title: &str,
    rows: Vec<(String, &str, &str)>,
    scale: f64,
) -> Option<ScoreTable> {
    let metrics = &run.metrics;
    let last = |model, set: &str, metric: &str| latest(metrics, model, set, metric);
    let row = |(name, set, metric): (String, &str, &str)| {
        let unit = Unit::of(metric);
        let show = |value: Option<f64>| value.map_or("–".to_owned(), |value| unit.show(value));
        let student = last(Model::Student, set, metric);
        let teacher = last(Model::Teacher, set, metric);
        student.or(teacher)?;
        let start = metrics.evaluation(Model::Student, set, metric).and_then(|curve| {
            let first = curve.first().filter(|first| first.0 == 0.0 && curve.len() > 1);
            first.map(|first| first.1)
        });
        let is_share = unit == Unit::Percent;
        let length = |value: f64| 100.0 * value / scale;
        let bar = student.filter(|_| is_share);
        let ratio = teacher.filter(|&teacher| is_share && teacher > 0.0).zip(student);
        Some(ScoreRow {
            trained_on: run.reference.sets.get(set).is_some_and(|about| about.trained_on),
            name,
            bar: bar.map(|student| Bar { student: length(student), teacher: teacher.map(length) }),
            start: show(start),
            student: show(student),
            teacher: show(teacher),
            ratio: ratio.map_or("–".into(), |(t, s)| format!("{:.2}", s / t)),
            chance: show(last(Model::Chance, set, metric)),
        })
    };
    let rows: Vec<ScoreRow> = rows.into_iter().filter_map(row).collect();
    let any = |rows: &[ScoreRow], column: fn(&ScoreRow) -> &String| {
        rows.iter().any(|row| column(row) != "–")
    };
    (!rows.is_empty()).then(|| ScoreTable {
        title: sentence(title),
        has_bars: rows.iter().any(|row| row.bar.is_some()),
        has_start: any(&rows, |row| &row.start),
        has_teacher: any(&rows, |row| &row.teacher),
        has_ratio: any(&rows, |row| &row.ratio),
        has_chance: any(&rows, |row| &row.chance),
        rows,
    })
}

/// The pictures by their set, in the order of first appearance.
fn picture_sets(run: &Run) -> Vec<PictureSet<'_>> {
    let mut sets: Vec<PictureSet<'_>> = Vec::new();
    for Sample { shown, data_uri } in &run.samples {
        let at = sets.iter().position(|group| group.set == shown.set).unwrap_or_else(|| {
            let right = String::new();
            sets.push(PictureSet { set: &shown.set, right, named: false, pictures: vec![] });
            sets.len() - 1
        });
        sets[at].pictures.push(Picture {
            data_uri,
            truth: &shown.truth,
            guesses: shown.top5.iter().map(|guess| guessed(guess, &shown.truth)).collect(),
            teacher: shown.teacher.first().map(|guess| guessed(guess, &shown.truth)),
        });
    }
    for group in &mut sets {
        let pictures = &group.pictures;
        group.named = pictures.iter().any(|picture| !picture.guesses.is_empty());
        let right = |guess: fn(&Picture<'_>) -> Option<bool>| {
            let answers: Vec<bool> = pictures.iter().filter_map(guess).collect();
            (!answers.is_empty()).then(|| answers.into_iter().filter(|&right| right).count())
        };
        let by = [
            ("student", Model::Student, right(|p| p.guesses.first().map(|guess| guess.right))),
            ("teacher", Model::Teacher, right(|p| p.teacher.as_ref().map(|guess| guess.right))),
        ];
        let said = by.into_iter().filter_map(|(who, model, right)| {
            let whole = latest(&run.metrics, model, group.set, "top1");
            let whole = whole.map(|share| format!(" ({} of all)", Unit::Percent.show(share)));
            Some(format!("{who} {} of {}{}", right?, pictures.len(), whole.unwrap_or_default()))
        });
        group.right = said.collect::<Vec<_>>().join(", ");
    }
    sets
}

fn guessed<'a>((name, cosine): &'a (String, f64), truth: &str) -> Guess<'a> {
    Guess { name, right: name == truth, cosine: *cosine }
}

/// Evaluations first, then the loss and its parts, then how the optimiser and the machine fared.
fn charts(metrics: &Metrics) -> Vec<String> {
    let mut charts = Vec::new();
    for metric in metrics.evaluated() {
        // Recall at 5 and 10 move as recall at 1 does; the tables have them.
        let minor = metric.ends_with("/r5") || metric.ends_with("/r10");
        // One measurement is a number, not a curve.
        let moves = metrics.sets(metric).iter().any(|set| {
            let curve = metrics.evaluation(Model::Student, set, metric);
            curve.is_some_and(|curve| curve.len() > 1)
        });
        if metrics.curve(metric).is_none() && moves && !minor {
            charts.push(evaluation_chart(metrics, metric));
        }
    }
    let part_of = |name: &str| {
        let whole = name.split_once('_').map(|(whole, _)| whole);
        whole.filter(|whole| metrics.curve(whole).is_some()).map(str::to_owned)
    };
    for (name, curve) in &metrics.train {
        if part_of(name).is_some() {
            continue;
        }
        let mut chart = plot::chart_of(name);
        let parts = metrics.train.iter().filter(|(part, _)| part_of(part).as_ref() == Some(name));
        let sets = metrics.sets(name);
        let mut hue = 1;
        for (part, curve) in parts {
            chart.push(plot::title(part), hue, curve);
            hue += 1;
        }
        let label = if hue == 1 { "training".to_owned() } else { plot::title(name) };
        chart.push(label, 0, curve);
        for set in sets {
            if let Some(points) = metrics.evaluation(Model::Student, set, name) {
                let (label, points) = (set.to_owned(), points.clone());
                chart.series.push(Series { label, hue: Some(hue), stroke: Stroke::Line, points });
                hue += 1;
            }
        }
        charts.push(chart);
    }
    charts
        .iter_mut()
        .map(|chart| {
            chart.title = sentence(&chart.title);
            let mut drawing = Drawing::new(WIDTH, HEIGHT);
            chart.draw(&mut drawing);
            drawing.inline(&format!("{} over training steps", chart.title))
        })
        .collect()
}

/// A metric over the steps on every set, with the levels of the teacher and of chance.
fn evaluation_chart(metrics: &Metrics, metric: &str) -> Chart {
    let mut chart = plot::chart_of(metric);
    let sets = metrics.sets(metric);
    let mut chance = None;
    let mut teachers = 0;
    // What was measured once is in the tables.
    let moves = |set: &&str| {
        metrics.evaluation(Model::Student, set, metric).is_some_and(|curve| curve.len() > 1)
    };
    for (hue, set) in sets.iter().filter(|set| moves(set)).enumerate() {
        if let Some(curve) = metrics.evaluation(Model::Teacher, set, metric) {
            let points = curve.clone();
            let label = String::new();
            chart.series.push(Series { label, hue: Some(hue), stroke: Stroke::Reference, points });
            teachers += 1;
        }
        if let Some(curve) = metrics.evaluation(Model::Student, set, metric) {
            let (label, points) = ((*set).to_owned(), curve.clone());
            chart.series.push(Series { label, hue: Some(hue), stroke: Stroke::Line, points });
        }
        chance = chance.or(metrics.evaluation(Model::Chance, set, metric));
    }
    if teachers > 0 {
        // An entry of the legend for all dashed lines.
        let label = if teachers > 1 { "teacher, same colour" } else { "teacher" };
        let series =
            Series { label: label.into(), hue: Some(0), stroke: Stroke::Reference, points: vec![] };
        chart.series.push(series);
    }
    if let Some(points) = chance.cloned() {
        let label = "chance".to_owned();
        chart.series.push(Series { label, hue: None, stroke: Stroke::Reference, points });
    }
    chart
}

fn sentence(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().chain(rest).collect())
}

/// The masks of the run, when its task draws any.
fn mask_figure(run: &Run) -> anyhow::Result<Option<MaskFigure>> {
    let masking = matches!(run.recipe_text("task"), Some("align" | "mim" | "uta-mim"));
    let kind = run.recipe_text("mask.kind").and_then(|kind| kind.parse::<MaskKind>().ok());
    let numbers = ["mask.ratio", "model.image_size", "model.patch_size"];
    let [ratio, size, patch] = numbers.map(|key| run.recipe_number(key));
    let (true, Some(kind), Some(ratio), Some(size), Some(patch)) =
        (masking && kind != Some(MaskKind::None), kind, ratio, size, patch)
    else {
        return Ok(None);
    };
    let side = (size / patch) as usize;
    let Ok(generator) = MaskGenerator::new(kind, ratio, (side, side)) else { return Ok(None) };
    let seed = run.recipe_number("train.seed").unwrap_or(0.0) as u64;
    let figure = masks::report_figure(&generator, ratio, seed)?.inline("masking probabilities");
    let shares = |kind| -> anyhow::Result<String> {
        let generator = MaskGenerator::new(kind, ratio, (side, side))?;
        let (low, high) = masks::extremes(&generator, seed);
        Ok(format!("{:.0} to {:.0} %", 100.0 * low, 100.0 * high))
    };
    let (own, beside) = (
        shares(kind)?,
        match kind {
            MaskKind::BlockReversed => format!(
                " Plain block-wise masking, beside it, masks {}: the centre far more often than the rim. Reversing half of \
             the masks makes that more even, not quite even.",
                shares(MaskKind::Block)?
            ),
            _ => String::new(),
        },
    );
    let caption = format!(
        "Of {side}\u{00d7}{side} patches the student sees {} in each image. How often each is masked, over 5000 images: {own} \
         of the time, depending on its place; below, the masks of four of this run's images.{beside}",
        generator.kept_count()
    );
    Ok(Some(MaskFigure { figure, caption }))
}

/// The recipe's tables, each with its lines.
fn recipe_blocks(text: &str) -> Vec<Vec<RecipeLine<'_>>> {
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
fn environment(values: &serde_json::Map<String, Value>) -> Vec<(String, String)> {
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

/// A JSON value as a person would write it.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Object(map) => {
            map.iter().map(|(k, v)| format!("{k} {}", plain(v))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

/// 1234567 as 1,234,567.
pub(crate) fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds as a person says them: 48 s, 5 min 20 s, 3 h 07 min.
fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match seconds {
        0..=59 => format!("{seconds} s"),
        60..=3599 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", grouped(seconds / 3600), seconds / 60 % 60),
    }
}

/// Seconds since 1970 as a date and time of day; a calendar crate for this one line would be much.
///
/// The conversion counts from 1 March, so that the leap day ends a year.
fn date_time(seconds: f64) -> String {
    let seconds = seconds as i64;
    let (days, clock) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let days = days + 719_468; // since 0000-03-01
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", clock / 3600, clock / 60 % 60)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn page(files: &[(&str, &str)]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("my <run>");
        fs::create_dir_all(run.join("samples")).unwrap();
        fs::create_dir_all(run.join("checkpoints/step-00000002")).unwrap();
        for (name, text) in files {
            fs::write(run.join(name), text).unwrap();
        }
        write(&run).unwrap();
        fs::read_to_string(run.join("report.html")).unwrap()
    }

    const RECIPE: &str = "task = \"align\"\n\n[model]\nimage_size = 48\npatch_size = 8\nwidth = 96\n\
                          depth = 4\n\n[data]\ntrain = [\"photos\"]\n\n[mask]\nkind = \"block-reversed\"\nratio = 0.5\n\n[train]\nsteps = 4\n";
    const METRICS: &str = r#"
{"step":0,"eval":"twemoji","top1":0.001,"top5":0.004}
{"step":0,"eval":"twemoji","model":"teacher","top1":0.2,"top5":0.4}
{"step":1,"samples":256,"epoch":0.1,"loss":-0.1,"cosine":0.1,"cosine_cls":0.05,"lr":0.001,"grad_norm":1.5,"images_per_second":64}
{"step":2,"samples":512,"epoch":0.2,"loss":-0.5,"cosine":0.5,"cosine_cls":0.4,"lr":0.002,"grad_norm":0.5,"images_per_second":64}
{"step":2,"eval":"validation","loss":-0.45}
{"step":2,"eval":"twemoji","top1":0.17,"top5":0.35}
"#;

    #[test]
    fn the_page_tells_results_cost_curves_masks_pictures_and_settings() {
        let samples = r#"{"samples":[{"image":"samples/a.png","truth":"red <apple>","set":"twemoji",
            "top5":[["red <apple>",0.8],["pear",0.2]],"teacher":[["pear",0.9]]},
            {"image":"samples/gone.png","truth":"ghost","set":"twemoji","top5":[]}]}"#;
        let html = page(&[
            ("recipe.toml", RECIPE),
            ("metrics.jsonl", METRICS),
            (
                "environment.json",
                r#"{"cpu":"Some CPU","device":"cpu","cores":2,"started":951827696}"#,
            ),
            ("samples.json", samples),
            ("samples/a.png", "not really a picture"),
            (
                "demo.json",
                r#"{"seconds":352.0, "chance":{"top1":0.0005},
                "teacher":{"openmoji":{"top1":0.1,"n":1607,"text_to_image_r1":0.3}},
                "student":{"openmoji":{"top1":0.09,"n":1607,"text_to_image_r1":0.12}}}"#,
            ),
            (
                "reference.json",
                r#"{"sets":{"openmoji":{"images":1607,"classes":1613,"pairs":[1607,3214],"trained_on":true},
                "twemoji":{"images":1613,"classes":2000}},
                "teacher":{"openmoji":{"text_to_image/r1":0.3}}}"#,
            ),
            ("checkpoints/latest", "step-00000002"),
            ("checkpoints/step-00000002/state.json", r#"{"data":12345,"rejected":3}"#),
        ]);
        for part in [
            "my &#60;run&#62;",
            ">17.0 %<",                    // top-1 in large type
            "teacher 20.0 % (ratio 0.85)", // what it is held against
            "chance 0.050 %",              // among 2000 names
            "top-1 among 2,000 names, on 1,613 pictures",
            "zero-shot classification on twemoji and openmoji; retrieval on openmoji",
            "against the teacher on the same pictures and guessing",
            "trained on the pictures of openmoji among others, not on the files of twemoji",
            "<span>0</span><span>50 %</span>", // one scale for the bars of all tables
            "trained on</small>",
            "12,345 images: photos", // the data
            "student 1 of 1 (17.0 % of all), teacher 0 of 1 (20.0 % of all)",
            "teacher: <span>pear</span>",
            "masked, over 5000 images: 4", // the least probable place: more than 40 %
            "2 of 4",                      // steps: the run is not finished
            "5 min 52 s",
            "Some CPU, 2 cores",
            "2000-02-29 12:34 UTC",
            "red &#60;apple&#62;",
            "data:image/png;base64,bm90IHJlYWxseSBhIHBpY3R1cmU=",
            "text to image recall at 1",
            "0.90",   // of the teacher's top-1 on openmoji
            "12.0 %", // recall
            "block-reversed",
            "patch_size",
        ] {
            assert!(html.contains(part), "{part}");
        }
        assert!(!html.contains("ghost"), "a picture that is not there is left out");
        assert!(
            !html.contains("http://") || html.matches("http://").count() == 1,
            "SVG's name only"
        );
        assert!(!html.contains("https://") && !html.contains("NaN"));
        assert!(!html.contains(">1607"), "a number of pictures is no score");
        // top-1, top-5 (recall was measured once), loss, cosine with its part, lr, grad norm, speed.
        assert_eq!(html.matches("class=\"chart\"").count(), 7);
        assert!(
            html.contains("data-label=\"validation\"")
                && html.contains("data-label=\"cosine cls\"")
        );
    }

    #[test]
    fn every_part_may_be_missing() {
        let html = page(&[]);
        assert!(html.contains("<h1>") && !html.contains("<section>"));
        let html = page(&[("metrics.jsonl", METRICS)]);
        assert!(html.contains("Curves") && !html.contains("Recipe") && !html.contains("Masks"));
        let html = page(&[("recipe.toml", RECIPE)]);
        assert!(html.contains("Masks") && !html.contains("Curves"));
        let html = page(&[("recipe.toml", &RECIPE.replace("align", "contrastive"))]);
        assert!(!html.contains("Masks"));
    }

    #[test]
    fn a_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("environment.json"), "{").unwrap();
        let error = write(dir.path()).unwrap_err();
        assert!(error.to_string().contains("environment.json"), "{error}");
        let error = write(&dir.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
    }

    #[test]
    fn numbers_read_as_a_person_writes_them() {
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(321), "321");
        assert_eq!(duration(59.6), "1 min 00 s");
        assert_eq!(duration(11_220.0), "3 h 07 min");
        assert_eq!(date_time(0.0), "1970-01-01 00:00 UTC");
        assert_eq!(date_time(1_735_689_599.0), "2024-12-31 23:59 UTC");
    }
}
