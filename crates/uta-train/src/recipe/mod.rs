//! One TOML file a run: what to train, on what, how. Read strictly, with every default written out again into the run
//! directory, so that a run can be repeated from its own folder.
//!
//! `extends = "other.toml"` (relative to the file) lays this file over another one; `--set key.path=value` lays single
//! values over both. Other paths are relative to the directory where a command is started, and absolute once it is read.

pub(crate) mod check;
mod data;
pub(crate) mod model;
mod overlay;
mod paths;
mod task;
pub(crate) mod train;
pub(crate) mod words;

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use uta_data::{DataError, Source};
use uta_model::ClipConfig;

pub use self::check::{MAX_IMAGES, MAX_THREADS, RecipeError};
pub use self::data::Data;
use self::data::Sources;
pub use self::model::Model;
pub use self::task::{TaskKind, TaskRecipe};
pub use self::train::{Checkpoint, Eval, ExportKind, PrecisionName, Train};
pub use self::words::TaskWords;
pub use crate::optim::{Optim, OptimName, Schedule};
pub use crate::task::contrastive::recipe::ContrastiveRecipe;
pub use crate::task::distill::recipe::{DistillRecipe, Learns, Mask, Mim, Teacher};
pub use crate::task::text_align::recipe::TextAlignRecipe;

use self::check::{MAX_PREFETCH, MAX_STEPS, brief, in_range, require, within};
use self::overlay::{blamed, lay_sets_over, table};
use self::paths::is_relative;
use self::task::Sections;
use crate::device::gpu_named;
use crate::task::distill::recipe::WrittenMask;

/// A whole run.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// The task, with the sections that it alone reads.
    pub task: TaskRecipe,
    /// The net that is trained.
    pub model: Model,
    /// Pictures.
    pub data: Data,
    /// The optimiser.
    pub optim: Optim,
    /// The learning rate over time.
    pub schedule: Schedule,
    /// Length, batch, precision, seed.
    pub train: Train,
    /// How often the run is saved.
    pub checkpoint: Checkpoint,
    /// Evaluations from inside the run.
    pub eval: Eval,
    /// Results to expect, with their source; for people.
    pub expected: Table,
}

/// A recipe as its file has it, with the sections of all tasks.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    task: TaskKind,
    model: Model,
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher: Option<Teacher>,
    data: Data,
    #[serde(skip_serializing_if = "Option::is_none")]
    mask: Option<WrittenMask>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mim: Option<Mim>,
    #[serde(skip_serializing_if = "Option::is_none")]
    contrastive: Option<ContrastiveRecipe>,
    #[serde(default)]
    optim: Optim,
    #[serde(default)]
    schedule: Schedule,
    train: Train,
    #[serde(default)]
    checkpoint: Checkpoint,
    #[serde(default)]
    eval: Eval,
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    expected: Table,
}

impl From<Written> for Recipe {
    fn from(written: Written) -> Recipe {
        let Written { teacher, mask, mim, contrastive, .. } = written;
        Recipe {
            task: TaskRecipe::new(written.task, Sections { teacher, mask, mim, contrastive }),
            model: written.model,
            data: written.data,
            optim: written.optim,
            schedule: written.schedule,
            train: written.train,
            checkpoint: written.checkpoint,
            eval: written.eval,
            expected: written.expected,
        }
    }
}

impl From<Recipe> for Written {
    fn from(recipe: Recipe) -> Written {
        let (task, Sections { teacher, mask, mim, contrastive }) = recipe.task.written();
        Written {
            task,
            model: recipe.model,
            teacher,
            data: recipe.data,
            mask,
            mim,
            contrastive,
            optim: recipe.optim,
            schedule: recipe.schedule,
            train: recipe.train,
            checkpoint: recipe.checkpoint,
            eval: recipe.eval,
            expected: recipe.expected,
        }
    }
}

impl Recipe {
    /// Reads a recipe and what it extends, lays `sets` (`key.path=value`) over it, and checks every value. Paths in it become
    /// absolute.
    ///
    /// # Errors
    /// Names the file or the `--set`, the key, the value and what is allowed.
    pub fn load(path: &Path, sets: &[String]) -> Result<Recipe, RecipeError> {
        Recipe::from_table(table(path, sets)?).map_err(|message| blamed(path, sets, message))
    }

    /// As [`load`](Recipe::load) for the recipe of a run that has begun, in `path`. Those of former versions have relative
    /// paths, which must mean something where the run goes on.
    ///
    /// # Errors
    /// As [`load`](Recipe::load); when such a path means nothing here.
    pub(crate) fn load_begun(path: &Path, sets: &[String]) -> Result<Recipe, RecipeError> {
        let fail = |message| blamed(path, sets, message);
        let table = table_of_run(path, sets)?;
        let mut written = Recipe::parse(table.clone()).map_err(fail)?;
        let recipe = Recipe::from_table(table).map_err(fail)?;
        let cached = recipe.task.teacher().is_some_and(|teacher| teacher.cache.is_some());
        let relative = written.paths().into_iter().filter(|(_, place)| is_relative(place.get()));
        // Neither of these is needed any more.
        let mut needed = relative.filter(|(key, _)| {
            !(*key == "model.init" || (cached && matches!(*key, "teacher.path" | "teacher.arch")))
        });
        match needed.find(|(_, place)| uta_data::expand(place.get()).is_err()) {
            None => Ok(recipe),
            Some((key, place)) => Err(fail(format!(
                "{key} = {}: isn't in {}, and the run has paths relative to the directory where it was started: resume it \
                 there, or give the path with --set",
                place.get(),
                std::env::current_dir().unwrap_or_default().display()
            ))),
        }
    }

    /// The resolved recipe of a run, in `path`.
    ///
    /// # Errors
    /// As [`load`](Recipe::load).
    pub(crate) fn load_of_run(path: &Path) -> Result<Recipe, RecipeError> {
        Recipe::from_table(table_of_run(path, &[])?).map_err(|message| blamed(path, &[], message))
    }

    /// A recipe from its table, in which paths become absolute.
    ///
    /// # Errors
    /// Names the key, the value and what is allowed.
    pub fn from_table(table: Table) -> Result<Recipe, String> {
        let mut recipe = Recipe::parse(table)?;
        recipe.make_paths_absolute();
        recipe.resolve()?;
        Ok(recipe)
    }

    /// As it is written.
    fn parse(table: Table) -> Result<Recipe, String> {
        if let Some(task) = task_of(&table) {
            task.refuse_foreign(&table)?;
        }
        let written: Written =
            serde_path_to_error::deserialize(Value::Table(table)).map_err(|e| {
                let path = e.path().to_string();
                let message = brief(e.inner());
                // A table's own message may name the key within it.
                let named = message.strip_prefix(&path).is_some_and(|rest| rest.starts_with('.'));
                if path == "." || named { message } else { format!("{path}: {message}") }
            })?;
        Ok(written.into())
    }

    /// Works out what follows from other keys, and checks what types can't.
    fn resolve(&mut self) -> Result<(), String> {
        let size = self.model.vision.image_size as u32;
        if self.task.reads_texts_alone() {
            let given = self.data.image_size;
            require("data.image_size", given, given == 0, "left out: no picture is decoded")?;
        } else if self.data.image_size == 0 {
            self.data.image_size = size;
        } else {
            require(
                "data.image_size",
                self.data.image_size,
                self.data.image_size == size,
                &format!("the model's image_size, {size} (change model.image_size too)"),
            )?;
        }
        let config = ClipConfig::new(self.model.vision.clone(), None);
        let transforms = &mut self.data.transforms;
        (transforms.size, transforms.mean, transforms.std) = (size, config.mean, config.std);
        self.data.transforms.validate().map_err(|e| format!("data.transforms: {e}"))?;
        require("data.train", "[]", !self.data.train.is_empty(), "at least one path")?;
        for (key, place) in self.paths() {
            require(key, "\"\"", !place.get().is_empty(), "a path")?;
        }
        in_range("data.max_rejected", self.data.max_rejected, 0.0, 1.0)?;
        let pixels = self.data.max_pixels;
        require("data.max_pixels", pixels, (1..=1 << 32).contains(&pixels), "from 1 to 2^32")?;
        let t = &self.train;
        within("train.batch", t.batch, 1, MAX_IMAGES)?;
        require("train.accumulate", t.accumulate, t.accumulate > 0, "1 or more")?;
        let (repeats, part) = (self.data.repeats, self.train.batch / self.train.accumulate.max(1));
        let allowed = format!("1, or another divisor of the {part} images of a micro-batch");
        let divides = repeats > 0 && part.is_multiple_of(repeats);
        require("data.repeats", repeats, divides, &allowed)?;
        within("data.prefetch", self.data.prefetch, 1, MAX_PREFETCH)?;
        within("data.shuffle_buffer", self.data.shuffle_buffer, 1, 1 << 40)?;
        within("data.workers", self.data.workers, 0, MAX_THREADS)?;
        within("train.threads", self.train.threads, 0, MAX_THREADS)?;
        if self.data.workers == 0 {
            self.data.workers = std::thread::available_parallelism().map_or(1, usize::from);
        }

        if self.data.transforms.mixes() && !self.task.has_classes() {
            let task = self.task.kind();
            return Err(format!(
                "data.transforms: task \"{task}\" has no classes to mix: leave mixup and cutmix out"
            ));
        }

        let o = &self.optim;
        require("optim.lr", o.lr, o.lr > 0.0 && o.lr.is_finite(), "a number above 0")?;
        in_range("optim.betas", o.betas.0, 0.0, 0.999_999)?;
        in_range("optim.betas", o.betas.1, 0.0, 0.999_999)?;
        require("optim.eps", o.eps, o.eps > 0.0, "a number above 0")?;
        in_range("optim.weight_decay", o.weight_decay, 0.0, 10.0)?;
        in_range("optim.layer_decay", o.layer_decay, 0.01, 1.0)?;
        in_range("optim.clip", o.clip, 0.0, f64::MAX)?;
        in_range("schedule.min_lr", self.schedule.min_lr, 0.0, o.lr)?;
        if let Some(epochs) = self.schedule.warmup_epochs {
            in_range("schedule.warmup_epochs", epochs, 0.0, 1e6)?;
            let alone = self.schedule.warmup == 0;
            require("schedule.warmup_epochs", epochs, alone, "left out beside schedule.warmup")?;
        }

        let t = &self.train;
        require(
            "train.accumulate",
            t.accumulate,
            t.batch.is_multiple_of(t.accumulate),
            &format!("a divisor of train.batch, {}", t.batch),
        )?;
        require("train.log_every", t.log_every, t.log_every > 0, "1 or more")?;
        require("train.max_skipped", t.max_skipped, t.max_skipped > 0, "1 or more")?;
        in_range("train.ema", t.ema, 0.0, 0.999_999_9)?;
        let lengths = [t.steps.is_some(), t.epochs.is_some(), t.samples.is_some()];
        if lengths.iter().filter(|&&given| given).count() != 1 {
            return Err("train: give one of steps, epochs and samples".into());
        }
        let epochs = t.epochs.unwrap_or(1.0);
        let allowed = "a number above 0, and at most a million";
        require("train.epochs", epochs, epochs > 0.0 && epochs <= 1e6, allowed)?;
        within("train.steps", t.steps.unwrap_or(0), 0, MAX_STEPS)?;
        within("train.samples", t.samples.unwrap_or(0), 0, MAX_STEPS)?;
        // Whether the machine has it is asked when it computes: a recipe is planned and read on others too.
        gpu_named(&t.device, 0).map_err(|e| format!("train.device: {e}"))?;

        require("checkpoint.every", 0, self.checkpoint.every > 0, "1 or more")?;
        require("checkpoint.keep", 0, self.checkpoint.keep > 0, "1 or more")?;

        self.task.check(&mut self.model, &self.train)
    }

    /// Turns epochs and samples into steps, once the size of the training data is known. An epoch is each sample once, in
    /// all its views.
    pub fn resolve_length(&mut self, samples: usize) {
        let batch = self.train.batch as f64;
        let per_epoch = (samples * self.data.repeats) as f64 / batch;
        let steps = match (self.train.steps, self.train.epochs, self.train.samples) {
            (Some(steps), ..) => steps,
            (_, Some(epochs), _) => (epochs * per_epoch).ceil() as u64,
            (.., Some(samples)) => (samples as f64 / batch).ceil() as u64,
            _ => 0,
        };
        (self.train.epochs, self.train.samples) = (None, None);
        self.train.steps = Some(steps);
        if let Some(epochs) = self.schedule.warmup_epochs.take() {
            self.schedule.warmup = (epochs * per_epoch).round() as u64;
        }
    }

    /// Images of a micro-batch on each of `world` processes.
    ///
    /// # Errors
    /// When the batch can't be shared evenly.
    pub fn micro_batch(&self, world: usize) -> Result<usize, RecipeError> {
        let (batch, accumulate, repeats) =
            (self.train.batch, self.train.accumulate, self.data.repeats);
        let unit = accumulate * repeats * world;
        if !batch.is_multiple_of(unit) {
            let message = format!(
                "train.batch = {batch}: must be a multiple of {unit}, train.accumulate ({accumulate}) x data.repeats \
                 ({repeats}) x processes ({world})"
            );
            return Err(RecipeError { origin: "recipe".into(), message });
        }
        Ok(batch / accumulate / world)
    }

    /// Optimiser steps of the whole run; 0 before [`Recipe::resolve_length`] where the recipe counts otherwise.
    pub fn steps(&self) -> u64 {
        self.train.steps.unwrap_or(0)
    }

    /// The sets to train on, as the task reads them.
    ///
    /// # Errors
    /// When one can't be opened.
    pub fn open_train(&self) -> Result<Arc<dyn Source>, DataError> {
        self.data.open_train(self.task.reads_texts_alone())
    }

    /// The sets to train on and those to validate on, where there are any, as the task reads them. What is wrong with them is said
    /// in the log where `tell` says so.
    ///
    /// # Errors
    /// When one can't be opened.
    pub(crate) fn open_data(&self, tell: bool) -> Result<Sources, DataError> {
        self.data.open(self.task.reads_texts_alone(), tell)
    }

    /// The same under a teacher of random weights where its own isn't there, but what it is is said: to measure speed.
    pub fn or_random_teacher(mut self) -> Recipe {
        if let Some(teacher) = self.task.teacher_mut()
            && teacher.arch.is_some()
            && teacher.path.as_ref().is_some_and(|path| !path.exists())
        {
            teacher.path = None;
        }
        self
    }

    /// The resolved recipe as TOML, every default written out.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(&Written::from(self.clone())).expect("a recipe is plain data")
    }
}

/// The table of a run's recipe with `sets` over it, without the sections of other tasks that former versions wrote.
fn table_of_run(path: &Path, sets: &[String]) -> Result<Table, RecipeError> {
    let mut table = table(path, &[])?;
    if let Some(task) = task_of(&table) {
        task.drop_foreign(&mut table);
    }
    lay_sets_over(&mut table, sets)?;
    Ok(table)
}

/// The task that a recipe names, if it is one that there is.
fn task_of(table: &Table) -> Option<TaskKind> {
    table.get("task").cloned().and_then(|task| task.try_into().ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::PathBuf;

    use uta_model::VitConfig;

    use super::*;

    const SMALL: &str = r#"
        task = "align"
        [model]
        image_size = 48
        patch_size = 12
        width = 64
        depth = 2
        heads = 1
        hidden = 128
        out = 32
        ffn = "swiglu"
        rope = true
        [teacher]
        path = "teacher"
        [data]
        train = ["shards"]
        [train]
        steps = 10
        batch = 8
    "#;

    fn load(text: &str, sets: &[&str]) -> Result<Recipe, RecipeError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.toml");
        std::fs::write(&path, text).unwrap();
        let sets: Vec<String> = sets.iter().map(|&s| s.to_owned()).collect();
        Recipe::load(&path, &sets)
    }

    #[test]
    fn the_resolved_recipe_reads_back_as_itself() {
        let mut recipe = load(SMALL, &["train.epochs=2", "schedule.warmup_epochs=0.5"]).unwrap();
        recipe.resolve_length(80);
        assert_eq!((recipe.steps(), recipe.schedule.warmup), (20, 5));
        let again = Recipe::from_table(recipe.to_toml().parse().unwrap()).unwrap();
        assert_eq!(again, recipe);
        let shorter = ["schedule.warmup_epochs=0.5", "schedule.warmup=3"];
        assert_eq!(load(SMALL, &shorter).unwrap().schedule.warmup_epochs, None);
        let back = ["schedule.warmup=3", "schedule.warmup_epochs=0.5"];
        assert_eq!(load(SMALL, &back).unwrap().schedule.warmup, 0);
        let twice = ["data.repeats=2", "train.epochs=2", "schedule.warmup_epochs=0.5"];
        let mut twice = load(SMALL, &twice).unwrap();
        twice.resolve_length(80);
        assert_eq!((twice.steps(), twice.schedule.warmup), (40, 10));
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_one() {
        let e = load(SMALL, &["train.stepz=3"]).unwrap_err().to_string();
        assert!(e.contains("train") && e.contains("did you mean `steps`"), "{e}");
        for (set, words) in [
            ("model.image_size=15", "model: image_size = 15: must be"),
            ("model.preset=x", "model.preset: no preset"),
            ("model.init=7", "model.init: 7 is no text"),
            ("model.bogus=3", "unknown field `bogus`"),
        ] {
            let e = load(SMALL, &[set]).unwrap_err().to_string();
            assert!(e.contains(words) && !e.contains("model: model"), "{e}");
        }
        let e = load(SMALL, &["model.widht=3"]).unwrap_err().to_string();
        assert!(e.contains("model") && e.contains("did you mean `width`"), "{e}");
        assert!(!e.contains('\n'), "{e}");
    }

    #[test]
    fn a_value_out_of_range_is_named_with_what_is_allowed() {
        for (set, words) in [
            ("mask.ratio=1.5", "mask.ratio = 1.5: must be from 0 to 0.95"),
            ("train.batch=0", "--set train.batch = 0: must be from 1 to 1048576"),
            ("train.batch=10000000", "train.batch = 10000000: must be from 1 to"),
            ("train.batch=99999999999999999999", "is too large a number"),
            (
                "train.batch=-8",
                "--set train.batch: invalid value: integer `-8`, expected a whole number, 0 or more",
            ),
            ("train.batch=2.5", "expected a whole number, 0 or more"),
            ("optim.lr=fast", "expected a number"),
            ("optim.betas=0.9", "expected two numbers, [a, b]"),
            ("data.orient=yes", "expected true or false"),
            ("data.val=3", "--set data.val: invalid type: integer `3`, expected a list"),
            ("data.train=", "--set data.train = \"\": must be a path"),
            (
                "model.text={context_length=12,vocab_size=9,width=8,heads=1,layers=1,out=8}",
                "--set model.text: task \"align\" has no section `model.text`, only text-align and contrastive have",
            ),
            (
                "contrastive.temperature=0.1",
                "--set contrastive.temperature=0.1: contrastive: task \"align\" has no section",
            ),
            ("train=4", "--set train: invalid type: integer `4`, expected a table of keys"),
            ("foo.bar=4", "--set foo.bar=4: foo: unknown field `foo`"),
            ("data.workers=100000", "data.workers = 100000: must be from 0 to 1024"),
            ("data.prefetch=4294967296", "data.prefetch = 4294967296: must be from 1 to 1024"),
            ("data.shuffle_buffer=9000000000000000000", "must be from 1 to"),
            ("train.threads=2000", "train.threads = 2000: must be from 0 to 1024"),
            (
                "train.steps=9000000000000000000",
                "train.steps = 9000000000000000000: must be from 0",
            ),
            (
                "model.width=100000",
                "--set model.width=100000: model: width = 100000: must be from 1 to 65536",
            ),
            ("model={width=3}", "--set model: missing field `image_size`"),
            ("train.accumulate=3", "a divisor of train.batch, 8"),
            ("mask.kind=blocks", "block-reversed"),
            ("train.device=tpu", "none of auto, cpu, cuda, cuda:N"),
            ("data.image_size=64", "the model's image_size, 48"),
            (
                "task=contrastive",
                "has no section `teacher`, only align, mim, uta-mim and text-align have",
            ),
            ("train.steps=many", "train.steps"),
        ] {
            let e = load(SMALL, &[set]).unwrap_err().to_string();
            assert!(e.contains(words), "{set}: {e}");
        }
    }

    #[test]
    fn sections_of_other_tasks_are_refused_except_in_runs_that_former_versions_began() {
        let text = "model.text={context_length=12,vocab_size=600,width=8,heads=1,layers=1,out=32}";
        let pair = SMALL.split("[teacher]").next().unwrap().replace("align", "contrastive");
        let rest = SMALL.split_once("[data]").unwrap().1;
        let pair = format!("{pair}[data]{rest}");
        assert!(matches!(load(&pair, &[text]).unwrap().task, TaskRecipe::Contrastive(_)));
        let e = load(&pair, &[text, "mask.ratio=0.5"]).unwrap_err().to_string();
        assert!(e.contains("task \"contrastive\" has no section `mask`, only align, mim, uta-mim and text-align have"), "{e}");
        let e = load(&pair, &[&text.replace("12,", "9000000000000000000,")]).unwrap_err();
        let words =
            "--set model.text: context_length = 9000000000000000000: must be from 1 to 65536";
        assert_eq!(e.to_string(), words);
        // Every task's sections once stood in the resolved recipe.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recipe.toml");
        let begun = load(&pair, &[text]).unwrap();
        std::fs::write(&path, format!("{}\n[mask]\nratio = 0.5\n", begun.to_toml())).unwrap();
        assert_eq!(Recipe::load_begun(&path, &[]).unwrap(), begun);
    }

    #[test]
    fn transforms_are_written_as_timm_users_write_them() {
        let recipe = load(
            SMALL,
            &[
                "data.transforms.rand_augment=rand-m9-mstd0.5-inc1",
                "data.transforms.interpolation=random",
                "data.transforms.erasing={ prob = 0.25, mode = \"pixel\" }",
            ],
        )
        .unwrap();
        let transforms = &recipe.data.transforms;
        assert_eq!(transforms.rand_augment.unwrap().magnitude, 9);
        assert_eq!((transforms.erasing.prob, transforms.erasing.count), (0.25, 1));
        assert_eq!(Recipe::from_table(recipe.to_toml().parse().unwrap()).unwrap(), recipe);
        for (set, words) in [
            (
                "rand_augment=rand-x3",
                "data.transforms.rand_augment: \"rand-x3\": \"x3\" is not known",
            ),
            (
                "erasing={ prob = 0.25, mode = \"noise\" }",
                "expected one of `const`, `rand`, `pixel`",
            ),
            ("erasing={ probability = 0.25 }", "did you mean `prob`"),
            ("interpolation=area", "`nearest`, `bilinear`, `bicubic`, `random`"),
            ("color_jitter=\"much\"", "expected a number, or a table of brightness"),
            ("color_jitter={ hu = 0.1 }", "did you mean `hue`"),
            ("color_jitter=0.4", "rand_augment"),
            ("mixup=0.8", "task \"align\" has no classes to mix"),
            ("cutmix=1.0", "task \"align\" has no classes to mix"),
            ("mixup=-1", "mixup = -1: is 0 or more"),
        ] {
            let set = format!("data.transforms.{set}");
            let e = load(SMALL, &["data.transforms.rand_augment=rand", &set]).unwrap_err();
            let e = e.to_string();
            assert!(e.contains(words) && !e.contains('\n'), "{set}: {e}");
        }
        let jitter = load(SMALL, &["data.transforms.color_jitter=0.4"]).unwrap();
        let jitter = jitter.data.transforms.color_jitter;
        assert_eq!((jitter.contrast, jitter.hue), (0.4, 0.0));
    }

    #[test]
    fn set_overrides_extends_and_one_measure_of_length_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("base.toml"), SMALL).unwrap();
        let path = dir.path().join("r.toml");
        std::fs::write(&path, "extends = \"base.toml\"\n[train]\nbatch = 16\n").unwrap();
        let recipe =
            Recipe::load(&path, &["train.samples=64".into(), "data.train=a/b".into()]).unwrap();
        assert_eq!((recipe.train.batch, recipe.train.steps), (16, None));
        let here = std::env::current_dir().unwrap();
        assert_eq!(recipe.data.train, [here.join("a/b").to_str().unwrap().into()]);
        std::fs::write(&path, "extends = \"base.toml\"\n[train]\nepochs = 3\n").unwrap();
        let recipe = Recipe::load(&path, &[]).unwrap();
        assert_eq!((recipe.train.epochs, recipe.train.steps), (Some(3.0), None));
        std::fs::write(&path, "extends = \"base.toml\"\n[train]\nepochs = 3\nsteps = 4\n").unwrap();
        let error = Recipe::load(&path, &[]).unwrap_err().to_string();
        assert!(error.contains("give one of steps, epochs and samples"), "{error}");
    }

    #[test]
    fn another_preset_takes_the_place_of_written_sizes_and_leaves_what_is_no_size() {
        let preset = VitConfig::preset("uta-b14").unwrap();
        let sets = ["model.drop_path=0.2", "model.preset=uta-b14"];
        let vision = load(SMALL, &sets).unwrap().model.vision;
        assert_eq!((vision.width, vision.image_size), (preset.width, preset.image_size));
        assert_eq!((vision.out, vision.drop_path), (32, 0.2));
        for sets in
            [["model.preset=uta-b14", "model.depth=3"], ["model.depth=3", "model.preset=uta-b14"]]
        {
            let vision = load(SMALL, &sets).unwrap().model.vision;
            assert_eq!((vision.width, vision.depth), (preset.width, 3));
        }
    }

    #[test]
    fn another_teacher_takes_the_place_of_what_described_the_old_one() {
        let described =
            SMALL.replace("path = \"teacher\"", "path = \"t\"\narch = \"vit-l-14\"\ncache = \"c\"");
        let teacher =
            |sets: &[&str]| load(&described, sets).unwrap().task.teacher().unwrap().clone();
        let parts = |teacher: Teacher| {
            let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
            (teacher.path.map(name), teacher.arch, teacher.cache.map(name))
        };
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(parts(teacher(&[])), (some("t"), some("vit-l-14"), some("c")));
        assert_eq!(parts(teacher(&["teacher.path=other"])), (some("other"), None, None));
        for sets in [
            ["teacher.path=other", "teacher.arch=vit-b-16"],
            ["teacher.arch=vit-b-16", "teacher.path=other"],
        ] {
            assert_eq!(parts(teacher(&sets)), (some("other"), some("vit-b-16"), None));
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("base.toml"), described).unwrap();
        let path = dir.path().join("r.toml");
        std::fs::write(&path, "extends = \"base.toml\"\n[teacher]\npath = \"other\"\n").unwrap();
        let teacher = Recipe::load(&path, &[]).unwrap().task.teacher().unwrap().clone();
        assert_eq!(parts(teacher), (some("other"), None, None));
    }

    #[test]
    fn the_width_of_the_head_follows_unless_it_is_written() {
        for text in [
            SMALL.replace("out = 32\n", ""),
            SMALL.replace("[model]\n", "[model]\npreset = \"uta-b14\"\n").replace("out = 32\n", ""),
        ] {
            let recipe = load(&text, &[]).unwrap();
            let mut again = Recipe::from_table(recipe.to_toml().parse().unwrap()).unwrap();
            again.model.follow(768);
            assert_eq!(again.model.vision.out, 768);
            assert!(again.to_toml().contains("out = 768"));
            again.model.follow(512);
            assert_eq!(again.model.vision.out, 768, "what was settled stays");
        }
        let mut written = load(SMALL, &[]).unwrap();
        written.model.follow(768);
        assert_eq!(written.model.vision.out, 32);
    }

    #[test]
    fn what_is_wrong_is_blamed_on_the_setting_or_on_the_file() {
        let said = |sets: &[&str]| load(SMALL, sets).unwrap_err().to_string();
        // The last of several counts.
        assert!(
            said(&["train.batch=4", "train.batch=0"]).starts_with("--set train.batch = 0: must")
        );
        // Two keys that don't go together: the one that is named first.
        let e = said(&["train.batch=10", "train.accumulate=3"]);
        assert!(e.starts_with("--set train.accumulate = 3: must be a divisor"), "{e}");
        let e = said(&["train.batch=10", "train.accumulate=4"]);
        assert!(e.starts_with("--set train.accumulate = 4: must be a divisor"), "{e}");
        let text = SMALL.replace("batch = 8", "batch = 0");
        let e = load(&text, &["train.steps=5"]).unwrap_err().to_string();
        assert!(e.contains("r.toml: train.batch = 0"), "{e}");
    }

    #[test]
    fn paths_are_those_of_the_present_directory_and_absolute_from_then_on() {
        let sets = [
            "data.train=[\"a/{0..9}.tar\", {data=\"b\", weight=2.0, pairs={images=\"c\"}}, \"s3://d/e.tar\"]",
            "data.val=~/f*.tar",
            "data.pairs={images=\"g\"}",
            "teacher={path=\"/h\", arch=\"Cargo.toml\", cache=\"~\"}",
            "model.init=j",
            "eval.sets=[{name=\"n\", kind=\"zeroshot\", data=\"k\", classnames=\"l\", templates=\"m\"}]",
        ];
        let mut recipe = load(SMALL, &sets).unwrap();
        let here = std::env::current_dir().unwrap().display().to_string();
        let home = std::env::var("HOME").unwrap();
        let paths: Vec<String> =
            recipe.paths().into_iter().map(|(_, place)| place.get().to_owned()).collect();
        let here = |name: &str| format!("{here}/{name}");
        let expected = [
            here("a/{0..9}.tar"),
            here("b"),
            here("c"),
            "s3://d/e.tar".into(),
            format!("{home}/f*.tar"),
            here("g"),
            here("k"),
            here("l"),
            here("m"),
            "/h".into(),
            home,
            here("Cargo.toml"),
            here("j"),
        ];
        assert_eq!(paths, expected);
        assert_eq!(Recipe::from_table(recipe.to_toml().parse().unwrap()).unwrap(), recipe);
    }

    #[test]
    fn a_file_that_is_no_toml_is_named_with_its_line() {
        let e = load("task = \"align\"\n[train\n", &[]).unwrap_err().to_string();
        assert!(e.contains("r.toml: line 2"), "{e}");
        let e = Recipe::load(Path::new("/no/such.toml"), &[]).unwrap_err().to_string();
        assert!(e.contains("/no/such.toml: can't be read"), "{e}");
    }
}
