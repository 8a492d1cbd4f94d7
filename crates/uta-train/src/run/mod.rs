//! The run directory (`docs/src/formats.md`): recipe, environment, metrics, checkpoints. Files and checkpoints appear only
//! when they are complete, so that a run killed at any instant leaves no half of one; logs are appended to, and synced with each checkpoint.

mod checkpoint;
mod environment;
pub mod tensorboard;

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tch::{Device, Tensor};
use uta_base::{AtomicFolder, Lock};
use uta_data::Rejected;

use self::checkpoint::{MODEL, checkpoint_name, load_checkpoint, write_checkpoint};
pub(crate) use self::checkpoint::{State, checkpoints};
use self::environment::environment;
use self::tensorboard::{EventWriter, seconds_since_epoch};
use crate::{Recipe, TrainError};

/// An open run directory; locked, so that two processes never write the same run.
pub struct RunDir {
    path: PathBuf,
    metrics: BufWriter<File>,
    events: EventWriter,
    /// Where this process began it and has made no step yet, so that nothing is left of it should that fail: whether the
    /// directory itself is new.
    fresh: Option<bool>,
    _lock: Lock,
}

const REJECTED: &str = "rejected.jsonl";
const EVENTS: &str = "tensorboard";
const ENVIRONMENT: &str = "environment.json";

impl RunDir {
    /// Starts a new run in `path`, of `world` processes, the first of them on `device`.
    ///
    /// # Errors
    /// When there is a run already that has made a step, or a file in its place that no run wrote; when nothing can be written.
    pub fn create(
        path: &Path,
        recipe: &Recipe,
        device: Device,
        world: usize,
    ) -> Result<RunDir, TrainError> {
        if has_begun(path)? {
            return Err(TrainError::run(
                path,
                "holds a run already; give another --out, or continue it with --resume",
            ));
        }
        if !checkpoints(path)?.is_empty() {
            let message = "holds checkpoints of a run whose recipe.toml is gone; remove it, or give another --out";
            return Err(TrainError::run(path, message));
        }
        let foreign = match is_runs(path) {
            true => None,
            false => MADE.iter().chain(&[MODEL, EVENTS]).find(|name| path.join(name).exists()),
        };
        if let Some(name) = foreign {
            let message = format!(
                "holds a {name} that is no run's, and isn't written over; give another --out"
            );
            return Err(TrainError::run(path, message));
        }
        let new = !path.exists();
        fs::create_dir_all(path.join("checkpoints")).map_err(TrainError::io(path))?;
        let lock = lock(path)?;
        // Of one that ended before its first step.
        remove_made(path);
        write_atomically(&path.join(ENVIRONMENT), environment(recipe, device, world).as_bytes())?;
        write_atomically(&path.join("recipe.toml"), recipe.to_toml().as_bytes())?;
        let mut run = RunDir::open_files(path, lock, None)?;
        run.fresh = Some(new);
        Ok(run)
    }

    /// Says that there is something to keep: a step was made, or a run that is to be gone on with was stopped before.
    pub fn keep(&mut self) {
        self.fresh = None;
    }

    /// Goes on with the run in `path` as `recipe` says from now on: fills `model` and `optimizer` from its newest whole
    /// checkpoint, whose state it returns, or leaves them as they are where the run has none yet. Lines of the metrics and of
    /// the rejected samples after that are dropped, they will be made again.
    ///
    /// # Errors
    /// When another process has the run open, there are checkpoints and none is whole, the newest whole one isn't of such a
    /// network and optimiser, or something can't be read: then nothing in the directory is changed. When something can't be
    /// written.
    pub fn reopen(
        path: &Path,
        recipe: &Recipe,
        model: &[(String, Tensor)],
        optimizer: &[(String, Tensor)],
    ) -> Result<(RunDir, Option<State>), TrainError> {
        let lock = lock(path)?;
        let state = load_checkpoint(path, model, optimizer)?;
        let step = state.as_ref().map(|state| state.step);
        write_atomically(&path.join("recipe.toml"), recipe.to_toml().as_bytes())?;
        for name in ["metrics.jsonl", REJECTED] {
            let file = path.join(name);
            let bytes = match fs::read(&file) {
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                other => other.map_err(TrainError::io(&file))?,
            };
            // A line may have been cut in the middle of a character.
            let kept: String = String::from_utf8_lossy(&bytes)
                .lines()
                .filter(|line| {
                    let value: Result<Value, _> = serde_json::from_str(line);
                    value.is_ok_and(|v| {
                        v["step"].as_u64().is_some_and(|s| step.is_some_and(|step| s <= step))
                    })
                })
                .flat_map(|line| [line, "\n"])
                .collect();
            write_atomically(&file, kept.as_bytes())?;
        }
        // Without a checkpoint what was logged before the first step is logged again.
        let last = step.map_or(-1, |step| step as i64);
        Ok((RunDir::open_files(path, lock, Some(last))?, state))
    }

    /// `resumed`: the last step whose lines stay.
    fn open_files(path: &Path, lock: Lock, resumed: Option<i64>) -> Result<RunDir, TrainError> {
        let file = path.join("metrics.jsonl");
        let metrics = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&file)
            .map_err(TrainError::io(&file))?;
        let tensorboard = path.join(EVENTS);
        let events = match resumed {
            // Hides the steps after `last` that a killed run logged and that will be logged again.
            Some(last) => EventWriter::resume(&tensorboard, last),
            None => EventWriter::create(&tensorboard),
        };
        let events = events.map_err(TrainError::io(&tensorboard))?;
        let (path, metrics) = (path.to_owned(), BufWriter::new(metrics));
        Ok(RunDir { path, metrics, events, fresh: None, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved recipe of the run in `path`.
    ///
    /// # Errors
    /// When there is none.
    pub fn recipe(path: &Path) -> Result<Recipe, TrainError> {
        Ok(Recipe::load_of_run(&path.join("recipe.toml"))?)
    }

    /// The same with `sets`, of a run that is to be gone on with.
    ///
    /// # Errors
    /// When there is none, or it is of a former version and its paths mean nothing here.
    pub fn recipe_to_resume(path: &Path, sets: &[String]) -> Result<Recipe, TrainError> {
        let file = path.join("recipe.toml");
        if !file.exists() {
            return Err(TrainError::run(path, "holds no run (no recipe.toml) to resume"));
        }
        Ok(Recipe::load_begun(&file, sets)?)
    }

    /// Adds a line to metrics.jsonl, and its numbers to TensorBoard under their names, after `group` if one is given.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn log(
        &mut self,
        group: Option<&str>,
        line: &Map<String, Value>,
    ) -> Result<(), TrainError> {
        let file = self.path.join("metrics.jsonl");
        serde_json::to_writer(&mut self.metrics, line)
            .map_err(|e| TrainError::io(&file)(e.into()))?;
        self.metrics
            .write_all(b"\n")
            .and_then(|()| self.metrics.flush())
            .map_err(TrainError::io(&file))?;
        let step = line.get("step").and_then(Value::as_u64).unwrap_or(0) as i64;
        let now = seconds_since_epoch();
        for (name, value) in line {
            let Some(value) = value.as_f64().filter(|_| name != "step") else { continue };
            let tag = group.map_or_else(|| name.clone(), |group| format!("{group}/{name}"));
            self.events
                .scalar(&tag, step, value as f32, now)
                .map_err(TrainError::io(&self.path.join(EVENTS)))?;
        }
        self.events.flush().map_err(TrainError::io(&self.path.join(EVENTS)))
    }

    /// Adds a line to rejected.jsonl for each sample that step `step` could not use.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn reject(&self, step: u64, rejected: &[Rejected]) -> Result<(), TrainError> {
        if rejected.is_empty() {
            return Ok(());
        }
        let lines: String = rejected.iter().map(|rejected| rejected.line(step)).collect();
        let file = self.path.join(REJECTED);
        let mut open = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&file)
            .map_err(TrainError::io(&file))?;
        open.write_all(lines.as_bytes()).map_err(TrainError::io(&file))
    }

    /// Writes the checkpoint of `state.step`, makes it the latest, and removes all but the newest `keep` up to it. One that
    /// can't be removed is named in the log.
    ///
    /// # Errors
    /// When it can't be written; the former checkpoints are then as they were.
    pub fn save_checkpoint(
        &mut self,
        state: State,
        model: &[(String, Tensor)],
        optimizer: &[(String, Tensor)],
        keep: usize,
    ) -> Result<(), TrainError> {
        let step = state.step;
        self.metrics
            .flush()
            .and_then(|()| self.metrics.get_ref().sync_data())
            .map_err(TrainError::io(&self.path.join("metrics.jsonl")))?;
        self.events.sync().map_err(TrainError::io(&self.path.join(EVENTS)))?;
        let rejected = self.path.join(REJECTED);
        match File::open(&rejected).and_then(|file| file.sync_data()) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            other => other.map_err(TrainError::io(&rejected))?,
        }
        let folder = self.path.join("checkpoints");
        let name = checkpoint_name(step);
        // Another of this name was passed over as damaged.
        let whole = folder.join(&name);
        let dir = AtomicFolder::create(&whole).map_err(TrainError::io(&whole))?;
        write_checkpoint(dir.path(), state, model, optimizer)?;
        dir.finish().map_err(TrainError::io(&whole))?;
        write_atomically(&folder.join("latest"), name.as_bytes())?;
        // Later ones were passed over as damaged, and are written anew when the run comes there.
        let done = checkpoints(&self.path)?.into_iter().rev().filter(|&done| done <= step);
        for old in done.skip(keep) {
            let old = folder.join(checkpoint_name(old));
            if let Err(e) = fs::remove_dir_all(&old) {
                tracing::warn!("{} can't be removed: {e}", old.display());
            }
        }
        Ok(())
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let Some(new) = self.fresh else { return };
        let path = &self.path;
        // Which samples can't be read is worth keeping; the next try begins anew all the same.
        if fs::metadata(path.join(REJECTED)).is_ok_and(|file| file.len() > 0) {
            return;
        }
        remove_made(path);
        // What can't be removed is in nobody's way.
        let _ = fs::remove_dir(path.join("checkpoints"));
        let _ = fs::remove_file(path.join(".lock"));
        if new {
            let _ = fs::remove_dir(path);
        }
    }
}

/// Whether `path` holds a run that has made a step.
fn has_begun(path: &Path) -> Result<bool, TrainError> {
    if !path.join("recipe.toml").exists() {
        return Ok(false);
    }
    let stepped = |line: &str| {
        let line: Option<Value> = serde_json::from_str(line).ok();
        line.is_some_and(|line| line["step"].as_u64().is_some_and(|step| step > 0))
    };
    let metrics = fs::read(path.join("metrics.jsonl")).unwrap_or_default();
    Ok(!checkpoints(path)?.is_empty()
        || path.join(MODEL).exists()
        || String::from_utf8_lossy(&metrics).lines().any(stepped))
}

/// Files that a run writes before its first step.
const MADE: [&str; 5] = ["recipe.toml", ENVIRONMENT, "metrics.jsonl", "config.json", REJECTED];

/// Whether `path` is the directory of a run: its first file says so.
fn is_runs(path: &Path) -> bool {
    let text = fs::read_to_string(path.join(ENVIRONMENT)).unwrap_or_default();
    serde_json::from_str::<Value>(&text).is_ok_and(|environment| environment["uta"].is_string())
}

/// Removes what a run has written before its first step.
fn remove_made(path: &Path) {
    for name in MADE {
        let _ = fs::remove_file(path.join(name));
    }
    let _ = fs::remove_dir_all(path.join(EVENTS));
}

/// Holds `RUN/.lock` until dropped.
fn lock(path: &Path) -> Result<Lock, TrainError> {
    let file = path.join(".lock");
    let lock = Lock::try_hold(&file).map_err(TrainError::io(&file))?;
    lock.ok_or_else(|| TrainError::run(path, "another process is training in this run directory"))
}

/// Writes a file that appears only when it is complete.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    uta_base::write_atomically(path, bytes).map_err(TrainError::io(path))
}
