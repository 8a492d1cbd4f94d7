//! `[train]`, `[checkpoint]` and `[eval]`: length, batch, precision, seed; how often a run is saved and measured.

use serde::{Deserialize, Serialize};
use torch_ext::Precision;
use uta_eval::EvalSet;

/// `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Optimiser steps; or `epochs`, or `samples`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Passes over the training data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Training images seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<u64>,
    /// Images in one optimiser step, over all ranks and micro-batches.
    pub batch: usize,
    /// Micro-batches in a step; the gradient is the whole batch's.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// Whether each block of the vision transformer keeps its input alone for the backward pass, and runs again there: a
    /// third more work for less memory.
    #[serde(default)]
    pub checkpoint_blocks: bool,
    /// Type of matrix products.
    #[serde(default)]
    pub precision: PrecisionName,
    /// `auto` (CUDA when there is one), `cpu`, `cuda` (with several ranks, each its own) or `cuda:N`.
    #[serde(default = "auto")]
    pub device: String,
    /// Threads that a CPU computes with. 0 has a run try, before its first step, how many are fastest, unless
    /// `OMP_NUM_THREADS` or a launcher of several processes says; the resolved recipe has their number.
    #[serde(default)]
    pub threads: usize,
    /// Seed of everything random in the run.
    #[serde(default)]
    pub seed: u64,
    /// Steps between lines of metrics.jsonl.
    #[serde(default = "ten")]
    pub log_every: u64,
    /// Decay of a moving average of the weights, which is then evaluated and exported; 0 keeps none.
    #[serde(default)]
    pub ema: f64,
    /// Steps in a row with a non-finite loss or gradient (each is skipped) after which the run stops.
    #[serde(default = "ten")]
    pub max_skipped: u64,
}

/// Precision as recipes spell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionName {
    /// bfloat16 products under autocast; weights, norms and losses in f32.
    Bf16,
    /// Everything in f32.
    #[default]
    F32,
}

impl From<PrecisionName> for Precision {
    fn from(name: PrecisionName) -> Precision {
        match name {
            PrecisionName::Bf16 => Precision::Bf16,
            PrecisionName::F32 => Precision::F32,
        }
    }
}

/// `[checkpoint]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Steps between checkpoints.
    pub every: u64,
    /// How many are kept, the newest.
    pub keep: usize,
    /// Type of the weights in the final RUN/model.safetensors.
    pub export: ExportKind,
}

/// How final weights are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportKind {
    /// As they were trained.
    #[default]
    F32,
    /// Half the size; products in bf16 or f32 notice little of it.
    F16,
}

impl From<ExportKind> for tch::Kind {
    fn from(kind: ExportKind) -> tch::Kind {
        match kind {
            ExportKind::F32 => tch::Kind::Float,
            ExportKind::F16 => tch::Kind::Half,
        }
    }
}

impl Default for Checkpoint {
    fn default() -> Checkpoint {
        Checkpoint { every: 1000, keep: 2, export: ExportKind::F32 }
    }
}

/// `[eval]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Eval {
    /// Steps between evaluations; 0 evaluates before the first step and after the last only.
    pub every: u64,
    /// The sets to evaluate.
    pub sets: Vec<EvalSet>,
}

fn one() -> usize {
    1
}

fn ten() -> u64 {
    10
}

fn auto() -> String {
    "auto".into()
}
