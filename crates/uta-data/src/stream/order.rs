//! Which sample comes at which place of a run: a pure function of the seed and the place, which takes no memory and can be
//! asked at any place first.
//!
//! - *Indexed*: an epoch is a permutation of all samples, the same for any number of processes.
//! - *Streaming*: an epoch is the shards in a drawn order, cut into one run for each process, and shuffled within a buffer.
//!   A disk or a network file system then sees every process read on, a shard or two at a time. It holds for one number of
//!   processes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::rng::{Purpose, Rng};
use crate::source::{Part, Source};

/// How far apart the samples that come one after the other may lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrderKind {
    /// Anywhere.
    #[default]
    Indexed,
    /// In the same shards.
    Streaming,
}

/// The sample at a place of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Its index in the source.
    pub index: usize,
    /// How often its part has been gone through before; the epoch where the weight is 1.
    pub pass: u64,
}

/// The order of a run's samples.
pub struct Order {
    seed: u64,
    parts: Vec<Part>,
    epoch: u64,
    streaming: Option<Streaming>,
}

struct Streaming {
    buffer: u64,
    /// Samples of a process's batch.
    batch: u64,
    world: u64,
    /// Visits of the last epochs asked for: batches that are decoded ahead may lie in the next one.
    visits: Mutex<VecDeque<(u64, Arc<Vec<Visit>>)>>,
}

/// A shard in an epoch, or the part of one that belongs to it.
struct Visit {
    /// Its first sample's place in the epoch.
    start: u64,
    /// Its first sample's index.
    first: usize,
    samples: usize,
    pass: u64,
}

impl Order {
    /// The indexed order of a source.
    pub fn new(source: &dyn Source, seed: u64) -> Order {
        let parts = source.parts();
        let epoch = parts.iter().map(Part::drawn).sum();
        Order { seed, parts, epoch, streaming: None }
    }

    /// The streaming order of shards, for `world` processes that take `batch` samples each in turn. `buffer` samples of a
    /// process, one run of its shards, are shuffled among each other.
    ///
    /// # Errors
    /// When the source has no shards, or too few of them.
    pub fn streaming(
        source: &dyn Source,
        seed: u64,
        buffer: u64,
        batch: u64,
        world: u64,
    ) -> Result<Order, DataError> {
        let wrong = |reason: String| {
            let value = "streaming".to_owned();
            Err(DataError::Option { field: "order", value, reason })
        };
        let order = Order::new(source, seed);
        if order.parts.iter().any(|part| part.shards.is_empty()) {
            return wrong(
                "is for shards alone: pack the rest (uta data pack), or take indexed".into(),
            );
        }
        let shards: usize = order.parts.iter().map(|part| part.shards.len()).sum();
        if (shards as u64) < world {
            return wrong(format!(
                "{shards} shards are too few for {world} processes: make more of them, or take indexed"
            ));
        }
        let visits = Mutex::default();
        // A longer one holds no more.
        let buffer = buffer.clamp(1, order.epoch.max(1));
        let streaming = Streaming { buffer, batch, world, visits };
        Ok(Order { streaming: Some(streaming), ..order })
    }

    /// Samples in an epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The sample at a place of the run: global batches one after the other, in each of them the processes.
    pub fn at(&self, position: u64) -> Pick {
        match &self.streaming {
            None => self.indexed(position),
            Some(streaming) => self.streamed(streaming, position),
        }
    }

    fn turn(&self, counters: &[u64]) -> u64 {
        Rng::new(self.seed, Purpose::Order, counters).next_u64()
    }

    fn indexed(&self, position: u64) -> Pick {
        let (epoch, n) = (position / self.epoch, self.epoch);
        let mut place = permuted(position % n, n, |round, x| self.turn(&[epoch, round, x]));
        let mut first = 0;
        for (which, part) in (0..).zip(&self.parts) {
            let (samples, drawn) = (part.samples as u64, part.drawn());
            if place >= drawn {
                place -= drawn;
                first += part.samples;
                continue;
            }
            // Passes over the part follow one another without a gap, whatever share of one an epoch holds.
            let (pass, within) =
                ((epoch * drawn + place) / samples, (epoch * drawn + place) % samples);
            let within = match drawn.is_multiple_of(samples) {
                true => within,
                false => permuted(within, samples, |round, x| self.turn(&[which, pass, round, x])),
            };
            return Pick { index: first + within as usize, pass };
        }
        unreachable!("a place of an epoch lies in one of the parts")
    }

    /// The sample that would come at a place of the run if the buffer shuffled nothing: what to read ahead.
    pub(crate) fn unshuffled(&self, position: u64) -> Pick {
        match &self.streaming {
            None => self.indexed(position),
            Some(streaming) => self.visited(streaming, streaming.place(self, position)),
        }
    }

    /// Samples of a process that are shuffled among each other, at most.
    pub(crate) fn buffer(&self) -> u64 {
        self.streaming.as_ref().map_or(1, |streaming| streaming.buffer)
    }

    /// How many of them come from a place of the run on, itself included.
    pub(crate) fn rest(&self, position: u64) -> u64 {
        let place = self.streaming.as_ref().map(|streaming| streaming.place(self, position));
        place.map_or(0, |place| place.length - place.within)
    }

    fn streamed(&self, streaming: &Streaming, position: u64) -> Pick {
        let place = streaming.place(self, position);
        let Place { epoch, rank, which, within, length, .. } = place;
        let turn = |round, x| self.turn(&[epoch, rank, which, round, x]);
        self.visited(streaming, Place { within: permuted(within, length, turn), ..place })
    }

    fn visited(&self, streaming: &Streaming, Place { epoch, start, within, .. }: Place) -> Pick {
        let visits = streaming.visits(self, epoch);
        let place = (start + within) % self.epoch;
        let visit = &visits[visits.partition_point(|visit| visit.start <= place) - 1];
        Pick { index: visit.first + (place - visit.start) as usize, pass: visit.pass }
    }
}

/// A place in the streaming order: a process's buffer of an epoch, and a place in it.
struct Place {
    epoch: u64,
    rank: u64,
    /// Which of the process's buffers.
    which: u64,
    /// Where in the epoch it begins.
    start: u64,
    within: u64,
    length: u64,
}

impl Streaming {
    fn place(&self, order: &Order, position: u64) -> Place {
        let &Streaming { buffer, batch, world, .. } = self;
        let rank = position / batch % world;
        let local = position / (batch * world) * batch + position % batch;
        // Every process takes as many; where they don't divide the epoch, a few samples come twice.
        let run = order.epoch.div_ceil(world);
        let (epoch, place) = (local / run, local % run);
        let buffer = run.div_ceil(run.div_ceil(buffer));
        let (which, start) = (place / buffer, place / buffer * buffer);
        let length = buffer.min(run - start);
        Place { epoch, rank, which, start: rank * run + start, within: place - start, length }
    }

    /// The shards of an epoch in their order.
    fn visits(&self, order: &Order, epoch: u64) -> Arc<Vec<Visit>> {
        // What is in it is only ever put in whole.
        let mut kept = self.visits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, visits)) = kept.iter().find(|(of, _)| *of == epoch) {
            return visits.clone();
        }
        let (mut visits, mut first) = (vec![], 0);
        for (which, part) in (0..).zip(&order.parts) {
            let firsts = part.shards.iter().scan(first, |next, samples| {
                let first = *next;
                *next += samples;
                Some(first)
            });
            let firsts: Vec<usize> = firsts.collect();
            first += part.samples;
            // As in the indexed order, passes follow one another without a gap, whatever share of one an epoch holds; the shards
            // at its ends are cut.
            let (samples, drawn) = (part.samples as u64, part.drawn());
            let (begin, end) = (epoch * drawn, (epoch + 1) * drawn);
            for pass in begin / samples..end.div_ceil(samples) {
                let (n, mut until) = (part.shards.len() as u64, pass * samples);
                for place in 0..n {
                    let turn = |round, x| order.turn(&[which, pass, round, x]);
                    let shard = permuted(place, n, turn) as usize;
                    let start = until;
                    until += part.shards[shard] as u64;
                    let (from, to) = (start.max(begin), until.min(end));
                    if from < to {
                        let first = firsts[shard] + (from - start) as usize;
                        visits.push(Visit { start: 0, first, samples: (to - from) as usize, pass });
                    }
                }
            }
        }
        // The shards of all parts among each other.
        let n = visits.len() as u64;
        let place = |i: u64| permuted(i, n, |round, x| order.turn(&[epoch, round, x]));
        let mut places: Vec<(u64, Visit)> = (0..n).map(place).zip(visits).collect();
        places.sort_by_key(|(place, _)| *place);
        let mut start = 0;
        let visits = places.into_iter().map(|(_, visit)| {
            let begins = start;
            start += visit.samples as u64;
            Visit { start: begins, ..visit }
        });
        let visits = Arc::new(visits.collect::<Vec<_>>());
        kept.push_front((epoch, visits.clone()));
        kept.truncate(2);
        visits
    }
}

/// Element `i` of a permutation of 0..n that takes no memory: a four-round Feistel network over the smallest even number of
/// bits that holds n, walked until it lands below n. `turn` draws 64 bits for a round and half of the bits.
fn permuted(i: u64, n: u64, turn: impl Fn(u64, u64) -> u64) -> u64 {
    let half = (64 - (n - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut x = i;
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ turn(round, right) & mask);
        }
        x = left << half | right;
        if x < n {
            return x;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;
    use crate::Sample;

    /// Samples that are only counted.
    struct Counted(Vec<Part>);

    impl Source for Counted {
        fn len(&self) -> usize {
            self.0.iter().map(|part| part.samples).sum()
        }
        fn read(&self, _: usize) -> Result<Sample, DataError> {
            Ok(Sample::default())
        }
        fn key(&self, i: usize) -> String {
            i.to_string()
        }
        fn class_names(&self) -> Option<&[String]> {
            None
        }
        fn parts(&self) -> Vec<Part> {
            self.0.clone()
        }
    }

    fn shards(weight: f64, sizes: &[usize]) -> Part {
        Part { samples: sizes.iter().sum(), weight, shards: sizes.to_vec() }
    }

    /// How often each sample comes in the first `epochs`.
    fn times(order: &Order, samples: usize, epochs: u64) -> Vec<usize> {
        let mut times = vec![0; samples];
        (0..epochs * order.epoch()).for_each(|i| times[order.at(i).index] += 1);
        times
    }

    #[test]
    fn every_epoch_holds_each_sample_once_in_another_order() {
        for n in [1, 2, 3, 7, 64, 100, 1000] {
            let order = Order::new(&Counted(vec![shards(1.0, &[n])]), 3);
            let epoch = |e| (0..n as u64).map(move |i| (e, e * n as u64 + i));
            let drawn = |e| {
                epoch(e).map(|(e, i)| {
                    assert_eq!(order.at(i).pass, e);
                    order.at(i).index
                })
            };
            assert_eq!(drawn(0).collect::<BTreeSet<_>>().len(), n);
            assert!(n < 7 || !drawn(0).eq(drawn(1)));
        }
    }

    #[test]
    fn a_weight_is_how_often_each_sample_comes_and_a_pass_has_none_twice() {
        let source = Counted([1.0, 2.0, 0.5, 0.25].map(|weight| shards(weight, &[60, 40])).into());
        let order = Order::new(&source, 5);
        assert_eq!((order.epoch(), source.epoch()), (375, 375));
        let four = times(&order, 400, 4);
        for (part, expected) in four.chunks(100).zip([4, 8, 2, 1]) {
            assert!(part.iter().all(|&times| times == expected), "{expected}: {part:?}");
        }
        let draws: BTreeSet<_> =
            (0..4 * 375).map(|i| order.at(i)).map(|d| (d.pass, d.index)).collect();
        assert_eq!(draws.len(), 4 * 375, "the same view comes twice");
        // A share of a set is not its beginning.
        let first = times(&order, 400, 1);
        let half: Vec<bool> = first[200..300].iter().map(|&times| times == 1).collect();
        assert!(half[..50].contains(&true) && half[50..].contains(&true) && half.contains(&false));
    }

    #[test]
    fn streaming_gives_each_sample_once_an_epoch_and_a_rank_one_run_of_shards() {
        // 240 samples, which 1, 2, 3 and 8 divide.
        let sizes: Vec<usize> = (0..24).map(|i| 5 + 10 * (i % 2)).collect();
        let shard_of = |index: usize| index / 20 * 2 + usize::from(index % 20 >= 5);
        let source = Counted(vec![shards(1.0, &sizes)]);
        for world in [1, 2, 3, 8u64] {
            let order = Order::streaming(&source, 1, 30, 4, world).unwrap();
            for epoch in 0..3u64 {
                let (mut all, mut first) = (BTreeSet::new(), vec![]);
                for rank in 0..world {
                    let run = 240 / world;
                    let at = |local: u64| order.at((local / 4 * world + rank) * 4 + local % 4);
                    let run: Vec<Pick> = (epoch * run..(epoch + 1) * run).map(at).collect();
                    assert!(run.iter().all(|draw| draw.pass == epoch));
                    let shards: BTreeSet<usize> = run.iter().map(|d| shard_of(d.index)).collect();
                    assert!(shards.len() as u64 <= 24 / world + 6, "{world}: {shards:?}");
                    first.extend(run.iter().take(30).map(|draw| draw.index));
                    all.extend(run.iter().map(|draw| draw.index));
                }
                assert_eq!(all.len(), 240, "{world} processes");
                // Neighbours come from a few shards, but not in their order.
                let near: BTreeSet<usize> = first[..30].iter().map(|&i| shard_of(i)).collect();
                assert!(near.len() <= 8 && !first[..30].is_sorted(), "{first:?}");
            }
            let epoch = |from: u64| (from..from + 240).map(|position| order.at(position).index);
            assert!(!epoch(0).eq(epoch(240)), "another order in each epoch");
        }
    }

    #[test]
    fn streaming_ranks_take_as_many_each_where_they_do_not_divide_the_epoch() {
        let source = Counted(vec![shards(1.0, &[7, 4, 6])]);
        let order = Order::streaming(&source, 1, 5, 1, 3).unwrap();
        // Runs of 6, 6 and 5, the last one longer by a sample that comes twice.
        let times = (0..18).fold(vec![0; 17], |mut times, i| {
            times[order.at(i).index] += 1;
            times
        });
        assert!(times.iter().all(|&times| times > 0) && times.iter().sum::<usize>() == 18);
    }

    #[test]
    fn streaming_weights_are_visits_of_shards() {
        let part = |weight| shards(weight, &[10; 8]);
        let order = Order::streaming(&Counted(vec![part(2.0), part(0.5)]), 1, 30, 1, 1).unwrap();
        let two = times(&order, 160, 2);
        assert!(two[..80].iter().all(|&times| times == 4), "{two:?}");
        assert!(two[80..].iter().all(|&times| times == 1), "{two:?}");
    }

    #[test]
    fn streaming_weights_lose_and_double_no_sample_of_unequal_shards() {
        let sizes = [7, 1, 12, 5, 3, 9, 2, 11];
        for weight in [0.5, 1.5, 0.04, 1.0, 2.0, 0.37] {
            let source = Counted(vec![shards(weight, &sizes), shards(1.0, &[4, 5])]);
            let order = Order::streaming(&source, 1, 30, 1, 1).unwrap();
            assert_eq!(order.epoch(), source.epoch() as u64);
            let (drawn, mut views) = (source.0[0].drawn(), BTreeSet::new());
            let mut times = vec![0; 59];
            for epoch in 0..60 {
                for i in epoch * order.epoch()..(epoch + 1) * order.epoch() {
                    let Pick { index, pass } = order.at(i);
                    times[index] += 1;
                    assert!(views.insert((pass, index)), "{weight}: a view comes twice");
                }
                let due = ((epoch + 1) * drawn) / 50;
                let (part, rest) = times.split_at(50);
                assert!(part.iter().all(|n| (due..=due + 1).contains(n)), "{weight}: {times:?}");
                assert!(rest.iter().all(|&n| n == epoch + 1), "{weight}: {times:?}");
            }
        }
    }

    #[test]
    fn streaming_whole_weights_keep_the_order_that_runs_were_begun_in() {
        let parts = vec![shards(1.0, &[7, 4, 6]), shards(2.0, &[3, 5])];
        let order = Order::streaming(&Counted(parts), 7, 8, 2, 2).unwrap();
        let at = |place| order.at(place).index;
        assert_eq!((0..8).map(at).collect::<Vec<_>>(), [1, 2, 24, 23, 5, 4, 21, 17]);
        assert_eq!((100..108).map(at).collect::<Vec<_>>(), [18, 20, 24, 18, 21, 22, 4, 5]);
    }

    #[test]
    fn what_cannot_be_streamed_is_said_before_the_first_step() {
        let refused = |parts: Vec<Part>, world| {
            Order::streaming(&Counted(parts), 0, 9, 1, world).err().unwrap().to_string()
        };
        let e = refused(vec![shards(1.0, &[5, 5, 5])], 4);
        assert!(e.contains("3 shards are too few for 4 processes"), "{e}");
        let e = refused(vec![shards(1.0, &[5]), Part { shards: vec![], ..shards(1.0, &[5]) }], 1);
        assert!(e.contains("for shards alone"), "{e}");
    }
}
