//! io
use std::{collections::BTreeMap, path::Path};
use tch::{Kind, Tensor};
use crate::ModelError;
#[allow(missing_docs)]
pub fn save(_tensors: &[(String, Tensor)], _path: &Path, _metadata: &BTreeMap<String, String>, _kind: Option<Kind>) -> Result<(), ModelError> { todo!() }
/// Opened file
#[derive(Debug)]
pub struct File { 
   /// metadata
   pub metadata: BTreeMap<String, String> }
#[allow(missing_docs)]
pub fn load(_path: &Path) -> Result<BTreeMap<String, Tensor>, ModelError> { todo!() }
/// Copies
pub fn load_into(_path: &Path, _targets: &[(String, Tensor)]) -> Result<(), ModelError> { todo!() }
