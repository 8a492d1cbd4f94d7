//! `uta bench`: how fast this machine is, part by part.

mod step;

use clap::Subcommand;

/// Measure speed
#[derive(Debug, Subcommand)]
pub enum Bench {
    Step(step::Args),
}

/// Runs the command.
pub fn run(bench: &Bench) -> anyhow::Result<()> {
    match bench {
        Bench::Step(args) => step::run(args),
    }
}
