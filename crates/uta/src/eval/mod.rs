//! `uta eval zeroshot|retrieval|align|table`: from a model and a set on disk to a table, or to one JSON object.

mod align;
mod page;
mod retrieval;
mod setup;
mod table;
mod zeroshot;

use clap::Subcommand;

use crate::compute::together;
use align::{AlignArgs, align};
use retrieval::{RetrievalArgs, retrieval};
use zeroshot::{ZeroshotArgs, zeroshot};

/// Measure a model.
#[derive(Debug, Subcommand)]
pub enum Eval {
    /// Zero-shot classification with class names in templates: top-1, top-5
    Zeroshot(ZeroshotArgs),
    /// Image-text retrieval both ways: recall at 1, 5 and 10
    Retrieval(RetrievalArgs),
    /// Mean cosine between a student's tokens and its teacher's
    Align(AlignArgs),
    /// A table of many models on many sets, beside published values
    Table(table::TableArgs),
}

/// Runs an evaluation and prints what it found.
pub fn run(eval: Eval) -> anyhow::Result<()> {
    match eval {
        Eval::Zeroshot(args) => together(|group| zeroshot(&args, group)),
        Eval::Retrieval(args) => together(|group| retrieval(&args, group)),
        Eval::Align(args) => together(|group| align(&args, group)),
        Eval::Table(args) => table::run(&args),
    }
}
