//! Unmasked Token Alignment (paper section 2.2): the student sees `[CLS]` and the kept patches, the frozen teacher sees
//! the whole image, and every token of the student is pulled towards the same token of the teacher.

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
use uta_model::{Clip, ClipConfig, ModelError, Parameter, same_tokens};

use self::cache::Cache;
use self::teacher::{load_teacher, student_config};
use super::parts::{clip_evaluators, initialise, save_clip, to_device, views};
use super::{Distill, Mode, Output, Task};
use crate::TrainError;
use crate::recipe::{AlignRecipe, Data, Recipe};

pub use cache::{CacheOptions, Made, cached_targets, decode, make};
pub(crate) use teacher::masks;

/// Unmasked Token Alignment; with mask kind `none`, dense feature distillation (the FD rows of Table 6).
pub struct Align {
    /// The student's vision transformer with the teacher's text tower, so that it is a CLIP at any time.
    student: Rc<Clip>,
    targets: Targets,
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

impl Align {
    /// # Errors
    /// When the teacher can't be loaded, or its patches or width don't fit the student's.
    pub fn new(recipe: &Recipe, own: &AlignRecipe, device: Device) -> Result<Align, TrainError> {
        let Some(dir) = &own.teacher.cache else {
            let teacher = load_teacher(&own.teacher, device)?;
            return Align::with_teacher(recipe, own, teacher, device);
        };
        let masks = masks(recipe, own)?;
        let seed = recipe.train.seed;
        let cache = Cache::open(recipe, dir, |teacher| student_config(recipe, teacher).map(drop))?;
        let student = student(recipe, cache.teacher(), device)?;
        cache.copy_text(&student)?;
        let targets = Targets::Cached(Box::new(cache));
        Ok(Align::assemble(student, targets, masks, seed))
    }

    /// With a teacher that is here already.
    ///
    /// # Errors
    /// When its patches or width don't fit the student's.
    pub fn with_teacher(
        recipe: &Recipe,
        own: &AlignRecipe,
        mut teacher: Clip,
        device: Device,
    ) -> Result<Align, TrainError> {
        let student = student(recipe, &teacher.config, device)?;
        if teacher.text.is_some() {
            student.copy_from(&teacher, "text.")?;
        }
        if let (Some(ours), Some(theirs)) = (&student.logit_scale, &teacher.logit_scale) {
            no_grad(|| ours.shallow_clone().copy_(theirs));
        }
        teacher.freeze(recipe.train.precision.into());
        let targets = Targets::Live(Box::new(teacher));
        Ok(Align::assemble(student, targets, masks(recipe, own)?, recipe.train.seed))
    }

    fn assemble(
        mut student: Clip,
        targets: Targets,
        (masks, validation_masks): (MaskGenerator, MaskGenerator),
        seed: u64,
    ) -> Align {
        freeze_text(&mut student);
        Align { student: Rc::new(student), targets, masks, validation_masks, seed }
    }
}

impl Distill for Align {
    fn images(&self, batch: &Batch) -> Tensor {
        self.student.normalise(&upload(batch, self.student.store.device()))
    }

    fn kept(&self, batch: &Batch, mode: Mode) -> Option<Tensor> {
        let masks = match mode {
            Mode::Train => &self.masks,
            Mode::Validate => &self.validation_masks,
        };
        if masks.kept_count() == masks.patches() {
            return None;
        }
        let positions: Vec<u64> = batch.items.iter().map(|item| item.position).collect();
        let kept = Tensor::from_slice(&masks.batch(self.seed, &positions));
        let device = self.student.store.device();
        Some(to_device(kept, device).view([batch.len() as i64, -1]))
    }

    fn target(
        &self,
        batch: &Batch,
        images: &Tensor,
        kept: Option<&Tensor>,
        mode: Mode,
    ) -> Result<Tensor, TrainError> {
        match (&self.targets, mode) {
            (Targets::Live(teacher), _) => {
                let tokens = no_grad(|| teacher.visual.forward_t(images, None, false)); // [B, 1+N, E]
                Ok(match kept {
                    Some(kept) => same_tokens(&tokens, kept),
                    None => tokens,
                })
            }
            (Targets::Cached(cache), mode) => cache.targets(batch, mode, images.device()),
        }
    }

    fn loss(&self, images: &Tensor, kept: Option<&Tensor>, target: &Tensor, mode: Mode) -> Output {
        let tokens = self.student.visual.forward_t(images, kept, mode == Mode::Train); // [B, 1+K, E]
        let cosine = cosine(&tokens, target); // [B, 1+K]
        let loss = -cosine.mean(Kind::Float);
        let metrics = vec![
            ("cosine", -loss.detach()),
            ("cosine_cls", cosine.select(1, 0).mean(Kind::Float).detach()),
        ];
        Output { loss, count: images.size()[0] as f64, metrics }
    }
}

impl Task for Align {
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
        let masks = match mode {
            Mode::Train => &self.masks,
            Mode::Validate => &self.validation_masks,
        };
        match &self.targets {
            Targets::Live(_) => views(data, mode, LabelKind::None),
            Targets::Cached(cache) => cache.transform(mode, wanted(masks.clone(), self.seed)),
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
fn student(recipe: &Recipe, teacher: &ClipConfig, device: Device) -> Result<Clip, TrainError> {
    let config = ClipConfig { vision: student_config(recipe, teacher)?, ..teacher.clone() };
    let mut student = Clip::new(&config, device);
    // The text tower will be the teacher's.
    initialise(&student, &recipe.model.init, &["visual."])?;
    student.visual.checkpoint_blocks(recipe.train.checkpoint_blocks);
    Ok(student)
}

/// The tokens that the student has of the image at a position: `[CLS]`, and the kept patches.
fn wanted(masks: MaskGenerator, seed: u64) -> Box<Wanted> {
    Box::new(move |position| {
        let patches: Vec<u64> = match masks.kept_count() == masks.patches() {
            true => (0..masks.patches() as u64).collect(),
            false => masks.batch(seed, &[position]).into_iter().map(|patch| patch as u64).collect(),
        };
        std::iter::once(0).chain(patches.into_iter().map(|patch| 1 + patch)).collect()
    })
}

/// Cosine of each pair of tokens, in f32 whatever the precision: [B, T, E] x [B, T, E] -> [B, T].
fn cosine(a: &Tensor, b: &Tensor) -> Tensor {
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
