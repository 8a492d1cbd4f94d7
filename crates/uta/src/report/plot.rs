//! `uta plot`: the curves of one run or several, metric by metric, in one picture.

use super::axes::Unit;
use super::chart::{self, Chart, Series, Stroke};
use super::metrics::{Curve, Metrics, Model};
use super::svg::{Drawing, Format};
use crate::error::Usage;
use std::path::PathBuf;
use uta_data::progress::counted;

/// Draw the curves of runs, one panel a metric, one colour a run.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run directories.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The picture to write; .png or .svg.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Only these metrics, such as loss,lr,twemoji/top1.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    metrics: Vec<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    Format::of(&args.out)?;
    // `runs/*` names what else lies there too, folders and files.
    let other = |path: &PathBuf| path.exists() && !path.join("metrics.jsonl").exists();
    let (others, mut paths): (Vec<_>, Vec<_>) = args.runs.iter().cloned().partition(other);
    if paths.is_empty() {
        paths = others;
    } else {
        for path in others {
            tracing::warn!("{}: holds no run (no metrics.jsonl), and is left out", path.display());
        }
    }
    let mut runs = Vec::with_capacity(paths.len());
    for (path, name) in paths.iter().zip(names(&paths)) {
        runs.push((name, Metrics::read(path)?));
    }
    let known = available(&runs);
    let wanted = if args.metrics.is_empty() { known.clone() } else { args.metrics.clone() };
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(name)) {
        let known = known.join(", ");
        let message = format!("metric {unknown:?} is in none of the runs; they have: {known}");
        return Err(Usage(message).into());
    }
    if wanted.is_empty() {
        return Err(Usage("nothing to draw: the runs have logged no metrics yet".into()).into());
    }
    let charts: Vec<Chart> = wanted.iter().map(|name| panel(name, &runs)).collect();
    arrange(&charts).save(&args.out)?;
    let (panels, runs) = (counted(charts.len(), "panel"), counted(runs.len(), "run"));
    eprintln!("{panels} of {runs} in {}", args.out.display());
    Ok(())
}

/// The last parts of the paths, as many as it takes to tell them apart.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let tail = |path: &PathBuf, parts: usize| {
        let all: Vec<_> = path.components().map(|c| c.as_os_str().to_string_lossy()).collect();
        all[all.len().saturating_sub(parts)..].join("/")
    };
    let longest = paths.iter().map(|path| path.components().count()).max().unwrap_or(1);
    let distinct = |parts: &usize| {
        let mut names: Vec<_> = paths.iter().map(|path| tail(path, *parts)).collect();
        names.sort();
        names.windows(2).all(|pair| pair[0] != pair[1])
    };
    let parts = (1..=longest).find(distinct).unwrap_or(longest);
    paths.iter().map(|path| tail(path, parts)).collect()
}

/// Names of all metrics: those of the training steps, then "set/metric" of the evaluations.
fn available(runs: &[(String, Metrics)]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (_, metrics) in runs {
        let evaluated = metrics.evaluations.iter().filter(|e| e.model == Model::Student);
        let all = metrics
            .train
            .iter()
            .map(|(name, _)| name.clone())
            .chain(evaluated.map(|e| format!("{}/{}", e.set, e.metric)));
        for name in all {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

/// The chart of one metric in all runs that have it; an evaluation's with the level of its teacher.
fn panel(name: &str, runs: &[(String, Metrics)]) -> Chart {
    let mut chart = chart_of(name);
    for (hue, (run, metrics)) in runs.iter().enumerate() {
        if let Some(curve) = metrics.curve(name) {
            chart.push(run, hue, curve);
        }
        let Some((set, metric)) = name.split_once('/') else { continue };
        let of = |model| metrics.evaluation(model, set, metric);
        let mut push = |label: &str, hue, stroke, curve: Option<&Curve>| {
            let Some(curve) = curve else { return };
            let series = Series { label: label.to_owned(), hue, stroke, points: curve.clone() };
            // Runs of one teacher share its level; say so once.
            if !chart.series.iter().any(|s| s.label == label && s.points == series.points) {
                chart.series.push(series);
            }
        };
        push("teacher", None, Stroke::Reference, of(Model::Teacher));
        push(run, Some(hue), Stroke::Line, of(Model::Student));
    }
    chart
}

/// An empty chart fit for the metric called `name`.
pub fn chart_of(name: &str) -> Chart {
    let mut chart = Chart::over_steps(title(name), Unit::of(name));
    chart.logarithmic = name == "grad_norm";
    chart.noisy = name != "lr";
    chart
}

/// A metric's name in words.
pub fn title(metric: &str) -> String {
    match metric {
        "lr" => "learning rate".into(),
        "grad_norm" => "gradient norm".into(),
        "data_wait" => "share of time waiting for data".into(),
        "images_per_second" => "images per second".into(),
        _ => {
            let spelled = |word: &str| match (word.strip_prefix("top"), word.strip_prefix('r')) {
                (Some(k), _) if is_count(k) => format!("top-{k}"),
                (_, Some(k)) if is_count(k) => format!("recall at {k}"),
                _ => word.to_owned(),
            };
            metric.split(['/', '_']).map(spelled).collect::<Vec<_>>().join(" ")
        }
    }
}

fn is_count(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Charts in rows of up to three.
fn arrange(charts: &[Chart]) -> Drawing {
    const GAP: f64 = 36.0;
    let columns = match charts.len() {
        n @ 1..=3 => n,
        4 => 2,
        _ => 3,
    };
    let place = |i: usize| {
        let (row, column) = ((i / columns) as f64, (i % columns) as f64);
        (column * (chart::WIDTH + GAP), row * (chart::HEIGHT + GAP))
    };
    let (width, _) = place(columns - 1);
    let (_, height) = place(charts.len() - 1);
    let mut drawing = Drawing::new(width + chart::WIDTH, height + chart::HEIGHT);
    for (i, chart) in charts.iter().enumerate() {
        let (x, y) = place(i);
        drawing.at(x, y, |drawing| chart.draw(drawing));
    }
    drawing
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    fn args(runs: &[PathBuf], out: PathBuf, metrics: &[&str]) -> Args {
        let metrics = metrics.iter().map(|&name| name.to_owned()).collect();
        Args { runs: runs.to_vec(), out, metrics }
    }

    #[test]
    fn runs_are_drawn_together_and_an_unknown_metric_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let runs = ["one/run", "two/run"].map(|name| dir.path().join(name));
        for run in &runs {
            fs::create_dir_all(run).unwrap();
            let log = "{\"step\":1,\"samples\":8,\"loss\":2.0,\"lr\":0.1}\n\
                       {\"step\":2,\"samples\":16,\"loss\":1.0,\"lr\":0.2}\n\
                       {\"step\":2,\"eval\":\"set\",\"top1\":0.5}\n\
                       {\"step\":0,\"eval\":\"set\",\"model\":\"teacher\",\"top1\":0.6}\n";
            fs::write(run.join("metrics.jsonl"), log).unwrap();
        }
        let out = dir.path().join("all.svg");
        run(&args(&runs, out.clone(), &[])).unwrap();
        let svg = fs::read_to_string(&out).unwrap();
        assert_eq!(svg.matches("class=\"chart\"").count(), 3, "loss, lr, set/top1");
        assert!(svg.contains("one/run") && svg.contains("two/run") && svg.contains("set top-1"));
        assert_eq!(svg.matches(">teacher<").count(), 1);

        // What else `runs/*` names is left out: a folder and a file that are no runs.
        let (folder, file) = (dir.path().join("table1"), dir.path().join("notes.txt"));
        fs::create_dir(&folder).unwrap();
        fs::write(&file, "").unwrap();
        let all = [folder, file.clone(), runs[0].clone()];
        run(&args(&all, out.clone(), &[])).unwrap();
        assert!(!fs::read_to_string(&out).unwrap().contains("notes"));
        let error = run(&args(&[file], out.clone(), &[])).unwrap_err();
        assert!(error.to_string().contains("give a run directory"), "{error}");

        run(&args(&runs, out.clone(), &["loss"])).unwrap();
        assert_eq!(fs::read_to_string(&out).unwrap().matches("class=\"chart\"").count(), 1);
        let error = run(&args(&runs, out, &["losss"])).unwrap_err().to_string();
        assert!(error.contains("losss") && error.contains("loss, lr, set/top1"), "{error}");
        let error = run(&args(&[dir.path().join("none")], "x.png".into(), &[])).unwrap_err();
        assert!(error.to_string().contains("none/metrics.jsonl"), "{error}");
    }
}
