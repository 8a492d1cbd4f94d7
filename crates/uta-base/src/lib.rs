//! The foundation of every other crate of the workspace: files that appear only when they are complete, locks, counter-based
//! randomness, SHA-256 and progress bars. It knows neither images nor tensors.
//!
//! ```
//! use uta_base::{Lock, Purpose, Rng, write_atomically};
//!
//! # let folder = std::env::temp_dir().join(format!("uta-base-{}", std::process::id()));
//! std::fs::create_dir_all(&folder)?;
//! let lock = Lock::try_hold(&folder.join(".lock"))?.expect("no other process works here");
//! // The same seed, purpose and counters give the same draw on any thread and any day.
//! let mut rng = Rng::new(42, Purpose::Augment, &[3, 1_000]);
//! write_atomically(&folder.join("draw.txt"), format!("{}\n", rng.below(100)).as_bytes())?;
//! drop(lock);
//! # std::fs::remove_dir_all(&folder)
//! # ; Ok::<(), std::io::Error>(())
//! ```

pub mod file;
mod folders;
mod lock;
pub mod progress;
pub mod rng;
pub mod sha256;

pub use file::{
    AtomicFile, AtomicFolder, CompleteFile, is_full, move_into_place, write_atomically, write_with,
};
pub use folders::cache_folder;
pub use lock::Lock;
pub use rng::{Purpose, Rng};
