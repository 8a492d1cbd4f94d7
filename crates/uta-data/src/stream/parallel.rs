//! An ordered parallel map: threads do the work in any order, results come out in order, few are in flight.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, unbounded};

/// `work(i)` for every `i` of a range, in order, at most `ahead` of them done or under way before they are asked for.
///
/// Jobs are handed out by [`next`](Iterator::next) itself, so there is no feeding thread and no lock to hold. Dropping it
/// stops and joins the threads after the jobs they are at. A panic of `work` comes out where its result would have.
pub(crate) struct Ordered<T> {
    jobs: Option<Sender<u64>>,
    results: Receiver<(u64, thread::Result<T>)>,
    early: BTreeMap<u64, thread::Result<T>>,
    to_hand_out: Range<u64>,
    to_return: Range<u64>,
    ahead: u64,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl<T: Send + 'static> Ordered<T> {
    pub(crate) fn new(
        workers: usize,
        ahead: u64,
        range: Range<u64>,
        work: impl Fn(u64) -> T + Send + Sync + 'static,
    ) -> Ordered<T> {
        let (jobs, queue) = unbounded::<u64>();
        let (done, results) = unbounded();
        let stop = Arc::new(AtomicBool::new(false));
        let work = Arc::new(work);
        let mut threads = vec![];
        for i in 0..workers.max(1) {
            let (queue, done, stop, work) =
                (queue.clone(), done.clone(), stop.clone(), work.clone());
            let run = move || {
                for job in queue {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let result = catch_unwind(AssertUnwindSafe(|| work(job)));
                    if done.send((job, result)).is_err() {
                        return;
                    }
                }
            };
            match thread::Builder::new().name(format!("data-{i}")).spawn(run) {
                Ok(thread) => threads.push(thread),
                // Results don't depend on how many there are.
                Err(e) if i > 0 => {
                    tracing::warn!("{i} decoding threads of {workers}: no more can be had: {e}");
                    break;
                }
                Err(e) => panic!("the system gives no thread: {e}"),
            }
        }
        Ordered {
            jobs: Some(jobs),
            results,
            early: BTreeMap::new(),
            to_hand_out: range.clone(),
            to_return: range,
            ahead: ahead.max(1),
            stop,
            threads,
        }
    }
}

impl<T> Ordered<T> {
    /// Keeps `ahead` jobs in flight.
    fn hand_out(&mut self) {
        let until = self.to_return.start.saturating_add(self.ahead).min(self.to_hand_out.end);
        while self.to_hand_out.start < until {
            let job = self.to_hand_out.start;
            self.jobs
                .as_ref()
                .expect("the queue is open until the drop")
                .send(job)
                .expect("workers outlive this");
            self.to_hand_out.start += 1;
        }
    }
}

impl<T> Iterator for Ordered<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let wanted = self.to_return.next()?;
        let result = loop {
            self.hand_out();
            if let Some(result) = self.early.remove(&wanted) {
                break result;
            }
            let (job, result) = self.results.recv().expect("workers outlive this");
            self.early.insert(job, result);
        };
        Some(result.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

impl<T> Drop for Ordered<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // Panics of the work were caught and handed on; there is nothing more to hear.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    #[test]
    fn results_come_in_order_whoever_is_first() {
        for workers in [1, 3, 8] {
            let slow_at_first = move |i: u64| {
                thread::sleep(Duration::from_millis(if i.is_multiple_of(7) { 5 } else { 0 }));
                i * i
            };
            let all: Vec<u64> = Ordered::new(workers, 5, 3..50, slow_at_first).collect();
            assert_eq!(all, (3..50).map(|i| i * i).collect::<Vec<u64>>());
        }
    }

    #[test]
    fn no_more_than_ahead_is_in_flight() {
        let started = Arc::new(AtomicU64::new(0));
        let count = started.clone();
        let mut map = Ordered::new(4, 6, 0..u64::MAX, move |i| {
            count.fetch_add(1, Ordering::SeqCst);
            i
        });
        assert_eq!(map.next(), Some(0));
        thread::sleep(Duration::from_millis(50));
        assert!(started.load(Ordering::SeqCst) <= 7, "{started:?}");
    }

    #[test]
    fn dropping_it_ends_the_threads() {
        let alive = Arc::new(());
        let held = alive.clone();
        let mut map = Ordered::new(4, 100, 0..u64::MAX, move |i| {
            let _held = &held;
            thread::sleep(Duration::from_millis(1));
            i
        });
        map.next();
        drop(map);
        assert_eq!(Arc::strong_count(&alive), 1, "a thread still holds the work");
    }

    #[test]
    fn a_panic_of_the_work_reaches_the_caller() {
        let mut map = Ordered::new(2, 4, 0..8, |i| if i == 2 { panic!("two") } else { i });
        assert_eq!((map.next(), map.next()), (Some(0), Some(1)));
        let panic = catch_unwind(AssertUnwindSafe(|| map.next())).expect_err("a panic");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"two"));
    }
}
