//! Unmasked Token Alignment (paper section 2.2): the student sees `[CLS]` and the kept patches, the frozen teacher sees
//! the whole image, and every token of the student is pulled towards the same token of the teacher.

use tch::{Device, Kind, Tensor, no_grad};
use uta_data::Batch;
use uta_model::{Clip, ClipConfig, VitConfig, same_tokens};

use super::{Mode, Output, Task, initialise, load, parameters_of, to_device, upload};
use crate::mask::{MaskGenerator, MaskKind};
use crate::recipe::Recipe;
use crate::{Parameter, RecipeError, TrainError};

/// Unmasked Token Alignment; with mask kind `none`, dense feature distillation (the FD rows of Table 6).
pub struct Align {
    /// The student's vision transformer with the teacher's text tower, so that it is a CLIP at any time.
    student: Clip,
    teacher: Clip,
    masks: MaskGenerator,
    /// Random at ratio 0.5 whatever the recipe trains with (paper A.3).
    validation_masks: MaskGenerator,
    seed: u64,
}

impl Align {
    /// # Errors
    /// When the teacher can't be loaded, or its patches or width don't fit the student's.
    pub fn new(recipe: &Recipe, device: Device) -> Result<Align, TrainError> {
        let teacher = match &recipe.teacher {
            Some(t) => match (&t.path, &t.arch) {
                (Some(path), arch) => load(path, arch.as_deref(), device)?,
                (None, Some(arch)) => Clip::new(&ClipConfig::preset(arch)?, device),
                (None, None) => return Err(wrong("teacher: needs teacher.path or teacher.arch")),
            },
            None => return Err(wrong("teacher: task \"align\" needs one")),
        };
        Align::with_teacher(recipe, teacher, device)
    }

    /// With a teacher that is here already.
    ///
    /// # Errors
    /// When its patches or width don't fit the student's.
    pub fn with_teacher(
        recipe: &Recipe,
        mut teacher: Clip,
        device: Device,
    ) -> Result<Align, TrainError> {
        let vision = &recipe.model.vision;
        fit(vision, &teacher.config.vision)?;
        let config = ClipConfig { vision: vision.clone(), ..teacher.config.clone() };
        let mut student = Clip::new(&config, device);
        initialise(&student, &recipe.model.init)?;
        if teacher.text.is_some() {
            student.copy_from(&teacher, "text.")?;
        }
        if let (Some(ours), Some(theirs)) = (&student.logit_scale, &teacher.logit_scale) {
            no_grad(|| ours.shallow_clone().copy_(theirs));
        }
        freeze_text(&mut student);
        teacher.freeze(recipe.train.precision.into());

        let grid = (vision.grid() as usize, vision.grid() as usize);
        let masks = MaskGenerator::new(recipe.mask.kind, recipe.mask.ratio, grid)
            .map_err(|e| wrong(&format!("mask: {e}")))?;
        let validation_masks = MaskGenerator::new(MaskKind::Random, 0.5, grid)
            .map_err(|e| wrong(&format!("mask: {e}")))?;
        Ok(Align { student, teacher, masks, validation_masks, seed: recipe.train.seed })
    }

    /// The pixels of a batch as both nets see them: f32 [B, 3, S, S].
    pub fn images(&self, batch: &Batch) -> Tensor {
        self.student.normalise(&upload(batch, self.student.store.device()))
    }

    /// The kept patches of each sample, i64 [B, K]; `None` when all are.
    pub fn kept(&self, batch: &Batch, mode: Mode) -> Option<Tensor> {
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

    /// The teacher's tokens of `images` [B, 3, S, S], which it sees whole, where the student has one: [B, 1+K, E].
    pub fn target(&self, images: &Tensor, kept: Option<&Tensor>) -> Tensor {
        let tokens = no_grad(|| self.teacher.visual.forward_t(images, None, false)); // [B, 1+N, E]
        match kept {
            Some(kept) => same_tokens(&tokens, kept),
            None => tokens,
        }
    }

    /// How far the student's tokens of `images` point from `target` [B, 1+K, E].
    pub fn loss(
        &self,
        images: &Tensor,
        kept: Option<&Tensor>,
        target: &Tensor,
        mode: Mode,
    ) -> Output {
        let tokens = self.student.visual.forward_t(images, kept, mode == Mode::Train); // [B, 1+K, E]
        let cosine = cosine(&tokens, target); // [B, 1+K]
        let loss = -cosine.mean(Kind::Float);
        let metrics = vec![
            ("cosine", -loss.detach()),
            ("cosine_cls", cosine.select(1, 0).mean(Kind::Float).detach()),
        ];
        Output { loss, metrics }
    }
}

impl Task for Align {
    fn parameters(&self) -> Vec<Parameter> {
        parameters_of(&self.student, &["visual."])
    }

    fn forward(&self, batch: &Batch, mode: Mode) -> Result<Output, TrainError> {
        let images = self.images(batch); // [B, 3, S, S]
        let kept = self.kept(batch, mode); // [B, K]
        let target = self.target(&images, kept.as_ref()); // [B, 1+K, E]
        Ok(self.loss(&images, kept.as_ref(), &target, mode))
    }

    fn clip(&self) -> &Clip {
        &self.student
    }
}

/// Cosine of each pair of tokens, in f32 whatever the precision: [B, T, E] x [B, T, E] -> [B, T].
fn cosine(a: &Tensor, b: &Tensor) -> Tensor {
    Tensor::cosine_similarity(&a.to_kind(Kind::Float), &b.to_kind(Kind::Float), -1, 1e-8)
}

/// # Errors
/// When the student has not a token and a channel for each of the teacher's.
pub(crate) fn fit(student: &VitConfig, teacher: &VitConfig) -> Result<(), TrainError> {
    for (what, ours, theirs) in [
        ("image_size", student.image_size, teacher.image_size),
        ("patch_size", student.patch_size, teacher.patch_size),
        ("out", student.out, teacher.out),
    ] {
        if ours != theirs {
            return Err(wrong(&format!("model.{what} = {ours}: must be the teacher's, {theirs}")));
        }
    }
    Ok(())
}

/// The text tower and the temperature are the teacher's, for good.
fn freeze_text(student: &mut Clip) {
    for (name, tensor) in student.store.variables() {
        if !name.starts_with("visual.") {
            let _ = tensor.set_requires_grad(false);
        }
    }
}

fn wrong(message: &str) -> TrainError {
    RecipeError { origin: "recipe".into(), message: message.into() }.into()
}
