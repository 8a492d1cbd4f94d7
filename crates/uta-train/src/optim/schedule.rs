//! The learning rate over time: EVA-02's table (`EVA-02/asuka/utils.py`), linear warm-up from 0 and half a cosine to the
//! minimum.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// `[schedule]`: linear from 0 to the peak, then half a cosine down to the minimum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// Warm-up, in steps.
    pub warmup: u64,
    /// Warm-up in epochs instead; `warmup` is worked out from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_epochs: Option<f64>,
    /// Where the cosine ends.
    pub min_lr: f64,
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule { warmup: 0, warmup_epochs: None, min_lr: 1e-5 }
    }
}

/// Warm-up and cosine, as a pure function of the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CosineSchedule {
    /// The peak.
    pub lr: f64,
    /// Where the cosine would end one step after the last.
    pub min_lr: f64,
    /// Steps of warm-up; the last of them is at the peak already, but a single one at 0.
    pub warmup: u64,
    /// Steps of the whole run.
    pub steps: u64,
}

impl CosineSchedule {
    /// The rate of step `step`, counted from 0.
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.lr * step as f64 / (self.warmup - 1).max(1) as f64;
        }
        let length = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / length).min(1.0);
        self.min_lr + 0.5 * (self.lr - self.min_lr) * (1.0 + (PI * done).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed in f64 from EVA's formula.
    #[test]
    fn the_curve_is_evas() {
        let schedule = CosineSchedule { lr: 1.5e-3, min_lr: 1e-5, warmup: 10, steps: 1000 };
        for (step, lr) in
            [(0, 0.0), (1, 1.6667e-4), (9, 1.5e-3), (10, 1.5e-3), (505, 7.55e-4), (999, 1.00038e-5)]
        {
            assert!((schedule.lr(step) - lr).abs() < 1e-8, "step {step}: {}", schedule.lr(step));
        }
    }

    #[test]
    fn a_run_without_warm_up_starts_at_the_peak_and_never_leaves_the_range() {
        let schedule = CosineSchedule { lr: 1.0, min_lr: 0.1, warmup: 0, steps: 5 };
        assert_eq!(schedule.lr(0), 1.0);
        assert!((0..100).all(|s| (0.1..=1.0).contains(&schedule.lr(s))));
        let all_warm_up = CosineSchedule { warmup: 5, ..schedule };
        assert!((0..100).all(|s| all_warm_up.lr(s).is_finite()));
    }
}
