//! The files of a run directory, as the report needs them.

use std::fs;
use std::path::Path;

use anyhow::Context;
use base64::Engine as _;
use serde::Deserialize;
use serde_json::Value;
use toml::Table;
use uta_train::recipe::TaskKind;

use super::metrics::{Metrics, Model};
use crate::reference::{self, Reference, Shown};

/// The contents of a run directory.
pub struct Run {
    pub name: String,
    /// recipe.toml as text and as values.
    pub recipe: Option<(String, Table)>,
    pub environment: serde_json::Map<String, Value>,
    pub metrics: Metrics,
    pub demo: Value,
    pub reference: Reference,
    /// `state.json` of the newest checkpoint.
    pub state: Value,
    pub samples: Vec<Sample>,
}

/// A picture with its names.
pub struct Sample {
    pub shown: Shown,
    pub data_uri: String,
}

#[derive(Deserialize)]
struct Samples {
    pub samples: Vec<Shown>,
}

impl Run {
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
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
        let mut metrics = if dir.join("metrics.jsonl").exists() {
            Metrics::read(dir)?
        } else {
            Metrics::default()
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

    /// The task, where the recipe names one that is known.
    pub fn task(&self) -> Option<TaskKind> {
        self.recipe("task")?.clone().try_into().ok()
    }

    /// A value of the recipe, such as `model.width`.
    pub fn recipe(&self, path: &str) -> Option<&toml::Value> {
        let (_, table) = self.recipe.as_ref()?;
        let mut parts = path.split('.');
        let first = table.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))
    }

    pub fn recipe_number(&self, path: &str) -> Option<f64> {
        let value = self.recipe(path)?;
        value.as_float().or_else(|| value.as_integer().map(|i| i as f64))
    }

    pub fn recipe_text(&self, path: &str) -> Option<&str> {
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

/// Adds the final scores of demo.json, where student and teacher were measured alike:
/// {"student": {"set": {"metric": value}}, "teacher": the same, "chance": {"metric": value}}.
fn add_demo(metrics: &mut Metrics, demo: Option<&Value>) {
    let Some(demo) = demo else { return };
    let step = metrics.steps as f64;
    for (key, model) in [("student", Model::Student), ("teacher", Model::Teacher)] {
        for (set, numbers) in demo[key].as_object().into_iter().flatten() {
            for (metric, value) in numbers.as_object().into_iter().flatten() {
                // demo.json has text_to_image_r1 where metrics.jsonl has text_to_image/r1.
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

/// Adds the teacher's scores, and those of guessing, on every set that was evaluated.
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

/// The samples whose pictures exist, with these.
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
