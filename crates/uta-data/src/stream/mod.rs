//! Batches: an endless shuffled stream for training, and an ordered sweep for evaluation, both decoded in threads.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use self::ahead::Ahead;
use self::batch::{Batch, Item, has_room};
use self::order::{Order, OrderKind, Pick};
use self::parallel::Ordered;
use crate::error::{DataError, Fault};
use crate::rejected::{Rejected, guarded};
use crate::rng::{Purpose, Rng};
use crate::source::Source;
use crate::transform::{Draw, Transform, View};

pub(crate) mod ahead;
pub(crate) mod batch;
pub(crate) mod order;
pub(crate) mod parallel;
pub(crate) mod sweep;

/// Unusable samples that one position may meet before the stream gives up.
const MAX_ATTEMPTS: u64 = 20;

/// How many of the last samples the share of unusable ones is taken over, at least: whole global batches.
const WINDOW: usize = 1000;

/// In the streaming order the samples of a lost shard come close together. There the window is as long as this many shuffle
/// buffers, or an epoch if that is shorter; over [`WINDOW`] samples a share up to [`CROWDED`] is borne.
const WINDOW_BUFFERS: usize = 10;
const CROWDED: f64 = 0.4;

/// How a [`Stream`] runs.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamOptions {
    /// Images in a batch of this rank.
    pub batch: usize,
    /// Views of each sample, side by side in a batch: it is read and decoded once for all. A divisor of `batch`.
    pub repeats: usize,
    /// Seed of order, augmentation and captions.
    pub seed: u64,
    /// How the samples are shuffled.
    pub order: OrderKind,
    /// Samples that are shuffled among each other in the streaming order, at least 1.
    pub shuffle_buffer: usize,
    /// Decoding threads, at least 1. The batches don't depend on it.
    pub workers: usize,
    /// Batches decoded ahead, at least 1. Bounds the memory.
    pub prefetch: usize,
    /// This process among `world`.
    pub rank: usize,
    /// How many processes share a global batch.
    pub world: usize,
    /// The stream ends with an error when more than this share of the recent samples was unusable.
    pub max_rejected: f64,
}

impl Default for StreamOptions {
    fn default() -> StreamOptions {
        StreamOptions {
            batch: 256,
            repeats: 1,
            seed: 0,
            order: OrderKind::Indexed,
            shuffle_buffer: 50_000,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            prefetch: 2,
            rank: 0,
            world: 1,
            max_rejected: 0.1,
        }
    }
}

impl StreamOptions {
    /// Samples, not images, in a batch of this rank.
    fn samples(&self) -> u64 {
        (self.batch / self.repeats) as u64
    }

    /// Where the `local`-th sample of this rank is in the whole stream: global batches one after the other, in each of them
    /// the ranks.
    fn position(&self, local: u64) -> u64 {
        let batch = self.samples();
        (local / batch * self.world as u64 + self.rank as u64) * batch + local % batch
    }

    fn validate(&self) -> Result<(), DataError> {
        let StreamOptions { batch, repeats, workers, prefetch, rank, world, max_rejected, .. } =
            *self;
        let counts = [
            ("batch", batch),
            ("repeats", repeats),
            ("workers", workers),
            ("prefetch", prefetch),
            ("shuffle_buffer", self.shuffle_buffer),
            ("world", world),
        ];
        if let Some((field, _)) = counts.into_iter().find(|&(_, count)| count == 0) {
            let reason = "must be 1 or more".into();
            return Err(DataError::Option { field, value: "0".into(), reason });
        }
        if !batch.is_multiple_of(repeats) {
            let reason = format!("must divide the batch of a process, {batch}");
            return Err(DataError::Option { field: "repeats", value: repeats.to_string(), reason });
        }
        if rank >= world {
            let reason = format!("must be below the world size, {world}");
            return Err(DataError::Option { field: "rank", value: rank.to_string(), reason });
        }
        if !(0.0..=1.0).contains(&max_rejected) {
            let reason = "is a share, 0 to 1".into();
            let value = max_rejected.to_string();
            return Err(DataError::Option { field: "max_rejected", value, reason });
        }
        Ok(())
    }
}

/// A sample of the stream, in as many views as it is repeated.
struct Filled {
    views: Vec<(Item, View)>,
    rejected: Vec<Rejected>,
}

/// An endless, shuffled, resumable stream of training batches.
///
/// Which sample comes when, the [`Order`] says; rank r takes its slice of every global batch. Each sample gives `repeats`
/// images.
pub struct Stream {
    filled: Ordered<Result<Filled, DataError>>,
    options: StreamOptions,
    size: u32,
    /// Samples in an epoch.
    epoch: u64,
    next: u64,
    /// Unusable samples met at each of the last global batches.
    recent: VecDeque<usize>,
    /// All unusable samples met.
    faults: BTreeMap<Fault, u64>,
}

impl Stream {
    /// Starts the threads; the first batch will be number `first_batch`.
    ///
    /// # Errors
    /// An option out of range; labels needed and none found; too few shards to stream.
    pub fn new(
        source: Arc<dyn Source>,
        transform: Arc<dyn Transform>,
        options: StreamOptions,
        first_batch: u64,
    ) -> Result<Stream, DataError> {
        transform.validate()?;
        options.validate()?;
        let ahead = options.prefetch.saturating_add(1);
        has_room(options.batch, transform.size(), ahead, transform.max_pixels())?;
        if source.is_empty() {
            let reason = "the set holds no samples".into();
            return Err(DataError::NotFound { spec: "the training stream".into(), reason });
        }
        transform.check_source(source.as_ref())?;
        let (batch, seed) = (options.samples(), options.seed);
        let order = match options.order {
            OrderKind::Indexed => Order::new(source.as_ref(), seed),
            OrderKind::Streaming => {
                let (buffer, world) = (options.shuffle_buffer as u64, options.world as u64);
                Order::streaming(source.as_ref(), seed, buffer, batch, world)?
            }
        };
        let (size, epoch) = (transform.size(), order.epoch());
        let o = options.clone();
        let range = first_batch * batch..u64::MAX;
        let order = Arc::new(order);
        let shuffled = range.start..range.start + order.rest(o.position(range.start));
        let mut rest: Vec<usize> =
            shuffled.map(|local| order.at(o.position(local)).index).collect();
        rest.sort_unstable();
        let next = {
            let (order, o) = (order.clone(), o.clone());
            move |local| order.unshuffled(o.position(local)).index
        };
        let coming = Ahead::new(source.clone(), range.clone(), order.buffer(), rest, next);
        let fill = move |local| {
            coming.pass(local);
            fill(source.as_ref(), &order, transform.as_ref(), &o, o.position(local))
        };
        let ahead = options.prefetch as u64 * batch;
        let filled = Ordered::new(options.workers, ahead, range, fill);
        let (recent, faults) = (VecDeque::new(), BTreeMap::new());
        Ok(Stream { filled, options, size, epoch, next: first_batch, recent, faults })
    }

    /// The next batch of a process alone.
    ///
    /// # Errors
    /// When too many samples are unusable.
    pub fn next_batch(&mut self) -> Result<Batch, DataError> {
        let batch = self.draw()?;
        self.judge(&batch.rejected)?;
        Ok(batch)
    }

    /// This rank's next batch. Several ranks then tell each other what was unusable, for [`Stream::judge`].
    ///
    /// # Errors
    /// When one sample after the other is unusable.
    pub fn draw(&mut self) -> Result<Batch, DataError> {
        let mut batch = Batch::new(self.next, self.size, self.options.batch);
        for _ in 0..self.options.samples() {
            let filled = self.filled.next().expect("the stream is endless")?;
            filled.views.into_iter().for_each(|(item, view)| batch.push(item, view));
            batch.rejected.extend(filled.rejected);
        }
        self.next += 1;
        batch.epoch = self.next as f64 * self.global() as f64 / self.epoch as f64;
        Ok(batch)
    }

    /// Samples in a batch of all ranks.
    fn global(&self) -> usize {
        self.options.samples() as usize * self.options.world
    }

    /// Whether the stream goes on after a global batch on the way to which all ranks met `rejected`; the same on each.
    ///
    /// # Errors
    /// When too many samples are unusable.
    pub fn judge(&mut self, rejected: &[Rejected]) -> Result<(), DataError> {
        let last = rejected.last();
        for rejected in rejected {
            *self.faults.entry(rejected.kind).or_default() += 1;
        }
        let (global, limit) = (self.global(), self.options.max_rejected);
        // (samples of the window, of which so many count from the start, the share that is borne)
        let windows: &[(usize, usize, f64)] = match self.options.order {
            OrderKind::Indexed => &[(WINDOW, 0, limit)],
            OrderKind::Streaming => {
                let buffers = self.options.shuffle_buffer.saturating_mul(WINDOW_BUFFERS);
                let long = buffers.min(self.epoch as usize);
                &[(WINDOW, 0, limit.max(CROWDED)), (long.max(WINDOW), long, limit)]
            }
        };
        self.recent.push_back(rejected.len());
        let longest = windows.iter().map(|(window, ..)| *window).max().unwrap_or(WINDOW);
        if self.recent.len() > longest.div_ceil(global) {
            self.recent.pop_front();
        }
        let Some(last) = last else { return Ok(()) };
        for &(window, from_start, limit) in windows {
            let batches = window.div_ceil(global).min(self.recent.len());
            let rejected: usize = self.recent.iter().rev().take(batches).sum();
            let drawn = rejected + batches * global;
            // A single broken sample early on is no verdict on the set.
            if rejected > 10 && rejected as f64 > limit * drawn.max(from_start) as f64 {
                return Err(too_many(rejected, drawn, &self.faults, last));
            }
        }
        Ok(())
    }
}

fn too_many(
    rejected: usize,
    of: usize,
    faults: &BTreeMap<Fault, u64>,
    last: &Rejected,
) -> DataError {
    let counts: Vec<String> = faults.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let (key, reason) = (last.key.clone(), last.reason.clone());
    DataError::TooManyRejected { rejected, of, counts: counts.join(", "), key, reason }
}

/// Reads, decodes and augments sample `position` of the stream, or the first usable one of those drawn in its place.
fn fill(
    source: &dyn Source,
    order: &Order,
    transform: &dyn Transform,
    options: &StreamOptions,
    position: u64,
) -> Result<Filled, DataError> {
    let mut pick = order.at(position);
    let mut rejected: Vec<Rejected> = vec![];
    for attempt in 0..MAX_ATTEMPTS {
        match guarded(|| views(source, transform, options, position, pick)) {
            Ok(views) => {
                assert_eq!(views.len(), options.repeats, "a transform gives a view for each draw");
                return Ok(Filled { views, rejected });
            }
            Err(e) => {
                rejected.push(Rejected::new(source, pick.index, &e));
                let mut rng = Rng::new(options.seed, Purpose::Replace, &[position, attempt]);
                pick.index = rng.below(source.len() as u64) as usize;
            }
        }
    }
    let mut faults = BTreeMap::new();
    rejected.iter().for_each(|r| *faults.entry(r.kind).or_default() += 1);
    let last = rejected.last().expect("every attempt failed");
    Err(too_many(rejected.len(), rejected.len(), &faults, last))
}

/// The views of a sample at a position of the stream.
fn views(
    source: &dyn Source,
    transform: &dyn Transform,
    options: &StreamOptions,
    position: u64,
    Pick { index, pass }: Pick,
) -> Result<Vec<(Item, View)>, DataError> {
    let sample = source.read(index)?;
    let repeats = options.repeats as u64;
    let draw = |repeat| {
        let position = position * repeats + repeat;
        Draw { seed: options.seed, index, pass, repeat, position }
    };
    let draws: Vec<Draw> = (0..repeats).map(draw).collect();
    let views = transform.views(&sample, &draws)?;
    let item = |(mut view, draw): (View, &Draw)| (Item::new(&sample.key, draw, &mut view), view);
    Ok(views.into_iter().zip(&draws).map(item).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;
    use crate::testing::{Colours, colours, evaluation, training};
    use crate::{
        ColorJitter, DecodeOptions, EvalViews, LabelKind, Share, TrainTransform, TrainViews, sweep,
    };

    fn stream(source: Arc<dyn Source>, options: StreamOptions, first: u64) -> Stream {
        Stream::new(source, views(LabelKind::None), options, first).unwrap()
    }

    fn views(label: LabelKind) -> Arc<dyn Transform> {
        training(TrainTransform { size: 4, ..TrainTransform::default() }, label)
    }

    fn options() -> StreamOptions {
        StreamOptions { batch: 6, seed: 9, workers: 2, ..StreamOptions::default() }
    }

    #[test]
    fn batches_and_pictures_beyond_the_machines_memory_are_refused_at_both_doors() {
        let source = colours(12, &[]);
        let large = DecodeOptions { max_pixels: 1 << 50, ..DecodeOptions::default() };
        for (batch, decode, words) in
            [(1 << 50, DecodeOptions::default(), "batch = "), (6, large, "max_pixels = ")]
        {
            let options = StreamOptions { batch, ..options() };
            let transform = TrainTransform { size: 4, ..TrainTransform::default() };
            let views = Arc::new(TrainViews { decode, ..TrainViews::new(transform) });
            let stream = Stream::new(source.clone(), views, options, 0).err().unwrap();
            assert!(stream.to_string().starts_with(words), "{stream}");
        }
        let share = Share { rank: 0, world: 1 };
        let swept = |batch, decode| {
            let views = Arc::new(EvalViews { decode, ..evaluation(4) });
            sweep(source.clone(), views, batch, 2, share).collect::<Result<Vec<_>, _>>()
        };
        // All that there are.
        let batches = swept(1 << 50, DecodeOptions::default()).unwrap();
        assert_eq!(batches.iter().map(Batch::len).collect::<Vec<_>>(), [12]);
        let refused = swept(6, large).unwrap_err().to_string();
        assert!(refused.starts_with("max_pixels = "), "{refused}");
    }

    #[test]
    fn ten_million_samples_come_once_an_epoch_the_same_for_any_number_of_ranks_and_wherever_resumed()
     {
        let n = 10_000_000;
        let source = colours(n, &[]);
        let order = Order::new(source.as_ref(), 9);
        for epoch in 0..2 {
            let mut seen = vec![false; n];
            for i in 0..n as u64 {
                let Pick { index, pass } = order.at(epoch * n as u64 + i);
                assert!(!std::mem::replace(&mut seen[index], true), "{index} twice in {epoch}");
                assert_eq!(pass, epoch);
            }
            // As many as there are, none twice: each once.
        }
        // The ranks' places, batch by batch, are all places in their order.
        let global = 24;
        for world in [1, 2, 3, 8] {
            let batch = global / world;
            let rank = |rank| StreamOptions { batch, rank, world, ..options() };
            let ranks: Vec<StreamOptions> = (0..world).map(rank).collect();
            let mut next = 0;
            for step in 0..n / global {
                for rank in &ranks {
                    for local in step * batch..(step + 1) * batch {
                        assert_eq!(rank.position(local as u64), next);
                        next += 1;
                    }
                }
            }
        }
        let start = |batch, rank, world, first| {
            stream(source.clone(), StreamOptions { batch, rank, world, ..options() }, first)
        };
        for i in 0..20 {
            let first = Rng::new(5, Purpose::Order, &[i]).below(3 * n as u64 / 24);
            let world = [1, 2, 3, 8][i as usize % 4];
            let whole = start(24, 0, 1, first).next_batch().unwrap().items;
            let ranks =
                (0..world).map(|rank| start(24 / world, rank, world, first).next_batch().unwrap());
            assert_eq!(ranks.flat_map(|batch| batch.items).collect::<Vec<_>>(), whole);
            let expected: Vec<usize> =
                (24 * first..24 * first + 24).map(|place| order.at(place).index).collect();
            assert_eq!(whole.iter().map(|item| item.index).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn batches_depend_neither_on_threads_nor_on_where_the_stream_started() {
        let source = colours(50, &[4, 17]);
        let mut whole = stream(source.clone(), options(), 0);
        let batches: Vec<Batch> = (0..20).map(|_| whole.next_batch().unwrap()).collect();
        let one_thread = StreamOptions { workers: 1, prefetch: 1, ..options() };
        let mut later = stream(source, one_thread, 11);
        for batch in &batches[11..] {
            assert_eq!(&later.next_batch().unwrap(), batch);
        }
    }

    #[test]
    fn ranks_share_the_global_batches_of_a_single_process() {
        let source = colours(50, &[]);
        let mut alone = stream(source.clone(), options(), 0);
        let rank = |rank| StreamOptions { batch: 3, rank, world: 2, ..options() };
        let (mut a, mut b) = (stream(source.clone(), rank(0), 0), stream(source, rank(1), 0));
        for _ in 0..12 {
            let whole = alone.next_batch().unwrap();
            let mut both = a.next_batch().unwrap().items;
            both.extend(b.next_batch().unwrap().items);
            assert_eq!(both, whole.items);
        }
    }

    #[test]
    fn a_streaming_run_goes_on_exactly_where_it_was_and_reads_each_sample_once() {
        let source = colours(60, &[]);
        let options = |rank| StreamOptions {
            batch: 3,
            rank,
            world: 2,
            order: OrderKind::Streaming,
            shuffle_buffer: 15,
            ..options()
        };
        let mut seen = vec![];
        for rank in 0..2 {
            let mut whole = stream(source.clone(), options(rank), 0);
            let batches: Vec<Batch> = (0..30).map(|_| whole.next_batch().unwrap()).collect();
            for first in [1, 7, 10, 23] {
                let one_thread = StreamOptions { workers: 1, prefetch: 1, ..options(rank) };
                let mut later = stream(source.clone(), one_thread, first);
                for batch in &batches[first as usize..] {
                    assert_eq!(&later.next_batch().unwrap(), batch);
                }
            }
            // Ten batches of three from two ranks are an epoch.
            assert_eq!(batches[9].epoch, 1.0);
            seen.extend(batches[..10].iter().flat_map(|b| &b.items).map(|item| item.index));
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..60).collect::<Vec<_>>());
        let options = StreamOptions { rank: 0, world: 7, ..options(0) };
        let e = Stream::new(source, views(LabelKind::None), options, 0).err().unwrap();
        assert!(e.to_string().contains("6 shards are too few for 7 processes"), "{e}");
    }

    #[test]
    fn repeats_are_views_of_one_sample_side_by_side_and_the_first_is_as_without() {
        let source = colours(50, &[4]);
        let options = |batch, repeats| StreamOptions { batch, repeats, ..options() };
        let jitter = ColorJitter { brightness: 0.5, ..ColorJitter::default() };
        let transform = TrainTransform { size: 4, color_jitter: jitter, ..Default::default() };
        let start = |batch, repeats| {
            let views = training(transform.clone(), LabelKind::None);
            Stream::new(source.clone(), views, options(batch, repeats), 0).unwrap()
        };
        let (mut once, mut thrice) = (start(2, 1), start(6, 3));
        for _ in 0..25 {
            let (one, three) = (once.next_batch().unwrap(), thrice.next_batch().unwrap());
            assert_eq!(one.epoch, three.epoch);
            for (i, item) in three.items.iter().enumerate() {
                let same = &one.items[i / 3];
                assert_eq!(
                    (item.index, item.position),
                    (same.index, 3 * same.position + i as u64 % 3)
                );
            }
            let view = |batch: &Batch, i: usize| batch.pixels[i * 48..][..48].to_vec();
            assert_eq!((view(&three, 0), view(&three, 3)), (view(&one, 0), view(&one, 1)));
            assert_ne!(view(&three, 0), view(&three, 1));
        }
        let views = training(transform.clone(), LabelKind::None);
        let e = Stream::new(source.clone(), views, options(6, 4), 0).err().unwrap();
        assert!(e.to_string().contains("repeats = 4: must divide"), "{e}");
    }

    #[test]
    fn shards_that_are_lost_from_a_streaming_run_are_done_without() {
        let options = || StreamOptions {
            order: OrderKind::Streaming,
            shuffle_buffer: 40,
            max_rejected: 0.15,
            ..options()
        };
        let mut whole = stream(colours(400, &[]), options(), 0);
        let mut shards: Vec<usize> =
            whole.next_batch().unwrap().items.iter().map(|item| item.index / 10).collect();
        shards.sort_unstable();
        shards.dedup();
        // Two of forty, among the first that come.
        let broken: Vec<usize> =
            shards[..2].iter().flat_map(|shard| 10 * shard..10 * (shard + 1)).collect();
        let mut rest = stream(colours(400, &broken), options(), 0);
        let met: usize = (0..60).map(|_| rest.next_batch().unwrap().rejected.len()).sum();
        // One that is drawn in the place of another is met once more in its own.
        assert!((11..40).contains(&met), "{met}");
        // Three shards of five are too many, long before the long window is full.
        let options = StreamOptions { shuffle_buffer: 4000, ..options() };
        let most: Vec<usize> = (0..8000).filter(|i| i / 10 % 5 < 3).collect();
        let mut rest = stream(colours(8000, &most), options, 0);
        let error = (0..20).find_map(|_| rest.next_batch().err()).unwrap().to_string();
        assert!(error.contains("of the last"), "{error}");
    }

    #[test]
    fn a_broken_sample_is_replaced_and_named() {
        let mut stream = stream(colours(10, &[3]), options(), 0);
        let batches: Vec<Batch> = (0..10).map(|_| stream.next_batch().unwrap()).collect();
        assert!(batches.iter().all(|b| b.len() == 6 && b.pixels.len() == 6 * 48));
        let rejected: Vec<&Rejected> = batches.iter().flat_map(|b| &b.rejected).collect();
        assert!(rejected.len() >= 6 && rejected.iter().all(|r| r.key == "c3"), "{rejected:?}");
        assert!(rejected[0].reason.contains("not a PNG"));
    }

    #[test]
    fn images_beyond_the_limit_are_unusable_in_streams_and_sweeps() {
        let decode = DecodeOptions { max_pixels: 63, ..DecodeOptions::default() };
        let train = TrainViews::new(TrainTransform { size: 4, ..TrainTransform::default() });
        let train = Arc::new(TrainViews { decode, ..train });
        let mut stream = Stream::new(colours(3, &[]), train, options(), 0).unwrap();
        assert!(stream.next_batch().is_err());
        let views = Arc::new(EvalViews { decode, ..evaluation(4) });
        let mut sweep = sweep(colours(3, &[]), views, 3, 1, Share::ALL);
        let rejected = sweep.next().unwrap().unwrap().rejected;
        assert!(rejected.len() == 3 && rejected[0].reason.contains("8 x 8"), "{rejected:?}");
    }

    #[test]
    fn too_many_broken_samples_end_the_stream() {
        let mut half = stream(colours(10, &[0, 1, 2, 3, 4]), options(), 0);
        let e = (0..10).find_map(|_| half.next_batch().err()).unwrap().to_string();
        assert!(e.contains("of the last") && e.contains("not a PNG"), "{e}");
        let mut all = stream(colours(2, &[0, 1]), options(), 0);
        assert!(all.next_batch().is_err());
    }

    #[test]
    fn captions_are_drawn_anew_and_their_lack_is_said_before_the_first_step() {
        let captions = || views(LabelKind::Captions);
        let mut all = Stream::new(colours(3, &[]), captions(), options(), 0).unwrap();
        let drawn: BTreeSet<String> = (0..10)
            .flat_map(|_| all.next_batch().unwrap().items)
            .filter(|item| item.index == 1)
            .flat_map(|item| item.captions().to_vec())
            .collect();
        assert_eq!(drawn, BTreeSet::from(["1".to_owned(), "number 1".to_owned()]));
        let bare = Arc::new(Colours { n: 3, broken: BTreeSet::new(), captions: false });
        let e = Stream::new(bare, captions(), options(), 0).err().unwrap();
        assert!(e.to_string().contains("no captions"), "{e}");
    }
}
