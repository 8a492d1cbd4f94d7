//! Image-text retrieval (paper, Table 2), as CLIP_benchmark does it (`metrics/zeroshot_retrieval.py`): raw captions, no
//! template; a query counts as answered when any of its right answers is among the first k of all candidates.

use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;
use tch::Tensor;
use uta_data::{Batch, LabelKind, Rejected, Source};
use uta_model::Clip;

use crate::embed::{encode_images, encode_texts, sweep};
use crate::ranking::{Candidates, expected_hit, standings};
use crate::zeroshot::same_space;
use crate::{EvalError, EvalOptions, Numbers};

/// Retrieval between the images of a set and all of their captions.
pub struct Retrieval {
    name: String,
    source: Arc<dyn Source>,
    text: Option<Rc<Clip>>,
    options: EvalOptions,
}

/// Shares of queries with a right answer among the first 1, 5 and 10; equal scores share the credit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Recall {
    /// Recall at 1.
    pub r1: f64,
    /// Recall at 5.
    pub r5: f64,
    /// Recall at 10.
    pub r10: f64,
}

/// Result of [`Retrieval::run`].
#[derive(Clone, Debug, Serialize)]
pub struct RetrievalReport {
    /// From a caption to its image, over all captions.
    pub text_to_image: Recall,
    /// From an image to any of its captions, over all images.
    pub image_to_text: Recall,
    /// Images that took part.
    pub images: usize,
    /// Captions that took part.
    pub captions: usize,
    /// Images left out because they have no caption.
    pub without_caption: usize,
    /// Images left out because they cannot be read, by key; their captions are left out too.
    pub rejected: Vec<Rejected>,
}

impl Retrieval {
    /// An evaluation called `name` of `source`.
    pub fn new(
        name: impl Into<String>,
        source: Arc<dyn Source>,
        options: EvalOptions,
    ) -> Retrieval {
        Retrieval { name: name.into(), source, text: None, options }
    }

    /// Uses the text tower of `text` (the teacher, for a student without one) instead of the evaluated model's.
    pub fn with_text(mut self, text: Rc<Clip>) -> Retrieval {
        self.text = Some(text);
        self
    }

    /// Embeds every image and caption of the set with `model` and ranks them both ways.
    ///
    /// # Errors
    /// See [`EvalError`]; unreadable images and images without a caption are counted in the report instead.
    pub fn run(&self, model: &Clip) -> Result<RetrievalReport, EvalError> {
        let text = self.text.as_deref().unwrap_or(model);
        same_space(model, text)?;
        if text.config.text.is_none() {
            return Err(EvalError::NoTextTower);
        }
        let (mut images, mut captions, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        let (mut n, mut without_caption) = (0i64, 0);
        let compute = |batch: &Batch, pixels: &Tensor| {
            if batch.items.iter().all(|item| item.captions().is_empty()) {
                return Ok(vec![]);
            }
            Ok(vec![encode_images(model, batch, pixels, &self.options)?])
        };
        let rejected = sweep(
            model,
            &self.source,
            &self.options,
            LabelKind::Captions,
            compute,
            |items, all| {
                let mut rows = Vec::new();
                for (row, item) in items.iter().enumerate() {
                    if item.captions().is_empty() {
                        without_caption += 1;
                        continue;
                    }
                    owners.extend(std::iter::repeat_n(n, item.captions().len()));
                    captions.extend(item.captions().iter().cloned());
                    rows.push(row as i64);
                    n += 1;
                }
                if !rows.is_empty() {
                    let rows = Tensor::from_slice(&rows).to_device(all[0].device());
                    images.push(all[0].index_select(0, &rows));
                }
                Ok(())
            },
        )?;
        if images.is_empty() {
            let want =
                "has a readable image and a caption (a .txt member or a .txt beside it, or a row)";
            return Err(EvalError::Empty { set: self.name.clone(), len: self.source.len(), want });
        }

        let images = Tensor::cat(&images, 0);
        let texts = encode_texts(text, &captions, &self.options)?.to_device(images.device());
        let owners = Tensor::from_slice(&owners).to_device(images.device());
        let own = Tensor::arange(n, (tch::Kind::Int64, images.device()));
        Ok(RetrievalReport {
            text_to_image: recall((&texts, &owners), (&images, &own)),
            image_to_text: recall((&images, &own), (&texts, &owners)),
            images: n as usize,
            captions: captions.len(),
            without_caption,
            rejected,
        })
    }
}

impl RetrievalReport {
    /// The numbers that a run logs.
    pub fn numbers(&self) -> Numbers {
        let ways = [("text_to_image", self.text_to_image), ("image_to_text", self.image_to_text)];
        ways.into_iter()
            .flat_map(|(way, Recall { r1, r5, r10 })| {
                [("r1", r1), ("r5", r5), ("r10", r10)].map(|(k, r)| (format!("{way}/{k}"), r))
            })
            .collect()
    }
}

/// Recall of unit `queries` `[Q,D]` among unit `candidates` `[C,D]`; a candidate is right for a query of the same owner
/// (i64 `[Q]` and `[C]`), and every query has a right one.
fn recall(queries: (&Tensor, &Tensor), candidates: (&Tensor, &Tensor)) -> Recall {
    // Bounds the scores and masks in memory at some tens of MB (COCO: 25,010 captions).
    let chunk = ((1 << 22) / candidates.0.size()[0]).max(1);
    let rows = Candidates::new(candidates.0);
    let mut sum = Recall::default();
    for (embeddings, owners) in queries.0.split(chunk, 0).iter().zip(queries.1.split(chunk, 0)) {
        let right = owners.unsqueeze(1).eq_tensor(&candidates.1.unsqueeze(0));
        let scores = rows.scores(embeddings);
        for (greater, tied, right) in standings(&scores, &right) {
            sum.r1 += expected_hit(greater, tied, right, 1);
            sum.r5 += expected_hit(greater, tied, right, 5);
            sum.r10 += expected_hit(greater, tied, right, 10);
        }
    }
    let n = queries.0.size()[0] as f64;
    Recall { r1: sum.r1 / n, r5: sum.r5 / n, r10: sum.r10 / n }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{Pictures, clip, naive_images, naive_texts, options};

    /// Pictures with 1, 2, 3, 1, ... captions.
    fn captioned(n: usize) -> Pictures {
        let mut pictures = Pictures::new(n, 3);
        for (i, sample) in pictures.samples.iter_mut().enumerate() {
            sample.captions = (0..=i % 3).map(|j| format!("view {j} of number {i}")).collect();
        }
        pictures
    }

    /// Shares of queries with a right answer among the k that score highest, by sorting.
    fn oracle(queries: &[(Vec<f32>, usize)], candidates: &[(Vec<f32>, usize)]) -> Recall {
        let at = |k: usize| {
            let hit = |(query, owner): &&(Vec<f32>, usize)| {
                let score =
                    |c: &(Vec<f32>, usize)| query.iter().zip(&c.0).map(|(a, b)| a * b).sum::<f32>();
                let mut order: Vec<&(Vec<f32>, usize)> = candidates.iter().collect();
                order.sort_by(|a, b| score(b).total_cmp(&score(a)));
                order.iter().take(k).any(|c| c.1 == *owner)
            };
            queries.iter().filter(hit).count() as f64 / queries.len() as f64
        };
        Recall { r1: at(1), r5: at(5), r10: at(10) }
    }

    #[test]
    fn recall_with_several_captions_an_image_equals_a_brute_force_ranking() {
        let (model, pictures) = (clip(1), captioned(30));
        let images: Vec<(Vec<f32>, usize)> =
            naive_images(&model, &pictures).into_iter().zip(0..).collect();
        let texts: Vec<(Vec<f32>, usize)> = pictures
            .samples
            .iter()
            .zip(0..)
            .flat_map(|(sample, owner)| {
                naive_texts(&model, &sample.captions).into_iter().map(move |text| (text, owner))
            })
            .collect();
        let (t2i, i2t) = (oracle(&texts, &images), oracle(&images, &texts));
        assert!(t2i.r10 > 0.0 && i2t.r10 > 0.0 && t2i.r10 < 1.0 && i2t.r10 < 1.0);
        let source = pictures.shared();
        for batch in [1, 7, 64] {
            let report = Retrieval::new("set", source.clone(), options(batch)).run(&model).unwrap();
            assert_eq!((report.images, report.captions), (30, 60));
            for (got, want) in [(report.text_to_image, t2i), (report.image_to_text, i2t)] {
                for (got, want) in [(got.r1, want.r1), (got.r5, want.r5), (got.r10, want.r10)] {
                    assert!((got - want).abs() < 1e-9, "batch {batch}: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn a_model_that_cannot_tell_anything_apart_scores_chance() {
        let mut pictures = Pictures::new(20, 3);
        let image = pictures.samples[0].image.clone();
        for sample in &mut pictures.samples {
            (sample.image, sample.captions) = (image.clone(), vec!["the same".into()]);
        }
        let report = Retrieval::new("set", pictures.shared(), options(7)).run(&clip(1)).unwrap();
        let chance = Recall { r1: 0.05, r5: 0.25, r10: 0.5 };
        // Equal texts are encoded once and tie exactly; equal images may differ by the rounding of their batch.
        for (got, want) in [
            (report.image_to_text.r1, chance.r1),
            (report.image_to_text.r5, chance.r5),
            (report.image_to_text.r10, chance.r10),
        ] {
            assert!((got - want).abs() < 1e-9, "{got} {want}");
        }
    }

    #[test]
    fn unreadable_images_and_images_without_captions_take_no_part_and_are_counted() {
        let mut pictures = captioned(9);
        pictures.samples[1].image = b"not an image".to_vec();
        pictures.samples[2].captions.clear();
        let report = Retrieval::new("set", pictures.shared(), options(4)).run(&clip(1)).unwrap();
        assert_eq!((report.images, report.captions, report.without_caption), (7, 18 - 2 - 3, 1));
        assert_eq!(report.rejected[0].key, "picture-1");
        let none = Pictures::new(3, 3).shared();
        let error = Retrieval::new("set", none, options(4)).run(&clip(1)).unwrap_err();
        assert!(matches!(error, EvalError::Empty { len: 3, .. }), "{error}");
    }
}
