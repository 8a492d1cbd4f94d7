//! Zero-shot classification: an image is what the nearest class sentence says (paper, Table 1).
//!
//! Protocol of OpenAI's CLIP and of CLIP_benchmark: every name in every template is embedded and normalised; the mean
//! over the templates, normalised again, is the class's row of the classifier; an image is scored by its cosine with
//! each row.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;
use tch::{Kind, Tensor};
use uta_data::{Batch, LabelKind, Rejected, Source};
use uta_model::Clip;

use crate::embed::{encode_images, name_of, sweep};
use crate::ranking::{Candidates, expected_hit, standings, to_vec, wilson};
use crate::{EvalError, EvalOptions, Numbers, Prompts, classifier};

/// Zero-shot classification of one set.
pub struct ZeroShot {
    name: String,
    source: Arc<dyn Source>,
    prompts: Prompts,
    text: Option<Rc<Clip>>,
    cache: Option<PathBuf>,
    options: EvalOptions,
}

/// Result of [`ZeroShot::run`]. Shares are fractions of `n`.
#[derive(Clone, Debug, Serialize)]
pub struct ZeroShotReport {
    /// Share of images whose class scores highest; equal scores share the credit.
    pub top1: f64,
    /// Share of images whose class is among the five highest.
    pub top5: f64,
    /// Images scored.
    pub n: usize,
    /// Mean of top-1 over the classes that have images.
    pub mean_per_class: f64,
    /// Classes to choose from.
    pub classes: usize,
    /// Classes without a scored image, by name.
    pub empty_classes: Vec<String>,
    /// Images left out because they have no class.
    pub unlabelled: usize,
    /// Images left out because they cannot be read, by key.
    pub rejected: Vec<Rejected>,
    /// Every class, in label order.
    pub per_class: Vec<ClassScore>,
}

/// How one class fares.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassScore {
    /// Its name.
    pub name: String,
    /// Its folder, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// Share of its images that are recognised; none without images.
    pub top1: Option<f64>,
    /// The 95 % interval of that share.
    pub interval: Option<(f64, f64)>,
    /// Its images.
    pub n: usize,
}

/// The classifier's answer for one image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Name of the sample in the set: the file's path, or its key in a shard.
    pub file: String,
    /// Its class.
    pub label: u32,
    /// The (at most) five classes that score highest, best first; equal scores by index.
    pub top5: Vec<u32>,
    /// Their cosines.
    pub scores: Vec<f32>,
    /// Their names.
    pub names: Vec<String>,
}

impl ZeroShot {
    /// An evaluation called `name` of `source` among the classes of `prompts`.
    pub fn new(
        name: impl Into<String>,
        source: Arc<dyn Source>,
        prompts: Prompts,
        options: EvalOptions,
    ) -> ZeroShot {
        ZeroShot { name: name.into(), source, prompts, text: None, cache: None, options }
    }

    /// Uses the text tower of `text` (the teacher, for a student without one) instead of the evaluated model's.
    pub fn with_text(mut self, text: Rc<Clip>) -> ZeroShot {
        self.text = Some(text);
        self
    }

    /// Keeps classifiers in the folder `cache` between runs.
    pub fn with_cache(mut self, cache: PathBuf) -> ZeroShot {
        self.cache = Some(cache);
        self
    }

    /// Classifies every image of the set with `model`.
    ///
    /// # Errors
    /// See [`EvalError`]; unreadable images and images without a class are counted in the report instead.
    pub fn run(&self, model: &Clip) -> Result<ZeroShotReport, EvalError> {
        self.score(model, None)
    }

    /// As [`ZeroShot::run`], and hands every image's best five classes to `each`, in order.
    ///
    /// # Errors
    /// As [`ZeroShot::run`].
    pub fn predict(
        &self,
        model: &Clip,
        mut each: impl FnMut(Prediction),
    ) -> Result<ZeroShotReport, EvalError> {
        self.score(model, Some(&mut each))
    }

    fn score(
        &self,
        model: &Clip,
        mut each: Option<&mut dyn FnMut(Prediction)>,
    ) -> Result<ZeroShotReport, EvalError> {
        let names = &self.prompts.names;
        let text = self.text.as_deref().unwrap_or(model);
        same_space(model, text)?;
        let rows = classifier(text, &self.prompts, &self.options, self.cache.as_deref())?;
        let classes = Candidates::new(&rows.to_device(model.store.device()));

        let (mut top1, mut top5, mut unlabelled) = (0.0, 0.0, 0);
        let mut hits = vec![(0.0, 0usize); names.len()];
        let compute = |batch: &Batch, pixels: &Tensor| {
            for item in &batch.items {
                if let Some(class) = item.class().filter(|&class| class as usize >= names.len()) {
                    let (key, names) = (item.key.clone(), names.len());
                    return Err(EvalError::Label { key, class, names });
                }
            }
            if batch.items.iter().all(|item| item.class().is_none()) {
                return Ok(vec![]);
            }
            Ok(vec![encode_images(model, batch, pixels, &self.options)?])
        };
        let rejected = sweep(
            model,
            &self.source,
            &self.options,
            LabelKind::Class,
            compute,
            |items, images| {
                let labelled: Vec<(usize, u32)> = items
                    .iter()
                    .enumerate()
                    .filter_map(|(i, item)| Some((i, item.class()?)))
                    .collect();
                unlabelled += items.len() - labelled.len();
                if labelled.is_empty() {
                    return Ok(());
                }
                let rows: Vec<i64> = labelled.iter().map(|&(row, _)| row as i64).collect();
                let labels: Vec<i64> =
                    labelled.iter().map(|&(_, class)| i64::from(class)).collect();
                let device = images[0].device();
                let labelled_images =
                    images[0].index_select(0, &Tensor::from_slice(&rows).to_device(device));
                let scores = classes.scores(&labelled_images);
                let right = scores.zeros_like().to_kind(Kind::Bool).scatter_value(
                    1,
                    &Tensor::from_slice(&labels).to_device(device).unsqueeze(1),
                    1,
                );
                for (&(_, class), (greater, tied, right)) in
                    labelled.iter().zip(standings(&scores, &right))
                {
                    let first = expected_hit(greater, tied, right, 1);
                    top1 += first;
                    top5 += expected_hit(greater, tied, right, 5);
                    let (hit, n) = &mut hits[class as usize];
                    *hit += first;
                    *n += 1;
                }
                if let Some(each) = &mut each {
                    let (values, indices) = best(&scores, 5);
                    let k = values.len() / labelled.len();
                    for (i, &(row, label)) in labelled.iter().enumerate() {
                        let top5: Vec<u32> =
                            indices[i * k..][..k].iter().map(|&class| class as u32).collect();
                        each(Prediction {
                            file: name_of(self.source.as_ref(), &items[row]),
                            label,
                            scores: values[i * k..][..k].to_vec(),
                            names: top5
                                .iter()
                                .map(|&class| names[class as usize].clone())
                                .collect(),
                            top5,
                        });
                    }
                }
                Ok(())
            },
        )?;

        let n: usize = hits.iter().map(|&(_, n)| n).sum();
        if n == 0 {
            let want = "has a readable image and a class (a .cls member or a class folder)";
            return Err(EvalError::Empty { set: self.name.clone(), len: self.source.len(), want });
        }
        let folders = self.source.class_names().filter(|folders| folders.len() == names.len());
        let score = |(i, &(hit, n)): (usize, &(f64, usize))| {
            let top1 = (n > 0).then(|| hit / n as f64);
            let folder = folders.map(|folders| folders[i].clone());
            let interval = top1.map(|top1| wilson(top1, n));
            ClassScore { name: names[i].clone(), folder, top1, interval, n }
        };
        let per_class: Vec<ClassScore> = hits.iter().enumerate().map(score).collect();
        let seen: Vec<f64> = per_class.iter().filter_map(|class| class.top1).collect();
        Ok(ZeroShotReport {
            top1: top1 / n as f64,
            top5: top5 / n as f64,
            n,
            mean_per_class: seen.iter().sum::<f64>() / seen.len() as f64,
            classes: names.len(),
            empty_classes: per_class.iter().filter(|c| c.n == 0).map(|c| c.name.clone()).collect(),
            unlabelled,
            rejected,
            per_class,
        })
    }
}

impl ZeroShotReport {
    /// The numbers that a run logs.
    pub fn numbers(&self) -> Numbers {
        vec![("top1".into(), self.top1), ("top5".into(), self.top5)]
    }
}

/// The highest `k` (or all) of every row of `scores` `[Q,C]`, best first, equal ones by index: values and indices, flat.
fn best(scores: &Tensor, k: i64) -> (Vec<f32>, Vec<i64>) {
    let (values, indices) = scores.sort_stable(true, 1, true);
    let k = k.min(scores.size()[1]);
    (to_vec(&values.narrow(1, 0, k)), to_vec(&indices.narrow(1, 0, k)))
}

/// Fails unless images of `model` and texts of `text` embed into spaces of one width.
pub(crate) fn same_space(model: &Clip, text: &Clip) -> Result<(), EvalError> {
    let (left, right) = (model.config.embed_dim, text.config.embed_dim);
    if left == right {
        return Ok(());
    }
    Err(EvalError::Mismatch {
        what: "embedding widths of images and texts",
        left: left.to_string(),
        right: right.to_string(),
        hint: "give the text tower that the model was aligned to",
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{Pictures, clip, naive_classifier, naive_images, options, prompts};

    #[test]
    fn scores_equal_a_naive_classification_image_by_image() {
        let (model, source) = (clip(1), Pictures::new(23, 7).shared());
        let prompts = prompts(7);
        let task = ZeroShot::new("set", source.clone(), prompts.clone(), options(5));
        let mut predictions = Vec::new();
        let report = task.predict(&model, |p| predictions.push(p)).unwrap();

        let rows = naive_classifier(&model, &prompts);
        let images = naive_images(&model, source.as_ref());
        let (mut top1, mut top5) = (0, 0);
        for (i, image) in images.iter().enumerate() {
            let label = source.read(i).unwrap().class.unwrap();
            let mut order: Vec<(f32, u32)> = rows
                .iter()
                .zip(0..)
                .map(|(row, class)| (row.iter().zip(image).map(|(a, b)| a * b).sum(), class))
                .collect();
            order.sort_by(|a, b| b.0.total_cmp(&a.0));
            top1 += usize::from(order[0].1 == label);
            top5 += usize::from(order[..5].iter().any(|o| o.1 == label));
            assert_eq!((predictions[i].label, &predictions[i].file), (label, &source.key(i)));
            assert_eq!(predictions[i].top5, order[..5].iter().map(|o| o.1).collect::<Vec<_>>());
            for (got, want) in predictions[i].scores.iter().zip(&order) {
                assert!((got - want.0).abs() < 1e-5);
            }
        }
        assert_eq!((report.n, report.classes), (23, 7));
        assert!(top1 > 0 && top5 < 23, "the oracle itself must tell right from wrong");
        assert!((report.top1 * 23.0 - top1 as f64).abs() < 1e-9);
        assert!((report.top5 * 23.0 - top5 as f64).abs() < 1e-9);
        let by_class: f64 = report.per_class.iter().map(|c| c.top1.unwrap() * c.n as f64).sum();
        assert!((by_class - top1 as f64).abs() < 1e-9);
    }

    #[test]
    fn numbers_do_not_depend_on_the_batch_size_or_the_number_of_workers() {
        let (model, source) = (clip(2), Pictures::new(20, 5).shared());
        let runs: Vec<(ZeroShotReport, Vec<Prediction>)> = [(1, 1), (7, 3), (64, 2)]
            .iter()
            .map(|&(batch, workers)| {
                let options = EvalOptions { workers, ..options(batch) };
                let mut predictions = Vec::new();
                let report = ZeroShot::new("set", source.clone(), prompts(5), options)
                    .predict(&model, |p| predictions.push(p))
                    .unwrap();
                (report, predictions)
            })
            .collect();
        for (report, predictions) in &runs[1..] {
            assert_eq!((report.top1, report.top5, report.n), (runs[0].0.top1, runs[0].0.top5, 20));
            for (a, b) in predictions.iter().zip(&runs[0].1) {
                assert_eq!((&a.file, &a.top5), (&b.file, &b.top5));
            }
        }
    }

    #[test]
    fn corrupt_images_and_images_without_a_class_leave_the_denominator_and_are_named() {
        let mut pictures = Pictures::new(12, 3);
        pictures.samples[4].image = b"not an image".to_vec();
        pictures.samples[7].class = None;
        pictures.samples[8].class = None;
        let report =
            ZeroShot::new("set", pictures.shared(), prompts(4), options(5)).run(&clip(1)).unwrap();
        assert_eq!((report.n, report.unlabelled, report.rejected.len()), (9, 2, 1));
        assert_eq!(report.rejected[0].key, "picture-4");
        assert_eq!(report.empty_classes, ["thing 3"]);
        let empty = &report.per_class[3];
        assert_eq!((empty.top1, empty.interval, empty.n), (None, None, 0));
        let (low, high) = report.per_class[0].interval.unwrap();
        assert!(low < report.per_class[0].top1.unwrap() + 1e-9 && high <= 1.0);
    }

    #[test]
    fn classes_of_one_name_tie_and_share_the_credit() {
        let prompts = Prompts::new(vec!["same".into(); 3], vec!["{}".into()]).unwrap();
        assert_eq!(prompts.duplicates(), [("same", 3)]);
        let report = ZeroShot::new("set", Pictures::new(11, 3).shared(), prompts, options(4))
            .run(&clip(1))
            .unwrap();
        assert!((report.top1 - 1.0 / 3.0).abs() < 1e-12, "{}", report.top1);
        assert_eq!(report.top5, 1.0);
    }

    #[test]
    fn a_model_without_text_needs_the_tower_of_another() {
        let (mut student, teacher) = (clip(4), Rc::new(clip(5)));
        (student.text, student.config.text) = (None, None);
        let task = ZeroShot::new("set", Pictures::new(6, 3).shared(), prompts(3), options(4));
        assert!(matches!(task.run(&student), Err(EvalError::NoTextTower)));
        assert_eq!(task.with_text(teacher).run(&student).unwrap().n, 6);
    }

    #[test]
    fn a_label_without_a_name_and_a_set_without_labels_are_refused() {
        let source = Pictures::new(6, 3).shared();
        let error = ZeroShot::new("set", source, prompts(2), options(4)).run(&clip(1)).unwrap_err();
        assert!(matches!(error, EvalError::Label { class: 2, names: 2, .. }), "{error}");
        let mut pictures = Pictures::new(3, 3);
        pictures.samples.iter_mut().for_each(|sample| sample.class = None);
        let error = ZeroShot::new("set", pictures.shared(), prompts(3), options(4))
            .run(&clip(1))
            .unwrap_err();
        assert!(matches!(error, EvalError::Empty { len: 3, .. }), "{error}");
    }

    #[test]
    fn broken_weights_are_an_error_and_not_a_score() {
        let model = clip(1);
        let mut head = model.store.variables().remove("visual.head.bias").unwrap();
        let _ = tch::no_grad(|| head.fill_(f64::NAN));
        let task = ZeroShot::new("set", Pictures::new(3, 3).shared(), prompts(3), options(4));
        assert!(
            matches!(task.run(&model), Err(EvalError::NonFinite { key, .. }) if key == "picture-0")
        );
    }
}
