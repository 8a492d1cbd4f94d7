//! `uta weights inspect|convert|resize`: what a checkpoint is, and the same net in another program's layout or size.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tch::{Device, Kind};
use uta_base::write_atomically;
use uta_data::Tokenizer;
use uta_data::sha256::{add_file, hex};
use uta_eval::EvalOptions;
use uta_model::{Clip, ClipConfig, Exported, Layout, NetConfig, Origin};

use crate::error::Usage;
use crate::output::print;

/// Look into checkpoints, convert and resize them.
#[derive(Debug, Subcommand)]
pub enum Weights {
    /// Say what a checkpoint is: family, sizes, types, parameters, checksum
    Inspect(InspectArgs),
    /// Write a checkpoint in another program's layout
    Convert(ConvertArgs),
    /// Interpolate a net to another image or patch size
    Resize(ResizeArgs),
}

/// The checkpoint to read.
#[derive(Debug, Args)]
pub struct Input {
    /// A run directory, a folder of open_clip, Hugging Face or timm, or a file of weights (.safetensors, .pt, .pth, .bin)
    #[arg(value_name = "FILE")]
    path: PathBuf,
    /// Architecture, where the file alone can't tell: a preset or a configuration file
    #[arg(long, value_name = "NAME|FILE")]
    arch: Option<String>,
}

impl Input {
    fn open(&self) -> anyhow::Result<Origin> {
        Ok(Origin::open(&self.path, self.arch.as_deref())?)
    }
}

/// Arguments of `uta weights inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    input: Input,
    /// List every tensor, by this program's names
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// Arguments of `uta weights convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    #[command(flatten)]
    input: Input,
    /// The layout to write
    #[arg(long, value_name = "uta|open-clip|eva-clip|timm|hf")]
    to: Layout,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Type of the weights [default: as they are; f32 where there are several]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// Arguments of `uta weights resize`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  uta weights resize runs/b14 --patch-size 16 --out uta-b16           # 14 to 16 pixels a patch, as EVA does
  uta weights resize runs/l14 --image-size 336 --out uta-l14-336")]
pub struct ResizeArgs {
    #[command(flatten)]
    input: Input,
    /// Side of the image, in pixels [default: as it is]
    #[arg(long, value_name = "S")]
    image_size: Option<i64>,
    /// Side of a patch, in pixels [default: as it is]
    #[arg(long, value_name = "P")]
    patch_size: Option<i64>,
    /// The layout to write
    #[arg(long, value_name = "uta|open-clip|eva-clip|timm|hf", default_value = "uta")]
    to: Layout,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

impl From<Dtype> for Kind {
    fn from(dtype: Dtype) -> Kind {
        match dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::Bf16 => Kind::BFloat16,
        }
    }
}

/// Runs a command of `uta weights`.
pub fn run(weights: &Weights) -> anyhow::Result<()> {
    match weights {
        Weights::Inspect(args) => inspect(args),
        Weights::Convert(args) => convert(args),
        Weights::Resize(args) => resize(args),
    }
}

/// The result of `inspect`.
#[derive(Serialize)]
struct Inspection {
    file: PathBuf,
    bytes: u64,
    sha256: String,
    /// The files that this one is an index of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    shards: Vec<Shard>,
    family: &'static str,
    config: NetConfig,
    tensors: usize,
    parameters: i64,
    /// Numbers of each type.
    dtypes: BTreeMap<String, i64>,
    notes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    list: Vec<Listed>,
}

#[derive(Serialize)]
struct Shard {
    file: PathBuf,
    bytes: u64,
    sha256: String,
}

#[derive(Serialize)]
struct Listed {
    name: String,
    shape: Vec<i64>,
    dtype: String,
}

fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let origin = args.input.open()?;
    let tensors = origin.tensors();
    let mut dtypes = BTreeMap::new();
    for tensor in tensors.values() {
        *dtypes.entry(dtype_name(tensor.kind())).or_default() += tensor.numel() as i64;
    }
    let list = tensors.iter().filter(|_| args.tensors).map(|(name, tensor)| Listed {
        name: name.clone(),
        shape: tensor.size(),
        dtype: dtype_name(tensor.kind()),
    });
    let (bytes, sha256) = checksum(&origin.weights)?;
    let shard = |file: &PathBuf| {
        checksum(file).map(|(bytes, sha256)| Shard { file: file.clone(), bytes, sha256 })
    };
    print(
        args.json,
        &Inspection {
            bytes,
            sha256,
            shards: origin.shards().iter().map(shard).collect::<anyhow::Result<_>>()?,
            family: origin.family,
            tensors: tensors.len(),
            parameters: dtypes.values().sum(),
            list: list.collect(),
            dtypes,
            notes: origin.notes.clone(),
            file: origin.weights,
            config: origin.config,
        },
    )
}

impl Display for Inspection {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "file        {}", self.file.display())?;
        writeln!(f, "            {} bytes, sha256 {}", self.bytes, self.sha256)?;
        for Shard { file, bytes, sha256 } in &self.shards {
            writeln!(f, "weights     {}", file.display())?;
            writeln!(f, "            {bytes} bytes, sha256 {sha256}")?;
        }
        writeln!(f, "family      {}", self.family)?;
        match &self.config {
            NetConfig::Clip(config) => describe_clip(config, f)?,
        }
        let dtypes: Vec<String> =
            self.dtypes.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
        write!(f, "tensors     {}: {}", self.tensors, dtypes.join(", "))?;
        for note in &self.notes {
            write!(f, "\nassumed     {note}")?;
        }
        for Listed { name, shape, dtype } in &self.list {
            write!(f, "\n{dtype:<5} {name} {shape:?}")?;
        }
        Ok(())
    }
}

/// The lines on a CLIP's sizes.
fn describe_clip(config: &ClipConfig, f: &mut Formatter<'_>) -> fmt::Result {
    let v = &config.vision;
    writeln!(
        f,
        "image       {} x {} pixels in patches of {}: {} patches",
        v.image_size,
        v.image_size,
        v.patch_size,
        v.num_patches()
    )?;
    writeln!(
        f,
        "            width {}, {} blocks, {} heads of {}, {} {} inside, {} out",
        v.width,
        v.depth,
        v.heads,
        v.head_width(),
        serde_json::to_value(v.ffn).ok().as_ref().and_then(|v| v.as_str()).unwrap_or("mlp"),
        v.hidden,
        v.out
    )?;
    writeln!(f, "            {}", EvalOptions::default().transform(config))?;
    match &config.text {
        None => writeln!(f, "text        none"),
        Some(t) => writeln!(
            f,
            "text        {} tokens of {}, width {}, {} blocks, {} heads, {} out",
            t.context_length, t.vocab_size, t.width, t.layers, t.heads, t.out
        ),
    }
}

/// Result of `convert` and `resize`.
#[derive(Serialize)]
struct Written {
    from: PathBuf,
    family: &'static str,
    to: &'static str,
    files: Vec<PathBuf>,
    dtype: String,
    /// Our names of what the layout has no place for.
    left_out: Vec<String>,
    notes: Vec<String>,
    /// Settings that the layout has no words for.
    unsaid: Vec<String>,
    /// The lines of Python that load it.
    python: Vec<String>,
    /// Tensors that were interpolated: name, former shape, new shape.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    resized: Vec<(String, Vec<i64>, Vec<i64>)>,
}

impl Display for Written {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Written { from, family, to, dtype, .. } = self;
        write!(f, "{} ({family}) -> {to}, {dtype}", from.display())?;
        for (name, before, after) in &self.resized {
            write!(f, "\nresized     {name} {before:?} -> {after:?}")?;
        }
        for file in &self.files {
            write!(f, "\nwritten     {}", file.display())?;
        }
        if let [first, ..] = &self.left_out[..] {
            let count = self.left_out.len();
            write!(f, "\nleft out    {count} tensors that {to} has no place for, {first} ...")?;
        }
        self.unsaid.iter().try_for_each(|note| write!(f, "\nunsaid      {note}"))?;
        self.notes.iter().try_for_each(|note| write!(f, "\nassumed     {note}"))?;
        write!(f, "\nin Python:")?;
        self.python.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

impl Written {
    fn new(
        from: PathBuf,
        family: &'static str,
        kind: Kind,
        notes: Vec<String>,
        e: Exported,
    ) -> Self {
        Written {
            from,
            family,
            to: e.family,
            files: e.files,
            dtype: dtype_name(kind),
            left_out: e.left_out,
            notes,
            unsaid: e.notes,
            python: e.python,
            resized: Vec::new(),
        }
    }
}

fn convert(args: &ConvertArgs) -> anyhow::Result<()> {
    let origin = args.input.open()?;
    let kind = args.dtype.map_or_else(|| stored_kind(&origin), Kind::from);
    check_out(&args.out, &origin.weights)?;
    let (from, family) = (origin.weights.clone(), origin.family);
    let clip = origin.into_clip(Device::Cpu)?;
    let exported = export(&clip, args.to, &args.out, kind)?;
    print(args.json, &Written::new(from, family, kind, clip.notes, exported))
}

fn resize(args: &ResizeArgs) -> anyhow::Result<()> {
    let origin = args.input.open()?;
    let v = &origin.clip_config("uta weights resize")?.vision;
    let (image, patch) =
        (args.image_size.unwrap_or(v.image_size), args.patch_size.unwrap_or(v.patch_size));
    if (image, patch) == (v.image_size, v.patch_size) {
        let message = format!(
            "the net has images of {image} pixels and patches of {patch} already; give --image-size or --patch-size"
        );
        return Err(Usage(message).into());
    }
    let kind = stored_kind(&origin);
    check_out(&args.out, &origin.weights)?;
    let (from, family) = (origin.weights.clone(), origin.family);
    let clip = origin.into_clip(Device::Cpu)?;
    let resized = clip.resized(image, patch)?;
    let exported = export(&resized.clip, args.to, &args.out, kind)?;
    let written = Written::new(from, family, kind, clip.notes, exported);
    print(args.json, &Written { resized: resized.changed, ..written })
}

/// Writes the net and, where the layout's program looks for them beside it, the tokeniser's files; for this program's own
/// layout a loader too.
fn export(clip: &Clip, layout: Layout, dir: &Path, kind: Kind) -> anyhow::Result<Exported> {
    let mut exported = clip.export(layout, dir, Some(kind))?;
    let mut more = vec![];
    if let Some(t) = clip.config.text.as_ref().filter(|_| clip.wants_tokenizer(layout)) {
        let tokenizer = Tokenizer::new(t.vocab_size as usize, t.context_length as usize)?;
        for (name, text) in tokenizer.hugging_face() {
            let path = dir.join(name);
            write_atomically(&path, text.as_bytes())
                .with_context(|| format!("writing {}", path.display()))?;
            more.push(path);
        }
    }
    if layout == Layout::Uta {
        more.push(Clip::save_loader(dir)?);
        exported.notes.push(
            "no other program reads this layout; uta_model.py beside it loads the net in PyTorch"
                .into(),
        );
    }
    exported.files.splice(0..0, more);
    Ok(exported)
}

/// Refuses a folder that holds a model already: half-way through, it would be neither the old nor the new one.
fn check_out(out: &Path, weights: &Path) -> Result<(), Usage> {
    let own = weights.parent().and_then(|dir| dir.canonicalize().ok());
    let same = own.is_some() && out.canonicalize().ok() == own;
    let holds = ["config.json", "open_clip_config.json"].iter().any(|name| out.join(name).exists());
    if !same && !holds {
        return Ok(());
    }
    Err(Usage(format!("--out {}: holds a model already; give a new folder", out.display())))
}

/// The one type of all weights; f32 where there are several.
fn stored_kind(origin: &Origin) -> Kind {
    let mut kinds = origin.tensors().values().filter(|t| t.is_floating_point()).map(|t| t.kind());
    let first = kinds.next().unwrap_or(Kind::Float);
    if kinds.all(|kind| kind == first) { first } else { Kind::Float }
}

fn dtype_name(kind: Kind) -> String {
    match kind {
        Kind::Float => "f32".into(),
        Kind::Half => "f16".into(),
        Kind::BFloat16 => "bf16".into(),
        Kind::Double => "f64".into(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// Length and SHA-256 of a file.
fn checksum(path: &Path) -> anyhow::Result<(u64, String)> {
    let mut hash = Sha256::new();
    let bytes = add_file(&mut hash, path).with_context(|| format!("reading {}", path.display()))?;
    Ok((bytes, hex(&hash.finalize())))
}
