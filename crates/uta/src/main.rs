//! `uta`: Unmasked Token Alignment from the command line. Each command is a module; this file only dispatches.

mod chart;
mod data;
mod demo;
mod error;
mod eval;
mod masks;
mod metrics;
mod plot;
mod report;
mod train;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};

/// Unmasked Token Alignment: train a vision transformer from scratch against a frozen CLIP, and use it zero-shot
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Debug, Subcommand)]
enum Commands {
    /// The method end to end on real pictures, on this machine
    Demo(demo::Args),
    Train(train::Args),
    /// Measure a model: zero-shot, retrieval, alignment with a teacher
    #[command(subcommand)]
    Eval(eval::Eval),
    #[command(subcommand)]
    Data(data::Data),
    Masks(masks::Args),
    Plot(plot::Args),
}

impl Commands {
    /// Whether it runs a network.
    fn computes(&self) -> bool {
        matches!(self, Commands::Demo(_) | Commands::Train(_) | Commands::Eval(_))
    }
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if command.computes() {
        wait_passively();
    }
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("UTA_LOG")
                .unwrap_or_else(|_| "info".into()),
        )
        .with_target(false)
        .without_time()
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(uta_data::progress::LogWriter::default)
        .init();
    let done = match command {
        Commands::Demo(args) => demo::run(args),
        Commands::Train(args) => train::run(args),
        Commands::Eval(args) => eval::run(args),
        Commands::Data(args) => data::run(args),
        Commands::Masks(args) => masks::run(&args),
        Commands::Plot(args) => plot::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("uta: {}", error::one_line(&error));
            ExitCode::from(error::exit_status(&error))
        }
    }
}

/// OpenMP's threads spin while they wait, which starves the decoding threads: with two cores a step takes five times as
/// long. libgomp reads its settings when it is loaded, before `main`, so the process starts itself again with them.
fn wait_passively() {
    const POLICY: &str = "OMP_WAIT_POLICY";
    if std::env::var_os(POLICY).is_some() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        // Returns only if it failed; then the run is slower, no more.
        let _ =
            Command::new(program).args(std::env::args_os().skip(1)).env(POLICY, "passive").exec();
    }
}
