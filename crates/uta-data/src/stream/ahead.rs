//! Reading ahead: which samples a stream or a sweep will read is known long before, so that a source over a network or on a
//! disk may have fetched them by then, however long each answer takes.

use std::ops::Range;
use std::sync::Arc;

use crate::source::Source;

/// Samples announced before they are read, at least.
const LEAD: u64 = 512;

/// How many are announced at once, so that neighbours in a shard are fetched together.
const TOGETHER: u64 = 64;

/// Tells a source which samples come, as the reading goes on; when it is dropped, that no more of them will be read.
pub(crate) struct Ahead {
    source: Arc<dyn Source>,
    lead: u64,
    end: u64,
    sample: Box<dyn Fn(u64) -> usize + Send + Sync>,
}

impl Ahead {
    /// For the places of `range`, at which `sample` says what will be read. Where samples are shuffled within a buffer, `sample`
    /// is their order before that, `lead` the length of the buffer, and `rest` is what is left of it at the first place.
    pub(crate) fn new(
        source: Arc<dyn Source>,
        range: Range<u64>,
        lead: u64,
        rest: Vec<usize>,
        sample: impl Fn(u64) -> usize + Send + Sync + 'static,
    ) -> Ahead {
        let ahead =
            Ahead { source, lead: lead.max(LEAD), end: range.end, sample: Box::new(sample) };
        let until = range.start.next_multiple_of(TOGETHER).saturating_add(ahead.lead);
        let shuffled = range.start + rest.len() as u64;
        ahead.source.expect(&rest);
        ahead.announce(shuffled..until);
        ahead
    }

    /// Announces samples ahead of `place`. To be called at each place, in any order, before its sample is read.
    pub(crate) fn pass(&self, place: u64) {
        if place.is_multiple_of(TOGETHER) {
            let from = place.saturating_add(self.lead);
            self.announce(from..from.saturating_add(TOGETHER));
        }
    }

    fn announce(&self, places: Range<u64>) {
        let samples: Vec<usize> =
            (places.start..places.end.min(self.end)).map(&self.sample).collect();
        self.source.expect(&samples);
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.source.forget();
    }
}
