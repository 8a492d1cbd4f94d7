//! ViT
use tch::{Tensor, nn};
use crate::VitConfig;
/// ViT
#[derive(Debug)]
pub struct Vit;
#[allow(missing_docs)]
impl Vit {
    pub fn new(_p: &nn::Path, _c: &VitConfig) -> Vit { todo!() }
    pub fn forward_t(&self, _images: &Tensor, _kept: Option<&Tensor>, _train: bool) -> Tensor { todo!() }
    pub fn encode(&self, _images: &Tensor) -> Tensor { todo!() }
}
