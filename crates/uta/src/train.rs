//! `uta train RECIPE`: from a recipe file to a run directory, new or resumed.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use torch_ext::distributed::ProcessGroup;
use uta_train::{Outcome, Recipe, RunDir, Trainer};

use crate::compute::warn_of_bf16;
use crate::error::{Usage, one_line};
use crate::{reference, report};

/// Train a model as a recipe says
///
/// The run directory holds the resolved recipe, metrics (JSON lines and TensorBoard), checkpoints, the final model
/// (a `--model` for the other commands) and report.html. Ctrl-C saves and ends; --resume goes on.
///
/// Started once per GPU by torchrun --no-python, srun or mpirun (or with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
/// MASTER_PORT set), the processes share each batch; UTA_DIST_TIMEOUT is how many seconds they wait for each other.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  uta train recipes/mini/uta-emoji.toml
  uta train recipes/pretrain/uta-b14-in21k.toml --set data.train='/data/in21k-{000..999}.tar' --set train.precision=bf16
  torchrun --no-python --nproc-per-node 8 uta train recipes/pretrain/uta-b14-in21k.toml
  uta train --resume latest")]
pub struct Args {
    /// The recipe (TOML); with --resume it may be left out
    recipe: Option<PathBuf>,
    /// Override a key of the recipe; may be given often
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    sets: Vec<String>,
    /// auto, cpu, cuda (with several processes, each its own) or cuda:N, as `--set train.device=NAME`
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// The run directory to make [default: runs/NAME-of-the-recipe-TIME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with a run: its directory, or `latest` for the newest under runs/
    #[arg(long, value_name = "DIR|latest")]
    resume: Option<String>,
}

/// Runs the command.
pub fn run(mut args: Args) -> anyhow::Result<()> {
    args.sets.extend(args.device.take().map(|device| format!("train.device={device}")));
    let group = ProcessGroup::from_env()?;
    let Order { recipe, out, resume } = Order::of_all_ranks(&args, &group)?;
    let outcome = train(recipe, &out, resume, group.clone(), stop_on_ctrl_c()?)?;
    if !group.is_first() {
        return Ok(());
    }
    if outcome.finished && outcome.images_per_second > 0.0 {
        let done = RunDir::recipe(&out).map_err(anyhow::Error::from);
        if let Err(e) = done.and_then(|recipe| reference::of_run(&out, &recipe)) {
            tracing::warn!("the report lacks pictures and teacher: {}", one_line(&e));
        }
        report::write(&out)?;
    }
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
            let model = match steps {
                0 => String::new(),
                _ => format!(
                    "; it is a --model so far: {}/checkpoints/step-{steps:08}",
                    out.display()
                ),
            };
            eprintln!(
                "stopped at step {steps}; go on with: uta train --resume {}{model}",
                out.display()
            )
        }
    }
    Ok(())
}

/// The run to train, and where.
struct Order {
    recipe: Recipe,
    out: PathBuf,
    resume: bool,
}

impl Order {
    /// Rank 0's reading of the command line. The others need neither the recipe's file nor the run directory, and a time
    /// or a newest run can't differ between them.
    fn of_all_ranks(args: &Args, group: &ProcessGroup) -> anyhow::Result<Order> {
        if !group.is_first() {
            let received = group.exchange(&[])?;
            let (recipe, out, resume): (String, PathBuf, bool) =
                serde_json::from_slice(&received[0])?;
            let recipe = Recipe::from_table(recipe.parse()?).map_err(Usage)?;
            return Ok(Order { recipe, out, resume });
        }
        let order = match Order::read(args) {
            Ok(order) => order,
            error => return group.agree(error),
        };
        let Order { recipe, out, resume } = &order;
        group.exchange(&serde_json::to_vec(&(recipe.to_toml(), out, resume))?)?;
        Ok(order)
    }

    fn read(args: &Args) -> anyhow::Result<Order> {
        match (&args.recipe, &args.resume) {
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
                let resumed = resumed(&out, &args.sets)?;
                if let Some(path) = recipe {
                    same_run(Recipe::load(path, &args.sets)?, &resumed, path)?;
                }
                Ok(Order { recipe: resumed, out, resume: true })
            }
            (Some(path), None) => {
                let out = args.out.clone().unwrap_or_else(|| default_out(path));
                Ok(Order { recipe: Recipe::load(path, &args.sets)?, out, resume: false })
            }
            (None, None) => {
                Err(Usage("give a recipe, or a run with --resume (see --help)".into()).into())
            }
        }
    }
}

/// Trains `recipe` into `out` with the evaluators it names, shared by the ranks of `group`; rank 0 writes the report.
pub fn train(
    recipe: Recipe,
    out: &Path,
    resume: bool,
    group: Rc<ProcessGroup>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<Outcome> {
    let trainer = Trainer::new(recipe, out, resume, group.clone(), stop)?;
    if !group.is_first() {
        return Ok(trainer.run()?);
    }
    let r = trainer.recipe();
    let device = uta_train::device(&r.train.device, group.local_rank()).map_err(Usage)?;
    if r.train.device == "auto" && !device.is_cuda() {
        tracing::info!("no GPU was found; the CPU computes");
    }
    warn_of_bf16(device, r.train.precision.into());
    if r.schedule.warmup >= r.steps() && r.steps() > 0 {
        tracing::warn!(
            "schedule.warmup = {}: is not over in {} steps, so that optim.lr is never reached",
            r.schedule.warmup,
            r.steps()
        );
    }
    let ranks = match group.world() {
        1 => String::new(),
        world => format!(" x {world} processes"),
    };
    tracing::info!(
        "{} on {}{ranks}: {:.2} M parameters, steps {}..{}, batch {}, into {}",
        r.task.kind(),
        uta_train::device_name(device),
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

/// A flag that the first Ctrl-C (or SIGTERM, or SIGHUP of a terminal that closes) raises; the second ends the process at once.
/// Launchers pass the terminal's Ctrl-C on to processes that have had it already, so a second one counts only half a second
/// later.
pub fn stop_on_ctrl_c() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let (raised, first) = (stop.clone(), OnceLock::<Instant>::new());
    ctrlc::set_handler(move || {
        if raised.swap(true, Ordering::Relaxed) {
            if first.get().is_some_and(|first| first.elapsed() > Duration::from_millis(500)) {
                std::process::exit(130);
            }
            return;
        }
        let _ = first.set(Instant::now());
        eprintln!("\nsaving after this step (once more to end at once)");
    })
    .context("listening for Ctrl-C")?;
    Ok(stop)
}

/// The recipe of the run in `out`, with `sets` from now on.
///
/// # Errors
/// When there is no run, or its stream of samples would be another one.
pub fn resumed(out: &Path, sets: &[String]) -> anyhow::Result<Recipe> {
    let resumed = RunDir::recipe_to_resume(out, sets)?;
    same_stream(&RunDir::recipe(out)?, &resumed)?;
    Ok(resumed)
}

/// A run goes on at a place in its stream of samples, which mustn't be another one from there on.
fn same_stream(begun: &Recipe, resumed: &Recipe) -> anyhow::Result<()> {
    let same = [
        ("train.batch", begun.train.batch == resumed.train.batch),
        ("train.seed", begun.train.seed == resumed.train.seed),
        ("data.repeats", begun.data.repeats == resumed.data.repeats),
        ("data.order", begun.data.order == resumed.data.order),
        ("data.shuffle_buffer", begun.data.shuffle_buffer == resumed.data.shuffle_buffer),
    ];
    match same.iter().find(|(_, same)| !same) {
        None => Ok(()),
        Some((key, _)) => {
            let message = "a resumed run keeps its stream of samples; for another, start a new run from model.init";
            Err(Usage(format!("--set {key}: {message}")).into())
        }
    }
}

/// The recipe given beside --resume must be the run's own; how many threads read for it is the machine's affair.
fn same_run(mut given: Recipe, run: &Recipe, path: &Path) -> anyhow::Result<()> {
    given.resolve_length(given.open_train()?.epoch());
    (given.data.workers, given.data.prefetch) = (run.data.workers, run.data.prefetch);
    given.train.threads = run.train.threads;
    given.model.follow(run.model.vision.out);
    if let Some(text) = &run.model.text {
        given.model.follow_text(text.out);
    }
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
