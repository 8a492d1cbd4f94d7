//! The seam between a model and the loop: a task owns the trainable model, the frozen teacher and the loss.

pub(crate) mod align;
mod contrastive;

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};
use torch_ext::distributed::ProcessGroup;
use uta_data::targets::Replay;
use uta_data::{Batch, Source};
use uta_eval::{EvalOptions, EvalSet, Evaluator};
use uta_model::{Clip, ModelError, Origin};

pub use align::Align;
pub(crate) use align::load_teacher;
pub use contrastive::Contrastive;

use crate::recipe::{Recipe, TaskKind};
use crate::{Parameter, TrainError};

/// Whether a forward pass is for learning or for measuring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Drop path on; the task's own masks.
    Train,
    /// Drop path off; masks whose kind and ratio don't depend on the recipe, so that losses of different runs compare.
    Validate,
}

/// What a batch gives.
#[derive(Debug)]
pub struct Output {
    /// The mean over the batch, an f32 scalar on the device. Its mean over ranks with equally many samples is that of the
    /// global batch.
    pub loss: Tensor,
    /// Further named means, f32 scalars on the device, for the log.
    pub metrics: Vec<(&'static str, Tensor)>,
}

/// A model in training.
pub trait Task {
    /// What the optimiser changes.
    fn parameters(&self) -> Vec<Parameter>;

    /// What a checkpoint holds: the parameters, and copies of what else makes it a whole model.
    fn saved(&self) -> Vec<Parameter> {
        self.parameters()
    }

    /// The loss of a batch. Called under the run's autocast; randomness inside (drop path) comes from libtorch's
    /// generator, which the trainer seeds anew for every step.
    ///
    /// # Errors
    /// When the batch lacks what the task needs.
    fn forward(&self, batch: &Batch, mode: Mode) -> Result<Output, TrainError>;

    /// Whether the loss spans the batches of all ranks: then each must call [`Task::forward`] when the others do, and in
    /// validation even with an empty batch, whose output counts for nothing.
    fn spans_ranks(&self) -> bool {
        false
    }

    /// Whether each image must come with a caption.
    fn wants_captions(&self) -> bool {
        false
    }

    /// The targets that training batches come with, where they were computed before.
    fn replay(&self) -> Option<Arc<Replay>> {
        None
    }

    /// Whether it can train on these sources.
    ///
    /// # Errors
    /// When what was computed before is of others, or validation lacks what the task needs; a stream looks at the training set.
    fn check_data(&self, _train: &dyn Source, _val: Option<&dyn Source>) -> Result<(), TrainError> {
        Ok(())
    }

    /// Multiply-accumulates of the image encoders' products in a step, for one image that is seen whole.
    fn macs(&self) -> u64;

    /// Writes into the recipe what its keys left to the task, such as the width of the net's output.
    fn complete(&self, _recipe: &mut Recipe) {}

    /// Saves the net as a `--model` in `dir`: its configuration, and its weights in the type of `weights` unless that is
    /// `None`.
    ///
    /// # Errors
    /// When a file can't be written.
    fn save(&self, dir: &Path, weights: Option<Kind>) -> Result<(), ModelError>;

    /// The measurements of `sets`, which hold the net in training.
    ///
    /// # Errors
    /// When a set can't be opened, or this task's net has no answer to its kind.
    fn evaluators(
        &self,
        sets: &[EvalSet],
        options: &EvalOptions,
    ) -> Result<Vec<Evaluator>, TrainError>;

    /// Called after each optimiser step, for constraints on parameters.
    fn constrain(&self) {}
}

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
    Ok(match recipe.task {
        TaskKind::Align => Box::new(Align::new(recipe, device)?),
        TaskKind::Contrastive => Box::new(Contrastive::new(recipe, device, group)?),
    })
}

/// The CLIP at `path` (its net named by `arch` where the file can't tell). What was assumed about it is said in the log.
///
/// # Errors
/// When there is no such model.
pub fn load(path: &Path, arch: Option<&str>, device: Device) -> Result<Clip, ModelError> {
    let clip = Origin::open(path, arch)?.into_clip(device)?;
    for note in &clip.notes {
        tracing::warn!("{}: {note}", path.display());
    }
    Ok(clip)
}

/// Copies `towers` (`visual.`, `text.`) of what `init` names into the model; `"random"` leaves it as it is. A text tower stays
/// too where `init` has none, and `false` says so.
fn initialise(clip: &Clip, init: &str, towers: &[&str]) -> Result<bool, TrainError> {
    if init == "random" {
        return Ok(true);
    }
    let source = load(Path::new(init), None, clip.store.device())?;
    let mut whole = true;
    for &tower in towers {
        match tower == "text." && source.text.is_none() {
            true => whole = false,
            false => clip.copy_from(&source, tower)?,
        }
    }
    Ok(whole)
}

/// The trainable parameters of a store whose key starts with one of `prefixes`.
fn parameters_of(clip: &Clip, prefixes: &[&str]) -> Vec<Parameter> {
    let mut parameters: Vec<Parameter> = clip
        .store
        .variables()
        .into_iter()
        .filter(|(name, _)| prefixes.iter().any(|prefix| name.starts_with(prefix)))
        .map(|(name, tensor)| Parameter { name, tensor })
        .collect();
    parameters.sort_by(|a, b| a.name.cmp(&b.name));
    parameters
}

/// Saves a CLIP in training as [`Task::save`] asks.
fn save_clip(clip: &Clip, dir: &Path, weights: Option<Kind>) -> Result<(), ModelError> {
    match weights {
        Some(kind) => clip.save(dir, kind),
        None => clip.save_config(dir),
    }
}

/// The measurements of a CLIP in training.
fn clip_evaluators(
    clip: &Rc<Clip>,
    sets: &[EvalSet],
    options: &EvalOptions,
) -> Result<Vec<Evaluator>, TrainError> {
    sets.iter().map(|set| Ok(set.of_clip(clip.clone(), options)?)).collect()
}

pub(crate) fn to_device(tensor: Tensor, device: Device) -> Tensor {
    torch_ext::upload(tensor, device).expect("a batch has room on its device")
}
