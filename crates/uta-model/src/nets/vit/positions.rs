//! Positions of tokens: which rows of the position embedding they have, how rotary embedding turns them, and their offsets
//! from each other.

use tch::{Device, Kind, Tensor};

use crate::nets::layers::{Scope, rows};
use crate::{RelPos, VitConfig};

/// Places of tokens, as attention needs them.
pub(super) struct Places {
    pub tokens: i64,               // T
    pub rotations: Option<Tensor>, // [B or 1, T, head_width]
    pub offsets: Option<Tensor>,   // [B or 1, T, T], rows of a table of relative positions
    pub bias: Option<Tensor>,      // [B or 1, H, T, T], where all blocks share one
}

/// The places of `[CLS]` and the `kept` patches [B, K] among all tokens: [B, 1+K].
pub(super) fn places(kept: &Tensor) -> Tensor {
    (kept + 1).constant_pad_nd([1, 0])
}

/// The 2-D rotary embedding (jihaonew/UTA, `eva_vit_model/rope.py`). A pair of channels is a complex number, and a rotation its
/// product with another: the first half of a head is rotated by the row, the second by the column. Row 0 of the table is
/// `[CLS]`: no rotation.
#[derive(Debug)]
pub(super) struct Rope {
    table: Tensor, // [1+N, head_width]: cos, sin, cos, ...
}

/// The grid that positions are measured in, whatever the model's own: 16 x 16, that of pre-training.
const PRETRAINING_GRID: f64 = 16.0;

const THETA: f64 = 10_000.0;

impl Rope {
    pub fn new(grid: i64, head_width: i64, device: Device) -> Rope {
        let half = head_width / 2; // real channels of an axis
        let angle = |position: i64, j: i64| {
            let t = position as f64 / grid as f64 * PRETRAINING_GRID;
            t * THETA.powf(-2.0 * j as f64 / half as f64)
        };
        let mut table = vec![[1f32, 0.0]; half as usize];
        for row in 0..grid {
            for column in 0..grid {
                for position in [row, column] {
                    for j in 0..half / 2 {
                        let (sin, cos) = angle(position, j).sin_cos();
                        table.push([cos as f32, sin as f32]);
                    }
                }
            }
        }
        let table = Tensor::from_slice(table.as_flattened()).view([1 + grid * grid, head_width]);
        Rope { table: table.to_device(device) }
    }

    /// The rotations of queries and keys of tokens at `places` [B, T], cos, sin, cos, ...: [B or 1, T, head_width].
    pub fn rotations(&self, places: Option<&Tensor>) -> Tensor {
        match places {
            Some(places) => rows(&self.table, places),
            None => self.table.unsqueeze(0),
        }
    }

    /// x [B, T, H, head_width] rotated, heads first: [B, H, T, head_width].
    pub fn apply(x: &Tensor, rotations: &Tensor) -> Tensor {
        if torch_ext::fuses(x.device(), x.size()[3]) {
            return torch_ext::rotate(x, rotations).expect("a table has a row for each token");
        }
        let complex = |x: &Tensor| x.unflatten(-1, [-1, 2]).view_as_complex();
        let rotated = complex(&x.to_kind(Kind::Float)) * complex(rotations).unsqueeze(2);
        rotated.view_as_real().flatten(-2, -1).to_kind(x.kind()).transpose(1, 2)
    }
}

/// Offsets of two tokens, as rows of a table of biases (BEiT; `timm/models/beit.py`): every offset on the grid, then from
/// `[CLS]`, to `[CLS]`, and `[CLS]` to itself.
#[derive(Debug)]
pub(super) struct RelativePositions {
    offsets: Tensor,            // [1+N, 1+N] i64
    pub shared: Option<Tensor>, // [offsets, H]
}

impl RelativePositions {
    pub fn new(s: &Scope, c: &VitConfig) -> Option<RelativePositions> {
        let g = c.grid();
        let last = c.offsets() - 1;
        let from_to = |a: i64, b: i64| match (a, b) {
            (0, 0) => last,
            (_, 0) => last - 1,
            (0, _) => last - 2,
            (a, b) => {
                let a = a - 1;
                let b = b - 1;
                (a / g - b / g + g - 1) * (2 * g - 1) + a % g - b % g + g - 1
            }
        };
        let shared = match c.rel_pos {
            RelPos::None => return None,
            RelPos::Shared => Some(table(&(s / "rel_pos_bias"), c)),
            RelPos::Blocks => None,
        };
        let tokens = 1 + g * g;
        let offsets: Vec<i64> =
            (0..tokens).flat_map(|a| (0..tokens).map(move |b| from_to(a, b))).collect();
        let offsets = Tensor::from_slice(&offsets).view([tokens, tokens]).to_device(s.device());
        Some(RelativePositions { offsets, shared })
    }

    /// Offsets of tokens at `places` [B, T]: [B or 1, T, T].
    pub fn offsets(&self, places: Option<&Tensor>) -> Tensor {
        match places {
            None => self.offsets.unsqueeze(0),
            Some(places) => {
                let cells = places.unsqueeze(-1) * self.offsets.size()[0] + places.unsqueeze(1);
                self.offsets.take(&cells)
            }
        }
    }
}

pub(super) fn table(s: &Scope, c: &VitConfig) -> Tensor {
    s.zeros("relative_position_bias_table", &[c.offsets(), c.heads])
}

/// The bias of attention's scores, [B or 1, H, T, T], from a table [offsets, H] and offsets [B or 1, T, T].
pub(super) fn bias(table: &Tensor, offsets: &Tensor) -> Tensor {
    rows(table, offsets).permute([0, 3, 1, 2])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Computed in f64: (head width, grid) and, for the patch in row 3, column 5, cos and sin at pairs 0, 1, 2 of the half that
    /// rotates by the row, then of the half that rotates by the column.
    #[test]
    fn rotary_rows_are_evas() {
        type Turns = [[f64; 3]; 4];
        let cases: [(i64, i64, Turns); 4] = [
            (
                64,
                16,
                [
                    [-0.989992, -0.115966, 0.582754],
                    [0.141120, 0.993253, 0.812649],
                    [0.283662, -0.946079, -0.010342],
                    [-0.958924, 0.323935, 0.999947],
                ],
            ),
            (
                64,
                14,
                [
                    [-0.959103, -0.349681, 0.467612],
                    [-0.283056, 0.936869, 0.883934],
                    [0.842494, -0.997424, -0.234029],
                    [-0.538705, -0.071725, 0.972230],
                ],
            ),
            (
                64,
                24,
                [
                    [-0.416147, 0.431463, 0.806578],
                    [0.909297, 0.902131, 0.591127],
                    [-0.981674, -0.299029, 0.494017],
                    [-0.190568, 0.954244, 0.869452],
                ],
            ),
            (
                88,
                16,
                [
                    [-0.989992, -0.392183, 0.268820],
                    [0.141120, 0.919887, 0.963190],
                    [0.283662, -0.989057, -0.559336],
                    [-0.958924, -0.147533, 0.828941],
                ],
            ),
        ];
        for (head_width, grid, expected) in cases {
            let rope = Rope::new(grid, head_width, Device::Cpu);
            let row = rope.table.get(1 + 3 * grid + 5).unflatten(0, [-1, 2]); // [head_width / 2, 2]
            for (i, values) in expected.iter().enumerate() {
                let axis = i as i64 / 2;
                let part = i as i64 % 2;
                for (pair, value) in values.iter().enumerate() {
                    let found = row.double_value(&[axis * head_width / 4 + pair as i64, part]);
                    assert!(
                        (found - value).abs() < 1e-6,
                        "{head_width}/{grid} {i} {pair}: {found}"
                    );
                }
            }
        }
    }
}
