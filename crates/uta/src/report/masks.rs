//! How often each patch is masked, drawn as the paper's Fig. 3.

use uta_data::mask::{MaskGenerator, MaskKind, MaskStatistics};
use uta_data::progress::counted;

use super::run::Run;
use super::svg::{Anchor, Drawing};

/// Side of a heat map in the figure.
const SIDE: f64 = 208.0;

const GAP: f64 = 32.0;

/// Example masks under each map, a row of them.
const EXAMPLES: usize = 4;

/// The paper's Fig. 3: block-wise, reversed block-wise and random masks side by side, each with
/// its standard deviation over positions and a few examples. `kind` comes first if it's another one.
pub fn figure(
    kind: MaskKind,
    ratio: f64,
    grid: (usize, usize),
    samples: usize,
    seed: u64,
) -> anyhow::Result<Drawing> {
    let mut kinds = vec![MaskKind::Block, MaskKind::BlockReversed, MaskKind::Random];
    if !kinds.contains(&kind) {
        kinds.insert(0, kind);
    }
    let width = kinds.len() as f64 * (SIDE + GAP) - GAP;
    let mut drawing = Drawing::new(width, PANEL_HEIGHT + 126.0);
    let heading = format!(
        "How often each patch is masked: {}x{} patches, ratio {ratio}, {}",
        grid.0,
        grid.1,
        counted(samples, "sample")
    );
    drawing.text(0.0, 14.0, "title", Anchor::Start, &heading);
    let legend = "Small squares: single masks, the kept patches in blue";
    drawing.text(0.0, 33.0, "small", Anchor::Start, legend);
    for (i, &kind) in kinds.iter().enumerate() {
        let generator = MaskGenerator::new(kind, ratio, grid)?;
        drawing.at(i as f64 * (SIDE + GAP), 58.0, |to| panel(to, &generator, seed, samples));
    }
    drawing.at(0.0, PANEL_HEIGHT + 92.0, |to| to.heat_key(SIDE));
    Ok(drawing)
}

const PANEL_HEIGHT: f64 = 24.0 + SIDE + 14.0 + (SIDE - 3.0 * 10.0) / 4.0;

/// One kind of mask: name, map, examples.
fn panel(to: &mut Drawing, generator: &MaskGenerator, seed: u64, samples: usize) {
    let (_, columns) = generator.grid();
    let statistics = MaskStatistics::collect(generator, seed, samples);
    to.text(0.0, 12.0, "title", Anchor::Start, generator.kind().name());
    let deviation = format!("sd {:.3}", statistics.standard_deviation());
    to.text(SIDE, 12.0, "small", Anchor::End, &deviation);
    to.at(0.0, 24.0, |to| to.heat_map(&statistics.probability, columns, SIDE));
    let pitch = (SIDE + 10.0) / EXAMPLES as f64;
    for example in 0..EXAMPLES {
        let mut kept = vec![false; generator.patches()];
        for patch in generator.batch(seed, &[example as u64]) {
            kept[patch as usize] = true;
        }
        to.at(example as f64 * pitch, 24.0 + SIDE + 14.0, |to| {
            to.mask(&kept, columns, pitch - 10.0)
        });
    }
}

/// Masks from which the report's probabilities are counted.
const SAMPLES: usize = 5000;

/// The least and the largest probability of being masked, over the places of the grid.
fn extremes(generator: &MaskGenerator, seed: u64) -> (f64, f64) {
    let statistics = MaskStatistics::collect(generator, seed, SAMPLES);
    let fold =
        |of: fn(f64, f64) -> f64, first| statistics.probability.iter().copied().fold(first, of);
    (fold(f64::min, 1.0), fold(f64::max, 0.0))
}

/// The part of the figure that a run's report shows: its own masks, beside plain block-wise ones.
fn report_figure(generator: &MaskGenerator, ratio: f64, seed: u64) -> anyhow::Result<Drawing> {
    let mut generators = vec![generator.clone()];
    if generator.kind() == MaskKind::BlockReversed {
        generators.push(MaskGenerator::new(MaskKind::Block, ratio, generator.grid())?);
    }
    let width = generators.len() as f64 * (SIDE + GAP) - GAP;
    let mut drawing = Drawing::new(width, PANEL_HEIGHT + 66.0);
    for (i, generator) in generators.iter().enumerate() {
        drawing.at(i as f64 * (SIDE + GAP), 0.0, |to| panel(to, generator, seed, SAMPLES));
    }
    drawing.at(0.0, PANEL_HEIGHT + 34.0, |to| to.heat_key(SIDE));
    Ok(drawing)
}

pub struct MaskFigure {
    pub figure: String,
    pub caption: String,
}

/// The masks of the run, when its task draws any.
pub fn mask_figure(run: &Run) -> anyhow::Result<Option<MaskFigure>> {
    let masking = run.task().is_some_and(|task| task.has_section("mask"));
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
    let figure = report_figure(&generator, ratio, seed)?.inline("masking probabilities");
    let shares = |kind| -> anyhow::Result<String> {
        let generator = MaskGenerator::new(kind, ratio, (side, side))?;
        let (low, high) = extremes(&generator, seed);
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
    let filled = run.recipe("model.mask_token").and_then(toml::Value::as_bool) == Some(true);
    let others = if filled { "; a learned token stands for each other one" } else { "" };
    let caption = format!(
        "Of {side}\u{00d7}{side} patches the student sees {} in each image{others}. How often each is masked, over 5000 images: {own} \
         of the time, depending on its place; below, the masks of four of this run's images.{beside}",
        generator.kept_count()
    );
    Ok(Some(MaskFigure { figure, caption }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_figure_shows_the_three_kinds_with_their_spread() {
        let drawing = figure(MaskKind::BlockReversed, 0.5, (16, 16), 5000, 0).unwrap();
        let svg = drawing.standalone().unwrap();
        for kind in [">block<", ">block-reversed<", ">random<"] {
            assert!(svg.contains(kind), "{kind}");
        }
        assert!(svg.contains("sd 0.23"), "block-wise masks favour the centre");
        // Three heat maps of 256 cells, each cell with its percentage.
        assert_eq!(svg.matches("<title>").count(), 3 * 256);
        assert_eq!(svg.matches("class=\"kept\"").count(), 3 * EXAMPLES * 128);
    }
}
