//! Files of weights: everybody's formats, names and configurations.

pub mod adapter;
pub mod export;
mod hints;
pub mod origin;
pub mod resize;
pub mod safetensors;
pub mod torch;
