//! Where samples come from: shards, image folders, class folders, behind one trait with random access.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::DataError;

/// One sample, still encoded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Its name within the source: the path without the extension.
    pub key: String,
    /// The image file's bytes.
    pub image: Vec<u8>,
    /// The lines of its `.txt`, empty ones left out.
    pub captions: Vec<String>,
    /// Its `.cls`, or the index of its class folder.
    pub class: Option<u32>,
    /// Its `.json`.
    pub meta: Map<String, Value>,
}

/// A set of samples with random access from any thread.
pub trait Source: Send + Sync {
    /// How many samples there are; never 0 for a source that [`open`] returned.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads sample `i`.
    ///
    /// # Errors
    /// When it can't be read, naming it.
    fn read(&self, i: usize) -> Result<Sample, DataError>;

    /// The key of sample `i`, for messages.
    fn key(&self, i: usize) -> String;

    /// What the classes are called, by index, where the source knows.
    fn class_names(&self) -> Option<&[String]>;

    /// What was found wrong when the source was opened, a line each; such parts are left out.
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Opens a data spec: a folder of `.tar`, a `.tar`, a pattern of them (`*`, `?`, `{000..099}`, `{a,b}`), a folder of
/// images, or a folder of class folders.
///
/// # Errors
/// When nothing is there, saying what was looked for and what was found.
pub fn open(spec: &str) -> Result<Arc<dyn Source>, DataError> {
    let _ = spec;
    todo!()
}

/// Opens several specs as one source, in their order.
///
/// # Errors
/// As [`open`]; when there are no specs; when two of them name their classes differently.
pub fn open_all(specs: &[String]) -> Result<Arc<dyn Source>, DataError> {
    let _ = specs;
    todo!()
}
