//! `uta eval table FILE`: many models on many sets, in a paper's layout and beside published values.
//!
//! A cell is what `uta eval zeroshot --json` or `uta eval retrieval --json` prints, run as a process of its own: it is
//! the number that the single command gives, it can be repeated by the command kept with it, and one that runs out of
//! memory takes no other with it. Finished cells are kept, so a table that was interrupted goes on where it was.

mod cell;
mod description;
mod formats;
mod values;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use torch_ext::distributed::ProcessGroup;
use uta_base::write_atomically;

use crate::error::Usage;
use cell::{Gap, cell, has_values};
use description::Table;
use values::Rendered;

/// Arguments of `uta eval table`.
#[derive(Debug, Args)]
pub struct TableArgs {
    /// The table: recipes/tables/table1.toml, or one of your own
    #[arg(value_name = "FILE")]
    table: PathBuf,
    /// The folder of the models, each by its name in the table
    #[arg(long, value_name = "DIR", default_value = "models")]
    models: PathBuf,
    /// The folder of the sets, each by its path in the table
    #[arg(long, value_name = "DIR", default_value = "data")]
    data: PathBuf,
    /// Where the table and its cells go [default: runs/ and the table's name]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only these models, by their names in the table
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// Measure again what has been measured
    #[arg(long)]
    fresh: bool,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
    /// Options of every cell, as for the single command: -- --precision bf16 --batch 64
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<String>,
}

/// Measures the cells that are not stored yet, writes the table, and prints it.
pub fn run(args: &TableArgs) -> anyhow::Result<()> {
    if ProcessGroup::launched()? > 1 {
        let message = "a table's cells are processes of their own, one after the other; start it once, without a launcher";
        return Err(Usage(message.into()).into());
    }
    let mut table = Table::read(&args.table)?;
    if let Some(name) = args.only.iter().find(|name| table.models.iter().all(|m| m.name != **name))
    {
        let names: Vec<&str> = table.models.iter().map(|model| model.name.as_str()).collect();
        return Err(Usage(format!("--only {name}: the models are {}", names.join(", "))).into());
    }
    if !args.only.is_empty() {
        table.models.retain(|model| args.only.contains(&model.name));
    }
    let stem = args.table.file_stem().unwrap_or_default();
    let out = args.out.clone().unwrap_or_else(|| Path::new("runs").join(stem));
    let cells = out.join("cells");
    std::fs::create_dir_all(&cells).map_err(|e| Usage(format!("--out {}: {e}", out.display())))?;

    let bar = uta_data::progress::bar((table.models.len() * table.sets.len()) as u64, 0, "cells");
    let (mut reports, mut gaps) = (BTreeMap::new(), vec![]);
    for model in &table.models {
        for set in &table.sets {
            bar.set_message(format!("{} on {}", model.name, set.name));
            let found = cell(args, table.measure, model, set, &cells)?;
            match found.and_then(|report| has_values(&table, set, &report).map(|()| report)) {
                Ok(report) => {
                    drop(reports.insert((model.name.as_str(), set.name.as_str()), report))
                }
                Err(reason) => {
                    gaps.push(Gap { model: model.name.clone(), set: set.name.clone(), reason })
                }
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();

    let page = Rendered::new(&table, &reports, gaps);
    for (extension, text) in [("md", page.markdown()), ("csv", page.csv()?), ("tex", page.latex())]
    {
        let file = out.join(stem).with_extension(extension);
        write(&file, &text)?;
    }
    if args.json {
        super::page::line(&mut std::io::stdout().lock(), &page.json())?
    } else {
        let mut stdout = std::io::stdout().lock();
        write!(stdout, "{}", page.terminal())?;
        writeln!(
            stdout,
            "\nwritten  {}.{{md,csv,tex}}, cells in {}",
            out.join(stem).display(),
            cells.display()
        )?;
    }
    page.complete()
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    write_atomically(path, text.as_bytes()).with_context(|| path.display().to_string())
}
