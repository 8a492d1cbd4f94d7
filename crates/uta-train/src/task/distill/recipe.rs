//! The sections of a recipe that tasks with a teacher read: `[teacher]` and `[mask]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uta_data::mask::{MaskGenerator, MaskKind};

use crate::recipe::check::in_range;
use crate::recipe::model::Model;

/// The sections of tasks `align`, `mim` and `uta-mim`.
#[derive(Clone, Debug, PartialEq)]
pub struct DistillRecipe {
    /// Which of the student's tokens are to become the teacher's: the task.
    pub learns: Learns,
    /// The frozen CLIP.
    pub teacher: Teacher,
    /// Which patches are masked.
    pub mask: Mask,
}

/// Which of a student's tokens are to become its teacher's.
#[derive(Clone, Debug, PartialEq)]
pub enum Learns {
    /// Those of the patches that it sees, and `[CLS]`: task `align`.
    Kept,
    /// Those of the masked patches, each of which a learned token stands for: task `mim`.
    Masked,
    /// All: task `uta-mim`.
    Both(Mim),
}

impl Learns {
    /// The net's `aligned` in its configuration, beyond its having a mask token or none.
    pub(crate) fn aligned(&self) -> Option<bool> {
        match self {
            Learns::Kept | Learns::Masked => None,
            Learns::Both(mim) => Some(mim.weight < 1.0),
        }
    }
}

/// `[mim]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mim {
    /// w, the weight of prediction at masked patches beside 1 - w of alignment at the kept ones. With 0 the masked patches are
    /// seen as learned tokens all the same, so that it is not `align`.
    pub weight: f64,
}

impl Default for Mim {
    /// Both alike; the paper doesn't say its own (section 5).
    fn default() -> Mim {
        Mim { weight: 0.5 }
    }
}

impl DistillRecipe {
    /// Checks the sections, and gives the net a mask token where it needs one.
    ///
    /// # Errors
    /// Names the key, the value and what is allowed.
    pub(crate) fn check(&self, model: &mut Model) -> Result<(), String> {
        model.needs_vision()?;
        self.teacher.check()?;
        in_range("mask.ratio", self.mask.ratio, 0.0, 0.95)?;
        if let Learns::Both(mim) = &self.learns {
            in_range("mim.weight", mim.weight, 0.0, 1.0)?;
        }
        let fills = self.learns != Learns::Kept;
        if model.vision.mask_token && !fills {
            let message = "task \"align\" leaves masked patches out: use the preset without -mim, which model.init of such a \
                           net fits";
            return Err(format!("model.mask_token: {message}"));
        }
        model.vision.mask_token = fills;
        match fills {
            true => self.mask.masks_some(model.vision.grid()),
            false => Ok(()),
        }
    }
}

/// `[teacher]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Teacher {
    /// Anything that `--model` takes.
    pub path: Option<PathBuf>,
    /// The net's build, where the file alone can't tell: a preset or a configuration file. Without a path it gets random
    /// weights, to measure speed.
    pub arch: Option<String>,
    /// A folder of `uta cache`: targets that were computed once, so that no teacher is needed. Where `path` names one that is
    /// there all the same, the targets must be its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
}

impl Teacher {
    /// # Errors
    /// When it is nowhere.
    pub(crate) fn check(&self) -> Result<(), String> {
        match *self == Teacher::default() {
            true => Err("teacher: needs teacher.path or teacher.cache".into()),
            false => Ok(()),
        }
    }
}

/// `[mask]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mask {
    /// The shape of the masked part.
    pub kind: MaskKind,
    /// The share of patches that is masked.
    pub ratio: f64,
}

impl Mask {
    /// # Errors
    /// When it masks none of the patches of a `grid` x `grid` image.
    fn masks_some(&self, grid: i64) -> Result<(), String> {
        let Mask { kind, ratio } = *self;
        let masks = MaskGenerator::new(kind, ratio, (grid as usize, grid as usize));
        let masks = masks.map_err(|e| format!("mask: {e}"))?;
        let message = "masks no patch, so that nothing is predicted: use block, random or block-reversed, and a larger ratio";
        match masks.kept_count() == masks.patches() {
            true => Err(format!("mask.kind = {kind}, mask.ratio = {ratio}: {message}")),
            false => Ok(()),
        }
    }
}

/// `[mask]` as it is written: what is left out, the task says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenMask {
    kind: Option<MaskKind>,
    ratio: Option<f64>,
}

impl WrittenMask {
    /// The mask, where `default` stands for what is left out.
    pub fn or(self, default: Mask) -> Mask {
        Mask { kind: self.kind.unwrap_or(default.kind), ratio: self.ratio.unwrap_or(default.ratio) }
    }
}

impl From<Mask> for WrittenMask {
    fn from(mask: Mask) -> WrittenMask {
        WrittenMask { kind: Some(mask.kind), ratio: Some(mask.ratio) }
    }
}
