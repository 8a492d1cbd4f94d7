//! safetensors files. They are written under another name, synced and renamed; and read as views of the mapped file, so that a
//! checkpoint needs no memory besides the weights it fills.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io::{self, Read, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::first_line;
use uta_base::write_with;

use super::file::OpenFile;
use super::hints;
use crate::ModelError;

/// The longest header that is believed; 100 MB, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// Bytes before the header: its length.
const LENGTH: usize = 8;

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

    write_with(path, |file| {
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

/// A JSON object whose keys are distinct: of two tensors of one name the format's own reader would take the last.
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

/// The contents of a safetensors file.
#[derive(Debug)]
pub(crate) struct Contents {
    /// The file's metadata.
    pub metadata: BTreeMap<String, String>,
    /// The tensors in their own kinds, on the CPU: views of the mapped file.
    pub tensors: BTreeMap<String, Tensor>,
}

/// Maps a file, after comparing what its header promises with its length.
///
/// # Errors
/// When it can't be read, or is no whole safetensors file.
pub(crate) fn read(mut open: OpenFile) -> Result<Contents, ModelError> {
    open.seek(LENGTH as u64)?;
    let OpenFile { path, mut file, length, head } = open;
    let path = path.as_path();
    let wrong = |message: String| ModelError::format(path, message);
    let size = head.first_chunk().map_or(u64::MAX, |size| u64::from_le_bytes(*size));
    let whole = size <= MAX_HEADER && size.saturating_add(LENGTH as u64) <= length;
    let begun = head.get(LENGTH) == Some(&b'{');
    if let Some(other) = hints::what_else(&head).filter(|_| !begun || !whole) {
        return Err(wrong(other));
    }
    if !whole {
        return Err(wrong(if length <= LENGTH as u64 {
            "is no safetensors file: shorter than a header".into()
        } else if begun {
            format!("is no whole safetensors file: a header of {size} bytes in a file of {length}")
        } else {
            "is no checkpoint: neither a safetensors nor a PyTorch file".into()
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
    // A failure to map the file is the system's, and says nothing about its contents.
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
        let from = start + info.data_offsets.0;
        let to = start + info.data_offsets.1;
        let tensor = if from == to {
            Tensor::f_zeros(&shape, (kind, Device::Cpu))
        } else {
            let bytes = match whole {
                Some(whole) => whole.shallow_clone(),
                None => mapped(to as u64)?,
            };
            bytes.f_narrow(0, from as i64, (to - from) as i64).and_then(|view| {
                // Writers need not align; a view of another kind must be.
                let aligned = from.is_multiple_of(kind.elt_size_in_bytes());
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
    // A mapping for each tensor, up to its end: its memory is given back to the system when the tensor is dropped. One for all
    // where a process may not have so many addresses (`ulimit -v`).
    let tensors = views(None).or_else(|first| match mapped(length) {
        Ok(whole) => views(Some(&whole)),
        Err(_) => Err(first),
    })?;
    Ok(Contents { metadata, tensors })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    #[test]
    fn damaged_files_are_refused_from_their_headers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let tensor = ("a".to_owned(), Tensor::from_slice(&[1f32; 100]));
        save(&[tensor], &path, &BTreeMap::new(), None).unwrap();
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
            let e = OpenFile::open(&path).and_then(read).unwrap_err().to_string();
            assert!(e.contains(words), "{e}");
        }
    }
}
