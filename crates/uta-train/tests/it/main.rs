//! Learning curves, losses and optimisers beside plain operators, other processes and PyTorch.
#![allow(clippy::unwrap_used)]

mod cuda;
mod curves;
mod ranks;
mod reference;
mod small;

#[path = "../../../torch-ext/tests/it/on_ranks/mod.rs"]
mod on_ranks;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by tests that draw from libtorch's random generator, which is the process's: they run one after the other.
fn generator() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
