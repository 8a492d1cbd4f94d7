//! Work on many items by all cores.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use indicatif::ProgressBar;

use crate::DataError;

/// `f` of every item, in order, on all cores. The first error in that order ends it.
pub(super) fn parallel_map<T: Sync, R: Send>(
    items: &[T],
    progress: &ProgressBar,
    f: impl Fn(&T) -> Result<R, DataError> + Sync,
) -> Result<Vec<R>, DataError> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let work = || {
        let mut done = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(i) else { break };
            let result = f(item);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            done.push((i, result));
            progress.inc(1);
        }
        done
    };
    let threads =
        std::thread::available_parallelism().map_or(1, |n| n.get()).min(items.len().max(1));
    let mut all = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::with_capacity(items.len());
        for worker in workers {
            match worker.join() {
                Ok(done) => all.extend(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    all.sort_by_key(|&(i, _)| i);
    all.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parallel_map_keeps_order_and_tells_the_first_error() {
        let items: Vec<usize> = (0..1000).collect();
        let hidden = ProgressBar::hidden();
        assert_eq!(parallel_map(&items, &hidden, |i| Ok(i * 2)).unwrap()[999], 1998);
        let failing = |i: &usize| match i {
            0..=9 => Ok(*i),
            _ => Err(DataError::Image(format!("item {i}"))),
        };
        let error = parallel_map(&items, &hidden, failing).unwrap_err();
        assert_eq!(error.to_string(), "item 10");
    }
}
