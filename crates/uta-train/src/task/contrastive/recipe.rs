//! The section of a recipe that task `contrastive` reads.

use serde::{Deserialize, Serialize};

use crate::recipe::check::{in_range, require};
use crate::recipe::model::Model;
use crate::recipe::train::Train;
use crate::recipe::words::TaskWords;

/// The task in words.
pub(crate) const WORDS: TaskWords = TaskWords {
    title: "Contrastive pre-training",
    lead: "An image and a text encoder trained together, so that a picture and its caption meet.",
    loss: "its loss is the mean cross-entropy of finding each picture's caption, and each caption's picture, in a batch",
};

/// `[contrastive]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContrastiveRecipe {
    /// The softmax temperature at the start.
    pub temperature: f64,
    /// Whether the temperature is learned (never below 0.01) or stays.
    pub learn_temperature: bool,
    /// Share of the target spread over all pairs of the batch.
    pub label_smoothing: f64,
}

impl Default for ContrastiveRecipe {
    /// CLIP's: 0.07, learned.
    fn default() -> ContrastiveRecipe {
        ContrastiveRecipe { temperature: 0.07, learn_temperature: true, label_smoothing: 0.0 }
    }
}

impl ContrastiveRecipe {
    /// Checks the section, and sets `model.out` to the text tower's width unless it is written.
    ///
    /// # Errors
    /// Names the key, the value and what is allowed.
    pub(crate) fn check(&self, model: &mut Model, train: &Train) -> Result<(), String> {
        in_range("contrastive.temperature", self.temperature, 0.01, 10.0)?;
        in_range("contrastive.label_smoothing", self.label_smoothing, 0.0, 0.9)?;
        model.needs_vision()?;
        let none = "model.text: task \"contrastive\" needs a text tower";
        let out = model.text.as_ref().ok_or(none)?.out;
        model.follow(out);
        require(
            "train.accumulate",
            train.accumulate,
            train.accumulate == 1,
            "1 for task \"contrastive\": each pair is compared with the whole batch",
        )
    }
}
