//! `uta eval table FILE`: many models on many sets, in a paper's layout and beside published values.
//!
//! A cell is what `uta eval zeroshot --json` or `uta eval retrieval --json` prints, run as a process of its own: it is
//! the number that the single command gives, it can be repeated by the command kept with it, and one that runs out of
//! memory takes no other with it. Finished cells are kept, so a table that was interrupted goes on where it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Instant, UNIX_EPOCH};

use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use torch_ext::distributed::ProcessGroup;
use uta_data::sha256::hex;
use uta_model::safetensors_io::write_atomically;

use crate::error::Usage;

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

/// A table as its file describes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    title: String,
    /// Which `uta eval` makes the cells.
    measure: Measure,
    /// Whether a last column has the mean of the others.
    #[serde(default)]
    average: bool,
    /// Percent by which two values may differ without a mark, both rounded to the paper's decimal.
    tolerance: f64,
    /// Heads of the columns that say what a model is.
    labels: Vec<String>,
    /// Where the published values are from: `paper`, `open_clip`.
    sources: BTreeMap<String, String>,
    columns: Vec<Column>,
    sets: Vec<Set>,
    models: Vec<Model>,
    /// Texts that models refer to.
    #[serde(default)]
    notes: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Measure {
    Zeroshot,
    Retrieval,
}

impl Measure {
    fn command(self) -> &'static str {
        match self {
            Measure::Zeroshot => "zeroshot",
            Measure::Retrieval => "retrieval",
        }
    }
}

/// A column of values.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Column {
    name: String,
    /// Heads above it, outermost first; equal ones of neighbours are joined.
    #[serde(default)]
    above: Vec<String>,
    /// Which set it is from.
    set: String,
    /// Where in the command's JSON it stands, a share: `top1`, `image_to_text.r1`.
    value: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    name: String,
    /// Below `--data`, or absolute.
    data: PathBuf,
    /// The images of a table of pairs, below `--data` too.
    images: Option<PathBuf>,
    /// What else the command is given.
    #[serde(default)]
    args: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    name: String,
    /// Below `--models`, or absolute; the name when left out.
    path: Option<PathBuf>,
    /// Whose text tower it uses, where it has none: the same.
    text_model: Option<PathBuf>,
    /// What else the command is given.
    #[serde(default)]
    args: Vec<String>,
    /// What it is, under the table's labels.
    labels: Vec<String>,
    /// The paper's percentages, and its average where there is one.
    #[serde(default)]
    paper: Vec<f64>,
    /// open_clip's published percentages.
    #[serde(default)]
    open_clip: Vec<f64>,
    /// Names of notes on it.
    #[serde(default)]
    notes: Vec<String>,
}

impl Table {
    fn read(path: &Path) -> anyhow::Result<Table> {
        let fail = |what: String| Usage(format!("{}: {what}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
        let table: Table = toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            fail(format!("line {line}: {}", e.message()))
        })?;
        table.check().map_err(fail)?;
        Ok(table)
    }

    fn check(&self) -> Result<(), String> {
        if self.columns.is_empty() {
            return Err("no columns".into());
        }
        let sets: Vec<&str> = self.sets.iter().map(|set| set.name.as_str()).collect();
        let models: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
        for names in [&sets, &models] {
            let mut seen = BTreeSet::new();
            for name in names {
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
                    return Err(format!("{name:?} names files: use letters, digits, -, _ and ."));
                }
                if !seen.insert(name) {
                    return Err(format!("two are called {name}"));
                }
            }
        }
        if let Some(model) = self.models.iter().find(|model| model.labels.is_empty()) {
            return Err(format!("model {}: labels is empty; say what the model is", model.name));
        }
        for Column { name, set, above, .. } in &self.columns {
            if !sets.contains(&set.as_str()) {
                return Err(format!(
                    "column {name}: no set is called {set}; there are {}",
                    sets.join(", ")
                ));
            }
            if above.len() != self.columns[0].above.len() {
                return Err(format!(
                    "column {name} has {} heads above it, others another number",
                    above.len()
                ));
            }
        }
        let columns = self.columns.len();
        for Model { name, labels, paper, open_clip, notes, .. } in &self.models {
            let with_average = columns + usize::from(self.average);
            for (what, found, wanted) in [
                ("labels", labels.len(), self.labels.len()),
                ("values of the paper", paper.len(), with_average),
                ("values of open_clip", open_clip.len(), columns),
            ] {
                if found != wanted && (found > 0 || what == "labels") {
                    return Err(format!("model {name}: {found} {what}, not {wanted}"));
                }
            }
            if let Some(note) = notes.iter().find(|note| !self.notes.contains_key(*note)) {
                return Err(format!("model {name}: there is no note {note}"));
            }
        }
        match models.is_empty() {
            true => Err("no models".into()),
            false => Ok(()),
        }
    }

    /// Whether a report on `set` holds what the columns show.
    fn has_values(&self, set: &Set, report: &Value) -> Result<(), Reason> {
        match self.columns.iter().find(|c| c.set == set.name && c.find(report).is_none()) {
            Some(column) => Err(Reason::Failed(format!("its result has no {}", column.value))),
            None => Ok(()),
        }
    }
}

impl Column {
    /// Its percentage in a report.
    fn find(&self, report: &Value) -> Option<f64> {
        let value = self.value.split('.').try_fold(report, |value, key| value.get(key));
        Some(100.0 * value?.as_f64()?)
    }
}

/// Measures what is not measured yet, writes the table, and prints it.
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
            match found.and_then(|report| table.has_values(set, &report).map(|()| report)) {
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
    match args.json {
        true => super::page::line(&mut std::io::stdout().lock(), &page.json())?,
        false => {
            let mut stdout = std::io::stdout().lock();
            write!(stdout, "{}", page.terminal())?;
            writeln!(
                stdout,
                "\nwritten  {}.{{md,csv,tex}}, cells in {}",
                out.join(stem).display(),
                cells.display()
            )?;
        }
    }
    page.complete()
}

/// Why a cell is empty.
#[derive(Debug, Serialize)]
struct Gap {
    model: String,
    set: String,
    #[serde(flatten)]
    reason: Reason,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Reason {
    /// These paths are needed and not there.
    Missing(Vec<String>),
    /// The command's own words.
    Failed(String),
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reason::Missing(paths) => write!(f, "there is no {}", paths.join(", no ")),
            Reason::Failed(message) => f.write_str(message),
        }
    }
}

/// A finished cell, as it is kept.
#[derive(Serialize, Deserialize)]
struct Cell {
    /// The arguments of `uta`.
    command: Vec<String>,
    /// Of the model, the data and the files that the arguments name, when it was measured.
    stamp: String,
    /// Which build measured it.
    program: String,
    seconds: f64,
    report: Value,
}

/// The report of one cell: the kept one where nothing has changed, else measured now and kept.
fn cell(
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

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    write_atomically(path, |file| file.write_all(text.as_bytes()))
        .with_context(|| path.display().to_string())
}

/// Names, sizes and times of what lies at `paths`, patterns among them, and just below: changes when a model or a set does.
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

/// The table with its values, ready to be written in any form.
struct Rendered<'a> {
    table: &'a Table,
    rows: Vec<Row<'a>>,
    /// Notes that a model has, numbered from 1.
    notes: Vec<&'a str>,
    /// What a measured cell left out, a line each.
    caveats: Vec<String>,
    gaps: Vec<Gap>,
}

/// One line: the values of one origin for a model.
struct Row<'a> {
    model: &'a Model,
    origin: Origin,
    values: Vec<Option<Marked>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Uta,
    Paper,
    OpenClip,
}

impl Origin {
    fn name(self) -> &'static str {
        match self {
            Origin::Uta => "uta",
            Origin::Paper => "paper",
            Origin::OpenClip => "open_clip",
        }
    }

    /// A percentage with the decimals that the origin gives.
    fn format(self, value: f64) -> String {
        match self {
            Origin::Paper => format!("{value:.1}"),
            Origin::Uta | Origin::OpenClip => format!("{value:.2}"),
        }
    }
}

/// A percentage, and whether it differs from the paper's and from open_clip's.
#[derive(Clone, Copy, Debug)]
struct Marked {
    value: f64,
    paper: bool,
    open_clip: bool,
}

const PAPER_MARK: &str = "*";
const OPEN_CLIP_MARK: &str = "°";

impl<'a> Rendered<'a> {
    fn new(
        table: &'a Table,
        reports: &BTreeMap<(&str, &str), Value>,
        gaps: Vec<Gap>,
    ) -> Rendered<'a> {
        let mean = |values: &[Option<f64>]| {
            let all: Option<Vec<f64>> = values.iter().copied().collect();
            all.map(|all| all.iter().sum::<f64>() / all.len() as f64)
        };
        let (mut rows, mut notes) = (vec![], vec![]);
        for model in &table.models {
            for note in &model.notes {
                if !notes.contains(&note.as_str()) {
                    notes.push(note);
                }
            }
            let measured = table.columns.iter().map(|column| {
                column.find(reports.get(&(model.name.as_str(), column.set.as_str()))?)
            });
            let mut measured: Vec<Option<f64>> = measured.collect();
            let mut paper: Vec<Option<f64>> = model.paper.iter().map(|&v| Some(v)).collect();
            let mut open_clip: Vec<Option<f64>> =
                model.open_clip.iter().map(|&v| Some(v)).collect();
            if table.average {
                measured.push(mean(&measured));
                open_clip.push(mean(&open_clip).filter(|_| !model.open_clip.is_empty()));
            }
            let width = table.columns.len() + usize::from(table.average);
            paper.resize(width, None);
            open_clip.resize(width, None);
            let differs = |a: f64, b: Option<f64>| {
                let round = |x: f64| (10.0 * x).round() / 10.0;
                b.is_some_and(|b| (round(a) - round(b)).abs() > table.tolerance + 1e-6)
            };
            for (origin, values) in
                [(Origin::Uta, &measured), (Origin::Paper, &paper), (Origin::OpenClip, &open_clip)]
            {
                if origin != Origin::Uta && values.iter().all(Option::is_none) {
                    continue;
                }
                let marked = values.iter().enumerate().map(|(i, value)| {
                    let value = (*value)?;
                    Some(Marked {
                        value,
                        paper: origin == Origin::Uta && differs(value, paper[i]),
                        open_clip: origin != Origin::OpenClip && differs(value, open_clip[i]),
                    })
                });
                rows.push(Row { model, origin, values: marked.collect() });
            }
        }
        let caveats = reports.iter().flat_map(|((model, set), report)| {
            caveats(report).into_iter().map(move |what| format!("{model} on {set}: {what}."))
        });
        Rendered { table, rows, notes, caveats: caveats.collect(), gaps }
    }

    /// Rows of heads, outermost first, each as long as a row of values.
    fn heads(&self) -> Vec<Vec<&str>> {
        let (first, left) = (&self.table.columns[0], self.table.labels.len() + 1);
        let mut heads: Vec<Vec<&str>> = (0..first.above.len())
            .map(|level| {
                let above = self.table.columns.iter().map(|column| column.above[level].as_str());
                std::iter::repeat_n("", left).chain(above).collect()
            })
            .collect();
        let labels = self.table.labels.iter().map(String::as_str).chain(["from"]);
        heads.push(labels.chain(self.table.columns.iter().map(|c| c.name.as_str())).collect());
        if self.table.average {
            let levels = heads.len();
            for (level, head) in heads.iter_mut().enumerate() {
                head.push(if level + 1 == levels { "Average" } else { "" });
            }
        }
        heads
    }

    /// The numbers of a model's notes, like "1, 2".
    fn note_numbers(&self, model: &Model) -> String {
        let number = |note: &String| self.notes.iter().position(|known| known == note);
        let numbers: Vec<String> =
            model.notes.iter().filter_map(number).map(|i| (i + 1).to_string()).collect();
        numbers.join(", ")
    }

    /// What a model is, on the first of its rows; then where the values are from; then the values.
    fn lines(&self) -> Vec<Vec<String>> {
        self.rows
            .iter()
            .map(|row| {
                let mut labels = row.model.labels.clone();
                let numbers = self.note_numbers(row.model);
                if row.origin != Origin::Uta {
                    labels.iter_mut().for_each(String::clear);
                } else if !numbers.is_empty() {
                    let _ = write!(labels[0], " [{numbers}]");
                }
                labels.push(row.origin.name().into());
                labels.extend(row.values.iter().map(|value| match value {
                    None => "–".into(),
                    Some(Marked { value, paper, open_clip }) => {
                        let paper = if *paper { PAPER_MARK } else { "" };
                        let open_clip = if *open_clip { OPEN_CLIP_MARK } else { "" };
                        format!("{}{paper}{open_clip}", row.origin.format(*value))
                    }
                }));
                labels
            })
            .collect()
    }

    /// What is to be said below: marks, sources, notes, gaps.
    fn below(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{PAPER_MARK} differs from the paper's value by more than {} points, {OPEN_CLIP_MARK} from open_clip's; – not measured.",
            self.table.tolerance
        )];
        lines.extend(self.table.sources.iter().map(|(name, source)| format!("{name}: {source}.")));
        let notes = self.notes.iter().zip(1..);
        lines.extend(notes.map(|(note, i)| format!("[{i}] {}", self.table.notes[*note])));
        lines.extend(self.caveats.iter().cloned());
        lines.extend(self.gap_lines());
        lines
    }

    /// A line a reason: the same missing path empties many cells.
    fn gap_lines(&self) -> Vec<String> {
        let mut by_reason: BTreeMap<Reason, Vec<&Gap>> = BTreeMap::new();
        for gap in &self.gaps {
            let reasons = match &gap.reason {
                Reason::Missing(paths) => {
                    paths.iter().map(|path| Reason::Missing(vec![path.clone()])).collect()
                }
                failed => vec![failed.clone()],
            };
            for reason in reasons {
                by_reason.entry(reason).or_default().push(gap);
            }
        }
        let line = |(reason, gaps): (Reason, Vec<&Gap>)| {
            let one = |f: fn(&Gap) -> &str| gaps.iter().all(|gap| f(gap) == f(gaps[0]));
            let place = match (one(|gap| &gap.model), one(|gap| &gap.set)) {
                (true, true) => format!("{} on {}", gaps[0].model, gaps[0].set),
                (true, false) => gaps[0].model.clone(),
                (false, true) => format!("{} models on {}", gaps.len(), gaps[0].set),
                (false, false) => format!("{} cells", gaps.len()),
            };
            format!("gap: {place}: {reason}.")
        };
        by_reason.into_iter().map(line).collect()
    }

    fn terminal(&self) -> String {
        let (heads, mut lines) = (self.heads(), self.lines());
        let left = self.table.labels.len() + 1;
        // Points stand under each other, whatever decimals and marks follow.
        let after = |cell: &str| cell.find('.').map_or(0, |at| cell[at..].chars().count());
        for i in left..lines[0].len() {
            let most = lines.iter().map(|line| after(&line[i])).max().unwrap_or(0);
            for line in &mut lines {
                let pad = most - after(&line[i]);
                line[i].push_str(&" ".repeat(pad));
            }
        }
        let heads: Vec<Vec<String>> =
            heads.iter().map(|head| head.iter().map(|cell| cell.to_string()).collect()).collect();
        let chars = |s: &String| s.chars().count();
        // Heads above are printed once over their columns and need no room of their own.
        let named = heads.last().into_iter().chain(&lines);
        let widths: Vec<usize> = (0..lines[0].len())
            .map(|i| named.clone().map(|row| chars(&row[i])).max().unwrap_or(0))
            .collect();
        let mut page = format!("{}\n\n", self.table.title);
        for (level, head) in heads.iter().enumerate() {
            let mut line = String::new();
            for (i, cell) in head.iter().enumerate() {
                let last = level + 1 == heads.len();
                let repeated = !last && i > 0 && same_head(&heads, level, i);
                if repeated || (!last && cell.is_empty()) {
                    continue;
                }
                let start: usize = widths[..i].iter().map(|w| w + 2).sum();
                let pad = if last && i >= left { widths[i] - chars(cell) } else { 0 };
                let _ = write!(line, "{:1$}{cell}", "", (start + pad).saturating_sub(chars(&line)));
            }
            let _ = writeln!(page, "{}", line.trim_end());
        }
        let _ = writeln!(page, "{}", "-".repeat(widths.iter().map(|w| w + 2).sum::<usize>() - 2));
        for line in &lines {
            let mut text = String::new();
            for (i, cell) in line.iter().enumerate() {
                let gap = " ".repeat(widths[i] - chars(cell));
                let (before, after) =
                    if i < left { ("", gap.as_str()) } else { (gap.as_str(), "") };
                let _ = write!(text, "{before}{cell}{after}  ");
            }
            let _ = writeln!(page, "{}", text.trim_end());
        }
        page.push('\n');
        self.below().iter().for_each(|line| page.push_str(&format!("{line}\n")));
        page
    }

    fn markdown(&self) -> String {
        let cell = |text: &str| text.replace('|', "\\|").replace('*', "\\*");
        let mut page = format!("**{}**\n\n", self.table.title);
        // Markdown has one row of heads: those above are said in each.
        let heads = self.heads();
        let joined = (0..heads[0].len()).map(|i| {
            let parts: Vec<&str> =
                heads.iter().map(|head| head[i]).filter(|h| !h.is_empty()).collect();
            cell(&parts.join(" "))
        });
        let joined: Vec<String> = joined.collect();
        let _ = writeln!(page, "| {} |", joined.join(" | "));
        let left = self.table.labels.len() + 1;
        let rule = (0..joined.len()).map(|i| if i < left { "---" } else { "---:" });
        let _ = writeln!(page, "|{}|", rule.collect::<Vec<_>>().join("|"));
        for line in self.lines() {
            let cells: Vec<String> = line.iter().map(|text| cell(text)).collect();
            let _ = writeln!(page, "| {} |", cells.join(" | "));
        }
        page.push('\n');
        for line in self.below() {
            let _ = writeln!(page, "- {}", cell(&line));
        }
        page
    }

    /// A line a value, marks as columns of their own: for programs.
    fn csv(&self) -> anyhow::Result<String> {
        let mut csv = csv::Writer::from_writer(vec![]);
        csv.write_record([
            "model",
            "from",
            "column",
            "set",
            "percent",
            "differs_from_paper",
            "differs_from_open_clip",
        ])?;
        for row in &self.rows {
            for (i, value) in row.values.iter().enumerate() {
                let (name, set) = match self.table.columns.get(i) {
                    Some(Column { name, above, set, .. }) => {
                        let parts: Vec<&str> =
                            above.iter().chain([name]).map(String::as_str).collect();
                        (parts.join(" "), set.as_str())
                    }
                    None => ("Average".into(), ""),
                };
                let [percent, paper, open_clip] = match value {
                    None => [(); 3].map(|()| String::new()),
                    Some(v) => [v.value.to_string(), v.paper.to_string(), v.open_clip.to_string()],
                };
                csv.write_record([
                    &row.model.name,
                    row.origin.name(),
                    &name,
                    set,
                    &percent,
                    &paper,
                    &open_clip,
                ])?;
            }
        }
        Ok(String::from_utf8(csv.into_inner()?)?)
    }

    /// A `table` for a paper that loads booktabs and graphicx.
    fn latex(&self) -> String {
        let escape = |text: &str| {
            let mut safe = String::new();
            for c in text.chars() {
                match c {
                    '&' | '%' | '$' | '#' | '_' | '{' | '}' => safe.extend(['\\', c]),
                    '\\' => safe.push_str("\\textbackslash{}"),
                    '~' => safe.push_str("\\textasciitilde{}"),
                    '^' => safe.push_str("\\textasciicircum{}"),
                    '*' => safe.push_str("$^{*}$"),
                    '°' => safe.push_str("$^{\\circ}$"),
                    '–' => safe.push_str("--"),
                    c => safe.push(c),
                }
            }
            safe
        };
        let (heads, left) = (self.heads(), self.table.labels.len() + 1);
        let columns = heads[0].len();
        let mut page =
            String::from("% \\usepackage{booktabs,graphicx}\n\\begin{table}\n\\centering\n");
        let _ = writeln!(page, "\\caption{{{}}}", escape(&self.table.title));
        let _ = writeln!(page, "\\resizebox{{\\linewidth}}{{!}}{{%");
        let _ = writeln!(
            page,
            "\\begin{{tabular}}{{{}{}}}",
            "l".repeat(left),
            "r".repeat(columns - left)
        );
        page.push_str("\\toprule\n");
        let whole: Vec<Vec<String>> =
            heads.iter().map(|head| head.iter().map(|cell| cell.to_string()).collect()).collect();
        for (level, head) in heads.iter().enumerate() {
            let last = level + 1 == heads.len();
            let (mut cells, mut rules, mut i) = (vec![], String::new(), 0);
            while i < columns {
                let mut end = i + 1;
                while !last && end < columns && same_head(&whole, level, end) {
                    end += 1;
                }
                cells.push(match end - i {
                    _ if head[i].is_empty() => "& ".repeat(end - i - 1).trim_end().to_string(),
                    1 => escape(head[i]),
                    n => {
                        let _ = write!(rules, "\\cmidrule(lr){{{}-{end}}}", i + 1);
                        format!("\\multicolumn{{{n}}}{{c}}{{{}}}", escape(head[i]))
                    }
                });
                i = end;
            }
            let _ = writeln!(page, "{} \\\\{rules}", cells.join(" & "));
        }
        page.push_str("\\midrule\n");
        for (i, (line, row)) in self.lines().iter().zip(&self.rows).enumerate() {
            if i > 0 && row.origin == Origin::Uta {
                page.push_str("\\addlinespace\n");
            }
            let cells: Vec<String> = line.iter().map(|cell| escape(cell)).collect();
            let _ = writeln!(page, "{} \\\\", cells.join(" & "));
        }
        page.push_str("\\bottomrule\n\\end{tabular}}\n\n\\footnotesize\\raggedright\n");
        self.below().iter().for_each(|line| page.push_str(&format!("{}\\par\n", escape(line))));
        page.push_str("\\end{table}\n");
        page
    }

    fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let values: Vec<Value> = row
                    .values
                    .iter()
                    .map(|value| match value {
                        None => Value::Null,
                        Some(v) => json!({
                            "percent": v.value,
                            "differs_from_paper": v.paper,
                            "differs_from_open_clip": v.open_clip,
                        }),
                    })
                    .collect();
                json!({ "model": row.model.name, "labels": row.model.labels, "from": row.origin.name(),
                        "notes": row.model.notes, "values": values })
            })
            .collect();
        let columns: Vec<Value> = self
            .table
            .columns
            .iter()
            .map(|c| json!({ "name": c.name, "above": c.above, "set": c.set, "value": c.value }))
            .collect();
        json!({ "title": self.table.title, "columns": columns, "average": self.table.average,
                "rows": rows, "caveats": self.caveats, "gaps": self.gaps, "notes": self.table.notes, "sources": self.table.sources })
    }

    /// An error that counts the gaps: a table with holes is no success to a script.
    fn complete(&self) -> anyhow::Result<()> {
        if self.gaps.is_empty() {
            return Ok(());
        }
        let (gaps, cells) = (self.gaps.len(), self.table.models.len() * self.table.sets.len());
        let message = format!("{gaps} of {cells} cells are gaps; the table says why");
        match self.gaps.iter().all(|gap| matches!(gap.reason, Reason::Missing(_))) {
            true => Err(Usage(message).into()),
            false => anyhow::bail!(message),
        }
    }
}

/// What a command's result says of images that were left out or are not as published.
fn caveats(report: &Value) -> Vec<String> {
    let count = |key: &str| report.get(key).and_then(Value::as_u64);
    let mut found = vec![];
    if let Some(n) = report["rejected"].as_array().map(Vec::len).filter(|&n| n > 0) {
        found.push(format!("{n} images unreadable, left out"));
    }
    for (key, what) in [("unlabelled", "without a class"), ("without_caption", "without a caption")]
    {
        found.extend(count(key).filter(|&n| n > 0).map(|n| format!("{n} images {what}, left out")));
    }
    let published = &report["published"];
    for (key, what, published) in [
        ("n", "images", published.as_u64()),
        ("images", "images", published["images"].as_u64()),
        ("captions", "captions", published["captions"].as_u64()),
    ] {
        if let (Some(n), Some(published)) = (count(key), published)
            && n != published
        {
            found.push(format!("{n} {what}, {published} are published"));
        }
    }
    let problems = report["problems"].as_array().into_iter().flatten();
    found.extend(problems.filter_map(Value::as_str).map(String::from));
    found
}

/// Whether the head at `level` over column `i` goes on from the column before: it and all above are the same.
fn same_head(heads: &[Vec<String>], level: usize, i: usize) -> bool {
    heads[..=level].iter().all(|head| head[i] == head[i - 1])
}
