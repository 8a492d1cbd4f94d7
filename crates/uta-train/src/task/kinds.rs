//! The tasks there are: from a recipe's to a [`Task`].

use std::rc::Rc;

use tch::Device;
use torch_ext::distributed::ProcessGroup;
use uta_model::Clip;

use super::Task;
use super::align::Align;
use super::contrastive::Contrastive;
use super::distill::plan::{self, Shapes};
use super::distill::recipe::Learns;
use super::distill::{Distill, Objective};
use super::mim::Mim;
use super::text_align::plan::TextShapes;
use super::text_align::{self, TextAlign};
use crate::TrainError;
use crate::recipe::{Recipe, TaskKind, TaskRecipe};

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
        TaskRecipe::Distill(own) => {
            Box::new(Distill::new(recipe, own, objective(&own.learns), device)?)
        }
        TaskRecipe::TextAlign(own) => Box::new(TextAlign::new(recipe, own, device)?),
        TaskRecipe::Contrastive(own) => Box::new(Contrastive::new(recipe, own, device, group)?),
    })
}

/// The objective of a student: which of its teacher's tokens it learns.
fn objective(learns: &Learns) -> Box<dyn Objective> {
    match learns {
        Learns::Kept => Box::new(Align),
        Learns::Masked => Box::new(Mim { weight: 1.0 }),
        Learns::Both(mim) => Box::new(Mim { weight: mim.weight }),
    }
}

/// The task of `recipe` under `teacher`, where it is one that learns from a teacher's image tokens.
///
/// # Errors
/// When the teacher's patches or width don't fit the student's.
pub fn distill(
    recipe: &Recipe,
    teacher: Clip,
    device: Device,
) -> Result<Option<Distill>, TrainError> {
    let TaskRecipe::Distill(own) = &recipe.task else { return Ok(None) };
    Distill::with_teacher(recipe, own, objective(&own.learns), teacher, device).map(Some)
}

/// The shapes of a run, by what its samples are.
pub enum Planned {
    /// A run of a student and its teacher of images.
    Images(Shapes),
    /// A run on texts alone.
    Texts(TextShapes),
}

/// The shapes of a recipe's run, to plan it with; `model.out` becomes the teacher's width where it isn't written.
///
/// # Errors
/// When the teacher's sizes aren't known or don't fit; of a task whose runs can't be planned.
pub fn planned(recipe: &mut Recipe) -> Result<Planned, TrainError> {
    match recipe.task.clone() {
        TaskRecipe::Distill(own) => {
            let teacher = plan::teacher_config(&own.teacher)?;
            recipe.model.follow(teacher.vision.out);
            Ok(Planned::Images(Shapes::new(recipe, &own, &teacher)?))
        }
        TaskRecipe::TextAlign(own) => {
            let teacher = plan::teacher_config(&own.teacher)?;
            Ok(Planned::Texts(TextShapes::new(recipe, &own, &teacher)?))
        }
        TaskRecipe::Contrastive(_) => Err(TrainError::recipe(format!(
            "task \"{}\": its runs can't be planned yet, only those of {}",
            recipe.task.kind(),
            TaskKind::all_that(|task| task.has_section("teacher"))
        ))),
    }
}

/// Whether a CPU's step of `recipe` on `batch` images at a time has room in this machine's memory.
///
/// # Errors
/// When it has none.
pub fn has_room(recipe: &Recipe, batch: usize) -> Result<(), TrainError> {
    let patches = match &recipe.task {
        TaskRecipe::Distill(own) => plan::processed(recipe, own)?,
        TaskRecipe::TextAlign(own) => return text_align::plan::has_room(recipe, own, batch),
        TaskRecipe::Contrastive(_) => recipe.model.vision.num_patches(),
    };
    plan::has_room(recipe, patches, batch)
}
