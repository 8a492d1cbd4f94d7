//! `uta bench`: how fast this machine is, part by part.

mod data;
mod step;

use clap::Subcommand;

/// Measure speed
#[derive(Debug, Subcommand)]
pub enum Bench {
    Data(data::Args),
    Step(step::Args),
}

/// Runs the command.
pub fn run(bench: &Bench) -> anyhow::Result<()> {
    match bench {
        Bench::Data(args) => data::run(args),
        Bench::Step(args) => step::run(args),
    }
}
