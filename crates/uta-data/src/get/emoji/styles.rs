//! The styles of the set: whose drawings, and what each is for.

use serde::{Deserialize, Serialize};

use super::packages::Package;

/// Purpose of a style.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Seen in training.
    Train,
    /// Never seen in training: measures what carries over to another hand.
    HeldOut,
}

impl Split {
    /// The split's folder.
    pub fn folder(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::HeldOut => "held-out",
        }
    }
}

/// Where one style comes from.
pub(super) struct Style {
    pub(super) name: &'static str,
    pub(super) split: Split,
    pub(super) package: Package<'static>,
}

const fn style(
    name: &'static str,
    split: Split,
    package: &'static str,
    version: &'static str,
    sha256: &'static str,
) -> Style {
    Style { name, split, package: Package { name: package, version, sha256 } }
}

/// The styles, in the order of the report. Every .tgz had npm's own `dist.integrity` when its checksum was taken.
pub(super) const STYLES: [Style; 7] = [
    style(
        "noto",
        Split::Train,
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    ),
    style(
        "noto-v1",
        Split::Train,
        "@iconify-json/noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
    ),
    style(
        "fluent-emoji-flat",
        Split::Train,
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    style(
        "fluent-emoji",
        Split::Train,
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
    ),
    style(
        "emojione",
        Split::Train,
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
    ),
    style(
        "twemoji",
        Split::HeldOut,
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    ),
    style(
        "openmoji",
        Split::HeldOut,
        "@iconify-json/openmoji",
        "1.2.29",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
    ),
];

/// Names, tags and groups of all emoji.
pub(super) const EMOJIBASE: Package<'static> = Package {
    name: "emojibase-data",
    version: "17.0.0",
    sha256: "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
};
