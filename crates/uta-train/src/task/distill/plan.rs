//! Cost of a run of a student and its teacher, from its shapes: products, memory, traffic. No net is made and no picture read.
//!
//! Tensors that a block keeps for the backward pass are counted beside the block, in uta-model.
//!
//! Shapes: T tokens (`[CLS]` and the patches that a net processes), D width, E joint width, S side of an image, P of a patch.

use serde::Serialize;
use uta_data::targets::TargetKind;
pub use uta_model::Kernels;
use uta_model::{ClipConfig, Compute, Origin, TextConfig, VitConfig};

use super::cache::cached_targets;
use super::recipe::{DistillRecipe, Teacher};
use super::teacher::{masks, student_config};
use crate::recipe::{PrecisionName, Recipe};
use crate::{RecipeError, TrainError};

/// Bytes of an f32: weights, gradients, moments, the residual stream, the loss.
const WIDE: i64 = 4;

/// The shapes of a run.
#[derive(Clone, Debug)]
pub struct Shapes {
    student: VitConfig,
    teacher: VitConfig,
    /// The teacher's text tower, which the student has a copy of.
    text: Option<TextConfig>,
    kept: i64,
    precision: PrecisionName,
    ema: bool,
    checkpointed: bool,
    /// Batches that are decoded ahead.
    prefetch: i64,
    /// How targets are stored that are read from a cache instead of being computed.
    cached: Option<TargetKind>,
    /// Whether gradients lie beside a micro-batch's activations: those of the micro-batches before, or the buckets in which
    /// devices share them. Otherwise each takes the place of activations that the backward pass is done with.
    gradients_stay: bool,
}

/// Bytes that a device holds, by kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The student's weights, f32.
    pub weights: i64,
    /// Their gradients, f32.
    pub gradients: i64,
    /// AdamW's two moments, f32.
    pub moments: i64,
    /// The moving average of the weights, f32, where the recipe has one.
    pub average: i64,
    /// The bf16 copies of the weights that autocast keeps for a step.
    pub copies: i64,
    /// The teacher's image encoder, frozen: products in the compute type, the rest f32. None with cached targets.
    pub teacher: i64,
    /// Text towers, f32: the student's, and the teacher's that it is a copy of, where a teacher is there.
    pub text: i64,
    /// The micro-batch: bytes, and f32 as both nets see it.
    pub pixels: i64,
    /// Crops that are decoded ahead, with their cached targets: the host's memory, a part of `step` where that is the device.
    pub ahead: i64,
    /// Tensors that the student keeps for its backward pass, with the targets.
    pub activations: i64,
    /// Tensors alive for a moment only, at most, while the teacher or the backward pass runs, beyond `activations`.
    pub transient: i64,
    /// All of it, at the worst moment of a step.
    pub step: i64,
    /// Before the first step, while the teacher, where there is one, still has its f32 weights.
    pub start: i64,
}

impl Shapes {
    /// The shapes of a recipe whose teacher is `teacher`.
    ///
    /// # Errors
    /// When the two nets don't fit.
    pub fn new(
        recipe: &Recipe,
        own: &DistillRecipe,
        teacher: &ClipConfig,
    ) -> Result<Shapes, TrainError> {
        Ok(Shapes {
            student: student_config(recipe, teacher)?,
            teacher: teacher.vision.clone(),
            text: teacher.text.clone(),
            // A cache that isn't there yet is made with the default.
            cached: own
                .teacher
                .cache
                .as_ref()
                .map(|dir| cached_targets(dir).map_or(TargetKind::I8, |(_, kind)| kind)),
            ..Shapes::of_model(recipe, processed(recipe, own)?)
        })
    }

    /// The shapes of the net alone that a recipe trains, on `kept` patches of each image.
    fn of_model(recipe: &Recipe, kept: i64) -> Shapes {
        Shapes {
            student: recipe.model.vision.clone(),
            teacher: recipe.model.vision.clone(),
            text: recipe.model.text.clone(),
            kept,
            precision: recipe.train.precision,
            ema: recipe.train.ema > 0.0,
            checkpointed: recipe.train.checkpoint_blocks,
            prefetch: recipe.data.prefetch as i64,
            cached: Some(TargetKind::I8),
            gradients_stay: recipe.train.accumulate > 1,
        }
    }

    /// The same for each of `count` devices.
    pub fn on_devices(self, count: u64) -> Shapes {
        Shapes { gradients_stay: self.gradients_stay || count > 1, ..self }
    }

    /// The patches of each image that the student processes.
    pub fn kept(&self) -> i64 {
        self.kept
    }

    /// Tokens of the student and of the teacher.
    pub fn tokens(&self) -> [i64; 2] {
        [1 + self.kept, 1 + self.student.num_patches()]
    }

    /// Whether targets are read from a cache.
    pub fn is_cached(&self) -> bool {
        self.cached.is_some()
    }

    /// FLOPs of the student's products for one image, forward and backward; checkpointed blocks run forward twice.
    pub fn student_flops(&self) -> f64 {
        let all = self.student.macs(self.kept);
        let blocks = all - VitConfig { depth: 0, ..self.student.clone() }.macs(self.kept);
        2.0 * (3 * all + if self.checkpointed { blocks } else { 0 }) as f64
    }

    /// FLOPs of the teacher's products for one image, all of which it sees.
    pub fn teacher_flops(&self) -> f64 {
        2.0 * self.teacher.macs(self.teacher.num_patches()) as f64
    }

    /// The student's products as a share of those without a mask: the FLOPs of the paper's Tables 6 and 8.
    pub fn relative(&self) -> f64 {
        self.student.macs(self.kept) as f64 / self.student.macs(self.student.num_patches()) as f64
    }

    /// The student's parameters: what the optimiser changes.
    pub fn parameters(&self) -> i64 {
        self.student.parameters()
    }

    /// Bytes of memory that an update reads and writes: weights, gradients and two moments, both ways.
    pub fn update_bytes(&self) -> i64 {
        2 * 4 * WIDE * self.parameters()
    }

    /// Bytes of gradients that each of `count` devices sends (and receives) a step, by a ring.
    pub fn all_reduce_bytes(&self, count: u64) -> f64 {
        ring_bytes(WIDE * self.parameters(), count)
    }

    /// Bytes of the stored targets of `tokens` tokens, a byte a value unless the recipe's cache has more.
    pub fn target_bytes(&self, tokens: i64) -> i64 {
        tokens * self.student.out * self.cached.unwrap_or(TargetKind::I8).bytes() as i64
    }

    /// Memory of a device for a micro-batch of `batch` images.
    pub fn memory(&self, batch: i64, kernels: Kernels) -> Memory {
        let own = WIDE * self.parameters();
        let narrow = self.precision == PrecisionName::Bf16;
        let live = !self.is_cached();
        let teacher = if live { self.teacher.parameters() } else { 0 };
        let frozen = if live { self.teacher.product_weights() } else { 0 };
        let towers = if live { 2 } else { 1 };
        let text = self.text.as_ref().map_or(0, |text| towers * WIDE * text.parameters());
        let pixels = 3 * self.student.image_size.pow(2);
        let targets = if live { 0 } else { self.target_bytes(1 + self.kept) };
        let times = |bytes: i64| batch.saturating_mul(bytes);
        let mut memory = Memory {
            weights: own,
            gradients: own,
            moments: 2 * own,
            average: if self.ema { own } else { 0 },
            copies: if narrow { 2 * self.student.product_weights() } else { 0 },
            teacher: self.value_bytes() * frozen + WIDE * (teacher - frozen),
            text,
            pixels: times((1 + WIDE) * pixels),
            ahead: times(self.prefetch * (pixels + targets)),
            activations: times(self.activations(kernels)),
            transient: 0,
            step: 0,
            start: own + text + WIDE * teacher,
        };
        // The teacher runs before the student has anything to keep.
        let looking = match live {
            true => times(self.teacher_transient(kernels)) - memory.activations,
            false => 0,
        };
        memory.transient = looking.max(times(self.backward_transient(kernels)));
        let held = memory.activations.saturating_add(memory.transient);
        memory.step = [
            memory.weights,
            if self.gradients_stay { held.saturating_add(own) } else { own.max(held) },
            memory.moments,
            memory.average,
            memory.copies,
            memory.teacher,
            memory.text,
            memory.pixels,
            if kernels.is_gpu() { 0 } else { memory.ahead },
        ]
        .into_iter()
        .fold(0, i64::saturating_add);
        memory
    }

    /// The largest micro-batch of several in a step for which neither start nor step takes more than `bytes`; 0 when there is
    /// none.
    pub fn largest_batch(&self, bytes: i64, kernels: Kernels) -> i64 {
        let several = Shapes { gradients_stay: true, ..self.clone() };
        let fits = |batch: i64| {
            let memory = several.memory(batch, kernels);
            memory.step.max(memory.start) <= bytes
        };
        largest(fits)
    }

    /// How the nets are computed.
    fn compute(&self, kernels: Kernels) -> Compute {
        Compute { precision: self.precision.into(), kernels }
    }

    /// Bytes of a value in the type that products compute in.
    fn value_bytes(&self) -> i64 {
        self.compute(Kernels::Gpu).bytes()
    }

    /// Bytes that the student keeps of one image for its backward pass.
    ///
    /// The patches' pixels for the embedding's gradient, K 3 P^2; the blocks, or where they are checkpointed their inputs, in
    /// f32; the final norm's input, in f32, and the head's; and the loss in f32: the student's tokens, and the targets'
    /// directions, beside the targets themselves.
    fn activations(&self, kernels: Kernels) -> i64 {
        let (c, e) = (&self.student, self.value_bytes());
        let (t, d) = (1 + self.kept, c.width);
        let embedding = e * self.kept * 3 * c.patch_size.pow(2);
        let block = if self.checkpointed { WIDE * d } else { self.kept_by_block(kernels) };
        embedding + c.depth * t * block + self.kept_behind_blocks()
    }

    /// The part of `activations` that is behind the blocks, and gone when the backward pass reaches them.
    fn kept_behind_blocks(&self) -> i64 {
        let (c, e, t) = (&self.student, self.value_bytes(), 1 + self.kept);
        let target = if self.is_cached() { self.target_bytes(t) } else { t * e * c.out };
        t * ((WIDE + e) * c.width + 2 * WIDE * c.out) + target
    }

    /// Bytes that a block of the student keeps of one token.
    fn kept_by_block(&self, kernels: Kernels) -> i64 {
        self.student.kept_by_block(1 + self.kept, self.compute(kernels))
    }

    /// Bytes of one image that are alive at most while the backward pass begins: in the loss, three tensors as wide as the
    /// tokens, in f32; or in the last block, with what it keeps where it runs again.
    fn backward_transient(&self, kernels: Kernels) -> i64 {
        let (c, t) = (&self.student, 1 + self.kept);
        let again = match self.checkpointed {
            true => t * self.kept_by_block(kernels) - self.kept_behind_blocks(),
            false => 0,
        };
        let block = c.backward_transient(t, self.compute(kernels));
        (t * block + again).max(t * 3 * WIDE * c.out)
    }

    /// Bytes of one image that are alive at most in the teacher's forward pass. All tokens' targets, from which the kept ones
    /// are taken, are fewer.
    fn teacher_transient(&self, kernels: Kernels) -> i64 {
        let t = 1 + self.teacher.num_patches();
        t * self.teacher.forward_transient(t, self.compute(kernels))
    }
}

/// Bytes that each of `count` devices sends, and receives, to add up `bytes` of all by a ring.
pub(crate) fn ring_bytes(bytes: i64, count: u64) -> f64 {
    2.0 * (count as f64 - 1.0) / count as f64 * bytes as f64
}

/// The largest batch that `fits`, where smaller ones fit too; 0 when there is none.
pub(crate) fn largest(fits: impl Fn(i64) -> bool) -> i64 {
    // It is among the powers of two's bits.
    (0..24).rev().map(|bit| 1 << bit).fold(0, |batch, more| match fits(batch + more) {
        true => batch + more,
        false => batch,
    })
}

/// The patches of an image that the student processes: those that it sees, or with a mask token all.
///
/// # Errors
/// When the recipe's masks don't fit the student's grid.
pub(crate) fn processed(recipe: &Recipe, own: &DistillRecipe) -> Result<i64, TrainError> {
    let (masks, _) = masks(recipe, own)?;
    let all = recipe.model.vision.mask_token;
    Ok(if all { masks.patches() } else { masks.kept_count() } as i64)
}

/// The sizes of a recipe's teacher, from its cache, its preset, or the net at its path; no weights are read.
///
/// # Errors
/// When there is none of these.
pub(crate) fn teacher_config(teacher: &Teacher) -> Result<ClipConfig, TrainError> {
    if let Some(dir) = teacher.cache.as_ref().filter(|dir| dir.exists()) {
        return Ok(cached_targets(dir)?.0);
    }
    let (arch, path) = (teacher.arch.as_deref(), teacher.path.as_ref());
    match (arch.map(VitConfig::preset), path.filter(|path| path.exists())) {
        (Some(Ok(vision)), _) => {
            // A CLIP on disk has its text tower with it; random weights to measure speed have none.
            let text = arch.zip(path).and_then(|(arch, _)| TextConfig::preset(arch).ok());
            Ok(ClipConfig::new(vision, text))
        }
        (_, Some(path)) => Ok(Origin::open(path, arch)?.clip_config("teacher.path")?.clone()),
        (Some(Err(error)), None) => Err(TrainError::recipe(format!("teacher.arch: {error}"))),
        (None, None) => {
            let path = path.map_or_else(String::new, |path| path.display().to_string());
            Err(TrainError::recipe(format!(
                "teacher.path {path}: not there; say what it is with --set teacher.arch=PRESET (eva01-g-14-plus, vit-l-14, ...)"
            )))
        }
    }
}

/// Whether a CPU's step of `recipe` on `batch` images at a time has room in this machine's memory, as far as the trained image
/// encoder, text tower and batch go: a teacher comes on top.
///
/// # Errors
/// When it has none.
pub(crate) fn has_room(recipe: &Recipe, kept: i64, batch: usize) -> Result<(), TrainError> {
    let shapes = Shapes::of_model(recipe, kept);
    let memory = shapes.memory(batch as i64, Kernels::of_this_cpu(recipe.train.precision));
    let fixed = memory.weights + memory.gradients + memory.moments + memory.average + memory.text;
    let less = ", or set train.checkpoint_blocks = true (uta plan counts it)";
    fits(fixed, memory.step, batch, less)
}

/// Whether this machine has room for `fixed` bytes of weights and what goes with them, and for the `step` bytes of a step on `batch`
/// samples at a time; `less` is what helps besides smaller micro-batches.
///
/// # Errors
/// When it hasn't.
pub(crate) fn fits(fixed: i64, step: i64, batch: usize, less: &str) -> Result<(), TrainError> {
    let Some(machine) = uta_data::machine::memory() else { return Ok(()) };
    let [step, fixed, machine] =
        [step as f64, fixed as f64, machine as f64].map(|bytes| bytes / 1e9);
    let (origin, message) = if fixed > machine {
        let what = "weights, gradients and moments take";
        (
            "model",
            format!(
                "{what} {fixed:.1} GB of memory, and this process may have {machine:.1} GB: make it smaller"
            ),
        )
    } else if step > machine {
        let message = format!(
            "a step on {batch} samples at a time takes {step:.1} GB of memory at least, and this process may have \
             {machine:.1} GB: raise train.accumulate{less}"
        );
        ("train.batch", message)
    } else {
        return Ok(());
    };
    Err(RecipeError { origin: origin.into(), message }.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::recipe::TaskRecipe;

    use super::*;

    fn shapes(model: &str, mask: &str, precision: &str) -> Shapes {
        let text = format!(
            "task = \"align\"\n[model]\n{model}\n[teacher]\narch = \"eva01-g-14-plus\"\n[mask]\n{mask}\n\
             [data]\ntrain = [\"none\"]\n[train]\nsteps = 1\nbatch = 8\nprecision = \"{precision}\"\n"
        );
        let recipe = Recipe::from_table(text.parse().unwrap()).unwrap();
        let TaskRecipe::Distill(own) = &recipe.task else { unreachable!() };
        Shapes::new(&recipe, own, &ClipConfig::preset("eva01-g-14-plus").unwrap()).unwrap()
    }

    /// The paper's Tables 6 and 8, ViT-B/14.
    #[test]
    fn relative_flops_of_the_papers_mask_ratios_come_out() {
        for (ratio, paper) in [(0.0, "1.0"), (0.4, "0.6"), (0.5, "0.5"), (0.7, "0.3")] {
            let shapes = shapes("preset = \"uta-b14\"", &format!("ratio = {ratio}"), "bf16");
            assert_eq!(format!("{:.1}", shapes.relative()), paper, "{ratio}");
        }
        let dense = shapes("preset = \"uta-b14\"", "kind = \"none\"\nratio = 0.4", "bf16");
        assert_eq!((dense.kept(), dense.relative()), (256, 1.0));
    }

    /// In GMACs, counted by hand: 23.4, 81.3 and 267.4 of the students, 267.4 of the teacher, which costs eleven times the
    /// forward pass of B.
    #[test]
    fn a_students_products_are_three_forward_passes_and_the_teachers_one() {
        for (preset, giga) in [("uta-b14", 23.4), ("uta-l14", 81.3), ("uta-g14", 267.4)] {
            let shapes = shapes(&format!("preset = \"{preset}\""), "ratio = 0.0", "bf16");
            let macs = [shapes.student_flops() / 6e9, shapes.teacher_flops() / 2e9];
            for (found, expected) in macs.into_iter().zip([giga, 267.4]) {
                assert!((found - expected).abs() < 0.06, "{preset}: {found}, not {expected}");
            }
        }
    }

    #[test]
    fn checkpointed_blocks_run_forward_twice_and_keep_their_inputs() {
        let plain = shapes("preset = \"uta-b14\"", "ratio = 0.4", "bf16");
        let ours = Shapes { checkpointed: true, ..plain.clone() };
        let more = ours.student_flops() / plain.student_flops();
        assert!((1.32..4.0 / 3.0).contains(&more), "{more}");
        let [keeps, inputs] = [plain.kept_by_block(Kernels::Gpu), 4 * 768].map(|bytes| 155 * bytes);
        let behind = plain.kept_behind_blocks();
        let [plain, ours] = [plain, ours].map(|shapes| shapes.memory(32, Kernels::Gpu));
        assert_eq!(plain.activations - ours.activations, 32 * 12 * (keeps - inputs));
        // What is behind the blocks is gone when the last of them runs again.
        assert_eq!(ours.transient - plain.transient, 32 * (keeps - behind));
    }

    #[test]
    fn gradients_take_the_place_of_activations_unless_they_stay() {
        let alone = shapes("preset = \"uta-b14\"", "ratio = 0.4", "bf16");
        let shared = alone.clone().on_devices(8);
        for batch in [1, 8, 64] {
            let [one, eight] = [&alone, &shared].map(|shapes| shapes.memory(batch, Kernels::Gpu));
            let held = one.activations + one.transient;
            assert_eq!(eight.step - one.step, one.gradients.min(held), "{batch}");
        }
        let cpu = Kernels::Cpu { attends: true };
        assert_eq!(alone.clone().on_devices(1).memory(8, cpu), alone.memory(8, cpu));
    }

    #[test]
    fn cached_targets_need_no_teacher() {
        let live = shapes("preset = \"uta-b14\"", "ratio = 0.4", "bf16");
        let [kind, wide] = [TargetKind::I8, TargetKind::F32]
            .map(|kind| Shapes { cached: Some(kind), ..live.clone() });
        assert_eq!((kind.target_bytes(155), wide.target_bytes(155)), (155 * 1024, 155 * 4096));
        let [live, cached] = [live, kind].map(|shapes| shapes.memory(8, Kernels::Gpu));
        assert_eq!((cached.teacher, 2 * cached.text), (0, live.text));
        // bf16 targets become bytes; those of two batches wait beside their pixels.
        assert_eq!(live.activations - cached.activations, 8 * 155 * 1024);
        assert_eq!(cached.ahead - live.ahead, 2 * 8 * 155 * 1024);
        assert!(cached.step < live.step - live.teacher && cached.start < live.start);
    }

    #[test]
    fn the_largest_batch_is_the_last_that_fits() {
        for (model, precision) in
            [("preset = \"uta-b14\"", "bf16"), ("preset = \"uta-g14\"", "f32")]
        {
            let shapes = shapes(model, "ratio = 0.5", precision).on_devices(2);
            for kernels in [Kernels::Gpu, Kernels::Cpu { attends: false }] {
                let bytes = 60_000_000_000;
                let largest = shapes.largest_batch(bytes, kernels);
                assert!(largest > 0);
                assert!(shapes.memory(largest, kernels).step <= bytes);
                assert!(shapes.memory(largest + 1, kernels).step > bytes);
                assert_eq!(shapes.largest_batch(1_000_000_000, kernels), 0);
            }
        }
    }
}
