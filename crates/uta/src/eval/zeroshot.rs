//! `uta eval zeroshot`: classification by the names of classes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Context;
use clap::Args;
use serde_json::{Map, Value, json};
use torch_ext::distributed::ProcessGroup;
use uta_eval::ranking::wilson;
use uta_eval::{ClassSet, NamedSet, ZeroShot, ZeroShotReport};

use super::page::{Page, line};
use super::setup::{Common, Setup};
use crate::error::Usage;
use uta_base::AtomicFile;

/// Arguments of `uta eval zeroshot`.
#[derive(Debug, Args)]
pub struct ZeroshotArgs {
    #[command(flatten)]
    common: Common,
    /// Model whose text tower is used [default: its own, else its run's teacher]
    #[arg(long, value_name = "M")]
    text_model: Option<PathBuf>,
    /// Architecture of --text-model, where the file alone can't tell: a preset or a configuration file
    #[arg(long, value_name = "NAME|FILE", requires = "text_model")]
    text_arch: Option<String>,
    /// imagenet, imagenet-a, imagenet-r, imagenet-v2, imagenet-sketch or objectnet [default: what the layout says]
    #[arg(long, value_name = "NAME")]
    set: Option<NamedSet>,
    /// Cut the frame of 2 pixels from ObjectNet's images; CLIP_benchmark leaves it
    #[arg(long)]
    objectnet_crop: bool,
    /// A class name a line, in label order [default: the named set's, else classnames.txt beside the set, else its class folders]
    #[arg(long, value_name = "FILE")]
    classnames: Option<PathBuf>,
    /// A template a line, with {} for the name [default: a named set's 80, else templates.txt beside the set, else "a photo of a {}."]
    #[arg(long, value_name = "FILE")]
    templates: Option<PathBuf>,
    /// Write a JSON line an image: file, label, top5, scores, names
    #[arg(long, value_name = "OUT.jsonl")]
    predictions: Option<PathBuf>,
    /// Write a CSV line a class: label, folder, name, images, top-1 and its 95 % interval
    #[arg(long, value_name = "OUT.csv")]
    per_class: Option<PathBuf>,
    /// Where classifiers are kept between runs [default: $XDG_CACHE_HOME/uta, else ~/.cache/uta]
    #[arg(long, value_name = "DIR", conflicts_with = "no_cache")]
    cache: Option<PathBuf>,
    /// Build the classifier anew, and keep it nowhere
    #[arg(long)]
    no_cache: bool,
}

pub fn zeroshot(args: &ZeroshotArgs, group: &Rc<ProcessGroup>) -> anyhow::Result<()> {
    let (names, templates) = (args.classnames.as_deref(), args.templates.as_deref());
    let ClassSet { source, prompts, set, layout, missing, warnings } =
        ClassSet::open(&args.common.data, args.set, names, templates)?;
    if args.objectnet_crop && set != Some(NamedSet::ObjectNet) {
        let set = set.map_or("a folder of classes", NamedSet::name);
        let message =
            format!("--objectnet-crop: the set is {set}; leave it out, or give --set objectnet");
        return Err(Usage(message).into());
    }
    let mut setup = Setup::over(&args.common, source.clone(), group)?;
    setup.options.border = if args.objectnet_crop { OBJECTNET_FRAME } else { 0 };
    let text = setup.text_tower(args.text_model.as_deref(), args.text_arch.as_deref())?;
    let out = |option: &str, path: &Option<PathBuf>| {
        path.as_deref().filter(|_| group.is_first()).map(|path| create(option, path)).transpose()
    };
    let per_class = out("--per-class", &args.per_class)?;
    let mut predictions = out("--predictions", &args.predictions)?;

    let mut page =
        Page::new("zero-shot classification", &setup, text.as_ref().map(|t| t.0.as_path()));
    page.setting("set", set.map_or("a folder of classes", NamedSet::name));
    page.setting("layout", layout);
    page.warnings.extend(warnings);
    if set == Some(NamedSet::ObjectNet) && !args.objectnet_crop {
        page.setting("frame", "left, as CLIP_benchmark does; --objectnet-crop cuts it");
    }
    page.setting("class names", format!("{} from {}", prompts.names.len(), prompts.names_from));
    page.setting(
        "templates",
        format!("{} from {}", prompts.templates.len(), prompts.templates_from),
    );
    let tower = text.as_ref().map_or(&setup.model, |(_, text)| text);
    let quick = tower.config.text.as_ref().is_some_and(|text| text.quick_gelu);
    let activations = (setup.model.config.vision.ffn, if quick { "QuickGelu" } else { "Gelu" });
    page.setting(
        "activations",
        format!("{:?} for images, {} for texts", activations.0, activations.1),
    );
    page.setting("scores", "cosine with the normalised mean over templates; ties share the credit");
    let duplicates: Map<String, Value> =
        prompts.duplicates().into_iter().map(|(name, n)| (name.into(), n.into())).collect();

    let mut task = ZeroShot::new("zeroshot", source, prompts, setup.options.clone());
    if let Some((_, text)) = &text {
        task = task.with_text(text.clone());
    }
    if let Some(cache) =
        args.cache.clone().or_else(uta_data::cache_folder).filter(|_| !args.no_cache)
    {
        task = task.with_cache(cache);
    }
    let mut written = Ok(());
    let report = match &mut predictions {
        Some(out) => task.predict(&setup.model, |prediction| {
            if written.is_ok() {
                written = line(out, &prediction);
            }
        })?,
        None => task.run(&setup.model)?,
    };
    // The result is printed even if one of the files can't be written.
    let saved = || -> anyhow::Result<()> {
        if let (Some(path), Some(out)) = (&args.predictions, predictions) {
            written.and_then(|()| out.finish()).with_context(|| path.display().to_string())?;
        }
        if let (Some(path), Some(mut out)) = (&args.per_class, per_class) {
            write_classes(&mut out, &report).with_context(|| path.display().to_string())?;
            out.finish().with_context(|| path.display().to_string())?;
        }
        Ok(())
    };
    let saved = saved();

    if report.n > CERTAIN && [0.0, 1.0].contains(&report.top1) {
        let all = if report.top1 == 1.0 { "all" } else { "none" };
        page.warnings.push(format!(
            "{all} of {} images named rightly: look whether names and classes belong together (--predictions FILE)",
            report.n
        ));
    }
    page.count("images", report.n);
    if let Some(set) = set {
        let name = "published, not there";
        page.left_out(name, missing.0, missing.1.iter().cloned());
        let more = (report.n + report.rejected.len()).saturating_sub(set.published());
        page.left_out("more than were published", more, []);
    }
    page.left_out("without a class", report.unlabelled, []);
    page.unreadable(&report.rejected);
    page.left_out(
        "classes without images",
        report.empty_classes.len(),
        report.empty_classes.clone(),
    );
    let shared = duplicates.iter().map(|(name, n)| format!("{name} ({n} times)"));
    page.left_out("names of several classes", duplicates.len(), shared);
    let chance = 1.0 / report.classes as f64;
    page.share("top-1", report.top1, report.n, chance);
    page.share("top-5", report.top5, report.n, (5.0 * chance).min(1.0));
    page.percent("mean per class", report.mean_per_class);
    page.print(args.common.json, &report, |report, object| {
        for (key, value) in [("top1", report.top1), ("top5", report.top5)] {
            object.insert(format!("{key}_interval"), json!(wilson(value, report.n)));
        }
        object.insert("set".into(), json!(set.map(NamedSet::name)));
        object.insert("published".into(), json!(set.map(NamedSet::published)));
        object.insert("missing".into(), json!({ "images": missing.0, "named": missing.1 }));
        object.insert("duplicate_names".into(), duplicates.into());
    })?;
    saved
}

/// More images than this make an accuracy of exactly 0 or 100 % doubtful.
const CERTAIN: usize = 50;

/// Pixels of the red frame around each image of ObjectNet.
const OBJECTNET_FRAME: u32 = 2;

/// A file that an option names, made before the minutes of computing.
fn create(option: &str, path: &Path) -> Result<AtomicFile, Usage> {
    AtomicFile::create_or_write_through(path)
        .map_err(|e| Usage(format!("{option} {}: {e}", path.display())))
}

fn write_classes(out: &mut impl Write, report: &ZeroShotReport) -> anyhow::Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    csv.write_record(["label", "folder", "name", "n", "top1", "low", "high"])?;
    for (label, class) in report.per_class.iter().enumerate() {
        let share = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.6}"));
        csv.write_record([
            label.to_string(),
            class.folder.clone().unwrap_or_default(),
            class.name.clone(),
            class.n.to_string(),
            share(class.top1),
            share(class.interval.map(|(low, _)| low)),
            share(class.interval.map(|(_, high)| high)),
        ])?;
    }
    Ok(csv.flush()?)
}
