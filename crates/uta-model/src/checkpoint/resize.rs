//! Another image or patch size for a net that is trained already: its position embedding and its patch embedding are
//! interpolated by torch's bicubic kernel (a = -0.75, corners not aligned, no antialias), as EVA's scripts do (baaivision/EVA,
//! `EVA-02/asuka/run_class_finetuning.py`). Rotary tables are computed for the new grid anyway.

use tch::{Device, Kind, Tensor, no_grad};

use crate::{Clip, ClipConfig, ModelError, RelPos, VitConfig};

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
    /// When the sizes make no net, or positions are relative (BEiT).
    pub fn resized(&self, image_size: i64, patch_size: i64) -> Result<Resized, ModelError> {
        let vision = VitConfig { image_size, patch_size, ..self.config.vision.clone() };
        vision.check()?;
        if vision.rel_pos != RelPos::None {
            let message = "tables of relative positions can't be resized here";
            return Err(ModelError::Config(message.into()));
        }
        let grid = vision.grid();
        let config = ClipConfig { vision, ..self.config.clone() };
        let clip = Clip::blank(&config, Device::Cpu);
        let before = self.store.variables();
        let mut changed = vec![];
        no_grad(|| {
            for (name, target) in clip.variables() {
                let stored = before[&name].to_device(Device::Cpu);
                let resized = match name.as_str() {
                    "visual.pos_embed" => position_embedding(&stored, grid),
                    "visual.patch_embed.proj.weight" => patch_embedding(&stored, patch_size),
                    _ => stored.shallow_clone(),
                };
                if resized.size() != stored.size() {
                    changed.push((name, stored.size(), resized.size()));
                }
                target.shallow_clone().copy_(&resized);
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

/// [B, C, S, S] -> [B, C, side, side].
fn bicubic(x: &Tensor, side: i64) -> Tensor {
    x.upsample_bicubic2d([side, side], false, None, None)
}
