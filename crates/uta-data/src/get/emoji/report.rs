//! Contents of the set and whose they are, for the terminal, `dataset.json` and `LICENSES.md`.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::styles::Split;

/// Result of [`get`](super::get).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The folder.
    pub out: PathBuf,
    /// The set was already there and whole.
    pub reused: bool,
    /// How long this took.
    pub seconds: f64,
    /// Contents of the folder.
    #[serde(flatten)]
    pub contents: Contents,
}

/// Contents of the set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contents {
    /// Side of the pictures in pixels.
    pub size: u32,
    /// Number of classes.
    pub concepts: usize,
    /// Every style, training ones first.
    pub styles: Vec<StyleReport>,
    /// Where labels, tags and groups come from.
    pub words: Licence,
    /// Bytes of all files.
    pub bytes: u64,
}

/// One style of the set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StyleReport {
    /// Its name, as in file names and `.json` members.
    pub style: String,
    /// Its purpose.
    pub split: Split,
    /// Pictures with a class: one a concept.
    pub pictures: usize,
    /// Pictures without one.
    pub extra: usize,
    /// Whose it is.
    pub licence: Licence,
}

/// Who made something, and on which terms it may be used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Licence {
    /// The work.
    pub title: String,
    /// npm package and version.
    pub package: String,
    /// Author.
    pub author: String,
    /// Where the work is published.
    pub link: String,
    /// The licence by its usual name.
    pub licence: String,
    /// Its SPDX identifier.
    pub spdx: String,
    /// Where its text is.
    pub text: String,
}

impl Contents {
    /// Pictures with a class in one split.
    pub fn pictures(&self, split: Split) -> usize {
        self.styles.iter().filter(|s| s.split == split).map(|s| s.pictures).sum()
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Contents { size, concepts, styles, words, bytes } = &self.contents;
        let (out, megabytes, seconds) = (self.out.display(), *bytes as f64 / 1e6, self.seconds);
        let done = if self.reused {
            "already there".to_owned()
        } else {
            format!("made in {seconds:.1} s")
        };
        let [train, held_out] =
            [Split::Train, Split::HeldOut].map(|split| self.contents.pictures(split));
        let extra: usize = styles.iter().map(|s| s.extra).sum();
        writeln!(f, "{out}: emoji at {size} x {size} pixels, {megabytes:.1} MB, {done}")?;
        writeln!(
            f,
            "{concepts} concepts, {train} training and {held_out} held-out pictures, {extra} more without a class"
        )?;
        writeln!(f)?;
        writeln!(
            f,
            "{:<18} {:<9} {:>8} {:>6}  {:<13} author",
            "style", "split", "pictures", "extra", "licence"
        )?;
        for s in styles {
            let (style, split, Licence { author, link, spdx, .. }) =
                (&s.style, s.split.folder(), &s.licence);
            writeln!(
                f,
                "{style:<18} {split:<9} {:>8} {:>6}  {spdx:<13} {author}, {link}",
                s.pictures, s.extra
            )?;
        }
        let Licence { title, author, link, spdx, .. } = words;
        write!(f, "{title:<18} {:<9} {:>8} {:>6}  {spdx:<13} {author}, {link}", "captions", "", "")
    }
}

/// `LICENSES.md`: what the pictures' licences ask to be told.
pub(super) fn licences(contents: &Contents) -> String {
    let size = contents.size;
    let mut text = format!(
        "# Licences of the emoji set\n\nThe pictures were drawn by the authors below and are used under their licences. \
         Changes: the SVG drawings were rasterised to {size} x {size} pixels on a white background. Shards hold one \
         style each and are named after it; they stay under its licence.\n\n\
         | style | split | work | author | licence | source package |\n|---|---|---|---|---|---|\n"
    );
    let row = |style: &str, split: &str, l: &Licence| {
        let Licence { title, package, author, link, licence, spdx, text } = l;
        format!(
            "| {style} | {split} | {title} | [{author}]({link}) | [{licence}]({text}) (SPDX {spdx}) | npm {package} |\n"
        )
    };
    for s in &contents.styles {
        text += &row(&s.style, s.split.folder(), &s.licence);
    }
    text += &row("captions", "all", &contents.words);
    text
}
