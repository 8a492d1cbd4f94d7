//! `uta data stats`: what is in a set.

use std::fmt;

use serde::Serialize;

use crate::{DataError, Rejected, Source};

/// What is in a set; `Display` is the human table, `Serialize` the JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// Samples.
    pub samples: usize,
    /// Samples that can't be read or decoded.
    pub broken: Vec<Rejected>,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.samples)
    }
}

/// Reads and decodes every sample of `source`, with a progress bar on standard error where `progress`.
///
/// # Errors
/// Single broken samples are counted, not errors; the threads' failure is.
pub fn stats(source: &dyn Source, progress: bool) -> Result<Stats, DataError> {
    let _ = (source, progress);
    todo!()
}
