//! The sets of the paper's Table 1 by name: their classes, names and places, and the synsets of ImageNet-1K.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use crate::EvalError;

/// A set of Table 1: which classes there are, what they are called, and how many pictures were published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedSet {
    /// ImageNet-1K's validation set.
    ImageNet,
    /// Pictures that ResNet-50 gets wrong: 200 of the classes.
    ImageNetA,
    /// Renditions: another 200 of the classes.
    ImageNetR,
    /// The validation set made anew (matched frequency); its folders are called by the label.
    ImageNetV2,
    /// Drawings.
    ImageNetSketch,
    /// Objects in odd places: the 113 of its 313 classes that ImageNet has too, under its own names.
    ObjectNet,
}

/// A synset of ImageNet-1K.
pub(crate) struct Synset {
    wnid: &'static str,
    /// Its number in the devkit of ILSVRC2012, which is not its place among the wnids.
    pub(crate) devkit: u32,
    name: &'static str,
}

/// The 1000 synsets by wnid, so in label order.
pub(crate) static SYNSETS: LazyLock<Vec<Synset>> = LazyLock::new(|| {
    let lines = include_str!("../data/imagenet.tsv").lines();
    let synset = |line: &'static str| {
        let mut fields = line.split('\t');
        let (wnid, devkit, name) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?);
        Some(Synset { wnid, devkit, name })
    };
    lines.map(|line| synset(line).expect("imagenet.tsv has three columns")).collect()
});

/// The place of a wnid among the sorted ones.
pub(crate) fn synset(wnid: &str) -> Option<usize> {
    SYNSETS.binary_search_by(|synset| synset.wnid.cmp(wnid)).ok()
}

/// The name that ImageNet-1K gives a wnid.
pub(crate) fn synset_name(wnid: &str) -> Option<&'static str> {
    synset(wnid).map(|i| SYNSETS[i].name)
}

/// The 80 templates of ImageNet, which all sets of Table 1 use.
pub(crate) fn imagenet_templates() -> Vec<String> {
    include_str!("../data/imagenet-templates.txt").lines().map(str::to_owned).collect()
}

impl NamedSet {
    /// All, those that a layout tells apart first.
    pub const ALL: [NamedSet; 6] = {
        use NamedSet::{ImageNet, ImageNetA, ImageNetR, ImageNetSketch, ImageNetV2, ObjectNet};
        [ImageNet, ImageNetA, ImageNetR, ImageNetV2, ImageNetSketch, ObjectNet]
    };

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            NamedSet::ImageNet => "imagenet",
            NamedSet::ImageNetA => "imagenet-a",
            NamedSet::ImageNetR => "imagenet-r",
            NamedSet::ImageNetV2 => "imagenet-v2",
            NamedSet::ImageNetSketch => "imagenet-sketch",
            NamedSet::ObjectNet => "objectnet",
        }
    }

    /// How many pictures were published, those of ObjectNet's other classes left out.
    pub fn published(self) -> usize {
        match self {
            NamedSet::ImageNet => 50_000,
            NamedSet::ImageNetA => 7_500,
            NamedSet::ImageNetR => 30_000,
            NamedSet::ImageNetV2 => 10_000,
            NamedSet::ImageNetSketch => 50_889,
            NamedSet::ObjectNet => 18_574,
        }
    }

    /// The folder and the name of every class, in label order.
    pub fn classes(self) -> Vec<(String, String)> {
        let named = |synset: &Synset| (synset.wnid.to_owned(), synset.name.to_owned());
        let some = |wnids: &str| {
            wnids.lines().filter_map(synset).map(|i| named(&SYNSETS[i])).collect::<Vec<_>>()
        };
        match self {
            NamedSet::ImageNet | NamedSet::ImageNetSketch => SYNSETS.iter().map(named).collect(),
            NamedSet::ImageNetA => some(include_str!("../data/imagenet-a.txt")),
            NamedSet::ImageNetR => some(include_str!("../data/imagenet-r.txt")),
            NamedSet::ImageNetV2 => (0..)
                .zip(SYNSETS.iter())
                .map(|(i, s): (u32, _)| (i.to_string(), s.name.to_owned()))
                .collect(),
            NamedSet::ObjectNet => {
                let lines = include_str!("../data/objectnet.tsv").lines();
                let split = |line: &str| line.split_once('\t').map(|(f, n)| (f.into(), n.into()));
                lines.filter_map(split).collect()
            }
        }
    }

    /// Where its class folders lie in what people download, below what they name.
    pub(crate) fn places(self) -> &'static [&'static str] {
        match self {
            NamedSet::ImageNet => {
                &["", "val", "validation", "ILSVRC2012_img_val", "ILSVRC/Data/CLS-LOC/val"]
            }
            NamedSet::ImageNetA => &["", "imagenet-a"],
            NamedSet::ImageNetR => &["", "imagenet-r"],
            NamedSet::ImageNetV2 => {
                &["", "imagenetv2-matched-frequency-format-val", "ImageNetV2-matched-frequency"]
            }
            NamedSet::ImageNetSketch => &["", "sketch"],
            NamedSet::ObjectNet => &["", "images", "objectnet-1.0/images"],
        }
    }

    /// A few words for its class folders, for messages.
    pub(crate) fn folders(self) -> &'static str {
        match self {
            NamedSet::ImageNetV2 => "folders 0 to 999",
            NamedSet::ObjectNet => "folders of classes that ImageNet has too",
            _ => "synset folders (n01440764, ...)",
        }
    }
}

impl fmt::Display for NamedSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for NamedSet {
    type Err = EvalError;

    fn from_str(name: &str) -> Result<NamedSet, EvalError> {
        let found = NamedSet::ALL.into_iter().find(|set| set.name() == name);
        found.ok_or_else(|| EvalError::Set { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Prompts;

    #[test]
    fn the_lists_are_those_of_the_sets() {
        let count = |set: NamedSet| set.classes().len();
        assert_eq!(NamedSet::ALL.map(count), [1000, 200, 200, 1000, 1000, 113]);
        for set in NamedSet::ALL {
            assert_eq!(set.name().parse::<NamedSet>().unwrap(), set);
        }
        let names = |set| Prompts::of(set, None, None).unwrap();
        let imagenet = names(NamedSet::ImageNet);
        assert_eq!(imagenet.templates.len(), 80);
        assert_eq!(imagenet.duplicates(), [("missile", 2), ("sunglasses", 2)]);
        assert_eq!((&*imagenet.names[0], &*imagenet.names[999]), ("tench", "toilet paper"));
        assert_eq!(names(NamedSet::ImageNetA).names[0], "stingray");
        assert_eq!(names(NamedSet::ObjectNet).names[..2], ["alarm clock", "backpack"]);
        let e = "imagenet-x".parse::<NamedSet>().unwrap_err().to_string();
        assert!(e.contains("imagenet-sketch, objectnet"), "{e}");
    }
}
