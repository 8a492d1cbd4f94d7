//! The tasks there are: from a recipe's to a [`Task`].

use std::rc::Rc;

use tch::Device;
use torch_ext::distributed::ProcessGroup;
use uta_model::Clip;

use super::align::plan::Shapes;
use super::align::{self, Align};
use super::contrastive::Contrastive;
use super::{Distill, Task};
use crate::TrainError;
use crate::recipe::{Recipe, TaskRecipe};

/// The task of a recipe on `device`, for this rank of `group`, its model at its initial weights. Reseeds libtorch's generator.
///
/// # Errors
/// When a checkpoint can't be loaded or doesn't fit.
pub fn build(
    recipe: &Recipe,
    device: Device,
    group: &Rc<ProcessGroup>,
) -> Result<Box<dyn Task>, TrainError> {
    tch::manual_seed(recipe.train.seed as i64);
    Ok(match &recipe.task {
        TaskRecipe::Align(own) => Box::new(Align::new(recipe, own, device)?),
        TaskRecipe::Contrastive(own) => Box::new(Contrastive::new(recipe, own, device, group)?),
    })
}

/// The task of `recipe` under `teacher`, where it is one that learns from a teacher.
///
/// # Errors
/// When the teacher's patches or width don't fit the student's.
pub fn distill(
    recipe: &Recipe,
    teacher: Clip,
    device: Device,
) -> Result<Option<Box<dyn Distill>>, TrainError> {
    Ok(match &recipe.task {
        TaskRecipe::Align(own) => {
            Some(Box::new(Align::with_teacher(recipe, own, teacher, device)?))
        }
        TaskRecipe::Contrastive(_) => None,
    })
}

/// The shapes of a recipe's run, to plan it with; `model.out` becomes the teacher's width where it isn't written.
///
/// # Errors
/// When the teacher's sizes aren't known or don't fit; of a task whose runs can't be planned.
pub fn planned(recipe: &mut Recipe) -> Result<Shapes, TrainError> {
    let TaskRecipe::Align(own) = recipe.task.clone() else {
        return Err(TrainError::recipe(format!(
            "task \"{}\": its runs can't be planned yet, only those of align",
            recipe.task.kind()
        )));
    };
    let teacher = align::plan::teacher_config(&own.teacher)?;
    recipe.model.follow(teacher.vision.out);
    Shapes::new(recipe, &own, &teacher)
}

/// Whether a CPU's step of `recipe` on `batch` images at a time has room in this machine's memory.
///
/// # Errors
/// When it has none.
pub fn has_room(recipe: &Recipe, batch: usize) -> Result<(), TrainError> {
    let kept = match &recipe.task {
        TaskRecipe::Align(own) => align::masks(recipe, own)?.0.kept_count() as i64,
        TaskRecipe::Contrastive(_) => recipe.model.vision.num_patches(),
    };
    align::plan::has_room(recipe, kept, batch)
}
