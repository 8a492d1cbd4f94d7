//! `uta cache RECIPE`: a teacher's targets, computed once. The work is uta-train's; here it meets the terminal.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;
use uta_data::progress::counted;
use uta_data::targets::TargetKind;
use uta_train::recipe::{MAX_IMAGES, TaskKind};
use uta_train::{CacheOptions, Made, Recipe, TrainError, make_cache};

use crate::error::Usage;
use crate::output::print;

/// Compute the teacher's targets once, for runs that then need no teacher
///
/// For K seeded crops of every training image, and for every validation image, the teacher's tokens, `[CLS]` and all patches,
/// are stored as the loss sees them. A run with teacher.cache = DIR replays these crops, a different one each epoch and over
/// and over, draws masks anew, and reads the kept tokens' rows alone. The cosine asks for directions only, so a byte a
/// number is enough. It may be interrupted at any time: the same command goes on.
///
/// An image takes K x ((1 + patches) x (width + 4) + 24) bytes with i8: 264 KB a crop with CLIP g/14 (257 x 1024), 198 KB with
/// L/14 (257 x 768).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  uta cache recipes/mini/uta-emoji.toml --out data/targets --crops 4
  uta train recipes/mini/uta-emoji.toml --set teacher.cache=data/targets
  uta bench step recipes/pretrain/uta-b14-in21k.toml --part cached   # what it would pay")]
pub struct Args {
    /// The recipe (TOML): its teacher, data, transforms, seed and precision
    recipe: PathBuf,
    /// The folder to make, or to go on with
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Crops of each training image; epoch e of a run sees number e modulo K
    #[arg(long, value_name = "K", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=65536))]
    crops: u64,
    /// How a number is stored: a byte without a scale, half or single precision
    #[arg(long, value_enum, value_name = "KIND", default_value_t = Store::I8)]
    store: Store,
    /// Images a shard; what an interruption loses is less than a shard
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    shard_samples: u64,
    /// Images a forward pass of the teacher [default: the recipe's micro-batch]
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u32).range(1..=MAX_IMAGES as i64))]
    batch: Option<u32>,
    /// Read every row that is there already, and make damaged shards anew
    #[arg(long)]
    check: bool,
    /// Override a key of the recipe; may be given often
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    sets: Vec<String>,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// `--store`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Store {
    I8,
    F16,
    F32,
}

/// The cache that was made, and where.
#[derive(Serialize)]
struct Report {
    path: PathBuf,
    #[serde(flatten)]
    made: Made,
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Report { path, made } = self;
        writeln!(
            f,
            "{} in {}, {:.3} GB ({} bytes a training image), in {}",
            counted(made.samples as usize, "image"),
            counted(made.shards as usize, "shard"),
            made.bytes as f64 / 1e9,
            made.bytes_per_image,
            path.display()
        )?;
        writeln!(f, "  there before   {}", counted(made.kept as usize, "shard"))?;
        write!(f, "  computed now   {}", counted(made.computed as usize, "crop"))?;
        if made.computed > 0 {
            write!(f, ", {}", uta_data::progress::images_per_second(made.images_per_second))?;
        }
        writeln!(f)?;
        if made.rejected > 0 {
            writeln!(f, "  unusable       {}", counted(made.rejected as usize, "image"))?;
        }
        if let Some((mean, least)) = made.cosine {
            writeln!(
                f,
                "  cosine         {mean:.6} of stored to exact tokens, {least:.6} at least"
            )?;
        }
        write!(f, "use it with: uta train RECIPE --set teacher.cache={}", path.display())
    }
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let recipe = Recipe::load(&args.recipe, &args.sets)?;
    if !recipe.task.kind().takes_a_cache() {
        let message = format!(
            "task \"{}\" has no teacher whose image tokens could be kept; {} have",
            recipe.task.kind(),
            TaskKind::all_that(TaskKind::takes_a_cache)
        );
        return Err(Usage(format!("{}: {message}", args.recipe.display())).into());
    }
    let options = CacheOptions {
        crops: args.crops,
        kind: match args.store {
            Store::I8 => TargetKind::I8,
            Store::F16 => TargetKind::F16,
            Store::F32 => TargetKind::F32,
        },
        shard_samples: args.shard_samples,
        batch: args.batch.map(|batch| batch as usize),
        check: args.check,
    };
    let made = make_cache(&recipe, &args.out, &options).map_err(with_hint)?;
    print(args.json, &Report { path: args.out.clone(), made })
}

/// A full disk loses nothing.
fn with_hint(error: TrainError) -> anyhow::Error {
    let full = match &error {
        TrainError::Data(uta_data::DataError::Io { source, .. }) => uta_data::is_full(source),
        _ => false,
    };
    match full {
        true => Err::<(), _>(error)
            .context("the disk is full: make room, then run the command again; whole shards stay")
            .expect_err("it was an error"),
        false => error.into(),
    }
}
