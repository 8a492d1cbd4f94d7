//! Options and helpers that commands which run a network share: model, data, device, precision.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use clap::{Args, ValueEnum};
use tch::Device;
use torch_ext::Precision;
use torch_ext::distributed::ProcessGroup;
use uta_data::{Captions, DecodeOptions, MAX_PIXELS, PairOptions};
use uta_eval::{EvalOptions, Progress};
use uta_model::Clip;
use uta_train::recipe::{MAX_IMAGES, MAX_THREADS};

use crate::error::Usage;

/// `--model` and `--arch`.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// A run directory, a folder of open_clip, Hugging Face or timm, or a file of weights (.safetensors, .pt, .pth, .bin)
    #[arg(long = "model", value_name = "M")]
    pub path: PathBuf,
    /// Architecture, where the file alone can't tell: a preset or a configuration file
    #[arg(long, value_name = "NAME|FILE")]
    pub arch: Option<String>,
}

impl ModelArgs {
    /// The model, on `device`.
    pub fn load(&self, device: Device) -> anyhow::Result<Clip> {
        Ok(uta_train::load(&self.path, self.arch.as_deref(), device)?)
    }
}

/// How tables of pairs (.csv, .tsv, .jsonl, .json, .parquet, .txt), and the .txt beside images, are read.
#[derive(Clone, Debug, Args)]
pub struct PairArgs {
    /// The images of a table, nothing outside of it being read [default: paths as they are written, from its own folder]
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// The table's column of image files, or of their bytes (Parquet) [default: filepath]
    #[arg(long, value_name = "KEY")]
    image_key: Option<String>,
    /// The table's column of captions, or of lists of them (JSON, Parquet) [default: title]
    #[arg(long, value_name = "KEY")]
    caption_key: Option<String>,
    /// Which of the table's splits: test, val, ...
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// Meaning of the .txt beside an image, in a folder or a shard: one caption, or one a line [default: lines]
    #[arg(long, value_enum, value_name = "file|lines", hide_possible_values = true)]
    captions: Option<CaptionsArg>,
}

/// `--captions`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum CaptionsArg {
    File,
    Lines,
}

impl PairArgs {
    /// These options as uta-data takes them.
    ///
    /// # Errors
    /// An option that is for tables only, where `data` has none.
    pub fn options(&self, data: &[String]) -> Result<PairOptions, Usage> {
        let PairArgs { images, image_key, caption_key, split, captions } = self.clone();
        let captions = captions.map(|captions| match captions {
            CaptionsArg::File => Captions::File,
            CaptionsArg::Lines => Captions::Lines,
        });
        let options = PairOptions { images, image_key, caption_key, split, captions };
        if options.of_table().is_plain() || data.iter().any(uta_data::is_table) {
            return Ok(options);
        }
        let data = data.join(" ");
        let message = "--images, --image-key, --caption-key and --split are for tables of pairs";
        Err(Usage(format!("{data} is no table: {message}")))
    }
}

/// Does `work` together with the other processes of a launcher: all of them succeed, or all fail. Only the first one is to
/// print and write.
pub fn together(work: impl FnOnce(&Rc<ProcessGroup>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let group = ProcessGroup::from_env()?;
    group.agree(work(&group))
}

/// Warns where the CPU has no instructions for bf16.
pub fn warn_of_bf16(device: Device, precision: Precision) {
    if device == Device::Cpu && precision == Precision::Bf16 && !torch_ext::cpu_has_bf16() {
        tracing::warn!(
            "this CPU has no instructions for bf16, which is many times slower than f32 here"
        );
    }
}

/// How pictures are read, and a network is run.
#[derive(Debug, Args)]
pub struct ComputeArgs {
    /// Images a forward pass; changes no result beyond rounding
    #[arg(long, value_name = "N", default_value_t = 256)]
    batch: usize,
    /// Decoding threads [default: all cores]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Type that the networks compute in
    #[arg(long, value_enum, default_value_t = PrecisionArg::F32)]
    precision: PrecisionArg,
    /// auto, cpu, cuda (with several processes, each its own) or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Pictures of more pixels are left out
    #[arg(long, value_name = "N", default_value_t = MAX_PIXELS, value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    max_pixels: u64,
    /// Turn pictures as their EXIF orientation says; CLIP's own pipelines leave them as they are
    #[arg(long)]
    orient: bool,
}

/// `--precision`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PrecisionArg {
    F32,
    Bf16,
}

impl ComputeArgs {
    /// The device and the options that were asked for, this process being one of `group`. Its first shows progress.
    pub fn options(&self, group: &Rc<ProcessGroup>) -> anyhow::Result<(Device, EvalOptions)> {
        for (name, n, most) in
            [("--batch", Some(self.batch), MAX_IMAGES), ("--workers", self.workers, MAX_THREADS)]
        {
            if let Some(n) = n.filter(|n| !(1..=most).contains(n)) {
                return Err(Usage(format!("{name} {n}: must be from 1 to {most}")).into());
            }
        }
        let device = uta_train::device(&self.device, group.local_rank())
            .map_err(|message| Usage(format!("--device {message}")))?;
        group.use_device(device)?;
        let precision = match self.precision {
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::Bf16 => Precision::Bf16,
        };
        if group.is_first() {
            warn_of_bf16(device, precision);
        }
        let mut options = EvalOptions {
            batch: self.batch,
            precision,
            decode: DecodeOptions { max_pixels: self.max_pixels, orient: self.orient },
            group: group.clone(),
            progress: group.is_first().then(progress),
            ..EvalOptions::default()
        };
        if let Some(workers) = self.workers {
            options.workers = workers;
        }
        Ok((device, options))
    }
}

/// A bar a stage on standard error; none where that is no terminal.
fn progress() -> Progress {
    let shown: Mutex<Option<(&'static str, indicatif::ProgressBar)>> = Mutex::new(None);
    Arc::new(move |stage, done, total| {
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, bar) = match shown.take() {
            Some((known, bar)) if known == stage => shown.insert((stage, bar)),
            _ => shown.insert((stage, uta_data::progress::bar(total as u64, 0, stage))),
        };
        bar.set_position(done as u64);
        if done >= total {
            bar.finish_and_clear();
            *shown = None;
        }
    })
}
