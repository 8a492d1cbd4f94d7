//! One cell: a model on a set, measured by a process of its own and kept with the command that made it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Instant, UNIX_EPOCH};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uta_data::sha256::hex;

use super::description::{Measure, Model, Set, Table};
use super::{TableArgs, write};

/// Why a cell is empty.
#[derive(Debug, Serialize)]
pub struct Gap {
    pub model: String,
    pub set: String,
    #[serde(flatten)]
    pub reason: Reason,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// These paths are needed and not there.
    Missing(Vec<String>),
    /// The command's own words.
    Failed(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Missing(paths) => write!(f, "there is no {}", paths.join(", no ")),
            Reason::Failed(message) => f.write_str(message),
        }
    }
}

/// A finished cell, as it is stored.
#[derive(Serialize, Deserialize)]
struct Cell {
    /// The arguments of `uta`.
    command: Vec<String>,
    /// [`stamp`] of the model, the data and the files that the arguments name, when it was measured.
    stamp: String,
    /// The build that measured it.
    program: String,
    seconds: f64,
    report: Value,
}

/// The report of one cell: the kept one where nothing has changed, else measured now and kept.
pub fn cell(
    args: &TableArgs,
    measure: Measure,
    model: &Model,
    set: &Set,
    folder: &Path,
) -> anyhow::Result<Result<Value, Reason>> {
    let path = args.models.join(model.path.as_deref().unwrap_or(Path::new(&model.name)));
    let text = model.text_model.as_ref().map(|text| args.models.join(text));
    let data = args.data.join(&set.data);
    let images = set.images.as_ref().map(|images| args.data.join(images));
    let needed: Vec<&PathBuf> = [&path, &data].into_iter().chain(&text).chain(&images).collect();
    // A pattern of shards is no path; the command will say what it matches.
    let pattern = |path: &Path| path.to_string_lossy().contains(['*', '?', '{']);
    let absent = needed.iter().filter(|path| !path.exists() && !pattern(path));
    let absent: Vec<String> = absent.map(|path| path.display().to_string()).collect();
    if !absent.is_empty() {
        return Ok(Err(Reason::Missing(absent)));
    }

    let shown = |path: &Path| path.display().to_string();
    let mut command: Vec<String> = ["eval", measure.command()].map(String::from).into();
    command.extend(["--model".into(), shown(&path), "--data".into(), shown(&data)]);
    command.extend(text.iter().flat_map(|text| ["--text-model".into(), shown(text)]));
    command.extend(images.iter().flat_map(|images| ["--images".into(), shown(images)]));
    command.extend(set.args.iter().chain(&model.args).chain(&args.options).cloned());
    command.push("--json".into());
    let named: Vec<PathBuf> =
        command.iter().map(PathBuf::from).filter(|path| path.is_file()).collect();
    let stamp = stamp(needed.into_iter().chain(&named));
    let program = uta_eval::program().to_string();

    let file = folder.join(format!("{}--{}.json", model.name, set.name));
    if !args.fresh
        && let Ok(text) = std::fs::read_to_string(&file)
        && let Ok(kept) = serde_json::from_str::<Cell>(&text)
        && (&kept.command, &kept.stamp, &kept.program) == (&command, &stamp, &program)
    {
        return Ok(Ok(kept.report));
    }
    let started = Instant::now();
    let done = Command::new(std::env::current_exe().context("finding this program")?)
        .args(&command)
        .stdin(Stdio::null())
        .output()
        .context("starting a cell")?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty());
        let message = match last {
            Some(line) => line.trim().trim_start_matches("uta: ").to_string(),
            None => done.status.to_string(),
        };
        return Ok(Err(Reason::Failed(message)));
    }
    let report: Value = serde_json::from_slice(&done.stdout).context("reading a cell's result")?;
    let seconds = started.elapsed().as_secs_f64();
    let cell = Cell { command, stamp, program, seconds, report };
    write(&file, &serde_json::to_string_pretty(&cell)?)?;
    Ok(Ok(cell.report))
}

/// Checks that a report on `set` holds the values that the columns show.
pub fn has_values(table: &Table, set: &Set, report: &Value) -> Result<(), Reason> {
    match table.columns.iter().find(|c| c.set == set.name && c.find(report).is_none()) {
        Some(column) => Err(Reason::Failed(format!("its result has no {}", column.value))),
        None => Ok(()),
    }
}

/// Hash of the names, sizes and times of the files at `paths`, which may be patterns, and just below them: it changes when a model
/// or a set does.
fn stamp<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> String {
    let mut seen = Sha256::new();
    let mut add = |path: &Path| {
        if let Ok(found) = path.metadata() {
            let modified =
                found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let time = modified.unwrap_or_default().as_nanos();
            seen.update(format!("{}\0{}\0{time}\n", path.display(), found.len()));
        }
    };
    let paths = paths.into_iter().map(|path| path.to_string_lossy());
    for path in paths.flat_map(|spec| uta_data::expand(&spec).unwrap_or_default()) {
        add(&path);
        let mut below: Vec<PathBuf> =
            path.read_dir().into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        below.sort();
        below.iter().for_each(|path| add(path));
    }
    hex(&seen.finalize()[..8])
}
