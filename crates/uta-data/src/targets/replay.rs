//! Targets that come with the views of a stream or a sweep.

use std::sync::Arc;

use crate::error::DataError;
use crate::source::{Sample, Source};
use crate::targets::Targets;
use crate::transform::views::Redraw;
use crate::transform::{Draw, Transform, View};

/// Which rows the view at a position of a stream or a sweep comes with, in rising order.
pub type Wanted = dyn Fn(u64) -> Vec<u64> + Send + Sync;

/// A transform whose views are those that targets were computed of before, and come with them: crop after crop of a sample,
/// counted on from the first pass, over and over the k that there are. `views` says how they are made of a sample: for
/// training [`TrainViews`](crate::TrainViews), for validation [`EvalViews`](crate::EvalViews).
pub struct Replay<V> {
    /// The targets.
    pub targets: Arc<Targets>,
    /// Which of their rows each view comes with.
    pub wanted: Box<Wanted>,
    /// The transform of the crops that the targets are of.
    pub views: V,
}

impl<V: Redraw> Transform for Replay<V> {
    fn size(&self) -> u32 {
        self.views.size()
    }

    fn max_pixels(&self) -> u64 {
        self.views.max_pixels()
    }

    fn validate(&self) -> Result<(), DataError> {
        self.views.validate()
    }

    fn check_source(&self, source: &dyn Source) -> Result<(), DataError> {
        self.views.check_source(source)
    }

    fn views(&self, sample: &Sample, draws: &[Draw]) -> Result<Vec<View>, DataError> {
        let repeats = draws.len() as u64;
        let view = |draw: &Draw| {
            let crop = (draw.pass * repeats + draw.repeat) % self.targets.set().crops;
            let (place, seen) = self.targets.usable(draw.index as u64, crop)?;
            let mut view = self.views.redraw(sample, draw, seen.state)?;
            let rows = (self.wanted)(draw.position);
            self.targets.read_seen(&place, seen, &view.pixels, &rows, &mut view.targets)?;
            Ok(view)
        };
        draws.iter().map(view).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::targets::TargetSet;
    use crate::targets::testing::{Colours, K, row, transform, written};
    use crate::{Fault, Rejected, Stream, StreamOptions, TrainViews};

    fn options() -> StreamOptions {
        StreamOptions {
            batch: 5,
            seed: 9,
            workers: 2,
            max_rejected: 0.5,
            ..StreamOptions::default()
        }
    }

    fn replaying(set: &TargetSet) -> Stream {
        let wanted = Box::new(|position| vec![0, 1 + position % 4]);
        let targets = Arc::new(Targets::open(set.clone()).unwrap());
        let replay = Replay { targets, wanted, views: TrainViews::new(transform()) };
        Stream::new(Arc::new(Colours(0)), Arc::new(replay), options(), 0).unwrap()
    }

    #[test]
    fn a_stream_replays_the_crops_of_a_live_one_with_their_targets_over_and_over() {
        let (_dir, set) = written();
        let mut live = {
            let views = Arc::new(TrainViews::new(transform()));
            Stream::new(Arc::new(Colours(0)), views, options(), 0)
        }
        .unwrap();
        let mut replayed = replaying(&set);
        let mut of_first = std::collections::BTreeMap::new();
        for step in 0..20 {
            let (ours, theirs) = (replayed.next_batch().unwrap(), live.next_batch().unwrap());
            assert_eq!(ours.items, theirs.items);
            let whole_epochs = (5 * step + 4) / 11 < K;
            assert_eq!(ours.pixels == theirs.pixels, whole_epochs, "step {step}");
            for (i, item) in ours.items.iter().enumerate() {
                let (sample, crop) = (item.index as u64, item.position / 11 % K);
                let rows = [row(sample, crop, 0), row(sample, crop, 1 + item.position % 4)];
                assert_eq!(ours.targets[i * 12..][..12], rows.concat());
                let pixels = ours.pixels[i * 192..][..192].to_vec();
                assert_eq!(of_first.entry((sample, crop)).or_insert(pixels.clone()), &pixels);
            }
        }
        // All crops of the ten pictures that aren't broken, but for a few that no stand-in was drawn for.
        assert!(of_first.len() > 28, "{}", of_first.len());
    }

    #[test]
    fn a_sample_with_damaged_targets_is_named_and_replaced() {
        let (_dir, set) = written();
        let path = set.path(0);
        let mut bytes = std::fs::read(&path).unwrap();
        let first = set.places(0).targets as usize;
        // All that there is of sample 0.
        bytes[first..first + 3 * 5 * 6].fill(0);
        std::fs::write(&path, &bytes).unwrap();
        let mut stream = replaying(&set);
        let batches: Vec<_> = (0..11).map(|_| stream.next_batch().unwrap()).collect();
        assert!(batches.iter().all(|batch| batch.len() == 5 && batch.targets.len() == 60));
        assert!(batches.iter().flat_map(|batch| &batch.items).all(|item| item.index != 0));
        let rejected: Vec<_> = batches.iter().flat_map(|batch| &batch.rejected).collect();
        let of = |key, reason: &str| {
            let same = |r: &&&Rejected| r.key == key && r.kind == Fault::Targets;
            rejected.iter().filter(same).filter(|r| r.reason.contains(reason)).count()
        };
        assert!(of("c0", "damaged") >= 4 && of("c5", "unusable when they were computed") >= 4);
        assert_eq!(of("c0", "") + of("c5", ""), rejected.len(), "{rejected:?}");
    }
}
