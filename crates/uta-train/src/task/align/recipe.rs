//! The masks of task `align` where a recipe doesn't say, and the task in words.

use uta_data::mask::MaskKind;

use crate::recipe::words::TaskWords;
use crate::task::distill::recipe::Mask;

/// The task in words.
pub(crate) const WORDS: TaskWords = TaskWords {
    title: "Unmasked Token Alignment",
    lead: "A vision transformer trained on images alone: the tokens of its visible patches are aligned with those of a frozen \
           CLIP (the teacher{teacher}), whose text encoder then names what it sees.",
    loss: "its loss is minus the mean cosine of its tokens with the teacher's",
};

/// The paper's choice for ViT-L (section 3).
pub(crate) const MASK: Mask = Mask { kind: MaskKind::BlockReversed, ratio: 0.5 };
