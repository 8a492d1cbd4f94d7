//! PyTorch files as `torch.save` writes them: a zip file with a pickle and a storage for each tensor.

use std::io::Write;
use std::path::Path;

use tch::{Device, Kind, Tensor, no_grad};
use uta_base::write_with;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::globals::storage_of;
use crate::ModelError;

/// Writes named tensors as `torch.save` does a state dict; `kind` converts floating-point tensors, `None` keeps their own.
/// `torch.load` reads it, with `weights_only` too.
///
/// # Errors
/// When the file can't be written; a former file of that name is then as it was.
pub fn save(
    tensors: &[(String, Tensor)],
    path: &Path,
    kind: Option<Kind>,
) -> Result<(), ModelError> {
    let mut stored = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let kind = kind.filter(|_| tensor.is_floating_point()).unwrap_or(tensor.kind());
        let storage = storage_of(kind).ok_or_else(|| {
            ModelError::format(path, format!("{name} is of kind {kind:?}, which can't be stored"))
        })?;
        stored.push((name, tensor, kind, storage));
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let named: Vec<_> =
        stored.iter().map(|(name, t, _, storage)| (name.as_str(), t.size(), *storage)).collect();
    let pickle = state_dict(&named);
    write_with(path, |file| {
        let mut zip = ZipWriter::new(file);
        let plain = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .with_alignment(64);
        for (name, bytes) in
            [("data.pkl", &pickle[..]), ("byteorder", b"little"), ("version", b"3\n")]
        {
            zip.start_file(format!("{stem}/{name}"), plain)?;
            zip.write_all(bytes)?;
        }
        let mut bytes = Vec::new();
        for (key, (_, tensor, kind, _)) in stored.iter().enumerate() {
            let tensor = no_grad(|| tensor.detach().to_device(Device::Cpu).to_kind(*kind));
            bytes.resize(tensor.numel() * kind.elt_size_in_bytes(), 0);
            tensor.contiguous().copy_data_u8(&mut bytes, tensor.numel());
            let large = bytes.len() as u64 > u64::from(u32::MAX) / 2;
            zip.start_file(format!("{stem}/data/{key}"), plain.large_file(large))?;
            zip.write_all(&bytes)?;
        }
        zip.finish()?;
        Ok(())
    })
    .map_err(ModelError::io(path))
}

/// The pickle of a dictionary of contiguous tensors, each the whole of a storage whose key is its place in the list: names,
/// sizes and classes of storages.
fn state_dict(tensors: &[(&str, Vec<i64>, &str)]) -> Vec<u8> {
    let text =
        |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let int = |value: i64| match u8::try_from(value) {
        Ok(small) => vec![b'K', small],
        Err(_) => [&b"\x8a\x08"[..], &value.to_le_bytes()].concat(),
    };
    let tuple = |values: &[i64]| {
        let values: Vec<u8> = values.iter().flat_map(|&value| int(value)).collect();
        [&b"("[..], &values, b"t"].concat()
    };
    let mut out = b"\x80\x02}(".to_vec();
    for (key, (name, size, storage)) in tensors.iter().enumerate() {
        let mut strides = vec![1; size.len()];
        for place in (1..size.len()).rev() {
            strides[place - 1] = strides[place] * size[place].max(1);
        }
        for part in [
            &text(name)[..],
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            &text("storage"),
            format!("ctorch\n{storage}\n").as_bytes(),
            &text(&key.to_string()),
            &text("cpu"),
            &int(size.iter().product()),
            b"tQ",
            &int(0),
            &tuple(size),
            &tuple(&strides),
            b"\x89ccollections\nOrderedDict\n)RtR",
        ] {
            out.extend(part);
        }
    }
    out.extend(b"u.");
    out
}
