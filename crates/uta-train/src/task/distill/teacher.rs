//! The teacher of a recipe, and the student's sizes and masks that fit it.

use tch::Device;
use uta_data::mask::{MaskGenerator, MaskKind};
use uta_model::{Clip, ClipConfig, VitConfig};

use super::recipe::{DistillRecipe, Teacher};
use crate::task::parts::load;
use crate::{Recipe, TrainError};

/// The teacher of a recipe: at its path, or of random weights.
///
/// # Errors
/// When there is none, or it can't be loaded.
pub(crate) fn load_teacher(teacher: &Teacher, device: Device) -> Result<Clip, TrainError> {
    match (&teacher.path, &teacher.arch) {
        (Some(path), arch) => Ok(load(path, arch.as_deref(), device)?),
        (None, Some(arch)) => Ok(Clip::new(&ClipConfig::preset(arch)?, device)),
        (None, None) => Err(TrainError::recipe("teacher: needs teacher.path or teacher.arch")),
    }
}

/// The student's sizes, with a token and a channel for each of the teacher's.
///
/// # Errors
/// When the recipe wants others.
pub(crate) fn student_config(
    recipe: &Recipe,
    teacher: &ClipConfig,
) -> Result<VitConfig, TrainError> {
    let mut model = recipe.model.clone();
    model.follow(teacher.vision.out);
    let (student, teacher) = (model.vision, &teacher.vision);
    for (what, ours, theirs) in [
        ("image_size", student.image_size, teacher.image_size),
        ("patch_size", student.patch_size, teacher.patch_size),
        ("out", student.out, teacher.out),
    ] {
        if ours != theirs {
            let hint = if what == "out" { ", which it is where it isn't written" } else { "" };
            return Err(TrainError::recipe(format!(
                "model.{what} = {ours}: must be the teacher's, {theirs}{hint}"
            )));
        }
    }
    Ok(student)
}

/// The masks of training, and those of validation: random at ratio 0.5 whatever the recipe trains with (paper A.3).
///
/// # Errors
/// When the recipe's masks don't fit the student's grid.
pub(crate) fn masks(
    recipe: &Recipe,
    own: &DistillRecipe,
) -> Result<(MaskGenerator, MaskGenerator), TrainError> {
    let side = recipe.model.vision.grid() as usize;
    let generator = |kind, ratio| {
        MaskGenerator::new(kind, ratio, (side, side))
            .map_err(|e| TrainError::recipe(format!("mask: {e}")))
    };
    Ok((generator(own.mask.kind, own.mask.ratio)?, generator(MaskKind::Random, 0.5)?))
}
