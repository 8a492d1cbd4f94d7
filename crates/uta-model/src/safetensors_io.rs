//! safetensors files: written beside, synced and renamed; read strictly, one tensor at a time, so that a checkpoint needs
//! little more memory than its weights.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo, View};
use tch::{Device, Kind, Tensor, no_grad};

use crate::ModelError;

/// The longest header that is believed; 100 MB, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// Names shown of each kind of mismatch.
const SHOWN: usize = 10;

/// Writes named tensors; `kind` converts floating-point tensors (f16 halves a file), `None` keeps their own.
///
/// # Errors
/// When the file can't be written; a former file of that name is then as it was.
pub fn save(
    tensors: &[(String, Tensor)],
    path: &Path,
    metadata: &BTreeMap<String, String>,
    kind: Option<Kind>,
) -> Result<(), ModelError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let beside = PathBuf::from(beside);
    let views = tensors
        .iter()
        .map(|(name, tensor)| Ok((name.as_str(), Stored::new(tensor, kind)?)))
        .collect::<Result<Vec<_>, String>>()
        .map_err(|message| ModelError::format(path, message))?;
    let metadata: HashMap<String, String> = metadata.clone().into_iter().collect();
    let metadata = (!metadata.is_empty()).then_some(metadata);
    let written = safetensors::serialize_to_file(views, metadata, &beside)
        .map_err(|e| match e {
            safetensors::SafeTensorError::IoError(e) => ModelError::io(path)(e),
            other => ModelError::format(path, other.to_string()),
        })
        .and_then(|()| {
            File::open(&beside)
                .and_then(|file| file.sync_all())
                .and_then(|()| fs::rename(&beside, path))
                .and_then(|()| {
                    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
                    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
                })
                .map_err(ModelError::io(path))
        });
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

/// A tensor on its way to a file: its bytes are made when they are written.
struct Stored {
    tensor: Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Stored {
    fn new(tensor: &Tensor, kind: Option<Kind>) -> Result<Stored, String> {
        let kind = kind.filter(|_| tensor.is_floating_point()).unwrap_or(tensor.kind());
        let dtype = KINDS.iter().find(|(known, _)| *known == kind).map(|&(_, dtype)| dtype);
        Ok(Stored {
            tensor: no_grad(|| tensor.detach().to_kind(kind)),
            dtype: dtype.ok_or_else(|| format!("tensors of kind {kind:?} can't be stored"))?,
            shape: tensor.size().iter().map(|&n| n as usize).collect(),
        })
    }
}

const KINDS: [(Kind, Dtype); 8] = [
    (Kind::Float, Dtype::F32),
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Double, Dtype::F64),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Uint8, Dtype::U8),
    (Kind::Bool, Dtype::BOOL),
];

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let tensor = self.tensor.to_device(Device::Cpu).contiguous();
        let mut bytes = vec![0; self.data_len()];
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

/// A safetensors file whose header has been read and checked against its length.
pub struct Reader {
    path: PathBuf,
    file: File,
    /// Where the tensors begin.
    start: u64,
    metadata: Metadata,
}

impl Reader {
    /// Opens a file and believes nothing that its length doesn't allow.
    ///
    /// # Errors
    /// When it can't be read, or is no whole safetensors file.
    pub fn open(path: &Path) -> Result<Reader, ModelError> {
        let mut file = File::open(path).map_err(ModelError::io(path))?;
        let length = file.metadata().map_err(ModelError::io(path))?.len();
        let mut size = [0u8; 8];
        file.read_exact(&mut size).map_err(|_| {
            ModelError::format(path, "is no safetensors file: shorter than a header")
        })?;
        let header = u64::from_le_bytes(size);
        if header > MAX_HEADER || header + 8 > length {
            let message = format!(
                "is no whole safetensors file: a header of {header} bytes in a file of {length}"
            );
            return Err(ModelError::format(path, message));
        }
        let mut bytes = size.to_vec();
        bytes.resize(8 + header as usize, 0);
        file.read_exact(&mut bytes[8..]).map_err(ModelError::io(path))?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes)
            .map_err(|e| ModelError::format(path, format!("is no safetensors file: {e}")))?;
        let start = 8 + header;
        let end = metadata.tensors().values().map(|t| t.data_offsets.1).max().unwrap_or(0) as u64;
        if start + end != length {
            let message = format!("is cut short or overlong: {length} bytes of {}", start + end);
            return Err(ModelError::format(path, message));
        }
        Ok(Reader { path: path.to_owned(), file, start, metadata })
    }

    /// The names and what is stored under each.
    pub fn tensors(&self) -> BTreeMap<String, TensorInfo> {
        self.metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect()
    }

    /// Reads one tensor, in its own kind, to the CPU.
    ///
    /// # Errors
    /// When there is none of that name, or it can't be read.
    pub fn read(&mut self, name: &str) -> Result<Tensor, ModelError> {
        let info = self
            .metadata
            .info(name)
            .ok_or_else(|| ModelError::format(&self.path, format!("holds no tensor {name}")))?;
        let kind = KINDS.iter().find(|(_, dtype)| *dtype == info.dtype).map(|&(kind, _)| kind);
        let kind = kind.ok_or_else(|| {
            ModelError::format(
                &self.path,
                format!("{name} is of kind {:?}, not read here", info.dtype),
            )
        })?;
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0; to - from];
        self.file
            .seek(SeekFrom::Start(self.start + from as u64))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(ModelError::io(&self.path))?;
        let shape: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
        Ok(Tensor::from_data_size(&bytes, &shape, kind))
    }
}

/// Fills `targets` from a file that must hold exactly them, by name and shape; kinds and devices are converted. Buffers
/// of rotary embeddings (`*.rope.freqs_*`) are left alone: they are computed.
///
/// # Errors
/// Lists missing, unexpected and mis-shaped names; nothing has been changed then.
pub fn load_into(path: &Path, targets: &[(String, Tensor)]) -> Result<(), ModelError> {
    let mut reader = Reader::open(path)?;
    let mut stored = reader.tensors();
    stored.retain(|name, _| !name.contains("rope.freqs_"));
    let (mut missing, mut misshaped) = (vec![], vec![]);
    for (name, target) in targets {
        match stored.remove(name) {
            None => missing.push(name.clone()),
            Some(info) => {
                let shape: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
                if shape != target.size() {
                    misshaped.push(format!("{name} {shape:?}, here {:?}", target.size()));
                }
            }
        }
    }
    let unexpected: Vec<String> = stored.into_keys().collect();
    let near = |name: &String| {
        let likeness = |other: &&String| (strsim::jaro_winkler(name, other) * 1e6) as u64;
        match unexpected.iter().max_by_key(likeness) {
            Some(other) if strsim::jaro_winkler(name, other) > 0.8 => {
                format!("{name} (the file has {other})")
            }
            _ => name.clone(),
        }
    };
    let missing: Vec<String> = missing.iter().map(near).collect();
    let report: Vec<String> =
        [("missing", &missing), ("unexpected", &unexpected), ("of another shape", &misshaped)]
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| {
                let more = names.len().saturating_sub(SHOWN);
                let shown = names[..names.len().min(SHOWN)].join(", ");
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                format!("{} {what}: {shown}{more}", names.len())
            })
            .collect();
    if !report.is_empty() {
        return Err(ModelError::Keys { path: path.to_owned(), report: report.join("; ") });
    }
    for (name, target) in targets {
        let tensor = reader.read(name)?;
        no_grad(|| target.shallow_clone().copy_(&tensor));
    }
    Ok(())
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
