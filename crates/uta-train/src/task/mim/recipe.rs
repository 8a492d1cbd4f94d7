//! The masks of task `mim` where a recipe doesn't say, and tasks `mim` and `uta-mim` in words.

use uta_data::mask::MaskKind;

use crate::recipe::words::TaskWords;
use crate::task::distill::recipe::Mask;

/// Task `mim` in words.
pub(crate) const WORDS: TaskWords = TaskWords {
    title: "Masked image modelling of CLIP's features",
    lead: "A vision transformer trained on images alone: it sees the visible patches and predicts, at the masked ones, what a \
           frozen CLIP (the teacher{teacher}) says there. No token of it is aligned with texts.",
    loss: "its loss is minus the mean cosine, at masked patches, of its tokens with the teacher's",
};

/// Task `uta-mim` in words.
pub(crate) const BOTH_WORDS: TaskWords = TaskWords {
    title: "Unmasked Token Alignment with masked image modelling",
    lead: "A vision transformer trained on images alone: it sees the visible patches and, for each masked one, a learned token; \
           all its tokens are pulled towards those of a frozen CLIP (the teacher{teacher}), whose text encoder then names what it \
           sees.",
    loss: "its loss is minus the cosine of its tokens with the teacher's, a mean over kept and one over masked patches",
};

/// EVA-02's choice: 105 of 256 patches in blocks (`EVA-02/asuka/run_eva02_pretraining.py`).
pub(crate) const MASK: Mask = Mask { kind: MaskKind::Block, ratio: 0.41 };
