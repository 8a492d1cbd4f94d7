//! Checkpointing, collectives, kernels and MKL, as libtorch and real processes run them.
#![allow(clippy::unwrap_used)]

mod checkpoint;
mod cuda;
#[cfg(target_arch = "x86_64")]
mod mkl;
mod on_ranks;
mod ranks;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by tests that draw from libtorch's random generator, which is the process's: they run one after the other.
fn generator() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
