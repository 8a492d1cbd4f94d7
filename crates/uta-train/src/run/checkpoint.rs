//! Checkpoints of a run: `RUN/checkpoints/step-NNNNNNNN/{model,optimizer}.safetensors` and `state.json`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::Tensor;
use uta_model::{ModelError, safetensors_io};

use crate::TrainError;

pub(super) const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";

/// A checkpoint's account of itself, `state.json`.
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

/// Writes a checkpoint's files into `dir`; `state` gets their lengths.
pub(super) fn write_checkpoint(
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
    let file = dir.join("state.json");
    uta_base::write_atomically(&file, state.as_bytes()).map_err(TrainError::io(&file))
}

/// Fills `model` and `optimizer` from the newest whole checkpoint of the run in `path`; `None` when the run has none yet. A
/// damaged one is named in the log and the one before it is taken.
pub(super) fn load_checkpoint(
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

pub(super) fn checkpoint_name(step: u64) -> String {
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
