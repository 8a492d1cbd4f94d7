//! `uta bench`: how fast this machine is, part by part.

mod data;
mod step;

use clap::Subcommand;

pub use step::Product;

/// Measure speed
#[derive(Debug, Subcommand)]
pub enum Bench {
    Data(data::Args),
    Step(step::Args),
}

/// Bytes of this process's memory under a name of proc(5), where the system tells them.
fn memory(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(1024 * line.split_whitespace().next()?.parse::<u64>().ok()?)
}

/// Runs the command.
pub fn run(bench: &Bench) -> anyhow::Result<()> {
    match bench {
        Bench::Data(args) => data::run(args),
        Bench::Step(args) => step::run(args),
    }
}
