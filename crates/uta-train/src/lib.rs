//! Training: tasks (model, frozen teacher, loss), masks, optimiser, schedule, the loop, the run directory, resume.
//!
//! ```text
//! Recipe -> Stream of Batch -> Task::forward -> Trainer (accumulate, reduce, clip, optimise, log, save) -> RunDir
//!                                                   \-> Evaluators, every so many steps
//! ```
//!
//! The trainer knows no task by name: a new one implements [`Task`] and gets a [`recipe::TaskRecipe`].

mod device;
mod error;
mod optim;
pub mod recipe;
mod run;
mod task;
mod trainer;

pub use device::{device, device_name};
pub use error::TrainError;
pub use optim::{CosineSchedule, Ema, Optimizer};
pub use recipe::{Recipe, RecipeError};
pub use run::{RunDir, tensorboard};
pub use task::align::{
    Align, CacheOptions, Made, cached_targets, decode as decode_targets, make as make_cache, plan,
};
pub use task::contrastive::Contrastive;
pub use task::kinds::{build, distill, has_room, planned};
pub use task::parts::load;
pub use task::{Distill, Mode, Output, Task};
pub use trainer::{Outcome, Preview, Trainer};
