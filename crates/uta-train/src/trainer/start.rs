//! The work before the first step: data, task, stream and threads of a run.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tch::{Device, Tensor};
use torch_ext::distributed::ProcessGroup;
use torch_ext::{Precision, autocast};
use uta_data::{Batch, Share, Source, Stream, StreamOptions};
use uta_eval::{EvalOptions, Evaluator};

use super::threads;
use crate::device::device;
use crate::task::kinds::{build, has_room};
use crate::task::parts::views_of;
use crate::{Mode, Recipe, RecipeError, Task, TrainError};

/// The parts of a run that every rank makes for itself.
pub(super) struct Parts {
    pub device: Device,
    pub train: Arc<dyn Source>,
    pub val: Option<Arc<dyn Source>>,
    pub task: Box<dyn Task>,
    pub evaluators: Vec<Evaluator>,
}

impl Parts {
    /// Opens the data, which gives `recipe` its length, and makes the task on this rank's device (of a run that has
    /// `begun`, without `model.init`) and its evaluators.
    pub fn new(
        recipe: &mut Recipe,
        micro_batch: usize,
        begun: bool,
        group: &Rc<ProcessGroup>,
    ) -> Result<Parts, TrainError> {
        let device = device(&recipe.train.device, group.local_rank())
            .map_err(|message| RecipeError { origin: "train.device".into(), message })?;
        group.use_device(device)?;
        if device == Device::Cpu {
            has_room(recipe, micro_batch)?;
        }
        let (train, val) = recipe.open_data(group.is_first())?;
        recipe.resolve_length(train.epoch());
        let task = if begun {
            let mut anew = recipe.clone();
            anew.model.init = "random".into();
            build(&anew, device, group)?
        } else {
            build(recipe, device, group)?
        };
        task.check_data(train.as_ref(), val.as_deref())?;
        task.complete(recipe);
        let options = EvalOptions {
            workers: recipe.data.workers,
            precision: recipe.train.precision.into(),
            decode: recipe.data.decode(),
            group: group.clone(),
            ..EvalOptions::default()
        };
        let evaluators = task.evaluators(&recipe.eval.sets, &options)?;
        Ok(Parts { device, train, val, task, evaluators })
    }
}

/// The training batches of a recipe from number `first` on.
pub(super) fn stream(
    recipe: &Recipe,
    micro_batch: usize,
    train: &Arc<dyn Source>,
    task: &dyn Task,
    group: &ProcessGroup,
    first: u64,
) -> Result<Stream, TrainError> {
    let data = &recipe.data;
    let options = StreamOptions {
        rank: group.rank(),
        world: group.world(),
        ..stream_options(recipe, micro_batch)
    };
    Ok(Stream::new(train.clone(), task.transform(data, Mode::Train), options, first)?)
}

/// How a process alone streams the samples of a recipe.
fn stream_options(recipe: &Recipe, micro_batch: usize) -> StreamOptions {
    let data = &recipe.data;
    StreamOptions {
        batch: micro_batch,
        repeats: data.repeats,
        seed: recipe.train.seed,
        order: data.order,
        shuffle_buffer: data.shuffle_buffer,
        workers: data.workers,
        prefetch: data.prefetch,
        max_rejected: data.max_rejected,
        ..StreamOptions::default()
    }
}

/// The first samples of a run, as its net gets them.
pub struct Preview {
    /// The samples: the first of the training stream after crops, flips and colours, or of the validation set.
    pub batch: Batch,
    /// The names of the classes, where the data have some.
    pub classes: Option<Vec<String>>,
}

impl Preview {
    /// The first `count` samples that a process alone trains on (with `val`, validates on) by `recipe`; all views of a sample
    /// count.
    ///
    /// # Errors
    /// When the data can't be opened, or have no such samples.
    pub fn of(recipe: &Recipe, count: usize, val: bool) -> Result<Preview, TrainError> {
        let (train, validation) = recipe.open_data(true)?;
        let data = &recipe.data;
        if !val {
            let options = stream_options(recipe, count.next_multiple_of(data.repeats));
            let views = views_of(recipe, Mode::Train);
            let batch = Stream::new(train.clone(), views, options, 0)?.next_batch()?;
            return Ok(Preview { batch, classes: train.class_names().map(<[String]>::to_vec) });
        }
        let none = || TrainError::recipe("data.val: is empty, so that there is nothing to show");
        let source = validation.ok_or_else(none)?;
        let views = views_of(recipe, Mode::Validate);
        let mut swept = uta_data::sweep(source.clone(), views, count, data.workers, Share::ALL);
        let batch = swept.next().ok_or_else(none)??;
        Ok(Preview { batch, classes: source.class_names().map(<[String]>::to_vec) })
    }
}

/// The number of threads with which this run's first batches, decoded meanwhile, go through the net and back fastest; so many
/// are then used. Nothing is learned from them.
pub(super) fn choose_threads(
    recipe: &Recipe,
    micro_batch: usize,
    train: &Arc<dyn Source>,
    task: &dyn Task,
    group: &ProcessGroup,
) -> usize {
    let most = present_threads();
    if 2.0 * task.macs() as f64 * micro_batch as f64 > threads::LARGE {
        return most;
    }
    let params: Vec<Tensor> = task.parameters().iter().map(|p| p.tensor.shallow_clone()).collect();
    let precision = Precision::from(recipe.train.precision);
    let chosen = stream(recipe, micro_batch, train, task, group, 0).and_then(|mut stream| {
        threads::fastest(most, |threads, steps| {
            tch::set_num_threads(threads as i32);
            let began = Instant::now();
            for _ in 0..steps {
                let batch = stream.draw()?;
                let output =
                    autocast(Device::Cpu, precision, || task.forward(&batch, Mode::Train))?;
                output.loss.backward();
                torch_ext::drop_grads(&params);
            }
            Ok(began.elapsed().as_secs_f64())
        })
    });
    // What is wrong with the data the run itself meets, and says.
    let threads = chosen.unwrap_or(most);
    tch::set_num_threads(threads as i32);
    threads
}

/// Computes with so many threads, and says so where they are more than the machine's cores.
pub(super) fn use_threads(threads: usize, device: Device, group: &ProcessGroup) {
    let cores = std::thread::available_parallelism().map_or(threads, usize::from);
    if threads > cores && device == Device::Cpu && group.is_first() {
        tracing::warn!(
            "train.threads = {threads}: this machine has {cores} cores, so that --set train.threads={cores} is faster (sums \
             then differ in their last bits)"
        );
    }
    tch::set_num_threads(threads as i32);
}

pub(super) fn present_threads() -> usize {
    tch::get_num_threads().max(1) as usize
}

/// # Errors
/// When the ranks see other numbers of samples: some would then be trained on twice, and others never.
pub(super) fn same_data(
    train: &dyn Source,
    val: Option<&dyn Source>,
    group: &ProcessGroup,
) -> Result<(), TrainError> {
    let own = format!(
        "{} samples of data.train ({} an epoch) and {} of data.val",
        train.len(),
        train.epoch(),
        val.map_or(0, Source::len)
    );
    let told = group.exchange(own.as_bytes())?;
    match told.iter().position(|other| *other != told[0]) {
        None => Ok(()),
        Some(rank) => Err(TrainError::recipe(format!(
            "rank 0 sees {}, rank {rank} sees {}: give all machines the same data",
            String::from_utf8_lossy(&told[0]),
            String::from_utf8_lossy(&told[rank])
        ))),
    }
}
