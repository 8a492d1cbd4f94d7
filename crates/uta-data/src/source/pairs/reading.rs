//! A table while it is read: its names, captions and splits, and what of it can't be used.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::Read as _;
use std::path::Path;

use super::files::Strings;
use super::options::PairOptions;
use crate::error::DataError;

/// The column that names the split of a row.
pub(super) const SPLIT: &str = "split";

/// The names that a column of captions usually has: open_clip's, img2dataset's, and others'.
pub(super) const TEXT_COLUMNS: [&str; 4] = ["title", "caption", "text", "TEXT"];

/// Bytes of a caption, or of a path: more is a quote that was never closed, or no text.
pub(super) const MAX_TEXT: usize = 1 << 16;

/// A table while it is read.
pub(super) struct Reading<'a> {
    pub(super) path: &'a Path,
    pub(super) options: &'a PairOptions,
    /// Whether texts alone are read.
    pub(super) texts: bool,
    pub(super) names: Strings,
    /// Which image has a name of that hash; of another name with it, the hash after.
    pub(super) seen: HashMap<u64, u32>,
    pub(super) hasher: RandomState,
    pub(super) captions: Strings,
    pub(super) owners: Vec<u32>,
    /// Rows a split, where rows have one.
    pub(super) splits: BTreeMap<String, usize>,
    pub(super) faults: BTreeMap<&'static str, (usize, Vec<String>)>,
}

impl<'a> Reading<'a> {
    pub(super) fn new(path: &'a Path, options: &'a PairOptions, texts: bool) -> Reading<'a> {
        Reading {
            path,
            options,
            texts,
            names: Strings::default(),
            seen: HashMap::new(),
            hasher: RandomState::new(),
            captions: Strings::default(),
            owners: Vec::new(),
            splits: BTreeMap::new(),
            faults: BTreeMap::new(),
        }
    }

    pub(super) fn fail(&self, reason: impl Into<String>) -> DataError {
        DataError::Table { path: self.path.to_owned(), reason: reason.into() }
    }

    /// The column of captions, as `find` finds it by name; of texts alone, where it isn't named, under the names that it usually has.
    pub(super) fn caption_column<T>(&self, find: impl Fn(&str) -> Option<T>) -> Option<T> {
        match self.texts && self.options.caption_key.is_none() {
            true => TEXT_COLUMNS.into_iter().find_map(find),
            false => find(self.options.caption_key()),
        }
    }

    /// Looks at the mark of byte order that the text may begin with.
    pub(super) fn is_utf8(&self) -> Result<(), DataError> {
        let mut start = vec![];
        File::open(self.path)
            .and_then(|file| file.take(2).read_to_end(&mut start))
            .map_err(DataError::io("read", self.path))?;
        match start == *b"\xff\xfe" || start == *b"\xfe\xff" {
            true => Err(self.fail("is UTF-16: save it as UTF-8")),
            false => Ok(()),
        }
    }

    /// The columns that are looked for are not there.
    pub(super) fn no_column(
        &self,
        wanted: &str,
        found: impl Iterator<Item = impl Display>,
    ) -> DataError {
        let short = |name: String| name.chars().take(40).collect::<String>();
        let found: Vec<String> = found.take(20).map(|name| short(name.to_string())).collect();
        self.fail(format!(
            "has no column {wanted}, but {}; name the columns (--image-key, --caption-key; image_key, caption_key in a recipe's [data.pairs])",
            found.join(", ")
        ))
    }

    /// Counts something that is left out, at a place like "line 7".
    pub(super) fn fault(&mut self, what: &'static str, place: impl Display) {
        const NAMED: usize = 3;
        let (count, places) = self.faults.entry(what).or_default();
        *count += 1;
        if *count <= NAMED {
            places.push(place.to_string());
        }
    }

    /// Whether a row of that split is asked for.
    pub(super) fn takes(&mut self, split: Option<&str>, place: impl Display) -> bool {
        // More names than any file of splits has: it is another kind of column.
        const MOST: usize = 100;
        match split.map(str::trim).filter(|split| !split.is_empty()) {
            Some(split) => {
                let wanted = self.options.split.as_deref();
                if self.splits.len() < MOST || wanted == Some(split) {
                    *self.splits.entry(split.into()).or_default() += 1;
                } else if let Some(n) = self.splits.get_mut(split) {
                    *n += 1;
                }
                wanted.is_none_or(|wanted| wanted == split)
            }
            None => {
                if self.options.split.is_some() {
                    self.fault("rows in no split", place);
                }
                self.options.split.is_none()
            }
        }
    }

    /// The image of that name, new or known.
    pub(super) fn image(&mut self, name: &str) -> (u32, bool) {
        let mut hash = self.hasher.hash_one(name);
        loop {
            match self.seen.get(&hash) {
                None => break,
                Some(&i) if self.names.get(i as usize) == name => return (i, false),
                Some(_) => hash = hash.wrapping_add(1),
            }
        }
        let i = self.names.len() as u32;
        self.names.push(name);
        self.seen.insert(hash, i);
        (i, true)
    }

    /// Adds a row: an image and its captions, `None` for one that is no text.
    pub(super) fn row<'b>(
        &mut self,
        place: impl Display,
        name: Option<&str>,
        captions: impl IntoIterator<Item = Option<&'b str>>,
    ) {
        let usable = |name: &&str| !name.is_empty() && name.len() <= MAX_TEXT;
        if self.texts {
            let own = self.names.len() as u32;
            self.names.push("");
            return self.captions(place, own, captions);
        }
        match name.map(str::trim).filter(usable) {
            None => self.fault("rows without an image", place),
            Some(name) => {
                let (image, _) = self.image(name);
                self.captions(place, image, captions);
            }
        }
    }

    /// Adds captions of an image.
    pub(super) fn captions<'b>(
        &mut self,
        place: impl Display,
        image: u32,
        captions: impl IntoIterator<Item = Option<&'b str>>,
    ) {
        let (before, mut broken) = (self.owners.len(), 0);
        for caption in captions {
            match caption.map(str::trim) {
                Some(caption) if !caption.is_empty() && caption.len() <= MAX_TEXT => {
                    self.captions.push(caption);
                    self.owners.push(image);
                }
                _ => broken += 1,
            }
        }
        if broken > 0 {
            self.fault("captions that are empty, too long or no text", place);
        } else if before == self.owners.len() {
            self.fault("rows without a caption", place);
        }
    }

    pub(super) fn split_counts(&self) -> String {
        let found: Vec<String> =
            self.splits.iter().map(|(name, n)| format!("{name} ({n})")).collect();
        found.join(", ")
    }
}
