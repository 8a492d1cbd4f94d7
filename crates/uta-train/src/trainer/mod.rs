//! The loop. One step reads: seed, forward and backward of every micro-batch, clip and update, average; then, when it is
//! time, log, evaluate, save. It knows no task by name.
//!
//! Several ranks take their slices of every global batch and average gradients, so that all make the same step. Rank 0
//! alone has the run directory, and speaks. Where one rank may fail, `ProcessGroup::agree` makes all of them stop: a message
//! between processors, for which no device is waited for.

mod threads;

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use indicatif::ProgressBar;
use serde_json::{Map, Value};
use tch::{Device, Tensor, no_grad};
use torch_ext::distributed::{Ddp, ProcessGroup, Reduce};
use torch_ext::{Precision, autocast};
use uta_data::rng::{Purpose, Rng};
use uta_data::{
    Batch, DataError, EvalTransform, Rejected, Share, Source, Stream, StreamOptions, progress,
};
use uta_eval::{EvalOptions, Evaluator};
use uta_model::RelPos;

use self::threads::Pace;
use crate::run::{RunDir, State};
use crate::{CosineSchedule, Ema, Mode, Optimizer, Recipe, RecipeError, Task, TrainError};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Optimiser steps done, over all sittings.
    pub step: u64,
    /// Whether all steps of the recipe are done; otherwise it was interrupted and can be resumed.
    pub finished: bool,
    /// Seconds of this sitting, evaluations included.
    pub seconds: f64,
    /// Training images a second, evaluations and checkpoints left out.
    pub images_per_second: f64,
}

/// A run: a task, its data, its evaluators, its directory.
pub struct Trainer {
    recipe: Recipe,
    /// Images of a micro-batch on this rank.
    micro_batch: usize,
    device: Device,
    group: Rc<ProcessGroup>,
    /// `None` where one process trains alone.
    ddp: Option<Ddp>,
    task: Box<dyn Task>,
    optimizer: Optimizer,
    ema: Option<Ema>,
    schedule: CosineSchedule,
    train: Arc<dyn Source>,
    val: Option<Arc<dyn Source>>,
    evaluators: Vec<Evaluator>,
    /// Rank 0's.
    run: Option<RunDir>,
    step: u64,
    /// The step of the newest checkpoint.
    saved: Option<u64>,
    /// Training samples that no rank could use; rank 0 counts those of former sittings too.
    rejected: u64,
    pace: Pace,
    stop: Arc<AtomicBool>,
}

impl Trainer {
    /// A run of `recipe` in `out`: new, or gone on with from its newest whole checkpoint, shared by the ranks of `group`.
    /// When `stop` becomes true on any of them the run ends after the step in progress, and saves itself if it has made one. Only
    /// rank 0 needs `out`.
    ///
    /// # Errors
    /// When the data, a checkpoint or the directory can't be used, or the batch can't be shared evenly.
    pub fn new(
        mut recipe: Recipe,
        out: &Path,
        resume: bool,
        group: Rc<ProcessGroup>,
        stop: Arc<AtomicBool>,
    ) -> Result<Trainer, TrainError> {
        let world = group.world();
        let micro_batch = recipe.micro_batch(world)?;
        if world > 1
            && recipe.train.checkpoint_blocks
            && recipe.model.vision.rel_pos == RelPos::Shared
        {
            return Err(TrainError::recipe(
                "train.checkpoint_blocks: blocks that share a table of positions can't be checkpointed with several \
                 processes; leave it out",
            ));
        }
        // What a checkpoint will overwrite need not be there.
        let begun = match resume && group.is_first() {
            true => crate::run::checkpoints(out).map(|steps| !steps.is_empty()),
            false => Ok(false),
        };
        let begun = group.any(group.agree(begun)?)?;
        let parts = Parts::new(&mut recipe, micro_batch, begun, &group);
        let Parts { device, train, val, task, evaluators } = group.agree(parts)?;
        same_data(train.as_ref(), val.as_deref(), &group)?;
        if recipe.train.threads > 0 {
            use_threads(recipe.train.threads, device, &group);
        } else if device == Device::Cpu && world == 1 {
            // Where there is no choice, or a run of a former version goes on, all that there are.
            let given = resume || std::env::var_os("OMP_NUM_THREADS").is_some();
            let choose = || choose_threads(&recipe, micro_batch, &train, task.as_ref(), &group);
            recipe.train.threads = if given { present_threads() } else { choose() };
        }
        let params = task.parameters();
        let optimizer = Optimizer::new(&params, &recipe.optim);
        let ema = (recipe.train.ema > 0.0).then(|| Ema::new(&params, recipe.train.ema));
        let schedule = CosineSchedule {
            lr: recipe.optim.lr,
            min_lr: recipe.schedule.min_lr,
            warmup: recipe.schedule.warmup,
            steps: recipe.steps(),
        };
        let saved = saved_state(&optimizer, ema.as_ref());
        let (run, state) = group.agree(match (group.is_first(), resume) {
            (false, _) => Ok((None, None)),
            (true, true) => RunDir::reopen(out, &recipe, &named(&task.saved()), &saved)
                .map(|(run, state)| (Some(run), state)),
            (true, false) => {
                RunDir::create(out, &recipe, device, world).map(|run| (Some(run), None))
            }
        })?;
        let (step, rejected) = match &state {
            Some(State { step, rejected, data, .. }) => {
                if let Some(former) = data.filter(|&former| former != train.len() as u64) {
                    tracing::warn!(
                        "data.train has {} samples, and had {former} until step {step}: from here on the order is another \
                         than that of an undisturbed run; stop it if something is missing",
                        train.len()
                    );
                }
                (*step, *rejected)
            }
            None => (0, 0),
        };
        // From the start: a checkpoint is a model too.
        group.agree(match &run {
            Some(_) => task.save(out, None).map_err(TrainError::from),
            None => Ok(()),
        })?;
        // Rank 0's step, weights and moments are everyone's.
        let step = match group.exchange(&step.to_le_bytes())?[0].as_slice().try_into() {
            Ok(bytes) => u64::from_le_bytes(bytes),
            Err(_) => step,
        };
        let ddp = match world {
            1 => None,
            _ => {
                let tensors: Vec<Tensor> =
                    params.iter().map(|p| p.tensor.shallow_clone()).collect();
                let saved: Vec<Tensor> = saved.into_iter().map(|(_, tensor)| tensor).collect();
                group.broadcast(&saved)?;
                Some(Ddp::new(&group, &tensors)?)
            }
        };
        Ok(Trainer {
            recipe,
            micro_batch,
            device,
            group,
            ddp,
            task,
            optimizer,
            ema,
            schedule,
            train,
            val,
            evaluators,
            run,
            step,
            saved: (step > 0).then_some(step),
            rejected,
            pace: Pace::default(),
            stop,
        })
    }

    /// The resolved recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// How many numbers the optimiser changes.
    pub fn parameters(&self) -> usize {
        self.task.parameters().iter().map(|p| p.tensor.numel()).sum()
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Trains to the end of the recipe, or until stopped.
    ///
    /// # Errors
    /// See [`TrainError`]. Whatever happens, the newest checkpoint is whole.
    pub fn run(mut self) -> Result<Outcome, TrainError> {
        let began = Instant::now();
        let steps = self.recipe.steps();
        if self.step == 0 {
            let problems: Vec<_> = self.train.problems().into_iter().map(Rejected::part).collect();
            self.group.agree(self.reject(0, &problems))?;
            self.evaluate()?;
        }
        let bar = match self.group.is_first() {
            true => progress::bar(steps, self.step, "steps"),
            false => ProgressBar::hidden(),
        };
        bar.set_prefix("train");
        let first = self.step * self.recipe.train.accumulate as u64;
        let stream = stream(
            &self.recipe,
            self.micro_batch,
            &self.train,
            self.task.as_ref(),
            &self.group,
            first,
        );
        let mut stream = self.group.agree(stream)?;
        let mut clock = Clock::default();
        while self.step < steps && !self.group.any(self.stop.load(Ordering::Relaxed))? {
            let lr = self.schedule.lr(self.step);
            let measured = self.one_step(&mut stream, lr, &mut clock)?;
            self.step += 1;
            if let Some(run) = &mut self.run {
                run.keep();
            }
            clock.step(self.recipe.train.batch);
            // A GPU would be waited for.
            if self.device == Device::Cpu {
                self.check_skipped()?;
            }
            let last = self.step == steps;
            if last || self.step.is_multiple_of(self.recipe.train.log_every) {
                let logged = self.log(lr, &measured, &mut clock, &bar);
                self.group.agree(logged)?;
            }
            bar.inc(1);
            let due = |every: u64| every > 0 && self.step.is_multiple_of(every);
            let (evaluate, save) = (due(self.recipe.eval.every), due(self.recipe.checkpoint.every));
            if evaluate || last {
                clock.paused(|| self.evaluate())?;
            }
            if save || last {
                clock.paused(|| self.save())?;
            }
        }
        bar.finish_and_clear();
        if let Some(run) = &mut self.run {
            run.keep();
        }
        let finished = self.step >= steps;
        if finished {
            self.export()?;
        } else if self.step > 0 {
            self.save()?;
        }
        Ok(Outcome {
            step: self.step,
            finished,
            seconds: began.elapsed().as_secs_f64(),
            images_per_second: clock.overall(),
        })
    }

    /// Forward and backward of every micro-batch, then the update. Nothing here waits for the device.
    fn one_step(
        &mut self,
        stream: &mut Stream,
        lr: f64,
        clock: &mut Clock,
    ) -> Result<Measured, TrainError> {
        let train = &self.recipe.train;
        let parts = train.accumulate as f64;
        // Ranks drop different paths; rank 0 those of a process alone.
        let counters = [self.step, self.group.rank() as u64];
        let counters = if self.group.is_first() { &counters[..1] } else { &counters[..] };
        let draw = Rng::new(train.seed, Purpose::DropPath, counters).next_u64();
        tch::manual_seed((draw >> 1) as i64);
        let mut measured = Measured::default();
        let task = self.task.as_ref();
        autocast(self.device, Precision::from(train.precision), || {
            for part in 1..=train.accumulate {
                let batch = clock.waiting(|| stream.draw());
                let (batch, rejected) = self.on_all_ranks(batch)?;
                stream.judge(&rejected)?;
                if !rejected.is_empty() {
                    self.group.agree(self.reject(self.step + 1, &rejected))?;
                    measured.rejected += rejected.len() as u64;
                }
                measured.epoch = batch.epoch;
                let output = task.forward(&batch, Mode::Train)?;
                let loss = &output.loss / parts;
                match &self.ddp {
                    Some(ddp) => ddp.backward(&loss, part == train.accumulate)?,
                    None => loss.backward(),
                }
                measured.add("loss", &output.loss.detach(), parts);
                for (name, value) in &output.metrics {
                    measured.add(name, value, parts);
                }
            }
            Ok::<(), TrainError>(())
        })?;
        self.rejected += measured.rejected;
        measured.add("grad_norm", &self.optimizer.step(lr)?, 1.0);
        self.task.constrain();
        if let Some(ema) = &self.ema {
            ema.update(self.step)?;
        }
        Ok(measured)
    }

    /// A batch of this rank, and the unusable samples that all ranks met on the way to theirs, in the order of one process
    /// alone. Rank 0 names them in the log.
    fn on_all_ranks(
        &self,
        batch: Result<Batch, DataError>,
    ) -> Result<(Batch, Vec<Rejected>), TrainError> {
        let tell = |batch: &Batch| match batch.rejected.is_empty() {
            true => vec![],
            false => serde_json::to_vec(&batch.rejected).expect("plain data"),
        };
        let (batch, told) = self.group.agree_and_exchange(batch.map_err(TrainError::from), tell)?;
        let read = |bytes: &Vec<u8>| -> Vec<Rejected> {
            serde_json::from_slice(bytes).expect("written by a rank of this program")
        };
        let rejected: Vec<Rejected> =
            told.iter().filter(|bytes| !bytes.is_empty()).flat_map(read).collect();
        for rejected in rejected.iter().filter(|_| self.group.is_first()) {
            tracing::warn!("unusable sample {}: {}", rejected.key, rejected.reason);
        }
        Ok((batch, rejected))
    }

    /// Writes down, where this rank has the run directory, what step `step` could not use.
    fn reject(&self, step: u64, rejected: &[Rejected]) -> Result<(), TrainError> {
        self.run.as_ref().map_or(Ok(()), |run| run.reject(step, rejected))
    }

    /// Steps skipped so far. Waits for the device.
    ///
    /// # Errors
    /// When too many were in a row.
    fn check_skipped(&self) -> Result<u64, TrainError> {
        let (skipped, in_a_row) = self.optimizer.skipped();
        let allowed = self.recipe.train.max_skipped;
        if in_a_row < allowed {
            return Ok(skipped);
        }
        let saved = self.run.as_ref().and_then(|run| crate::run::checkpoints(run.path()).ok());
        let last = saved
            .and_then(|steps| steps.last().copied())
            .map_or_else(|| "the start".to_owned(), |step| format!("step {step}"));
        Err(TrainError::NonFinite { step: self.step, in_a_row, allowed, last })
    }

    /// Says so when the run has become slow, and what helps.
    fn tell_pace(&mut self, rate: f64, data_wait: f64) {
        let images = self.recipe.train.batch as f64 * self.recipe.train.log_every as f64;
        let Some(best) = self.pace.fell(rate, images / rate) else { return };
        let Recipe { data, train, .. } = &self.recipe;
        let reason = if data_wait > 0.5 {
            format!(
                "steps wait for data: a faster disk, smaller pictures or more decoding threads help (data.workers is {})",
                data.workers
            )
        } else if self.device == Device::Cpu {
            let load = threads::load().map_or_else(String::new, |load| format!(", load {load:.1}"));
            format!(
                "other programs compute on this machine too ({} cores{load}); fewer threads lose less: stop it, and go on \
                 with --resume and --set train.threads=1 (now {}) --set data.workers=1 (now {})",
                std::thread::available_parallelism().map_or(1, usize::from),
                train.threads.max(1),
                data.workers
            )
        } else {
            "something else uses the GPU, or it is too hot (nvidia-smi tells)".to_owned()
        };
        tracing::warn!(
            "step {}: {rate:.0} images/s, less than half of the {best:.0} before: {reason}",
            self.step
        );
    }

    /// One line of metrics: the numbers of this step alone, so that a resumed run repeats them to the bit.
    fn log(
        &mut self,
        lr: f64,
        measured: &Measured,
        clock: &mut Clock,
        bar: &ProgressBar,
    ) -> Result<(), TrainError> {
        let skipped = self.check_skipped()?;
        let (images_per_second, data_wait) = clock.lap();
        let means = self.means(measured)?;
        let mut longest = Tensor::from_slice(&[data_wait]);
        self.group.all_reduce(&mut longest, Reduce::Max)?;
        let data_wait = longest.double_value(&[0]);
        let Some(run) = &mut self.run else { return Ok(()) };
        let mut line = Map::new();
        line.insert("step".into(), self.step.into());
        line.insert("samples".into(), (self.step * self.recipe.train.batch as u64).into());
        line.insert("epoch".into(), measured.epoch.into());
        for (name, value) in means {
            line.insert(name.into(), value.into());
        }
        line.insert("lr".into(), lr.into());
        line.insert("skipped_steps".into(), skipped.into());
        line.insert("rejected_samples".into(), self.rejected.into());
        line.insert("images_per_second".into(), round(images_per_second, 3).into());
        line.insert("data_wait".into(), round(data_wait, 4).into());
        let loss = line["loss"].as_f64().unwrap_or(f64::NAN);
        let summary = format!("loss {loss:.4}  {}", progress::images_per_second(images_per_second));
        if bar.is_hidden() {
            tracing::info!("step {}/{}  {summary}", self.step, self.recipe.steps());
        }
        bar.set_message(summary);
        run.log(None, &line)?;
        self.tell_pace(images_per_second, data_wait);
        Ok(())
    }

    /// The numbers of a step, their means over all ranks.
    fn means(&self, measured: &Measured) -> Result<Vec<(&'static str, f64)>, TrainError> {
        let values = measured.means.iter().map(|(_, value)| value.double_value(&[]));
        let mut all = Tensor::from_slice(&values.collect::<Vec<f64>>());
        self.group.all_reduce(&mut all, Reduce::Mean)?;
        let names = measured.means.iter().enumerate();
        Ok(names.map(|(i, (name, _))| (*name, all.double_value(&[i as i64]))).collect())
    }

    /// Validation loss and every evaluator, on the averaged weights where there are any.
    fn evaluate(&mut self) -> Result<(), TrainError> {
        let result = self.averaged(Self::evaluate_present_weights);
        self.group.agree(result)
    }

    /// Does `f` on the averaged weights where there are any, else on the present ones.
    fn averaged<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> T {
        let swap = |trainer: &Self| trainer.ema.iter().for_each(Ema::swap);
        swap(self);
        let result = f(self);
        swap(self);
        result
    }

    fn evaluate_present_weights(&mut self) -> Result<(), TrainError> {
        if let Some(val) = self.val.clone() {
            let line = self.validate(val)?;
            self.log_evaluation("validation", line)?;
        }
        let mut evaluators = std::mem::take(&mut self.evaluators);
        let result = evaluators.iter_mut().try_for_each(|evaluator| {
            let numbers = evaluator.measure().map_err(|source| TrainError::Evaluation {
                name: evaluator.name.clone(),
                source,
            })?;
            self.log_evaluation(&evaluator.name, numbers)
        });
        self.evaluators = evaluators;
        result
    }

    /// The task's loss over the whole validation set.
    fn validate(&self, val: Arc<dyn Source>) -> Result<Vec<(String, f64)>, TrainError> {
        let transform = EvalTransform::new(self.recipe.data.image_size);
        let precision = Precision::from(self.recipe.train.precision);
        let (mut sums, mut count) = (Vec::<(String, f64)>::new(), 0.0);
        let (decode, workers) = (self.recipe.data.decode(), self.recipe.data.workers);
        let share = Share { rank: self.group.rank(), world: self.group.world() };
        let batches = uta_data::sweep(val, transform, decode, self.micro_batch, workers, share);
        for batch in batches.captioned(self.task.wants_captions()) {
            let (batch, _) = self.on_all_ranks(batch)?;
            if batch.is_empty() && !self.task.spans_ranks() {
                continue;
            }
            let output = no_grad(|| {
                autocast(self.device, precision, || self.task.forward(&batch, Mode::Validate))
            })?;
            let n = batch.len() as f64;
            count += n;
            let all = std::iter::once(("loss", output.loss)).chain(output.metrics);
            for (i, (name, value)) in all.enumerate() {
                if sums.len() == i {
                    sums.push((name.to_owned(), 0.0));
                }
                if n > 0.0 {
                    sums[i].1 += n * value.double_value(&[]);
                }
            }
        }
        self.mean_of_ranks(sums, count)
    }

    /// `sums` over all ranks, each divided by the `count`s of all. A rank without a sample has no sums.
    fn mean_of_ranks(
        &self,
        sums: Vec<(String, f64)>,
        count: f64,
    ) -> Result<Vec<(String, f64)>, TrainError> {
        // JSON knows no NaN, and numbers must come through to the bit.
        let bits: Vec<(String, u64)> =
            sums.into_iter().map(|(name, sum)| (name, sum.to_bits())).collect();
        let own = serde_json::to_vec(&(bits, count)).expect("plain data");
        let (mut total, mut samples) = (Vec::<(String, f64)>::new(), 0.0);
        for bytes in self.group.exchange(&own)? {
            let (bits, count): (Vec<(String, u64)>, f64) =
                serde_json::from_slice(&bytes).expect("written by a rank of this program");
            samples += count;
            for (i, (name, bits)) in bits.into_iter().enumerate() {
                let sum = f64::from_bits(bits);
                match total.get_mut(i) {
                    Some((_, total)) => *total += sum,
                    None => total.push((name, sum)),
                }
            }
        }
        Ok(total.into_iter().map(|(name, sum)| (name, sum / f64::max(samples, 1.0))).collect())
    }

    fn log_evaluation(
        &mut self,
        name: &str,
        numbers: Vec<(String, f64)>,
    ) -> Result<(), TrainError> {
        let Some(run) = &mut self.run else { return Ok(()) };
        let shown: Vec<String> =
            numbers.iter().map(|(key, value)| format!("{key} {value:.4}")).collect();
        tracing::info!("step {}  {name}: {}", self.step, shown.join("  "));
        let mut line = Map::new();
        line.insert("step".into(), self.step.into());
        line.insert("eval".into(), name.into());
        line.extend(numbers.into_iter().map(|(key, value)| (key, Value::from(value))));
        run.log(Some(name), &line)
    }

    /// A checkpoint of this step, where there is none yet.
    fn save(&mut self) -> Result<(), TrainError> {
        if self.saved == Some(self.step) {
            return Ok(());
        }
        let state = State {
            step: self.step,
            samples: self.step * self.recipe.train.batch as u64,
            rejected: self.rejected,
            data: Some(self.train.len() as u64),
            bytes: Map::new(),
        };
        let saved = match &mut self.run {
            Some(run) => {
                let model = named(&self.task.saved());
                let optimizer = saved_state(&self.optimizer, self.ema.as_ref());
                run.save_checkpoint(state, &model, &optimizer, self.recipe.checkpoint.keep)
            }
            None => Ok(()),
        };
        self.group.agree(saved)?;
        self.saved = Some(self.step);
        Ok(())
    }

    /// RUN/model.safetensors and RUN/config.json: the averaged weights where there are any.
    fn export(&mut self) -> Result<(), TrainError> {
        let kind = self.recipe.checkpoint.export.into();
        let saved = self.averaged(|trainer| match &trainer.run {
            Some(run) => Ok(trainer.task.save(run.path(), Some(kind))?),
            None => Ok(()),
        });
        self.group.agree(saved)
    }
}

/// What every rank makes for itself.
struct Parts {
    device: Device,
    train: Arc<dyn Source>,
    val: Option<Arc<dyn Source>>,
    task: Box<dyn Task>,
    evaluators: Vec<Evaluator>,
}

impl Parts {
    /// Opens the data, which settles the length of `recipe`, and makes the task on this rank's device (of a run that has
    /// `begun`, without `model.init`) and its evaluators.
    fn new(
        recipe: &mut Recipe,
        micro_batch: usize,
        begun: bool,
        group: &Rc<ProcessGroup>,
    ) -> Result<Parts, TrainError> {
        let device = crate::device::device(&recipe.train.device, group.local_rank())
            .map_err(|message| RecipeError { origin: "train.device".into(), message })?;
        group.use_device(device)?;
        if device == Device::Cpu {
            crate::task::kinds::has_room(recipe, micro_batch)?;
        }
        let (train, val) = recipe.data.open(group.is_first())?;
        recipe.resolve_length(train.epoch());
        let task = match begun {
            true => {
                let mut anew = recipe.clone();
                anew.model.init = "random".into();
                crate::task::kinds::build(&anew, device, group)?
            }
            false => crate::task::kinds::build(recipe, device, group)?,
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
fn stream(
    recipe: &Recipe,
    micro_batch: usize,
    train: &Arc<dyn Source>,
    task: &dyn Task,
    group: &ProcessGroup,
    first: u64,
) -> Result<Stream, TrainError> {
    let data = &recipe.data;
    let options = StreamOptions {
        batch: micro_batch,
        repeats: data.repeats,
        seed: recipe.train.seed,
        order: data.order,
        shuffle_buffer: data.shuffle_buffer,
        workers: data.workers,
        prefetch: data.prefetch,
        rank: group.rank(),
        world: group.world(),
        captions: task.wants_captions(),
        decode: data.decode(),
        max_rejected: data.max_rejected,
    };
    let (train, replay) = (train.clone(), task.replay());
    Ok(Stream::replaying(train, data.transforms.clone(), options, first, replay)?)
}

/// The number of threads with which this run's first batches, decoded meanwhile, go through the net and back fastest; so many
/// are then used. Nothing is learned from them.
fn choose_threads(
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
fn use_threads(threads: usize, device: Device, group: &ProcessGroup) {
    let cores = std::thread::available_parallelism().map_or(threads, usize::from);
    if threads > cores && device == Device::Cpu && group.is_first() {
        tracing::warn!(
            "train.threads = {threads}: this machine has {cores} cores, so that --set train.threads={cores} is faster (sums \
             then differ in their last bits)"
        );
    }
    tch::set_num_threads(threads as i32);
}

fn present_threads() -> usize {
    tch::get_num_threads().max(1) as usize
}

/// # Errors
/// When the ranks see other numbers of samples: some would then be trained on twice, and others never.
fn same_data(
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

fn named(params: &[crate::Parameter]) -> Vec<(String, Tensor)> {
    params.iter().map(|p| (p.name.clone(), p.tensor.shallow_clone())).collect()
}

fn saved_state(optimizer: &Optimizer, ema: Option<&Ema>) -> Vec<(String, Tensor)> {
    let mut state = optimizer.state();
    state.extend(ema.map(Ema::state).unwrap_or_default());
    state
}

fn round(value: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (value * unit).round() / unit
}

/// The numbers of one step, still on the device.
#[derive(Default)]
struct Measured {
    epoch: f64,
    /// Samples that no rank could use.
    rejected: u64,
    means: Vec<(&'static str, Tensor)>,
}

impl Measured {
    fn add(&mut self, name: &'static str, value: &Tensor, parts: f64) {
        let share = value / parts;
        match self.means.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum = &*sum + share,
            None => self.means.push((name, share)),
        }
    }
}

/// Where the time goes: steps, waiting for data, and neither (evaluation, saving).
struct Clock {
    lap_began: Instant,
    lap_images: usize,
    lap_waited: f64,
    lap_paused: f64,
    seconds: f64,
    images: usize,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock {
            lap_began: Instant::now(),
            lap_images: 0,
            lap_waited: 0.0,
            lap_paused: 0.0,
            seconds: 0.0,
            images: 0,
        }
    }
}

impl Clock {
    fn step(&mut self, images: usize) {
        self.lap_images += images;
    }

    fn waiting<T>(&mut self, f: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = f();
        self.lap_waited += began.elapsed().as_secs_f64();
        result
    }

    fn paused<T>(&mut self, f: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = f();
        self.lap_paused += began.elapsed().as_secs_f64();
        result
    }

    /// (images a second, share of the time spent waiting for data) since the last call.
    fn lap(&mut self) -> (f64, f64) {
        let seconds = (self.lap_began.elapsed().as_secs_f64() - self.lap_paused).max(1e-9);
        let result = (self.lap_images as f64 / seconds, self.lap_waited / seconds);
        self.seconds += seconds;
        self.images += self.lap_images;
        (self.lap_began, self.lap_images) = (Instant::now(), 0);
        (self.lap_waited, self.lap_paused) = (0.0, 0.0);
        result
    }

    fn overall(&self) -> f64 {
        self.images as f64 / self.seconds.max(1e-9)
    }
}
