//! errors
/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Operating system.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}
