//! Image-text contrastive learning: CLIP's symmetric cross-entropy over the pairs of a batch, the global one where several
//! ranks share it.

pub(crate) mod recipe;

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use tch::{Device, Kind, Reduction, Tensor, no_grad};
use torch_ext::distributed::ProcessGroup;
use uta_data::{Batch, LabelKind, Source, Tokenizer, Transform, require_captions};
use uta_eval::{EvalOptions, EvalSet, Evaluator, upload};
use uta_model::{ByLength, Clip, ClipConfig, ModelError, Parameter, TextConfig, unit};

use super::parts::{clip_evaluators, initialise, save_clip, to_device, views};
use super::{Mode, Output, Task};
use crate::TrainError;
use crate::recipe::{ContrastiveRecipe, Data, Recipe};

/// The largest logit scale: CLIP's bound on the temperature, 1 / 100.
const MAX_LOGIT_SCALE: f64 = 100.0;

/// Captions are encoded in this many parts, shortest first, so that few tokens are padding.
const TEXT_PARTS: usize = 4;

/// Contrastive training of a vision transformer and a text tower.
pub struct Contrastive {
    clip: Rc<Clip>,
    tokenizer: Tokenizer,
    options: ContrastiveRecipe,
    group: Rc<ProcessGroup>,
}

impl Contrastive {
    /// # Errors
    /// When the checkpoint to start from can't be loaded, or the towers' widths differ.
    pub fn new(
        recipe: &Recipe,
        own: &ContrastiveRecipe,
        device: Device,
        group: &Rc<ProcessGroup>,
    ) -> Result<Contrastive, TrainError> {
        let none = || TrainError::recipe("model.text: task \"contrastive\" needs a text tower");
        let text = recipe.model.text.clone().ok_or_else(none)?;
        let tokenizer = Tokenizer::new(text.vocab_size as usize, text.context_length as usize)?;
        let config = ClipConfig::new(recipe.model.vision.clone(), Some(text));
        config.check()?;
        let mut clip = Clip::new(&config, device);
        if !initialise(&clip, &recipe.model.init, &["visual.", "text."])? {
            tracing::warn!(
                "model.init = {}: has no text tower, so that texts start from random weights; a run's own folder has its \
                 teacher's once the run has ended",
                recipe.model.init
            );
        }
        clip.visual.checkpoint_blocks(recipe.train.checkpoint_blocks);
        if let Some(scale) = &clip.logit_scale {
            let start = (1.0 / own.temperature).ln();
            let _ = no_grad(|| scale.shallow_clone().fill_(start));
            let _ = scale.set_requires_grad(own.learn_temperature);
        }
        let clip = Rc::new(clip);
        let (options, group) = (own.clone(), group.clone());
        Ok(Contrastive { clip, tokenizer, options, group })
    }

    /// Text embeddings [B, E], in the order of `captions`.
    fn encode_captions(&self, captions: &[&str], device: Device) -> Option<Tensor> {
        let rows: Vec<Vec<i64>> = captions.iter().map(|c| self.tokenizer.encode(c)).collect();
        let text = self.clip.text.as_ref()?;
        let ByLength { parts, place } = ByLength::new(&rows, rows.len().div_ceil(TEXT_PARTS));
        let parts: Vec<Tensor> =
            parts.into_iter().map(|(_, tokens)| text.forward(&to_device(tokens, device))).collect();
        let place = to_device(Tensor::from_slice(&place), device);
        Some(Tensor::cat(&parts, 0).index_select(0, &place))
    }

    /// The rows of all ranks, and where this rank's begin. Training batches are equally long on all; others may differ.
    fn all_rows(&self, own: &Tensor, mode: Mode) -> Result<(Tensor, i64), TrainError> {
        let (n, rank, world) = (own.size()[0], self.group.rank(), self.group.world());
        if mode == Mode::Train {
            return Ok((self.group.all_gather(own)?, n * rank as i64));
        }
        let lengths = self.group.exchange(&n.to_le_bytes())?;
        let lengths: Vec<i64> = lengths
            .iter()
            .map(|bytes| i64::from_le_bytes(bytes.as_slice().try_into().expect("a number")))
            .collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if longest == 0 {
            return Ok((own.shallow_clone(), 0));
        }
        let padded = own.constant_pad_nd([0, 0, 0, longest - n]);
        let all = self.group.all_gather(&padded)?;
        let rows: Vec<Tensor> =
            (0..world).map(|r| all.narrow(0, r as i64 * longest, lengths[r])).collect();
        Ok((Tensor::cat(&rows, 0), lengths[..rank].iter().sum()))
    }
}

impl Task for Contrastive {
    fn parameters(&self) -> Vec<Parameter> {
        self.clip.parameters()
    }

    fn saved(&self) -> Vec<(String, Tensor)> {
        let mut saved: Vec<(String, Tensor)> =
            self.parameters().into_iter().map(|p| (p.name, p.tensor)).collect();
        // A fixed temperature is the recipe's, also where a run goes on: what is read from a checkpoint goes into the copy.
        if let (Some(scale), false) = (&self.clip.logit_scale, self.options.learn_temperature) {
            saved.push(("logit_scale".into(), scale.copy()));
        }
        saved
    }

    fn forward(&self, batch: &Batch, mode: Mode) -> Result<Output, TrainError> {
        let device = self.clip.store.device();
        let captions: Vec<&str> = batch
            .items
            .iter()
            .map(|item| item.captions().first().map_or("", String::as_str))
            .collect();
        let (image, text) = match batch.is_empty() {
            true => {
                let none = Tensor::zeros([0, self.clip.config.embed_dim], (Kind::Float, device));
                (none.shallow_clone(), none)
            }
            false => {
                let images = self.clip.normalise(&upload(batch, device)); // [B, 3, S, S]
                let text = self.encode_captions(&captions, device);
                let text = text.expect("checked when the task was made");
                (unit(&self.clip.visual.cls_t(&images, mode == Mode::Train)), unit(&text)) // [B, E]
            }
        };
        let scale = self.clip.logit_scale.as_ref().expect("a pair has a temperature").exp();

        // The similarities are f32 products even under autocast: they are divided by a small temperature.
        let f32 = torch_ext::Precision::F32;
        let (by_image, by_text, first) = match self.group.world() {
            1 => {
                let logits = torch_ext::autocast(device, f32, || scale * image.matmul(&text.tr())); // [B, B]
                let by_text = logits.tr();
                (logits, by_text, 0)
            }
            // Own rows against all ranks' (open_clip, `loss.py`: local loss, gathered with gradient).
            _ => {
                let (images, first) = self.all_rows(&image, mode)?; // [B of all, E]
                if images.size()[0] == 0 {
                    // No rank could read any of its images.
                    let loss = Tensor::zeros([], (Kind::Float, device));
                    return Ok(Output { loss, count: 0.0, metrics: vec![] });
                }
                let (texts, _) = self.all_rows(&text, mode)?;
                torch_ext::autocast(device, f32, || {
                    let by_image = &scale * image.matmul(&texts.tr()); // [B, B of all]
                    (by_image, &scale * text.matmul(&images.tr()), first)
                })
            }
        };
        let own = Tensor::arange(batch.len() as i64, (Kind::Int64, device)) + first;
        let smoothing = self.options.label_smoothing;
        let entropy = |logits: &Tensor| {
            logits.cross_entropy_loss::<Tensor>(&own, None, Reduction::Mean, -100, smoothing)
        };
        let loss = (entropy(&by_image) + entropy(&by_text)) / 2.0;
        let found = by_image.detach().argmax(1, false).eq_tensor(&own).to_kind(Kind::Float);
        let scale = self.clip.logit_scale.as_ref().map(|s| s.detach().exp());
        let mut metrics = vec![("batch_top1", found.mean(Kind::Float))];
        metrics.extend(scale.map(|scale| ("logit_scale", scale)));
        Ok(Output { loss, count: batch.len() as f64, metrics })
    }

    fn transform(&self, data: &Data, mode: Mode) -> Arc<dyn Transform> {
        views(data, mode, LabelKind::Captions)
    }

    fn check_data(&self, _train: &dyn Source, val: Option<&dyn Source>) -> Result<(), TrainError> {
        let named = |e| TrainError::recipe(format!("data.val: {e}"));
        val.map_or(Ok(()), |val| require_captions(val).map_err(named))
    }

    fn spans_ranks(&self) -> bool {
        self.group.world() > 1
    }

    fn macs(&self) -> u64 {
        let vision = &self.clip.config.vision;
        let text = self.clip.config.text.as_ref().map_or(0, TextConfig::macs);
        3 * (vision.macs(vision.num_patches()) + text)
    }

    fn save(&self, dir: &Path, weights: Option<Kind>) -> Result<(), ModelError> {
        save_clip(&self.clip, dir, weights)
    }

    fn evaluators(
        &self,
        sets: &[EvalSet],
        options: &EvalOptions,
    ) -> Result<Vec<Evaluator>, TrainError> {
        clip_evaluators(&self.clip, sets, options)
    }

    fn constrain(&self) {
        if let Some(scale) = &self.clip.logit_scale {
            no_grad(|| {
                let _ = scale.shallow_clone().clamp_max_(MAX_LOGIT_SCALE.ln());
            });
        }
    }
}
