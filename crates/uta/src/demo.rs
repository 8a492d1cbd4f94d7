//! `uta demo`: the method end to end on real pictures. Gets the emoji, measures the shipped teacher, pre-trains a student
//! from random weights on images alone, measures it beside the teacher and beside chance.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use serde_json::{Map, Value, json};
use tch::Device;
use torch_ext::distributed::ProcessGroup;
use uta_data::{emoji, progress};
use uta_eval::{EvalOptions, Prediction, Prompts, Retrieval, ZeroShot};
use uta_model::Clip;
use uta_train::Recipe;

use crate::error::Usage;
use crate::metrics::{Curve, Metrics, Model};
use crate::{report, train};

/// The training styles, and the two that neither teacher nor student has seen.
const TRAINING: [&str; 5] = ["noto", "noto-v1", "fluent-emoji-flat", "fluent-emoji", "emojione"];
const HELD_OUT: [&str; 2] = ["twemoji", "openmoji"];

/// Pictures of each held-out style that the report shows.
const SHOWN: usize = 12;

/// The method end to end on real pictures, on this machine
///
/// Downloads seven styles of emoji (30 MB), pre-trains a small vision transformer from random weights against the small
/// CLIP in assets/, and classifies pictures of two styles that neither of them has seen. Ctrl-C leaves a resumable run.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run directory
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    out: PathBuf,
    /// Go on with an interrupted demo
    #[arg(long, conflicts_with = "fresh")]
    resume: bool,
    /// Remove an earlier demo and start again
    #[arg(long)]
    fresh: bool,
    /// The recipe of the student
    #[arg(long, value_name = "FILE", default_value = "recipes/mini/uta-emoji.toml")]
    recipe: PathBuf,
    /// Override a key of the recipe; may be given often
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    sets: Vec<String>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let began = Instant::now();
    let recipe = prepare(&args)?;
    let stop = train::stop_on_ctrl_c()?;

    let data = emoji::get(&emoji::Options::default())?;
    eprintln!("{data}");
    let teacher_path = recipe.teacher.as_ref().and_then(|teacher| teacher.path.clone());
    let teacher_path =
        teacher_path.ok_or_else(|| Usage("the demo's recipe needs teacher.path".into()))?;
    let teacher = uta_train::load(&teacher_path, None, Device::Cpu)?;
    let teacher_scores = measure("teacher", &teacher, |_, _, _| ())?;
    drop(teacher);

    let outcome = train::train(recipe, &args.out, args.resume, ProcessGroup::single(), stop)?;
    if !outcome.finished {
        eprintln!("stopped at step {}; go on with: uta demo --resume", outcome.step);
        return Ok(());
    }
    let student = uta_train::load(&args.out, None, Device::Cpu)?;
    let mut named = vec![];
    let student_scores = measure("student", &student, |style, truth, prediction| {
        named.push((style, truth.to_owned(), prediction));
    })?;
    save_pictures(&args.out, &named)?;

    let concepts = data.contents.concepts as f64;
    let metrics = Metrics::read(&args.out)?;
    let learning: Map<String, Value> = HELD_OUT
        .iter()
        .filter_map(|style| {
            let curve = metrics.evaluation(Model::Student, style, "top1")?;
            Some(((*style).to_owned(), json!({ "top1": curve })))
        })
        .collect();
    let result = json!({
        "teacher": teacher_scores,
        "student": student_scores,
        "learning": learning,
        "chance": { "top1": 1.0 / concepts, "top5": 5.0 / concepts },
        "seconds": began.elapsed().as_secs_f64(),
        "training_seconds": outcome.seconds,
        "steps": outcome.step,
        "images_per_second": outcome.images_per_second,
    });
    let path = args.out.join("demo.json");
    fs::write(&path, serde_json::to_string_pretty(&result)?)
        .with_context(|| format!("writing {}", path.display()))?;
    report::write(&args.out)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{result}")?;
    } else {
        write!(out, "{}", table(&result, concepts))?;
        writeln!(out, "\n{} shows it all.", args.out.join("report.html").display())?;
    }
    Ok(())
}

/// The recipe, and a run directory that is as it should be: none, or one to go on with.
fn prepare(args: &Args) -> anyhow::Result<Recipe> {
    let exists = ["recipe.toml", "checkpoints"].iter().any(|name| args.out.join(name).exists());
    if args.resume {
        return train::resumed(&args.out, &args.sets);
    }
    if exists && !args.fresh {
        let message = format!(
            "{}: holds a demo already; add --fresh to start again or --resume to go on with it",
            args.out.display()
        );
        return Err(Usage(message).into());
    }
    if exists {
        fs::remove_dir_all(&args.out)
            .with_context(|| format!("removing {}", args.out.display()))?;
    }
    Ok(Recipe::load(&args.recipe, &args.sets)?)
}

fn shards(style: &str) -> String {
    let folder = if HELD_OUT.contains(&style) { "held-out" } else { "train" };
    format!("data/emoji/{folder}/{style}-000*.tar")
}

/// Zero-shot top-1 and top-5 on every style, recall on the held-out ones. `each` gets (style, true name, best five names)
/// of every picture.
fn measure(
    who: &'static str,
    clip: &Clip,
    mut each: impl FnMut(&'static str, &str, Prediction),
) -> anyhow::Result<Map<String, Value>> {
    let bar = progress::bar((TRAINING.len() + HELD_OUT.len()) as u64, 0, "styles");
    bar.set_prefix(who);
    let mut scores = Map::new();
    for style in TRAINING.iter().chain(&HELD_OUT) {
        bar.set_message((*style).to_owned());
        let spec = shards(style);
        let source = uta_data::open(&spec)?;
        let prompts = Prompts::find(&spec, source.as_ref(), None, None)?;
        let names = prompts.names.clone();
        let zero_shot = ZeroShot::new(*style, source.clone(), prompts, EvalOptions::default())
            .predict(clip, |prediction| {
                each(style, &names[prediction.label as usize], prediction);
            })?;
        let mut numbers =
            json!({ "top1": zero_shot.top1, "top5": zero_shot.top5, "n": zero_shot.n });
        if HELD_OUT.contains(style) {
            let recall = Retrieval::new(*style, source, EvalOptions::default()).run(clip)?;
            numbers["text_to_image_r1"] = recall.text_to_image.r1.into();
            numbers["text_to_image_r5"] = recall.text_to_image.r5.into();
            numbers["image_to_text_r1"] = recall.image_to_text.r1.into();
            numbers["image_to_text_r5"] = recall.image_to_text.r5.into();
        }
        scores.insert((*style).to_owned(), numbers);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(scores)
}

/// Pictures of the held-out styles with the student's five best names, for the report.
fn save_pictures(run: &Path, named: &[(&str, String, Prediction)]) -> anyhow::Result<()> {
    let folder = run.join("samples");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut samples = vec![];
    for style in HELD_OUT {
        let of_style: Vec<_> = named.iter().filter(|(known, ..)| *known == style).collect();
        let step = (of_style.len() / SHOWN).max(1);
        let mut shown = of_style.into_iter().step_by(step).take(SHOWN).peekable();
        let source = uta_data::open(&shards(style))?;
        for index in 0..source.len() {
            // Predictions come in the order of the source.
            let Some((_, truth, prediction)) = shown.peek() else { break };
            let sample = source.read(index)?;
            if sample.key != prediction.file {
                continue;
            }
            let image = format!("samples/{style}-{index}.png");
            fs::write(run.join(&image), sample.image)?;
            let top5: Vec<(&String, &f32)> =
                prediction.names.iter().zip(&prediction.scores).collect();
            samples.push(json!({ "image": image, "truth": truth, "top5": top5, "set": style }));
            shown.next();
        }
    }
    let path = run.join("samples.json");
    fs::write(&path, serde_json::to_string_pretty(&json!({ "samples": samples }))?)
        .with_context(|| format!("writing {}", path.display()))
}

/// The result for people.
fn table(result: &Value, concepts: f64) -> String {
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
        let name = match HELD_OUT.contains(style) {
            true => format!("{style} (unseen)"),
            false => (*style).to_owned(),
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
    text += "\nRetrieval on the unseen styles: recall at 1 and 5, in percent\n\n";
    for style in HELD_OUT {
        for (key, name) in [("text_to_image", "text to image"), ("image_to_text", "image to text")]
        {
            let recall = |who: &str, k| percent(&result[who][style][format!("{key}_r{k}")]);
            text += &format!(
                "{style:<10}{name:<16}teacher {:>5} {:>5}   student {:>5} {:>5}\n",
                recall("teacher", 1),
                recall("teacher", 5),
                recall("student", 1),
                recall("student", 5),
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
