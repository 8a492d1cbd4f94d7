//! Measurements of a CLIP pair: [`ZeroShot`] classification, image-text [`Retrieval`] and [`Align`]ment with a teacher. They
//! run from the command line and, as an [`Evaluator`], inside training.
//!
//! Every evaluator sweeps its set once, in order, shared by the ranks of a process group where there are several; a sample
//! that cannot be used is counted and named, never dropped in silence. Numbers don't depend on the batch size beyond
//! rounding, and on the number of ranks not at all; equal scores share the credit ([`ranking::expected_hit`]), so that a
//! collapsed model scores chance.
//!
//! ```
//! use tch::Device;
//! use uta_eval::{EvalOptions, Prompts, ZeroShot};
//! use uta_model::{Clip, ClipConfig, TextConfig, VitConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = std::env::temp_dir().join(format!("uta-eval-{}", std::process::id()));
//! # for class in ["cat", "dog"] {
//! #     std::fs::create_dir_all(dir.join(class))?;
//! #     image::RgbImage::new(40, 30).save(dir.join(class).join("one.png"))?;
//! # }
//! let vision = VitConfig { width: 64, depth: 2, heads: 2, hidden: 96, out: 32, ..VitConfig::preset("uta-b14")? };
//! let text = TextConfig { width: 64, heads: 2, layers: 1, out: 32, ..TextConfig::preset("vit-b-32")? };
//! let clip = Clip::new(&ClipConfig::new(vision, Some(text)), Device::Cpu); // Clip::load reads a file or folder
//!
//! let pictures = uta_data::open(dir.to_str().ok_or("no UTF-8")?)?; // cat/*.png and dog/*.png
//! let prompts = Prompts::new(vec!["cat".into(), "dog".into()], vec!["a photo of a {}.".into()])?;
//! let report = ZeroShot::new("pets", pictures, prompts, EvalOptions::default()).run(&clip)?;
//! assert_eq!(report.n, 2);
//! assert!((0.0..=1.0).contains(&report.top1));
//! # std::fs::remove_dir_all(dir)?;
//! # Ok(())
//! # }
//! ```

mod align;
mod classifier;
mod embed;
mod evaluator;
mod ilsvrc;
mod layout;
mod lines;
mod named;
mod prompts;
pub mod ranking;
mod recipe;
mod retrieval;
mod sets;
mod zeroshot;

#[cfg(test)]
mod testing;

pub use align::{Align, AlignReport, ImageCosine};
pub use classifier::classifier;
pub use embed::{Embedded, EvalOptions, Progress, embed_images, embed_texts, encode_texts, upload};
pub use evaluator::{Evaluator, Numbers};
pub use named::NamedSet;
pub use prompts::Prompts;
pub use recipe::{EvalKind, EvalSet};
pub use retrieval::{Recall, Retrieval, RetrievalReport};
pub use sets::ClassSet;
pub use zeroshot::{ClassScore, Prediction, ZeroShot, ZeroShotReport};

use std::path::PathBuf;
use std::sync::LazyLock;

use sha2::{Digest, Sha256};
use uta_data::DataError;
use uta_data::sha256::{add_file, hex};
use uta_model::ModelError;

/// The SHA-256 of this program's own file, so of its build. What is kept between runs is kept under it, because another build
/// may find other numbers.
pub fn program() -> &'static str {
    static PROGRAM: LazyLock<String> = LazyLock::new(|| {
        let mut hash = Sha256::new();
        let read = std::env::current_exe().and_then(|path| add_file(&mut hash, &path));
        match read {
            Ok(_) => hex(&hash.finalize()),
            Err(_) => format!("{} unread", env!("CARGO_PKG_VERSION")),
        }
    });
    &PROGRAM
}

/// An evaluation that can't be made; every message is one line that says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The set cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The ranks can't go on together.
    #[error(transparent)]
    Ranks(#[from] torch_ext::distributed::DistError),
    /// The model can't do what was asked.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A list of class names or templates cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A list of class names or templates is malformed.
    #[error("{path}: {message}")]
    Prompts {
        /// The file, or what stands for it.
        path: String,
        /// The mistake, and what is expected.
        message: String,
    },
    /// A set that isn't known by name.
    #[error("set {name:?} is unknown: use {}", NamedSet::ALL.map(NamedSet::name).join(", "))]
    Set {
        /// The name.
        name: String,
    },
    /// A set of a recipe can't be measured as it is written.
    #[error("eval.sets {set:?}: {message}")]
    Recipe {
        /// The set's name.
        set: String,
        /// The key, what is wrong with it, and what to do.
        message: String,
    },
    /// A set does not lie on disk as it should.
    #[error("{path}: looked for {wanted}; found {found}")]
    Layout {
        /// The folder.
        path: String,
        /// The layout that was looked for.
        wanted: String,
        /// The layout that is there.
        found: String,
    },
    /// Neither the model nor the caller has a text tower.
    #[error(
        "the model has no text tower: take the teacher that it was aligned to (for embed as --model, for eval as --text-model)"
    )]
    NoTextTower,
    /// Two models that must share a space, a grid or a resolution do not.
    #[error("{what} differ: {left} and {right}; {hint}")]
    Mismatch {
        /// The quantity that is compared.
        what: &'static str,
        /// The evaluated model's value.
        left: String,
        /// The other's value.
        right: String,
        /// The way out.
        hint: &'static str,
    },
    /// A label outside the list of classes.
    #[error(
        "{key}: class {class} is outside the {names} class names; give the set's own list (--classnames)"
    )]
    Label {
        /// The sample.
        key: String,
        /// Its class.
        class: u32,
        /// How many names there are.
        names: usize,
    },
    /// Nothing in the set can be scored.
    #[error("{set}: none of its {len} samples {want}")]
    Empty {
        /// The evaluation's name.
        set: String,
        /// How many samples there are.
        len: usize,
        /// The thing that they lack.
        want: &'static str,
    },
    /// The model put out NaN or infinity.
    #[error(
        "the model's output for {key} is not finite; its weights are broken, or {precision:?} is too narrow"
    )]
    NonFinite {
        /// The first sample or text concerned.
        key: String,
        /// The precision that was used.
        precision: torch_ext::Precision,
    },
}
