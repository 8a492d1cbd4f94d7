//! Batches: an endless shuffled stream for training, and an ordered sweep for evaluation, both decoded in threads.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::Serialize;

use crate::parallel::Ordered;
use crate::rng::{Purpose, Rng};
use crate::{DataError, DecodeOptions, EvalTransform, Source, TrainTransform, decode_with};

/// Unusable samples that one position may meet before the stream gives up.
const MAX_ATTEMPTS: u64 = 20;

/// How many of the last samples the share of unusable ones is taken over.
const WINDOW: usize = 1000;

/// How a [`Stream`] runs.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamOptions {
    /// Samples in a batch of this rank.
    pub batch: usize,
    /// Seed of order, augmentation and captions.
    pub seed: u64,
    /// Decoding threads, at least 1. The batches don't depend on it.
    pub workers: usize,
    /// Batches decoded ahead, at least 1. Bounds the memory.
    pub prefetch: usize,
    /// This process among `world`.
    pub rank: usize,
    /// How many processes share a global batch.
    pub world: usize,
    /// Samples without a caption are unusable.
    pub captions: bool,
    /// How images are decoded.
    pub decode: DecodeOptions,
    /// The stream ends with an error when more than this share of the recent samples was unusable.
    pub max_rejected: f64,
}

impl Default for StreamOptions {
    fn default() -> StreamOptions {
        StreamOptions {
            batch: 256,
            seed: 0,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            prefetch: 2,
            rank: 0,
            world: 1,
            captions: false,
            decode: DecodeOptions::default(),
            max_rejected: 0.1,
        }
    }
}

impl StreamOptions {
    fn validate(&self) -> Result<(), DataError> {
        let StreamOptions { batch, workers, prefetch, rank, world, max_rejected, .. } = *self;
        let counts =
            [("batch", batch), ("workers", workers), ("prefetch", prefetch), ("world", world)];
        if let Some((field, _)) = counts.into_iter().find(|&(_, count)| count == 0) {
            let reason = "must be 1 or more".into();
            return Err(DataError::Option { field, value: "0".into(), reason });
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

/// Decoded samples, ready for the device.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Its number in the stream or sweep, from 0.
    pub index: u64,
    /// Side of the images, in pixels.
    pub size: usize,
    /// `[B, size, size, 3]` bytes.
    pub pixels: Vec<u8>,
    /// What the B images are.
    pub items: Vec<Item>,
    /// Samples met on the way that could not be used.
    pub rejected: Vec<Rejected>,
    /// Epochs done when the global batch is, in fractions.
    pub epoch: f64,
}

impl Batch {
    /// B.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn new(index: u64, size: u32, capacity: usize) -> Batch {
        let size = size as usize;
        Batch {
            index,
            size,
            pixels: Vec::with_capacity(capacity * size * size * 3),
            items: Vec::with_capacity(capacity),
            rejected: vec![],
            epoch: 0.0,
        }
    }
}

/// One image of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The sample's key.
    pub key: String,
    /// One of its captions, drawn anew each epoch; in a sweep the first.
    pub caption: Option<String>,
    /// Its class.
    pub class: Option<u32>,
    /// Its place in the whole stream, over all ranks; in a sweep its index.
    pub position: u64,
    /// Its index in the source.
    pub index: usize,
}

/// A sample that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// Its key.
    pub key: String,
    /// Why.
    pub reason: String,
}

/// One position of the stream, filled.
struct Filled {
    pixels: Vec<u8>,
    item: Item,
    rejected: Vec<Rejected>,
}

/// An endless, shuffled, resumable stream of training batches.
///
/// Position p of the stream is sample `permutation(seed, p / n)[p % n]`, whatever the number of ranks and threads; rank r
/// takes its slice of every global batch.
pub struct Stream {
    filled: Ordered<Result<Filled, DataError>>,
    options: StreamOptions,
    size: u32,
    samples: u64,
    next: u64,
    /// Unusable samples met at each of the last positions.
    recent: VecDeque<usize>,
}

impl Stream {
    /// Starts the threads; the first batch will be number `first_batch`.
    ///
    /// # Errors
    /// An option out of range; captions needed and none found.
    pub fn new(
        source: Arc<dyn Source>,
        transform: TrainTransform,
        options: StreamOptions,
        first_batch: u64,
    ) -> Result<Stream, DataError> {
        transform.validate()?;
        options.validate()?;
        if source.is_empty() {
            let reason = "the set holds no samples".into();
            return Err(DataError::NotFound { spec: "the training stream".into(), reason });
        }
        if options.captions {
            require_captions(source.as_ref())?;
        }
        let (size, samples) = (transform.size, source.len() as u64);
        let (batch, rank, world) =
            (options.batch as u64, options.rank as u64, options.world as u64);
        let o = options.clone();
        let fill = move |local: u64| {
            let position = (local / batch * world + rank) * batch + local % batch;
            fill(source.as_ref(), &transform, &o, position)
        };
        let ahead = options.prefetch as u64 * batch;
        let range = first_batch * batch..u64::MAX;
        let filled = Ordered::new(options.workers, ahead, range, fill);
        Ok(Stream { filled, options, size, samples, next: first_batch, recent: VecDeque::new() })
    }

    /// The next batch.
    ///
    /// # Errors
    /// When too many samples are unusable.
    pub fn next_batch(&mut self) -> Result<Batch, DataError> {
        let mut batch = Batch::new(self.next, self.size, self.options.batch);
        for _ in 0..self.options.batch {
            let filled = self.filled.next().expect("the stream is endless")?;
            batch.pixels.extend_from_slice(&filled.pixels);
            batch.items.push(filled.item);
            self.recent.push_back(filled.rejected.len());
            batch.rejected.extend(filled.rejected);
            if self.recent.len() > WINDOW {
                self.recent.pop_front();
            }
        }
        self.next += 1;
        let global = (self.options.batch * self.options.world) as f64;
        batch.epoch = self.next as f64 * global / self.samples as f64;
        self.check_rejected(&batch)?;
        Ok(batch)
    }

    fn check_rejected(&self, batch: &Batch) -> Result<(), DataError> {
        let rejected: usize = self.recent.iter().sum();
        let of = rejected + self.recent.len();
        match batch.rejected.last() {
            // A single broken sample early on is no verdict on the set.
            Some(last)
                if rejected > 10 && rejected as f64 > self.options.max_rejected * of as f64 =>
            {
                let (key, reason) = (last.key.clone(), last.reason.clone());
                Err(DataError::TooManyRejected { rejected, of, key, reason })
            }
            _ => Ok(()),
        }
    }
}

/// Reads, decodes and augments the sample of a position, or the first usable one of those drawn in its place.
fn fill(
    source: &dyn Source,
    transform: &TrainTransform,
    options: &StreamOptions,
    position: u64,
) -> Result<Filled, DataError> {
    let n = source.len() as u64;
    let epoch = position / n;
    let mut index = permuted(options.seed, epoch, position % n, n);
    let mut rejected: Vec<Rejected> = vec![];
    for attempt in 0..MAX_ATTEMPTS {
        match guarded(|| view(source, transform, options, epoch, index as usize)) {
            Ok((key, caption, class, pixels)) => {
                let item = Item { key, caption, class, position, index: index as usize };
                return Ok(Filled { pixels, item, rejected });
            }
            Err(e) => {
                rejected.push(Rejected { key: source.key(index as usize), reason: e.to_string() });
                index = Rng::new(options.seed, Purpose::Replace, &[position, attempt]).below(n);
            }
        }
    }
    let last = rejected.pop().expect("every attempt failed");
    let of = MAX_ATTEMPTS as usize;
    Err(DataError::TooManyRejected { rejected: of, of, key: last.key, reason: last.reason })
}

/// A decoder that panics on a damaged image costs that sample, not the run.
fn guarded<T>(work: impl FnOnce() -> Result<T, DataError>) -> Result<T, DataError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(DataError::Image("the decoder panicked on this image".into())))
}

type View = (String, Option<String>, Option<u32>, Vec<u8>);

fn view(
    source: &dyn Source,
    transform: &TrainTransform,
    options: &StreamOptions,
    epoch: u64,
    index: usize,
) -> Result<View, DataError> {
    let mut sample = source.read(index)?;
    let counters = [epoch, index as u64];
    let caption = match sample.captions.len() as u64 {
        0 if options.captions => {
            return Err(DataError::Sample { key: sample.key, reason: "has no caption".into() });
        }
        0 => None,
        n => {
            let which = Rng::new(options.seed, Purpose::Caption, &counters).below(n);
            Some(sample.captions.swap_remove(which as usize))
        }
    };
    let mut rng = Rng::new(options.seed, Purpose::Augment, &counters);
    let pixels = transform.apply(&decode_with(&sample.image, &options.decode)?, &mut rng)?;
    Ok((sample.key, caption, sample.class, pixels))
}

fn require_captions(source: &dyn Source) -> Result<(), DataError> {
    let looked_at = source.len().min(100);
    let found = (0..looked_at).any(|i| source.read(i).is_ok_and(|s| !s.captions.is_empty()));
    if found { Ok(()) } else { Err(DataError::NoCaptions { looked_at, key: source.key(0) }) }
}

/// Element `i` of a permutation of 0..n that depends on (seed, epoch) only and takes no memory: a four-round Feistel
/// network over the smallest even number of bits that holds n, walked until it lands below n.
fn permuted(seed: u64, epoch: u64, i: u64, n: u64) -> u64 {
    let half = (64 - (n - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut x = i;
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for round in 0..4 {
            let turned = Rng::new(seed, Purpose::Order, &[epoch, round, right]).next_u64() & mask;
            (left, right) = (right, left ^ turned);
        }
        x = left << half | right;
        if x < n {
            return x;
        }
    }
}

/// The iterator of [`sweep`].
pub struct Sweep {
    views: Ordered<Result<(Vec<u8>, Item), Rejected>>,
    size: u32,
    batch: usize,
    samples: usize,
    done: usize,
    next: u64,
}

impl Iterator for Sweep {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done == self.samples {
            return None;
        }
        let mut batch = Batch::new(self.next, self.size, self.batch);
        for view in self.views.by_ref().take(self.batch) {
            self.done += 1;
            match view {
                Ok((pixels, item)) => {
                    batch.pixels.extend_from_slice(&pixels);
                    batch.items.push(item);
                }
                Err(rejected) => batch.rejected.push(rejected),
            }
        }
        self.next += 1;
        batch.epoch = self.done as f64 / self.samples as f64;
        Some(Ok(batch))
    }
}

/// Every sample once and in order, in batches of `batch`, the last one shorter; unusable ones are left out and reported.
pub fn sweep(
    source: Arc<dyn Source>,
    transform: EvalTransform,
    decode: DecodeOptions,
    batch: usize,
    workers: usize,
) -> Sweep {
    let (samples, batch, size) = (source.len(), batch.max(1), transform.size);
    let view = move |i: u64| {
        let look = || {
            let sample = source.read(i as usize)?;
            let pixels = transform.view(&sample.image, &decode)?;
            let item = Item {
                key: sample.key,
                caption: sample.captions.into_iter().next(),
                class: sample.class,
                position: i,
                index: i as usize,
            };
            Ok((pixels, item))
        };
        guarded(look)
            .map_err(|e: DataError| Rejected { key: source.key(i as usize), reason: e.to_string() })
    };
    let views = Ordered::new(workers, 2 * batch as u64, 0..samples as u64, view);
    Sweep { views, size, batch, samples, done: 0, next: 0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;
    use crate::Sample;
    use crate::testing::png;

    /// Pictures whose colour is their number; some of them broken.
    struct Colours {
        n: usize,
        broken: BTreeSet<usize>,
        captions: bool,
    }

    impl Source for Colours {
        fn len(&self) -> usize {
            self.n
        }
        fn read(&self, i: usize) -> Result<Sample, DataError> {
            let image = match self.broken.contains(&i) {
                true => b"no picture".to_vec(),
                false => png(8, 8, [i as u8; 3]),
            };
            let captions = match self.captions {
                true => vec![format!("{i}"), format!("number {i}")],
                false => vec![],
            };
            Ok(Sample {
                key: self.key(i),
                image,
                captions,
                class: Some(i as u32),
                ..Sample::default()
            })
        }
        fn key(&self, i: usize) -> String {
            format!("c{i}")
        }
        fn class_names(&self) -> Option<&[String]> {
            None
        }
    }

    fn colours(n: usize, broken: &[usize]) -> Arc<dyn Source> {
        Arc::new(Colours { n, broken: broken.iter().copied().collect(), captions: true })
    }

    fn stream(source: Arc<dyn Source>, options: StreamOptions, first: u64) -> Stream {
        let transform = TrainTransform { size: 4, ..TrainTransform::default() };
        Stream::new(source, transform, options, first).unwrap()
    }

    fn options() -> StreamOptions {
        StreamOptions { batch: 6, seed: 9, workers: 2, ..StreamOptions::default() }
    }

    #[test]
    fn every_epoch_holds_each_sample_once_in_another_order() {
        for n in [1u64, 2, 3, 7, 64, 100, 1000] {
            let epoch = |e| (0..n).map(|i| permuted(3, e, i, n)).collect::<Vec<_>>();
            assert_eq!(epoch(0).iter().collect::<BTreeSet<_>>().len() as u64, n);
            assert!(n < 7 || epoch(0) != epoch(1));
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
        let mut stream = stream(colours(3, &[]), StreamOptions { decode, ..options() }, 0);
        assert!(stream.next_batch().is_err());
        let mut sweep = sweep(colours(3, &[]), EvalTransform::new(4), decode, 3, 1);
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
        let mut all = stream(colours(3, &[]), StreamOptions { captions: true, ..options() }, 0);
        let drawn: BTreeSet<String> = (0..10)
            .flat_map(|_| all.next_batch().unwrap().items)
            .filter(|item| item.index == 1)
            .filter_map(|item| item.caption)
            .collect();
        assert_eq!(drawn, BTreeSet::from(["1".to_owned(), "number 1".to_owned()]));
        let bare = Arc::new(Colours { n: 3, broken: BTreeSet::new(), captions: false });
        let options = StreamOptions { captions: true, ..options() };
        let e = Stream::new(bare, TrainTransform::default(), options, 0).err().unwrap();
        assert!(e.to_string().contains("no captions"), "{e}");
    }

    #[test]
    fn a_sweep_meets_every_sample_once_and_in_order() {
        let batches: Vec<Batch> =
            sweep(colours(8, &[2]), EvalTransform::new(4), DecodeOptions::default(), 3, 2)
                .map(Result::unwrap)
                .collect();
        let lengths: Vec<usize> = batches.iter().map(Batch::len).collect();
        assert_eq!(lengths, [2, 3, 2]);
        let seen: Vec<usize> = batches.iter().flat_map(|b| &b.items).map(|i| i.index).collect();
        assert_eq!(seen, [0, 1, 3, 4, 5, 6, 7]);
        assert_eq!(batches[0].rejected[0].key, "c2");
        assert_eq!(batches[1].pixels[..3], [3, 3, 3]);
    }
}
