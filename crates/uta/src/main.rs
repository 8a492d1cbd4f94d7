//! `uta`: Unmasked Token Alignment from the command line. Each command is a module; this file only dispatches.

/// A line on standard error, in the place of std's, which panics where nobody reads it any more (`2>&1 | head`).
macro_rules! eprintln {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = std::writeln!(std::io::stderr(), $($words)*);
    }};
}

mod bench;
mod cache;
mod compute;
mod data;
mod demo;
mod embed;
mod error;
mod eval;
mod masks;
mod output;
mod plan;
mod reference;
mod report;
mod runtime;
mod show;
mod train;
mod weights;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// The part of `uta --help` on the environment.
const ENVIRONMENT: &str = "Environment:
  UTA_LOG   how much is said on standard error: error, warn, info or debug [default: info]

A mistake of yours ends with status 2, anything else that goes wrong with status 1; each with one line that says why.";

/// Unmasked Token Alignment: train a vision transformer from scratch against a frozen CLIP, and use it zero-shot
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, after_help = ENVIRONMENT)]
struct Cli {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Debug, Subcommand)]
enum Commands {
    /// The method end to end on real pictures, on this machine
    Demo(demo::Args),
    Train(train::Args),
    Cache(cache::Args),
    /// Measure a model: zero-shot, retrieval, alignment with a teacher
    #[command(subcommand)]
    Eval(eval::Eval),
    Embed(embed::Args),
    #[command(subcommand)]
    Weights(weights::Weights),
    #[command(subcommand)]
    Data(data::Data),
    Masks(masks::Args),
    Plan(plan::Args),
    Plot(report::plot::Args),
    #[command(subcommand)]
    Bench(bench::Bench),
}

impl Commands {
    /// Whether it runs a network.
    fn computes(&self) -> bool {
        use Commands::{Bench, Cache, Demo, Embed, Eval, Train};
        matches!(self, Demo(_) | Train(_) | Cache(_) | Eval(_) | Embed(_) | Bench(_))
    }
}

fn main() -> ExitCode {
    let command = match Cli::try_parse().map_err(error::advised) {
        Ok(cli) => cli.command,
        Err(error) => match error::command_line(&error, Cli::command()) {
            Some(mistake) => return failed(&mistake.into()),
            None => error.exit(),
        },
    };
    if command.computes() {
        runtime::restart_with_settings();
    }
    let work = || start_log().and_then(|()| run(command));
    match torch_ext::caught(work).unwrap_or_else(|error| Err(error.into())) {
        Ok(()) => ExitCode::SUCCESS,
        // As a shell reports programs that SIGPIPE ends.
        Err(error) if error::is_closed_pipe(&error) => ExitCode::from(128 + 13),
        Err(error) => failed(&error),
    }
}

/// Prints what is wrong, and returns the exit status.
fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("uta: {}", error::one_line(error));
    ExitCode::from(error::exit_status(error))
}

/// Sends the log to standard error, at the level that `UTA_LOG` names.
fn start_log() -> anyhow::Result<()> {
    let wanted = match std::env::var("UTA_LOG") {
        Ok(wanted) if !wanted.is_empty() => wanted,
        _ => "info".into(),
    };
    // usvg complains about every third drawing of the emoji.
    let filter = EnvFilter::try_new(format!("usvg=off,resvg=off,{wanted}"))
        .map_err(|_| error::Usage(format!("UTA_LOG={wanted}: use error, warn, info or debug")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .without_time()
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(uta_data::progress::LogWriter::default)
        .init();
    Ok(())
}

fn run(command: Commands) -> anyhow::Result<()> {
    match command {
        Commands::Demo(args) => demo::run(args),
        Commands::Train(args) => train::run(args),
        Commands::Cache(args) => cache::run(&args),
        Commands::Eval(args) => eval::run(args),
        Commands::Embed(args) => embed::run(&args),
        Commands::Weights(args) => weights::run(&args),
        Commands::Data(args) => data::run(args),
        Commands::Masks(args) => masks::run(&args),
        Commands::Plan(args) => plan::run(&args),
        Commands::Plot(args) => report::plot::run(&args),
        Commands::Bench(args) => bench::run(&args),
    }
}
