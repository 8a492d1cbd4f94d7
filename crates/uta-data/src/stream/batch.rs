//! A batch of images, and the samples that they are of.

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::label::Label;
use crate::machine;
use crate::rejected::Rejected;
use crate::transform::{Draw, View};

/// Decoded samples, ready for the device.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Its number in the stream or sweep, from 0.
    pub index: u64,
    /// Side of the images, in pixels.
    pub size: usize,
    /// `[B, size, size, 3]` bytes.
    pub pixels: Vec<u8>,
    /// Samples of the B images.
    pub items: Vec<Item>,
    /// The wanted rows of each image's targets, `[B, rows, E]`, as they are stored; empty unless the transform is a
    /// [`Replay`](crate::targets::Replay).
    pub targets: Vec<u8>,
    /// Samples met on the way that could not be used.
    pub rejected: Vec<Rejected>,
    /// Epochs done when the global batch is, in fractions.
    pub epoch: f64,
}

impl Batch {
    /// B.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Adds an image.
    pub(super) fn push(&mut self, item: Item, view: View) {
        let bytes = self.size * self.size * 3;
        assert_eq!(view.pixels.len(), bytes, "a transform gives views of its size");
        self.pixels.extend_from_slice(&view.pixels);
        self.targets.extend_from_slice(&view.targets);
        self.items.push(item);
    }

    pub(super) fn new(index: u64, size: u32, capacity: usize) -> Batch {
        let size = size as usize;
        Batch {
            index,
            size,
            pixels: Vec::with_capacity(capacity * size * size * 3),
            items: Vec::with_capacity(capacity),
            targets: vec![],
            rejected: vec![],
            epoch: 0.0,
        }
    }
}

/// One image of a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// The sample's key.
    pub key: String,
    /// The label that the transform gives it, as it lies in the view.
    pub label: Label,
    /// Its place among the images of the whole stream, over all ranks; in a sweep its index.
    pub position: u64,
    /// Its index in the source.
    pub index: usize,
}

impl Item {
    /// The captions; empty where its label is another one.
    pub fn captions(&self) -> &[String] {
        self.label.captions()
    }

    /// The class, where it is the label.
    pub fn class(&self) -> Option<u32> {
        self.label.class()
    }

    /// The image of a sample and a draw, whose label is taken out of the view.
    pub(super) fn new(key: &str, draw: &Draw, view: &mut View) -> Item {
        let label = std::mem::take(&mut view.label);
        Item { key: key.to_owned(), label, position: draw.position, index: draw.index }
    }
}

/// Whether the largest picture that is to be decoded has room, and a batch of so many images: as bytes and as the f32 that a
/// net reads, with `ahead` batches of bytes beside.
pub(super) fn has_room(
    batch: usize,
    size: u32,
    ahead: usize,
    pixels: u64,
) -> Result<(), DataError> {
    machine::has_room("max_pixels", pixels as usize, 3 * u128::from(pixels))?;
    let image = 3 * u128::from(size).pow(2);
    machine::has_room("batch", batch, image * batch as u128 * (ahead as u128 + 4))
}
