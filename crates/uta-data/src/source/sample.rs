//! A sample: an image file's bytes, and the captions, class and meta data that belong to it.

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::label::{LabelMap, Region, Turn};
use crate::text::without_mark;

/// One sample, still encoded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Its name within the source: the path without the extension.
    pub key: String,
    /// The image file's bytes.
    pub image: Vec<u8>,
    /// Its captions: rows of a table, or its `.txt` as [`Captions`] has it.
    pub captions: Vec<String>,
    /// The number in its `.cls`, or the index of its class folder.
    pub class: Option<u32>,
    /// Its `.cls`, where that gives no class; who reads no classes need not mind.
    pub odd_class: Option<OddClass>,
    /// Its `.json`, which nothing here looks into.
    pub meta: Vec<u8>,
    /// A class for each pixel of the decoded image, where the source has such maps.
    pub map: Option<LabelMap>,
    /// Its objects, in pixels of the decoded image, where the source has boxes; it may have none in an image.
    pub regions: Option<Vec<Region>>,
    /// A conversation about the image.
    pub chat: Vec<Turn>,
}

/// A `.cls` that gives no class: a word, or a number that `classnames.txt` doesn't name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OddClass {
    /// The file's text.
    pub text: String,
    /// Why that is no class.
    pub reason: String,
}

impl Sample {
    /// The class, for who needs one.
    ///
    /// # Errors
    /// A `.cls` that gives none.
    pub fn class(&self) -> Result<Option<u32>, DataError> {
        let odd = |odd: &OddClass| DataError::Sample {
            key: self.key.clone(),
            reason: odd.reason.clone(),
        };
        self.odd_class.as_ref().map_or(Ok(self.class), |of| Err(odd(of)))
    }

    /// Takes in the file of that extension, in whatever case, beside the image: `.txt`, `.cls`, `.json`. Others are not read.
    pub(crate) fn add(&mut self, extension: &str, contents: &[u8], captions: Captions) {
        match Companion::of(extension) {
            // What is no text is no caption; whether that matters, the task knows.
            Some(Companion::Captions) => {
                let text = without_mark(std::str::from_utf8(contents).unwrap_or_default());
                let parts: Vec<&str> = match captions {
                    Captions::File => vec![text],
                    Captions::Lines => text.lines().collect(),
                };
                let captions = parts.into_iter().map(str::trim).filter(|text| !text.is_empty());
                self.captions = captions.map(str::to_owned).collect();
            }
            Some(Companion::Class) => {
                let text = String::from_utf8_lossy(contents);
                let text = without_mark(&text).trim();
                self.class = text.parse().ok();
                self.odd_class = self.class.is_none().then(|| {
                    let shown: String = text.chars().take(40).collect();
                    let reason = format!(".cls holds {shown:?}, not a class index");
                    OddClass { text: text.to_owned(), reason }
                });
            }
            Some(Companion::Meta) => self.meta = contents.to_vec(),
            None => {}
        }
    }
}

/// Files that are read beside an image, by extension.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Companion {
    Captions,
    Class,
    Meta,
}

impl Companion {
    /// The companion that a file of that extension is, in whatever case.
    pub(crate) fn of(extension: &str) -> Option<Companion> {
        let kinds =
            [("txt", Companion::Captions), ("cls", Companion::Class), ("json", Companion::Meta)];
        kinds.into_iter().find(|(e, _)| e.eq_ignore_ascii_case(extension)).map(|(_, kind)| kind)
    }
}

/// The meaning of the `.txt` beside an image, in a folder or a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Captions {
    /// One caption, however many lines it has (open_clip).
    File,
    /// A caption a line (CLIP_benchmark).
    #[default]
    Lines,
}
