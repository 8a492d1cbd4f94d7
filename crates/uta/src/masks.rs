//! `uta masks`: how often each patch is masked, in numbers and as the paper's Fig. 3.

use crate::error::Usage;
use crate::report::svg::{Anchor, Drawing};
use serde_json::json;
use std::io::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;
use uta_data::mask::{MaskGenerator, MaskKind, MaskStatistics};
use uta_data::progress::counted;

/// Show how often each patch of the grid is masked.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// none, random, block or block-reversed.
    #[arg(long, default_value = "block-reversed")]
    kind: MaskKind,
    /// Share of the patches that is masked.
    #[arg(long, default_value_t = 0.5)]
    ratio: f64,
    /// Patches a side, or ROWSxCOLUMNS.
    #[arg(long, default_value = "16")]
    grid: Grid,
    /// Masks drawn.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    samples: u32,
    /// Seed of the masks.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON object, with the probability of every position.
    #[arg(long)]
    json: bool,
    /// Draw it beside block-wise and random masks; .png or .svg.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Rows and columns of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grid(usize, usize);

impl FromStr for Grid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Beyond any network's; keeps a slip of the finger from filling the memory.
        let side = |side: &str| side.parse().ok().filter(|side| (1..=1024).contains(side));
        let (rows, columns) = text.split_once('x').unwrap_or((text, text));
        match (side(rows), side(columns)) {
            (Some(rows), Some(columns)) => Ok(Self(rows, columns)),
            _ => Err("use a number of patches a side, such as 16 or 14x20, up to 1024".into()),
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let Grid(rows, columns) = args.grid;
    let generator = MaskGenerator::new(args.kind, args.ratio, (rows, columns))
        .map_err(|error| Usage(error.to_string()))?;
    let samples = args.samples as usize;
    if let Some(out) = &args.out {
        figure(args.kind, args.ratio, args.grid, samples, args.seed)?.save(out)?;
        eprintln!("drawn in {}", out.display());
    }
    let statistics = MaskStatistics::collect(&generator, args.seed, samples);
    if args.json {
        let map: Vec<&[f64]> = statistics.probability.chunks(columns).collect();
        let object = json!({
            "kind": args.kind,
            "ratio": args.ratio,
            "grid": [rows, columns],
            "kept": generator.kept_count(),
            "samples": samples,
            "seed": args.seed,
            "mean": statistics.mean(),
            "sd": statistics.standard_deviation(),
            "probability": map,
        });
        writeln!(io::stdout().lock(), "{object}")?;
    } else {
        write!(io::stdout().lock(), "{}", summary(&generator, &statistics))?;
    }
    Ok(())
}

/// The numbers in words, and the map in shades, for a terminal.
fn summary(generator: &MaskGenerator, statistics: &MaskStatistics) -> String {
    let (rows, columns) = generator.grid();
    let probability = &statistics.probability;
    let low = probability.iter().copied().fold(f64::INFINITY, f64::min);
    let high = probability.iter().copied().fold(0.0, f64::max);
    let mut text = format!(
        "{} masks of {rows}x{columns} patches keep {} of {}\n\
         probability of being masked over {}: mean {:.4}, sd over positions {:.4}, \
         {low:.3} to {high:.3}\n",
        generator.kind(),
        generator.kept_count(),
        generator.patches(),
        counted(statistics.samples, "sample"),
        statistics.mean(),
        statistics.standard_deviation(),
    );
    if columns <= 40 && rows <= 40 {
        for row in probability.chunks(columns) {
            let shade = |p: &f64| [" ", "░", "▒", "▓", "█"][(p * 4.999) as usize].repeat(2);
            text.extend(row.iter().map(shade));
            text.push('\n');
        }
    }
    text
}

/// Side of a heat map in the figure.
const SIDE: f64 = 208.0;
const GAP: f64 = 32.0;
/// Example masks under each map, a row of them.
const EXAMPLES: usize = 4;

/// The paper's Fig. 3: block-wise, reversed block-wise and random masks side by side, each with
/// its standard deviation over positions and a few examples. `kind` comes first if it's another one.
fn figure(
    kind: MaskKind,
    ratio: f64,
    grid: Grid,
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
        let generator = MaskGenerator::new(kind, ratio, (grid.0, grid.1))?;
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
pub fn extremes(generator: &MaskGenerator, seed: u64) -> (f64, f64) {
    let statistics = MaskStatistics::collect(generator, seed, SAMPLES);
    let fold =
        |of: fn(f64, f64) -> f64, first| statistics.probability.iter().copied().fold(first, of);
    (fold(f64::min, 1.0), fold(f64::max, 0.0))
}

/// The part of the figure that a run's report shows: its own masks, beside plain block-wise ones.
pub fn report_figure(generator: &MaskGenerator, ratio: f64, seed: u64) -> anyhow::Result<Drawing> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_grid_is_one_number_or_two() {
        assert_eq!("16".parse(), Ok(Grid(16, 16)));
        assert_eq!("3x5".parse(), Ok(Grid(3, 5)));
        for wrong in ["", "x", "0", "3x", "-1", "16x16x3", "4000"] {
            assert!(wrong.parse::<Grid>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_figure_shows_the_three_kinds_with_their_spread() {
        let drawing = figure(MaskKind::BlockReversed, 0.5, Grid(16, 16), 5000, 0).unwrap();
        let svg = drawing.standalone();
        for kind in [">block<", ">block-reversed<", ">random<"] {
            assert!(svg.contains(kind), "{kind}");
        }
        assert!(svg.contains("sd 0.23"), "block-wise masks favour the centre");
        // Three heat maps of 256 cells, each cell with its percentage.
        assert_eq!(svg.matches("<title>").count(), 3 * 256);
        assert_eq!(svg.matches("class=\"kept\"").count(), 3 * EXAMPLES * 128);
    }

    #[test]
    fn the_terminal_map_darkens_towards_the_centre_of_block_masks() {
        let generator = MaskGenerator::new(MaskKind::Block, 0.5, (16, 16)).unwrap();
        let text = summary(&generator, &MaskStatistics::collect(&generator, 0, 1000));
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(rows.len(), 16);
        assert_eq!(rows[8].chars().count(), 32);
        assert_eq!((rows[0].chars().next(), rows[8].chars().nth(16)), (Some(' '), Some('█')));
    }
}
