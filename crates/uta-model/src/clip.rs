//! Clip
use std::path::Path;
use tch::{Device, Kind, Tensor, nn};
use crate::{ClipConfig, ModelError, TextTower, Vit};
/// Pair
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Clip {
    pub config: ClipConfig,
    pub visual: Vit,
    pub text: Option<TextTower>,
    pub logit_scale: Option<Tensor>,
    pub store: nn::VarStore,
}
#[allow(missing_docs)]
impl Clip {
    pub fn new(_config: &ClipConfig, _device: Device) -> Clip { todo!() }
    pub fn load(_path: &Path, _device: Device) -> Result<Clip, ModelError> { todo!() }
    pub fn save(&self, _dir: &Path, _kind: Kind) -> Result<(), ModelError> { todo!() }
    pub fn normalise(&self, _pixels: &Tensor) -> Tensor { todo!() }
    pub fn encode_image(&self, _images: &Tensor) -> Tensor { todo!() }
    pub fn encode_text(&self, _tokens: &Tensor) -> Option<Tensor> { todo!() }
}
