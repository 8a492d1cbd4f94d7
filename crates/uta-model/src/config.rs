//! Sizes.
use serde::{Deserialize, Serialize};
use crate::ModelError;

/// Feed-forward network of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ffn {
    /// SwiGLU with an inner LayerNorm.
    SwiGlu,
    /// Two linear layers around an exact GELU.
    Gelu,
}

/// Vision transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct VitConfig {
    pub image_size: i64,
    pub patch_size: i64,
    pub width: i64,
    pub depth: i64,
    pub heads: i64,
    pub hidden: i64,
    pub out: i64,
    pub ffn: Ffn,
    pub rope: bool,
    #[serde(default)]
    pub drop_path: f64,
    #[serde(default = "one")]
    pub patch_grad: f64,
}
fn one() -> f64 { 1.0 }

#[allow(missing_docs)]
impl VitConfig {
    pub fn preset(_name: &str) -> Result<VitConfig, ModelError> { todo!() }
    pub fn grid(&self) -> i64 { self.image_size / self.patch_size }
    pub fn num_patches(&self) -> i64 { self.grid() * self.grid() }
    pub fn head_width(&self) -> i64 { self.width / self.heads }
    pub fn check(&self) -> Result<(), ModelError> { todo!() }
}

/// Text tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TextConfig {
    pub context_length: i64,
    pub vocab_size: i64,
    pub width: i64,
    pub heads: i64,
    pub layers: i64,
    pub out: i64,
}

/// Pair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ClipConfig {
    pub embed_dim: i64,
    pub vision: VitConfig,
    pub text: Option<TextConfig>,
    pub mean: [f64; 3],
    pub std: [f64; 3],
}
#[allow(missing_docs)]
impl ClipConfig {
    pub fn preset(_name: &str) -> Result<ClipConfig, ModelError> { todo!() }
    pub fn check(&self) -> Result<(), ModelError> { todo!() }
}
/// Names.
pub fn preset_names() -> Vec<String> { todo!() }
