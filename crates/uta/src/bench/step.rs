//! `uta bench step`: a training step of a recipe, beside plain matrix products in the same run.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use serde::Serialize;
use tch::{Device, Kind, Tensor};
use torch_ext::distributed::ProcessGroup;
use torch_ext::{OperatorTime, Precision, autocast, profile};
use uta_data::targets::{TargetKind, TargetSet, TargetWriter, Targets, View};
use uta_data::{Batch, Item, Label};
use uta_model::{Clip, ClipConfig, VitConfig};
use uta_train::recipe::{MAX_IMAGES, TaskRecipe};
use uta_train::{Mode, Optimizer, Recipe, Task, decode_targets};

use crate::compute::warn_of_bf16;
use crate::error::Usage;
use crate::output::print;

/// Images a second of a recipe's step; with a teacher, of the teacher, the student, both, or the student with cached targets
///
/// Pictures are random and nothing is read but the recipe and, where there is one, the teacher. Utilisation is the rate of
/// the step's matrix products over that of a plain one, measured in turn with the steps.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  uta bench step recipes/pretrain/uta-b14-in21k.toml --batch 8
  uta bench step recipes/pretrain/uta-b14-in21k.toml --part student --batch 32 --profile
  uta bench step recipes/pretrain/uta-b14-in21k.toml --part cached --batch 4")]
pub struct Args {
    /// The recipe (TOML); where its teacher isn't there, one of teacher.arch with random weights stands in
    recipe: PathBuf,
    /// The part of the step to run
    #[arg(long, value_enum, default_value_t = Part::All)]
    part: Part,
    /// Images a step [default: the recipe's micro-batch, 256 of it at most on a GPU and 8 on a CPU]
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u32).range(1..=MAX_IMAGES as i64))]
    batch: Option<u32>,
    /// Threads of the products [default: the recipe's, or one a core]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Steps that are timed, after two for warming up
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Override a key of the recipe; may be given often
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    sets: Vec<String>,
    /// Say how a step's time divides among kinds of operators (one more step)
    #[arg(long)]
    profile: bool,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// `--part`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Part {
    /// The whole step, as in training
    All,
    /// Forward, backward and update against fixed targets
    Student,
    /// The frozen teacher's forward pass
    Teacher,
    /// The student with the teacher's tokens read from a cache, and in turn with them the step of teacher and student
    Cached,
}

/// Result of the measurement.
#[derive(Debug, Serialize)]
struct Report {
    images_per_second: f64,
    /// Rate of the step with the teacher, measured in turn (`--part cached`).
    #[serde(skip_serializing_if = "Option::is_none")]
    live_images_per_second: Option<f64>,
    task: String,
    part: Part,
    batch: usize,
    /// Patches that the student processes of each image.
    kept: usize,
    precision: &'static str,
    device: String,
    threads: i32,
    /// Medians over the timed steps, in seconds.
    seconds: f64,
    /// Rate of matrix products, by the shapes.
    gflops: f64,
    /// The rate of plain products, the median between the steps.
    ceiling_gflops: f64,
    utilisation: f64,
    /// The process's largest, with the weights; on a GPU that of the tensors there.
    peak_memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<Vec<Share>>,
}

/// How much of a step one kind of operator takes.
#[derive(Debug, Serialize)]
struct Share {
    kind: &'static str,
    share: f64,
    milliseconds: f64,
    /// The longest of it.
    operators: Vec<String>,
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let part = match self.part {
            Part::All => "the whole step",
            Part::Student => "student",
            Part::Teacher => "teacher",
            Part::Cached => "student with cached targets",
        };
        writeln!(
            f,
            "task {}, {part}, batch {}, {}, {} threads on {}",
            self.task, self.batch, self.precision, self.threads, self.device
        )?;
        writeln!(f, "  images/s       {:.2}", self.images_per_second)?;
        if let Some(live) = self.live_images_per_second {
            let times = self.images_per_second / live;
            writeln!(f, "  with teacher   {live:.2} images/s: {times:.2} times slower")?;
        }
        writeln!(f, "  a step         {:.1} ms", 1e3 * self.seconds)?;
        writeln!(
            f,
            "  products       {:.0} of {:.0} GFLOP/s, utilisation {:.2}",
            self.gflops, self.ceiling_gflops, self.utilisation
        )?;
        if let Some(bytes) = self.peak_memory_bytes {
            writeln!(f, "  peak memory    {:.2} GB", bytes as f64 / 1e9)?;
        }
        for share in self.profile.iter().flatten() {
            writeln!(
                f,
                "  {:<14} {:5.1} %  {:8.1} ms  {}",
                share.kind,
                100.0 * share.share,
                share.milliseconds,
                share.operators.join(", ")
            )?;
        }
        Ok(())
    }
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut recipe = Recipe::load(&args.recipe, &args.sets)?;
    let threads = args.threads.map_or(recipe.train.threads, usize::from);
    if threads > 0 {
        tch::set_num_threads(threads as i32);
    }
    let device = uta_train::device(&recipe.train.device, 0).map_err(Usage)?;
    let most = if device.is_cuda() { 256 } else { 8 };
    let batch = match args.batch {
        Some(batch) => batch as usize,
        None => (recipe.train.batch / recipe.train.accumulate).min(most),
    };
    if device == Device::Cpu {
        uta_train::has_room(&recipe, batch)?;
    }
    tch::manual_seed(recipe.train.seed as i64);
    let texts = recipe.task.reads_texts_alone();
    let size = if texts { 0 } else { recipe.model.vision.image_size as usize };
    let mut pictures = Pictures { batch, size, step: 0 };
    let timed = match recipe.task {
        TaskRecipe::Distill(_) => {
            let teacher = teacher(args, &recipe, device)?;
            Timed::distilled(args, &mut recipe, teacher, device, &mut pictures)?
        }
        _ => Timed::whole(args, recipe.clone().or_random_teacher(), device)?,
    };
    print(args.json, &measure(args, &recipe, device, timed, pictures)?)
}

/// Takes a step on a batch.
type StepFn = dyn FnMut(&Batch, bool) -> anyhow::Result<()>;

/// A step to be timed.
struct Timed {
    /// Forward, backward and update of a batch; with the teacher where there is a choice and the second argument says so.
    step: Box<StepFn>,
    /// Whether there is that choice: targets from a cache, or from the teacher.
    has_cache: bool,
    /// Patches that the net in training processes of each image.
    kept: i64,
    /// Multiply-accumulates of a step's products for one image.
    macs: u64,
}

impl Timed {
    /// The step of any task, as training makes it.
    fn whole(args: &Args, recipe: Recipe, device: Device) -> anyhow::Result<Timed> {
        if args.part != Part::All {
            let task = recipe.task.kind();
            let message = format!("--part: the step of task \"{task}\" has no parts; leave it out");
            return Err(Usage(message).into());
        }
        let task = uta_train::build(&recipe, device, &ProcessGroup::single())?;
        let mut optimizer = Optimizer::new(&task.parameters(), &recipe.optim);
        let (precision, lr) = (Precision::from(recipe.train.precision), recipe.optim.lr);
        let macs = task.macs();
        let step = move |batch: &Batch, _: bool| {
            let output = autocast(device, precision, || task.forward(batch, Mode::Train))?;
            output.loss.backward();
            let _norm = optimizer.step(lr)?;
            Ok(())
        };
        let texts = recipe.task.reads_texts_alone();
        let kept = if texts { 0 } else { recipe.model.vision.num_patches() };
        Ok(Timed { step: Box::new(step), has_cache: false, kept, macs })
    }

    /// The step, or a part of it, of a task that learns from `teacher`.
    fn distilled(
        args: &Args,
        recipe: &mut Recipe,
        teacher: Clip,
        device: Device,
        pictures: &mut Pictures,
    ) -> anyhow::Result<Timed> {
        recipe.model.follow(teacher.config.vision.out);
        let (student, target) = (recipe.model.vision.clone(), teacher.config.vision.clone());
        let mut built = recipe.clone();
        if args.part == Part::Teacher {
            built.model.vision.depth = 1; // no step of it is taken, and its memory isn't the teacher's
        }
        let task = uta_train::distill(&built, teacher, device)?;
        let task = task.expect("a task with a teacher learns from it");
        let mut optimizer = match args.part {
            Part::Teacher => None,
            _ => Some(Optimizer::new(&task.parameters(), &recipe.optim)),
        };
        let (precision, lr) = (Precision::from(recipe.train.precision), recipe.optim.lr);
        let first = pictures.next();
        let kept = task.kept(&first, Mode::Train);
        let fixed = autocast(device, precision, || {
            task.target(&first, &task.images(&first), kept.as_ref(), Mode::Train)
        })?;
        let kept = task.present(kept.as_ref()).map_or(student.num_patches(), |kept| kept.size()[1]);
        let part = args.part;
        let cached = match part {
            Part::Cached => Some(Cached::new(&target)?),
            _ => None,
        };
        let has_cache = cached.is_some();
        let step = move |batch: &Batch, live: bool| {
            autocast(device, precision, || {
                let images = task.images(batch);
                let kept = task.kept(batch, Mode::Train);
                let target = match &cached {
                    Some(cached) if !live => {
                        cached.target(batch, task.present(kept.as_ref()), device)?
                    }
                    _ if part == Part::Student => fixed.shallow_clone(),
                    _ => task.target(batch, &images, kept.as_ref(), Mode::Train)?,
                };
                if part != Part::Teacher {
                    task.loss(&images, kept.as_ref(), &target, Mode::Train).loss.backward();
                }
                Ok::<(), anyhow::Error>(())
            })?;
            if let Some(optimizer) = &mut optimizer {
                let _norm = optimizer.step(lr)?;
            }
            Ok(())
        };
        let macs = match args.part {
            Part::All => target.macs(target.num_patches()) + 3 * student.macs(kept),
            Part::Student | Part::Cached => 3 * student.macs(kept),
            Part::Teacher => target.macs(target.num_patches()),
        };
        Ok(Timed { step: Box::new(step), has_cache, kept, macs })
    }
}

fn measure(
    args: &Args,
    recipe: &Recipe,
    device: Device,
    timed: Timed,
    mut pictures: Pictures,
) -> anyhow::Result<Report> {
    let Timed { mut step, has_cache, kept, macs } = timed;
    let (batch, precision) = (pictures.batch, Precision::from(recipe.train.precision));
    // The seconds that it took.
    let mut step = |batch: &Batch, live: bool| -> anyhow::Result<f64> {
        let began = Instant::now();
        step(batch, live)?;
        wait(device);
        Ok(began.elapsed().as_secs_f64())
    };
    warn_of_bf16(device, precision);
    let plain = Product::new(device, precision);
    for _ in 0..2 {
        step(&pictures.next(), false)?;
        plain.seconds();
    }
    torch_ext::reset_peak_memory(device);
    let (mut seconds, mut live, mut ceilings) = (vec![], vec![], vec![]);
    for _ in 0..args.steps {
        seconds.push(step(&pictures.next(), false)?);
        if has_cache {
            live.push(step(&pictures.next(), true)?);
        }
        ceilings.push(plain.flops() / plain.seconds());
    }
    // On a CPU the largest memory that the process has held.
    let peak_memory = torch_ext::peak_memory(device).or_else(|| super::memory("VmHWM:"));
    let profile = if args.profile {
        let batch = pictures.next();
        let (done, operators) = profile(device, || step(&batch, false));
        done?;
        Some(shares(&operators))
    } else {
        None
    };
    let (seconds, ceiling) = (median(seconds), median(ceilings));
    let rate = 2.0 * macs as f64 * batch as f64 / seconds;
    Ok(Report {
        images_per_second: batch as f64 / seconds,
        live_images_per_second: (!live.is_empty()).then(|| batch as f64 / median(live)),
        task: recipe.task.kind().to_string(),
        part: args.part,
        batch,
        kept: kept as usize,
        precision: if precision == Precision::Bf16 { "bf16" } else { "f32" },
        device: uta_train::device_name(device),
        threads: tch::get_num_threads(),
        seconds,
        gflops: rate / 1e9,
        ceiling_gflops: ceiling / 1e9,
        utilisation: rate / ceiling,
        peak_memory_bytes: peak_memory,
        profile,
    })
}

/// The recipe's teacher, without its text tower; for the student alone, one block of it, that gives targets of the right shape.
fn teacher(args: &Args, recipe: &Recipe, device: Device) -> anyhow::Result<Clip> {
    let teacher = recipe.task.teacher().expect("such tasks have one");
    let random = |vision| Clip::new(&ClipConfig::new(vision, None), device);
    let path = teacher.path.as_ref();
    Ok(match (&teacher.arch, path.filter(|path| path.exists())) {
        (arch, _) if args.part == Part::Student => {
            let like = match arch {
                Some(arch) => VitConfig::preset(arch)?,
                None => VitConfig { ffn: uta_model::Ffn::Gelu, ..recipe.model.vision.clone() },
            };
            random(VitConfig { depth: 1, ..like })
        }
        (arch, Some(path)) => uta_train::load(path, arch.as_deref(), device)?,
        (Some(arch), None) => random(VitConfig::preset(arch)?),
        (None, None) => {
            let path = path.map_or_else(String::new, |path| path.display().to_string());
            let hint = "give random weights with --set teacher.arch=PRESET (eva01-g-14-plus, vit-l-14, ...)";
            return Err(Usage(format!("teacher.path {path}: not there; {hint}")).into());
        }
    })
}

/// Random pictures, each with masks of its own.
struct Pictures {
    batch: usize,
    size: usize,
    step: u64,
}

impl Pictures {
    fn next(&mut self) -> Batch {
        let (b, s) = (self.batch as i64, self.size as i64);
        let pixels = Tensor::randint(256, [b * s * s * 3], (Kind::Uint8, Device::Cpu));
        let first = self.step * self.batch as u64;
        self.step += 1;
        // Texts fill the context, as the products are counted.
        let caption = |position| format!("{position} {}", "is a photo of a thing that".repeat(20));
        let item = |position| Item {
            key: String::new(),
            label: Label::Captions(vec![caption(position)]),
            position,
            index: position as usize,
        };
        Batch {
            index: self.step,
            size: self.size,
            pixels: Vec::try_from(&pixels).expect("a vector of bytes"),
            targets: vec![],
            items: (first..first + self.batch as u64).map(item).collect(),
            rejected: vec![],
            epoch: 0.0,
        }
    }
}

/// A cache of random targets, as `uta cache` lays them out.
struct Cached {
    targets: Targets,
    _dir: tempfile::TempDir,
}

impl Cached {
    /// More images than a batch has, so that they aren't the same in every step.
    const IMAGES: u64 = 64;

    fn new(teacher: &VitConfig) -> anyhow::Result<Cached> {
        let dir = tempfile::tempdir().context("making a temporary folder")?;
        let set = TargetSet {
            dir: dir.path().to_owned(),
            name: "train",
            mark: "bench".into(),
            samples: Cached::IMAGES,
            crops: 1,
            shard_samples: Cached::IMAGES,
            tokens: 1 + teacher.num_patches() as u64,
            width: teacher.out as u64,
            kind: TargetKind::I8,
        };
        let mut writer = TargetWriter::create(&set, 0)?;
        for image in 0..Cached::IMAGES {
            let numbers = [(set.tokens * set.width) as i64];
            let rows = Tensor::randint_low(-127, 128, numbers, (Kind::Int8, Device::Cpu));
            let mut bytes = vec![0; rows.numel()];
            rows.copy_data_u8(&mut bytes, rows.numel());
            writer.put(image, 0, View::new(0, &[]), &bytes)?;
        }
        writer.finish()?;
        Ok(Cached { targets: Targets::open(set)?, _dir: dir })
    }

    /// The rows of a batch's tokens that the student has, read from the files: [B, 1+K, E].
    fn target(
        &self,
        batch: &Batch,
        kept: Option<&Tensor>,
        device: Device,
    ) -> anyhow::Result<Tensor> {
        let set = self.targets.set();
        let kept: Vec<Vec<i64>> = match kept {
            Some(kept) => Vec::try_from(kept)?,
            None => vec![(0..set.tokens as i64 - 1).collect(); batch.len()],
        };
        let mut bytes = vec![];
        for (item, kept) in batch.items.iter().zip(kept) {
            let rows: Vec<u64> =
                std::iter::once(0).chain(kept.into_iter().map(|patch| 1 + patch as u64)).collect();
            self.targets.read((item.position % Cached::IMAGES, 0), &rows, &mut bytes)?;
        }
        Ok(decode_targets(&bytes, batch.len(), set, device))
    }
}

/// The machine's ceiling: a plain matrix product.
pub struct Product {
    square: Tensor,
}

impl Product {
    /// A product of random numbers in the type of `precision`, large enough for the device.
    pub fn new(device: Device, precision: Precision) -> Product {
        let side = if device.is_cuda() { 8192 } else { 2048 };
        let square = Tensor::randn([side, side], (Kind::Float, device));
        Product { square: square.to_kind(precision.kind()) }
    }

    /// FLOPs of one product.
    pub fn flops(&self) -> f64 {
        2.0 * (self.square.size()[0] as f64).powi(3)
    }

    /// The median of a few.
    pub fn seconds(&self) -> f64 {
        let once = || {
            let began = Instant::now();
            let _ = self.square.matmul(&self.square);
            wait(self.square.device());
            began.elapsed().as_secs_f64()
        };
        median((0..5).map(|_| once()).collect())
    }
}

fn wait(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// Kinds of operators, by what their names contain; the first that fits.
const KINDS: [(&str, &[&str]); 6] = [
    (
        "attention",
        &[
            "scaled_dot_product",
            "flash_attention",
            "efficient_attention",
            "cudnn_attention",
            "softmax",
        ],
    ),
    ("products", &["mm", "linear", "convolution", "matmul", "dot"]),
    ("norms", &["norm"]),
    ("optimiser", &["adam", "foreach"]),
    ("activations", &["gelu", "silu", "sigmoid"]),
    (
        "copies",
        &["copy", "cat", "clone", "contiguous", "index", "gather", "embedding", "fill", "zero"],
    ),
];

fn shares(operators: &[OperatorTime]) -> Vec<Share> {
    let all: f64 = operators.iter().map(|o| o.seconds).sum();
    let mut kinds: BTreeMap<&str, (f64, Vec<String>)> = BTreeMap::new();
    for operator in operators {
        let fits = |(_, words): &&(&str, &[&str])| words.iter().any(|w| operator.name.contains(w));
        let kind = KINDS.iter().find(fits).map_or("other", |(kind, _)| kind);
        let (seconds, names) = kinds.entry(kind).or_default();
        *seconds += operator.seconds;
        if names.len() < 4 {
            let name = operator.name.trim_start_matches("aten::");
            names.push(format!("{name} {:.0} ms", 1e3 * operator.seconds));
        }
    }
    let mut shares: Vec<Share> = kinds
        .into_iter()
        .map(|(kind, (seconds, operators))| Share {
            kind,
            share: seconds / all,
            milliseconds: 1e3 * seconds,
            operators,
        })
        .collect();
    shares.sort_by(|a, b| b.share.total_cmp(&a.share));
    shares
}
