//! `uta eval zeroshot|retrieval|align`: from a model and a set on disk to a table, or to one JSON object.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Map, Value, json};
use torch_ext::Precision;
use uta_data::{Rejected, Source};
use uta_eval::ranking::wilson;
use uta_eval::{Align, EvalOptions, Progress, Prompts, Recall, Retrieval, ZeroShot};
use uta_model::Clip;
use uta_train::RunDir;
use uta_train::mask::{MaskGenerator, MaskKind};

use crate::compute::{ComputeArgs, ModelArgs};
use crate::error::Usage;

/// Measure a model.
#[derive(Debug, Subcommand)]
pub enum Eval {
    /// Zero-shot classification with class names in templates: top-1, top-5
    Zeroshot(ZeroshotArgs),
    /// Image-text retrieval both ways: recall at 1, 5 and 10
    Retrieval(RetrievalArgs),
    /// Mean cosine between a student's tokens and its teacher's
    Align(AlignArgs),
}

/// What every evaluation takes.
#[derive(Debug, Args)]
pub struct Common {
    #[command(flatten)]
    model: ModelArgs,
    /// Shards (a folder, a .tar, a pattern), a folder of images or of class folders; several are joined
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
    /// A class name a line, in label order [default: classnames.txt beside the set, else its class folders]
    #[arg(long, value_name = "FILE")]
    classnames: Option<PathBuf>,
    /// A template a line, with {} for the name [default: templates.txt beside the set, else "a photo of a {}."]
    #[arg(long, value_name = "FILE")]
    templates: Option<PathBuf>,
    /// Write a JSON line an image: file, label, top5, scores, names
    #[arg(long, value_name = "OUT.jsonl")]
    predictions: Option<PathBuf>,
}

/// Arguments of `uta eval retrieval`.
#[derive(Debug, Args)]
pub struct RetrievalArgs {
    #[command(flatten)]
    common: Common,
    /// Whose text tower to use [default: the model's own, else its run's teacher]
    #[arg(long, value_name = "M")]
    text_model: Option<PathBuf>,
    /// What the net of --text-model is, where the file alone can't tell: a preset or a configuration file
    #[arg(long, value_name = "NAME|FILE", requires = "text_model")]
    text_arch: Option<String>,
}

/// Arguments of `uta eval align`.
#[derive(Debug, Args)]
pub struct AlignArgs {
    #[command(flatten)]
    common: Common,
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
        Eval::Zeroshot(args) => zeroshot(&args),
        Eval::Retrieval(args) => retrieval(&args),
        Eval::Align(args) => align(&args),
    }
}

fn zeroshot(args: &ZeroshotArgs) -> anyhow::Result<()> {
    let setup = Setup::new(&args.common)?;
    let prompts = Prompts::find(
        &args.common.data[0],
        setup.source.as_ref(),
        args.classnames.as_deref(),
        args.templates.as_deref(),
    )?;
    let duplicates: Vec<String> =
        prompts.duplicates().into_iter().map(|(name, n)| format!("{name} ({n} times)")).collect();
    let names_from = format!("{} from {}", prompts.names.len(), prompts.names_from);
    let templates_from = format!("{} from {}", prompts.templates.len(), prompts.templates_from);

    let mut task = ZeroShot::new("zeroshot", setup.source.clone(), prompts, setup.options.clone());
    let text = setup.text_tower(args.text_model.as_deref(), args.text_arch.as_deref())?;
    if let Some((_, text)) = &text {
        task = task.with_text(text.clone());
    }
    let report = match &args.predictions {
        None => task.run(&setup.model)?,
        Some(path) => {
            let file = File::create(path)
                .map_err(|e| Usage(format!("--predictions {}: {e}", path.display())))?;
            let mut out = BufWriter::new(file);
            let mut written = Ok(());
            let report = task.predict(&setup.model, |prediction| {
                if written.is_ok() {
                    written = line(&mut out, &prediction);
                }
            })?;
            written.and_then(|()| out.flush()).with_context(|| path.display().to_string())?;
            report
        }
    };

    let mut page =
        Page::new("zero-shot classification", &setup, text.as_ref().map(|t| t.0.as_path()));
    page.setting("class names", names_from);
    page.setting("templates", templates_from);
    page.setting("scores", "cosine with the normalised mean over templates; ties share the credit");
    page.count("images", report.n);
    page.left_out("without a class", report.unlabelled, []);
    page.unreadable(&report.rejected);
    page.left_out(
        "classes without images",
        report.empty_classes.len(),
        report.empty_classes.clone(),
    );
    page.left_out("names of several classes", duplicates.len(), duplicates);
    let chance = 1.0 / report.classes as f64;
    page.share("top-1", report.top1, report.n, chance);
    page.share("top-5", report.top5, report.n, (5.0 * chance).min(1.0));
    page.percent("mean per class", report.mean_per_class);
    page.print(args.common.json, &report, |report, object| {
        for (key, value) in [("top1", report.top1), ("top5", report.top5)] {
            object.insert(format!("{key}_interval"), json!(wilson(value, report.n)));
        }
    })
}

fn retrieval(args: &RetrievalArgs) -> anyhow::Result<()> {
    let setup = Setup::new(&args.common)?;
    let mut task = Retrieval::new("retrieval", setup.source.clone(), setup.options.clone());
    let text = setup.text_tower(args.text_model.as_deref(), args.text_arch.as_deref())?;
    if let Some((_, text)) = &text {
        task = task.with_text(text.clone());
    }
    let report = task.run(&setup.model)?;

    let mut page = Page::new("image-text retrieval", &setup, text.as_ref().map(|t| t.0.as_path()));
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
    page.print(args.common.json, &report, |_, _| {})
}

fn align(args: &AlignArgs) -> anyhow::Result<()> {
    let setup = Setup::new(&args.common)?;
    let path = match &args.teacher {
        Some(path) => path.clone(),
        None => setup.run_teacher().ok_or_else(|| {
            let model = args.common.model.path.display();
            Usage(format!("{model} is no run that names its teacher; give --teacher"))
        })?,
    };
    let teacher = Rc::new(setup.load(&path, args.teacher_arch.as_deref())?);
    let kind = match args.mask_kind {
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
    page.plain("cosine", report.cosine);
    page.plain("of [CLS]", report.cosine_cls);
    page.plain("of patches", report.cosine_patches);
    page.print(args.common.json, &report, |_, _| {})
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
    fn new(args: &'a Common) -> anyhow::Result<Setup<'a>> {
        let (device, options) = args.compute.options()?;
        let options = EvalOptions { progress: Some(progress()), ..options };
        let source = uta_data::open_all(&args.data)?;
        let model = args.model.load(device)?;
        Ok(Setup { args, device, model, source, options })
    }

    fn load(&self, path: &Path, arch: Option<&str>) -> anyhow::Result<Clip> {
        Ok(uta_train::load(path, arch, self.device)?)
    }

    /// The teacher that the recipe of the model's run directory names.
    fn run_teacher(&self) -> Option<PathBuf> {
        let model = &self.args.model.path;
        let run = if model.is_file() { model.parent()? } else { model };
        RunDir::recipe(run, &[]).ok()?.teacher?.path
    }

    /// The text tower to use and where it is from; `None` where the model's own serves.
    fn text_tower(
        &self,
        given: Option<&Path>,
        arch: Option<&str>,
    ) -> anyhow::Result<Option<(PathBuf, Rc<Clip>)>> {
        let path = match given {
            Some(path) => path.to_path_buf(),
            None if self.model.text.is_some() => return Ok(None),
            None => self.run_teacher().ok_or_else(|| {
                let model = self.args.model.path.display();
                Usage(format!(
                    "{model} has no text tower and is no run that names its teacher; give --text-model"
                ))
            })?,
        };
        let clip = self.load(&path, arch)?;
        if clip.text.is_none() {
            let path = path.display();
            return Err(Usage(format!("{path} has no text tower; give --text-model")).into());
        }
        Ok(Some((path, Rc::new(clip))))
    }
}

/// A bar a stage on standard error; none where that is no terminal.
pub fn progress() -> Progress {
    let shown: Mutex<Option<(&'static str, indicatif::ProgressBar)>> = Mutex::new(None);
    Arc::new(move |stage, done, total| {
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, bar) = match shown.take() {
            Some((known, bar)) if known == stage => shown.insert((stage, bar)),
            _ => shown.insert((stage, uta_data::progress::bar(total as u64, 0, stage))),
        };
        bar.set_position(done as u64);
        if done >= total {
            bar.finish_and_clear();
            *shown = None;
        }
    })
}

/// The result for a person: what was measured, on what, every setting that may change a number, and the numbers.
struct Page {
    title: &'static str,
    settings: Vec<(&'static str, String)>,
    counts: Vec<(&'static str, usize, String)>,
    problems: Vec<String>,
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
        Page { title, settings, counts: Vec::new(), problems, rows: Vec::new() }
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

    fn plain(&mut self, name: &str, value: f64) {
        self.rows.push((name.to_string(), format!("{value:8.4}")));
    }

    /// Prints the page; or the report as one JSON object with `extra` members, the settings and what was left out when
    /// the set was opened.
    fn print<R: Serialize>(
        self,
        json: bool,
        report: &R,
        extra: impl FnOnce(&R, &mut Map<String, Value>),
    ) -> anyhow::Result<()> {
        let mut out = BufWriter::new(std::io::stdout().lock());
        if json {
            let Value::Object(mut object) = serde_json::to_value(report)? else {
                anyhow::bail!("a report is an object");
            };
            extra(report, &mut object);
            object.insert("problems".into(), json!(self.problems));
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
