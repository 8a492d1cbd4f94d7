//! The files of a user's model: its weights, and the configuration beside them.

use std::path::{Path, PathBuf};

use crate::ModelError;
use crate::checkpoint::hints;

/// Files of a model's folder: a configuration and, beside it, the first of these weights that is there.
const FOLDERS: [(&str, &[&str]); 2] = [
    ("open_clip_config.json", &["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]),
    (
        "config.json",
        &[
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "eva_clip.pt",
        ],
    ),
];

/// The weights at `path`, and the configuration beside them.
pub(super) fn locate(path: &Path) -> Result<(PathBuf, Option<PathBuf>), ModelError> {
    let there = |path: PathBuf| path.is_file().then_some(path);
    if path.is_file() {
        let dir = path.parent().unwrap_or(Path::new(""));
        let named = |name: &&str| path.file_name().is_some_and(|file| file == *name);
        let config = FOLDERS.iter().find(|(_, weights)| weights.iter().any(named));
        let beside = config.and_then(|(config, _)| there(dir.join(config)));
        return Ok((path.to_owned(), beside.or_else(|| there(run_of(dir)?.join("config.json")))));
    }
    if let Some(run) = run_of(path)
        && let Some(weights) = there(path.join("model.safetensors"))
    {
        return Ok((weights, there(run.join("config.json"))));
    }
    for (config, weights) in FOLDERS {
        let weights = weights.iter().find_map(|weights| there(path.join(weights)));
        if let Some((weights, config)) = weights.zip(there(path.join(config))) {
            return Ok((weights, Some(config)));
        }
    }
    Err(ModelError::format(path, no_model(path)))
}

/// Why there is no model at `path`, in words that follow it.
fn no_model(path: &Path) -> String {
    if !path.is_dir() {
        return hints::missing(path);
    }
    let checkpoints = path.join("checkpoints");
    if checkpoints.is_dir() {
        let begun = "holds no model yet: the run isn't finished; continue it with --resume";
        return match std::fs::read_to_string(checkpoints.join("latest")) {
            Ok(newest) => {
                let newest = checkpoints.join(newest.trim());
                format!("{begun}, or give its newest checkpoint, {}", newest.display())
            }
            Err(_) => begun.into(),
        };
    }
    let configs = FOLDERS.iter().find(|(config, _)| path.join(config).is_file());
    let files = hints::weights_in(path);
    match (configs, &files[..]) {
        (Some((config, weights)), []) => {
            format!("holds {config} but no weights beside it ({})", weights.join(", "))
        }
        (Some((config, weights)), [file, ..]) => format!(
            "holds {config} but no weights under their usual names ({}); for {file} give the file, {}",
            weights.join(", "),
            path.join(file).display()
        ),
        (None, [file, ..]) => format!(
            "holds no {}; give the file of weights, {}",
            FOLDERS.map(|(config, _)| config).join(" or "),
            path.join(file).display()
        ),
        (None, []) => {
            let wanted = FOLDERS.map(|(config, weights)| format!("{config} and {}", weights[0]));
            format!("is a folder without a model, which would be {}", wanted.join(", or "))
        }
    }
}

/// The run that `dir` is a checkpoint of: RUN/checkpoints/step-00001000. The run's configuration is the checkpoint's.
pub fn run_of(dir: &Path) -> Option<&Path> {
    let folder = dir.parent()?;
    if folder.file_name()? == "checkpoints" { folder.parent() } else { None }
}
