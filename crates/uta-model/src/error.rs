//! Errors in configurations and checkpoints.

use std::path::{Path, PathBuf};

/// An error in a configuration or a checkpoint: each says where it is and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file that can't be read or written.
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
    /// A file that isn't what it should be.
    #[error("{path}: {message}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The finding, and what was expected.
        message: String,
    },
    /// A net of one kind, where another is needed.
    #[error("{path}: is a {found}; {by} needs a {needed}")]
    Kind {
        /// The file.
        path: PathBuf,
        /// The kind of net that it holds.
        found: &'static str,
        /// The command, or the like, that needs another.
        by: String,
        /// The kind that it needs.
        needed: &'static str,
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
        ModelError::Format { path: path.to_owned(), message: one_line(&message.into()) }
    }

    pub(crate) fn keys(path: &Path, report: &str) -> ModelError {
        ModelError::Keys { path: path.to_owned(), report: one_line(report) }
    }
}

/// A message that may quote a file, which may hold anything: without line breaks, and no longer than a screen.
fn one_line(message: &str) -> String {
    const LONGEST: usize = 4000;
    let escape = |c: char| c.is_control().then(|| c.escape_default().to_string());
    let mut line = String::new();
    for c in message.chars() {
        if line.len() > LONGEST {
            line.push_str("...");
            break;
        }
        match escape(c) {
            Some(escaped) => line.push_str(&escaped),
            None => line.push(c),
        }
    }
    line
}
