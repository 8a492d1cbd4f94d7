//! Options of tables of pairs, as recipes and the command line have them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::source::sample::Captions;

/// How images are paired with captions; open_clip's names of columns where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairOptions {
    /// The folder of the images, and a fence: a path that leads out of it is refused (a link in it is followed). Else paths are
    /// taken as they are written, relative ones from the folder of the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
    /// The column of the image's path, or of its bytes (Parquet); `filepath` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_key: Option<String>,
    /// The column of the caption, or of a list of captions (JSON, Parquet); `title` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caption_key: Option<String>,
    /// Only rows whose `split` is this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// The meaning of a `.txt` beside an image, where there is no table; lines if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captions: Option<Captions>,
}

impl PairOptions {
    /// Whether nothing is said.
    pub fn is_plain(&self) -> bool {
        *self == PairOptions::default()
    }

    /// The options for tables alone.
    pub fn of_table(&self) -> PairOptions {
        PairOptions { captions: None, ..self.clone() }
    }

    /// The same, with `captions` for what a `.txt` is where nothing is said of it.
    pub fn or_captions(&self, captions: Captions) -> PairOptions {
        PairOptions { captions: self.captions.or(Some(captions)), ..self.clone() }
    }

    pub(crate) fn captions(&self) -> Captions {
        self.captions.unwrap_or_default()
    }

    pub(super) fn image_key(&self) -> &str {
        self.image_key.as_deref().unwrap_or("filepath")
    }

    pub(super) fn caption_key(&self) -> &str {
        self.caption_key.as_deref().unwrap_or("title")
    }
}
