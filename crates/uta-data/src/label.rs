//! Labels: the part of a sample that isn't its pixels, and that a task learns or measures by.

use serde::{Deserialize, Serialize};

/// A label of an image. Crops, resizes and flips change a label map and regions as they change the pixels; the others are
/// carried along.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Label {
    /// Nothing.
    #[default]
    None,
    /// Captions: in training one, drawn anew in each pass; in a sweep all.
    Captions(Vec<String>),
    /// The index of a class.
    Class(u32),
    /// A class for each pixel.
    Map(LabelMap),
    /// Objects.
    Regions(Vec<Region>),
    /// A conversation about the image.
    Chat(Vec<Turn>),
}

impl Label {
    /// The captions; empty for another label.
    pub fn captions(&self) -> &[String] {
        match self {
            Label::Captions(captions) => captions,
            _ => &[],
        }
    }

    /// The class, where it is the label.
    pub fn class(&self) -> Option<u32> {
        match self {
            Label::Class(class) => Some(*class),
            _ => None,
        }
    }
}

/// Which label a task asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LabelKind {
    /// No label.
    #[default]
    None,
    /// [`Label::Captions`].
    Captions,
    /// [`Label::Class`].
    Class,
    /// [`Label::Map`].
    Map,
    /// [`Label::Regions`].
    Regions,
    /// [`Label::Chat`].
    Chat,
}

impl LabelKind {
    /// Whether the label is about places in the image, which crops and flips move.
    pub fn has_places(self) -> bool {
        matches!(self, LabelKind::Map | LabelKind::Regions)
    }
}

/// A class for each pixel, `[height, width]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelMap {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Classes, a row after the other; [`LabelMap::IGNORED`] where there is none.
    pub classes: Vec<u8>,
}

impl LabelMap {
    /// The class of pixels that no loss and no measure counts.
    pub const IGNORED: u8 = 255;
}

/// An object in an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Region {
    /// The index of its class.
    pub class: u32,
    /// x0, y0, x1, y1 in pixels, from the upper left corner of the image.
    pub bounds: [f32; 4],
    /// Its shape, where it is known.
    pub mask: Option<Mask>,
    /// Whether it is a crowd of objects that are not told apart (COCO's `iscrowd`).
    pub crowd: bool,
}

/// The shape of a region.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Mask {
    /// Outlines, each a list of points x, y in pixels; the mask is all that lies within any of them.
    Polygons(Vec<Vec<[f32; 2]>>),
    /// 1 for each pixel of the image that belongs to it, else 0.
    Pixels(LabelMap),
}

/// A turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// The words.
    pub text: String,
}

/// A speaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that precede the conversation.
    System,
    /// The one who asks.
    User,
    /// The one who answers: the words that are learned.
    Assistant,
}
