//! `uta masks`: how often each patch is masked, in numbers and as the paper's Fig. 3.

use crate::error::Usage;
use crate::report::masks::figure;
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
        figure(args.kind, args.ratio, (rows, columns), samples, args.seed)?.save(out)?;
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
    fn the_terminal_map_darkens_towards_the_centre_of_block_masks() {
        let generator = MaskGenerator::new(MaskKind::Block, 0.5, (16, 16)).unwrap();
        let text = summary(&generator, &MaskStatistics::collect(&generator, 0, 1000));
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(rows.len(), 16);
        assert_eq!(rows[8].chars().count(), 32);
        assert_eq!((rows[0].chars().next(), rows[8].chars().nth(16)), (Some(' '), Some('█')));
    }
}
