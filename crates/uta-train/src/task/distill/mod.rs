//! Learning from a frozen CLIP's image encoder, the teacher: what tasks `align`, `mim` and `uta-mim` share. The teacher sees the
//! whole image, the student a masked one, and an [`Objective`] says which of the student's tokens are to become the teacher's.
//!
//! A net with a mask token ([`uta_model::VitConfig::mask_token`]) has a learned token in place of each masked patch and so all tokens;
//! another leaves masked patches out.

mod cache;
pub mod plan;
pub(crate) mod recipe;
mod teacher;

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use tch::{Device, Kind, Tensor, no_grad};
use uta_data::mask::MaskGenerator;
use uta_data::targets::Wanted;
use uta_data::{Batch, LabelKind, Source, Transform};
use uta_eval::{EvalOptions, EvalSet, Evaluator, upload};
use uta_model::{Clip, ClipConfig, ModelError, Parameter, Vit, same_tokens};

use self::cache::Cache;
use self::recipe::DistillRecipe;
use self::teacher::student_config;
use super::parts::{clip_evaluators, initialise, save_clip, to_device, views};
use super::{Mode, Output, Task};
use crate::TrainError;
use crate::recipe::{Data, Recipe};

pub use cache::{CacheOptions, Made, cached_targets, decode, make};
pub(crate) use teacher::{load_teacher, masks};

/// The loss of a student against its teacher's tokens.
pub(crate) trait Objective {
    /// The loss of `student` on `images` [B, 3, S, S] of which it sees the patches `kept` [B, K] (all where there is none), and its
    /// metrics. `target` are the teacher's tokens where the student has one, `[CLS]` first: [B, 1+K, E], or with a mask token
    /// [B, 1+N, E]. Drop path is on while `train`.
    fn loss(
        &self,
        student: &Vit,
        images: &Tensor,
        kept: Option<&Tensor>,
        target: &Tensor,
        train: bool,
    ) -> Output;
}

/// A student and its teacher.
pub struct Distill {
    /// The student's vision transformer with the teacher's text tower, so that it is a CLIP at any time.
    student: Rc<Clip>,
    targets: Targets,
    objective: Box<dyn Objective>,
    masks: MaskGenerator,
    /// Random at ratio 0.5 whatever the recipe trains with (paper A.3).
    validation_masks: MaskGenerator,
    seed: u64,
}

/// Where the teacher's tokens come from.
enum Targets {
    Live(Box<Clip>),
    Cached(Box<Cache>),
}

impl Distill {
    /// # Errors
    /// When the teacher can't be loaded, or its patches or width don't fit the student's.
    pub(crate) fn new(
        recipe: &Recipe,
        own: &DistillRecipe,
        objective: Box<dyn Objective>,
        device: Device,
    ) -> Result<Distill, TrainError> {
        let Some(dir) = &own.teacher.cache else {
            let teacher = load_teacher(&own.teacher, device)?;
            return Distill::with_teacher(recipe, own, objective, teacher, device);
        };
        let masks = masks(recipe, own)?;
        let seed = recipe.train.seed;
        let cache = Cache::open(recipe, dir, |teacher| student_config(recipe, teacher).map(drop))?;
        let student = student(recipe, own, cache.teacher(), device)?;
        cache.copy_text(&student)?;
        let targets = Targets::Cached(Box::new(cache));
        Ok(Distill::assemble(student, targets, objective, masks, seed))
    }

    /// With a teacher that is here already.
    ///
    /// # Errors
    /// When its patches or width don't fit the student's.
    pub(crate) fn with_teacher(
        recipe: &Recipe,
        own: &DistillRecipe,
        objective: Box<dyn Objective>,
        mut teacher: Clip,
        device: Device,
    ) -> Result<Distill, TrainError> {
        let student = student(recipe, own, &teacher.config, device)?;
        if teacher.text.is_some() {
            student.copy_from(&teacher, "text.")?;
        }
        if let (Some(ours), Some(theirs)) = (&student.logit_scale, &teacher.logit_scale) {
            no_grad(|| ours.shallow_clone().copy_(theirs));
        }
        teacher.freeze(recipe.train.precision.into());
        let targets = Targets::Live(Box::new(teacher));
        let masks = masks(recipe, own)?;
        Ok(Distill::assemble(student, targets, objective, masks, recipe.train.seed))
    }

    fn assemble(
        mut student: Clip,
        targets: Targets,
        objective: Box<dyn Objective>,
        (masks, validation_masks): (MaskGenerator, MaskGenerator),
        seed: u64,
    ) -> Distill {
        freeze_text(&mut student);
        Distill { student: Rc::new(student), targets, objective, masks, validation_masks, seed }
    }

    /// Whether the student has a learned token for each masked patch, and so all tokens.
    fn has_all_tokens(&self) -> bool {
        self.student.config.vision.mask_token
    }

    fn masks(&self, mode: Mode) -> &MaskGenerator {
        match mode {
            Mode::Train => &self.masks,
            Mode::Validate => &self.validation_masks,
        }
    }

    /// The pixels of a batch as both nets see them: f32 [B, 3, S, S].
    pub fn images(&self, batch: &Batch) -> Tensor {
        self.student.normalise(&upload(batch, self.student.store.device()))
    }

    /// The patches of each sample that the student sees, i64 [B, K]; `None` when all are.
    pub fn kept(&self, batch: &Batch, mode: Mode) -> Option<Tensor> {
        let masks = self.masks(mode);
        if masks.kept_count() == masks.patches() {
            return None;
        }
        let positions: Vec<u64> = batch.items.iter().map(|item| item.position).collect();
        let kept = Tensor::from_slice(&masks.batch(self.seed, &positions));
        let device = self.student.store.device();
        Some(to_device(kept, device).view([batch.len() as i64, -1]))
    }

    /// The patches whose tokens the student has, of those it sees; `None` when all are.
    pub fn present<'a>(&self, kept: Option<&'a Tensor>) -> Option<&'a Tensor> {
        kept.filter(|_| !self.has_all_tokens())
    }

    /// The teacher's tokens of a batch, whose `images` [B, 3, S, S] it sees whole, where the student has one: [B, 1+K, E].
    ///
    /// # Errors
    /// When they were to be read, and can't.
    pub fn target(
        &self,
        batch: &Batch,
        images: &Tensor,
        kept: Option<&Tensor>,
        mode: Mode,
    ) -> Result<Tensor, TrainError> {
        match (&self.targets, mode) {
            (Targets::Live(teacher), _) => {
                let tokens = no_grad(|| teacher.visual.forward_t(images, None, false)); // [B, 1+N, E]
                Ok(match self.present(kept) {
                    Some(kept) => same_tokens(&tokens, kept),
                    None => tokens,
                })
            }
            (Targets::Cached(cache), mode) => cache.targets(batch, mode, images.device()),
        }
    }

    /// How far the student's tokens of `images` are from `target`.
    pub fn loss(
        &self,
        images: &Tensor,
        kept: Option<&Tensor>,
        target: &Tensor,
        mode: Mode,
    ) -> Output {
        self.objective.loss(&self.student.visual, images, kept, target, mode == Mode::Train)
    }
}

impl Task for Distill {
    fn parameters(&self) -> Vec<Parameter> {
        self.student.visual.parameters()
    }

    fn forward(&self, batch: &Batch, mode: Mode) -> Result<Output, TrainError> {
        let images = self.images(batch); // [B, 3, S, S]
        let kept = self.kept(batch, mode); // [B, K]
        let target = self.target(batch, &images, kept.as_ref(), mode)?; // [B, 1+K, E]
        Ok(self.loss(&images, kept.as_ref(), &target, mode))
    }

    fn transform(&self, data: &Data, mode: Mode) -> Arc<dyn Transform> {
        let masks = (!self.has_all_tokens()).then(|| self.masks(mode).clone());
        match &self.targets {
            Targets::Live(_) => views(data, mode, LabelKind::None),
            Targets::Cached(cache) => {
                cache.transform(mode, wanted(self.masks.patches(), masks, self.seed))
            }
        }
    }

    fn check_data(&self, train: &dyn Source, val: Option<&dyn Source>) -> Result<(), TrainError> {
        match &self.targets {
            Targets::Live(_) => Ok(()),
            Targets::Cached(cache) => cache.check_data(train, val),
        }
    }

    fn macs(&self) -> u64 {
        let whole = |clip: &Clip| clip.config.vision.macs(clip.config.vision.num_patches());
        let teacher = match &self.targets {
            Targets::Live(teacher) => whole(teacher),
            Targets::Cached(_) => 0,
        };
        3 * whole(&self.student) + teacher
    }

    fn complete(&self, recipe: &mut Recipe) {
        recipe.model.follow(self.student.config.vision.out);
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

/// The student, a CLIP with a text tower like the teacher's.
fn student(
    recipe: &Recipe,
    own: &DistillRecipe,
    teacher: &ClipConfig,
    device: Device,
) -> Result<Clip, TrainError> {
    let vision = student_config(recipe, teacher)?;
    let config = ClipConfig { vision, aligned: own.learns.aligned(), ..teacher.clone() };
    let mut student = Clip::new(&config, device);
    // The text tower will be the teacher's.
    initialise(&student, &recipe.model.init, &["visual."])?;
    student.visual.checkpoint_blocks(recipe.train.checkpoint_blocks);
    Ok(student)
}

/// The tokens that the student has of the image at a position: `[CLS]`, and the patches that `masks` keep (of N, all without).
fn wanted(n: usize, masks: Option<MaskGenerator>, seed: u64) -> Box<Wanted> {
    Box::new(move |position| {
        let patches: Vec<u64> = match &masks {
            Some(masks) if masks.kept_count() < n => {
                masks.batch(seed, &[position]).into_iter().map(|patch| patch as u64).collect()
            }
            _ => (0..n as u64).collect(),
        };
        std::iter::once(0).chain(patches.into_iter().map(|patch| 1 + patch)).collect()
    })
}

/// Cosine of each pair of tokens, in f32 whatever the precision: [B, T, E] x [B, T, E] -> [B, T].
pub(super) fn cosine(a: &Tensor, b: &Tensor) -> Tensor {
    Tensor::cosine_similarity(&a.to_kind(Kind::Float), &b.to_kind(Kind::Float), -1, 1e-8)
}

/// The text tower and the temperature are the teacher's, for good.
fn freeze_text(student: &mut Clip) {
    for (name, tensor) in student.store.variables() {
        if !name.starts_with("visual.") {
            let _ = tensor.set_requires_grad(false);
        }
    }
}
