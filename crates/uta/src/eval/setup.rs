//! The options that every evaluation takes, and the model and set that they name.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use clap::Args;
use torch_ext::distributed::ProcessGroup;
use uta_data::Source;
use uta_eval::EvalOptions;
use uta_model::{Clip, run_of};
use uta_train::RunDir;

use crate::compute::{ComputeArgs, ModelArgs};
use crate::error::Usage;

/// Options that every evaluation takes.
#[derive(Debug, Args)]
pub struct Common {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Shards (a folder, a .tar, a pattern), a folder of images or of class folders, tables of pairs; several are joined
    #[arg(long, value_name = "D", num_args = 1.., required = true)]
    pub data: Vec<String>,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// Model, set and options of an evaluation, checked.
pub struct Setup<'a> {
    pub args: &'a Common,
    pub device: tch::Device,
    pub model: Clip,
    pub source: Arc<dyn Source>,
    pub options: EvalOptions,
}

impl<'a> Setup<'a> {
    pub fn over(
        args: &'a Common,
        source: Arc<dyn Source>,
        group: &Rc<ProcessGroup>,
    ) -> anyhow::Result<Setup<'a>> {
        let (device, options) = args.compute.options(group)?;
        let mut model = args.model.load(device)?;
        model.freeze(options.precision);
        Ok(Setup { args, device, model, source, options })
    }

    pub fn load(&self, path: &Path, arch: Option<&str>) -> anyhow::Result<Clip> {
        Ok(uta_train::load(path, arch, self.device)?)
    }

    /// Path and architecture of the teacher that the recipe of the model's run names. The model may be the run's folder, one of
    /// its checkpoints, or a file in either.
    pub fn run_teacher(&self) -> anyhow::Result<Option<(PathBuf, Option<String>)>> {
        let model = std::path::absolute(&self.args.model.path)?;
        let dir = if model.is_file() { model.parent().unwrap_or(&model) } else { &model };
        let run = run_of(dir).unwrap_or(dir);
        if !run.join("recipe.toml").is_file() {
            return Ok(None);
        }
        let recipe = RunDir::recipe(run)?;
        let teacher = recipe.task.teacher();
        Ok(teacher.and_then(|teacher| Some((teacher.path.clone()?, teacher.arch.clone()))))
    }

    /// The text tower to use and its path; `None` where the model has one of its own.
    pub fn text_tower(
        &self,
        given: Option<&Path>,
        arch: Option<&str>,
    ) -> anyhow::Result<Option<(PathBuf, Rc<Clip>)>> {
        let (path, arch) = match given {
            Some(path) => (path.to_path_buf(), arch.map(str::to_owned)),
            None if self.model.text.is_some() => return Ok(None),
            None => self.run_teacher()?.ok_or_else(|| {
                let model = self.args.model.path.display();
                Usage(format!(
                    "{model} has no text tower and is no run that names its teacher; give --text-model"
                ))
            })?,
        };
        let clip = self.load(&path, arch.as_deref())?;
        if clip.text.is_none() {
            let path = path.display();
            return Err(Usage(format!("{path} has no text tower; give --text-model")).into());
        }
        Ok(Some((path, Rc::new(clip))))
    }
}
