//! The sections of a recipe that task `align` reads: `[teacher]` and `[mask]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uta_data::mask::MaskKind;

use crate::recipe::check::in_range;
use crate::recipe::words::TaskWords;

/// The task in words.
pub(crate) const WORDS: TaskWords = TaskWords {
    title: "Unmasked Token Alignment",
    lead: "A vision transformer trained on images alone: the tokens of its visible patches are aligned with those of a frozen \
           CLIP (the teacher{teacher}), whose text encoder then names what it sees.",
    loss: "its loss is minus the mean cosine of its tokens with the teacher's",
};

/// Sections of task `align`.
#[derive(Clone, Debug, PartialEq)]
pub struct AlignRecipe {
    /// The frozen CLIP.
    pub teacher: Teacher,
    /// The patches that the student sees.
    pub mask: Mask,
}

impl AlignRecipe {
    /// # Errors
    /// Names the key, the value and what is allowed.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.teacher == Teacher::default() {
            return Err("teacher: task \"align\" needs teacher.path or teacher.cache".into());
        }
        in_range("mask.ratio", self.mask.ratio, 0.0, 0.95)
    }
}

/// `[teacher]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Teacher {
    /// Anything that `--model` takes.
    pub path: Option<PathBuf>,
    /// What the net is, where the file alone can't tell: a preset or a configuration file. Without a path it gets random
    /// weights, to measure speed.
    pub arch: Option<String>,
    /// A folder of `uta cache`: targets that were computed once, so that no teacher is needed. Where `path` names one that is
    /// there all the same, the targets must be its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
}

/// `[mask]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mask {
    /// The shape of the hidden part.
    pub kind: MaskKind,
    /// The share of patches hidden from the student.
    pub ratio: f64,
}

impl Default for Mask {
    /// The paper's choice for ViT-L (section 3).
    fn default() -> Mask {
        Mask { kind: MaskKind::BlockReversed, ratio: 0.5 }
    }
}
