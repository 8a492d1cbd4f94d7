//! `uta data get|pack|index|stats|verify|show`: sets made, packed, described and checked. The work is uta-data's; here it meets
//! the terminal.

use std::io::Write;
use std::path::PathBuf;

use anyhow::bail;
use clap::builder::RangedU64ValueParser as AtLeastOne;
use clap::{Args, Subcommand, ValueEnum};
use uta_data::DataError;
use uta_data::emoji;
use uta_data::pack::{PackOptions, pack};
use uta_data::progress::counted;
use uta_data::shards::{Limit, index};
use uta_data::stats::stats;
use uta_data::verify::verify;

use crate::compute::PairArgs;
use crate::output::print;
use crate::show;
use uta_base::AtomicFile;

/// Make, pack, describe and check sets of pictures.
#[derive(Debug, Subcommand)]
pub enum Data {
    /// Make a set of pictures and captions that is free to use
    Get(GetArgs),
    /// Pack a folder of images into WebDataset shards
    Pack(PackArgs),
    /// Write an index beside each shard that lacks one, so that runs start at once
    Index(IndexArgs),
    /// Say what is in a set
    Stats(StatsArgs),
    Verify(VerifyArgs),
    Show(show::Args),
}

/// Arguments of `uta data get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// Which set
    #[arg(value_enum)]
    set: Set,
    /// The folder to make [default: data/emoji]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Side of the pictures in pixels, 16 to 1024 [default: 64]
    #[arg(long, value_name = "N")]
    size: Option<u32>,
    /// Where downloaded packages are kept [default: data/cache/npm]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Use what was downloaded before, and nothing else
    #[arg(long)]
    offline: bool,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// The sets that `uta data get` knows.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Set {
    /// Emoji drawn in seven styles, two of them held out, with names and tags (npm; 30 MB)
    Emoji,
}

/// Arguments of `uta data pack`.
#[derive(Debug, Args)]
pub struct PackArgs {
    /// Images, with captions in a .txt beside each, or in class folders
    dir: PathBuf,
    /// Where the shards go
    #[arg(long, value_name = "SHARDS")]
    out: PathBuf,
    /// Samples a shard
    #[arg(long, value_name = "N", default_value_t = Limit::default().samples, value_parser = AtLeastOne::<usize>::new().range(1..))]
    shard_samples: usize,
    /// Bytes a shard
    #[arg(long, value_name = "N", default_value_t = Limit::default().bytes, value_parser = clap::value_parser!(u64).range(1..))]
    shard_bytes: u64,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// Arguments of `uta data index`.
#[derive(Debug, Args)]
pub struct IndexArgs {
    /// Shards: a folder, a .tar, a pattern
    shards: String,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// Arguments of `uta data stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Shards (a folder, a .tar, a pattern), a folder of images or of class folders, tables of pairs; several are joined
    #[arg(value_name = "D", required = true)]
    data: Vec<String>,
    #[command(flatten)]
    pairs: PairArgs,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// Read and decode all of a set, and say what is wrong with it
///
/// Every sample is read, on all cores, and its image decoded to the last pixel; nothing is changed.
/// These kinds of faults are counted, and the first few of each named:
///
///   unreadable  a file that is gone, or that the system will not read
///   shard       a tar that is cut, damaged or lacks members; an index, sizes.json, __len__ or
///               img2dataset's NAME_stats.json that says other than the tar
///   image       no image, or one that is damaged, cut short or too large
///   caption     none, or no UTF-8, in a set one of whose first hundred samples has one
///   metadata    no class, in such a set; a class or a .json that makes no sense
///   duplicate   a key that comes more than once in its shard
///
/// A training run leaves out and replaces what is named here (all but duplicates), so a few
/// faults need no mending.
///
/// The exit status is 0 where all is well, 1 where something is wrong, 2 where there is no such data.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct VerifyArgs {
    /// Shards (a folder, a .tar, a pattern), a folder of images or of class folders, tables of pairs; each on its own
    #[arg(required = true)]
    data: Vec<String>,
    #[command(flatten)]
    pairs: PairArgs,
    /// Write every fault to a file, a line of JSON each, as a run's rejected.jsonl has them
    #[arg(long, value_name = "FILE.jsonl")]
    report: Option<PathBuf>,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// Runs a data command and prints what came of it.
pub fn run(data: Data) -> anyhow::Result<()> {
    match data {
        Data::Get(GetArgs { set: Set::Emoji, out, size, cache, offline, json }) => {
            let default = emoji::Options::default();
            let report = emoji::get(&emoji::Options {
                out: out.unwrap_or(default.out),
                size: size.unwrap_or(default.size),
                cache: cache.unwrap_or(default.cache),
                offline,
            })?;
            print(json, &report)
        }
        Data::Pack(args) => {
            let limit = Limit { samples: args.shard_samples, bytes: args.shard_bytes };
            let packed = pack(&args.dir, &args.out, &PackOptions { limit, progress: true })?;
            print(args.json, &packed)
        }
        Data::Index(args) => print(args.json, &index(&args.shards)?),
        Data::Stats(args) => {
            let source = uta_data::open_with(&args.data, &args.pairs.options(&args.data)?)?;
            let stats = stats(&source, true)?;
            print(args.json, &stats)
        }
        Data::Show(args) => show::run(&args),
        Data::Verify(VerifyArgs { data, pairs, report, json }) => {
            let pairs = pairs.options(&data)?;
            let mut faults = match &report {
                Some(path) => Some((
                    path,
                    AtomicFile::create_or_write_through(path)
                        .map_err(DataError::io("create", path))?,
                )),
                None => None,
            };
            let verified = verify(&data, &pairs, true, |rejected| match &mut faults {
                // As what a run finds before its first step.
                Some((path, out)) => out
                    .write_all(rejected.line(0).as_bytes())
                    .map_err(DataError::io("write", path.as_path())),
                None => Ok(()),
            })?;
            if let Some((path, out)) = faults {
                out.finish().map_err(DataError::io("write", path))?;
            }
            print(json, &verified)?;
            match verified.count() {
                0 => Ok(()),
                faults => bail!("{}: {}", data.join(" "), counted(faults, "fault")),
            }
        }
    }
}
