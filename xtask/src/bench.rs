//! `cargo xtask bench step`: `uta bench step` and its peer in plain PyTorch, in turn, each in a process of its own.
//!
//! A machine is faster at one minute than at another, so that only neighbours compare: a ratio is taken of each pair, and
//! what is shown beside the medians is how far the pairs' ratios lie apart.

use std::{
    env,
    ffi::OsString,
    fmt::{self, Display, Formatter},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{Usage, setup};

const RECIPE: &str = "recipes/pretrain/uta-b14-in21k.toml";
/// Timed in each process.
const STEPS: &str = "3";

/// The frozen net of a row.
#[derive(Clone, Copy)]
enum Teacher {
    /// CLIP's ViT-L/14.
    L,
    /// EVA01-CLIP-g-14-plus, the recipe's own.
    G,
}

/// The program that `uta` is measured against.
#[derive(Clone, Copy, PartialEq)]
enum Peer {
    /// `benches/pytorch/step.py`.
    PyTorch,
    /// Its own step with the teacher, which `--part cached` takes in turn.
    Live,
}

/// A line of the table.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    what: &'static str,
    part: &'static str,
    batch: &'static str,
    teacher: Teacher,
    peer: Peer,
    asked: Asked,
}

/// Goal of a row: the ratio at least; memory, at most.
#[derive(Clone, Copy, Default, Serialize)]
struct Asked {
    ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    utilisation: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<f64>,
}

const ROWS: [Row; 6] = {
    let student = Row {
        name: "student",
        what: "B/14 at ratio 0.4, forward, backward and update, batch 32",
        part: "student",
        batch: "32",
        teacher: Teacher::L,
        peer: Peer::PyTorch,
        asked: Asked { ratio: 1.6, utilisation: Some(0.70), memory: Some(0.8) },
    };
    let teacher = Row {
        name: "teacher-l",
        what: "CLIP L/14, forward, batch 8",
        part: "teacher",
        batch: "8",
        asked: Asked { ratio: 1.3, utilisation: Some(0.85), memory: None },
        ..student
    };
    [
        student,
        Row { name: "student-8", what: "the same, batch 8", batch: "8", ..student },
        Row {
            name: "step",
            what: "B/14 at ratio 0.4 with the teacher L/14, batch 8",
            part: "all",
            batch: "8",
            asked: Asked { ratio: 1.35, utilisation: None, memory: Some(0.8) },
            ..student
        },
        teacher,
        Row {
            name: "teacher-g",
            what: "EVA01-CLIP-g-14-plus, forward, batch 8",
            teacher: Teacher::G,
            ..teacher
        },
        Row {
            name: "cached",
            what: "B/14 with cached targets of g/14, against the same with the teacher, batch 32",
            part: "cached",
            teacher: Teacher::G,
            peer: Peer::Live,
            asked: Asked { ratio: 6.0, utilisation: None, memory: None },
            ..student
        },
    ]
};

/// The goal of every row that computes in f32.
const ASKED_F32: f64 = 1.1;

/// A row in one of the two types.
struct Run {
    row: Row,
    f32: bool,
}

impl Run {
    /// The row `NAME` or `NAME-f32`.
    fn find(name: &str) -> Result<Run> {
        let (base, f32) = name.strip_suffix("-f32").map_or((name, false), |base| (base, true));
        let row = ROWS.into_iter().find(|row| row.name == base);
        match row.filter(|row| !f32 || row.peer == Peer::PyTorch) {
            Some(row) => Ok(Run { row, f32 }),
            None => {
                let known = Run::all().map(|run| run.name()).collect::<Vec<_>>().join(", ");
                Err(Usage(format!("bench step {name}: not a row; there are {known}")).into())
            }
        }
    }

    fn all() -> impl Iterator<Item = Run> {
        ROWS.into_iter().flat_map(|row| {
            let twin = (row.peer == Peer::PyTorch).then_some(Run { row, f32: true });
            [Some(Run { row, f32: false }), twin].into_iter().flatten()
        })
    }

    fn name(&self) -> String {
        format!("{}{}", self.row.name, if self.f32 { "-f32" } else { "" })
    }

    fn asked(&self) -> Asked {
        match self.f32 {
            true => Asked { ratio: ASKED_F32, utilisation: None, ..self.row.asked },
            false => self.row.asked,
        }
    }

    fn precision(&self) -> &'static str {
        if self.f32 { "f32" } else { "bf16" }
    }

    fn uta(&self, root: &Path, threads: &str) -> Command {
        let Row { part, batch, .. } = self.row;
        let mut command = setup::cargo(root);
        command.args(["run", "--quiet", "--release", "--package", "uta", "--", "bench", "step"]);
        command.args([RECIPE, "--json", "--part", part, "--batch", batch, "--steps", STEPS]);
        command.args(["--threads", threads, "--set"]);
        command.arg(format!("train.precision={}", self.precision()));
        match self.row.teacher {
            Teacher::L => {
                command.args(["--set", "teacher={arch=\"vit-l-14\"}", "--set", "model.out=768"])
            }
            Teacher::G => command.args(["--set", "teacher={arch=\"eva01-g-14-plus\"}"]),
        };
        command
    }

    fn pytorch(&self, root: &Path, python: &OsString, threads: &str) -> Command {
        let Row { part, batch, .. } = self.row;
        let mut command = Command::new(python);
        command.current_dir(root).arg("benches/pytorch/step.py");
        command.args(["--part", part, "--batch", batch, "--steps", STEPS, "--threads", threads]);
        command.args(["--precision", self.precision()]);
        if let Teacher::G = self.row.teacher {
            command.args(["--teacher", "eva_giant_patch14_224", "--width", "1024"]);
        }
        command
    }
}

/// The fields of a process's report that are read.
#[derive(Clone, Deserialize)]
struct Report {
    images_per_second: f64,
    live_images_per_second: Option<f64>,
    utilisation: Option<f64>,
    peak_memory_bytes: Option<f64>,
}

/// A row as measured.
#[derive(Serialize)]
struct Line {
    row: String,
    what: &'static str,
    precision: &'static str,
    peer: &'static str,
    /// Medians over the pairs.
    images_per_second: f64,
    peer_images_per_second: f64,
    /// Ratio of the medians.
    ratio: f64,
    /// The smallest and the largest of the pairs'.
    spread: [f64; 2],
    utilisation: f64,
    /// Ratio of the processes' peaks, where the peer is another process.
    memory: Option<f64>,
    asked: Asked,
}

impl Line {
    fn new(run: &Run, pairs: &[(Report, Report)]) -> Line {
        let of = |f: &dyn Fn(&(Report, Report)) -> f64| median(pairs.iter().map(f).collect());
        let [ours, theirs] =
            [of(&|(uta, _)| uta.images_per_second), of(&|(_, peer)| peer.images_per_second)];
        let ratios = pairs.iter().map(|(uta, peer)| uta.images_per_second / peer.images_per_second);
        let peak = |report: &Report| report.peak_memory_bytes.unwrap_or(f64::NAN);
        Line {
            row: run.name(),
            what: run.row.what,
            precision: run.precision(),
            peer: if run.row.peer == Peer::Live { "uta with its teacher" } else { "PyTorch" },
            images_per_second: ours,
            peer_images_per_second: theirs,
            ratio: ours / theirs,
            spread: [
                ratios.clone().fold(f64::INFINITY, f64::min),
                ratios.fold(f64::NEG_INFINITY, f64::max),
            ],
            utilisation: of(&|(uta, _)| uta.utilisation.unwrap_or(f64::NAN)),
            memory: (run.row.peer == Peer::PyTorch)
                .then(|| of(&|(uta, _)| peak(uta)) / of(&|(_, peer)| peak(peer)))
                .filter(|ratio| ratio.is_finite()),
            asked: run.asked(),
        }
    }
}

/// All rows, with what they were measured under.
#[derive(Serialize)]
struct Table {
    threads: u16,
    pairs: u16,
    rows: Vec<Line>,
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<14} {:>8} {:>8} {:>14} {:>12} {:>14} {:>14}",
            "row", "uta", "peer", "ratio", "spread", "utilisation", "memory"
        )?;
        let with = |value: Option<f64>, asked: Option<f64>| match (value, asked) {
            (None, _) => "-".to_owned(),
            (Some(value), None) => format!("{value:.2}       "),
            (Some(value), Some(asked)) => format!("{value:.2} ({asked:.2})"),
        };
        for line in &self.rows {
            let Line { row, asked, .. } = line;
            let [least, most] = line.spread;
            writeln!(
                f,
                "{row:<14} {:>8.2} {:>8.2} {:>14} {:>12} {:>14} {:>14}",
                line.images_per_second,
                line.peer_images_per_second,
                with(Some(line.ratio), Some(asked.ratio)),
                format!("{least:.2}..{most:.2}"),
                with(Some(line.utilisation), asked.utilisation),
                with(line.memory, asked.memory),
            )?;
        }
        write!(
            f,
            "\nImages a second, medians of {} pairs of processes, {} threads. The peer is benches/pytorch/step.py; of \
             `cached`,\nuta's own step with its teacher. In brackets: what is asked at least, of memory at most.",
            self.pairs, self.threads
        )
    }
}

/// The command line.
struct Args {
    runs: Vec<Run>,
    pairs: u16,
    threads: u16,
    python: OsString,
    json: bool,
}

impl Args {
    fn parse(args: &[OsString]) -> Result<Args> {
        let python = env::var_os("UTA_BENCH_PYTHON").unwrap_or_else(|| "python3".into());
        let mut parsed = Args { runs: vec![], pairs: 5, threads: 2, python, json: false };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let flag = arg.to_string_lossy();
            let mut value = || {
                args.next()
                    .ok_or_else(|| Usage(format!("bench step {flag}: wants a value after it")))
            };
            let number = |value: &OsString| {
                let number = value.to_str().and_then(|text| text.parse().ok());
                number.filter(|n| (1..=1024).contains(n)).ok_or_else(|| {
                    Usage(format!("bench step {flag} {}: must be from 1 to 1024", value.display()))
                })
            };
            match flag.as_ref() {
                "--pairs" => parsed.pairs = number(value()?)?,
                "--threads" => parsed.threads = number(value()?)?,
                "--python" => parsed.python = value()?.clone(),
                "--json" => parsed.json = true,
                row => parsed.runs.push(Run::find(row)?),
            }
        }
        if parsed.runs.is_empty() {
            parsed.runs = Run::all().collect();
        }
        Ok(parsed)
    }
}

/// Runs the chore.
pub fn step(root: &Path, args: &[OsString]) -> Result<()> {
    let Args { runs, pairs, threads, python, json } = Args::parse(args)?;
    if runs.iter().any(|run| run.row.peer == Peer::PyTorch) {
        check_python(&python)?;
    }
    setup::run(root, None)?;
    let built = setup::cargo(root).args(["build", "--release", "--package", "uta"]).status()?;
    ensure!(built.success(), "uta wasn't built");

    let text = threads.to_string();
    let mut rows = vec![];
    for run in &runs {
        let mut measured = vec![];
        for pair in 1..=pairs {
            let place = format!("{}, pair {pair} of {pairs}", run.name());
            let uta = report(run.uta(root, &text), &text)?;
            eprintln!("{place}: uta {:.2} images/s", uta.images_per_second);
            let peer = match run.row.peer {
                Peer::PyTorch => report(run.pytorch(root, &python, &text), &text)?,
                Peer::Live => Report {
                    images_per_second: uta.live_images_per_second.unwrap_or(f64::NAN),
                    ..uta.clone()
                },
            };
            eprintln!("{place}: peer {:.2} images/s", peer.images_per_second);
            measured.push((uta, peer));
        }
        rows.push(Line::new(run, &measured));
    }
    let table = Table { threads, pairs, rows };
    match json {
        true => println!("{}", serde_json::to_string(&table)?),
        false => println!("{table}"),
    }
    Ok(())
}

/// Runs a process to its end and reads the report on the last line of its standard output.
fn report(mut command: Command, threads: &str) -> Result<Report> {
    let program = command.get_program().to_owned();
    let output = command
        .env("OMP_NUM_THREADS", threads)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("starting {}", program.display()))?;
    ensure!(output.status.success(), "a measured process ended with {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.trim().lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("{} reported {last:?}", program.display()))
}

/// Said before anything is built: the peers need PyTorch and timm, which this repository doesn't fetch.
fn check_python(python: &OsString) -> Result<(), Usage> {
    let found = Command::new(python).args(["-c", "import torch, timm"]).output();
    let why = match found {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            text.trim().lines().last().unwrap_or("import failed").to_owned()
        }
        Err(error) => error.to_string(),
    };
    Err(Usage(format!(
        "bench step: {} has no torch or no timm for the peer ({why}); name another with --python or UTA_BENCH_PYTHON",
        python.display()
    )))
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    let middle = of.len() / 2;
    if of.len() % 2 == 1 { of[middle] } else { (of[middle - 1] + of[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pair(ours: f64, theirs: f64) -> (Report, Report) {
        let report = |images_per_second, peak| Report {
            images_per_second,
            live_images_per_second: None,
            utilisation: Some(0.5),
            peak_memory_bytes: Some(peak),
        };
        (report(ours, 3e9), report(theirs, 4e9))
    }

    #[test]
    fn a_line_has_the_ratio_of_medians_and_the_ends_of_the_pairs_ratios() {
        let run = Run::find("student-8").unwrap();
        let line = Line::new(&run, &[pair(8.0, 4.0), pair(9.0, 6.0), pair(4.0, 5.0)]);
        assert_eq!((line.images_per_second, line.peer_images_per_second), (8.0, 5.0));
        assert_eq!((line.ratio, line.spread), (1.6, [0.8, 2.0]));
        assert_eq!((line.memory, line.asked.ratio), (Some(0.75), 1.6));
        let line = Line::new(&Run::find("cached").unwrap(), &[pair(8.0, 1.0), pair(6.0, 1.0)]);
        assert_eq!((line.ratio, line.memory), (7.0, None));
    }

    #[test]
    fn rows_are_named_with_their_f32_twins_and_mistakes_answered_in_one_line() {
        let parse =
            |words: &[&str]| Args::parse(&words.iter().map(OsString::from).collect::<Vec<_>>());
        let names = |args: Args| args.runs.iter().map(Run::name).collect::<Vec<_>>();
        let all = names(parse(&["--pairs", "1", "--json"]).unwrap());
        assert_eq!(all.len(), 11, "{all:?}");
        assert_eq!(names(parse(&["teacher-g-f32", "step"]).unwrap()), ["teacher-g-f32", "step"]);
        assert_eq!(Run::find("student-f32").unwrap().asked().ratio, 1.1);
        for (words, said) in [
            (&["cached-f32"][..], "not a row; there are student, student-f32"),
            (&["--pairs", "0"], "--pairs 0: must be from 1 to 1024"),
            (&["student", "--python"], "--python: wants a value"),
        ] {
            let error = parse(words).err().unwrap();
            assert!(error.is::<Usage>() && error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn an_interpreter_without_the_peers_packages_is_said_to_be_one() {
        let error = check_python(&"/no/such/python".into()).unwrap_err().to_string();
        assert!(error.contains("/no/such/python has no torch"), "{error}");
        assert!(error.contains("UTA_BENCH_PYTHON") && !error.contains('\n'), "{error}");
    }
}
