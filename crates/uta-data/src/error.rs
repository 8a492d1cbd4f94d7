//! Errors of data, one line each: what, where, what to do.

use std::io;
use std::path::{Path, PathBuf};

/// An error about data. Every variant carries the path, the key or the field it is about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The attempt, as a verb: "read", "create".
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// Nothing at all answers to a data spec.
    #[error("no data at {spec}: {reason}")]
    NotFound {
        /// The spec as the user wrote it.
        spec: String,
        /// The thing that was looked for, and what to do.
        reason: String,
    },
    /// A place exists and holds no samples.
    #[error("no samples in {}: looked for {wanted}; found {found}", path.display())]
    Empty {
        /// The folder or file.
        path: PathBuf,
        /// The things that would have counted.
        wanted: String,
        /// The things that are there instead.
        found: String,
    },
    /// Something is in the way and won't be overwritten.
    #[error("{} is already there: remove it, or choose another folder", path.display())]
    Exists {
        /// It.
        path: PathBuf,
    },
    /// A file that others wrote is where one of ours would be written.
    #[error("{} is left alone: {reason}; move it, or choose another folder", path.display())]
    NotOurs {
        /// It.
        path: PathBuf,
        /// The thing that would be written, and what the file is instead.
        reason: String,
    },
    /// Sets that can't be used together: they name their classes differently.
    #[error(
        "{first} and {second} name their classes differently, so a class index means two things: keep them apart"
    )]
    ClassNames {
        /// One set.
        first: String,
        /// The other.
        second: String,
    },
    /// A tar shard is not what it was when it was opened, or not a tar at all.
    #[error("shard {}: {reason}", path.display())]
    Shard {
        /// The tar file.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
    /// Targets that were computed once cannot be used.
    #[error("targets {}: {reason}", path.display())]
    Targets {
        /// The shard, or the folder.
        path: PathBuf,
        /// The fault, and what to do.
        reason: String,
    },
    /// A table of pairs cannot be used.
    #[error("table {}: {reason}", path.display())]
    Table {
        /// The table.
        path: PathBuf,
        /// The fault, and what to do.
        reason: String,
    },
    /// A file of splits, and none was named.
    #[error("table {} has splits: name one of {found} (--split; split in a recipe's [data.pairs])", path.display())]
    Splits {
        /// The table.
        path: PathBuf,
        /// Their names, and how many images each has.
        found: String,
    },
    /// One sample cannot be used: its image, its class or its meta data is broken.
    #[error("sample {key}: {reason}")]
    Sample {
        /// The sample's key.
        key: String,
        /// The fault.
        reason: String,
    },
    /// A sample needs a caption and has none that can be read.
    #[error("sample {key}: has no caption, or none in UTF-8")]
    Caption {
        /// The sample's key.
        key: String,
    },
    /// An image cannot be decoded.
    #[error("{0}")]
    Image(String),
    /// A text has more tokens than a row holds, and was not to be cut.
    #[error(
        "{text:?}... has more tokens than the {context_length} of a row: shorten it, or let it be cut"
    )]
    TooLong {
        /// How it begins.
        text: String,
        /// Length of a row, with its first and last mark.
        context_length: usize,
    },
    /// A folder was to be packed, and nothing in it can be decoded.
    #[error("none of the {images} images in {} can be read; the first, {key}: {reason}", path.display())]
    AllBroken {
        /// The folder.
        path: PathBuf,
        /// How many were tried.
        images: usize,
        /// The first of them.
        key: String,
        /// The fault.
        reason: String,
    },
    /// Captions are needed and there are none.
    #[error(
        "no captions in the first {looked_at} samples (first: {key}): put a .txt with its caption beside each image"
    )]
    NoCaptions {
        /// How many samples were looked at.
        looked_at: usize,
        /// The first of them.
        key: String,
    },
    /// Labels are needed and there are none.
    #[error("no {what} in the first {looked_at} samples (first: {key})")]
    NoLabels {
        /// The thing that is needed, in the plural.
        what: &'static str,
        /// How many samples were looked at.
        looked_at: usize,
        /// The first of them.
        key: String,
    },
    /// Too many samples in a row were unusable for training to go on.
    #[error(
        "{rejected} of the last {of} samples were unusable ({counts} so far), the last one {key}: {reason}"
    )]
    TooManyRejected {
        /// Unusable ones.
        rejected: usize,
        /// The size of the window.
        of: usize,
        /// Unusable ones of each [`Fault`] since the stream began, as text.
        counts: String,
        /// The last unusable one.
        key: String,
        /// Why.
        reason: String,
    },
    /// A package that a data set is made from cannot be had or read.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// An option has a value that makes no sense.
    #[error("{field} = {value}: {reason}")]
    Option {
        /// The option.
        field: &'static str,
        /// Its value.
        value: String,
        /// The values that are allowed.
        reason: String,
    },
}

/// Kind of fault of a sample that can't be used.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// A file that is gone.
    Missing,
    /// A file that the system or the network won't read.
    Unreadable,
    /// A shard that was cut or changed, or a member that is missing from it.
    Shard,
    /// An image that can't be decoded.
    Image,
    /// A caption that is missing or no text.
    Caption,
    /// A class that is no number, or has no name.
    Metadata,
    /// Targets that are damaged, missing, or of another picture.
    Targets,
    /// A key that comes more than once in a shard; only `uta data verify` minds.
    Duplicate,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Fault::Missing => "missing",
            Fault::Unreadable => "unreadable",
            Fault::Shard => "shard",
            Fault::Image => "image",
            Fault::Caption => "caption",
            Fault::Metadata => "metadata",
            Fault::Targets => "targets",
            Fault::Duplicate => "duplicate",
        })
    }
}

impl DataError {
    /// The fault of the sample that it came up at.
    pub fn fault(&self) -> Fault {
        // Shorter than it was, or another elsewhere.
        use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
        match self {
            DataError::Io { source, .. }
                if matches!(source.kind(), UnexpectedEof | InvalidData) =>
            {
                Fault::Shard
            }
            DataError::Io { source, .. } if source.kind() == NotFound => Fault::Missing,
            DataError::Io { .. } => Fault::Unreadable,
            DataError::Shard { .. } => Fault::Shard,
            DataError::Caption { .. } => Fault::Caption,
            DataError::Sample { .. } => Fault::Metadata,
            DataError::Targets { .. } => Fault::Targets,
            _ => Fault::Image,
        }
    }

    /// For `map_err`: an operating system's answer with what was tried on which path.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> DataError {
        let path = path.as_ref().to_owned();
        move |source| DataError::Io { action, path, source }
    }
}

/// Errors of a package, one line each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackageError {
    /// The npm client cannot be started.
    #[error(
        "cannot start npm ({source}), which fetches {package}: install Node.js with npm, or put {file} into {}",
        cache.display()
    )]
    NpmMissing {
        /// The package that was wanted, `name@version`.
        package: String,
        /// Its file name, as `npm pack` writes it.
        file: String,
        /// Where that file would have been found.
        cache: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The npm client ran and failed.
    #[error(
        "npm cannot fetch {package}: {reason}; check the network and `npm config get registry`"
    )]
    Npm {
        /// The package, `name@version`.
        package: String,
        /// npm's own words, shortened to a line.
        reason: String,
    },
    /// The package is not in the cache and fetching is forbidden.
    #[error("{} is not there or not whole, and fetching is off: run once with a network", path.display())]
    Offline {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A fetched file is not the pinned one.
    #[error(
        "{package} has sha256 {found}, but {pinned} is pinned: the file was changed on its way; check `npm config get registry`"
    )]
    Checksum {
        /// The package, `name@version`.
        package: String,
        /// The checksum that this program holds.
        pinned: String,
        /// The checksum of what came.
        found: String,
    },
    /// An archive holds a path that would leave the folder it is unpacked into.
    #[error("{}: refused, member {member:?} points out of the package", archive.display())]
    Traversal {
        /// The archive.
        archive: PathBuf,
        /// The member's path.
        member: PathBuf,
    },
    /// A package lacks what is read from it, or holds something else.
    #[error("{}: {reason}", archive.display())]
    Format {
        /// The archive.
        archive: PathBuf,
        /// The fault, beginning with the member's name.
        reason: String,
    },
}
