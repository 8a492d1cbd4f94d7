//! The scores of a run: its headlines, and tables beside the teacher and chance.

use super::axes::Unit;
use super::metrics::{Metrics, Model};
use super::plot;
use super::run::Run;
use super::words::{grouped, sentence};

/// A number in large letters.
pub struct Headline {
    pub set: String,
    pub figure: String,
    /// Name of the number, then teacher and chance, a line each.
    pub lines: Vec<String>,
}

/// One metric on every set, or every metric on one set. Columns that would be empty are left out.
pub struct ScoreTable {
    pub title: String,
    pub has_bars: bool,
    pub has_start: bool,
    pub has_teacher: bool,
    pub has_ratio: bool,
    pub has_chance: bool,
    pub rows: Vec<ScoreRow>,
}

pub struct ScoreRow {
    pub name: String,
    /// Whether the model was trained on these pictures.
    pub trained_on: bool,
    pub bar: Option<Bar>,
    pub start: String,
    pub student: String,
    pub teacher: String,
    pub ratio: String,
    pub chance: String,
}

/// In percent of the scale, which all tables share.
pub struct Bar {
    pub student: f64,
    pub teacher: Option<f64>,
}

/// The main metric of a run: the first evaluated share, as top1.
fn main_metric(metrics: &Metrics) -> Option<&str> {
    metrics.evaluated().into_iter().find(|metric| Unit::of(metric) == Unit::Percent)
}

/// The student on the first sets of the recipe's evaluation, or else of the metrics, beside its teacher and chance.
pub fn headlines(run: &Run) -> Vec<Headline> {
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
        let last = |model| metrics.latest(model, set, metric);
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

/// The headline where no share was measured: how close the student's tokens come to the teacher's.
fn cosine_headline(metrics: &Metrics) -> Vec<Headline> {
    let validation = metrics.latest(Model::Student, "validation", "cosine");
    let training = metrics.curve("cosine").and_then(|curve| curve.last()).map(|point| point.1);
    let (set, value) = match (validation, training) {
        (Some(value), _) => ("validation", value),
        (None, Some(value)) => ("last training batch", value),
        _ => return Vec::new(),
    };
    let mut lines = vec![
        "mean cosine of the student's tokens with the teacher's".to_owned(),
        "teacher 1, by definition; directions at random 0".to_owned(),
    ];
    let part = |name| match validation {
        Some(_) => metrics.latest(Model::Student, "validation", name),
        None => metrics.curve(name).and_then(|curve| curve.last()).map(|point| point.1),
    };
    if let (Some(masked), Some(kept)) = (part("cosine_masked"), part("cosine_kept")) {
        let [masked, kept] = [masked, kept].map(|value| Unit::Number.show(value));
        lines.push(format!("{masked} at masked patches, {kept} at the others"));
    }
    vec![Headline { set: set.to_owned(), figure: Unit::Number.show(value), lines }]
}

/// One table for each metric that several sets have, a row a set; then one for each set with metrics
/// of its own, a row a metric.
pub fn score_tables(run: &Run, scale: f64) -> Vec<ScoreTable> {
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

/// The share at which the bars of all tables end: a round one that no value exceeds.
pub fn scale(metrics: &Metrics) -> f64 {
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
    let last = |model, set: &str, metric: &str| metrics.latest(model, set, metric);
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
