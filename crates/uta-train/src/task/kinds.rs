//! The tasks there are: from a recipe's to a [`Task`].

use std::rc::Rc;

use tch::Device;
use torch_ext::distributed::ProcessGroup;

use super::Task;
use super::align::{self, Align};
use super::contrastive::Contrastive;
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
