//! The measurements inside a run: validation loss, and evaluators.

use std::sync::Arc;

use serde_json::{Map, Value};
use tch::no_grad;
use torch_ext::{Precision, autocast};
use uta_data::{Share, Source};

use super::Trainer;
use crate::{Ema, Mode, TrainError};

impl Trainer {
    /// Validation loss and every evaluator, on the averaged weights where there are any.
    pub(super) fn evaluate(&mut self) -> Result<(), TrainError> {
        let result = self.averaged(Self::evaluate_present_weights);
        self.group.agree(result)
    }

    /// Does `f` on the averaged weights where there are any, else on the present ones.
    pub(super) fn averaged<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> T {
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
        let transform = self.task.transform(&self.recipe.data, Mode::Validate);
        let precision = Precision::from(self.recipe.train.precision);
        let (mut sums, mut count) = (Vec::<(String, f64)>::new(), 0.0);
        let workers = self.recipe.data.workers;
        let share = Share { rank: self.group.rank(), world: self.group.world() };
        for batch in uta_data::sweep(val, transform, self.micro_batch, workers, share) {
            let (batch, _) = self.on_all_ranks(batch)?;
            if batch.is_empty() && !self.task.spans_ranks() {
                continue;
            }
            let output = no_grad(|| {
                autocast(self.device, precision, || self.task.forward(&batch, Mode::Validate))
            })?;
            let n = output.count;
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
}
