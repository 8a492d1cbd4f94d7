//! The seam between a model and the loop: a task owns the trainable model, the frozen teacher and the loss.

pub(crate) mod align;
pub(crate) mod contrastive;
pub(crate) mod distill;
pub(crate) mod kinds;
pub(crate) mod mim;
pub(crate) mod parts;
pub(crate) mod text_align;

use std::path::Path;
use std::sync::Arc;

use tch::{Kind, Tensor};
use uta_data::{Batch, LabelKind, Source, Transform};
use uta_eval::{EvalOptions, EvalSet, Evaluator};
use uta_model::{ModelError, Parameter};

use crate::recipe::Data;
use crate::{Recipe, TrainError};

/// Whether a forward pass is for learning or for measuring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Drop path on; the task's own masks.
    Train,
    /// Drop path off; masks whose kind and ratio don't depend on the recipe, so that losses of different runs compare.
    Validate,
}

/// The result of a batch.
#[derive(Debug)]
pub struct Output {
    /// The mean over `count` things, an f32 scalar on the device; 0, not NaN, where there are none.
    pub loss: Tensor,
    /// How many things the loss and the metrics are means of: images, answer tokens. Micro-batches and ranks are weighed by it.
    pub count: f64,
    /// Further named means, f32 scalars on the device, for the log.
    pub metrics: Vec<(&'static str, Tensor)>,
}

/// A model in training.
pub trait Task {
    /// The tensors that the optimiser changes. Every loss gives each of them a gradient: a part of the net that no sample of
    /// a batch reaches adds 0 times its weights.
    fn parameters(&self) -> Vec<Parameter>;

    /// The tensors of a checkpoint by name: the parameters, and copies of what else makes it a whole model.
    fn saved(&self) -> Vec<(String, Tensor)> {
        self.parameters().into_iter().map(|p| (p.name, p.tensor)).collect()
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

    /// The way from a sample to its views, in the decoding threads; by default pixels alone, as `data` says.
    fn transform(&self, data: &Data, mode: Mode) -> Arc<dyn Transform> {
        parts::views(data, mode, LabelKind::None)
    }

    /// Whether it can train on these sources.
    ///
    /// # Errors
    /// When what was computed before is of others, or validation lacks what the task needs; a stream looks at the training set.
    fn check_data(&self, _train: &dyn Source, _val: Option<&dyn Source>) -> Result<(), TrainError> {
        Ok(())
    }

    /// Multiply-accumulates of a step's products for one sample, whose image is seen whole and whose text has full length.
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
