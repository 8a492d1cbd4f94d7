//! Another image or patch size for a net that is trained already. Its position embedding, its tables of relative positions
//! and its patch embedding are interpolated by torch's bicubic kernel (a = -0.75, corners not aligned, no antialias), as EVA's
//! scripts do (baaivision/EVA, `EVA-02/asuka/run_class_finetuning.py`). Rotary tables are computed for the new grid anyway.

use tch::{Device, Kind, Tensor, no_grad};

use crate::{Clip, ClipConfig, ModelError, VitConfig};

/// A net for another image or patch size.
#[derive(Debug)]
pub struct Resized {
    /// The net, on the CPU.
    pub clip: Clip,
    /// The tensors that were interpolated: key, former shape, new shape. The others are as they were.
    pub changed: Vec<(String, Vec<i64>, Vec<i64>)>,
}

impl Clip {
    /// The same net for images of `image_size` pixels cut into patches of `patch_size`: 14 to 16 at 224 pixels, or 224 to
    /// 336 pixels. `[CLS]` keeps its row of the position embedding.
    ///
    /// # Errors
    /// When the sizes make no net.
    pub fn resized(&self, image_size: i64, patch_size: i64) -> Result<Resized, ModelError> {
        let vision = VitConfig { image_size, patch_size, ..self.config.vision.clone() };
        vision.check()?;
        let config = ClipConfig { vision, ..self.config.clone() };
        let clip = Clip::blank(&config, Device::Cpu);
        let before = self.store.variables();
        let mut changed = vec![];
        no_grad(|| {
            for (name, target) in clip.variables() {
                let stored = before[&name].to_device(Device::Cpu);
                let shape = target.size();
                let fit = fitted(&name, &stored, &shape).expect("nothing but the grid differs");
                target.shallow_clone().copy_(&fit);
                if stored.size() != shape {
                    changed.push((name, stored.size(), shape));
                }
            }
        });
        Ok(Resized { clip, changed })
    }
}

/// A position embedding [1, 1+N, D] for a grid of `grid` patches a side, f32 [1, 1+grid*grid, D]; row 0, that of `[CLS]`,
/// is untouched.
///
/// # Panics
/// When N is no square.
pub fn position_embedding(embedding: &Tensor, grid: i64) -> Tensor {
    let embedding = embedding.to_kind(Kind::Float);
    let (_, rows, width) = embedding.size3().expect("a position embedding is [1, 1+N, D]");
    let before = (rows - 1).isqrt();
    assert_eq!(before * before, rows - 1, "patches fill a square");
    if before == grid {
        return embedding;
    }
    let patches = embedding.narrow(1, 1, rows - 1).transpose(1, 2);
    let patches = bicubic(&patches.reshape([1, width, before, before]), grid);
    Tensor::cat(&[embedding.narrow(1, 0, 1), patches.flatten(2, 3).transpose(1, 2)], 1)
}

/// A patch embedding's weight [D, 3, P, P] for patches of `patch` pixels a side, f32 [D, 3, patch, patch]; the bias stays.
pub fn patch_embedding(weight: &Tensor, patch: i64) -> Tensor {
    let weight = weight.to_kind(Kind::Float);
    if weight.size().last() == Some(&patch) { weight } else { bicubic(&weight, patch) }
}

/// A table of relative positions [(2 G - 1)^2 + 3, H] (BEiT's) for a grid of `grid` patches a side, f32
/// [(2 grid - 1)^2 + 3, H]. Offsets are resized as an image (timm, `layers/pos_embed_rel.py`,
/// `resize_rel_pos_bias_table_simple`); the three rows of `[CLS]`, the last, are untouched.
///
/// # Panics
/// When the table is of no square grid.
pub fn relative_positions(table: &Tensor, grid: i64) -> Tensor {
    let table = table.to_kind(Kind::Float);
    let (rows, heads) = table.size2().expect("a table of relative positions is [offsets, H]");
    let before = (rows - 3).isqrt();
    let after = 2 * grid - 1;
    assert_eq!(before * before, rows - 3, "offsets fill a square");
    if before == after {
        return table;
    }
    let offsets = table.narrow(0, 0, rows - 3).transpose(0, 1);
    let offsets = bicubic(&offsets.reshape([1, heads, before, before]), after);
    let offsets = offsets.reshape([heads, -1]).transpose(0, 1);
    Tensor::cat(&[offsets, table.narrow(0, rows - 3, 3)], 0)
}

/// `stored`, a tensor of that name, in `shape`: itself where it has it, else resized where the name is one of the three above
/// and nothing but the grid or the patch differs. `None` where it can't be had.
pub(crate) fn fitted(name: &str, stored: &Tensor, shape: &[i64]) -> Option<Tensor> {
    let size = stored.size();
    if size == shape {
        return Some(stored.shallow_clone());
    }
    let side =
        |cells: i64| Some(cells.max(0).isqrt()).filter(|&side| side > 0 && side * side == cells);
    let before = &size[..];
    let after = shape;
    match (name.rsplit('.').next()?, before, after) {
        ("pos_embed", &[1, from, d], &[1, to, width]) if d == width => {
            side(from - 1).zip(side(to - 1)).map(|(_, grid)| position_embedding(stored, grid))
        }
        ("weight", &[d, 3, p, q], &[width, 3, patch, other])
            if name.ends_with("patch_embed.proj.weight")
                && d == width
                && p == q
                && patch == other =>
        {
            Some(patch_embedding(stored, patch))
        }
        ("relative_position_bias_table", &[from, h], &[to, heads]) if h == heads => side(from - 3)
            .zip(side(to - 3))
            .map(|(_, offsets)| relative_positions(stored, (offsets + 1) / 2)),
        _ => None,
    }
}

/// [B, C, S, S] -> [B, C, side, side].
fn bicubic(x: &Tensor, side: i64) -> Tensor {
    x.upsample_bicubic2d([side, side], false, None, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets of a grid of 3 whose bias rises by 10 a row and 1 a column, twice as fast for the second head.
    #[test]
    fn relative_positions_keep_their_rows_columns_heads_and_the_three_of_cls() {
        let cells = (0..25).map(|i| (10 * (i / 5) + i % 5) as f32).chain([100.0, 101.0, 102.0]);
        let values: Vec<f32> = cells.flat_map(|value| [value, 2.0 * value]).collect();
        let table = Tensor::from_slice(&values).view([28, 2]);
        let found = relative_positions(&table, 5);
        assert_eq!(found.size(), [84, 2]);
        let at = |row: i64, column: i64, head: i64| found.double_value(&[9 * row + column, head]);
        for head in 0..2 {
            let scale = (1 + head) as f64;
            // No offset stays none; along a row it rises by 5/9 of what it did.
            assert!((at(4, 4, head) - 22.0 * scale).abs() < 1e-5);
            assert!((at(4, 5, head) - at(4, 4, head) - scale * 5.0 / 9.0).abs() < 0.1 * scale);
            assert!((at(5, 4, head) - at(4, 4, head) - scale * 50.0 / 9.0).abs() < scale);
            for (row, value) in [(81, 100.0), (82, 101.0), (83, 102.0)] {
                assert!((found.double_value(&[row, head]) - scale * value).abs() < 1e-9);
            }
        }
        assert_eq!(relative_positions(&table, 3), table);
    }
}
