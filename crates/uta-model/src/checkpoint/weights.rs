//! The named tensors of a checkpoint, in whatever file they lie: read, renamed, and filled into a net.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use tch::{Tensor, no_grad};

use super::adapter::Adapter;
use super::file::OpenFile;
use super::{safetensors, torch};
use crate::ModelError;

/// The end of the name of an index of files.
const INDEX: &str = ".index.json";

/// The longest index that is believed, in bytes.
const MAX_INDEX: u64 = 100_000_000;

/// The most names shown of each kind of mismatch.
const SHOWN: usize = 10;

/// The named tensors of a file, or of the files that an index names.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    /// The files that hold the tensors, where `path` is an index of several.
    pub shards: Vec<PathBuf>,
    /// The family whose names the file has, where the tensors have ours.
    adapter: Option<&'static Adapter>,
    /// Metadata of a safetensors file.
    pub metadata: BTreeMap<String, String>,
    /// The tensors in their own kinds, on the CPU: views of the mapped file, read when they are used.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// A safetensors file, its names as they are stored.
    ///
    /// # Errors
    /// When it can't be read, or is no whole safetensors file.
    pub fn open(path: &Path) -> Result<Checkpoint, ModelError> {
        Ok(Checkpoint::of_safetensors(safetensors::read(OpenFile::open(path)?)?, path))
    }

    fn of_safetensors(contents: safetensors::Contents, path: &Path) -> Checkpoint {
        let safetensors::Contents { metadata, tensors } = contents;
        Checkpoint { metadata, ..Checkpoint::of(path, tensors) }
    }

    /// The tensors of one file.
    fn of(path: &Path, tensors: BTreeMap<String, Tensor>) -> Checkpoint {
        Checkpoint {
            path: path.to_owned(),
            shards: Vec::new(),
            adapter: None,
            metadata: BTreeMap::new(),
            tensors,
        }
    }

    /// A safetensors file, or one of PyTorch's own ([`torch`]), told apart by its first bytes: hubs have both as `.bin`.
    /// Or Hugging Face's index of such files, by its name. What trainers put around a net's names is taken off.
    ///
    /// # Errors
    /// When it can't be read, or is no whole file of either kind.
    pub fn read(path: &Path) -> Result<Checkpoint, ModelError> {
        let stored = Checkpoint::stored(path)?;
        let tensors = bare(stored.tensors)
            .map_err(|name| ModelError::format(path, format!("holds {name:?} twice")))?;
        Ok(Checkpoint { tensors, ..stored })
    }

    /// The tensors by the names that are stored.
    fn stored(path: &Path) -> Result<Checkpoint, ModelError> {
        if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(INDEX)) {
            return Checkpoint::sharded(path);
        }
        let open = OpenFile::open(path)?;
        if torch::is_torch(&open) {
            return Ok(Checkpoint::of(path, torch::read_open(open)?));
        }
        Ok(Checkpoint::of_safetensors(safetensors::read(open)?, path))
    }

    /// All the files that an index names (`huggingface_hub/serialization`), which lie beside it.
    fn sharded(path: &Path) -> Result<Checkpoint, ModelError> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let wrong = |message: String| ModelError::format(path, message);
        let mut open = OpenFile::open(path)?;
        if open.length > MAX_INDEX {
            return Err(wrong(format!("is no index of weights: {} bytes", open.length)));
        }
        open.seek(0)?;
        let index: Index = serde_json::from_reader(BufReader::new(open.file))
            .map_err(|e| wrong(format!("is no index of weights: {e}")))?;
        let mut all = Checkpoint::of(path, BTreeMap::new());
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        for name in names {
            // A file's name and nothing else: an index of strangers opens nothing elsewhere.
            let plain = Path::new(name).file_name().is_some_and(|file| file == name.as_str());
            if !plain || name.ends_with(INDEX) {
                return Err(wrong(format!(
                    "names {name:?}, which is no file of weights beside it"
                )));
            }
            let shard = path.with_file_name(name);
            for (key, tensor) in Checkpoint::stored(&shard)?.tensors {
                if all.tensors.contains_key(&key) {
                    return Err(wrong(format!(
                        "has {key:?} in two of its files, {name:?} the second"
                    )));
                }
                if index.weight_map.get(&key).is_none_or(|place| place != name) {
                    return Err(wrong(format!("doesn't say that {key:?} is in {name:?}")));
                }
                all.tensors.insert(key, tensor);
            }
            all.shards.push(shard);
        }
        match index.weight_map.iter().find(|(key, _)| !all.tensors.contains_key(*key)) {
            None => Ok(all),
            Some((key, name)) => {
                Err(wrong(format!("says that {key:?} is in {name:?}, which hasn't it")))
            }
        }
    }

    /// The tensors under this program's names, `adapter` being that of the family the file comes from.
    pub fn adapted(self, adapter: &'static Adapter) -> Checkpoint {
        Checkpoint { tensors: adapter.import(self.tensors), adapter: Some(adapter), ..self }
    }

    /// Fills `targets`, which must be exactly the tensors of the file by name and shape; kinds and devices are converted.
    ///
    /// # Errors
    /// Lists missing, unexpected and mis-shaped names, as the file calls them; nothing has been changed then.
    pub fn fill(mut self, targets: &[(String, Tensor)]) -> Result<(), ModelError> {
        let adapter = self.adapter.unwrap_or(&Adapter::UTA);
        let mut missing = vec![];
        let mut misshaped = vec![];
        let mut pairs = vec![];
        for (name, target) in targets {
            match self.tensors.remove(name) {
                None => missing.extend(adapter.theirs(name, &target.size())),
                Some(stored) if stored.size() != target.size() => {
                    let wanted = adapter.theirs(name, &target.size());
                    misshaped.extend(adapter.theirs(name, &stored.size()).into_iter().zip(wanted));
                }
                Some(stored) => pairs.push((target, stored)),
            }
        }
        let left = self.tensors.iter().flat_map(|(name, t)| adapter.theirs(name, &t.size()));
        let mut unexpected: BTreeSet<String> = left.map(|(name, _)| name).collect();
        // A tensor that couldn't be joined because another is missing kept its name: it isn't missing itself.
        let missing: BTreeSet<String> = missing
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| !unexpected.remove(name))
            .collect();
        // One of theirs may be several of ours.
        misshaped.dedup_by(|a, b| a.0.0 == b.0.0);
        let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
        let unexpected: Vec<&str> = unexpected.iter().map(String::as_str).collect();
        let report = [
            listed("missing", &missing, |name| match nearest(name, &unexpected) {
                Some(other) => format!("{name} (the file has {other})"),
                None => name.to_string(),
            }),
            listed("unexpected", &unexpected, |name| match nearest(name, &missing) {
                Some(other) => format!("{name} (the network has {other})"),
                None => name.to_string(),
            }),
            listed("of another shape", &misshaped, |((name, stored), (_, here))| {
                format!("{name} {stored:?}, here {here:?}")
            }),
        ];
        let report: Vec<String> = report.into_iter().flatten().collect();
        if !report.is_empty() {
            return Err(ModelError::keys(&self.path, &report.join("; ")));
        }
        no_grad(|| {
            for (target, stored) in pairs {
                target.shallow_clone().copy_(&stored);
            }
        });
        Ok(())
    }
}

/// Names of wrappers around a module, wherever in the net: `DistributedDataParallel` and weight averages,
/// `torch.compile`, FSDP, and FSDP's checkpointing.
const WRAPPERS: [&str; 4] =
    ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// Names that training programs give the net, where all names begin with one.
const HOLDERS: [&str; 7] =
    ["model", "net", "network", "clip", "clip_model", "state_dict", "model_state_dict"];

/// The count of updates that `torch.optim.swa_utils.AveragedModel` keeps.
const AVERAGED: &str = "n_averaged";

/// The tensors under the net's own names, without what trainers put around them.
///
/// # Errors
/// The name that two of them have then.
fn bare(mut tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>, String> {
    tensors.remove(AVERAGED);
    let inner = |name: &str| {
        let kept: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
        kept.join(".")
    };
    let mut names: Vec<String> = tensors.keys().map(|name| inner(name)).collect();
    while let Some(holder) = HOLDERS.iter().find(|holder| {
        let within = |name: &String| name.strip_prefix(*holder).is_some_and(|n| n.starts_with('.'));
        !names.is_empty() && names.iter().all(within)
    }) {
        names.iter_mut().for_each(|name| drop(name.drain(..=holder.len())));
    }
    let mut bare = BTreeMap::new();
    for (name, tensor) in names.into_iter().zip(tensors.into_values()) {
        if bare.insert(name.clone(), tensor).is_some() {
            return Err(name);
        }
    }
    Ok(bare)
}

/// "3 missing: a, b, c", at most ten of them spelled out; `None` when there are none.
fn listed<T>(what: &str, items: &[T], show: impl Fn(&T) -> String) -> Option<String> {
    let shown: Vec<String> = items.iter().take(SHOWN).map(show).collect();
    let more = match items.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!items.is_empty()).then(|| format!("{} {what}: {}{more}", items.len(), shown.join(", ")))
}

/// The name most like `name`, if any is much like it.
fn nearest<'a>(name: &str, names: &[&'a str]) -> Option<&'a str> {
    let scored = names.iter().map(|other| (strsim::jaro_winkler(name, other), *other));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(likeness, _)| *likeness > 0.8).map(|(_, other)| other)
}

/// Fills `targets` from a file of this program, which must hold exactly them, by name and shape; kinds and devices are
/// converted. Buffers of rotary embeddings are left alone: they are computed.
///
/// # Errors
/// Lists missing, unexpected and mis-shaped names; nothing has been changed then.
pub fn load_into(path: &Path, targets: &[(String, Tensor)]) -> Result<(), ModelError> {
    Checkpoint::open(path)?.adapted(&Adapter::UTA).fill(targets)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use tch::Kind;

    use super::safetensors::save;
    use super::*;

    fn named(name: &str, values: &[f32]) -> (String, Tensor) {
        (name.to_owned(), Tensor::from_slice(values))
    }

    #[test]
    fn what_is_saved_is_loaded_again_and_halves_are_widened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        save(
            &[named("a", &[1.0, 2.5]), named("b", &[3.0])],
            &path,
            &BTreeMap::new(),
            Some(Kind::Half),
        )
        .unwrap();
        let targets = [named("b", &[0.0]), named("a", &[0.0, 0.0])];
        load_into(&path, &targets).unwrap();
        assert_eq!(Vec::<f32>::try_from(&targets[1].1).unwrap(), [1.0, 2.5]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn names_and_shapes_that_differ_are_listed_and_nothing_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let stored =
            [named("head.wieght", &[1.0]), named("norm", &[1.0, 2.0]), named("same", &[1.0])];
        save(&stored, &path, &BTreeMap::new(), None).unwrap();
        let targets = [named("head.weight", &[0.0]), named("norm", &[0.0]), named("same", &[0.0])];
        let e = load_into(&path, &targets).unwrap_err().to_string();
        assert!(e.contains("head.weight (the file has head.wieght)"), "{e}");
        assert!(e.contains("norm [2], here [1]") && !e.contains('\n'), "{e}");
        assert_eq!(targets[2].1.double_value(&[0]), 0.0);
    }
}
