//! The run directory (`docs/src/formats.md`): recipe, environment, metrics, checkpoints. Files and checkpoints appear only
//! when they are complete, so that a run killed at any instant leaves no half of one; logs are appended to, and synced with each checkpoint.

pub mod tensorboard;

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tch::{Device, Tensor};
use uta_base::{AtomicFolder, Lock};
use uta_data::Rejected;
use uta_model::{ModelError, safetensors_io};

use self::tensorboard::EventWriter;
use crate::device::device_name;
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

/// What a checkpoint says of itself, in `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimiser steps done.
    pub step: u64,
    /// Training images seen.
    pub samples: u64,
    /// Samples met on the way that could not be used.
    #[serde(default)]
    pub rejected: u64,
    /// Samples of `data.train`.
    #[serde(default)]
    pub data: Option<u64>,
    /// Bytes of the files beside it; a file of another length was cut short.
    pub bytes: Map<String, Value>,
}

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
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
        Ok(Recipe::load(&path.join("recipe.toml"), &[])?)
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

/// What a run writes before its first step.
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

/// Writes a checkpoint's files into `dir`; `state` gets their lengths.
fn write_checkpoint(
    dir: &Path,
    mut state: State,
    model: &[(String, Tensor)],
    optimizer: &[(String, Tensor)],
) -> Result<(), TrainError> {
    for (file, tensors) in [(MODEL, model), (OPTIMIZER, optimizer)] {
        let file_path = dir.join(file);
        safetensors_io::save(tensors, &file_path, &Default::default(), None)?;
        let length = fs::metadata(&file_path).map_err(TrainError::io(&file_path))?.len();
        state.bytes.insert(file.into(), length.into());
    }
    let state = serde_json::to_string_pretty(&state).expect("plain data");
    write_atomically(&dir.join("state.json"), state.as_bytes())
}

/// Fills `model` and `optimizer` from the newest whole checkpoint of the run in `path`; `None` when the run has none yet. A
/// damaged one is named in the log and the one before it is taken.
fn load_checkpoint(
    path: &Path,
    model: &[(String, Tensor)],
    optimizer: &[(String, Tensor)],
) -> Result<Option<State>, TrainError> {
    let steps = checkpoints(path)?;
    for &step in steps.iter().rev() {
        let dir = path.join("checkpoints").join(checkpoint_name(step));
        match read_checkpoint(&dir, model, optimizer) {
            Ok(state) => return Ok(Some(state)),
            Err(e) if is_damage(&e) => tracing::warn!("damaged checkpoint passed over: {e}"),
            Err(TrainError::Model(ModelError::Keys { path, report })) => {
                let message = format!(
                    "isn't of the network and optimiser that the recipe now asks for ({report}); resume without the --set \
                     that changed them"
                );
                return Err(TrainError::run(&path, message));
            }
            Err(e) => return Err(e),
        }
    }
    if steps.is_empty() {
        return Ok(None);
    }
    Err(TrainError::run(
        &path.join("checkpoints"),
        "no checkpoint is whole; start again with another --out",
    ))
}

/// Whether a checkpoint itself is at fault: cut short, or not there. One that is whole but of another network, or that a
/// disk or network doesn't give just now, must not be passed over: later ones would take its place.
fn is_damage(error: &TrainError) -> bool {
    match error {
        TrainError::Run { .. } | TrainError::Model(ModelError::Format { .. }) => true,
        TrainError::Io { source, .. } => {
            matches!(source.kind(), ErrorKind::NotFound | ErrorKind::InvalidData)
        }
        _ => false,
    }
}

fn read_checkpoint(
    dir: &Path,
    model: &[(String, Tensor)],
    optimizer: &[(String, Tensor)],
) -> Result<State, TrainError> {
    let file = dir.join("state.json");
    let text = fs::read_to_string(&file).map_err(TrainError::io(&file))?;
    let state: State =
        serde_json::from_str(&text).map_err(|e| TrainError::run(&file, e.to_string()))?;
    for (name, expected) in &state.bytes {
        let file = dir.join(name);
        let found = fs::metadata(&file).map_err(TrainError::io(&file))?.len();
        if expected.as_u64() != Some(found) {
            let message = format!("cut short: {found} bytes of {expected}");
            return Err(TrainError::run(&file, message));
        }
    }
    safetensors_io::load_into(&dir.join(MODEL), model)?;
    safetensors_io::load_into(&dir.join(OPTIMIZER), optimizer)?;
    Ok(state)
}

fn checkpoint_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The steps of the checkpoints of a run, oldest first.
///
/// # Errors
/// When their folder is there and can't be read.
pub(crate) fn checkpoints(run: &Path) -> Result<Vec<u64>, TrainError> {
    let folder = run.join("checkpoints");
    let entries = match fs::read_dir(&folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(vec![]),
        other => other.map_err(TrainError::io(&folder))?,
    };
    let mut steps = vec![];
    for entry in entries {
        let name = entry.map_err(TrainError::io(&folder))?.file_name();
        let step = name.to_str().and_then(|name| name.strip_prefix("step-")?.parse::<u64>().ok());
        steps.extend(step);
    }
    steps.sort_unstable();
    Ok(steps)
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

pub(crate) fn seconds_since_epoch() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// The names of this machine's NVIDIA GPUs, as their driver tells them.
fn gpus() -> Vec<String> {
    let mut cards: Vec<PathBuf> = fs::read_dir("/proc/driver/nvidia/gpus")
        .into_iter()
        .flatten()
        .filter_map(|card| Some(card.ok()?.path().join("information")))
        .collect();
    cards.sort();
    let texts = cards.iter().filter_map(|card| fs::read_to_string(card).ok());
    let name =
        |text: String| Some(text.lines().find_map(|l| l.strip_prefix("Model:"))?.trim().into());
    texts.filter_map(name).collect()
}

/// What the run ran on.
fn environment(recipe: &Recipe, device: Device, world: usize) -> String {
    let commit = std::process::Command::new("git")
        .args(["rev-parse", "HEAD"])
        .stderr(std::process::Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|info| {
        let line = info.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split(':').nth(1)?.trim().to_owned())
    });
    let environment = json!({
        "uta": env!("CARGO_PKG_VERSION"),
        "libtorch": torch_ext::libtorch_version(),
        "device": device_name(device),
        "cuda_devices": tch::Cuda::device_count(),
        "gpus": gpus(),
        "cpu": cpu,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "threads": tch::get_num_threads(),
        "git_commit": commit,
        "seed": recipe.train.seed,
        "world_size": world,
        "started": seconds_since_epoch(),
        "command": std::env::args().collect::<Vec<_>>(),
    });
    serde_json::to_string_pretty(&environment).expect("plain data")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_in_trouble_is_no_damage_of_a_checkpoint() {
        let of = |kind: ErrorKind| TrainError::io(Path::new("f"))(kind.into());
        assert!(is_damage(&of(ErrorKind::NotFound)));
        for kind in [ErrorKind::PermissionDenied, ErrorKind::TimedOut, ErrorKind::Other] {
            assert!(!is_damage(&of(kind)), "{kind}");
        }
    }
}
