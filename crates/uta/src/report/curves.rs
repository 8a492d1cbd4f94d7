//! The curves of a run over its steps.

use super::chart::{Chart, HEIGHT, Series, Stroke, WIDTH};
use super::metrics::{Metrics, Model};
use super::plot;
use super::svg::Drawing;
use super::words::sentence;

/// Evaluations first, then the loss and its parts, then how the optimiser and the machine fared.
pub fn charts(metrics: &Metrics) -> Vec<String> {
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
