//! safetensors files: written beside, synced and renamed; read as views of the mapped file, so that a checkpoint needs no
//! memory besides the weights it fills.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::first_line;

use super::hints::{self, HEAD};
use super::torch;
use crate::{Adapter, ModelError};

/// The longest header that is believed; 100 MB, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// Bytes before the header: its length.
const LENGTH: usize = 8;

/// How the name of an index of files ends.
const INDEX: &str = ".index.json";

/// Names shown of each kind of mismatch.
const SHOWN: usize = 10;

/// The kinds of tensors that are stored and read.
const KINDS: [(Kind, Dtype); 10] = [
    (Kind::Float, Dtype::F32),
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Double, Dtype::F64),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Int16, Dtype::I16),
    (Kind::Int8, Dtype::I8),
    (Kind::Uint8, Dtype::U8),
    (Kind::Bool, Dtype::BOOL),
];

/// Writes named tensors; `kind` converts floating-point tensors (f16 halves a file), `None` keeps their own. `path` holds
/// either what it held before or the whole new file, whenever the power fails.
///
/// # Errors
/// When the file can't be written; a former file of that name is then as it was.
pub fn save(
    tensors: &[(String, Tensor)],
    path: &Path,
    metadata: &BTreeMap<String, String>,
    kind: Option<Kind>,
) -> Result<(), ModelError> {
    let mut order: Vec<(&str, &Tensor, Kind, Dtype)> = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let kind = kind.filter(|_| tensor.is_floating_point()).unwrap_or(tensor.kind());
        let Some((_, dtype)) = KINDS.iter().find(|(known, _)| *known == kind) else {
            let message = format!("{name} is of kind {kind:?}, which can't be stored");
            return Err(ModelError::format(path, message));
        };
        order.push((name, tensor, kind, *dtype));
    }
    // Widest type first, so that every tensor is aligned to its own size; then by name.
    order.sort_by(|a, b| b.3.cmp(&a.3).then(a.0.cmp(b.0)));

    let mut end = 0;
    let infos = order.iter().map(|(name, tensor, kind, dtype)| {
        let start = end;
        end += tensor.numel() * kind.elt_size_in_bytes();
        let shape = tensor.size().iter().map(|&n| n as usize).collect();
        (name.to_string(), TensorInfo { dtype: *dtype, shape, data_offsets: (start, end) })
    });
    let metadata: HashMap<String, String> = metadata.clone().into_iter().collect();
    let header = Metadata::new((!metadata.is_empty()).then_some(metadata), infos.collect())
        .map_err(|e| ModelError::format(path, e.to_string()))?;
    let mut header = serde_json::to_vec(&header).expect("names, shapes and offsets are plain data");
    header.resize(header.len().next_multiple_of(LENGTH), b' ');

    write_atomically(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let mut bytes = Vec::new();
        for (_, tensor, kind, _) in &order {
            // One tensor at a time leaves the device and is converted.
            let tensor = no_grad(|| tensor.detach().to_device(Device::Cpu).to_kind(*kind));
            bytes.resize(tensor.numel() * kind.elt_size_in_bytes(), 0);
            tensor.contiguous().copy_data_u8(&mut bytes, tensor.numel());
            file.write_all(&bytes)?;
        }
        Ok(())
    })
    .map_err(ModelError::io(path))
}

/// Writes a file beside `path`, waits until the disk has it, and puts it in `path`'s place.
///
/// # Errors
/// The operating system's; a former file of that name is then as it was, and nothing is left beside it.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = Beside::create(path)?;
    write(&mut file.out)?;
    file.finish()
}

/// A file in the making, beside the place that it will have; removed unless it is finished.
pub struct Beside {
    out: BufWriter<File>,
    beside: PathBuf,
    path: PathBuf,
    placed: bool,
}

impl Beside {
    /// Begins what will lie at `path`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn create(path: &Path) -> io::Result<Beside> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".tmp");
        let beside = PathBuf::from(beside);
        let out = BufWriter::new(File::create(&beside)?);
        Ok(Beside { out, beside, path: path.to_owned(), placed: false })
    }

    /// Waits until the disk has it, and puts it into its place.
    ///
    /// # Errors
    /// The operating system's; a former file of that name is then as it was.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        fs::rename(&self.beside, &self.path)?;
        self.placed = true;
        let parent = self.path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Write for Beside {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.placed {
            // Best effort: the disk may be full or gone.
            let _ = fs::remove_file(&self.beside);
        }
    }
}

/// Opens what must be a file, and says how long it is.
///
/// # Errors
/// The operating system's; and for a directory, or a pipe or device that may have no end.
pub(crate) fn open_file(path: &Path) -> Result<(File, u64), ModelError> {
    let about = fs::metadata(path).map_err(ModelError::io(path))?;
    if about.is_dir() {
        return Err(ModelError::format(path, "is a directory, where a file is expected"));
    }
    if !about.is_file() {
        return Err(ModelError::format(path, "is no regular file"));
    }
    let file = File::open(path).map_err(ModelError::io(path))?;
    let length = file.metadata().map_err(ModelError::io(path))?.len();
    Ok((file, length))
}

/// A JSON object no key of which occurs twice: of two tensors of one name the format's own reader takes the last.
struct DistinctKeys;

impl<'de> Deserialize<'de> for DistinctKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DistinctKeys)
    }
}

impl<'de> Visitor<'de> for DistinctKeys {
    type Value = DistinctKeys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut seen = HashSet::new();
        while let Some((key, IgnoredAny)) = map.next_entry::<String, _>()? {
            if let Some(twice) = seen.replace(key) {
                return Err(de::Error::custom(format!("{twice:?} occurs twice")));
            }
        }
        Ok(DistinctKeys)
    }
}

/// A safetensors file that has been checked against its header.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    /// The files that hold the tensors, where `path` is an index of several.
    pub shards: Vec<PathBuf>,
    /// Whose names the file has, where the tensors have ours.
    adapter: Option<&'static Adapter>,
    /// What the file says about itself.
    pub metadata: BTreeMap<String, String>,
    /// The tensors in their own kinds, on the CPU: views of the mapped file, read when they are used.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// Maps a file, after comparing what its header promises with its length.
    ///
    /// # Errors
    /// When it can't be read, or is no whole safetensors file.
    pub fn open(path: &Path) -> Result<Checkpoint, ModelError> {
        let wrong = |message: String| ModelError::format(path, message);
        let (mut file, length) = open_file(path)?;
        let mut head = Vec::new();
        Read::by_ref(&mut file)
            .take(HEAD as u64)
            .read_to_end(&mut head)
            .map_err(ModelError::io(path))?;
        file.seek(SeekFrom::Start(LENGTH as u64)).map_err(ModelError::io(path))?;
        let size = head.first_chunk().map_or(u64::MAX, |size| u64::from_le_bytes(*size));
        let whole = size <= MAX_HEADER && size.saturating_add(LENGTH as u64) <= length;
        let begun = head.get(LENGTH) == Some(&b'{');
        if let Some(other) = hints::what_else(&head).filter(|_| !begun || !whole) {
            return Err(wrong(other));
        }
        if !whole {
            return Err(wrong(match begun {
                _ if length <= LENGTH as u64 => {
                    "is no safetensors file: shorter than a header".into()
                }
                true => format!(
                    "is no whole safetensors file: a header of {size} bytes in a file of {length}"
                ),
                false => "is no checkpoint: neither a safetensors nor a PyTorch file".into(),
            }));
        }
        let mut header = vec![0; size as usize];
        file.read_exact(&mut header).map_err(ModelError::io(path))?;
        let unreadable = |e: serde_json::Error| wrong(format!("is no safetensors file: {e}"));
        let _: DistinctKeys = serde_json::from_slice(&header).map_err(unreadable)?;
        // Parsing checks that offsets, shapes and kinds agree and leave no gap.
        let header: Metadata = serde_json::from_slice(&header).map_err(unreadable)?;
        let start = LENGTH + size as usize;
        if start.checked_add(header.data_len()).is_none_or(|end| end as u64 != length) {
            return Err(wrong(format!(
                "is cut short or overlong: its header promises {} bytes after itself, and there \
                 are {}",
                header.data_len(),
                length - start as u64
            )));
        }

        let name = path.to_str().ok_or_else(|| wrong("the path is not UTF-8".into()))?;
        // Whether the file is mapped is the system's affair, and says nothing of what is in it.
        let mapped = |end| {
            Tensor::f_from_file(name, false, end as i64, (Kind::Uint8, Device::Cpu))
                .map_err(|e| ModelError::io(path)(io::Error::other(first_line(&e))))
        };
        let view = |whole: Option<&Tensor>, name: String, info: &TensorInfo| {
            let kind = KINDS.iter().find(|(_, dtype)| *dtype == info.dtype).map(|&(kind, _)| kind);
            let kind = kind.ok_or_else(|| {
                wrong(format!("{name} is of kind {:?}, which is not read here", info.dtype))
            })?;
            // A size beyond i64 is possible where another is nothing.
            let shape: Option<Vec<i64>> =
                info.shape.iter().map(|&size| i64::try_from(size).ok()).collect();
            let shape = shape.ok_or_else(|| wrong(format!("{name} has an impossible shape")))?;
            let (from, to) = (start + info.data_offsets.0, start + info.data_offsets.1);
            let tensor = if from == to {
                Tensor::f_zeros(&shape, (kind, Device::Cpu))
            } else {
                let bytes = match whole {
                    Some(whole) => whole.shallow_clone(),
                    None => mapped(to as u64)?,
                };
                bytes.f_narrow(0, from as i64, (to - from) as i64).and_then(|view| {
                    // Writers need not align; a view of another kind must be.
                    let aligned = from % kind.elt_size_in_bytes() == 0;
                    let view = if aligned { view } else { view.copy() };
                    view.f_view_dtype(kind)?.f_view(shape.as_slice())
                })
            };
            let tensor = tensor.map_err(|e| wrong(format!("{name}: {}", first_line(&e))))?;
            Ok((name, tensor))
        };
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let views = |whole: Option<&Tensor>| -> Result<BTreeMap<String, Tensor>, ModelError> {
            header.tensors().into_iter().map(|(name, info)| view(whole, name, info)).collect()
        };
        // A mapping for each tensor, up to its end: what was read of one is given back to the system with the tensor. One for
        // all where a process may not have so many addresses (`ulimit -v`).
        let tensors = views(None).or_else(|first| match mapped(length) {
            Ok(whole) => views(Some(&whole)),
            Err(_) => Err(first),
        })?;
        Ok(Checkpoint { metadata, ..Checkpoint::of(path, tensors) })
    }

    /// One file's tensors.
    fn of(path: &Path, tensors: BTreeMap<String, Tensor>) -> Checkpoint {
        Checkpoint {
            path: path.to_owned(),
            shards: Vec::new(),
            adapter: None,
            metadata: BTreeMap::new(),
            tensors,
        }
    }

    /// A safetensors file, or one of PyTorch's own ([`torch`]), told apart by what is in it: hubs have both as `.bin`.
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
        if torch::is_torch_file(path)? {
            return Ok(Checkpoint::of(path, torch::read(path)?));
        }
        Checkpoint::open(path)
    }

    /// All the files that an index names (`huggingface_hub/serialization`), which lie beside it.
    fn sharded(path: &Path) -> Result<Checkpoint, ModelError> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let wrong = |message: String| ModelError::format(path, message);
        let (file, length) = open_file(path)?;
        if length > MAX_HEADER {
            return Err(wrong(format!("is no index of weights: {length} bytes")));
        }
        let index: Index = serde_json::from_reader(BufReader::new(file))
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
        let (mut missing, mut misshaped, mut pairs) = (vec![], vec![], vec![]);
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
        // Theirs that couldn't be joined for want of another kept its name: it isn't missing.
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

/// What wraps a module under its own name, wherever in the net: `DistributedDataParallel` and weight averages,
/// `torch.compile`, FSDP, and FSDP's checkpointing.
const WRAPPERS: [&str; 4] =
    ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// What training programs call the net, where all of their names begin with it.
const HOLDERS: [&str; 7] =
    ["model", "net", "network", "clip", "clip_model", "state_dict", "model_state_dict"];

/// How many updates `torch.optim.swa_utils.AveragedModel` has averaged.
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

    #[test]
    fn damaged_files_are_refused_from_their_headers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        save(&[named("a", &[1.0; 100])], &path, &BTreeMap::new(), None).unwrap();
        let whole = fs::read(&path).unwrap();
        let mut huge = whole.clone();
        huge[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
        for (bytes, words) in [
            (&whole[..whole.len() - 1], "cut short"),
            (&whole[..20], "no whole safetensors"),
            (&whole[..3], "shorter than a header"),
            (&huge[..], "a header of"),
        ] {
            fs::write(&path, bytes).unwrap();
            let e = load_into(&path, &[named("a", &[0.0; 100])]).unwrap_err().to_string();
            assert!(e.contains(words), "{e}");
        }
    }
}
