//! Texts: CLIP's tokens, and the repair of garbled characters before them.

pub(crate) mod repair;
pub(crate) mod tokenizer;
