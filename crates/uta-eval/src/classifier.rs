//! The zero-shot classifier: a unit row a class, from its name in every template. Building one takes minutes for a large
//! text tower, so it is kept, in memory and in a folder.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use torch_ext::Precision;
use uta_data::sha256::hex;
use uta_model::safetensors_io::{self, Checkpoint};
use uta_model::{Clip, ModelError, unit};

use crate::ranking::to_vec;
use crate::{EvalError, EvalOptions, Prompts, encode_texts};

/// The zero-shot classifier of `prompts` under the text tower of `text`: unit rows `[C,D]`, on its device.
///
/// The newest few are kept in memory by (weights, sentences, precision), so that many models, sets and evaluations
/// during training share one; a tower that has been trained further since gets a new one. `cache` is a folder that keeps
/// them between runs; a file in it that is not whole is built anew, and a folder that can't be written is told of and
/// done without. With several ranks the first one makes it for all.
///
/// # Errors
/// As [`encode_texts`].
pub fn classifier(
    text: &Clip,
    prompts: &Prompts,
    options: &EvalOptions,
    cache: Option<&Path>,
) -> Result<Tensor, EvalError> {
    let size = [prompts.names.len() as i64, text.config.embed_dim];
    let rows = options.group.agree(match options.group.is_first() {
        true => kept_or_built(text, prompts, options, cache),
        false => Ok(Tensor::zeros(size, (Kind::Float, text.store.device()))),
    })?;
    options.group.broadcast(std::slice::from_ref(&rows))?;
    Ok(rows)
}

fn kept_or_built(
    text: &Clip,
    prompts: &Prompts,
    options: &EvalOptions,
    cache: Option<&Path>,
) -> Result<Tensor, EvalError> {
    let config = text.config.text.as_ref().ok_or(EvalError::NoTextTower)?;
    let key = Key {
        tower: format!("{config:?}"),
        weights: fingerprint(text),
        names: prompts.names.clone(),
        templates: prompts.templates.clone(),
        precision: options.precision,
        whole_texts: options.whole_texts,
        device: text.store.device(),
    };
    // Nothing can be half-done in here, so a panic elsewhere while the lock was held leaves a sound cache.
    let kept = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, found)) = kept().iter().find(|(known, _)| *known == key) {
        return Ok(found.shallow_clone());
    }
    let size = [prompts.names.len() as i64, text.config.embed_dim];
    let file = cache.map(|cache| File::new(cache, &key, text));
    let rows = match file.as_ref().and_then(|file| file.read(size)) {
        Some(rows) => rows.to_device(key.device),
        None => {
            let rows = build(text, prompts, options)?;
            if let Some(file) = &file {
                file.write(&rows);
            }
            rows
        }
    };
    let mut kept = kept();
    kept.truncate(MOST_KEPT - 1);
    kept.push_front((key, rows.shallow_clone()));
    Ok(rows)
}

fn build(text: &Clip, prompts: &Prompts, options: &EvalOptions) -> Result<Tensor, EvalError> {
    let embeddings = encode_texts(text, &prompts.sentences(), options)?;
    let (classes, templates) = (prompts.names.len() as i64, prompts.templates.len() as i64);
    let each = embeddings.view([classes, templates, -1]);
    Ok(unit(&each.mean_dim([1i64].as_slice(), false, Kind::Float)))
}

/// How many classifiers stay in memory; one for 1000 classes of width 1024 takes 4 MB.
const MOST_KEPT: usize = 4;

static KEPT: Mutex<VecDeque<(Key, Tensor)>> = Mutex::new(VecDeque::new());

/// Everything that a classifier depends on.
#[derive(PartialEq)]
struct Key {
    tower: String,
    weights: Vec<i64>,
    names: Vec<String>,
    templates: Vec<String>,
    precision: Precision,
    whole_texts: bool,
    device: Device,
}

/// Sums over the bits of every text weight, in all, weighted by row and weighted by column: whether training has moved
/// the tower, at the price of reading it once.
fn fingerprint(model: &Clip) -> Vec<i64> {
    let sums = text_weights(model).flat_map(|(_, weight)| {
        let bits = match weight.kind() {
            Kind::Half | Kind::BFloat16 => weight.detach().view_dtype(Kind::Int16),
            Kind::Float => weight.detach().view_dtype(Kind::Int),
            kind => unreachable!("weights are floating point, not {kind:?}"),
        };
        let width = bits.size().last().copied().unwrap_or(1);
        let bits = bits.contiguous().view([-1, width]);
        let weighted = |dim: i64| {
            let sums = bits.sum_dim_intlist([dim].as_slice(), false, Kind::Int64);
            let place = Tensor::arange(sums.numel() as i64, (Kind::Int64, sums.device())) + 1;
            (sums * place).sum(Kind::Int64).int64_value(&[])
        };
        [bits.sum(Kind::Int64).int64_value(&[]), weighted(0), weighted(1)]
    });
    tch::no_grad(|| sums.collect())
}

fn text_weights(model: &Clip) -> impl Iterator<Item = (String, Tensor)> {
    model.variables().into_iter().filter(|(name, _)| name.starts_with("text."))
}

/// A classifier in the folder, `classifiers/HASH.safetensors`: [`ROWS`], and their own SHA-256 in the metadata.
struct File {
    path: PathBuf,
}

/// The tensor's name, `[C,D]`.
const ROWS: &str = "classifier";
/// The checksum's name.
const SHA256: &str = "sha256";

impl File {
    /// The name holds a hash of all that the classifier depends on, this build of the program included: who computes
    /// otherwise must not find it.
    fn new(cache: &Path, key: &Key, text: &Clip) -> File {
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        add(crate::program().as_bytes());
        let device = if key.device.is_cuda() { "cuda" } else { "cpu" };
        add(format!("{} {:?} {} {device}", key.tower, key.precision, key.whole_texts).as_bytes());
        for (name, weight) in text_weights(text) {
            add(format!("{name} {:?} {:?}", weight.kind(), weight.size()).as_bytes());
            add(&bytes(&weight));
        }
        for list in [&key.names, &key.templates] {
            add(&list.len().to_le_bytes());
            list.iter().for_each(|line| add(line.as_bytes()));
        }
        let name = format!("{}.safetensors", hex(&hash.finalize()));
        File { path: cache.join("classifiers").join(name) }
    }

    /// The rows, where a whole file has them.
    fn read(&self, size: [i64; 2]) -> Option<Tensor> {
        if !self.path.is_file() {
            return None;
        }
        let whole = Checkpoint::open(&self.path).ok().and_then(|mut file| {
            let rows = file.tensors.remove(ROWS)?;
            let sound = rows.size() == size
                && rows.kind() == Kind::Float
                && file.metadata.get(SHA256) == Some(&checksum(&rows));
            // A copy, because the file may be replaced while it is mapped.
            sound.then(|| rows.copy())
        });
        match whole {
            Some(_) => tracing::info!("classifier from {}", self.path.display()),
            None => tracing::warn!("{}: broken, built anew", self.path.display()),
        }
        whole
    }

    fn write(&self, rows: &Tensor) {
        let metadata = BTreeMap::from([(SHA256.to_owned(), checksum(rows))]);
        let tensors = [(ROWS.to_owned(), rows.shallow_clone())];
        let folder = self.path.parent().expect("it was joined to a folder");
        let written = fs::create_dir_all(folder)
            .map_err(|source| ModelError::Io { path: folder.to_owned(), source })
            .and_then(|()| safetensors_io::save(&tensors, &self.path, &metadata, None));
        if let Err(e) = written {
            tracing::warn!("the classifier is not kept (--cache): {e}");
        }
    }
}

/// A tensor's elements as they lie in memory.
fn bytes(tensor: &Tensor) -> Vec<u8> {
    tch::no_grad(|| to_vec(&tensor.detach().contiguous().view([-1]).view_dtype(Kind::Uint8)))
}

fn checksum(rows: &Tensor) -> String {
    hex(&Sha256::digest(bytes(rows)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{clip, options, prompts};

    #[test]
    fn the_classifier_is_built_once_and_again_when_the_tower_has_moved() {
        let (model, prompts) = (clip(3), prompts(3));
        let first = classifier(&model, &prompts, &options(4), None).unwrap();
        let again = classifier(&model, &prompts, &options(2), None).unwrap();
        assert_eq!(first.data_ptr(), again.data_ptr());
        let mut variables = model.store.variables();
        let weight = variables.get_mut("text.text_projection").unwrap();
        let (first_column, second) = (weight.narrow(1, 0, 1).copy(), weight.narrow(1, 1, 1).copy());
        tch::no_grad(|| {
            weight.narrow(1, 0, 1).copy_(&second);
            weight.narrow(1, 1, 1).copy_(&first_column);
        });
        let moved = classifier(&model, &prompts, &options(4), None).unwrap();
        assert!(!moved.allclose(&first, 1e-6, 1e-6, false), "a swap of two columns must be seen");
    }

    /// As another process would have it: nothing of this tower in memory.
    fn forget(model: &Clip) {
        let weights = fingerprint(model);
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(key, _)| key.weights != weights);
    }

    #[test]
    fn a_folder_keeps_classifiers_and_a_broken_file_is_built_anew() {
        let (dir, model) = (tempfile::tempdir().unwrap(), clip(6));
        let build = |prompts: &Prompts| {
            forget(&model);
            classifier(&model, prompts, &options(4), Some(dir.path())).unwrap()
        };
        let files = || {
            let list = fs::read_dir(dir.path().join("classifiers")).unwrap();
            list.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
        };
        let first = build(&prompts(5));
        let [file] = files().try_into().unwrap();
        let whole = fs::read(&file).unwrap();
        assert_eq!(build(&prompts(5)), first);

        // What is read is the file: another row with its own checksum is believed, one without is not.
        let other = first.flip([0]);
        File { path: file.clone() }.write(&other);
        assert_eq!(build(&prompts(5)), other);
        let mut broken = whole.clone();
        *broken.last_mut().unwrap() ^= 1;
        for broken in [&broken[..], &whole[..whole.len() / 2], b""] {
            fs::write(&file, broken).unwrap();
            assert_eq!(build(&prompts(5)), first);
            assert_eq!(fs::read(&file).unwrap(), whole, "it was built anew");
        }
        let _ = build(&prompts(4));
        assert_eq!(files().len(), 2, "other names are another classifier");
        forget(&model);
        let nowhere = file.join("no folder");
        assert_eq!(classifier(&model, &prompts(5), &options(4), Some(&nowhere)).unwrap(), first);
    }
}
