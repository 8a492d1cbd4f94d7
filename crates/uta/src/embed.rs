//! `uta embed`: pictures or texts to vectors in a safetensors file.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use clap::Args as ClapArgs;
use tch::Device;
use torch_ext::distributed::ProcessGroup;
use uta_data::Source;
use uta_eval::{EvalOptions, embed_images, embed_texts};
use uta_model::{Clip, safetensors_io};

use crate::compute::{ComputeArgs, ModelArgs, together};
use crate::error::Usage;

/// Bytes that names may take in a safetensors header, which readers refuse beyond 100 MB.
const MOST_LETTERS: usize = 90_000_000;

/// Write the embeddings of pictures or of texts to a file
///
/// `embeddings` [N, E] holds f32 rows, not normalised, in the order of sorted file names (folder by folder, as given) or of lines; the file's metadata
/// has the `names` in that order, as a JSON list. A picture that can't be read is named and left out.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  uta embed --model runs/demo --images ~/photos --out photos.safetensors
  uta embed --model ViT-B-32.pt --texts prompts.txt --out prompts.safetensors
  uta embed --model M --images a.jpg b.jpg --tokens --layer 10 --out tokens.safetensors

In Python: safetensors.numpy.load_file(\"photos.safetensors\")[\"embeddings\"]")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Folders of pictures, shards, or picture files
    #[arg(long, value_name = "DIR|FILE", num_args = 1.., required_unless_present = "texts")]
    images: Vec<String>,
    /// A text a line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["images", "tokens", "layer"])]
    texts: Option<PathBuf>,
    /// Refuse a text longer than the context, as OpenAI's code does, instead of cutting it, as open_clip does
    #[arg(long, requires = "texts")]
    whole_texts: bool,
    /// The file to write, NAME.safetensors
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Add `tokens` [N, 1+P, E]: every token, that of the class first, after the norm and the head
    #[arg(long)]
    tokens: bool,
    /// Add `hidden` [N, 1+P, D]: every token after so many blocks, before the final norm
    #[arg(long, value_name = "N")]
    layer: Option<usize>,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    together(|group| embed(args, group))
}

fn embed(args: &Args, group: &Rc<ProcessGroup>) -> anyhow::Result<()> {
    let (device, options) = args.compute.options(group)?;
    let options = EvalOptions { whole_texts: args.whole_texts, ..options };
    if args.out.extension().is_some_and(|extension| extension != "safetensors") {
        let (out, named) = (args.out.display(), args.out.with_extension("safetensors"));
        let message = format!("--out {out}: the file is safetensors: call it {}", named.display());
        return Err(Usage(message).into());
    }
    let folder = args.out.parent().filter(|dir| !dir.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        let (out, folder) = (args.out.display(), folder.display());
        return Err(Usage(format!("--out {out}: there is no folder {folder}")).into());
    }
    let (names, tensors) = match &args.texts {
        Some(path) => {
            let text = fs::read_to_string(path)
                .map_err(|e| Usage(format!("--texts {}: {e}", path.display())))?;
            let lines = uta_data::without_mark(&text).lines();
            let lines: Vec<String> = lines.map(str::to_owned).collect();
            if lines.iter().all(|line| line.trim().is_empty()) {
                let path = path.display();
                return Err(Usage(format!(
                    "--texts {path}: holds no text; a text a line is needed"
                ))
                .into());
            }
            check_names("--texts", lines.len(), lines.iter().map(String::len).sum())?;
            let model = args.model.load(device)?;
            let embeddings = embed_texts(&model, &lines, &options)?.to_device(Device::Cpu);
            (lines, vec![("embeddings".to_owned(), embeddings)])
        }
        None => {
            let source = open(&args.images)?;
            // A thousand shards are not read for their keys, whose length some of them show.
            const LOOKED_AT: usize = 16;
            let some = (0..LOOKED_AT).map(|i| i * source.len() / LOOKED_AT);
            let key = some.map(|i| source.key(i).len()).max().unwrap_or(0);
            let length = |i| source.name(i).map_or(key, |name| name.len());
            check_names("--images", source.len(), (0..source.len()).map(length).sum())?;
            let mut model = args.model.load(device)?;
            check_layer(args.layer, &model)?;
            model.freeze(options.precision);
            let found = embed_images(&model, &source, &options, args.tokens, args.layer)?;
            let mut tensors = vec![("embeddings".to_owned(), found.embeddings)];
            tensors.extend(found.tokens.map(|tokens| ("tokens".to_owned(), tokens)));
            tensors.extend(found.hidden.map(|hidden| ("hidden".to_owned(), hidden)));
            (found.names, tensors)
        }
    };
    if !group.is_first() {
        return Ok(());
    }
    let metadata = BTreeMap::from([("names".to_owned(), serde_json::to_string(&names)?)]);
    safetensors_io::save(&tensors, &args.out, &metadata, None)?;
    let shapes: Vec<String> =
        tensors.iter().map(|(name, tensor)| format!("{name} {:?}", tensor.size())).collect();
    eprintln!("{}: {}", args.out.display(), shapes.join(", "));
    Ok(())
}

/// Sets and single files, the files sorted by name.
fn open(images: &[String]) -> anyhow::Result<Arc<dyn Source>> {
    let file = |path: &&String| PathBuf::from(path).is_file() && !path.ends_with(".tar");
    let (files, sets): (Vec<&String>, Vec<&String>) = images.iter().partition(file);
    match (files.is_empty(), sets.is_empty()) {
        (true, _) => Ok(uta_data::open_all(images)?),
        (false, true) => Ok(uta_data::open_files(files.into_iter().map(PathBuf::from).collect())?),
        (false, false) => {
            // A slip in a name is told as that.
            sets.iter().try_for_each(|set| uta_data::open(set).map(drop))?;
            let message = format!("--images: {} is a file and {} isn't", files[0], sets[0]);
            Err(Usage(message + "; give files, or folders and shards").into())
        }
    }
}

/// Whether `n` names of so many `letters` have room in the file, where each stands between escaped quotes.
fn check_names(option: &str, n: usize, letters: usize) -> Result<(), Usage> {
    if letters + 5 * n <= MOST_LETTERS {
        return Ok(());
    }
    let what = "names are too many for one file's header; embed them in parts";
    Err(Usage(format!("{option}: {n} {what}")))
}

fn check_layer(layer: Option<usize>, model: &Clip) -> Result<(), Usage> {
    let depth = model.config.vision.depth;
    match layer.filter(|&layer| layer as i64 > depth) {
        Some(layer) => Err(Usage(format!("--layer {layer}: the net has layers 0 to {depth}"))),
        None => Ok(()),
    }
}
