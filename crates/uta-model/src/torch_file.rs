//! PyTorch's own files (`.pt`, `.pth`, `.bin`): tensors by name, nothing of the file executed.

use std::collections::BTreeMap;
use std::path::Path;

use tch::Tensor;

use crate::ModelError;

/// The tensors of a file, in the kinds they are stored in, without the `model`, `module` or `state_dict` around them and
/// without `module.` before their names.
///
/// # Errors
/// When the file isn't one of PyTorch's, or holds anything but tensors, containers and numbers.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, ModelError> {
    Err(ModelError::format(path, "PyTorch's own files can't be read yet: use a safetensors file"))
}
