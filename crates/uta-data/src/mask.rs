//! Which patches a student sees: random, block-wise and reversed block-wise masks (paper §2.2, A.2).
//!
//! A mask is named by the patches it keeps, sorted, because only those are embedded. Every mask of a
//! generator keeps the same number of patches, so that a batch is one dense tensor, and the mask of
//! a sample depends on (seed, position of the sample in the run) alone.
//!
//! Block-wise masking covers the middle of the image far more often than its corners. The paper
//! reverses half of the masks, which evens that out, but swaps the kept and the masked share as
//! well unless the ratio is 0.5. Its cost table shows a fixed share, so the reversed half here
//! draws blocks for the patches it *keeps*: the block structure and the count both survive.

use crate::rng::{Purpose, Rng};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How masked patches are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaskKind {
    /// Every patch is kept, whatever the ratio says (feature distillation).
    None,
    /// A uniform subset of the patches.
    Random,
    /// Rectangles are masked until the ratio is met (BEiT).
    Block,
    /// Block-wise, with masked and kept exchanged for half of the samples (UTA).
    BlockReversed,
}

impl MaskKind {
    /// All kinds, in the order they are documented.
    pub const ALL: [Self; 4] = [Self::None, Self::Random, Self::Block, Self::BlockReversed];

    /// The name used by recipes and by the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Random => "random",
            Self::Block => "block",
            Self::BlockReversed => "block-reversed",
        }
    }
}

impl fmt::Display for MaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for MaskKind {
    type Err = MaskError;

    fn from_str(name: &str) -> Result<Self, MaskError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| MaskError::Kind(name.to_owned()))
    }
}

/// A mask that can't be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MaskError {
    /// No such kind.
    #[error("mask kind {0:?} is unknown: use none, random, block or block-reversed")]
    Kind(String),
    /// The ratio is no share of the patches.
    #[error("mask ratio {0} is out of range: use 0 or more and less than 1")]
    Ratio(f64),
    /// The grid has no patch.
    #[error("a mask needs a grid of at least 1x1 patches, not {0}x{1}")]
    EmptyGrid(usize, usize),
    /// Rounding leaves nothing to look at.
    #[error("mask ratio {ratio} masks all {patches} patches: lower it or use smaller patches")]
    NothingKept {
        /// The ratio asked for.
        ratio: f64,
        /// Patches of the grid.
        patches: usize,
    },
}

/// Draws masks of one kind, ratio and grid.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskGenerator {
    kind: MaskKind,
    rows: usize,
    columns: usize,
    masked: usize,
}

impl MaskGenerator {
    /// A generator of masks over a `grid` of (rows, columns) patches, `ratio` of them masked.
    pub fn new(kind: MaskKind, ratio: f64, grid: (usize, usize)) -> Result<Self, MaskError> {
        let (rows, columns) = grid;
        let patches = rows.saturating_mul(columns);
        if patches == 0 {
            return Err(MaskError::EmptyGrid(rows, columns));
        }
        if !(0.0..1.0).contains(&ratio) {
            return Err(MaskError::Ratio(ratio));
        }
        let masked = match kind {
            MaskKind::None => 0,
            _ => (ratio * patches as f64).round() as usize,
        };
        if masked >= patches {
            return Err(MaskError::NothingKept { ratio, patches });
        }
        Ok(Self { kind, rows, columns, masked })
    }

    /// The kind of mask.
    pub fn kind(&self) -> MaskKind {
        self.kind
    }

    /// Rows and columns of the grid.
    pub fn grid(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// N, the patches of the grid.
    pub fn patches(&self) -> usize {
        self.rows * self.columns
    }

    /// K = N - round(ratio * N), the patches that every mask keeps.
    pub fn kept_count(&self) -> usize {
        self.patches() - self.masked
    }

    /// Draws one mask and appends its K kept patches to `out`, as sorted row-major indices.
    pub fn kept(&self, rng: &mut Rng, out: &mut Vec<i64>) {
        let mut canvas = Canvas::new(self.rows, self.columns);
        // What the marked cells stand for: the masked patches, or in a reversed mask the kept ones.
        let mut marked_is_masked = true;
        match self.kind {
            MaskKind::None | MaskKind::Random => {}
            MaskKind::Block => canvas.mark_blocks(self.masked, rng),
            MaskKind::BlockReversed => {
                marked_is_masked = rng.next_u64() >> 63 == 0;
                let target = if marked_is_masked { self.masked } else { self.kept_count() };
                canvas.mark_blocks(target, rng);
            }
        }
        // Blocks rarely fit the count exactly; single cells make up for the rest.
        let target = if marked_is_masked { self.masked } else { self.kept_count() };
        canvas.mark_random(target - canvas.marked, rng);
        out.extend(
            (0i64..).zip(&canvas.cells).filter(|(_, mark)| **mark != marked_is_masked).map(|c| c.0),
        );
    }

    /// The masks of the samples at `positions` of a run, row-major [B, K].
    pub fn batch(&self, seed: u64, positions: &[u64]) -> Vec<i64> {
        let mut kept = Vec::with_capacity(positions.len() * self.kept_count());
        for &position in positions {
            self.kept(&mut Rng::new(seed, Purpose::Mask, &[position]), &mut kept);
        }
        kept
    }
}

/// The tokens of a text that are kept when a share `ratio` of them is dropped at random, sorted: the last, which ends the text and
/// stands for it, always, and of the `length` - 1 others all but round(ratio * (length - 1)). Appended to `out`.
pub fn kept_tokens(length: usize, ratio: f64, rng: &mut Rng, out: &mut Vec<i64>) {
    let others = length.saturating_sub(1);
    let dropped = (ratio * others as f64).round() as usize;
    let mut canvas = Canvas::new(1, others);
    canvas.mark_random(dropped.min(others), rng);
    out.extend((0i64..).zip(&canvas.cells).filter(|(_, dropped)| !**dropped).map(|(at, _)| at));
    out.push(others as i64);
}

/// The grid while a mask is drawn on it.
struct Canvas {
    rows: usize,
    columns: usize,
    /// Row-major.
    cells: Vec<bool>,
    marked: usize,
}

impl Canvas {
    fn new(rows: usize, columns: usize) -> Self {
        Self { rows, columns, cells: vec![false; rows * columns], marked: 0 }
    }

    /// Marks rectangles until `target` cells are marked or none fits; never more than `target`.
    ///
    /// The draws are those of BEiT's and EVA-02's generator (`EVA-02/asuka/masking_generator.py`):
    /// area uniform, aspect log-uniform, corner uniform, up to ten attempts a rectangle. Their
    /// smallest area, 16 cells of a 16x16 grid, is read as a sixteenth of any grid.
    fn mark_blocks(&mut self, target: usize, rng: &mut Rng) {
        const ATTEMPTS: usize = 10;
        const LOG_ASPECT: f64 = 1.203_972_804_325_936; // ln(1 / 0.3)
        let smallest = (self.cells.len() as f64 / 16.0).max(1.0);
        while self.marked < target {
            let room = target - self.marked;
            let accepted = (0..ATTEMPTS).any(|_| {
                // With less room than the smallest area, the bounds swap, as they do upstream.
                let area = rng.range(smallest.min(room as f64), smallest.max(room as f64));
                let aspect = rng.range(-LOG_ASPECT, LOG_ASPECT).exp();
                let height = (area * aspect).sqrt().round_ties_even() as usize;
                let width = (area / aspect).sqrt().round_ties_even() as usize;
                if height >= self.rows || width >= self.columns {
                    return false;
                }
                let top = rng.below((self.rows - height + 1) as u64) as usize;
                let left = rng.below((self.columns - width + 1) as u64) as usize;
                self.mark_rectangle(top, left, height, width, room)
            });
            if !accepted {
                break;
            }
        }
    }

    /// Marks a rectangle if that adds between one cell and `room` cells.
    fn mark_rectangle(
        &mut self,
        top: usize,
        left: usize,
        height: usize,
        width: usize,
        room: usize,
    ) -> bool {
        let row = |y: usize| y * self.columns + left..y * self.columns + left + width;
        let overlap: usize = (top..top + height)
            .map(|y| self.cells[row(y)].iter().map(|&mark| usize::from(mark)).sum::<usize>())
            .sum();
        let added = height * width - overlap;
        if added == 0 || added > room {
            return false;
        }
        for y in top..top + height {
            let span = row(y);
            self.cells[span].fill(true);
        }
        self.marked += added;
        true
    }

    /// Marks `count` of the unmarked cells, every subset equally likely.
    fn mark_random(&mut self, count: usize, rng: &mut Rng) {
        if count == 0 {
            return;
        }
        let mut free: Vec<usize> =
            (0..self.cells.len()).filter(|&cell| !self.cells[cell]).collect();
        // The first steps of a Fisher-Yates shuffle.
        for i in 0..count {
            let j = i + rng.below((free.len() - i) as u64) as usize;
            free.swap(i, j);
            self.cells[free[i]] = true;
        }
        self.marked += count;
    }
}

/// How often each patch was masked over many masks: what the paper's Fig. 3 shows.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskStatistics {
    /// Masks drawn.
    pub samples: usize,
    /// Share of the masks in which a patch is masked, row-major `[N]`.
    pub probability: Vec<f64>,
}

impl MaskStatistics {
    /// Draws the masks of the first `samples` positions of a run with this `seed`.
    pub fn collect(generator: &MaskGenerator, seed: u64, samples: usize) -> Self {
        let mut kept = vec![0u64; generator.patches()];
        let mut mask = Vec::with_capacity(generator.kept_count());
        for position in 0..samples as u64 {
            mask.clear();
            generator.kept(&mut Rng::new(seed, Purpose::Mask, &[position]), &mut mask);
            for &patch in &mask {
                kept[patch as usize] += 1;
            }
        }
        let total = samples.max(1) as f64;
        let probability = kept.iter().map(|&kept| 1.0 - kept as f64 / total).collect();
        Self { samples, probability }
    }

    /// The mean over the patches: the masking ratio.
    pub fn mean(&self) -> f64 {
        self.probability.iter().sum::<f64>() / self.probability.len() as f64
    }

    /// The standard deviation over the patches: 0 when all are masked equally often.
    pub fn standard_deviation(&self) -> f64 {
        let mean = self.mean();
        let squares: f64 = self.probability.iter().map(|p| (p - mean).powi(2)).sum();
        (squares / self.probability.len() as f64).sqrt()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const DRAWN: [MaskKind; 3] = [MaskKind::Random, MaskKind::Block, MaskKind::BlockReversed];

    #[test]
    fn every_mask_keeps_the_exact_count_sorted_and_in_range() {
        let grids = [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5), (6, 6), (16, 16), (24, 24)];
        for kind in MaskKind::ALL {
            for grid in grids {
                let patches = grid.0 * grid.1;
                for step in 0..40 {
                    let ratio = f64::from(step) / 40.0;
                    let masked = (ratio * patches as f64).round() as usize;
                    let made = MaskGenerator::new(kind, ratio, grid);
                    if kind != MaskKind::None && masked == patches {
                        assert_eq!(made.unwrap_err(), MaskError::NothingKept { ratio, patches });
                        continue;
                    }
                    let generator = made.unwrap();
                    let count = if kind == MaskKind::None { patches } else { patches - masked };
                    assert_eq!(generator.kept_count(), count);
                    for position in 0..20 {
                        let kept = generator.batch(7, &[position]);
                        assert_eq!(kept.len(), count, "{kind} {ratio} {grid:?}");
                        assert!(kept.windows(2).all(|pair| pair[0] < pair[1]));
                        assert!(kept.iter().all(|&patch| (0..patches as i64).contains(&patch)));
                    }
                }
            }
        }
    }

    #[test]
    fn a_mask_depends_on_seed_and_position_alone() {
        for kind in DRAWN {
            let generator = MaskGenerator::new(kind, 0.4, (16, 16)).unwrap();
            let kept = generator.kept_count();
            let whole = generator.batch(1, &[0, 1, 2, 3]);
            assert_eq!(whole[2 * kept..], generator.batch(1, &[2, 3]));
            assert_ne!(whole, generator.batch(2, &[0, 1, 2, 3]));
            assert_ne!(whole[..kept], whole[kept..2 * kept]);
        }
    }

    #[test]
    fn the_end_of_a_text_stays_and_the_share_of_the_other_tokens_is_dropped() {
        for (length, ratio, expected) in
            [(1, 0.5, 1), (2, 0.5, 1), (5, 0.5, 3), (77, 0.5, 39), (77, 0.0, 77), (9, 0.95, 1)]
        {
            let draw = |seed| {
                let mut kept = vec![];
                kept_tokens(length, ratio, &mut Rng::new(seed, Purpose::Mask, &[3]), &mut kept);
                kept
            };
            let kept = draw(1);
            assert_eq!((kept.len(), *kept.last().unwrap()), (expected, length as i64 - 1));
            assert!(kept.windows(2).all(|pair| pair[0] < pair[1]) && kept[0] >= 0);
            assert_eq!(kept, draw(1));
        }
    }

    #[test]
    fn what_no_mask_can_satisfy_is_refused() {
        for ratio in [-0.1, 1.0, 1.5, f64::NAN, f64::INFINITY] {
            let error = MaskGenerator::new(MaskKind::Random, ratio, (16, 16)).unwrap_err();
            assert!(matches!(error, MaskError::Ratio(_)), "{ratio}: {error}");
        }
        let error = MaskGenerator::new(MaskKind::Block, 0.5, (0, 16)).unwrap_err();
        assert_eq!(error, MaskError::EmptyGrid(0, 16));
        assert_eq!("blocks".parse::<MaskKind>(), Err(MaskError::Kind("blocks".into())));
        assert_eq!("block-reversed".parse(), Ok(MaskKind::BlockReversed));
    }

    /// Corner, middle of an edge, centre 2x2, each averaged over its symmetric cells, and the
    /// standard deviation over positions.
    fn profile(kind: MaskKind, ratio: f64) -> [f64; 4] {
        let generator = MaskGenerator::new(kind, ratio, (16, 16)).unwrap();
        let statistics = MaskStatistics::collect(&generator, 20, 5000);
        let mean_of = |cells: &[(usize, usize)]| {
            cells.iter().map(|(y, x)| statistics.probability[y * 16 + x]).sum::<f64>()
                / cells.len() as f64
        };
        [
            mean_of(&[(0, 0), (0, 15), (15, 0), (15, 15)]),
            mean_of(&[(0, 7), (0, 8), (15, 7), (15, 8), (7, 0), (8, 0), (7, 15), (8, 15)]),
            mean_of(&[(7, 7), (7, 8), (8, 7), (8, 8)]),
            statistics.standard_deviation(),
        ]
    }

    /// Expected values: an independent Python port of EVA-02's generator, 5000 masks, with every
    /// mask completed to the exact count. Tolerances are about three standard errors; the widest,
    /// of reversed masks, is that of the coin (0.007 a side), which moves all positions at once.
    #[test]
    fn masking_probabilities_match_an_independent_simulation() {
        let cases = [
            (MaskKind::Block, 0.4, [0.045, 0.193, 0.733, 0.201]),
            (MaskKind::Block, 0.5, [0.049, 0.249, 0.858, 0.234]),
            (MaskKind::BlockReversed, 0.4, [0.489, 0.428, 0.390, 0.033]),
            (MaskKind::BlockReversed, 0.5, [0.506, 0.502, 0.504, 0.006]),
            (MaskKind::BlockReversed, 0.7, [0.532, 0.653, 0.699, 0.054]),
        ];
        for (kind, ratio, expected) in cases {
            let found = profile(kind, ratio);
            let spread = if kind == MaskKind::Block { 0.005 } else { 0.012 };
            for (i, tolerance) in [0.025, 0.025, 0.025, spread].into_iter().enumerate() {
                assert!(
                    (found[i] - expected[i]).abs() < tolerance,
                    "{kind} {ratio}: {found:.3?}, expected {expected:?}"
                );
            }
        }
    }

    #[test]
    fn reversing_evens_out_what_blocks_favour() {
        assert!(profile(MaskKind::BlockReversed, 0.5)[3] < 0.01);
        assert!(profile(MaskKind::Random, 0.5)[3] < 0.01);
        assert!(profile(MaskKind::Block, 0.5)[3] > 0.2);
    }

    /// Neighbours agree far more often under a block mask than under a random one; reversing at a
    /// ratio far from 0.5 must not dissolve the blocks.
    #[test]
    fn reversed_masks_keep_their_block_structure_at_any_ratio() {
        for ratio in [0.3, 0.5, 0.7] {
            let agreement = |kind| {
                let generator = MaskGenerator::new(kind, ratio, (16, 16)).unwrap();
                let mut same = 0;
                for position in 0..500 {
                    let mut mask = [false; 256];
                    for patch in generator.batch(3, &[position]) {
                        mask[patch as usize] = true;
                    }
                    same += (0..256)
                        .filter(|cell| cell % 16 != 15 && mask[*cell] == mask[cell + 1])
                        .count();
                }
                f64::from(same as u32) / (500.0 * 240.0)
            };
            let random = agreement(MaskKind::Random);
            let reversed = agreement(MaskKind::BlockReversed);
            assert!(random < 0.62 && reversed > 0.8, "{ratio}: {random:.3} {reversed:.3}");
        }
    }
}
