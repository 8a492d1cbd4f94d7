//! A run's metrics.jsonl, read back as curves.

use crate::error::Usage;
use anyhow::Context;
use serde_json::{Map, Value};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Points (step, value) in the order of steps.
pub type Curve = Vec<(f64, f64)>;

/// Fields that count instead of measuring.
const COUNTERS: [&str; 6] = ["step", "samples", "epoch", "skipped_steps", "rejected_samples", "n"];

/// Everything measured in a run, in the order of first appearance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Curves of the training steps, by name.
    pub train: Vec<(String, Curve)>,
    /// Curves of evaluations.
    pub evaluations: Vec<Evaluation>,
    /// Steps done.
    pub steps: u64,
    /// Training images seen.
    pub samples: u64,
    /// Passes over the data.
    pub epochs: f64,
}

/// One number of one model on one evaluation set, over the steps of the run.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The model that was measured.
    pub model: Model,
    /// The evaluation set.
    pub set: String,
    /// The number's name: top1, top5, cosine, ...
    pub metric: String,
    /// Its values; a reference model is usually measured once.
    pub curve: Curve,
}

/// The model that an evaluation line speaks of (its `model` field).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// The model in training; lines without the field.
    Student,
    /// The frozen teacher.
    Teacher,
    /// Guessing.
    Chance,
}

impl Metrics {
    /// Reads the metrics of the run in `run`.
    pub fn read(run: &Path) -> anyhow::Result<Self> {
        let path = run.join("metrics.jsonl");
        match fs::read(&path) {
            Ok(bytes) => Ok(Self::parse(&String::from_utf8_lossy(&bytes))),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                let message = format!("{}: not there; give a run directory", path.display());
                Err(Usage(message).into())
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Reads every complete line; the last one may be cut short while the run goes on.
    fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines() {
            if let Ok(Value::Object(line)) = serde_json::from_str(line) {
                metrics.add(&line);
            }
        }
        metrics
    }

    fn add(&mut self, line: &Map<String, Value>) {
        let Some(step) = line.get("step").and_then(Value::as_u64) else { return };
        let numbers = line
            .iter()
            .filter(|(name, _)| !COUNTERS.contains(&name.as_str()))
            // A loss that isn't finite is logged as null: a gap in the curve.
            .filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?)));
        if let Some(set) = line.get("eval").and_then(Value::as_str) {
            let model = match line.get("model").and_then(Value::as_str) {
                None | Some("student") => Model::Student,
                Some("teacher") => Model::Teacher,
                Some("chance") => Model::Chance,
                Some(_) => return,
            };
            for (metric, value) in numbers {
                self.add_evaluation(model, set, metric, (step as f64, value));
            }
            return;
        }
        self.steps = step;
        let count = |name| line.get(name).and_then(Value::as_f64);
        self.samples = count("samples").map_or(self.samples, |samples| samples as u64);
        self.epochs = count("epoch").unwrap_or(self.epochs);
        for (name, value) in numbers {
            let at = self.train.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
                self.train.push((name.to_owned(), Vec::new()));
                self.train.len() - 1
            });
            append(&mut self.train[at].1, (step as f64, value));
        }
    }

    /// Adds one number of an evaluation; one of the same or a later step is replaced.
    pub fn add_evaluation(&mut self, model: Model, set: &str, metric: &str, point: (f64, f64)) {
        if COUNTERS.contains(&metric) {
            return;
        }
        let known = self.evaluations.iter_mut().find(|evaluation| {
            evaluation.model == model && evaluation.set == set && evaluation.metric == metric
        });
        match known {
            Some(evaluation) => append(&mut evaluation.curve, point),
            None => self.evaluations.push(Evaluation {
                model,
                set: set.to_owned(),
                metric: metric.to_owned(),
                curve: vec![point],
            }),
        }
    }

    /// A curve of the training steps.
    pub fn curve(&self, name: &str) -> Option<&Curve> {
        self.train.iter().find(|(known, _)| known == name).map(|(_, curve)| curve)
    }

    /// A number over the steps, of one model on one set.
    pub fn evaluation(&self, model: Model, set: &str, metric: &str) -> Option<&Curve> {
        let mut all = self.evaluations.iter();
        let same = |e: &&Evaluation| e.model == model && e.set == set && e.metric == metric;
        all.find(same).map(|evaluation| &evaluation.curve)
    }

    /// The newest number called `metric`, of one model on one set.
    pub fn latest(&self, model: Model, set: &str, metric: &str) -> Option<f64> {
        self.evaluation(model, set, metric)?.last().map(|point| point.1)
    }

    /// The names of the numbers that evaluations gave, in the order of first appearance.
    pub fn evaluated(&self) -> Vec<&str> {
        unique(self.evaluations.iter().map(|evaluation| evaluation.metric.as_str()))
    }

    /// The sets on which `metric` was measured, in the order of first appearance.
    pub fn sets(&self, metric: &str) -> Vec<&str> {
        let having = self.evaluations.iter().filter(|evaluation| evaluation.metric == metric);
        unique(having.map(|evaluation| evaluation.set.as_str()))
    }

    /// Seconds spent in the training steps after step `after`, from the images seen and the speed between two lines.
    pub fn training_seconds(&self, after: u64) -> Option<f64> {
        let speed = self.curve("images_per_second")?;
        let images_a_step = self.samples as f64 / self.steps as f64;
        let mut before = after as f64;
        let mut seconds = 0.0;
        for &(step, images_per_second) in speed.iter().filter(|(step, _)| *step > after as f64) {
            if images_per_second > 0.0 {
                seconds += (step - before) * images_a_step / images_per_second;
            }
            before = step;
        }
        (seconds.is_finite() && seconds > 0.0).then_some(seconds)
    }
}

/// Appends a point; a run that went back to a checkpoint overwrites what it had logged after it.
fn append(curve: &mut Curve, point: (f64, f64)) {
    while curve.last().is_some_and(|last| last.0 >= point.0) {
        curve.pop();
    }
    curve.push(point);
}

fn unique<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LOG: &str = r#"
{"step":0,"eval":"a","top1":0.01}
{"step":0,"eval":"a","model":"teacher","top1":0.4}
{"step":10,"samples":80,"epoch":0.5,"loss":-0.1,"images_per_second":8}
{"step":20,"samples":160,"epoch":1.0,"loss":null,"images_per_second":4}
{"step":20,"eval":"a","top1":0.2,"top5":0.5}
{"step":20,"eval":"b","top1":0.1}
{"step":30,"samples":240,"epo"#;

    #[test]
    fn lines_become_curves_and_a_torn_last_line_is_left_out() {
        let metrics = Metrics::parse(LOG);
        assert_eq!((metrics.steps, metrics.samples, metrics.epochs), (20, 160, 1.0));
        assert_eq!(metrics.curve("loss").unwrap(), &[(10.0, -0.1)]);
        assert_eq!(metrics.curve("samples"), None);
        assert_eq!(metrics.evaluated(), ["top1", "top5"]);
        assert_eq!(metrics.sets("top1"), ["a", "b"]);
        let student = metrics.evaluation(Model::Student, "a", "top1").unwrap();
        assert_eq!(student, &[(0.0, 0.01), (20.0, 0.2)]);
        assert_eq!(metrics.evaluation(Model::Teacher, "a", "top1").unwrap(), &[(0.0, 0.4)]);
    }

    #[test]
    fn training_time_follows_from_images_and_speed() {
        // 80 images at 8 a second, then 80 at 4 a second.
        assert_eq!(Metrics::parse(LOG).training_seconds(0), Some(30.0));
        assert_eq!(Metrics::parse(LOG).training_seconds(15), Some(10.0));
        assert_eq!(Metrics::parse(LOG).training_seconds(20), None);
        assert_eq!(Metrics::default().training_seconds(0), None);
    }

    #[test]
    fn what_a_resumed_run_repeats_replaces_what_it_had_logged() {
        let twice = "{\"step\":1,\"loss\":1}\n{\"step\":2,\"loss\":2}\n{\"step\":3,\"loss\":3}\n\
                     {\"step\":2,\"loss\":5}\n";
        assert_eq!(Metrics::parse(twice).curve("loss").unwrap(), &[(1.0, 1.0), (2.0, 5.0)]);
    }
}
