//! What can be wrong with a configuration or a checkpoint.

use std::path::{Path, PathBuf};

/// What can be wrong with a configuration or a checkpoint; each says where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Sizes that make no network.
    #[error("{0}")]
    Config(String),
    /// Not the file it should be.
    #[error("{path}: {message}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        message: String,
    },
    /// The names or shapes in a checkpoint aren't the network's.
    #[error("{path}: doesn't fit this network: {report}")]
    Keys {
        /// The file.
        path: PathBuf,
        /// Missing, unexpected and mis-shaped names, at most ten of each.
        report: String,
    },
}

impl ModelError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ModelError {
        let path = path.to_owned();
        move |source| ModelError::Io { path, source }
    }

    pub(crate) fn format(path: &Path, message: impl Into<String>) -> ModelError {
        ModelError::Format { path: path.to_owned(), message: message.into() }
    }
}
