//! What a step of task `text-align` takes, from its shapes.

use uta_model::TextConfig;

use crate::TrainError;
use crate::recipe::Recipe;
use crate::task::distill::plan::fits;

/// Bytes of an f32.
const WIDE: i64 = 4;
/// Numbers that a block keeps of one token for the backward pass, in widths: its input, both norms' outputs, queries, keys and
/// values, attention's output and its sum, and four times two of the feed-forward network.
const KEPT_BY_BLOCK: i64 = 16;

/// Whether a CPU's step on `batch` texts of full length has room in this machine's memory: a teacher comes on top.
///
/// # Errors
/// When it has none.
pub(crate) fn has_room(recipe: &Recipe, batch: usize) -> Result<(), TrainError> {
    let Some(text) = &recipe.model.text else { return Ok(()) };
    let TextConfig { width, layers, context_length, .. } = *text;
    // Weights, gradients and two moments.
    let fixed = 4 * WIDE * text.parameters();
    let kept = WIDE * KEPT_BY_BLOCK * width * layers * context_length;
    fits(fixed, fixed.saturating_add(kept.saturating_mul(batch as i64)), batch)
}
