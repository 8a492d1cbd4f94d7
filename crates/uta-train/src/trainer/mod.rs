//! The loop. One step reads: seed, forward and backward of every micro-batch, clip and update, average; then, when it is
//! time, log, evaluate, save. It knows no task by name.
//!
//! Several ranks take their slices of every global batch and average gradients, so that all make the same step. Rank 0
//! alone has the run directory, and speaks. Where one rank may fail, `ProcessGroup::agree` makes all of them stop: a message
//! between processors, for which no device is waited for.

mod clock;
mod evaluate;
mod start;
mod threads;

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use indicatif::ProgressBar;
use serde_json::Map;
use tch::{Device, Tensor};
use torch_ext::distributed::{Ddp, ProcessGroup, Reduce};
use torch_ext::{Precision, autocast};
use uta_data::rng::{Purpose, Rng};
use uta_data::{Batch, DataError, Rejected, Source, Stream, progress};
use uta_eval::Evaluator;
use uta_model::RelPos;

use self::clock::{Clock, Measured, round};
use self::start::{Parts, choose_threads, present_threads, same_data, stream, use_threads};
use self::threads::Pace;

pub use self::start::Preview;
use crate::run::{RunDir, State};
use crate::{CosineSchedule, Ema, Mode, Optimizer, Recipe, Task, TrainError};

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
            (true, true) => RunDir::reopen(out, &recipe, &task.saved(), &saved)
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
                // Each micro-batch weighs as much as its loss is a mean of: all alike where that is images.
                let parts = parts * self.micro_batch as f64 / output.count;
                let loss = &output.loss / parts;
                match &self.ddp {
                    Some(ddp) => ddp.backward(&loss, part == train.accumulate)?,
                    None => loss.backward(),
                }
                measured.count += output.count;
                measured.add("loss", &output.loss.detach(), parts);
                for (name, value) in &output.metrics {
                    measured.add(name, value, parts);
                }
            }
            Ok::<(), TrainError>(())
        })?;
        self.rejected += measured.rejected;
        self.weigh(&mut measured)?;
        measured.add("grad_norm", &self.optimizer.step(lr)?, 1.0);
        self.task.constrain();
        if let Some(ema) = &self.ema {
            ema.update(self.step)?;
        }
        Ok(measured)
    }

    /// Divides gradients and means by the share of all ranks' counts in the number of their images, so that they are means over
    /// what the losses count.
    fn weigh(&self, measured: &mut Measured) -> Result<(), TrainError> {
        let mut count = measured.count;
        if self.group.world() > 1 {
            let counts = self.group.exchange(&count.to_le_bytes())?;
            let read =
                |bytes: &Vec<u8>| Some(f64::from_le_bytes(bytes.as_slice().try_into().ok()?));
            count = counts.iter().filter_map(read).sum();
        }
        let share = count / self.recipe.train.batch as f64;
        if share != 1.0 && share > 0.0 {
            self.optimizer.scale_gradients(1.0 / share)?;
            measured.scale(1.0 / share);
        }
        Ok(())
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
                let model = self.task.saved();
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

fn saved_state(optimizer: &Optimizer, ema: Option<&Ema>) -> Vec<(String, Tensor)> {
    let mut state = optimizer.state();
    state.extend(ema.map(Ema::state).unwrap_or_default());
    state
}
