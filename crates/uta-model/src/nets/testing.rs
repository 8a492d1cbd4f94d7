//! Help for unit tests: libtorch's generator, and a small net.
#![allow(clippy::unwrap_used)]

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::config::{ClipConfig, TextConfig, VitConfig};

/// Seeds libtorch's generator and keeps other tests off it: it is the process's only one.
pub(crate) fn seeded(seed: i64) -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    guard
}

/// A CLIP of one block an encoder, for images of 2 x 2 patches.
pub(crate) fn small() -> ClipConfig {
    let vision = VitConfig {
        image_size: 16,
        patch_size: 8,
        width: 16,
        depth: 1,
        heads: 2,
        hidden: 24,
        out: 8,
        ..VitConfig::preset("uta-b14").unwrap()
    };
    let text = TextConfig {
        context_length: 8,
        vocab_size: 600,
        width: 16,
        heads: 2,
        layers: 1,
        out: 8,
        quick_gelu: false,
    };
    ClipConfig::new(vision, Some(text))
}
