//! Targets computed once: a folder that holds what a frozen teacher says of k seeded crops of every training image, and of
//! every validation image. A run then reads the tokens it wants and needs no teacher.
//!
//! ```text
//! DIR/cache.json                  of which teacher, crops and data: whoever uses the folder compares it with his own
//! DIR/text.safetensors            the teacher's text tower and logit scale, so that the student is a CLIP at any time
//! DIR/{train,val}-000000.safetensors, ...        uta_data::targets
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::{Precision, autocast};
use uta_data::sha256::{add_file, hex};
use uta_data::targets::{
    Cropping, Replay, TargetKind, TargetSet, TargetWriter, Targets, View, Wanted, crops, lock,
};
use uta_data::{
    Batch, DecodeOptions, EvalTransform, EvalViews, Source, TrainTransform, TrainViews, Transform,
    progress,
};
use uta_model::{Clip, ClipConfig, Origin, safetensors_io};

use super::recipe::Teacher;
use super::teacher::load_teacher;
use crate::device::device;
use crate::recipe::{PrecisionName, Recipe};
use crate::run::write_atomically;
use crate::task::Mode;
use crate::task::parts::to_device;
use crate::{RecipeError, TrainError};

const MANIFEST: &str = "cache.json";
const TEXT: &str = "text.safetensors";

/// Version of this file's format.
const VERSION: u32 = 1;

/// `cache.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    uta_cache: u32,
    teacher: TeacherMark,
    crops: Crops,
    targets: Stored,
    data: Samples,
}

/// Which net, by its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct TeacherMark {
    /// SHA-256 of its files, one after the other.
    sha256: String,
    config: ClipConfig,
}

/// The views that the teacher saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Crops {
    count: u64,
    seed: u64,
    max_pixels: u64,
    orient: bool,
    transforms: TrainTransform,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Stored {
    kind: TargetKind,
    precision: PrecisionName,
    shard_samples: u64,
}

/// Samples of each source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Samples {
    train: u64,
    val: u64,
}

/// How a cache is made.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// k, the crops of each training image.
    pub crops: u64,
    /// How targets are stored.
    pub kind: TargetKind,
    /// Samples of a shard.
    pub shard_samples: u64,
    /// Images of a forward pass of the teacher; the recipe's micro-batch where none is given.
    pub batch: Option<usize>,
    /// Whether every row that is there already is read again.
    pub check: bool,
}

/// Result of [`make`].
#[derive(Clone, Debug, Serialize)]
pub struct Made {
    /// Images of which there are targets, or of which none can be had.
    pub samples: u64,
    /// Crops that the teacher saw in this sitting.
    pub computed: u64,
    /// Samples of this sitting that could not be used.
    pub rejected: u64,
    /// Shards there are.
    pub shards: u64,
    /// Shards that were there before.
    pub kept: u64,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Bytes of an image's targets.
    pub bytes_per_image: u64,
    /// Cosine of stored to exact tokens: the mean over the tokens of this sitting, and the smallest.
    pub cosine: Option<(f64, f64)>,
    /// Crops a second.
    pub images_per_second: f64,
}

/// The teacher whose targets lie in `dir`, and how they are stored.
///
/// # Errors
/// When there is no cache.
pub fn cached_targets(dir: &Path) -> Result<(ClipConfig, TargetKind), TrainError> {
    let manifest = Manifest::read(dir)?;
    Ok((manifest.teacher.config, manifest.targets.kind))
}

/// A source of the recipe, what becomes of its images, and where their targets go.
struct Part {
    source: Arc<dyn Source>,
    cropping: Cropping,
    set: TargetSet,
}

/// Computes what isn't there yet of the targets of `recipe` into the folder `dir`. It may be killed at any instant: whole shards
/// stay.
///
/// # Errors
/// When the folder holds the targets of another teacher, of other crops or data, or stored otherwise; when the teacher or the
/// data can't be read, or the disk is full.
pub fn make(recipe: &Recipe, dir: &Path, options: &CacheOptions) -> Result<Made, TrainError> {
    let device =
        device(&recipe.train.device, 0).map_err(|message| wrong("train.device", message))?;
    let (train, val) = recipe.open_data(true)?;
    let Some(teacher) = recipe.task.teacher() else {
        let message = format!("task = \"{}\": has no teacher", recipe.task.kind());
        return Err(wrong("recipe", message));
    };
    let mark = TeacherMark::new(recipe, teacher)?;
    let manifest = Manifest {
        uta_cache: VERSION,
        teacher: mark,
        crops: Crops {
            count: options.crops,
            seed: recipe.train.seed,
            max_pixels: recipe.data.max_pixels,
            orient: recipe.data.orient,
            transforms: recipe.data.transforms.clone(),
        },
        targets: Stored {
            kind: options.kind,
            precision: recipe.train.precision,
            shard_samples: options.shard_samples,
        },
        data: Samples {
            train: train.len() as u64,
            val: val.as_ref().map_or(0, |val| val.len() as u64),
        },
    };
    let parts: Vec<Part> = [(Some(train), false), (val, true)]
        .into_iter()
        .filter_map(|(source, val)| {
            let set = manifest.set(dir, val);
            Some(Part { source: source?, cropping: manifest.cropping(val), set })
        })
        .collect();
    if parts.iter().any(|part| !part.set.is_sane()) {
        let sizes = (options.crops, options.shard_samples);
        let message = format!("{sizes:?} crops and samples a shard: too many, or none");
        return Err(wrong("--crops, --shard-samples", message));
    }
    let batch = options.batch.unwrap_or(recipe.train.batch / recipe.train.accumulate);
    let crops: u64 = parts.iter().map(|part| part.set.samples * part.set.crops).sum();
    let batch = batch.min(crops as usize);
    // Its bytes, those of crops that wait, and f32.
    let image = 3 * u128::from(recipe.data.image_size).pow(2);
    uta_data::machine::has_room("batch", batch, image * batch as u128 * 7)?;
    let _lock = lock(dir)?;
    let file = dir.join(MANIFEST);
    let begun = file.exists();
    if begun {
        let there = Manifest::read(dir)?;
        if let Some(differs) = difference(&there, &manifest) {
            let message = format!(
                "holds other targets: {differs}; choose another folder, or remove this one"
            );
            return Err(TrainError::run(dir, message));
        }
        // Data of the same size may be other data.
        for part in &parts {
            let there = Targets::unchecked(part.set.clone());
            there.are_of(part.source.as_ref(), &part.cropping, &manifest.decode())?;
        }
    }
    tch::manual_seed(recipe.train.seed as i64);
    let mut teacher = load_teacher(teacher, device)?;
    let text = text_of(&teacher);
    let there = begun && dir.join(TEXT).exists();
    if !text.is_empty() && !there {
        safetensors_io::save(&text, &dir.join(TEXT), &BTreeMap::new(), None)?;
    }
    if !begun {
        // After the text tower: a folder with a manifest has it.
        let text = serde_json::to_string_pretty(&manifest).expect("plain data") + "\n";
        write_atomically(&file, text.as_bytes())?;
    }
    teacher.freeze(recipe.train.precision.into());
    let mut maker = Maker {
        teacher,
        device,
        precision: recipe.train.precision.into(),
        decode: manifest.decode(),
        batch,
        workers: recipe.data.workers,
        max_rejected: recipe.data.max_rejected,
        computed: 0,
        usable: 0,
        rejected: 0,
        cosine: Cosine::default(),
    };
    let (began, mut kept) = (Instant::now(), 0);
    for part in &parts {
        let mut missing = vec![];
        for shard in 0..part.set.shards() {
            if part.set.is_whole(shard, options.check)? {
                kept += 1;
            } else {
                missing.push(shard);
            }
        }
        maker.fill(part, &missing)?;
    }
    let seconds = began.elapsed().as_secs_f64().max(1e-9);
    let set = &parts[0].set;
    Ok(Made {
        samples: parts.iter().map(|part| part.set.samples).sum(),
        computed: maker.computed,
        rejected: maker.rejected,
        shards: parts.iter().map(|part| part.set.shards()).sum(),
        kept,
        bytes: parts.iter().map(|part| part.set.bytes()).sum(),
        bytes_per_image: set.crops * set.tokens * set.width * set.kind.bytes(),
        cosine: maker.cosine.mean_and_least(),
        images_per_second: maker.computed as f64 / seconds,
    })
}

/// Computes targets.
struct Maker {
    teacher: Clip,
    device: Device,
    precision: Precision,
    decode: DecodeOptions,
    batch: usize,
    workers: usize,
    max_rejected: f64,
    computed: u64,
    /// Samples that could be used, and that could not.
    usable: u64,
    rejected: u64,
    cosine: Cosine,
}

impl Maker {
    /// Makes the `missing` shards.
    fn fill(&mut self, part: &Part, missing: &[u64]) -> Result<(), TrainError> {
        let set = &part.set;
        let samples: Vec<u64> = missing.iter().flat_map(|&shard| set.samples_of(shard)).collect();
        let (all, done) =
            (set.samples * set.crops, (set.samples - samples.len() as u64) * set.crops);
        let bar = progress::bar(all, done, "crops");
        bar.set_prefix(set.name);
        let ahead = (2 * self.batch as u64).div_ceil(set.crops);
        let mut views = crops(
            part.source.clone(),
            part.cropping.clone(),
            self.decode,
            set.crops,
            samples,
            (self.workers, ahead),
        );
        let began = Instant::now();
        for &shard in missing {
            let mut writer = TargetWriter::create(set, shard)?;
            let mut waiting: Vec<(u64, u64, View)> = vec![];
            let mut pixels = vec![];
            for sample in set.samples_of(shard) {
                match views.next().expect("a result for every sample") {
                    Ok(views) => {
                        self.usable += 1;
                        for (crop, (view, bytes)) in (0..).zip(views) {
                            waiting.push((sample, crop, view));
                            pixels.extend_from_slice(&bytes);
                            if waiting.len() == self.batch {
                                self.write(set, &mut writer, &mut waiting, &mut pixels)?;
                                bar.inc(self.batch as u64);
                            }
                        }
                    }
                    Err(rejected) if rejected.may_pass() => {
                        let message = format!(
                            "sample {}: {}; give the same command again once it can be read (finished shards stay)",
                            rejected.key, rejected.reason
                        );
                        return Err(wrong("data", message));
                    }
                    Err(rejected) => {
                        tracing::warn!("unusable sample {}: {}", rejected.key, rejected.reason);
                        self.rejected += 1;
                        bar.inc(set.crops);
                        self.check_rejected(&rejected.key)?;
                    }
                }
            }
            let rest = waiting.len() as u64;
            self.write(set, &mut writer, &mut waiting, &mut pixels)?;
            bar.inc(rest);
            writer.finish()?;
            let speed = self.computed as f64 / began.elapsed().as_secs_f64().max(1e-9);
            bar.set_message(progress::images_per_second(speed));
            if bar.is_hidden() {
                let (at, speed) = (bar.position(), progress::images_per_second(speed));
                tracing::info!("{}: {at} of {all} crops  {speed}", set.name);
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn check_rejected(&self, last: &str) -> Result<(), TrainError> {
        let seen = self.usable + self.rejected;
        if self.rejected > 10 && self.rejected as f64 > self.max_rejected * seen as f64 {
            let message = format!(
                "{} of {seen} samples were unusable, the last one {last}; mend the data, or raise data.max_rejected",
                self.rejected
            );
            return Err(wrong("data.train", message));
        }
        Ok(())
    }

    /// The teacher's tokens of the waiting crops, written where they belong.
    fn write(
        &mut self,
        set: &TargetSet,
        writer: &mut TargetWriter<'_>,
        waiting: &mut Vec<(u64, u64, View)>,
        pixels: &mut Vec<u8>,
    ) -> Result<(), TrainError> {
        if waiting.is_empty() {
            return Ok(());
        }
        let (b, side) = (waiting.len() as i64, self.teacher.config.vision.image_size);
        let images = to_device(Tensor::from_slice(pixels), self.device).view([b, side, side, 3]);
        let tokens = autocast(self.device, self.precision, || {
            let images = self.teacher.normalise(&images); // [B, 3, S, S]
            no_grad(|| self.teacher.visual.forward_t(&images, None, false)).to_kind(Kind::Float)
        }); // [B, 1+N, E]
        let finite = bool::try_from(tokens.isfinite().all())?;
        if !finite {
            let (first, last) = (waiting[0].0, waiting[waiting.len() - 1].0);
            let message = format!("gives tokens that are no numbers for samples {first} to {last}");
            return Err(wrong("teacher", message));
        }
        let stored = encode(&tokens, set.kind);
        self.cosine.add(&tokens, &stored);
        let mut bytes = vec![0; stored.numel() * set.kind.bytes() as usize];
        stored.to_device(Device::Cpu).contiguous().copy_data_u8(&mut bytes, stored.numel());
        let rows = bytes.chunks_exact(bytes.len() / waiting.len());
        for ((sample, crop, view), rows) in waiting.drain(..).zip(rows) {
            writer.put(sample, crop, view, rows)?;
        }
        pixels.clear();
        self.computed += b as u64;
        Ok(())
    }
}

/// Tokens [B, T, E] as they are stored. Bytes keep a row's direction alone: its largest magnitude becomes 127.
fn encode(tokens: &Tensor, kind: TargetKind) -> Tensor {
    match kind {
        TargetKind::F32 => tokens.shallow_clone(),
        TargetKind::F16 => tokens.to_kind(Kind::Half),
        TargetKind::I8 => {
            let largest = tokens.abs().amax([-1i64], true).clamp_min(f64::from(f32::MIN_POSITIVE));
            (tokens / largest * 127.0).round().to_kind(Kind::Int8)
        }
    }
}

/// Cosines of stored to exact tokens.
#[derive(Default)]
struct Cosine {
    sum: f64,
    count: f64,
    least: f64,
}

impl Cosine {
    fn add(&mut self, exact: &Tensor, stored: &Tensor) {
        let stored = stored.to_kind(Kind::Float);
        let cosine = Tensor::cosine_similarity(exact, &stored, -1, 1e-8);
        let least = cosine.min().double_value(&[]);
        self.least = if self.count == 0.0 { least } else { self.least.min(least) };
        self.sum += cosine.sum(Kind::Double).double_value(&[]);
        self.count += cosine.numel() as f64;
    }

    fn mean_and_least(&self) -> Option<(f64, f64)> {
        (self.count > 0.0).then(|| (self.sum / self.count, self.least))
    }
}

/// An open cache, for a run.
pub(crate) struct Cache {
    dir: PathBuf,
    manifest: Manifest,
    train: Arc<Targets>,
    val: Option<Arc<Targets>>,
}

impl Cache {
    /// The cache in `dir`, which must be of the recipe's teacher, where it names one that is there, and of its crops. `check`
    /// looks at what the teacher was.
    ///
    /// # Errors
    /// Says what differs, or which shard is missing or cut.
    pub fn open(
        recipe: &Recipe,
        dir: &Path,
        check: impl FnOnce(&ClipConfig) -> Result<(), TrainError>,
    ) -> Result<Cache, TrainError> {
        let mut manifest = Manifest::read(dir)?;
        let mut ours = manifest.clone();
        ours.crops = Crops {
            // Any number of any seed will do.
            count: manifest.crops.count,
            seed: manifest.crops.seed,
            max_pixels: recipe.data.max_pixels,
            orient: recipe.data.orient,
            transforms: recipe.data.transforms.clone(),
        };
        if let Some(teacher) = recipe.task.teacher()
            && teacher.path.as_ref().is_none_or(|path| path.exists())
            && (teacher.path.is_some() || teacher.arch.is_some())
        {
            ours.teacher = TeacherMark::new(recipe, teacher)?;
        }
        if let Some(differs) = difference(&manifest, &ours) {
            let message = format!("is no cache for this recipe: {differs}; see uta cache --help");
            return Err(TrainError::run(dir, message));
        }
        // The same, with what follows from the model and isn't written.
        manifest.crops.transforms = recipe.data.transforms.clone();
        let (repeats, count) = (recipe.data.repeats as u64, manifest.crops.count);
        if repeats > count {
            let message = format!("data.repeats = {repeats}: {} has {count} crops", dir.display());
            return Err(wrong("recipe", message));
        }
        check(&manifest.teacher.config)?;
        let train = Arc::new(Targets::open(manifest.set(dir, false))?);
        let val = match manifest.data.val {
            0 => None,
            _ => Some(Arc::new(Targets::open(manifest.set(dir, true))?)),
        };
        Ok(Cache { dir: dir.to_owned(), manifest, train, val })
    }

    /// Sizes of the teacher.
    pub fn teacher(&self) -> &ClipConfig {
        &self.manifest.teacher.config
    }

    /// Gives `student` the teacher's text tower and logit scale, where it had them.
    pub fn copy_text(&self, student: &Clip) -> Result<(), TrainError> {
        let text = text_of(student);
        if text.is_empty() {
            return Ok(());
        }
        Ok(safetensors_io::load_into(&self.dir.join(TEXT), &text)?)
    }

    /// Whether its targets are of these sources.
    pub fn check_data(
        &self,
        train: &dyn Source,
        val: Option<&dyn Source>,
    ) -> Result<(), TrainError> {
        let decode = self.manifest.decode();
        self.train.are_of(train, &self.manifest.cropping(false), &decode)?;
        match (val, &self.val) {
            (Some(val), Some(targets)) => {
                Ok(targets.are_of(val, &self.manifest.cropping(true), &decode)?)
            }
            (Some(_), None) => {
                let message =
                    "has no targets of data.val: set data.val = [], or make a cache with it";
                Err(TrainError::run(&self.dir, message))
            }
            (None, _) => Ok(()),
        }
    }

    /// The crops that there are targets of, which come with them; `wanted` says which rows each image comes with.
    pub fn transform(&self, mode: Mode, wanted: Box<Wanted>) -> Arc<dyn Transform> {
        let decode = self.manifest.decode();
        let transforms = &self.manifest.crops.transforms;
        let eval = EvalViews { decode, ..EvalViews::new(EvalTransform::new(transforms.size)) };
        match (mode, &self.val) {
            (Mode::Train, _) => {
                let views = TrainViews { decode, ..TrainViews::new(transforms.clone()) };
                Arc::new(Replay { targets: self.train.clone(), wanted, views })
            }
            (Mode::Validate, Some(val)) => {
                Arc::new(Replay { targets: val.clone(), wanted, views: eval })
            }
            (Mode::Validate, None) => Arc::new(eval),
        }
    }

    /// The targets [B, rows, E] that came with a batch.
    ///
    /// # Errors
    /// When there are none of validation images.
    pub fn targets(&self, batch: &Batch, mode: Mode, device: Device) -> Result<Tensor, TrainError> {
        let targets = match (mode, &self.val) {
            (Mode::Train, _) => &self.train,
            (Mode::Validate, Some(val)) => val,
            (Mode::Validate, None) => {
                return Err(TrainError::run(&self.dir, "has no targets of validation images"));
            }
        };
        Ok(decode(&batch.targets, batch.len(), targets.set(), device))
    }
}

/// Stored rows of B images as a tensor [B, rows, E], in the kind they are stored in: enough for a cosine.
pub fn decode(bytes: &[u8], images: usize, set: &TargetSet, device: Device) -> Tensor {
    let kind = match set.kind {
        TargetKind::I8 => Kind::Int8,
        TargetKind::F16 => Kind::Half,
        TargetKind::F32 => Kind::Float,
    };
    let row = (set.width * set.kind.bytes()) as usize;
    let rows = bytes.len() / row / images.max(1);
    let shape = [images as i64, rows as i64, set.width as i64];
    to_device(Tensor::from_data_size(bytes, &shape, kind), device)
}

impl Manifest {
    fn read(dir: &Path) -> Result<Manifest, TrainError> {
        let file = dir.join(MANIFEST);
        if !file.exists() {
            let message = format!("holds no cache (no {MANIFEST}): make one with uta cache");
            return Err(TrainError::run(dir, message));
        }
        let text = std::fs::read_to_string(&file).map_err(TrainError::io(&file))?;
        let broken = |why: String| TrainError::run(&file, format!("is no cache's: {why}"));
        let manifest: Manifest = serde_json::from_str(&text).map_err(|e| broken(e.to_string()))?;
        if manifest.uta_cache != VERSION {
            let version = manifest.uta_cache;
            return Err(broken(format!("of format {version}, where {VERSION} is read")));
        }
        manifest.teacher.config.check().map_err(|e| broken(e.to_string()))?;
        if !(manifest.set(dir, false).is_sane() && manifest.set(dir, true).is_sane()) {
            return Err(broken("sizes that make no sense".into()));
        }
        Ok(manifest)
    }

    fn decode(&self) -> DecodeOptions {
        DecodeOptions { max_pixels: self.crops.max_pixels, orient: self.crops.orient }
    }

    fn cropping(&self, val: bool) -> Cropping {
        match val {
            true => Cropping::Eval(EvalTransform::new(self.crops.transforms.size)),
            false => Cropping::Train(Box::new(self.crops.transforms.clone()), self.crops.seed),
        }
    }

    fn set(&self, dir: &Path, val: bool) -> TargetSet {
        let vision = &self.teacher.config.vision;
        let mark = Sha256::digest(serde_json::to_vec(self).expect("plain data"));
        let (name, samples, crops) = match val {
            true => ("val", self.data.val, 1),
            false => ("train", self.data.train, self.crops.count),
        };
        TargetSet {
            dir: dir.to_owned(),
            name,
            mark: hex(&mark[..16]),
            samples,
            crops,
            shard_samples: self.targets.shard_samples,
            tokens: 1 + vision.num_patches() as u64,
            width: vision.out as u64,
            kind: self.targets.kind,
        }
    }
}

impl TeacherMark {
    fn new(recipe: &Recipe, teacher: &Teacher) -> Result<TeacherMark, TrainError> {
        match (&teacher.path, &teacher.arch) {
            (Some(path), arch) => {
                let origin = Origin::open(path, arch.as_deref())?;
                let files = match origin.shards() {
                    [] => std::slice::from_ref(&origin.weights),
                    shards => shards,
                };
                let mut hash = Sha256::new();
                for file in files {
                    add_file(&mut hash, file).map_err(TrainError::io(file))?;
                }
                let config = origin.clip_config("teacher.path")?.clone();
                Ok(TeacherMark { sha256: hex(&hash.finalize()), config })
            }
            (None, Some(arch)) => Ok(TeacherMark {
                sha256: format!("none: random weights of seed {}", recipe.train.seed),
                config: ClipConfig::preset(arch)?,
            }),
            (None, None) => Err(wrong("recipe", "teacher: needs teacher.path".into())),
        }
    }
}

/// A CLIP's variables but those of its image encoder.
fn text_of(clip: &Clip) -> Vec<(String, Tensor)> {
    let mut variables = clip.variables();
    variables.retain(|(name, _)| !name.starts_with("visual."));
    variables
}

/// The first thing in which two manifests differ, in words.
fn difference(there: &Manifest, here: &Manifest) -> Option<String> {
    let value = |manifest| serde_json::to_value(manifest).expect("plain data");
    differing("", &value(there), &value(here))
}

fn differing(path: &str, there: &Value, here: &Value) -> Option<String> {
    match (there, here) {
        (Value::Object(there), Value::Object(here)) => {
            let keys = here.keys().chain(there.keys().filter(|key| !here.contains_key(*key)));
            keys.into_iter().find_map(|key| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let value = |of: &serde_json::Map<String, Value>| of.get(key).cloned();
                differing(
                    &path,
                    &value(there).unwrap_or_default(),
                    &value(here).unwrap_or_default(),
                )
            })
        }
        _ if there == here => None,
        _ => Some(format!("{path} is {there} there, {here} here")),
    }
}

fn wrong(origin: &str, message: String) -> TrainError {
    RecipeError { origin: origin.into(), message }.into()
}
