//! From samples and sentences to embeddings: the part that every evaluator shares.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};
use torch_ext::distributed::ProcessGroup;
use torch_ext::{Precision, autocast};
use uta_data::{
    Batch, DecodeOptions, EvalTransform, EvalViews, Filter, Fit, Item, LabelKind, Rejected, Share,
    Source, Tokenizer,
};
use uta_model::{ByLength, Clip, ClipConfig, Convention, Interpolation, Preprocess, Resize, unit};

use crate::EvalError;
use crate::ranking::to_vec;

/// Told the stage, how many are done, and how many there are.
pub type Progress = Arc<dyn Fn(&'static str, usize, usize) + Send + Sync>;

/// The pixels of a batch as u8 [B, S, S, 3] on `device`; to a GPU through pinned memory, without waiting.
///
/// # Panics
/// When the device has no room for a batch.
pub fn upload(batch: &Batch, device: Device) -> Tensor {
    let (b, s) = (batch.len() as i64, batch.size as i64);
    let pixels = torch_ext::upload(Tensor::from_slice(&batch.pixels), device);
    pixels.expect("a batch has room on its device").view([b, s, s, 3])
}

/// How an evaluation is computed; `batch`, `workers` and `progress` change no number beyond rounding.
#[derive(Clone)]
pub struct EvalOptions {
    /// Images (or sentences) a forward pass.
    pub batch: usize,
    /// Decoding threads.
    pub workers: usize,
    /// Type of the towers' products; scores are f32 always.
    pub precision: Precision,
    /// How images are decoded.
    pub decode: DecodeOptions,
    /// Pixels cut from each side of an image: 2 for ObjectNet's frame.
    pub border: u32,
    /// Whether a text beyond the context is an error (OpenAI's rule) instead of being cut (open_clip's).
    pub whole_texts: bool,
    /// The processes that share the images of an evaluator's set; each gets the whole report.
    pub group: Rc<ProcessGroup>,
    /// Called after every batch.
    pub progress: Option<Progress>,
}

impl Default for EvalOptions {
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        EvalOptions {
            batch: 256,
            workers,
            precision: Precision::F32,
            decode: DecodeOptions::default(),
            border: 0,
            whole_texts: false,
            group: ProcessGroup::single(),
            progress: None,
        }
    }
}

impl EvalOptions {
    /// The way of an image to a net of this `config`.
    pub fn transform(&self, config: &ClipConfig) -> EvalTransform {
        let Preprocess { resize, interpolation, crop_pct, fill, convention } = config.preprocess;
        EvalTransform {
            size: config.vision.image_size as u32,
            border: self.border,
            fit: match resize {
                Resize::Shortest => Fit::Shortest,
                Resize::Longest => Fit::Longest,
                Resize::Squash => Fit::Squash,
            },
            filter: match interpolation {
                Interpolation::Nearest => Filter::Nearest,
                Interpolation::Box => Filter::Box,
                Interpolation::Bilinear => Filter::Bilinear,
                Interpolation::Hamming => Filter::Hamming,
                Interpolation::Bicubic => Filter::Bicubic,
                Interpolation::Lanczos => Filter::Lanczos,
            },
            crop_pct,
            fill,
            convention: match convention {
                Convention::OpenClip => uta_data::Convention::OpenClip,
                Convention::Timm => uta_data::Convention::Timm,
                Convention::Hf => uta_data::Convention::Hf,
            },
        }
    }

    fn report(&self, stage: &'static str, done: usize, total: usize) {
        if let Some(progress) = &self.progress {
            progress(stage, done, total);
        }
    }

    /// Runs a tower of `model` without gradients in the asked precision; the result is f32.
    pub(crate) fn forward(&self, model: &Clip, f: impl FnOnce() -> Tensor) -> Tensor {
        self.compute(model, f).to_kind(Kind::Float)
    }

    /// Runs any part of `model` without gradients in the asked precision.
    fn compute<T>(&self, model: &Clip, f: impl FnOnce() -> T) -> T {
        autocast(model.store.device(), self.precision, || tch::no_grad(f))
    }
}

/// Sweeps `source` once and returns its unreadable samples, with those whose `label` makes no sense. `compute` gets every batch of readable ones, with its pixels
/// u8 `[B,S,S,3]` on `model`'s device at the model's resolution, and makes f32 tensors `[B,...]` of it; `each` gets them
/// in the set's order. With several ranks each computes its share of the batches and meets those of all in `each`, so
/// that every one ends with what one alone would have found.
pub(crate) fn sweep(
    model: &Clip,
    source: &Arc<dyn Source>,
    options: &EvalOptions,
    label: LabelKind,
    mut compute: impl FnMut(&Batch, &Tensor) -> Result<Vec<Tensor>, EvalError>,
    mut each: impl FnMut(&[Item], &[Tensor]) -> Result<(), EvalError>,
) -> Result<Vec<Rejected>, EvalError> {
    let (mut rejected, mut done, total) = (Vec::new(), 0, source.len());
    options.report("images", 0, total);
    let transform = options.transform(&model.config);
    let views = EvalViews { transform, decode: options.decode, label, required: false };
    let (device, group) = (model.store.device(), options.group.as_ref());
    let share = Share { rank: group.rank(), world: group.world() };
    let EvalOptions { batch, workers, .. } = *options;
    for batch in uta_data::sweep(source.clone(), Arc::new(views), batch, workers, share) {
        let computed = batch.map_err(EvalError::from).and_then(|batch| {
            let tensors = match batch.is_empty() {
                true => vec![],
                false => compute(&batch, &upload(&batch, device))?,
            };
            Ok(Part { items: batch.items, rejected: batch.rejected, tensors })
        });
        for mut part in Part::of_all_ranks(computed, group, device)? {
            rejected.append(&mut part.rejected);
            done += part.items.len();
            if !part.items.is_empty() {
                each(&part.items, &part.tensors)?;
            }
        }
        options.report("images", done + rejected.len(), total);
    }
    for Rejected { key, reason, .. } in rejected.iter().filter(|_| group.is_first()) {
        tracing::warn!("{key}: left out: {reason}");
    }
    Ok(rejected)
}

/// A batch of a sweep, computed.
struct Part {
    items: Vec<Item>,
    rejected: Vec<Rejected>,
    tensors: Vec<Tensor>,
}

impl Part {
    /// The parts of all ranks, in the order of their batches.
    fn of_all_ranks(
        own: Result<Part, EvalError>,
        group: &ProcessGroup,
        device: Device,
    ) -> Result<Vec<Part>, EvalError> {
        if group.world() == 1 {
            return Ok(vec![own?]);
        }
        let (_, received) = group.agree_and_exchange(own, Part::write)?;
        Ok(received.iter().map(|bytes| Part::read(bytes, device)).collect())
    }

    /// A line of JSON, then the values of the tensors.
    fn write(&self) -> Vec<u8> {
        let sizes: Vec<Vec<i64>> = self.tensors.iter().map(Tensor::size).collect();
        let mut bytes =
            serde_json::to_vec(&(&self.items, &self.rejected, &sizes)).expect("plain data");
        bytes.push(b'\n');
        for tensor in &self.tensors {
            let values: Vec<f32> = to_vec(tensor);
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        bytes
    }

    /// Reads the part that a rank of this very program has written.
    fn read(bytes: &[u8], device: Device) -> Part {
        let sound = "written above, by this program";
        let end = bytes.iter().position(|&byte| byte == b'\n').expect(sound);
        type Head = (Vec<Item>, Vec<Rejected>, Vec<Vec<i64>>);
        let (items, rejected, sizes): Head = serde_json::from_slice(&bytes[..end]).expect(sound);
        let mut values =
            bytes[end + 1..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let tensors = sizes.iter().map(|size| {
            let values: Vec<f32> =
                values.by_ref().take(size.iter().product::<i64>() as usize).collect();
            Tensor::from_slice(&values).view(size.as_slice()).to_device(device)
        });
        Part { items, rejected, tensors: tensors.collect() }
    }
}

/// Unit image embeddings `[B,D]` of a batch of `pixels` u8 `[B,S,S,3]`.
///
/// # Errors
/// When one is not finite: it could neither be right nor wrong.
pub(crate) fn encode_images(
    model: &Clip,
    batch: &Batch,
    pixels: &Tensor,
    options: &EvalOptions,
) -> Result<Tensor, EvalError> {
    let embeddings = options.forward(model, || model.encode_image(&model.normalise(pixels)));
    finite(&embeddings, options, |row| batch.items[row].key.clone())?;
    Ok(unit(&embeddings))
}

/// Fails with the name of the first row of `x` `[B,...]` that holds NaN or infinity.
pub(crate) fn finite(
    x: &Tensor,
    options: &EvalOptions,
    name: impl Fn(usize) -> String,
) -> Result<(), EvalError> {
    let rows = x.isfinite().flatten(1, -1).all_dim(1, false);
    match to_vec::<bool>(&rows).iter().position(|&whole| !whole) {
        Some(row) => Err(EvalError::NonFinite { key: name(row), precision: options.precision }),
        None => Ok(()),
    }
}

/// Result of [`embed_images`] for a set: N images, P patches, E channels of the joint space, D of the net; f32, on the CPU.
#[derive(Debug)]
pub struct Embedded {
    /// Names of the images, in the order of the rows.
    pub names: Vec<String>,
    /// `[N,E]`, not normalised.
    pub embeddings: Tensor,
    /// Every token after norm and head, `[N,1+P,E]`, where asked for.
    pub tokens: Option<Tensor>,
    /// Every token of the asked layer, before the final norm, `[N,1+P,D]`.
    pub hidden: Option<Tensor>,
    /// Samples that could not be read.
    pub rejected: Vec<Rejected>,
}

/// Embeddings of every readable image of `source`, in its order; with `tokens`, those of every token; with `layer`, the
/// hidden states after so many blocks (0: what the first block gets).
///
/// # Errors
/// When none can be read, the net has no such layer, or an embedding is not finite.
pub fn embed_images(
    model: &Clip,
    source: &Arc<dyn Source>,
    options: &EvalOptions,
    tokens: bool,
    layer: Option<usize>,
) -> Result<Embedded, EvalError> {
    let layers: Vec<usize> = layer.into_iter().collect();
    let mut names = vec![];
    let [mut embeddings, mut all, mut hidden] = [(); 3].map(|()| Rows::of(source.len()));
    let compute = |batch: &Batch, pixels: &Tensor| {
        let images = model.normalise(pixels);
        let mut found = vec![];
        if tokens || layer.is_some() {
            let features = options.compute(model, || model.visual.features(&images, &layers))?;
            found.push(features.embedding);
            found.extend(tokens.then_some(features.projected));
            found.extend(features.hidden);
        } else {
            found.push(options.forward(model, || model.encode_image(&images)));
        }
        for x in &found {
            finite(x, options, |row| batch.items[row].key.clone())?;
        }
        Ok(found)
    };
    let rejected = sweep(model, source, options, LabelKind::None, compute, |items, found| {
        let wanted =
            [Some(&mut embeddings), tokens.then_some(&mut all), layer.map(|_| &mut hidden)];
        wanted.into_iter().flatten().zip(found).for_each(|(rows, x)| rows.push(x));
        names.extend(items.iter().map(|item| name_of(source.as_ref(), item)));
        Ok(())
    })?;
    let Some(embeddings) = embeddings.finish() else {
        let want = "can be read";
        return Err(EvalError::Empty { set: "embed".into(), len: source.len(), want });
    };
    Ok(Embedded { names, embeddings, tokens: all.finish(), hidden: hidden.finish(), rejected })
}

/// The name of an image of `source`: its file, or its key.
pub(crate) fn name_of(source: &dyn Source, item: &Item) -> String {
    source.name(item.index).unwrap_or_else(|| item.key.clone())
}

/// Results of a sweep in one tensor, f32 on the CPU, made at its full size: no second copy joins them.
struct Rows {
    most: i64,
    filled: i64,
    all: Option<Tensor>,
}

impl Rows {
    fn of(most: usize) -> Rows {
        Rows { most: most as i64, filled: 0, all: None }
    }

    /// Adds `x` [n, ...].
    fn push(&mut self, x: &Tensor) {
        let mut size = x.size();
        let n = std::mem::replace(&mut size[0], self.most);
        let all = self.all.get_or_insert_with(|| Tensor::empty(size, (Kind::Float, Device::Cpu)));
        all.narrow(0, self.filled, n).copy_(x);
        self.filled += n;
    }

    /// [N, ...] of what was added; `None` where nothing was.
    fn finish(self) -> Option<Tensor> {
        Some(self.all?.narrow(0, 0, self.filled))
    }
}

/// Unit text embeddings `[N,D]` of `texts`, on `model`'s device.
///
/// # Errors
/// As [`embed_texts`].
pub fn encode_texts<S: AsRef<str>>(
    model: &Clip,
    texts: &[S],
    options: &EvalOptions,
) -> Result<Tensor, EvalError> {
    Ok(unit(&embed_texts(model, texts, options)?))
}

/// Text embeddings `[N,D]` of `texts`, not normalised, on `model`'s device.
///
/// Equal texts are encoded once, so that their rows are equal; batches hold texts of similar length, as the tower may cut
/// the padding after the longest.
///
/// # Errors
/// When the model has no text tower, its vocabulary is not CLIP's, or an embedding is not finite.
pub fn embed_texts<S: AsRef<str>>(
    model: &Clip,
    texts: &[S],
    options: &EvalOptions,
) -> Result<Tensor, EvalError> {
    let config = model.config.text.as_ref().ok_or(EvalError::NoTextTower)?;
    let (context, device) = (config.context_length as usize, model.store.device());
    let tokenizer = Tokenizer::new(config.vocab_size as usize, context)?;

    let mut seen = HashMap::new();
    let mut unique: Vec<&str> = Vec::new();
    let rows: Vec<i64> = texts
        .iter()
        .map(|text| {
            *seen.entry(text.as_ref()).or_insert_with(|| {
                unique.push(text.as_ref());
                unique.len() as i64 - 1
            })
        })
        .collect();

    let tokens: Vec<Vec<i64>> = match options.whole_texts {
        true => unique.iter().map(|text| tokenizer.encode_whole(text)).collect::<Result<_, _>>()?,
        false => unique.iter().map(|text| tokenizer.encode(text)).collect(),
    };
    let by_length = ByLength::new(&tokens, options.batch);
    let (mut parts, mut done) = (Vec::new(), 0);
    options.report("texts", 0, unique.len());
    for (members, batch) in &by_length.parts {
        let encode = || model.encode_text(batch).expect("a model with a text config has the tower");
        let embeddings = options.forward(model, encode);
        finite(&embeddings, options, |row| format!("\"{}\"", unique[members[row]]))?;
        parts.push(embeddings);
        done += members.len();
        options.report("texts", done, unique.len());
    }
    if parts.is_empty() {
        return Ok(Tensor::zeros([0, model.config.embed_dim], (Kind::Float, device)));
    }
    let index: Vec<i64> = rows.iter().map(|&row| by_length.place[row as usize]).collect();
    Ok(Tensor::cat(&parts, 0).index_select(0, &Tensor::from_slice(&index).to_device(device)))
}
