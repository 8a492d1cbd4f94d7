//! Cost of a run of task `text-align`, from its shapes: products and memory. No net is made and no text read.
//!
//! Shapes: T tokens of a text (all of them full: captions are mostly shorter), K kept ones, D width, E joint width.

use serde::Serialize;
use uta_model::{ClipConfig, TextConfig, VitConfig};

use super::recipe::TextAlignRecipe;
use super::student_config;
use crate::TrainError;
use crate::recipe::{PrecisionName, Recipe};
use crate::task::distill::plan::{fits, largest, ring_bytes};

/// Bytes of an f32.
const WIDE: i64 = 4;

/// The shapes of a run.
#[derive(Clone, Debug)]
pub struct TextShapes {
    student: TextConfig,
    teacher: TextConfig,
    vision: VitConfig,
    /// K, of a text that fills the context.
    kept: i64,
    precision: PrecisionName,
    ema: bool,
    gradients_stay: bool,
}

/// Bytes that a device holds, by kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TextMemory {
    /// The student's weights, f32.
    pub weights: i64,
    /// Their gradients, f32.
    pub gradients: i64,
    /// AdamW's two moments, f32.
    pub moments: i64,
    /// The moving average of the weights, f32, where the recipe has one.
    pub average: i64,
    /// The teacher's text encoder, f32.
    pub teacher: i64,
    /// The teacher's image encoder, which makes the student a CLIP, f32.
    pub images: i64,
    /// Tensors that the student keeps for its backward pass, of texts that fill the context.
    pub activations: i64,
    /// All of it.
    pub step: i64,
}

impl TextShapes {
    /// The shapes of a recipe whose teacher is `teacher`.
    ///
    /// # Errors
    /// When it has no text encoder, or the student doesn't fit it.
    pub fn new(
        recipe: &Recipe,
        own: &TextAlignRecipe,
        teacher: &ClipConfig,
    ) -> Result<TextShapes, TrainError> {
        let none =
            || TrainError::recipe("teacher: has no text encoder, so that it can't teach one");
        let text = teacher.text.clone().ok_or_else(none)?;
        let others = (text.context_length - 1) as f64;
        Ok(TextShapes {
            student: student_config(recipe, &text)?,
            vision: teacher.vision.clone(),
            kept: 1 + (others - (own.ratio() * others).round()) as i64,
            teacher: text,
            precision: recipe.train.precision,
            ema: recipe.train.ema > 0.0,
            gradients_stay: recipe.train.accumulate > 1,
        })
    }

    /// The same for each of `count` devices.
    pub fn on_devices(self, count: u64) -> TextShapes {
        TextShapes { gradients_stay: self.gradients_stay || count > 1, ..self }
    }

    /// Tokens of the student and of the teacher, of a text that fills the context.
    pub fn tokens(&self) -> [i64; 2] {
        [self.kept, self.teacher.context_length]
    }

    /// FLOPs of the student's products for one text that fills the context, forward and backward.
    pub fn student_flops(&self) -> f64 {
        6.0 * macs(&self.student, self.kept) as f64
    }

    /// FLOPs of the teacher's products for one text that fills the context.
    pub fn teacher_flops(&self) -> f64 {
        2.0 * macs(&self.teacher, self.teacher.context_length) as f64
    }

    /// The student's parameters: what the optimiser changes.
    pub fn parameters(&self) -> i64 {
        self.student.parameters()
    }

    /// Bytes of gradients that each of `count` devices sends (and receives) a step, by a ring.
    pub fn all_reduce_bytes(&self, count: u64) -> f64 {
        ring_bytes(WIDE * self.parameters(), count)
    }

    /// Memory of a device for a micro-batch of `batch` texts that fill the context.
    pub fn memory(&self, batch: i64) -> TextMemory {
        let own = WIDE * self.parameters();
        let token = self.student.layers * self.kept_by_block() + 3 * WIDE * self.student.out;
        let activations = batch.saturating_mul(self.kept * token);
        let gradients = own;
        let mut memory = TextMemory {
            weights: own,
            gradients,
            moments: 2 * own,
            average: if self.ema { own } else { 0 },
            teacher: WIDE * self.teacher.parameters(),
            images: WIDE * self.vision.parameters(),
            activations,
            step: 0,
        };
        let held = match self.gradients_stay {
            true => gradients.saturating_add(activations),
            // Gradients take the place of activations that the backward pass is done with.
            false => gradients.max(activations),
        };
        let rest =
            memory.weights + memory.moments + memory.average + memory.teacher + memory.images;
        memory.step = rest.saturating_add(held);
        memory
    }

    /// The largest micro-batch of several in a step that takes no more than `bytes`; 0 when there is none.
    pub fn largest_batch(&self, bytes: i64) -> i64 {
        let several = TextShapes { gradients_stay: true, ..self.clone() };
        largest(|batch| several.memory(batch).step <= bytes)
    }

    /// Bytes that a block keeps of one token: its input, both norms' inputs and outputs, queries, keys and values, attention's output,
    /// and the feed-forward network before and after its activation, twice 4 D. Norms, and what is added to them, stay f32.
    fn kept_by_block(&self) -> i64 {
        let narrow = match self.precision {
            PrecisionName::Bf16 => 2,
            PrecisionName::F32 => WIDE,
        };
        self.student.width * (2 * WIDE + 14 * narrow)
    }
}

/// Multiply-accumulates of the products of a forward pass over one text of which `tokens` are processed.
fn macs(text: &TextConfig, tokens: i64) -> u64 {
    TextConfig { context_length: tokens, ..text.clone() }.macs()
        + (tokens - 1) as u64 * (text.width * text.out) as u64
}

/// Whether a CPU's step on `batch` texts of full length has room in this machine's memory: a teacher comes on top.
///
/// # Errors
/// When it has none.
pub(crate) fn has_room(
    recipe: &Recipe,
    own: &TextAlignRecipe,
    batch: usize,
) -> Result<(), TrainError> {
    let Some(text) = recipe.model.text.clone() else { return Ok(()) };
    let image = VitConfig { depth: 0, ..recipe.model.vision.clone() };
    let alone = ClipConfig::new(VitConfig { out: text.out, ..image }, Some(text));
    let memory = TextShapes::new(recipe, own, &alone)?.memory(batch as i64);
    let weights = memory.weights + memory.gradients + memory.moments + memory.average;
    fits(weights, weights.saturating_add(memory.activations), batch, "")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::recipe::TaskRecipe;

    fn shapes(mask: &str, precision: &str) -> TextShapes {
        let text = format!(
            "task = \"text-align\"\n[model.text]\npreset = \"vit-b-32\"\nout = 1024\n[teacher]\narch = \"eva01-g-14-plus\"\n\
             [mask]\n{mask}\n[data]\ntrain = [\"none\"]\n[train]\nsteps = 1\nbatch = 8\nprecision = \"{precision}\"\n"
        );
        let recipe = Recipe::from_table(text.parse().unwrap()).unwrap();
        let TaskRecipe::TextAlign(own) = &recipe.task else { unreachable!() };
        let arch = "eva01-g-14-plus";
        let teacher = ClipConfig::new(
            VitConfig::preset(arch).unwrap(),
            Some(TextConfig::preset(arch).unwrap()),
        );
        TextShapes::new(&recipe, own, &teacher).unwrap()
    }

    #[test]
    fn dropped_tokens_are_neither_computed_nor_kept() {
        let [all, half] = ["kind = \"none\"", "ratio = 0.5"].map(|mask| shapes(mask, "f32"));
        assert_eq!((all.tokens(), half.tokens()), ([77, 77], [39, 77]));
        let share = half.student_flops() / all.student_flops();
        assert!((0.49..0.51).contains(&share), "{share}");
        assert_eq!(all.teacher_flops(), half.teacher_flops());
        let [all, half] = [all, half].map(|shapes| shapes.memory(64).activations);
        assert_eq!(77 * half, 39 * all);
    }

    #[test]
    fn the_largest_batch_is_the_last_that_fits() {
        let shapes = shapes("ratio = 0.5", "bf16").on_devices(2);
        let bytes = 40_000_000_000;
        let largest = shapes.largest_batch(bytes);
        assert!(largest > 0 && shapes.memory(largest).step <= bytes);
        assert!(shapes.memory(largest + 1).step > bytes);
        assert_eq!(shapes.largest_batch(1_000_000_000), 0);
    }
}
