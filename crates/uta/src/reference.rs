//! Yardsticks of a report: the run's teacher on the same sets, guessing, and a few pictures with what student and
//! teacher call them. `RUN/reference.json`, `RUN/samples.json` and the pictures in `RUN/samples`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use torch_ext::distributed::ProcessGroup;
use uta_base::write_atomically;
use uta_data::{DataError, EvalTransform, EvalViews, Sample, Share, Source};
use uta_eval::{
    ClassSet, EvalKind, EvalOptions, Prediction, Prompts, Recall, Retrieval, RetrievalReport,
    ZeroShot, ZeroShotReport,
};
use uta_model::Clip;
use uta_train::Recipe;

use crate::report::svg::pixmap;

/// The file in a run directory.
pub const FILE: &str = "reference.json";
/// The file that lists the pictures.
pub const PICTURES: &str = "samples.json";

/// Pictures of a set that the report shows.
const SHOWN: usize = 12;
/// Their side in pixels: twice what the page gives them, for sharp screens.
const SIDE: u32 = 168;

/// A model's numbers by their names in metrics.jsonl: `top1`, `text_to_image/r5`, ...
pub type Numbers = BTreeMap<String, f64>;

/// `RUN/reference.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reference {
    /// The evaluated sets by name.
    pub sets: BTreeMap<String, About>,
    /// The teacher's results on them.
    pub teacher: BTreeMap<String, Numbers>,
}

/// Contents of an evaluated set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// Pictures that were classified.
    pub images: usize,
    /// Names to choose from.
    pub classes: usize,
    /// Pictures that were retrieved, and captions.
    pub pairs: (usize, usize),
    /// Whether the run was trained on some of these very files.
    pub trained_on: bool,
}

impl About {
    /// Takes in what a classification says of the set, and gives its numbers.
    pub fn classified(&mut self, report: &ZeroShotReport) -> Numbers {
        (self.images, self.classes) = (report.n, report.classes);
        [("top1", report.top1), ("top5", report.top5)].map(|(k, v)| (k.to_owned(), v)).into()
    }

    /// The same of a retrieval.
    pub fn retrieved(&mut self, report: &RetrievalReport) -> Numbers {
        self.pairs = (report.images, report.captions);
        let ways =
            [("text_to_image", report.text_to_image), ("image_to_text", report.image_to_text)];
        let named = |(way, Recall { r1, r5, r10 }): (&str, Recall)| {
            [("r1", r1), ("r5", r5), ("r10", r10)].map(|(k, value)| (format!("{way}/{k}"), value))
        };
        ways.into_iter().flat_map(named).collect()
    }

    /// Result of guessing: the expectation of `metric`.
    pub fn chance(&self, metric: &str) -> Option<f64> {
        let first_of = |k: f64, all: usize| (all > 0).then(|| (k / all as f64).min(1.0));
        if let Some(k) = metric.strip_prefix("top") {
            return first_of(k.parse().ok()?, self.classes);
        }
        let (way, k) = metric.split_once("/r")?;
        let (images, captions) = self.pairs;
        match way {
            "text_to_image" => first_of(k.parse().ok()?, images),
            // That one of a picture's own captions is among k of all.
            "image_to_text" if images > 0 => {
                let own = captions as f64 / images as f64;
                let missed = |i: usize| 1.0 - own / captions.saturating_sub(i).max(1) as f64;
                let all_missed: f64 =
                    (0..k.parse().ok()?).map(missed).map(|m| m.max(0.0)).product();
                Some(1.0 - all_missed)
            }
            _ => None,
        }
    }
}

/// A picture of `samples.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// Its file, from the run directory.
    pub image: String,
    /// Its class, or its caption where it has none.
    pub truth: String,
    /// The student's best names with their cosines, best first; none where there are no classes.
    #[serde(default)]
    pub top5: Vec<(String, f64)>,
    /// The teacher's.
    #[serde(default)]
    pub teacher: Vec<(String, f64)>,
    /// Its set.
    #[serde(default)]
    pub set: String,
}

/// A set of which pictures are shown.
pub struct ShownSet {
    /// Its name.
    pub name: String,
    /// Its samples.
    pub source: Arc<dyn Source>,
    /// Its classes in words, where it has any.
    pub prompts: Option<Prompts>,
}

#[derive(Serialize)]
struct Pictures {
    samples: Vec<Shown>,
}

/// Writes `reference.json`.
pub fn save(run: &Path, reference: &Reference) -> anyhow::Result<()> {
    write(&run.join(FILE), serde_json::to_string_pretty(reference)?.as_bytes())
}

/// Writes a few pictures of each set, and what `student` and `teacher` call them where the set has classes.
pub fn save_pictures(
    run: &Path,
    sets: &[ShownSet],
    student: &Clip,
    teacher: Option<&Clip>,
    options: &EvalOptions,
) -> anyhow::Result<()> {
    let folder = run.join("samples");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut samples = vec![];
    for ShownSet { name, source, prompts } in sets {
        let few: Arc<dyn Source> = Arc::new(Few::of(source.clone()));
        // What a picture is called, by the place where it stands among them.
        let names = |model: &Clip| -> anyhow::Result<BTreeMap<String, Prediction>> {
            let mut found = BTreeMap::new();
            if let Some(prompts) = prompts {
                ZeroShot::new(name, few.clone(), prompts.clone(), options.clone()).predict(
                    model,
                    |prediction| {
                        found.insert(prediction.file.clone(), prediction);
                    },
                )?;
            }
            Ok(found)
        };
        let by_student = names(student)?;
        let by_teacher = teacher.map(names).transpose()?.unwrap_or_default();
        let views =
            EvalViews { decode: options.decode, ..EvalViews::new(EvalTransform::new(SIDE)) };
        let all = Share { rank: 0, world: 1 };
        let swept = uta_data::sweep(few.clone(), Arc::new(views), SHOWN, options.workers, all);
        for batch in swept {
            let batch = batch?;
            let bytes = 3 * batch.size * batch.size;
            for (item, pixels) in batch.items.iter().zip(batch.pixels.chunks_exact(bytes)) {
                let file = few.name(item.index).unwrap_or_else(|| item.key.clone());
                // Read once more for its words: what it is called may be a class or a caption.
                let Sample { class, captions, .. } = few.read(item.index)?;
                let class = class.and_then(|class| prompts.as_ref()?.names.get(class as usize));
                let truth = class.or(captions.first()).unwrap_or(&file).clone();
                let top5 = |found: &BTreeMap<String, Prediction>| {
                    let Some(prediction) = found.get(&file) else { return vec![] };
                    let scores = prediction.scores.iter().map(|&score| f64::from(score));
                    prediction.names.iter().cloned().zip(scores).collect()
                };
                let (top5, teacher) = (top5(&by_student), top5(&by_teacher));
                let image = format!("samples/{}.png", samples.len());
                write(&run.join(&image), &pixmap(pixels, batch.size)?.encode_png()?)?;
                samples.push(Shown { image, truth, top5, teacher, set: name.clone() });
            }
        }
    }
    let text = serde_json::to_string_pretty(&Pictures { samples })?;
    write(&run.join(PICTURES), text.as_bytes())
}

/// Measures the teacher of the run in `run` on the sets that `recipe` evaluates, and has pictures of them named; of a run
/// without such sets, pictures that it was trained on.
pub fn of_run(run: &Path, recipe: &Recipe) -> anyhow::Result<()> {
    let device = uta_train::device(&recipe.train.device, 0).map_err(anyhow::Error::msg)?;
    let options = EvalOptions {
        workers: recipe.data.workers,
        precision: recipe.train.precision.into(),
        decode: recipe.data.decode(),
        group: ProcessGroup::single(),
        ..EvalOptions::default()
    };
    let student = uta_train::load(run, None, device)?;
    let teacher = recipe.task.teacher().and_then(|teacher| {
        Some(uta_train::load(teacher.path.as_deref()?, teacher.arch.as_deref(), device))
    });
    let teacher = teacher.transpose()?.map(Rc::new);
    let trained_on = files(recipe.data.train.iter().map(|set| set.data.as_str()));

    let (mut reference, mut shown) = (Reference::default(), vec![]);
    // A set much larger than the training itself isn't worth a pass of the teacher.
    let mut affordable = recipe.steps() * recipe.train.batch as u64;
    for set in &recipe.eval.sets {
        let options = EvalOptions { border: set.border, ..options.clone() };
        let about = reference.sets.entry(set.name.clone()).or_default();
        let own = files([set.data.as_str()]);
        about.trained_on =
            own.iter().any(|file| trained_on.iter().any(|other| file.starts_with(other)));
        let mut measured = |images: usize| match affordable.checked_sub(images as u64) {
            Some(left) => {
                affordable = left;
                teacher.as_deref()
            }
            None => {
                if teacher.is_some() {
                    tracing::info!(
                        "{}: {images} images are more than the run has seen, so that the report lacks its teacher there; \
                         `uta eval` measures it",
                        set.name
                    );
                }
                None
            }
        };
        let numbers = match set.kind {
            EvalKind::Zeroshot => {
                let ClassSet { source, prompts, .. } = set.class_set(false)?;
                (about.images, about.classes) = (source.len(), prompts.names.len());
                let numbers = match measured(source.len()) {
                    Some(teacher) => about.classified(
                        &ZeroShot::new(&set.name, source.clone(), prompts.clone(), options)
                            .run(teacher)?,
                    ),
                    None => Numbers::new(),
                };
                shown.push(ShownSet { name: set.name.clone(), source, prompts: Some(prompts) });
                numbers
            }
            EvalKind::Retrieval => {
                let source = uta_data::open_with(std::slice::from_ref(&set.data), &set.pairs)?;
                match measured(source.len()) {
                    Some(teacher) => {
                        about.retrieved(&Retrieval::new(&set.name, source, options).run(teacher)?)
                    }
                    None => Numbers::new(),
                }
            }
        };
        reference.teacher.entry(set.name.clone()).or_default().extend(numbers);
    }
    reference.teacher.retain(|_, numbers| !numbers.is_empty());
    if shown.is_empty() && !recipe.task.reads_texts_alone() {
        let source = recipe.open_train()?;
        shown.push(ShownSet { name: "training pictures".into(), source, prompts: None });
    }
    save(run, &reference)?;
    save_pictures(run, &shown, &student, teacher.as_deref(), &options)
}

/// The files or folders that specs mean; none of those elsewhere.
fn files<'a>(specs: impl IntoIterator<Item = &'a str>) -> Vec<PathBuf> {
    let here = specs.into_iter().filter(|spec| !uta_data::is_url(spec));
    here.flat_map(|spec| uta_data::expand(spec).unwrap_or_default()).collect()
}

/// A few samples of a source, evenly spread.
struct Few {
    source: Arc<dyn Source>,
    chosen: Vec<usize>,
}

impl Few {
    fn of(source: Arc<dyn Source>) -> Few {
        let n = source.len();
        let mut chosen: Vec<usize> = (0..SHOWN).map(|i| i * n / SHOWN).collect();
        chosen.dedup();
        Few { source, chosen }
    }
}

impl Source for Few {
    fn len(&self) -> usize {
        self.chosen.len()
    }

    fn read(&self, i: usize) -> Result<Sample, DataError> {
        self.source.read(self.chosen[i])
    }

    fn key(&self, i: usize) -> String {
        self.source.key(self.chosen[i])
    }

    fn name(&self, i: usize) -> Option<String> {
        self.source.name(self.chosen[i])
    }

    fn class_names(&self) -> Option<&[String]> {
        self.source.class_names()
    }
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write_atomically(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn chance_is_the_share_that_guessing_gets() {
        let about = About { images: 40, classes: 10, pairs: (20, 40), trained_on: false };
        assert_eq!(about.chance("top1"), Some(0.1));
        assert_eq!(about.chance("top50"), Some(1.0));
        assert_eq!(about.chance("text_to_image/r5"), Some(0.25));
        assert!((about.chance("image_to_text/r1").unwrap() - 0.05).abs() < 1e-9);
        // Of 40 captions two are right: neither of two drawn.
        let both_missed = 38.0 / 40.0 * 37.0 / 39.0;
        let found = about.chance("image_to_text/r2").unwrap();
        assert!((found - (1.0 - both_missed)).abs() < 1e-3, "{found}");
        assert_eq!(about.chance("loss"), None);
        assert_eq!(About::default().chance("top1"), None);
    }
}
