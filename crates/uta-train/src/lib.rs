//! Training: tasks (model, frozen teacher, loss), masks, optimiser, schedule, the loop, the run directory, resume.
//!
//! ```text
//! Recipe -> Stream of Batch -> Task::forward -> Trainer (accumulate, reduce, clip, optimise, log, save) -> RunDir
//!                                                   \-> Evaluators, every so many steps
//! ```
//!
//! ```
//! use std::{path::Path, sync::Arc};
//! use torch_ext::distributed::ProcessGroup;
//! use uta_train::{Recipe, Trainer};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = std::env::temp_dir().join(format!("uta-train-{}", std::process::id()));
//! # std::fs::create_dir_all(dir.join("photos"))?;
//! # for i in 0..4 {
//! #     image::RgbImage::new(40, 30 + i).save(dir.join(format!("photos/{i}.png")))?;
//! # }
//! # let photos = dir.join("photos");
//! # let photos = photos.to_str().ok_or("no UTF-8")?;
//! # std::env::set_current_dir("../..")?;
//! // What `uta train recipes/mini/uta-emoji.toml --set data.train=photos ...` does.
//! let recipe = Path::new("recipes/mini/uta-emoji.toml");
//! let mut sets = vec![format!("data.train={photos}"), "train.steps=2".into(), "train.batch=4".into()];
//! # sets.extend(["data.val=[]", "eval.sets=[]", "train.threads=1"].map(String::from));
//! let recipe = Recipe::load(recipe, &sets)?; // typed and checked, every default written out
//! let stop = Arc::default(); // a signal handler sets it to true
//! let outcome = Trainer::new(recipe, &dir.join("run"), false, ProcessGroup::single(), stop)?.run()?;
//! assert_eq!(outcome.step, 2);
//! let student = uta_model::Clip::load(&dir.join("run"), tch::Device::Cpu)?; // a run is a model
//! # assert_eq!(student.config.vision.width, 128);
//! # std::fs::remove_dir_all(dir)?;
//! # Ok(())
//! # }
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
pub use task::contrastive::Contrastive;
pub use task::distill::{
    CacheOptions, Distill, Made, cached_targets, decode as decode_targets, make as make_cache, plan,
};
pub use task::kinds::{Planned, build, distill, has_room, planned};
pub use task::parts::load;
pub use task::text_align::plan as text_plan;
pub use task::{Mode, Output, Task};
pub use trainer::{Outcome, Preview, Trainer};
