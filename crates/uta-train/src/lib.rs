//! Training: tasks (model, frozen teacher, loss), masks, optimiser, schedule, the loop, the run directory, resume.
//!
//! ```text
//! Recipe -> Stream of Batch -> Task::forward -> Trainer (accumulate, reduce, clip, optimise, log, save) -> RunDir
//!                                                   \-> Evaluators, every so many steps
//! ```
//!
//! The trainer knows no task by name: a new one implements [`Task`] and gets a [`recipe::TaskKind`].

mod cache;
mod error;
pub mod mask;
mod optim;
mod paths;
pub mod plan;
pub mod recipe;
mod run;
mod schedule;
mod task;
pub mod tensorboard;
mod threads;
mod trainer;

pub use cache::{CacheOptions, Made, cached_targets, decode as decode_targets, make as make_cache};
pub use error::TrainError;
pub use optim::{Ema, Optimizer, Parameter};
pub use recipe::{Recipe, RecipeError};
pub use run::RunDir;
pub use schedule::CosineSchedule;
pub use task::{Align, Contrastive, Mode, Output, Task, build, load, upload};
pub use trainer::{Evaluator, Outcome, Trainer};
