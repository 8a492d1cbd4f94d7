//! `uta demo`: the method end to end on real pictures. Gets the emoji, measures the shipped teacher, pre-trains a student
//! from random weights on images alone, measures it beside the teacher and beside chance.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tch::Device;
use torch_ext::distributed::ProcessGroup;
use uta_base::write_atomically;
use uta_data::{emoji, progress};
use uta_eval::{EvalOptions, Prompts, Retrieval, ZeroShot};
use uta_model::Clip;
use uta_train::{Recipe, RecipeError};

use crate::error::Usage;
use crate::reference::{self, About, Reference, ShownSet};
use crate::report::metrics::{Curve, Metrics, Model};
use crate::{report, train};

/// The training styles, and the two that neither teacher nor student has seen.
const TRAINING: [&str; 5] = ["noto", "noto-v1", "fluent-emoji-flat", "fluent-emoji", "emojione"];
const HELD_OUT: [&str; 2] = ["twemoji", "openmoji"];

/// The student's recipe and the files of its teacher, built in so that the demo needs no clone. The file that makes them a model
/// comes last.
const RECIPE: &[u8] = include_bytes!("../../../recipes/mini/uta-emoji.toml");
const TEACHER: [(&str, &[u8]); 3] = [
    ("README.md", include_bytes!("../../../assets/clip-emoji/README.md")),
    ("model.safetensors", include_bytes!("../../../assets/clip-emoji/model.safetensors")),
    ("config.json", include_bytes!("../../../assets/clip-emoji/config.json")),
];
/// The folder of the run directory that gets them.
const TEACHER_DIR: &str = "clip-emoji";

/// The method end to end on real pictures, on this machine
///
/// Downloads seven styles of emoji (30 MB) into data/emoji of the present directory, pre-trains a small vision transformer
/// from random weights against a small CLIP that comes with the program, and classifies pictures of two styles that
/// neither of them has seen. Ctrl-C leaves a resumable run.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run directory
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    out: PathBuf,
    /// Go on with an interrupted demo
    #[arg(long, conflicts_with_all = ["fresh", "recipe"])]
    resume: bool,
    /// Remove an earlier demo and start again
    #[arg(long)]
    fresh: bool,
    /// The recipe of the student [default: the built-in one, recipes/mini/uta-emoji.toml]
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Override a key of the recipe; may be given often
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    sets: Vec<String>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
}

/// The part of demo.json that goes on when the demo does.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Account {
    /// The folder of the pictures.
    data: PathBuf,
    /// Seconds that all parts of the demo took, and those of them in training.
    seconds: f64,
    training_seconds: f64,
    /// Steps that were made in them.
    steps: u64,
}

impl Account {
    /// The account of the demo in `run`, whose demo.json is `former`.
    fn of(run: &Path, former: Value) -> Account {
        let mut account: Account = serde_json::from_value(former).unwrap_or_default();
        // A part that was killed left no account, but the speed of its steps.
        let metrics = Metrics::read(run).unwrap_or_default();
        let since = metrics.training_seconds(account.steps).unwrap_or(0.0);
        account.seconds += since;
        account.training_seconds += since;
        account
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let began = Instant::now();
    let recipe = prepare(&args)?;
    let mut account = Account::default();
    if args.resume {
        let former = fs::read(args.out.join("demo.json")).unwrap_or_default();
        let former: Value = serde_json::from_slice(&former).unwrap_or_default();
        if former["student"].is_object() && former["steps"].as_u64() == Some(recipe.steps()) {
            eprintln!("{}: the demo has come to its end before", args.out.display());
            report::write(&args.out)?;
            return show(&args, &former);
        }
        account = Account::of(&args.out, former);
    }
    if account.data.as_os_str().is_empty() {
        account.data = std::path::absolute(emoji::Options::default().out)?;
    }
    let stop = train::stop_on_ctrl_c()?;

    let data = emoji::get(&emoji::Options { out: account.data.clone(), ..Default::default() })?;
    eprintln!("{data}");
    let teacher_path = recipe.task.teacher().and_then(|teacher| teacher.path.clone());
    let teacher_path =
        teacher_path.ok_or_else(|| Usage("the demo's recipe needs teacher.path".into()))?;
    let teacher = uta_train::load(&teacher_path, None, Device::Cpu)?;
    let mut reference = Reference::default();
    let teacher_scores = measure("teacher", &teacher, &account.data, &mut reference)?;

    let (steps, batch) = (recipe.steps(), recipe.train.batch);
    let outcome = train::train(recipe, &args.out, args.resume, ProcessGroup::single(), stop)?;
    let total = |account: &Account| Account {
        data: account.data.clone(),
        seconds: account.seconds + began.elapsed().as_secs_f64(),
        training_seconds: account.training_seconds + outcome.seconds,
        steps: outcome.step,
    };
    if !outcome.finished {
        save(&args.out, &serde_json::to_value(total(&account))?)?;
        let program = std::env::args().next().unwrap_or_else(|| "uta".into());
        let out = if args.out.as_os_str() == "runs/demo" {
            String::new()
        } else {
            format!(" --out {}", args.out.display())
        };
        eprintln!(
            "stopped at step {} of {steps}; go on with: {program} demo --resume{out}",
            outcome.step
        );
        return Ok(());
    }
    let student = uta_train::load(&args.out, None, Device::Cpu)?;
    let student_scores = measure("student", &student, &account.data, &mut Reference::default())?;
    reference::save(&args.out, &reference)?;
    let shown = HELD_OUT.map(|style| -> anyhow::Result<ShownSet> {
        let spec = shards(&account.data, style);
        let source = uta_data::open(&spec)?;
        let prompts = Some(Prompts::find(&spec, source.as_ref(), None, None)?);
        Ok(ShownSet { name: style.into(), source, prompts })
    });
    let shown: Vec<ShownSet> = shown.into_iter().collect::<anyhow::Result<_>>()?;
    let options = EvalOptions::default();
    reference::save_pictures(&args.out, &shown, &student, Some(&teacher), &options)?;

    let concepts = data.contents.concepts as f64;
    let metrics = Metrics::read(&args.out)?;
    let learning: Map<String, Value> = HELD_OUT
        .iter()
        .filter_map(|style| {
            let curve = metrics.evaluation(Model::Student, style, "top1")?;
            Some(((*style).to_owned(), json!({ "top1": curve })))
        })
        .collect();
    // Of all parts, where there were several.
    let in_steps = metrics.training_seconds(0);
    let speed = in_steps.map(|seconds| (outcome.step * batch as u64) as f64 / seconds);
    let mut result = serde_json::to_value(total(&account))?;
    let numbers = json!({
        "teacher": teacher_scores,
        "student": student_scores,
        "learning": learning,
        "concepts": concepts,
        "chance": { "top1": 1.0 / concepts, "top5": 5.0 / concepts },
        "images_per_second": speed.unwrap_or(outcome.images_per_second),
    });
    if let (Value::Object(result), Value::Object(numbers)) = (&mut result, numbers) {
        result.extend(numbers);
    }
    save(&args.out, &result)?;
    report::write(&args.out)?;
    show(&args, &result)
}

/// Writes demo.json.
fn save(run: &Path, result: &Value) -> anyhow::Result<()> {
    let path = run.join("demo.json");
    let text = serde_json::to_string_pretty(result)?;
    write_atomically(&path, text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Prints the result.
fn show(args: &Args, result: &Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{result}")?;
    } else {
        write!(out, "{}", table(result))?;
        writeln!(out, "\n{} shows it all.", args.out.join("report.html").display())?;
    }
    Ok(())
}

/// The recipe, and a run directory that is as it should be: none, or one to go on with.
fn prepare(args: &Args) -> anyhow::Result<Recipe> {
    let exists = ["recipe.toml", "checkpoints"].iter().any(|name| args.out.join(name).exists());
    // Absolute, so that the run can be gone on with from anywhere.
    let teacher = std::path::absolute(args.out.join(TEACHER_DIR))?;
    let with_teacher = || {
        let mut sets = vec![format!("teacher.path={}", teacher.display())];
        sets.extend(args.sets.iter().cloned());
        sets
    };
    if args.resume {
        // A run that was moved took its teacher along.
        let sets = if teacher.is_dir() { with_teacher() } else { args.sets.clone() };
        return train::resumed(&args.out, &sets);
    }
    let ours = ["demo.json", TEACHER_DIR].iter().any(|name| args.out.join(name).exists());
    let recipe = || fs::read_to_string(args.out.join("recipe.toml")).unwrap_or_default();
    if exists && !ours && !recipe().contains("clip-emoji") {
        let message = format!("{}: holds another run, give another --out", args.out.display());
        return Err(Usage(message).into());
    }
    if exists && !args.fresh {
        let message = format!(
            "{}: holds a demo already; add --fresh to start again or --resume to go on with it",
            args.out.display()
        );
        return Err(Usage(message).into());
    }
    let recipe = match &args.recipe {
        Some(recipe) => Recipe::load(recipe, &args.sets)?,
        None => {
            let mut file =
                tempfile::Builder::new().prefix("uta-emoji").suffix(".toml").tempfile()?;
            file.write_all(RECIPE)?;
            let own = file.path().display().to_string();
            Recipe::load(file.path(), &with_teacher()).map_err(|error| {
                if error.origin == own {
                    RecipeError { origin: "the demo's recipe".into(), ..error }
                } else {
                    error
                }
            })?
        }
    };
    if exists {
        fs::remove_dir_all(&args.out)
            .with_context(|| format!("cannot remove {}", args.out.display()))?;
    }
    if recipe.task.teacher().is_some_and(|named| named.path.as_ref() == Some(&teacher)) {
        lay_out(&teacher)?;
    }
    Ok(recipe)
}

/// Writes the built-in teacher into the folder `dir`.
fn lay_out(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    for (name, bytes) in TEACHER {
        let path = dir.join(name);
        write_atomically(&path, bytes)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn shards(data: &Path, style: &str) -> String {
    let folder = if HELD_OUT.contains(&style) { "held-out" } else { "train" };
    format!("{}/{folder}/{style}-000*.tar", data.display())
}

/// Zero-shot top-1 and top-5 on every style, recall on the held-out ones; noted in `reference` too.
fn measure(
    who: &'static str,
    clip: &Clip,
    data: &Path,
    reference: &mut Reference,
) -> anyhow::Result<Map<String, Value>> {
    let bar = progress::bar((TRAINING.len() + HELD_OUT.len()) as u64, 0, "styles");
    bar.set_prefix(who);
    let mut scores = Map::new();
    for style in TRAINING.iter().chain(&HELD_OUT) {
        bar.set_message((*style).to_owned());
        let spec = shards(data, style);
        let source = uta_data::open(&spec)?;
        let prompts = Prompts::find(&spec, source.as_ref(), None, None)?;
        let mut about = About { trained_on: TRAINING.contains(style), ..About::default() };
        let zero_shot =
            ZeroShot::new(*style, source.clone(), prompts, EvalOptions::default()).run(clip)?;
        let mut numbers = about.classified(&zero_shot);
        if HELD_OUT.contains(style) {
            let recall = Retrieval::new(*style, source, EvalOptions::default()).run(clip)?;
            numbers.extend(about.retrieved(&recall));
        }
        // A key such as text_to_image_r1.
        let flat = numbers.iter().map(|(name, &value)| (name.replace('/', "_"), value.into()));
        let mut flat: Map<String, Value> = flat.collect();
        flat.insert("n".into(), zero_shot.n.into());
        scores.insert((*style).to_owned(), flat.into());
        reference.sets.insert((*style).to_owned(), about);
        reference.teacher.insert((*style).to_owned(), numbers);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(scores)
}

/// The result for people.
fn table(result: &Value) -> String {
    let concepts =
        result["concepts"].as_f64().or(result["chance"]["top1"].as_f64().map(f64::recip));
    let concepts = concepts.unwrap_or(f64::NAN).round();
    let percent =
        |value: &Value| value.as_f64().map_or(String::new(), |v| format!("{:.1}", v * 100.0));
    let mut text = format!(
        "\nZero-shot among {concepts} concepts, in percent (chance: {:.2})\n\n{:<20}{:>9}{:>9}{:>9}{:>9}{:>9}\n{:<20}{:>9}{:>9}{:>9}{:>9}{:>9}\n",
        100.0 / concepts,
        "",
        "teacher",
        "student",
        "student/",
        "teacher",
        "student",
        "style",
        "top-1",
        "top-1",
        "teacher",
        "top-5",
        "top-5"
    );
    for style in TRAINING.iter().chain(&HELD_OUT) {
        let (teacher, student) = (&result["teacher"][style], &result["student"][style]);
        let ratio = student["top1"].as_f64().zip(teacher["top1"].as_f64()).map(|(s, t)| s / t);
        let name = if HELD_OUT.contains(style) {
            format!("{style} (unseen)")
        } else {
            (*style).to_owned()
        };
        text += &format!(
            "{name:<20}{:>9}{:>9}{:>9}{:>9}{:>9}\n",
            percent(&teacher["top1"]),
            percent(&student["top1"]),
            ratio.map_or(String::new(), |r| format!("{r:.2}")),
            percent(&teacher["top5"]),
            percent(&student["top5"]),
        );
    }
    let curve = |style: &str| -> Curve {
        serde_json::from_value(result["learning"][style]["top1"].clone()).unwrap_or_default()
    };
    let steps: String = curve(HELD_OUT[0]).iter().map(|(step, _)| format!("{step:>8}")).collect();
    text += "\nThe student while it learnt, from random weights on: top-1 in percent\n\n";
    text += &format!("{:<12}{steps}\n", "step");
    for style in HELD_OUT {
        let values: String =
            curve(style).iter().map(|(_, top1)| format!("{:>8.1}", top1 * 100.0)).collect();
        text += &format!("{style:<12}{values}\n");
    }
    text += "\nRetrieval on the unseen styles: recall at 1, 5 and 10, in percent\n\n";
    for style in HELD_OUT {
        for (key, name) in [("text_to_image", "text to image"), ("image_to_text", "image to text")]
        {
            let recall = |who: &str, k| percent(&result[who][style][format!("{key}_r{k}")]);
            text += &format!(
                "{style:<10}{name:<16}teacher {:>5} {:>5} {:>5}   student {:>5} {:>5} {:>5}\n",
                recall("teacher", 1),
                recall("teacher", 5),
                recall("teacher", 10),
                recall("student", 1),
                recall("student", 5),
                recall("student", 10),
            );
        }
    }
    let number = |key: &str| result[key].as_f64().unwrap_or(0.0);
    text += &format!(
        "\n{} steps at {:.0} images/s; {:.0} s in all\n",
        result["steps"],
        number("images_per_second"),
        number("seconds")
    );
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn args(out: PathBuf, resume: bool, sets: &[&str]) -> Args {
        let sets = sets.iter().map(|&set| set.to_owned()).collect();
        Args { out, resume, fresh: false, recipe: None, sets, json: false }
    }

    #[test]
    fn recipe_and_teacher_come_with_the_program_and_move_with_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        let recipe = prepare(&args(out.clone(), false, &["train.steps=7"])).unwrap();
        assert_eq!(recipe.steps(), 7);
        let teacher = |recipe: &Recipe| recipe.task.teacher().unwrap().path.clone().unwrap();
        assert_eq!(teacher(&recipe), out.join("clip-emoji"));
        let clip = uta_train::load(&teacher(&recipe), None, Device::Cpu).unwrap();
        assert!(clip.config.text.is_some());

        fs::write(out.join("recipe.toml"), recipe.to_toml()).unwrap();
        let error = prepare(&args(out.clone(), false, &[])).unwrap_err().to_string();
        assert!(error.contains("holds a demo already"), "{error}");
        // What is no demo is never removed.
        let run = dir.path().join("photos");
        fs::create_dir_all(run.join("checkpoints")).unwrap();
        let error = prepare(&Args { fresh: true, ..args(run.clone(), false, &[]) }).unwrap_err();
        assert!(error.to_string().contains("holds another run"), "{error}");
        assert!(run.exists());
        let moved = dir.path().join("moved");
        fs::rename(&out, &moved).unwrap();
        let recipe = prepare(&args(moved.clone(), true, &[])).unwrap();
        assert_eq!(teacher(&recipe), moved.join("clip-emoji"));

        // Another teacher stays where it is.
        let out = dir.path().join("other");
        let recipe = prepare(&args(out.clone(), false, &["teacher.path=/elsewhere"])).unwrap();
        assert_eq!(teacher(&recipe), Path::new("/elsewhere"));
        assert!(!out.exists());
    }

    #[test]
    fn a_demo_that_has_ended_keeps_its_figures_when_it_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        let recipe = prepare(&args(out.clone(), false, &["train.steps=7"])).unwrap();
        fs::write(out.join("recipe.toml"), recipe.to_toml()).unwrap();
        let result =
            r#"{"student":{},"teacher":{},"steps":7,"seconds":352.0,"images_per_second":800.0}"#;
        fs::write(out.join("demo.json"), result).unwrap();
        run(args(out.clone(), true, &[])).unwrap();
        assert_eq!(fs::read_to_string(out.join("demo.json")).unwrap(), result);
    }

    #[test]
    fn what_a_demo_took_is_the_sum_of_its_parts() {
        let dir = tempfile::tempdir().unwrap();
        // 8 images a step: ten steps at 4 a second, of which an account was left, and ten at 8 that ended in a kill.
        let line = |step: u64, speed: u64| {
            format!("{{\"step\":{step},\"samples\":{},\"images_per_second\":{speed}}}\n", 8 * step)
        };
        fs::write(dir.path().join("metrics.jsonl"), line(10, 4) + &line(20, 8)).unwrap();
        let former =
            json!({ "data": "/d", "seconds": 31.0, "training_seconds": 22.0, "steps": 10 });
        let account = Account::of(dir.path(), former);
        assert_eq!((account.seconds, account.training_seconds), (41.0, 32.0));
        assert_eq!(account.data, Path::new("/d"));
        // Killed before it left any.
        let account = Account::of(dir.path(), Value::Null);
        assert_eq!((account.seconds, account.training_seconds), (30.0, 30.0));
    }
}
