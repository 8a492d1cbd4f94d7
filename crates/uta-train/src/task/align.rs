//! Unmasked Token Alignment (paper section 2.2): the student sees `[CLS]` and the kept patches, the frozen teacher sees
//! the whole image, and every token of the student is pulled towards the same token of the teacher.

use tch::{Device, Kind, Tensor, no_grad};
use uta_data::Batch;
use uta_model::{Clip, ClipConfig, same_tokens};

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
        let mut teacher = match &recipe.teacher {
            Some(t) => match (&t.path, &t.arch) {
                (Some(path), _) => load(path, None, device)?,
                (None, Some(arch)) => Clip::new(&ClipConfig::preset(arch)?, device),
                (None, None) => return Err(wrong("teacher: needs teacher.path or teacher.arch")),
            },
            None => return Err(wrong("teacher: task \"align\" needs one")),
        };
        let (vision, target) = (&recipe.model.vision, &teacher.config.vision);
        for (what, ours, theirs) in [
            ("image_size", vision.image_size, target.image_size),
            ("patch_size", vision.patch_size, target.patch_size),
            ("out", vision.out, target.out),
        ] {
            if ours != theirs {
                return Err(wrong(&format!(
                    "model.{what} = {ours}: must be the teacher's, {theirs}"
                )));
            }
        }
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

    /// The kept patches of each sample, i64 [B, K]; `None` when all are.
    fn kept(&self, batch: &Batch, mode: Mode, device: Device) -> Option<Tensor> {
        let masks = match mode {
            Mode::Train => &self.masks,
            Mode::Validate => &self.validation_masks,
        };
        if masks.kept_count() == masks.patches() {
            return None;
        }
        let positions: Vec<u64> = batch.items.iter().map(|item| item.position).collect();
        let kept = Tensor::from_slice(&masks.batch(self.seed, &positions));
        Some(to_device(kept, device).view([batch.len() as i64, -1]))
    }
}

impl Task for Align {
    fn parameters(&self) -> Vec<Parameter> {
        parameters_of(&self.student, &["visual."])
    }

    fn forward(&self, batch: &Batch, mode: Mode) -> Result<Output, TrainError> {
        let device = self.student.store.device();
        let images = self.student.normalise(&upload(batch, device)); // [B, 3, S, S]
        let kept = self.kept(batch, mode, device); // [B, K]

        let target = no_grad(|| self.teacher.visual.forward_t(&images, None, false)); // [B, 1+N, E]
        let tokens = self.student.visual.forward_t(&images, kept.as_ref(), mode == Mode::Train); // [B, 1+K, E]
        let target = match &kept {
            Some(kept) => same_tokens(&target, kept),
            None => target,
        };
        let cosine = cosine(&tokens, &target); // [B, 1+K]
        let loss = -cosine.mean(Kind::Float);
        let metrics = vec![
            ("cosine", -loss.detach()),
            ("cosine_cls", cosine.select(1, 0).mean(Kind::Float).detach()),
        ];
        Ok(Output { loss, metrics })
    }

    fn clip(&self) -> &Clip {
        &self.student
    }
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

fn wrong(message: &str) -> TrainError {
    RecipeError { origin: "recipe".into(), message: message.into() }.into()
}
