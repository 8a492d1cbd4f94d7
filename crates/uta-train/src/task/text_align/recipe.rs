//! The sections of a recipe that task `text-align` reads: `[model.text]`, `[teacher]` and `[mask]`.

use uta_data::mask::MaskKind;

use crate::recipe::check::in_range;
use crate::recipe::model::Model;
use crate::recipe::train::Train;
use crate::recipe::words::TaskWords;
use crate::task::distill::recipe::{Mask, Teacher};

/// The task in words.
pub(crate) const WORDS: TaskWords = TaskWords {
    title: "Unmasked Token Alignment of a text encoder",
    lead: "A text encoder trained on captions alone: the tokens that it sees of each are aligned with those of a frozen CLIP \
           (the teacher{teacher}), whose image encoder it then finds words for.",
    loss: "its loss is minus the mean cosine of its tokens with the teacher's",
};

/// As `align`'s for images; the paper says that text is masked at random (section 5), and not how much.
pub(crate) const MASK: Mask = Mask { kind: MaskKind::Random, ratio: 0.5 };

/// Sections of task `text-align`.
#[derive(Clone, Debug, PartialEq)]
pub struct TextAlignRecipe {
    /// The frozen CLIP, of which the text encoder teaches.
    pub teacher: Teacher,
    /// The share of a text's tokens that is dropped.
    pub mask: Mask,
}

impl TextAlignRecipe {
    /// # Errors
    /// Names the key, the value and what is allowed.
    pub(crate) fn check(&self, model: &Model, train: &Train) -> Result<(), String> {
        model.needs_text()?;
        self.teacher.check()?;
        if self.teacher.cache.is_some() {
            return Err(
                "teacher.cache: `uta cache` keeps image tokens, not those of texts: leave it out"
                    .into(),
            );
        }
        let Mask { kind, ratio } = self.mask;
        if !matches!(kind, MaskKind::Random | MaskKind::None) {
            return Err(format!("mask.kind = {kind}: a text has no blocks; use random or none"));
        }
        if train.checkpoint_blocks {
            return Err("train.checkpoint_blocks: a text tower's blocks can't be checkpointed: leave it out".into());
        }
        in_range("mask.ratio", ratio, 0.0, 0.95)
    }

    /// The share of a text's tokens that is dropped.
    pub(crate) fn ratio(&self) -> f64 {
        if self.mask.kind == MaskKind::None { 0.0 } else { self.mask.ratio }
    }
}
