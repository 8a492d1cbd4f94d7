//! Trainable tensors of a net, with what an optimiser needs to know of each: its layer, and whether it decays.

use tch::Tensor;

/// A layer of a tower, counted from its input.
///
/// As in EVA-02 (`EVA-02/asuka/optim_factory.py`), a tower of L blocks has L + 2 layers: embeddings of patches, tokens and
/// positions are layer 0, block i is layer i + 1, and all that follows is the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Which layer it is, from 0.
    pub id: u32,
    /// The number of layers of its tower.
    pub of: u32,
}

impl Layer {
    /// The share of the learning rate that the layer gets under layer-wise decay: `decay` to the power of the layers above it,
    /// so that the last layer gets all of it.
    pub fn lr_scale(self, decay: f64) -> f64 {
        decay.powi((self.of - 1 - self.id) as i32)
    }
}

/// A trainable tensor.
#[derive(Debug)]
pub struct Parameter {
    /// Its key in a checkpoint.
    pub name: String,
    /// The leaf tensor, which shares memory with the net's.
    pub tensor: Tensor,
    /// Its layer.
    pub layer: Layer,
    /// Whether weight decay applies. As in EVA-02, matrices decay; vectors, biases, position embeddings, `[CLS]` and mask tokens
    /// don't.
    pub decays: bool,
}

impl Parameter {
    /// The same parameter under another handle.
    pub fn shallow_clone(&self) -> Parameter {
        let Parameter { name, tensor, layer, decays } = self;
        let tensor = tensor.shallow_clone();
        Parameter { name: name.clone(), tensor, layer: *layer, decays: *decays }
    }
}

/// Those of `parameters` that learn; a tensor without gradient is left out.
pub(crate) fn trainable(parameters: &[Parameter]) -> Vec<Parameter> {
    let learning = parameters.iter().filter(|parameter| parameter.tensor.requires_grad());
    learning.map(Parameter::shallow_clone).collect()
}
