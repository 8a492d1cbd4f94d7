//! `uta eval zeroshot|retrieval|align|table`: from a model and a set on disk to a table, or to one JSON object.

mod table;

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::{Map, Value, json};
use torch_ext::Precision;
use torch_ext::distributed::ProcessGroup;
use uta_data::mask::{MaskGenerator, MaskKind};
use uta_data::{DataError, PairOptions, Rejected, Source};
use uta_eval::ranking::{interval, wilson};
use uta_eval::{
    Align, ClassSet, EvalOptions, NamedSet, Recall, Retrieval, ZeroShot, ZeroShotReport,
};
use uta_model::{Clip, run_of};
use uta_train::RunDir;

use crate::compute::{ComputeArgs, ModelArgs, PairArgs, together};
use crate::error::Usage;
use crate::whole::Whole;

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

/// What every evaluation takes.
#[derive(Debug, Args)]
pub struct Common {
    #[command(flatten)]
    model: ModelArgs,
    /// Shards (a folder, a .tar, a pattern), a folder of images or of class folders, tables of pairs; several are joined
    #[arg(long, value_name = "D", num_args = 1.., required = true)]
    data: Vec<String>,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Arguments of `uta eval zeroshot`.
#[derive(Debug, Args)]
pub struct ZeroshotArgs {
    #[command(flatten)]
    common: Common,
    /// Whose text tower to use [default: the model's own, else its run's teacher]
    #[arg(long, value_name = "M")]
    text_model: Option<PathBuf>,
    /// What the net of --text-model is, where the file alone can't tell: a preset or a configuration file
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

/// Arguments of `uta eval retrieval`.
#[derive(Debug, Args)]
pub struct RetrievalArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    pairs: PairArgs,
    /// Which published test set it is: its split is taken, and its size is compared with the published one
    #[arg(long, value_enum, value_name = "NAME")]
    set: Option<PairSet>,
    /// Whose text tower to use [default: the model's own, else its run's teacher]
    #[arg(long, value_name = "M")]
    text_model: Option<PathBuf>,
    /// What the net of --text-model is, where the file alone can't tell: a preset or a configuration file
    #[arg(long, value_name = "NAME|FILE", requires = "text_model")]
    text_arch: Option<String>,
}

/// The test sets of the paper's Table 2, as Karpathy split them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PairSet {
    /// Flickr30k's test split: 1,000 images, 5,000 captions
    Flickr30k,
    /// COCO's test split of 2014: 5,000 images, 25,010 captions
    Coco,
}

impl PairSet {
    /// Images and captions.
    fn published(self) -> (usize, usize) {
        match self {
            PairSet::Flickr30k => (1000, 5000),
            PairSet::Coco => (5000, 25_010),
        }
    }

    /// Opens it: where a file has all splits, the test split unless another is asked for.
    fn open(data: &[String], pairs: &PairOptions) -> Result<Arc<dyn Source>, DataError> {
        match uta_data::open_with(data, pairs) {
            Err(DataError::Splits { .. }) => {
                let split = Some("test".into());
                uta_data::open_with(data, &PairOptions { split, ..pairs.clone() })
            }
            opened => opened,
        }
    }
}

/// Arguments of `uta eval align`.
#[derive(Debug, Args)]
pub struct AlignArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    pairs: PairArgs,
    /// The teacher [default: that of the model's run]
    #[arg(long, value_name = "T")]
    teacher: Option<PathBuf>,
    /// What the net of --teacher is, where the file alone can't tell: a preset or a configuration file
    #[arg(long, value_name = "NAME|FILE", requires = "teacher")]
    teacher_arch: Option<String>,
    /// Share of the patches that the student doesn't see
    #[arg(long, value_name = "R", default_value_t = 0.0)]
    mask_ratio: f64,
    /// none, random, block or block-reversed [default: random where a ratio is given]
    #[arg(long, value_name = "KIND")]
    mask_kind: Option<MaskKind>,
    /// Seed of the masks
    #[arg(long, default_value_t = 0)]
    seed: u64,
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

fn zeroshot(args: &ZeroshotArgs, group: &Rc<ProcessGroup>) -> anyhow::Result<()> {
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
    page.warnings = warnings;
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
    // What was measured is printed though a file of it may fail.
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

/// Images beyond which an accuracy of exactly 0 or 100 % is doubted.
const CERTAIN: usize = 50;

/// Pixels of the red frame around each image of ObjectNet.
const OBJECTNET_FRAME: u32 = 2;

/// A file that an option names, made before the minutes of computing.
fn create(option: &str, path: &Path) -> Result<Whole, Usage> {
    Whole::create(path).map_err(|e| Usage(format!("{option} {}: {e}", path.display())))
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

fn retrieval(args: &RetrievalArgs, group: &Rc<ProcessGroup>) -> anyhow::Result<()> {
    let pairs = args.pairs.options(&args.common.data)?;
    let source = match args.set {
        Some(_) => PairSet::open(&args.common.data, &pairs)?,
        None => uta_data::open_with(&args.common.data, &pairs)?,
    };
    let setup = Setup::over(&args.common, source, group)?;
    let mut task = Retrieval::new("retrieval", setup.source.clone(), setup.options.clone());
    let text = setup.text_tower(args.text_model.as_deref(), args.text_arch.as_deref())?;
    if let Some((_, text)) = &text {
        task = task.with_text(text.clone());
    }
    let report = task.run(&setup.model)?;

    let mut page = Page::new("image-text retrieval", &setup, text.as_ref().map(|t| t.0.as_path()));
    if let Some(set) = args.set {
        let name = set.to_possible_value().map_or(String::new(), |value| value.get_name().into());
        let ((images, captions), found) = (set.published(), (report.images, report.captions));
        let size = match found == set.published() {
            true => "as published".to_string(),
            false => {
                format!("NOT as published ({images} images, {captions} captions): not comparable")
            }
        };
        page.setting("set", format!("{name}, {} images, {} captions, {size}", found.0, found.1));
    }
    page.setting("captions", "as they are, no template; any caption of an image counts");
    page.setting("scores", "cosine; ties share the credit");
    page.count("images", report.images);
    page.count("captions", report.captions);
    page.left_out("without a caption", report.without_caption, []);
    page.unreadable(&report.rejected);
    let per_image = report.captions as f64 / report.images as f64;
    let ways = [
        ("text to image", report.text_to_image, report.captions, 1.0 / report.images as f64),
        ("image to text", report.image_to_text, report.images, per_image / report.captions as f64),
    ];
    for (way, Recall { r1, r5, r10 }, n, chance) in ways {
        for (k, value) in [(1.0, r1), (5.0, r5), (10.0, r10)] {
            page.share(&format!("{way} R@{k}"), value, n, (k * chance).min(1.0));
        }
    }
    let published = args.set.map(|set| {
        let (images, captions) = set.published();
        json!({ "images": images, "captions": captions })
    });
    page.print(args.common.json, &report, |_, object| {
        object.insert("published".into(), json!(published));
    })
}

fn align(args: &AlignArgs, group: &Rc<ProcessGroup>) -> anyhow::Result<()> {
    let pairs = args.pairs.options(&args.common.data)?;
    let source = uta_data::open_with(&args.common.data, &pairs)?;
    let setup = Setup::over(&args.common, source, group)?;
    let (path, arch) = match &args.teacher {
        Some(path) => (path.clone(), args.teacher_arch.clone()),
        None => setup.run_teacher()?.ok_or_else(|| {
            let model = args.common.model.path.display();
            Usage(format!("{model} is no run that names its teacher; give --teacher"))
        })?,
    };
    let mut teacher = setup.load(&path, arch.as_deref())?;
    teacher.freeze(setup.options.precision);
    let teacher = Rc::new(teacher);
    let kind = match args.mask_kind {
        Some(MaskKind::None) if args.mask_ratio > 0.0 => {
            let message =
                format!("--mask-kind none: masks nothing, and --mask-ratio is {}", args.mask_ratio);
            return Err(Usage(message + "; leave one of them out").into());
        }
        Some(kind) => kind,
        None if args.mask_ratio == 0.0 => MaskKind::None,
        None => MaskKind::Random,
    };
    let grid = setup.model.config.vision.grid() as usize;
    let mask = MaskGenerator::new(kind, args.mask_ratio, (grid, grid))
        .map_err(|e| Usage(format!("--mask-ratio, --mask-kind: {e}")))?;
    let mut task = Align::new("align", setup.source.clone(), teacher, setup.options.clone());
    if kind != MaskKind::None {
        task = task.with_mask(mask, args.seed);
    }
    let report = task.run(&setup.model)?;

    let mut page = Page::new("alignment", &setup, None);
    page.setting("teacher", path.display());
    let patches = setup.model.config.vision.num_patches();
    page.setting(
        "mask",
        match kind {
            MaskKind::None => format!("none, {patches} patches"),
            kind => format!(
                "{kind}, ratio {}, {} of {patches} patches kept, seed {}",
                args.mask_ratio, report.kept, args.seed
            ),
        },
    );
    page.count("images", report.n);
    page.unreadable(&report.rejected);
    page.mean("cosine", report.cosine, report.cosine_std, report.n);
    page.mean("of [CLS]", report.cosine_cls, report.cosine_cls_std, report.n);
    page.mean("of patches", report.cosine_patches, report.cosine_patches_std, report.n);
    page.print(args.common.json, &report, |report, object| {
        for (key, mean, std) in [
            ("cosine", report.cosine, report.cosine_std),
            ("cosine_cls", report.cosine_cls, report.cosine_cls_std),
            ("cosine_patches", report.cosine_patches, report.cosine_patches_std),
        ] {
            object.insert(format!("{key}_interval"), json!(interval(mean, std, report.n)));
        }
    })
}

/// What an evaluation stands on: model, set and options, checked.
struct Setup<'a> {
    args: &'a Common,
    device: tch::Device,
    model: Clip,
    source: Arc<dyn Source>,
    options: EvalOptions,
}

impl<'a> Setup<'a> {
    fn over(
        args: &'a Common,
        source: Arc<dyn Source>,
        group: &Rc<ProcessGroup>,
    ) -> anyhow::Result<Setup<'a>> {
        let (device, options) = args.compute.options(group)?;
        let mut model = args.model.load(device)?;
        model.freeze(options.precision);
        Ok(Setup { args, device, model, source, options })
    }

    fn load(&self, path: &Path, arch: Option<&str>) -> anyhow::Result<Clip> {
        Ok(uta_train::load(path, arch, self.device)?)
    }

    /// The teacher that the recipe of the model's run names, and what its net is. The model is the run's folder, one of its
    /// checkpoints or a file in either.
    fn run_teacher(&self) -> anyhow::Result<Option<(PathBuf, Option<String>)>> {
        let model = std::path::absolute(&self.args.model.path)?;
        let dir = if model.is_file() { model.parent().unwrap_or(&model) } else { &model };
        let run = run_of(dir).unwrap_or(dir);
        if !run.join("recipe.toml").is_file() {
            return Ok(None);
        }
        let recipe = RunDir::recipe(run)?;
        let teacher = recipe.task.teacher();
        Ok(teacher.and_then(|teacher| Some((teacher.path.clone()?, teacher.arch.clone()))))
    }

    /// The text tower to use and where it is from; `None` where the model's own serves.
    fn text_tower(
        &self,
        given: Option<&Path>,
        arch: Option<&str>,
    ) -> anyhow::Result<Option<(PathBuf, Rc<Clip>)>> {
        let (path, arch) = match given {
            Some(path) => (path.to_path_buf(), arch.map(str::to_owned)),
            None if self.model.text.is_some() => return Ok(None),
            None => self.run_teacher()?.ok_or_else(|| {
                let model = self.args.model.path.display();
                Usage(format!(
                    "{model} has no text tower and is no run that names its teacher; give --text-model"
                ))
            })?,
        };
        let clip = self.load(&path, arch.as_deref())?;
        if clip.text.is_none() {
            let path = path.display();
            return Err(Usage(format!("{path} has no text tower; give --text-model")).into());
        }
        Ok(Some((path, Rc::new(clip))))
    }
}

/// The result for a person: what was measured, on what, every setting that may change a number, and the numbers.
struct Page {
    /// Whether this process is the one that prints.
    spoken: bool,
    title: &'static str,
    settings: Vec<(&'static str, String)>,
    counts: Vec<(&'static str, usize, String)>,
    problems: Vec<String>,
    /// What may be taken for something else than it is.
    warnings: Vec<String>,
    rows: Vec<(String, String)>,
}

impl Page {
    fn new(title: &'static str, setup: &Setup, text: Option<&Path>) -> Page {
        let mut settings = vec![("model", setup.args.model.path.display().to_string())];
        settings.extend(text.map(|text| ("text tower", text.display().to_string())));
        settings.push(("data", setup.args.data.join(" ")));
        settings.push(("images", setup.options.transform(&setup.model.config).to_string()));
        let precision = match setup.options.precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16 (autocast), scores in f32",
        };
        settings.push(("precision", format!("{precision} on {:?}", setup.device).to_lowercase()));
        let problems = setup.source.problems();
        let spoken = setup.options.group.is_first();
        let (counts, warnings, rows) = (Vec::new(), Vec::new(), Vec::new());
        Page { spoken, title, settings, counts, problems, warnings, rows }
    }

    fn setting(&mut self, name: &'static str, value: impl ToString) {
        self.settings.push((name, value.to_string()));
    }

    fn count(&mut self, name: &'static str, n: usize) {
        self.counts.push((name, n, String::new()));
    }

    /// A count that is worth a line only where it isn't 0, with the first few of what it counts.
    fn left_out(&mut self, name: &'static str, n: usize, which: impl IntoIterator<Item = String>) {
        const SHOWN: usize = 3;
        if n > 0 {
            let mut which: Vec<String> = which.into_iter().take(SHOWN + 1).collect();
            if which.len() > SHOWN {
                which[SHOWN] = "...".into();
            }
            self.counts.push((name, n, which.join(", ")));
        }
    }

    fn unreadable(&mut self, rejected: &[Rejected]) {
        let keys = rejected.iter().map(|rejected| rejected.key.clone());
        self.left_out("unreadable, left out", rejected.len(), keys);
    }

    fn share(&mut self, name: &str, value: f64, n: usize, chance: f64) {
        let (low, high) = wilson(value, n);
        let line = format!(
            "{:6.2} %   95 % interval {:5.2} to {:5.2}   chance {:.2}",
            100.0 * value,
            100.0 * low,
            100.0 * high,
            100.0 * chance
        );
        self.rows.push((name.to_string(), line));
    }

    fn percent(&mut self, name: &str, value: f64) {
        self.rows.push((name.to_string(), format!("{:6.2} %", 100.0 * value)));
    }

    fn mean(&mut self, name: &str, mean: f64, std: Option<f64>, n: usize) {
        let spread = interval(mean, std, n).zip(std).map(|((low, high), std)| {
            format!(
                "   95 % interval {low:.4} to {high:.4}   standard deviation over images {std:.4}"
            )
        });
        self.rows.push((name.to_string(), format!("{mean:8.4}{}", spread.unwrap_or_default())));
    }

    /// Prints the page; or the report as one JSON object with `extra` members, the settings and what was left out when
    /// the set was opened.
    fn print<R: Serialize>(
        self,
        json: bool,
        report: &R,
        extra: impl FnOnce(&R, &mut Map<String, Value>),
    ) -> anyhow::Result<()> {
        if !self.spoken {
            return Ok(());
        }
        let mut out = BufWriter::new(std::io::stdout().lock());
        if json {
            let Value::Object(mut object) = serde_json::to_value(report)? else {
                anyhow::bail!("a report is an object");
            };
            extra(report, &mut object);
            object.insert("problems".into(), json!(self.problems));
            object.insert("warnings".into(), json!(self.warnings));
            let settings: Map<String, Value> = self
                .settings
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect();
            object.insert("settings".into(), settings.into());
            line(&mut out, &object)?;
        } else {
            writeln!(out, "{}", self.title)?;
            for (name, value) in &self.settings {
                writeln!(out, "  {name:<24} {value}")?;
            }
            for (name, n, which) in &self.counts {
                let value = format!("{n}  {which}");
                writeln!(out, "  {name:<24} {}", value.trim_end())?;
            }
            for problem in &self.problems {
                writeln!(out, "  {:<24} {problem}", "left out")?;
            }
            for warning in &self.warnings {
                writeln!(out, "  {:<24} {warning}", "WARNING")?;
            }
            writeln!(out)?;
            for (name, value) in &self.rows {
                writeln!(out, "  {name:<24} {value}")?;
            }
        }
        Ok(out.flush()?)
    }
}

/// Writes `value` as a line of JSON.
fn line(out: &mut impl Write, value: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}
