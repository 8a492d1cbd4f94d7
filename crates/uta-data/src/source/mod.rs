//! Samples: shards, image folders, class folders and pair tables, behind one trait with random access.

use crate::error::DataError;

pub(crate) mod file;
pub(crate) mod folder;
pub(crate) mod listing;
pub(crate) mod open;
pub(crate) mod pairs;
pub(crate) mod sample;
pub(crate) mod several;
pub mod shards;
pub(crate) mod spec;

pub use self::sample::Sample;

/// A set of samples with random access from any thread.
pub trait Source: Send + Sync {
    /// How many samples there are; never 0 for a source that [`open`](crate::open()) returned.
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

    /// The key of sample `i`, for messages: a shard is read for it.
    fn key(&self, i: usize) -> String;

    /// Name of sample `i` in the source, with its extension, where it is a file of its own; else its key is its name.
    fn name(&self, _i: usize) -> Option<String> {
        None
    }

    /// The shard that sample `i` lies in, for messages.
    fn shard(&self, _i: usize) -> Option<String> {
        None
    }

    /// Names of the classes, by index, where the source knows them.
    fn class_names(&self) -> Option<&[String]>;

    /// Which samples are drawn alike.
    fn parts(&self) -> Vec<Part> {
        vec![Part { samples: self.len(), weight: 1.0, shards: vec![] }]
    }

    /// How many samples an epoch of training draws: all, unless some weigh more or less.
    fn epoch(&self) -> usize {
        self.parts().iter().map(|part| part.drawn() as usize).sum()
    }

    /// Faults found when the source was opened, a line each; such parts are left out.
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }

    /// Takes note that these samples will be read soon, in any order, each as often as it is named; over a network they are
    /// fetched meanwhile, and from a disk those that lie together.
    fn expect(&self, _samples: &[usize]) {}

    /// Takes note that none of those expected will be read.
    fn forget(&self) {}
}

/// Samples of a source that are drawn alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// How many there are.
    pub samples: usize,
    /// How often each comes in an epoch.
    pub weight: f64,
    /// How many of them lie together in each shard, in their order; empty where each lies on its own.
    pub shards: Vec<usize>,
}

impl Part {
    /// How many samples an epoch draws of it.
    pub fn drawn(&self) -> u64 {
        ((self.samples as f64 * self.weight).round() as u64).max(1)
    }
}
