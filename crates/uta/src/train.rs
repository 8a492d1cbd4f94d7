//! `uta train RECIPE`: from a recipe file to a run directory, new or resumed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use uta_eval::{ClassSet, EvalOptions, Retrieval, ZeroShot};
use uta_train::recipe::{EvalKind, EvalSet};
use uta_train::{Evaluator, Outcome, Recipe, RunDir, Trainer};

use crate::error::Usage;
use crate::report;

/// Train a model as a recipe says
///
/// The run directory holds the resolved recipe, metrics (JSON lines and TensorBoard), checkpoints, the final model
/// (a `--model` for the other commands) and report.html. Ctrl-C saves and ends; --resume goes on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  uta train recipes/mini/uta-emoji.toml
  uta train recipes/pretrain/uta-b14-in21k.toml --set data.train='/data/in21k-{000..999}.tar' --set train.precision=bf16
  uta train --resume latest")]
pub struct Args {
    /// The recipe (TOML); with --resume it may be left out
    recipe: Option<PathBuf>,
    /// Override a key of the recipe; may be given often
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    sets: Vec<String>,
    /// The run directory to make [default: runs/NAME-of-the-recipe-TIME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with a run: its directory, or `latest` for the newest under runs/
    #[arg(long, value_name = "DIR|latest")]
    resume: Option<String>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let (recipe, out, resume) = match (&args.recipe, &args.resume) {
        (recipe, Some(resume)) => {
            let out = match resume.as_str() {
                "latest" => newest_run(Path::new("runs"))?,
                dir => PathBuf::from(dir),
            };
            if args.out.as_ref().is_some_and(|asked| *asked != out) {
                let message = "--out: a resumed run stays in its own directory; leave it out";
                return Err(Usage(message.into()).into());
            }
            // What the run began with counts; a recipe given again may only agree with it.
            let resumed = RunDir::recipe(&out, &args.sets)?;
            if let Some(path) = recipe {
                same_run(Recipe::load(path, &args.sets)?, &resumed, path)?;
            }
            (resumed, out, true)
        }
        (Some(path), None) => {
            let out = args.out.clone().unwrap_or_else(|| default_out(path));
            (Recipe::load(path, &args.sets)?, out, false)
        }
        (None, None) => {
            return Err(Usage("give a recipe, or a run with --resume (see --help)".into()).into());
        }
    };
    let outcome = train(recipe, &out, resume, stop_on_ctrl_c()?)?;
    let steps = outcome.step;
    let speed = match outcome.images_per_second {
        0.0 => String::new(), // It had been finished before.
        speed => format!(", {}", uta_data::progress::images_per_second(speed)),
    };
    match outcome.finished {
        true => eprintln!(
            "done: {steps} steps{speed}; model.safetensors and report.html are in {}",
            out.display()
        ),
        false => {
            eprintln!("stopped at step {steps}; go on with: uta train --resume {}", out.display())
        }
    }
    Ok(())
}

/// Trains `recipe` into `out` with the evaluators it names, and writes the report.
pub fn train(
    recipe: Recipe,
    out: &Path,
    resume: bool,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<Outcome> {
    let evaluators = evaluators(&recipe)?;
    let mut trainer = Trainer::new(recipe, out, resume, stop)?;
    for evaluator in evaluators {
        trainer.add_evaluator(evaluator);
    }
    let r = trainer.recipe();
    let device = uta_train::recipe::device(&r.train.device).map_err(Usage)?;
    if r.train.device == "auto" && !device.is_cuda() {
        tracing::info!("no GPU was found; the CPU computes");
    }
    tracing::info!(
        "{} on {device:?}: {:.2} M parameters, steps {}..{}, batch {}, into {}",
        r.task,
        trainer.parameters() as f64 / 1e6,
        trainer.step(),
        r.steps(),
        r.train.batch,
        out.display()
    );
    let outcome = trainer.run()?;
    report::write(out).with_context(|| format!("writing {}", out.join("report.html").display()))?;
    Ok(outcome)
}

/// The evaluators that a recipe names.
pub fn evaluators(recipe: &Recipe) -> anyhow::Result<Vec<Box<dyn Evaluator>>> {
    recipe.eval.sets.iter().map(|set| evaluator(set, recipe)).collect()
}

fn evaluator(set: &EvalSet, recipe: &Recipe) -> anyhow::Result<Box<dyn Evaluator>> {
    let options = EvalOptions {
        workers: recipe.data.workers,
        precision: recipe.train.precision.into(),
        decode: recipe.data.decode(),
        border: set.border,
        ..EvalOptions::default()
    };
    Ok(match set.kind {
        EvalKind::Zeroshot => {
            let (names, templates) = (set.classnames.as_deref(), set.templates.as_deref());
            let named = set.set.as_deref().map(str::parse).transpose()?;
            let ClassSet { source, prompts, .. } =
                ClassSet::open(std::slice::from_ref(&set.data), named, names, templates)?;
            Box::new(ZeroShot::new(&set.name, source, prompts, options))
        }
        EvalKind::Retrieval => {
            let source = uta_data::open_with(std::slice::from_ref(&set.data), &set.pairs)?;
            Box::new(Retrieval::new(&set.name, source, options))
        }
    })
}

/// A flag that the first Ctrl-C (or SIGTERM) raises; the second ends the process at once.
pub fn stop_on_ctrl_c() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let raised = stop.clone();
    ctrlc::set_handler(move || {
        if raised.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\nsaving after this step (once more to end at once)");
    })
    .context("listening for Ctrl-C")?;
    Ok(stop)
}

/// The recipe given beside --resume must be the run's own.
fn same_run(mut given: Recipe, run: &Recipe, path: &Path) -> anyhow::Result<()> {
    given.settle(uta_data::open_with(&given.data.train, &given.data.pairs)?.len());
    if given == *run {
        return Ok(());
    }
    let (given, run) = (given.to_toml(), run.to_toml());
    let differs = given.lines().zip(run.lines()).find(|(a, b)| a != b);
    let (here, there) = differs.unwrap_or(("more keys", "fewer keys"));
    let message = format!(
        "{}: isn't the recipe of the run to resume: `{here}`, there `{there}`; leave it out, or start a new run",
        path.display()
    );
    Err(Usage(message).into())
}

fn newest_run(runs: &Path) -> anyhow::Result<PathBuf> {
    let mut found: Vec<(SystemTime, PathBuf)> = std::fs::read_dir(runs)
        .map_err(|e| Usage(format!("{}: {e}; give the run's directory", runs.display())))?
        .flatten()
        .map(|entry| entry.path())
        .filter_map(|path| Some((path.join("recipe.toml").metadata().ok()?.modified().ok()?, path)))
        .collect();
    found.sort();
    let none = || Usage(format!("{}: there is no run to resume", runs.display()));
    Ok(found.pop().ok_or_else(none)?.1)
}

fn default_out(recipe: &Path) -> PathBuf {
    let name = recipe.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    Path::new("runs").join(format!("{name}-{seconds}"))
}
