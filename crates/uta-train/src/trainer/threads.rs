//! How many threads a CPU computes with, and what is said when other programs take it away.
//!
//! A small net's operators take microseconds, after each of which all threads wait for the last one: where another program
//! has a core, fewer threads are then faster, many times over.

use crate::TrainError;

/// FLOPs of a step from which on all threads are taken for the fastest: half a second of a core's time, or more.
pub(crate) const LARGE: f64 = 3e10;
/// About how long a round of steps is timed, seconds, and how often.
const ROUND: f64 = 0.03;
const ROUNDS: usize = 3;
/// By how much fewer threads must be faster than all, so that chance doesn't choose.
const FASTER: f64 = 0.85;

/// The number of threads, `most` or fewer, with which steps are fastest. `seconds` makes so many steps with so many threads and
/// says how long they took.
///
/// # Errors
/// Those of `seconds`.
pub(crate) fn fastest(
    most: usize,
    mut seconds: impl FnMut(usize, usize) -> Result<f64, TrainError>,
) -> Result<usize, TrainError> {
    if most == 1 {
        return Ok(most);
    }
    // The first ones make what later ones have.
    seconds(most, 2)?;
    let one = seconds(most, 2)? / 2.0;
    let steps = ((ROUND / one) as usize).clamp(1, 8);
    let choices: Vec<usize> =
        std::iter::successors(Some(most), |&n| (n > 1).then_some(n / 2)).collect();
    let mut times = vec![vec![]; choices.len()];
    // In turn, so that what else the machine does meets all alike.
    for _ in 0..ROUNDS {
        for (choice, times) in choices.iter().zip(&mut times) {
            times.push(seconds(*choice, steps)?);
        }
    }
    let medians: Vec<f64> = times
        .into_iter()
        .map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        })
        .collect();
    let all = medians[0];
    let best = (0..choices.len()).min_by(|&a, &b| medians[a].total_cmp(&medians[b]));
    Ok(best.filter(|&best| medians[best] < FASTER * all).map_or(most, |best| choices[best]))
}

/// How fast a run goes, and whether that was said to be slow.
#[derive(Default)]
pub(crate) struct Pace {
    best: f64,
    /// Lines in a row at less than half of it, and their seconds.
    slow: (u32, f64),
    told: bool,
}

/// Seconds of slow steps from which on something is said.
const SLOW: f64 = 3.0;

impl Pace {
    /// The best rate so far where `rate`, images a second over the `seconds` since the last line, is less than half of it, and
    /// was so for some seconds and two lines; once, until it is as it was.
    pub(crate) fn fell(&mut self, rate: f64, seconds: f64) -> Option<f64> {
        self.best = self.best.max(rate);
        let (lines, before) = self.slow;
        self.slow = if rate < 0.5 * self.best { (lines + 1, before + seconds) } else { (0, 0.0) };
        if rate > 0.8 * self.best {
            self.told = false;
        }
        let tell = self.slow.0 >= 2 && self.slow.1 >= SLOW && !self.told;
        self.told |= tell;
        tell.then_some(self.best)
    }
}

/// Programs that want to compute on this machine now, where the system tells.
pub(crate) fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The choice where a step takes so many milliseconds.
    fn choice(most: usize, milliseconds: impl Fn(usize) -> u64) -> usize {
        let seconds =
            |threads, steps: usize| Ok(1e-3 * (milliseconds(threads) * steps as u64) as f64);
        fastest(most, seconds).unwrap()
    }

    #[test]
    fn fewer_threads_are_chosen_where_they_are_faster_and_all_where_it_is_chance() {
        assert_eq!(choice(4, |threads| if threads == 1 { 2 } else { 8 }), 1);
        assert_eq!(choice(8, |threads| if threads == 2 { 2 } else { 8 }), 2);
        assert_eq!(choice(4, |threads| 10 / threads as u64), 4);
        assert_eq!(choice(2, |_| 6), 2);
        assert_eq!(choice(1, |_| 1), 1);
        // Where another program has a core, steps may be very long.
        assert_eq!(choice(2, |threads| if threads == 1 { 5 } else { 150 }), 1);
    }

    #[test]
    fn a_rate_that_falls_to_half_is_told_once_until_it_is_back() {
        let mut pace = Pace::default();
        let told: Vec<bool> =
            [500.0, 1000.0, 400.0, 950.0, 400.0, 450.0, 300.0, 900.0, 400.0, 300.0]
                .map(|rate| pace.fell(rate, 2.0).is_some())
                .into();
        let (no, yes) = (false, true);
        assert_eq!(told, [no, no, no, no, no, yes, no, no, no, yes]);
        // A moment is nothing.
        let mut pace = Pace::default();
        let told = [500.0, 100.0, 100.0, 100.0].map(|rate| pace.fell(rate, 0.1).is_some());
        assert_eq!(told, [no; 4]);
    }
}
