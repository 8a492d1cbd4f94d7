//! Text
use tch::{Tensor, nn};
use crate::TextConfig;
/// Text
#[derive(Debug)]
pub struct TextTower;
#[allow(missing_docs)]
impl TextTower {
    pub fn new(_p: &nn::Path, _c: &TextConfig) -> TextTower { todo!() }
    pub fn forward(&self, _tokens: &Tensor) -> Tensor { todo!() }
}
