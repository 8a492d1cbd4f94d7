//! Errors that end a run early.

use std::path::{Path, PathBuf};

use crate::RecipeError;
use torch_ext::distributed::DistError;
use uta_data::DataError;
use uta_eval::EvalError;
use uta_model::ModelError;

/// An error that ends a run early.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The recipe can't be run.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The data can't be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint or a network can't be used.
    #[error(transparent)]
    Model(ModelError),
    /// The ranks can't go on together.
    #[error(transparent)]
    Ranks(#[from] DistError),
    /// libtorch refused; out of memory, mostly.
    #[error("libtorch: {0}")]
    Torch(String),
    /// The run directory can't be used as asked.
    #[error("{path}: {message}")]
    Run {
        /// The run directory or a file in it.
        path: PathBuf,
        /// The finding, and what to do.
        message: String,
    },
    /// A file of the run directory can't be read or written.
    #[error("{path}: {source}{}", hint(.source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// Too many steps in a row had a loss or gradient that is no number.
    #[error(
        "stopped at step {step}: {in_a_row} steps in a row had a non-finite loss or gradient and were skipped \
         (train.max_skipped = {allowed}); lower optim.lr or raise schedule.warmup, then resume from {last}"
    )]
    NonFinite {
        /// Steps done.
        step: u64,
        /// Skipped steps up to here.
        in_a_row: u64,
        /// `train.max_skipped`.
        allowed: u64,
        /// The newest checkpoint.
        last: String,
    },
    /// A set that is to be evaluated can't be used.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// An evaluator failed.
    #[error("evaluation {name}: {source}")]
    Evaluation {
        /// The evaluator's name.
        name: String,
        /// Its reason.
        source: EvalError,
    },
}

impl TrainError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> TrainError {
        let path = path.to_owned();
        move |source| TrainError::Io { path, source }
    }

    pub(crate) fn recipe(message: impl Into<String>) -> TrainError {
        RecipeError { origin: "recipe".into(), message: message.into() }.into()
    }

    pub(crate) fn run(path: &Path, message: impl Into<String>) -> TrainError {
        TrainError::Run { path: path.to_owned(), message: message.into() }
    }
}

/// A file that can't be read or written is one whoever met it.
impl From<ModelError> for TrainError {
    fn from(e: ModelError) -> TrainError {
        match e {
            ModelError::Io { path, source } => TrainError::Io { path, source },
            other => TrainError::Model(other),
        }
    }
}

impl From<tch::TchError> for TrainError {
    fn from(e: tch::TchError) -> TrainError {
        TrainError::Torch(torch_ext::first_line(&e))
    }
}

fn hint(source: &std::io::Error) -> &'static str {
    match uta_data::is_full(source) {
        true => "; make room, then --resume: the newest checkpoint is whole",
        false => "",
    }
}
