//! How well a student's tokens point where its teacher's do: the paper's pre-training objective (section 2.2) as a
//! measurement, on whole images or on masked ones.

use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;
use tch::{Kind, Tensor};
use uta_data::mask::MaskGenerator;
use uta_data::{Batch, LabelKind, Rejected, Source};
use uta_model::{Clip, same_tokens, unit};

use crate::embed::{finite, sweep};
use crate::ranking::{mean_std, to_vec};
use crate::{EvalError, EvalOptions};

/// Mean cosine between a model's tokens and a teacher's.
pub struct Align {
    name: String,
    source: Arc<dyn Source>,
    teacher: Rc<Clip>,
    mask: Option<(MaskGenerator, u64)>,
    options: EvalOptions,
}

/// Result of [`Align::run`]: means over images.
#[derive(Clone, Debug, Serialize)]
pub struct AlignReport {
    /// Over `[CLS]` and the patches that the student saw, each token counting alike; minus the training loss.
    pub cosine: f64,
    /// The same for `[CLS]`.
    pub cosine_cls: f64,
    /// Over the patches that the student saw.
    pub cosine_patches: f64,
    /// Standard deviation of `cosine` over images; none of a single one.
    pub cosine_std: Option<f64>,
    /// The same of `cosine_cls`.
    pub cosine_cls_std: Option<f64>,
    /// The same of `cosine_patches`.
    pub cosine_patches_std: Option<f64>,
    /// Images compared.
    pub n: usize,
    /// Patches that the student saw of each image.
    pub kept: usize,
    /// Every image.
    pub per_image: Vec<ImageCosine>,
    /// Images left out because they cannot be read, by key.
    pub rejected: Vec<Rejected>,
}

/// The cosines of one image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImageCosine {
    /// The sample's key.
    pub file: String,
    /// Over all tokens.
    pub cosine: f64,
    /// The same for `[CLS]`.
    pub cosine_cls: f64,
    /// Over the patches.
    pub cosine_patches: f64,
}

impl Align {
    /// An evaluation called `name`, against `teacher`, on the whole images of `source`.
    pub fn new(
        name: impl Into<String>,
        source: Arc<dyn Source>,
        teacher: Rc<Clip>,
        options: EvalOptions,
    ) -> Align {
        Align { name: name.into(), source, teacher, mask: None, options }
    }

    /// Shows the student only what `mask` keeps; a sample's mask depends on `seed` and its index.
    pub fn with_mask(mut self, mask: MaskGenerator, seed: u64) -> Align {
        self.mask = Some((mask, seed));
        self
    }

    /// Compares `model`'s tokens with the teacher's on every image of the set.
    ///
    /// # Errors
    /// When the two differ in resolution, grid or width, and as [`EvalError`] says.
    pub fn run(&self, model: &Clip) -> Result<AlignReport, EvalError> {
        self.check(model)?;
        let (device, teacher) = (model.store.device(), self.teacher.as_ref());
        let kept_count = match &self.mask {
            Some((mask, _)) => mask.kept_count(),
            None => model.config.vision.num_patches() as usize,
        };
        let mut per_image = Vec::new();
        let compute = |batch: &Batch, pixels: &Tensor| {
            let kept = self.mask.as_ref().map(|(mask, seed)| {
                let positions: Vec<u64> =
                    batch.items.iter().map(|item| item.index as u64).collect();
                let kept = Tensor::from_slice(&mask.batch(*seed, &positions));
                kept.view([positions.len() as i64, kept_count as i64]).to_device(device)
            });
            let cosine = self.cosine(model, teacher, pixels, kept.as_ref());
            finite(&cosine, &self.options, |row| batch.items[row].key.clone())?;
            Ok(vec![cosine])
        };
        let rejected = sweep(
            model,
            &self.source,
            &self.options,
            LabelKind::None,
            compute,
            |items, cosine| {
                let all: Vec<f64> = to_vec(&cosine[0]);
                for (item, tokens) in items.iter().zip(all.chunks_exact(1 + kept_count)) {
                    let patches: f64 = tokens[1..].iter().sum();
                    per_image.push(ImageCosine {
                        file: item.key.clone(),
                        cosine: (tokens[0] + patches) / tokens.len() as f64,
                        cosine_cls: tokens[0],
                        cosine_patches: patches / kept_count as f64,
                    });
                }
                Ok(())
            },
        )?;
        if per_image.is_empty() {
            let want = "has a readable image";
            return Err(EvalError::Empty { set: self.name.clone(), len: self.source.len(), want });
        }
        let n = per_image.len();
        let over = |f: fn(&ImageCosine) -> f64| mean_std(per_image.iter().map(f));
        let (cosine, cosine_std) = over(|image| image.cosine);
        let (cosine_cls, cosine_cls_std) = over(|image| image.cosine_cls);
        let (cosine_patches, cosine_patches_std) = over(|image| image.cosine_patches);
        Ok(AlignReport {
            cosine,
            cosine_cls,
            cosine_patches,
            cosine_std,
            cosine_cls_std,
            cosine_patches_std,
            n,
            kept: kept_count,
            per_image,
            rejected,
        })
    }

    /// Cosines f32 `[B,1+K]` of the tokens of `pixels` u8 `[B,S,S,3]`; each model normalises them its own way, and the teacher
    /// sees the whole image.
    fn cosine(
        &self,
        model: &Clip,
        teacher: &Clip,
        pixels: &Tensor,
        kept: Option<&Tensor>,
    ) -> Tensor {
        let tokens = |clip: &Clip, kept: Option<&Tensor>| {
            let pixels = pixels.to_device(clip.store.device());
            let forward = || clip.visual.forward_t(&clip.normalise(&pixels), kept, false);
            unit(&self.options.forward(clip, forward))
        };
        let student = tokens(model, kept).to_device(pixels.device());
        let mut target = tokens(teacher, None).to_device(pixels.device());
        if let Some(kept) = kept {
            target = same_tokens(&target, kept);
        }
        (student * target).sum_dim_intlist([2i64].as_slice(), false, Kind::Float)
    }

    fn check(&self, model: &Clip) -> Result<(), EvalError> {
        let (student, teacher) = (&model.config, &self.teacher.config);
        let differ = |what, left: String, right: String, hint| {
            if left == right {
                Ok(())
            } else {
                Err(EvalError::Mismatch { what, left, right, hint })
            }
        };
        let side = |n: i64| format!("{n} x {n}");
        differ(
            "image sizes of student and teacher",
            side(student.vision.image_size),
            side(teacher.vision.image_size),
            "resize one of them",
        )?;
        differ(
            "patch grids of student and teacher",
            side(student.vision.grid()),
            side(teacher.vision.grid()),
            "tokens correspond only on one grid",
        )?;
        differ(
            "token widths of student and teacher",
            student.vision.out.to_string(),
            teacher.vision.out.to_string(),
            "the student's head must put out the teacher's width",
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{Pictures, clip, naive_pixels, options};
    use uta_data::mask::MaskKind;

    #[test]
    fn a_model_agrees_with_itself_wholly() {
        let source = Pictures::new(5, 3).shared();
        let report = Align::new("set", source, Rc::new(clip(1)), options(2)).run(&clip(1)).unwrap();
        assert!((report.cosine - 1.0).abs() < 1e-5, "{}", report.cosine);
        assert_eq!((report.n, report.per_image.len()), (5, 5));
    }

    #[test]
    fn cosines_equal_token_by_token_arithmetic_masked_or_not() {
        let (student, teacher, source) = (clip(1), Rc::new(clip(2)), Pictures::new(5, 3).shared());
        let grid = student.config.vision.grid() as usize;
        let mask = MaskGenerator::new(MaskKind::Random, 0.5, (grid, grid)).unwrap();
        for masked in [false, true] {
            let mut task = Align::new("set", source.clone(), teacher.clone(), options(2));
            if masked {
                task = task.with_mask(mask.clone(), 9);
            }
            let report = task.run(&student).unwrap();
            let (mut cls, mut patches, mut all) = (0.0, 0.0, 0.0);
            for i in 0..5 {
                let x = naive_pixels(&student, source.as_ref(), i);
                let kept = if masked {
                    mask.batch(9, &[i as u64])
                } else {
                    (0..(grid * grid) as i64).collect()
                };
                let rows = Tensor::from_slice(&kept).unsqueeze(0);
                let s =
                    tch::no_grad(|| student.visual.forward_t(&x, masked.then_some(&rows), false));
                let t = tch::no_grad(|| teacher.visual.forward_t(&x, None, false));
                let cosine = |a: i64, b: i64| -> f64 {
                    let (a, b): (Vec<f32>, Vec<f32>) =
                        (to_vec(&s.get(0).get(a)), to_vec(&t.get(0).get(b)));
                    let dot = |x: &[f32], y: &[f32]| -> f64 {
                        x.iter().zip(y).map(|(x, y)| f64::from(x * y)).sum()
                    };
                    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
                };
                let of_patches: f64 = kept.iter().zip(1..).map(|(&k, at)| cosine(at, k + 1)).sum();
                cls += cosine(0, 0) / 5.0;
                patches += of_patches / kept.len() as f64 / 5.0;
                all += (cosine(0, 0) + of_patches) / (1 + kept.len()) as f64 / 5.0;
            }
            assert!((report.cosine - all).abs() < 1e-5, "{} {all}", report.cosine);
            assert!((report.cosine_cls - cls).abs() < 1e-5, "{} {cls}", report.cosine_cls);
            assert!((report.cosine_patches - patches).abs() < 1e-5);
            assert!(
                (all - cls).abs() > 1e-3,
                "the parts must differ for the test to tell them apart"
            );
        }
    }

    #[test]
    fn masks_do_not_depend_on_the_batch_size() {
        let (student, teacher, source) = (clip(1), Rc::new(clip(2)), Pictures::new(6, 3).shared());
        let grid = student.config.vision.grid() as usize;
        let mask = MaskGenerator::new(MaskKind::BlockReversed, 0.4, (grid, grid)).unwrap();
        let run = |batch| {
            Align::new("set", source.clone(), teacher.clone(), options(batch))
                .with_mask(mask.clone(), 3)
                .run(&student)
                .unwrap()
        };
        let (one, many) = (run(1), run(4));
        for (a, b) in one.per_image.iter().zip(&many.per_image) {
            assert!(a.file == b.file && (a.cosine - b.cosine).abs() < 1e-5);
        }
    }
}
