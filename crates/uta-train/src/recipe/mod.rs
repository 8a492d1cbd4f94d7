//! One TOML file a run: what to train, on what, how. Read strictly, with every default written out again into the run
//! directory, so that a run can be repeated from its own folder.
//!
//! `extends = "other.toml"` (relative to the file) lays this file over another one; `--set key.path=value` lays single
//! values over both. Other paths are relative to the directory where a command is started, and absolute once it is read.

mod paths;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use torch_ext::Precision;
use uta_data::mask::MaskKind;
use uta_data::{
    Captions, DataError, DecodeOptions, MAX_PIXELS, OrderKind, PairOptions, Set, Source,
    TrainTransform,
};
use uta_eval::EvalSet;
use uta_model::{ClipConfig, TextConfig, VitConfig};

use self::paths::is_relative;

/// A recipe that can't be run: where, which key, and what is allowed.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: {message}")]
pub struct RecipeError {
    /// The file, or what was being read.
    pub origin: String,
    /// Key, value, and what is allowed.
    pub message: String,
}

/// Images in a step, at most: thirty times what the largest runs take.
pub const MOST_IMAGES: usize = 1 << 20;
/// Threads of a kind, at most.
pub const MOST_THREADS: usize = 1024;
/// Batches decoded ahead, at most.
const MOST_AHEAD: usize = 1024;
/// Steps, or samples, of a run, at most: their products with a batch are counted too.
const MOST_STEPS: u64 = 1 << 40;

/// What a run trains; each is a [`crate::Task`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// Unmasked Token Alignment to a frozen CLIP.
    Align,
    /// Image-text contrastive learning.
    Contrastive,
}

impl std::fmt::Display for TaskKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TaskKind::Align => "align",
            TaskKind::Contrastive => "contrastive",
        })
    }
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What is trained.
    pub task: TaskKind,
    /// The network that is trained.
    pub model: Model,
    /// The frozen CLIP (align).
    pub teacher: Option<Teacher>,
    /// Pictures.
    pub data: Data,
    /// Which patches the student sees (align).
    #[serde(default)]
    pub mask: Mask,
    /// The contrastive loss (contrastive).
    #[serde(default)]
    pub contrastive: Contrastive,
    /// The optimiser.
    #[serde(default)]
    pub optim: Optim,
    /// The learning rate over time.
    #[serde(default)]
    pub schedule: Schedule,
    /// Length, batch, precision, seed.
    pub train: Train,
    /// How often the run is saved.
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// Evaluations from inside the run.
    #[serde(default)]
    pub eval: Eval,
    /// Results to expect, with their source; for people.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub expected: Table,
}

/// `[model]`: a preset, or every size, or a preset with some sizes changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Table", into = "Table")]
pub struct Model {
    /// `"random"`, or a checkpoint (anything that `--model` takes) to start from.
    pub init: String,
    /// The vision transformer.
    pub vision: VitConfig,
    /// The text tower (contrastive).
    pub text: Option<TextConfig>,
    /// Whether `vision.out` isn't written, so that it is the width of what the model is trained to agree with.
    out_follows: bool,
}

impl Model {
    /// Takes `out`, the width of a teacher or a text tower, unless another was written.
    pub fn follow(&mut self, out: i64) {
        if self.out_follows {
            (self.vision.out, self.out_follows) = (out, false);
        }
    }
}

impl TryFrom<Table> for Model {
    type Error = String;

    fn try_from(mut table: Table) -> Result<Model, String> {
        let init = match table.remove("init") {
            None => "random".to_owned(),
            Some(Value::String(init)) => init,
            Some(other) => return Err(format!("model.init: {other} is no text")),
        };
        let out_follows = !table.contains_key("out");
        let text: Option<TextConfig> = table
            .remove("text")
            .map(|text| text.try_into().map_err(|e| format!("model.text: {}", brief(&e))))
            .transpose()?;
        if let Some(text) = &text {
            text.check().map_err(|e| format!("model.text: {e}"))?;
        }
        let mut sizes = match table.remove("preset") {
            None => Table::new(),
            Some(Value::String(name)) => {
                let preset = VitConfig::preset(&name).map_err(|e| format!("model.preset: {e}"))?;
                Table::try_from(preset).map_err(|e| e.to_string())?
            }
            Some(other) => return Err(format!("model.preset: {other} is no text")),
        };
        sizes.extend(table);
        if let (false, Some(width)) = (sizes.contains_key("out"), sizes.get("width")) {
            sizes.insert("out".into(), width.clone());
        }
        let vision: VitConfig = sizes.try_into().map_err(|e| brief(&e))?;
        vision.check().map_err(|e| e.to_string())?;
        Ok(Model { init, vision, text, out_follows })
    }
}

impl From<Model> for Table {
    fn from(model: Model) -> Table {
        let plain = "sizes are plain numbers and words";
        let mut table = Table::try_from(model.vision).expect(plain);
        if model.out_follows {
            table.remove("out");
        }
        table.insert("init".into(), model.init.into());
        if let Some(text) = model.text {
            table.insert("text".into(), Value::try_from(text).expect(plain));
        }
        table
    }
}

/// `[teacher]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Teacher {
    /// Anything that `--model` takes.
    pub path: Option<PathBuf>,
    /// What the net is, where the file alone can't tell: a preset or a configuration file. Without a path it gets random
    /// weights, to measure speed.
    pub arch: Option<String>,
    /// A folder of `uta cache`: targets that were computed once, so that no teacher is needed. Where `path` names one that is
    /// there all the same, the targets must be its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
}

/// `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Shards (globs and brace lists too), folders or tables of pairs to train on; with a weight as
    /// `{ data = "a.tar", weight = 2.0 }`.
    pub train: Vec<Set>,
    /// The same, for the validation loss.
    #[serde(default)]
    pub val: Vec<String>,
    /// Side of the images, in pixels; the model's own when left out.
    #[serde(default)]
    pub image_size: u32,
    /// Threads that decode and augment; 0 means one a core.
    #[serde(default)]
    pub workers: usize,
    /// Batches decoded ahead.
    #[serde(default = "two")]
    pub prefetch: usize,
    /// Whether a sample may lie anywhere (`indexed`), or shards are read one after the other (`streaming`).
    #[serde(default)]
    pub order: OrderKind,
    /// Samples of a process that the streaming order shuffles among each other.
    #[serde(default = "buffer")]
    pub shuffle_buffer: usize,
    /// Views of each sample in a batch: it is read and decoded once for all of them. An epoch then has as many times more
    /// images.
    #[serde(default = "one")]
    pub repeats: usize,
    /// Images of more pixels are refused by their header.
    #[serde(default = "max_pixels")]
    pub max_pixels: u64,
    /// Whether images are turned as their EXIF orientation says; CLIP's pipelines leave them as they are.
    #[serde(default)]
    pub orient: bool,
    /// The run stops when more than this share of recent samples can't be read.
    #[serde(default = "tenth")]
    pub max_rejected: f64,
    /// Crops, flips, colours.
    #[serde(default)]
    pub transforms: TrainTransform,
    /// How tables of pairs in `train` are read, and the `.txt` beside its images: each one caption if nothing is said.
    #[serde(default, skip_serializing_if = "PairOptions::is_plain")]
    pub pairs: PairOptions,
    /// How those in `val` are; as in `train` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_pairs: Option<PairOptions>,
}

/// What a run trains on, and what it validates on.
type Sources = (Arc<dyn Source>, Option<Arc<dyn Source>>);

impl Data {
    /// How images are decoded.
    pub fn decode(&self) -> DecodeOptions {
        DecodeOptions { max_pixels: self.max_pixels, orient: self.orient }
    }

    /// The sets to train on and those to validate on, where there are any. What is wrong with them is said in the log where
    /// `tell` says so.
    ///
    /// # Errors
    /// When one can't be opened.
    pub(crate) fn open(&self, tell: bool) -> Result<Sources, DataError> {
        let told = |source: Arc<dyn Source>| {
            source
                .problems()
                .iter()
                .filter(|_| tell)
                .for_each(|problem| tracing::warn!("{problem}"));
            source
        };
        // As open_clip trains, unless the recipe says otherwise.
        let whole = |pairs: &PairOptions| pairs.or_captions(Captions::File);
        let set = |set: &Set| Set { pairs: set.pairs.as_ref().map(whole), ..set.clone() };
        let sets: Vec<Set> = self.train.iter().map(set).collect();
        let train = told(uta_data::open_sets(&sets, &whole(&self.pairs))?);
        let val = match self.val.as_slice() {
            [] => None,
            val => {
                let pairs = self.val_pairs.as_ref().unwrap_or(&self.pairs);
                Some(told(uta_data::open_with(val, &whole(pairs))?))
            }
        };
        Ok((train, val))
    }
}

/// `[mask]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mask {
    /// The shape of the hidden part.
    pub kind: MaskKind,
    /// The share of patches hidden from the student.
    pub ratio: f64,
}

impl Default for Mask {
    /// The paper's choice for ViT-L (section 3).
    fn default() -> Mask {
        Mask { kind: MaskKind::BlockReversed, ratio: 0.5 }
    }
}

/// `[contrastive]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Contrastive {
    /// The softmax temperature at the start.
    pub temperature: f64,
    /// Whether the temperature is learned (never below 0.01) or stays.
    pub learn_temperature: bool,
    /// Share of the target spread over all pairs of the batch.
    pub label_smoothing: f64,
}

impl Default for Contrastive {
    /// CLIP's: 0.07, learned.
    fn default() -> Contrastive {
        Contrastive { temperature: 0.07, learn_temperature: true, label_smoothing: 0.0 }
    }
}

/// `[optim]`: AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Optim {
    /// Only `adamw`.
    pub name: OptimName,
    /// Peak learning rate, as it is: not scaled by the batch.
    pub lr: f64,
    /// Decay rates of the two moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices; vectors, biases, position embedding and `[CLS]` have none.
    pub weight_decay: f64,
    /// Each block's rate is this share of the next one's; 1 gives all the same.
    pub layer_decay: f64,
    /// Largest global norm of the gradient; 0 doesn't clip.
    pub clip: f64,
}

/// The optimisers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimName {
    /// Adam with decoupled weight decay.
    AdamW,
}

impl Default for Optim {
    /// EVA-02's pre-training (baaivision/EVA, `EVA-02/asuka`), which the paper builds on.
    fn default() -> Optim {
        Optim {
            name: OptimName::AdamW,
            lr: 1.5e-3,
            betas: (0.9, 0.98),
            eps: 1e-6,
            weight_decay: 0.05,
            layer_decay: 1.0,
            clip: 3.0,
        }
    }
}

/// `[schedule]`: linear from 0 to the peak, then half a cosine down to the minimum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// Warm-up, in steps.
    pub warmup: u64,
    /// Warm-up in epochs instead; `warmup` is worked out from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_epochs: Option<f64>,
    /// Where the cosine ends.
    pub min_lr: f64,
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule { warmup: 0, warmup_epochs: None, min_lr: 1e-5 }
    }
}

/// `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Optimiser steps; or `epochs`, or `samples`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Passes over the training data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Training images seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<u64>,
    /// Images in one optimiser step, over all ranks and micro-batches.
    pub batch: usize,
    /// Micro-batches in a step; the gradient is the whole batch's.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// Whether each block of the vision transformer keeps its input alone for the backward pass, and runs again there: a
    /// third more work for less memory.
    #[serde(default)]
    pub checkpoint_blocks: bool,
    /// Type of matrix products.
    #[serde(default)]
    pub precision: PrecisionName,
    /// `auto` (CUDA when there is one), `cpu`, `cuda` (with several ranks, each its own) or `cuda:N`.
    #[serde(default = "auto")]
    pub device: String,
    /// Threads that a CPU computes with. 0 has a run try, before its first step, how many are fastest, unless
    /// `OMP_NUM_THREADS` or a launcher of several processes says; the resolved recipe has their number.
    #[serde(default)]
    pub threads: usize,
    /// Of everything random in the run.
    #[serde(default)]
    pub seed: u64,
    /// Steps between lines of metrics.jsonl.
    #[serde(default = "ten")]
    pub log_every: u64,
    /// Decay of a moving average of the weights, which is then evaluated and exported; 0 keeps none.
    #[serde(default)]
    pub ema: f64,
    /// Steps in a row with a non-finite loss or gradient (each is skipped) after which the run stops.
    #[serde(default = "ten")]
    pub max_skipped: u64,
}

/// Precision as recipes spell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionName {
    /// bfloat16 products under autocast; weights, norms and losses in f32.
    Bf16,
    /// Everything in f32.
    #[default]
    F32,
}

impl From<PrecisionName> for Precision {
    fn from(name: PrecisionName) -> Precision {
        match name {
            PrecisionName::Bf16 => Precision::Bf16,
            PrecisionName::F32 => Precision::F32,
        }
    }
}

/// `[checkpoint]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Steps between checkpoints.
    pub every: u64,
    /// How many are kept, the newest.
    pub keep: usize,
    /// Type of the weights in the final RUN/model.safetensors.
    pub export: ExportKind,
}

/// How final weights are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportKind {
    /// As they were trained.
    #[default]
    F32,
    /// Half the size; products in bf16 or f32 notice little of it.
    F16,
}

impl From<ExportKind> for tch::Kind {
    fn from(kind: ExportKind) -> tch::Kind {
        match kind {
            ExportKind::F32 => tch::Kind::Float,
            ExportKind::F16 => tch::Kind::Half,
        }
    }
}

impl Default for Checkpoint {
    fn default() -> Checkpoint {
        Checkpoint { every: 1000, keep: 2, export: ExportKind::F32 }
    }
}

/// `[eval]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Eval {
    /// Steps between evaluations; 0 evaluates before the first step and after the last only.
    pub every: u64,
    /// What is evaluated.
    pub sets: Vec<EvalSet>,
}

fn one() -> usize {
    1
}
fn two() -> usize {
    2
}
fn buffer() -> usize {
    50_000
}
fn ten() -> u64 {
    10
}
fn max_pixels() -> u64 {
    MAX_PIXELS
}
fn tenth() -> f64 {
    0.1
}
fn auto() -> String {
    "auto".into()
}

impl Recipe {
    /// Reads a recipe and what it extends, lays `sets` (`key.path=value`) over it, and checks every value. Paths in it become
    /// absolute.
    ///
    /// # Errors
    /// Names the file or the `--set`, the key, the value and what is allowed.
    pub fn load(path: &Path, sets: &[String]) -> Result<Recipe, RecipeError> {
        Recipe::from_table(table(path, sets)?).map_err(|message| blamed(path, sets, message))
    }

    /// As [`load`](Recipe::load) for the recipe of a run that has begun, in `path`. Those of former versions have relative
    /// paths, which must mean something where the run goes on.
    ///
    /// # Errors
    /// As [`load`](Recipe::load); when such a path means nothing here.
    pub(crate) fn load_begun(path: &Path, sets: &[String]) -> Result<Recipe, RecipeError> {
        let table = table(path, sets)?;
        let fail = |message| blamed(path, sets, message);
        let mut written = Recipe::parse(table.clone()).map_err(fail)?;
        let recipe = Recipe::from_table(table).map_err(fail)?;
        let cached = recipe.teacher.as_ref().is_some_and(|teacher| teacher.cache.is_some());
        let relative = written.paths().into_iter().filter(|(_, place)| is_relative(place.get()));
        // Neither of these is needed any more.
        let mut needed = relative.filter(|(key, _)| {
            !(*key == "model.init" || (cached && matches!(*key, "teacher.path" | "teacher.arch")))
        });
        match needed.find(|(_, place)| uta_data::expand(place.get()).is_err()) {
            None => Ok(recipe),
            Some((key, place)) => Err(fail(format!(
                "{key} = {}: isn't in {}, and the run has paths relative to the directory where it was started: resume it \
                 there, or give the path with --set",
                place.get(),
                std::env::current_dir().unwrap_or_default().display()
            ))),
        }
    }

    /// A recipe from its table, in which paths become absolute.
    ///
    /// # Errors
    /// Names the key, the value and what is allowed.
    pub fn from_table(table: Table) -> Result<Recipe, String> {
        let mut recipe = Recipe::parse(table)?;
        recipe.make_paths_absolute();
        recipe.resolve()?;
        Ok(recipe)
    }

    /// As it is written.
    fn parse(table: Table) -> Result<Recipe, String> {
        serde_path_to_error::deserialize(Value::Table(table)).map_err(|e| {
            let path = e.path().to_string();
            let message = brief(e.inner());
            // A table's own message may name the key within it.
            let named = message.strip_prefix(&path).is_some_and(|rest| rest.starts_with('.'));
            match path == "." || named {
                true => message,
                false => format!("{path}: {message}"),
            }
        })
    }

    /// Works out what follows from other keys, and checks what types can't.
    fn resolve(&mut self) -> Result<(), String> {
        let size = self.model.vision.image_size as u32;
        if self.data.image_size == 0 {
            self.data.image_size = size;
        }
        require(
            "data.image_size",
            self.data.image_size,
            self.data.image_size == size,
            &format!("the model's image_size, {size} (change model.image_size too)"),
        )?;
        let config = ClipConfig::new(self.model.vision.clone(), None);
        let transforms = &mut self.data.transforms;
        (transforms.size, transforms.mean, transforms.std) = (size, config.mean, config.std);
        self.data.transforms.validate().map_err(|e| format!("data.transforms: {e}"))?;
        require("data.train", "[]", !self.data.train.is_empty(), "at least one path")?;
        for (key, place) in self.paths() {
            require(key, "\"\"", !place.get().is_empty(), "a path")?;
        }
        in_range("data.max_rejected", self.data.max_rejected, 0.0, 1.0)?;
        let pixels = self.data.max_pixels;
        require("data.max_pixels", pixels, (1..=1 << 32).contains(&pixels), "from 1 to 2^32")?;
        let t = &self.train;
        within("train.batch", t.batch, 1, MOST_IMAGES)?;
        require("train.accumulate", t.accumulate, t.accumulate > 0, "1 or more")?;
        let (repeats, part) = (self.data.repeats, self.train.batch / self.train.accumulate.max(1));
        let allowed = format!("1, or another divisor of the {part} images of a micro-batch");
        let divides = repeats > 0 && part.is_multiple_of(repeats);
        require("data.repeats", repeats, divides, &allowed)?;
        within("data.prefetch", self.data.prefetch, 1, MOST_AHEAD)?;
        within("data.shuffle_buffer", self.data.shuffle_buffer, 1, 1 << 40)?;
        within("data.workers", self.data.workers, 0, MOST_THREADS)?;
        within("train.threads", self.train.threads, 0, MOST_THREADS)?;
        if self.data.workers == 0 {
            self.data.workers = std::thread::available_parallelism().map_or(1, usize::from);
        }

        // Neither task reads classes.
        if self.data.transforms.mixes() {
            let task = self.task;
            return Err(format!(
                "data.transforms: task \"{task}\" has no classes to mix: leave mixup and cutmix out"
            ));
        }

        in_range("mask.ratio", self.mask.ratio, 0.0, 0.95)?;
        in_range("contrastive.temperature", self.contrastive.temperature, 0.01, 10.0)?;
        in_range("contrastive.label_smoothing", self.contrastive.label_smoothing, 0.0, 0.9)?;

        let o = &self.optim;
        require("optim.lr", o.lr, o.lr > 0.0 && o.lr.is_finite(), "a number above 0")?;
        in_range("optim.betas", o.betas.0, 0.0, 0.999_999)?;
        in_range("optim.betas", o.betas.1, 0.0, 0.999_999)?;
        require("optim.eps", o.eps, o.eps > 0.0, "a number above 0")?;
        in_range("optim.weight_decay", o.weight_decay, 0.0, 10.0)?;
        in_range("optim.layer_decay", o.layer_decay, 0.01, 1.0)?;
        in_range("optim.clip", o.clip, 0.0, f64::MAX)?;
        in_range("schedule.min_lr", self.schedule.min_lr, 0.0, o.lr)?;
        if let Some(epochs) = self.schedule.warmup_epochs {
            in_range("schedule.warmup_epochs", epochs, 0.0, 1e6)?;
            let alone = self.schedule.warmup == 0;
            require("schedule.warmup_epochs", epochs, alone, "left out beside schedule.warmup")?;
        }
        if self.model.vision.mask_token {
            let message = "no task fills masked places: use the preset without -mim, which model.init of such a net fits";
            return Err(format!("model.mask_token: {message}"));
        }

        let t = &self.train;
        require(
            "train.accumulate",
            t.accumulate,
            t.batch.is_multiple_of(t.accumulate),
            &format!("a divisor of train.batch, {}", t.batch),
        )?;
        require("train.log_every", t.log_every, t.log_every > 0, "1 or more")?;
        require("train.max_skipped", t.max_skipped, t.max_skipped > 0, "1 or more")?;
        in_range("train.ema", t.ema, 0.0, 0.999_999_9)?;
        let lengths = [t.steps.is_some(), t.epochs.is_some(), t.samples.is_some()];
        if lengths.iter().filter(|&&given| given).count() != 1 {
            return Err("train: give one of steps, epochs and samples".into());
        }
        let epochs = t.epochs.unwrap_or(1.0);
        let allowed = "a number above 0, and at most a million";
        require("train.epochs", epochs, epochs > 0.0 && epochs <= 1e6, allowed)?;
        within("train.steps", t.steps.unwrap_or(0), 0, MOST_STEPS)?;
        within("train.samples", t.samples.unwrap_or(0), 0, MOST_STEPS)?;
        // Whether the machine has it is asked when it computes: a recipe is planned and read on others too.
        gpu_named(&t.device, 0).map_err(|e| format!("train.device: {e}"))?;

        require("checkpoint.every", 0, self.checkpoint.every > 0, "1 or more")?;
        require("checkpoint.keep", 0, self.checkpoint.keep > 0, "1 or more")?;

        match self.task {
            TaskKind::Align => match &self.teacher {
                None | Some(Teacher { path: None, arch: None, cache: None }) => {
                    return Err(
                        "teacher: task \"align\" needs teacher.path or teacher.cache".into()
                    );
                }
                Some(_) => {}
            },
            TaskKind::Contrastive => {
                let none = "model.text: task \"contrastive\" needs a text tower";
                let out = self.model.text.as_ref().ok_or(none)?.out;
                self.model.follow(out);
                require(
                    "train.accumulate",
                    t.accumulate,
                    t.accumulate == 1,
                    "1 for task \"contrastive\": each pair is compared with the whole batch",
                )?;
            }
        }
        Ok(())
    }

    /// Turns epochs and samples into steps, once the size of the training data is known. An epoch is each sample once, in
    /// all its views.
    pub fn settle(&mut self, samples: usize) {
        let batch = self.train.batch as f64;
        let per_epoch = (samples * self.data.repeats) as f64 / batch;
        let steps = match (self.train.steps, self.train.epochs, self.train.samples) {
            (Some(steps), ..) => steps,
            (_, Some(epochs), _) => (epochs * per_epoch).ceil() as u64,
            (.., Some(samples)) => (samples as f64 / batch).ceil() as u64,
            _ => 0,
        };
        (self.train.epochs, self.train.samples) = (None, None);
        self.train.steps = Some(steps);
        if let Some(epochs) = self.schedule.warmup_epochs.take() {
            self.schedule.warmup = (epochs * per_epoch).round() as u64;
        }
    }

    /// Images of a micro-batch on each of `world` processes.
    ///
    /// # Errors
    /// When the batch can't be shared evenly.
    pub fn micro_batch(&self, world: usize) -> Result<usize, RecipeError> {
        let (batch, accumulate, repeats) =
            (self.train.batch, self.train.accumulate, self.data.repeats);
        let unit = accumulate * repeats * world;
        if !batch.is_multiple_of(unit) {
            let message = format!(
                "train.batch = {batch}: must be a multiple of {unit}, train.accumulate ({accumulate}) x data.repeats \
                 ({repeats}) x processes ({world})"
            );
            return Err(RecipeError { origin: "recipe".into(), message });
        }
        Ok(batch / accumulate / world)
    }

    /// Optimiser steps of the whole run; 0 before [`Recipe::settle`] where the recipe counts otherwise.
    pub fn steps(&self) -> u64 {
        self.train.steps.unwrap_or(0)
    }

    /// The resolved recipe as TOML, every default written out.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a recipe is plain data")
    }
}

/// A device by the name that recipes have for it.
pub fn device_name(device: tch::Device) -> String {
    match device {
        tch::Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// The device a name stands for; `cuda` alone is the GPU of this process's number on its machine, or the only one it sees.
///
/// # Errors
/// When the name is none, or there is no such device.
pub fn device(name: &str, local_rank: usize) -> Result<tch::Device, String> {
    let count = tch::Cuda::device_count();
    let own = if count == 1 { 0 } else { local_rank };
    match gpu_named(name, own)? {
        None => Ok(tch::Device::Cpu),
        Some(_) if name == "auto" && !tch::Cuda::is_available() => Ok(tch::Device::Cpu),
        Some(n) if (n as i64) < count => Ok(tch::Device::Cuda(n)),
        Some(n) => Err(format!("{name:?} stands for GPU {n} here, but {count} GPUs were found")),
    }
}

/// The number of the GPU that a device's name asks for, `own` where it has none; `None` for the CPU.
fn gpu_named(name: &str, own: usize) -> Result<Option<usize>, String> {
    let number = match name {
        "cpu" => return Ok(None),
        "auto" | "cuda" => Some(own),
        _ => name.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
    };
    number.map(Some).ok_or_else(|| format!("{name:?} is none of auto, cpu, cuda, cuda:N"))
}

fn require(
    key: &str,
    value: impl std::fmt::Display,
    ok: bool,
    allowed: &str,
) -> Result<(), String> {
    if ok { Ok(()) } else { Err(format!("{key} = {value}: must be {allowed}")) }
}

fn within<T: std::fmt::Display + PartialOrd>(
    key: &str,
    value: T,
    least: T,
    most: T,
) -> Result<(), String> {
    let allowed = format!("from {least} to {most}");
    require(key, &value, (&least..=&most).contains(&&value), &allowed)
}

fn in_range(key: &str, value: f64, lo: f64, hi: f64) -> Result<(), String> {
    let allowed = match hi {
        f64::MAX => format!("{lo} or more"),
        _ => format!("from {lo} to {hi}"),
    };
    require(key, value, (lo..=hi).contains(&value), &allowed)
}

/// What serde calls types, and what people do.
const TYPES: [(&str, &[&str]); 6] = [
    ("a whole number, 0 or more", &["u8", "u16", "u32", "u64", "usize"]),
    ("a whole number", &["i8", "i16", "i32", "i64", "isize"]),
    ("a number", &["f32", "f64"]),
    ("true or false", &["a boolean"]),
    ("a list", &["a sequence"]),
    ("two numbers, [a, b]", &["a tuple of size 2"]),
];

/// serde's words on one line, with the nearest known key where an unknown one was given.
fn brief(error: &toml::de::Error) -> String {
    let mut message = error.message().trim().replace('\n', " ");
    if let Some((before, expected)) = message.split_once(", expected ") {
        let known = TYPES.iter().find(|(_, types)| types.contains(&expected));
        let section = expected.starts_with("struct ").then_some("a table of keys");
        if let Some(words) = known.map(|(words, _)| *words).or(section) {
            message = format!("{before}, expected {words}");
        }
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    if let (true, Some(unknown)) = (message.starts_with("unknown "), quoted.next()) {
        let nearest = quoted
            .map(|known| (strsim::jaro_winkler(unknown, known), known))
            .filter(|&(likeness, _)| likeness > 0.7)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((_, known)) = nearest {
            return format!("{message}; did you mean `{known}`?");
        }
    }
    message
}

/// A recipe with what it extends, and `sets` laid over both.
fn table(path: &Path, sets: &[String]) -> Result<Table, RecipeError> {
    let mut table = read_extended(path, 0)?;
    // First what takes others back: those that are set beside it count, in whatever order they were given.
    let first = |set: &&String| TAKING.iter().any(|(key, _)| key_of(set) == Some(key));
    let (taking, others): (Vec<&String>, Vec<&String>) = sets.iter().partition(first);
    for set in taking.into_iter().chain(others) {
        let fail = |message| RecipeError { origin: format!("--set {set}"), message };
        apply_set(&mut table, set).map_err(fail)?;
    }
    Ok(table)
}

/// The key of a `--set`.
fn key_of(set: &str) -> Option<&str> {
    set.split_once('=').map(|(key, _)| key)
}

/// What is wrong, `message`, with the `--set` that brought it about, where one did, or else with the file.
fn blamed(path: &Path, sets: &[String], message: String) -> RecipeError {
    let starts =
        |key: &str| message.strip_prefix(key).is_some_and(|rest| rest.starts_with([':', '.', ' ']));
    let named = |set: &&String| key_of(set).is_some_and(starts);
    // What a section says of one of its keys.
    let within = |set: &&String| {
        let (section, key) = key_of(set)?.rsplit_once('.')?;
        let unknown = message.contains(&format!("`{section}`"));
        Some(starts(section) && (unknown || message.contains(key)))
    };
    let mentioned = |set: &&String| key_of(set).is_some_and(|key| message.contains(key));
    let set = sets.iter().rev().find(named);
    if let (Some(_), Some((what, why))) = (set, message.split_once(": ")) {
        return RecipeError { origin: format!("--set {what}"), message: why.to_owned() };
    }
    let set = sets.iter().rev().find(|set| within(set) == Some(true));
    let set = set.or_else(|| sets.iter().rev().find(mentioned));
    let origin = match set {
        Some(set) => format!("--set {set}"),
        None => path.display().to_string(),
    };
    RecipeError { origin, message }
}

/// Reads a file and lays it over the one that it extends.
fn read_extended(path: &Path, depth: usize) -> Result<Table, RecipeError> {
    let fail = |message: String| RecipeError { origin: path.display().to_string(), message };
    if depth > 8 {
        return Err(fail("extends more than eight files; is there a circle?".into()));
    }
    let text = std::fs::read_to_string(path).map_err(|e| fail(format!("can't be read: {e}")))?;
    let mut table: Table = text.parse().map_err(|e: toml::de::Error| {
        let line =
            e.span().map_or(0, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        fail(format!("line {line}: {}", e.message().trim().replace('\n', " ")))
    })?;
    match table.remove("extends") {
        None => Ok(table),
        Some(Value::String(base)) => {
            let base = path.parent().unwrap_or(Path::new("")).join(base);
            let mut under = read_extended(&base, depth + 1)?;
            lay_over(&mut under, table);
            Ok(under)
        }
        Some(other) => Err(fail(format!("extends = {other}: must be the path of a recipe"))),
    }
}

/// Keys of a section that say one thing in several ways: who says it in one way takes back what was said below in another.
const ALTERNATIVES: [(&str, &[&str]); 2] =
    [("train", &["steps", "epochs", "samples"]), ("schedule", &["warmup", "warmup_epochs"])];

/// Keys that describe anew what others of their section described: what of it then stays. Of `[model]`, what is no size of the
/// vision transformer, and `out`, which is the teacher's; of `[teacher]` nothing.
const TAKING: [(&str, &[&str]); 2] =
    [("model.preset", &["init", "text", "out", "drop_path", "patch_grad"]), ("teacher.path", &[])];

/// Drops from `section` of `recipe` what setting `key` there takes back: its alternatives, and what described another preset
/// or teacher.
fn take_back(recipe: &mut Table, section: &str, key: &str) {
    let Some(Value::Table(table)) = recipe.get_mut(section) else { return };
    for (_, keys) in ALTERNATIVES.iter().filter(|(s, keys)| *s == section && keys.contains(&key)) {
        table.retain(|key, _| !keys.contains(&key));
    }
    let taking = TAKING.iter().find(|(path, _)| path.split_once('.') == Some((section, key)));
    if let Some((_, kept)) = taking {
        table.retain(|key, _| kept.contains(&key));
    }
}

/// `over` on `under`: tables merge key by key, and anything else replaces, as do keys that take others back.
fn lay_over(under: &mut Table, over: Table) {
    for (section, table) in &over {
        let keys = table.as_table().into_iter().flat_map(Table::keys);
        keys.for_each(|key| take_back(under, section, key));
    }
    merge(under, over);
}

fn merge(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => merge(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

/// Sets one value: `train.steps=60`, `data.train=a,b` is one string, `data.train=["a","b"]` a list, text needs no quotes.
fn apply_set(table: &mut Table, set: &str) -> Result<(), String> {
    let (path, text) = set.split_once('=').ok_or("must look like key.path=value")?;
    let value = match format!("v = {text}").parse::<Table>() {
        Ok(mut parsed) => parsed.remove("v").ok_or("has no value")?,
        Err(_) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            return Err("is too large a number".into());
        }
        Err(_) => Value::String(text.to_owned()),
    };
    let (parents, last) = path.rsplit_once('.').map_or((None, path), |(p, l)| (Some(p), l));
    if let Some(section) = parents {
        take_back(table, section, last);
    }
    let mut at = table;
    for part in parents.into_iter().flat_map(|p| p.split('.')) {
        at = at
            .entry(part)
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .ok_or_else(|| format!("{part} is a value, not a table"))?;
    }
    // A single path given for a list of paths means a list of one.
    let list = matches!(path, "data.train" | "data.val") && value.is_str();
    at.insert(last.to_owned(), if list { Value::Array(vec![value]) } else { value });
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SMALL: &str = r#"
        task = "align"
        [model]
        image_size = 48
        patch_size = 12
        width = 64
        depth = 2
        heads = 1
        hidden = 128
        out = 32
        ffn = "swiglu"
        rope = true
        [teacher]
        path = "teacher"
        [data]
        train = ["shards"]
        [train]
        steps = 10
        batch = 8
    "#;

    fn load(text: &str, sets: &[&str]) -> Result<Recipe, RecipeError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.toml");
        std::fs::write(&path, text).unwrap();
        let sets: Vec<String> = sets.iter().map(|&s| s.to_owned()).collect();
        Recipe::load(&path, &sets)
    }

    #[test]
    fn the_resolved_recipe_reads_back_as_itself() {
        let mut recipe = load(SMALL, &["train.epochs=2", "schedule.warmup_epochs=0.5"]).unwrap();
        recipe.settle(80);
        assert_eq!((recipe.steps(), recipe.schedule.warmup), (20, 5));
        let again = Recipe::from_table(recipe.to_toml().parse().unwrap()).unwrap();
        assert_eq!(again, recipe);
        let shorter = ["schedule.warmup_epochs=0.5", "schedule.warmup=3"];
        assert_eq!(load(SMALL, &shorter).unwrap().schedule.warmup_epochs, None);
        let back = ["schedule.warmup=3", "schedule.warmup_epochs=0.5"];
        assert_eq!(load(SMALL, &back).unwrap().schedule.warmup, 0);
        let twice = ["data.repeats=2", "train.epochs=2", "schedule.warmup_epochs=0.5"];
        let mut twice = load(SMALL, &twice).unwrap();
        twice.settle(80);
        assert_eq!((twice.steps(), twice.schedule.warmup), (40, 10));
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_one() {
        let e = load(SMALL, &["train.stepz=3"]).unwrap_err().to_string();
        assert!(e.contains("train") && e.contains("did you mean `steps`"), "{e}");
        for (set, words) in [
            ("model.image_size=15", "model: image_size = 15: must be"),
            ("model.preset=x", "model.preset: no preset"),
            ("model.init=7", "model.init: 7 is no text"),
            ("model.bogus=3", "unknown field `bogus`"),
        ] {
            let e = load(SMALL, &[set]).unwrap_err().to_string();
            assert!(e.contains(words) && !e.contains("model: model"), "{e}");
        }
        let e = load(SMALL, &["model.widht=3"]).unwrap_err().to_string();
        assert!(e.contains("model") && e.contains("did you mean `width`"), "{e}");
        assert!(!e.contains('\n'), "{e}");
    }

    #[test]
    fn a_value_out_of_range_is_named_with_what_is_allowed() {
        for (set, words) in [
            ("mask.ratio=1.5", "mask.ratio = 1.5: must be from 0 to 0.95"),
            ("train.batch=0", "--set train.batch = 0: must be from 1 to 1048576"),
            ("train.batch=10000000", "train.batch = 10000000: must be from 1 to"),
            ("train.batch=99999999999999999999", "is too large a number"),
            (
                "train.batch=-8",
                "--set train.batch: invalid value: integer `-8`, expected a whole number, 0 or more",
            ),
            ("train.batch=2.5", "expected a whole number, 0 or more"),
            ("optim.lr=fast", "expected a number"),
            ("optim.betas=0.9", "expected two numbers, [a, b]"),
            ("data.orient=yes", "expected true or false"),
            ("data.val=3", "--set data.val: invalid type: integer `3`, expected a list"),
            ("data.train=", "--set data.train = \"\": must be a path"),
            (
                "model.text={context_length=9000000000000000000,vocab_size=9,width=8,heads=1,layers=1,out=8}",
                "--set model.text: context_length = 9000000000000000000: must be from 1 to 65536",
            ),
            ("train=4", "--set train: invalid type: integer `4`, expected a table of keys"),
            ("foo.bar=4", "--set foo.bar=4: foo: unknown field `foo`"),
            ("data.workers=100000", "data.workers = 100000: must be from 0 to 1024"),
            ("data.prefetch=4294967296", "data.prefetch = 4294967296: must be from 1 to 1024"),
            ("data.shuffle_buffer=9000000000000000000", "must be from 1 to"),
            ("train.threads=2000", "train.threads = 2000: must be from 0 to 1024"),
            (
                "train.steps=9000000000000000000",
                "train.steps = 9000000000000000000: must be from 0",
            ),
            (
                "model.width=100000",
                "--set model.width=100000: model: width = 100000: must be from 1 to 65536",
            ),
            ("model={width=3}", "--set model: missing field `image_size`"),
            ("train.accumulate=3", "a divisor of train.batch, 8"),
            ("mask.kind=blocks", "block-reversed"),
            ("train.device=tpu", "none of auto, cpu, cuda, cuda:N"),
            ("data.image_size=64", "the model's image_size, 48"),
            ("task=contrastive", "needs a text tower"),
            ("train.steps=many", "train.steps"),
        ] {
            let e = load(SMALL, &[set]).unwrap_err().to_string();
            assert!(e.contains(words), "{set}: {e}");
        }
    }

    #[test]
    fn transforms_are_written_as_timm_users_write_them() {
        let recipe = load(
            SMALL,
            &[
                "data.transforms.rand_augment=rand-m9-mstd0.5-inc1",
                "data.transforms.interpolation=random",
                "data.transforms.erasing={ prob = 0.25, mode = \"pixel\" }",
            ],
        )
        .unwrap();
        let transforms = &recipe.data.transforms;
        assert_eq!(transforms.rand_augment.unwrap().magnitude, 9);
        assert_eq!((transforms.erasing.prob, transforms.erasing.count), (0.25, 1));
        assert_eq!(Recipe::from_table(recipe.to_toml().parse().unwrap()).unwrap(), recipe);
        for (set, words) in [
            (
                "rand_augment=rand-x3",
                "data.transforms.rand_augment: \"rand-x3\": \"x3\" is not known",
            ),
            (
                "erasing={ prob = 0.25, mode = \"noise\" }",
                "expected one of `const`, `rand`, `pixel`",
            ),
            ("erasing={ probability = 0.25 }", "did you mean `prob`"),
            ("interpolation=area", "`nearest`, `bilinear`, `bicubic`, `random`"),
            ("color_jitter=\"much\"", "expected a number, or a table of brightness"),
            ("color_jitter={ hu = 0.1 }", "did you mean `hue`"),
            ("color_jitter=0.4", "rand_augment"),
            ("mixup=0.8", "task \"align\" has no classes to mix"),
            ("cutmix=1.0", "task \"align\" has no classes to mix"),
            ("mixup=-1", "mixup = -1: is 0 or more"),
        ] {
            let set = format!("data.transforms.{set}");
            let e = load(SMALL, &["data.transforms.rand_augment=rand", &set]).unwrap_err();
            let e = e.to_string();
            assert!(e.contains(words) && !e.contains('\n'), "{set}: {e}");
        }
        let jitter = load(SMALL, &["data.transforms.color_jitter=0.4"]).unwrap();
        let jitter = jitter.data.transforms.color_jitter;
        assert_eq!((jitter.contrast, jitter.hue), (0.4, 0.0));
    }

    #[test]
    fn set_overrides_extends_and_one_measure_of_length_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("base.toml"), SMALL).unwrap();
        let path = dir.path().join("r.toml");
        std::fs::write(&path, "extends = \"base.toml\"\n[train]\nbatch = 16\n").unwrap();
        let recipe =
            Recipe::load(&path, &["train.samples=64".into(), "data.train=a/b".into()]).unwrap();
        assert_eq!((recipe.train.batch, recipe.train.steps), (16, None));
        let here = std::env::current_dir().unwrap();
        assert_eq!(recipe.data.train, [here.join("a/b").to_str().unwrap().into()]);
        std::fs::write(&path, "extends = \"base.toml\"\n[train]\nepochs = 3\n").unwrap();
        let recipe = Recipe::load(&path, &[]).unwrap();
        assert_eq!((recipe.train.epochs, recipe.train.steps), (Some(3.0), None));
        std::fs::write(&path, "extends = \"base.toml\"\n[train]\nepochs = 3\nsteps = 4\n").unwrap();
        let error = Recipe::load(&path, &[]).unwrap_err().to_string();
        assert!(error.contains("give one of steps, epochs and samples"), "{error}");
    }

    #[test]
    fn another_preset_takes_the_place_of_written_sizes_and_leaves_what_is_no_size() {
        let preset = VitConfig::preset("uta-b14").unwrap();
        let sets = ["model.drop_path=0.2", "model.preset=uta-b14"];
        let vision = load(SMALL, &sets).unwrap().model.vision;
        assert_eq!((vision.width, vision.image_size), (preset.width, preset.image_size));
        assert_eq!((vision.out, vision.drop_path), (32, 0.2));
        for sets in
            [["model.preset=uta-b14", "model.depth=3"], ["model.depth=3", "model.preset=uta-b14"]]
        {
            let vision = load(SMALL, &sets).unwrap().model.vision;
            assert_eq!((vision.width, vision.depth), (preset.width, 3));
        }
    }

    #[test]
    fn another_teacher_takes_the_place_of_what_described_the_old_one() {
        let described =
            SMALL.replace("path = \"teacher\"", "path = \"t\"\narch = \"vit-l-14\"\ncache = \"c\"");
        let teacher = |sets: &[&str]| load(&described, sets).unwrap().teacher.unwrap();
        let parts = |teacher: Teacher| {
            let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
            (teacher.path.map(name), teacher.arch, teacher.cache.map(name))
        };
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(parts(teacher(&[])), (some("t"), some("vit-l-14"), some("c")));
        assert_eq!(parts(teacher(&["teacher.path=other"])), (some("other"), None, None));
        for sets in [
            ["teacher.path=other", "teacher.arch=vit-b-16"],
            ["teacher.arch=vit-b-16", "teacher.path=other"],
        ] {
            assert_eq!(parts(teacher(&sets)), (some("other"), some("vit-b-16"), None));
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("base.toml"), described).unwrap();
        let path = dir.path().join("r.toml");
        std::fs::write(&path, "extends = \"base.toml\"\n[teacher]\npath = \"other\"\n").unwrap();
        let teacher = Recipe::load(&path, &[]).unwrap().teacher.unwrap();
        assert_eq!(parts(teacher), (some("other"), None, None));
    }

    #[test]
    fn the_width_of_the_head_follows_unless_it_is_written() {
        for text in [
            SMALL.replace("out = 32\n", ""),
            SMALL.replace("[model]\n", "[model]\npreset = \"uta-b14\"\n").replace("out = 32\n", ""),
        ] {
            let recipe = load(&text, &[]).unwrap();
            let mut again = Recipe::from_table(recipe.to_toml().parse().unwrap()).unwrap();
            again.model.follow(768);
            assert_eq!(again.model.vision.out, 768);
            assert!(again.to_toml().contains("out = 768"));
            again.model.follow(512);
            assert_eq!(again.model.vision.out, 768, "what was settled stays");
        }
        let mut written = load(SMALL, &[]).unwrap();
        written.model.follow(768);
        assert_eq!(written.model.vision.out, 32);
    }

    #[test]
    fn what_is_wrong_is_blamed_on_the_setting_or_on_the_file() {
        let said = |sets: &[&str]| load(SMALL, sets).unwrap_err().to_string();
        // The last of several counts.
        assert!(
            said(&["train.batch=4", "train.batch=0"]).starts_with("--set train.batch = 0: must")
        );
        // Two keys that don't go together: the one that is named first.
        let e = said(&["train.batch=10", "train.accumulate=3"]);
        assert!(e.starts_with("--set train.accumulate = 3: must be a divisor"), "{e}");
        let e = said(&["train.batch=10", "train.accumulate=4"]);
        assert!(e.starts_with("--set train.accumulate = 4: must be a divisor"), "{e}");
        let text = SMALL.replace("batch = 8", "batch = 0");
        let e = load(&text, &["train.steps=5"]).unwrap_err().to_string();
        assert!(e.contains("r.toml: train.batch = 0"), "{e}");
    }

    #[test]
    fn paths_are_those_of_the_present_directory_and_absolute_from_then_on() {
        let sets = [
            "data.train=[\"a/{0..9}.tar\", {data=\"b\", weight=2.0, pairs={images=\"c\"}}, \"s3://d/e.tar\"]",
            "data.val=~/f*.tar",
            "data.pairs={images=\"g\"}",
            "teacher={path=\"/h\", arch=\"Cargo.toml\", cache=\"~\"}",
            "model.init=j",
            "eval.sets=[{name=\"n\", kind=\"zeroshot\", data=\"k\", classnames=\"l\", templates=\"m\"}]",
        ];
        let mut recipe = load(SMALL, &sets).unwrap();
        let here = std::env::current_dir().unwrap().display().to_string();
        let home = std::env::var("HOME").unwrap();
        let paths: Vec<String> =
            recipe.paths().into_iter().map(|(_, place)| place.get().to_owned()).collect();
        let here = |name: &str| format!("{here}/{name}");
        let expected = [
            here("a/{0..9}.tar"),
            here("b"),
            here("c"),
            "s3://d/e.tar".into(),
            format!("{home}/f*.tar"),
            here("g"),
            here("k"),
            here("l"),
            here("m"),
            "/h".into(),
            home,
            here("Cargo.toml"),
            here("j"),
        ];
        assert_eq!(paths, expected);
        assert_eq!(Recipe::from_table(recipe.to_toml().parse().unwrap()).unwrap(), recipe);
    }

    #[test]
    fn a_file_that_is_no_toml_is_named_with_its_line() {
        let e = load("task = \"align\"\n[train\n", &[]).unwrap_err().to_string();
        assert!(e.contains("r.toml: line 2"), "{e}");
        let e = Recipe::load(Path::new("/no/such.toml"), &[]).unwrap_err().to_string();
        assert!(e.contains("/no/such.toml: can't be read"), "{e}");
    }
}
