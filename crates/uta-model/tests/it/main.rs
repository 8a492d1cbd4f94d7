//! Networks and checkpoint files beside the libraries that they come from.
#![allow(clippy::unwrap_used)]

mod families;
mod reference;
mod torch_files;
