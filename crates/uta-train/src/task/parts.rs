//! Parts that tasks share.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};
use uta_data::{EvalTransform, EvalViews, LabelKind, TextViews, TrainViews, Transform};
use uta_eval::{EvalOptions, EvalSet, Evaluator};
use uta_model::{Clip, ModelError, Origin};

use super::Mode;
use crate::recipe::Data;
use crate::{Recipe, TrainError};

/// The views of `data` with a label that each sample must have: augmented for training, plain for validation.
pub(crate) fn views(data: &Data, mode: Mode, label: LabelKind) -> Arc<dyn Transform> {
    let decode = data.decode();
    match mode {
        Mode::Train => Arc::new(TrainViews { transform: data.transforms.clone(), decode, label }),
        Mode::Validate => {
            let transform = EvalTransform::new(data.image_size);
            Arc::new(EvalViews { transform, decode, label, required: true })
        }
    }
}

/// The views that the task of `recipe` takes, as far as its recipe alone says.
pub(crate) fn views_of(recipe: &Recipe, mode: Mode) -> Arc<dyn Transform> {
    match recipe.task.reads_texts_alone() {
        true => Arc::new(TextViews { drawn: mode == Mode::Train }),
        false => views(&recipe.data, mode, recipe.task.label()),
    }
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

/// Starts `towers` (`visual.`, `text.`) of the model from what `init` names, and logs what was taken, resized and left;
/// `"random"` leaves them as they are. A text tower stays too where `init` has none, and `false` says so.
pub(super) fn initialise(clip: &Clip, init: &str, towers: &[&str]) -> Result<bool, TrainError> {
    if init == "random" {
        return Ok(true);
    }
    let source = load(Path::new(init), None, clip.store.device())?;
    let there = |tower: &&str| *tower != "text." || source.text.is_some();
    let found: Vec<&str> = towers.iter().copied().filter(there).collect();
    let report = clip
        .start_from(&source, &found)
        .map_err(|e| TrainError::recipe(format!("model.init = {init}: {e}")))?;
    tracing::info!("model.init = {init}: {report}");
    Ok(found.len() == towers.len())
}

/// Saves a CLIP in training as [`crate::Task::save`] asks.
pub(super) fn save_clip(clip: &Clip, dir: &Path, weights: Option<Kind>) -> Result<(), ModelError> {
    match weights {
        Some(kind) => clip.save(dir, kind),
        None => clip.save_config(dir),
    }
}

/// The measurements of a CLIP in training.
pub(super) fn clip_evaluators(
    clip: &Rc<Clip>,
    sets: &[EvalSet],
    options: &EvalOptions,
) -> Result<Vec<Evaluator>, TrainError> {
    sets.iter().map(|set| Ok(set.of_clip(clip.clone(), options)?)).collect()
}

pub(super) fn to_device(tensor: Tensor, device: Device) -> Tensor {
    torch_ext::upload(tensor, device).expect("a batch has room on its device")
}
