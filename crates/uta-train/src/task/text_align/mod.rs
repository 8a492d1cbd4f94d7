//! Unmasked Token Alignment of a text encoder (paper section 5): the student sees some of a caption's tokens, the end of text
//! always among them, the frozen teacher sees all, and every token of the student is pulled towards the same token of the teacher.
//!
//! Shapes: B texts, T tokens of the longest, K kept tokens of the one with most, E width of the shared space.

pub mod plan;
pub(crate) mod recipe;

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use tch::{Device, Kind, Tensor, nn, no_grad};
use uta_data::mask::kept_tokens;
use uta_data::rng::{Purpose, Rng};
use uta_data::{Batch, Source, TextViews, Tokenizer, Transform, require_captions};
use uta_eval::{EvalOptions, EvalSet, Evaluator};
use uta_model::{
    ByLength, Clip, ClipConfig, ModelError, Parameter, TextConfig, TextTower, VitConfig,
};

use self::recipe::TextAlignRecipe;
use super::distill::recipe::Teacher;
use super::distill::{cosine, load_teacher};
use super::parts::{clip_evaluators, initialise, save_clip, to_device};
use super::{Mode, Output, Task};
use crate::TrainError;
use crate::recipe::{Data, Recipe};

/// Texts are encoded in this many parts, shortest first, so that few tokens are padding.
const PARTS: usize = 4;

/// Alignment of a text tower.
pub struct TextAlign {
    /// The text tower in training with the teacher's image encoder, so that it is a CLIP at any time.
    student: Rc<Clip>,
    teacher: TextTower,
    tokenizer: Tokenizer,
    /// The share of tokens that is dropped; half of them in validation, whatever the recipe says.
    ratio: f64,
    seed: u64,
    /// Multiply-accumulates of a step's products for a text of full length.
    macs: u64,
}

/// The share of tokens dropped in validation, so that runs compare (as images', paper A.3).
const VALIDATION_RATIO: f64 = 0.5;

impl TextAlign {
    /// # Errors
    /// When the teacher can't be loaded or has no text encoder, or its tokens or width don't fit the student's.
    pub fn new(
        recipe: &Recipe,
        own: &TextAlignRecipe,
        device: Device,
    ) -> Result<TextAlign, TrainError> {
        let theirs = teacher(&own.teacher, device)?;
        let none =
            || TrainError::recipe("teacher: has no text encoder, so that it can't teach one");
        let text = theirs.config.text.clone().ok_or_else(none)?;
        let config = student_config(recipe, &text)?;
        let macs = 3 * config.macs() + text.macs();
        let config = ClipConfig { text: Some(config), ..theirs.config.clone() };
        let student = Clip::new(&config, device);
        initialise(&student, &recipe.model.init, &["text."])?;
        student.copy_from(&theirs, "visual.")?;
        student.copy_from(&theirs, "logit_scale")?;
        for (name, tensor) in student.variables() {
            if !name.starts_with("text.") {
                let _ = tensor.set_requires_grad(false);
            }
        }
        // The teacher's text tower alone: its image encoder is the student's now.
        let store = nn::VarStore::new(device);
        let teacher = TextTower::new(&(store.root() / "text"), &text);
        let taught = theirs.store.variables();
        no_grad(|| {
            for (name, tensor) in store.variables() {
                tensor.shallow_clone().copy_(&taught[&name]);
            }
        });
        let tokenizer = Tokenizer::new(text.vocab_size as usize, text.context_length as usize)?;
        let (ratio, seed) = (own.ratio(), recipe.train.seed);
        Ok(TextAlign { student: Rc::new(student), teacher, tokenizer, ratio, seed, macs })
    }

    fn text(&self) -> &TextTower {
        self.student.text.as_ref().expect("made with one")
    }

    /// The kept tokens of texts of these lengths at these positions, i64 [B, K], and which of them are any, bool [B, K]: rows with
    /// fewer are filled up with their last.
    fn kept(&self, lengths: &[usize], positions: &[u64], mode: Mode) -> (Tensor, Tensor) {
        let ratio = if mode == Mode::Train { self.ratio } else { VALIDATION_RATIO };
        let rows: Vec<Vec<i64>> = lengths
            .iter()
            .zip(positions)
            .map(|(&length, &position)| {
                let mut kept = vec![];
                let mut rng = Rng::new(self.seed, Purpose::Mask, &[position]);
                kept_tokens(length, ratio, &mut rng, &mut kept);
                kept
            })
            .collect();
        let most = rows.iter().map(Vec::len).max().unwrap_or(0);
        let last = |row: &Vec<i64>| row.last().copied().unwrap_or(0);
        let padded = |row: &Vec<i64>| {
            let row = row.iter().copied().chain(std::iter::repeat(last(row)));
            row.take(most).collect::<Vec<i64>>()
        };
        let there = rows.iter().flat_map(|row| (0..most).map(|at| at < row.len()));
        let there: Vec<bool> = there.collect();
        let kept: Vec<i64> = rows.iter().flat_map(padded).collect();
        let shape = [rows.len() as i64, most as i64];
        (Tensor::from_slice(&kept).view(shape), Tensor::from_slice(&there).view(shape))
    }
}

impl Task for TextAlign {
    fn parameters(&self) -> Vec<Parameter> {
        self.text().parameters()
    }

    fn forward(&self, batch: &Batch, mode: Mode) -> Result<Output, TrainError> {
        let device = self.student.store.device();
        let caption = |i: usize| batch.items[i].captions().first().map_or("", String::as_str);
        let rows: Vec<Vec<i64>> =
            (0..batch.len()).map(|i| self.tokenizer.encode(caption(i))).collect();
        let parts = ByLength::new(&rows, rows.len().div_ceil(PARTS)).parts;

        let (mut sums, mut count) = (vec![], 0);
        for (members, tokens) in parts {
            let length =
                |&i: &usize| 1 + rows[i].iter().rposition(|&token| token != 0).unwrap_or(0);
            let lengths: Vec<usize> = members.iter().map(length).collect();
            let positions: Vec<u64> = members.iter().map(|&i| batch.items[i].position).collect();
            let (kept, there) = self.kept(&lengths, &positions, mode);
            count += there.sum(Kind::Int64).int64_value(&[]);
            let [tokens, kept, there] =
                [tokens, kept, there].map(|tensor| to_device(tensor, device)); // [B, T], [B, K], [B, K]
            let target = no_grad(|| self.teacher.tokens(&tokens, None)); // [B, T, E]
            let index = kept.unsqueeze(-1).expand([-1, -1, target.size()[2]], false);
            let target = target.gather(1, &index, false); // [B, K, E]
            let there = there.to_kind(Kind::Float);
            let cosine = cosine(&self.text().tokens(&tokens, Some(&kept)), &target) * &there; // [B, K]
            sums.push(cosine.sum(Kind::Float));
        }
        let loss = -Tensor::stack(&sums, 0).sum(Kind::Float) / (count as f64);
        let metrics = vec![("cosine", -loss.detach())];
        Ok(Output { loss, count: count as f64, metrics })
    }

    fn transform(&self, _data: &Data, mode: Mode) -> Arc<dyn Transform> {
        Arc::new(TextViews { drawn: mode == Mode::Train })
    }

    fn check_data(&self, _train: &dyn Source, val: Option<&dyn Source>) -> Result<(), TrainError> {
        let named = |e| TrainError::recipe(format!("data.val: {e}"));
        val.map_or(Ok(()), |val| require_captions(val).map_err(named))
    }

    fn macs(&self) -> u64 {
        self.macs
    }

    fn complete(&self, recipe: &mut Recipe) {
        recipe.model.follow_text(self.student.config.embed_dim);
    }

    fn save(&self, dir: &Path, weights: Option<Kind>) -> Result<(), ModelError> {
        save_clip(&self.student, dir, weights)
    }

    fn evaluators(
        &self,
        sets: &[EvalSet],
        options: &EvalOptions,
    ) -> Result<Vec<Evaluator>, TrainError> {
        clip_evaluators(&self.student, sets, options)
    }
}

/// The teacher of a recipe: at its path, or of random weights; then its image encoder, which teaches nothing, has one block.
fn teacher(teacher: &Teacher, device: Device) -> Result<Clip, TrainError> {
    match (&teacher.path, &teacher.arch) {
        (None, Some(arch)) => {
            let vision = VitConfig { depth: 1, ..VitConfig::preset(arch)? };
            let config = ClipConfig::new(vision, Some(TextConfig::preset(arch)?));
            Ok(Clip::new(&config, device))
        }
        _ => load_teacher(teacher, device),
    }
}

/// The student's sizes, with the teacher's tokens and width.
///
/// # Errors
/// When the recipe wants others.
pub(crate) fn student_config(
    recipe: &Recipe,
    teacher: &TextConfig,
) -> Result<TextConfig, TrainError> {
    let mut model = recipe.model.clone();
    model.follow_text(teacher.out);
    let student = model.needs_text().map_err(TrainError::recipe)?;
    for (what, ours, theirs) in [
        ("context_length", student.context_length, teacher.context_length),
        ("vocab_size", student.vocab_size, teacher.vocab_size),
        ("out", student.out, teacher.out),
    ] {
        if ours != theirs {
            let hint = if what == "out" { ", which it is where it isn't written" } else { "" };
            return Err(TrainError::recipe(format!(
                "model.text.{what} = {ours}: must be the teacher's, {theirs}{hint}"
            )));
        }
    }
    Ok(student.clone())
}
