//! An ordered sweep over a source, for evaluation.

use std::sync::Arc;

use crate::error::DataError;
use crate::rejected::{Rejected, guarded};
use crate::source::Source;
use crate::stream::ahead::Ahead;
use crate::stream::batch::{Batch, Item, has_room};
use crate::stream::parallel::Ordered;
use crate::transform::{Draw, Transform, View};

/// Which batches of a sweep are this process's: every `world`-th, from number `rank` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// This process among `world`.
    pub rank: usize,
    /// How many processes share the sweep.
    pub world: usize,
}

impl Share {
    /// All of them.
    pub const ALL: Share = Share { rank: 0, world: 1 };
}

/// The iterator of [`sweep`].
pub struct Sweep {
    views: Ordered<Result<(Item, View), Rejected>>,
    size: u32,
    batch: usize,
    share: Share,
    samples: usize,
    /// Batches taken.
    taken: usize,
    /// Why it gives no batch at all.
    refused: Option<DataError>,
}

impl Iterator for Sweep {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.refused.take() {
            self.taken = usize::MAX / (self.batch * self.share.world);
            return Some(Err(error));
        }
        let (all, Share { rank, world }) = (self.batch * self.share.world, self.share);
        if self.taken * all >= self.samples {
            return None;
        }
        let number = self.taken * world + rank;
        let mut batch = Batch::new(number as u64, self.size, self.batch);
        let own = self.samples.saturating_sub(number * self.batch).min(self.batch);
        for view in self.views.by_ref().take(own) {
            match view {
                Ok((item, view)) => batch.push(item, view),
                Err(rejected) => batch.rejected.push(rejected),
            }
        }
        self.taken += 1;
        batch.epoch = (self.taken * all).min(self.samples) as f64 / self.samples as f64;
        Some(Ok(batch))
    }
}

/// Every sample once and in order, in batches of `batch`, the last one shorter; unusable ones are left out and reported.
/// Every share has the same number of batches, so the last may be empty. Options that make no sense, and batches that have no
/// room in memory, are refused by the first one.
pub fn sweep(
    source: Arc<dyn Source>,
    transform: Arc<dyn Transform>,
    batch: usize,
    workers: usize,
    share: Share,
) -> Sweep {
    let (samples, size) = (source.len(), transform.size());
    let batch = batch.clamp(1, samples.max(1));
    let checked =
        transform.validate().and_then(|()| has_room(batch, size, 3, transform.max_pixels()));
    let refused = checked.err();
    let Share { rank, world } = share;
    let index =
        move |local: u64| (local as usize / batch * world + rank) * batch + local as usize % batch;
    let (whole, rest) = (samples / (batch * world), samples % (batch * world));
    let own = whole * batch + rest.saturating_sub(rank * batch).min(batch);
    let coming = Ahead::new(source.clone(), 0..own as u64, 0, vec![], index);
    let view = move |local: u64| {
        coming.pass(local);
        let i = index(local);
        let draw = Draw { seed: 0, index: i, pass: 0, repeat: 0, position: i as u64 };
        let look = || {
            let sample = source.read(i)?;
            let mut views = transform.views(&sample, &[draw])?;
            let mut view = views.pop().expect("a transform gives a view for each draw");
            Ok((Item::new(&sample.key, &draw, &mut view), view))
        };
        guarded(look).map_err(|e| Rejected::new(source.as_ref(), i, &e))
    };
    let views = Ordered::new(workers, 2 * batch as u64, 0..own as u64, view);
    Sweep { views, size, batch, share, samples, taken: 0, refused }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;
    use crate::Fault;
    use crate::testing::{Colours, colours, evaluation};
    use crate::{EvalViews, LabelKind};

    #[test]
    fn a_sweep_meets_every_sample_once_and_in_order() {
        let batches: Vec<Batch> =
            sweep(colours(8, &[2]), Arc::new(evaluation(4)), 3, 2, Share::ALL)
                .map(Result::unwrap)
                .collect();
        let lengths: Vec<usize> = batches.iter().map(Batch::len).collect();
        assert_eq!(lengths, [2, 3, 2]);
        let bare = || Arc::new(Colours { n: 3, broken: BTreeSet::new(), captions: false });
        let of = |required| {
            let views = EvalViews { label: LabelKind::Captions, required, ..evaluation(4) };
            sweep(bare(), Arc::new(views), 3, 1, Share::ALL).next()
        };
        let [any, captioned] = [false, true].map(|wanted| of(wanted).unwrap().unwrap());
        assert_eq!((any.len(), captioned.len(), captioned.pixels.len()), (3, 0, 0));
        assert_eq!(captioned.rejected[2].kind, Fault::Caption);
        let seen: Vec<usize> = batches.iter().flat_map(|b| &b.items).map(|i| i.index).collect();
        assert_eq!(seen, [0, 1, 3, 4, 5, 6, 7]);
        assert_eq!(batches[0].rejected[0].key, "c2");
        assert_eq!(batches[1].pixels[..3], [3, 3, 3]);
    }

    #[test]
    fn shares_of_a_sweep_make_up_the_whole_one_in_equally_many_batches() {
        for (n, world) in [(8, 2), (13, 3), (3, 2), (12, 2), (1, 3)] {
            let run = |share| -> Vec<Batch> {
                sweep(colours(n, &[2]), Arc::new(evaluation(4)), 3, 2, share)
                    .map(Result::unwrap)
                    .collect()
            };
            let whole = run(Share::ALL);
            let shares: Vec<Vec<Batch>> =
                (0..world).map(|rank| run(Share { rank, world })).collect();
            assert!(shares.iter().all(|s| s.len() == whole.len().div_ceil(world)), "{n} {world}");
            for (i, batch) in whole.iter().enumerate() {
                let found = &shares[i % world][i / world];
                assert_eq!(found.index, i as u64);
                assert_eq!((&found.items, &found.rejected), (&batch.items, &batch.rejected));
            }
            let all: usize = shares.iter().flatten().map(Batch::len).sum();
            assert_eq!(all, whole.iter().map(Batch::len).sum::<usize>());
        }
    }
}
