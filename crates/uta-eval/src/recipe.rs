//! Evaluations as a recipe lists them (`[[eval.sets]]`), and how each becomes an [`Evaluator`].

use std::path::PathBuf;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use uta_data::PairOptions;
use uta_model::Clip;

use crate::{ClassSet, EvalError, EvalOptions, Evaluator, Retrieval, ZeroShot};

/// One `[[eval.sets]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalSet {
    /// Its name in metrics and reports.
    pub name: String,
    /// The measurement.
    pub kind: EvalKind,
    /// Shards, folder or table of pairs.
    pub data: String,
    /// Which set of the paper's Table 1 it is, as `uta eval zeroshot --set`; guessed from the layout when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    /// Pixels cut from each side of an image: 2 for ObjectNet's frame.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub border: u32,
    /// A class name a line; beside the data when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classnames: Option<PathBuf>,
    /// A template with `{}` a line; beside the data when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub templates: Option<PathBuf>,
    /// How a table of pairs is read.
    #[serde(default, skip_serializing_if = "PairOptions::is_plain")]
    pub pairs: PairOptions,
}

/// The measurements that a recipe can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EvalKind {
    /// Zero-shot classification.
    Zeroshot,
    /// Image-text retrieval.
    Retrieval,
}

impl EvalSet {
    /// Opens a zero-shot set; what may be a mistake in it is logged by the first rank.
    ///
    /// # Errors
    /// As [`ClassSet::open`]; a name that isn't one of Table 1's.
    pub fn class_set(&self, is_first: bool) -> Result<ClassSet, EvalError> {
        let named = self.set.as_deref().map(str::parse).transpose()?;
        let (names, templates) = (self.classnames.as_deref(), self.templates.as_deref());
        let found = ClassSet::open(std::slice::from_ref(&self.data), named, names, templates)?;
        for warning in found.warnings.iter().filter(|_| is_first) {
            tracing::warn!("{}: {warning}", self.name);
        }
        Ok(found)
    }

    /// This measurement of `clip`, which has a text tower of its own.
    ///
    /// # Errors
    /// When the data can't be opened, or keys are given that the measurement doesn't read.
    pub fn of_clip(&self, clip: Rc<Clip>, options: &EvalOptions) -> Result<Evaluator, EvalError> {
        let options = EvalOptions { border: self.border, ..options.clone() };
        Ok(match self.kind {
            EvalKind::Zeroshot => {
                let ClassSet { source, prompts, .. } = self.class_set(options.group.is_first())?;
                let task = ZeroShot::new(&self.name, source, prompts, options);
                Evaluator::new(&self.name, move || Ok(task.run(&clip)?.numbers()))
            }
            EvalKind::Retrieval => {
                let words = [
                    ("set", self.set.is_some()),
                    ("classnames", self.classnames.is_some()),
                    ("templates", self.templates.is_some()),
                ];
                if let Some((key, _)) = words.into_iter().find(|&(_, given)| given) {
                    let message = format!("{key}: retrieval has no classes; leave it out");
                    return Err(EvalError::Recipe { set: self.name.clone(), message });
                }
                let source = uta_data::open_with(std::slice::from_ref(&self.data), &self.pairs)?;
                let task = Retrieval::new(&self.name, source, options);
                Evaluator::new(&self.name, move || Ok(task.run(&clip)?.numbers()))
            }
        })
    }
}

fn is_zero(pixels: &u32) -> bool {
    *pixels == 0
}
