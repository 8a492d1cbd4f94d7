//! Parts of files: where samples lie in their shards, which of them are fetched together, and which state of a file was seen.

use std::io;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Mark that tells a tar from another that takes its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub(crate) bytes: u64,
    /// Seconds and nanoseconds since 1970.
    pub(crate) changed: (u64, u32),
    /// The server's name for this state of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) etag: Option<String>,
}

/// The most that is fetched at once, except for a sample that is larger.
const AT_ONCE: u64 = 8 << 20;

/// Gaps of up to so many bytes between two samples are fetched too, instead of making a second request.
const GAP: u64 = 64 << 10;

/// Where the bytes of a set's shards are had from.
pub(crate) trait Bytes: Send + Sync {
    /// Fills `run` with the bytes of sample `i`, which are at `span`.
    ///
    /// # Errors
    /// The system's answer, by what was tried as in [`DataError::Io`](crate::DataError::Io).
    fn read(&self, i: usize, span: Span, run: &mut [u8]) -> Result<(), (&'static str, io::Error)>;

    /// As [`Source::expect`](crate::Source::expect).
    fn expect(&self, _samples: &mut dyn Iterator<Item = (usize, Span)>) {}

    /// As [`Source::forget`](crate::Source::forget).
    fn forget(&self) {}
}

/// Where a sample's members lie in its shard, headers included.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) shard: u32,
}

/// Neighbouring samples of a shard, which are fetched at once.
pub(crate) struct Together {
    pub(crate) shard: u32,
    pub(crate) range: Range<u64>,
    pub(crate) samples: Vec<(usize, Span)>,
}

/// Samples by what is fetched at once, in the order in which each is first needed.
pub(crate) fn gather(samples: impl Iterator<Item = (usize, Span)>) -> Vec<Together> {
    let mut all: Vec<Together> = vec![];
    for (i, span) in samples {
        let end = span.offset + u64::from(span.length);
        match all.last_mut() {
            Some(last)
                if last.shard == span.shard
                    && (last.range.end..=last.range.end + GAP).contains(&span.offset)
                    && end - last.range.start <= AT_ONCE =>
            {
                last.range.end = end;
                last.samples.push((i, span));
            }
            _ => all.push(Together {
                shard: span.shard,
                range: span.offset..end,
                samples: vec![(i, span)],
            }),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_fetched_together_up_to_a_bound_and_a_gap() {
        let span = |shard, offset, length| Span { shard, offset, length };
        let mib = 1 << 20;
        let spans = [
            span(0, 0, 100),
            span(0, 100, 100),
            // The last that is near enough, and the first that is not.
            span(0, 200 + GAP, 50),
            span(0, 251 + 2 * GAP, 9),
            // Before it, and in another shard.
            span(0, 0, 100),
            span(1, 100, 3 * mib),
            span(1, 100 + 3 * u64::from(mib), 5 * mib),
            span(1, 100 + AT_ONCE, 1),
            span(2, 0, 9 * mib),
        ];
        let all = gather(spans.into_iter().enumerate());
        let ranges: Vec<_> = all.iter().map(|of| (of.shard, of.range.clone())).collect();
        let far = 251 + 2 * GAP;
        let wanted = [
            (0, 0..250 + GAP),
            (0, far..far + 9),
            (0, 0..100),
            (1, 100..100 + AT_ONCE),
            (1, 100 + AT_ONCE..101 + AT_ONCE),
            (2, 0..9 * u64::from(mib)),
        ];
        assert_eq!(ranges, wanted);
        let counts: Vec<usize> = all.iter().map(|of| of.samples.len()).collect();
        assert_eq!(counts, [3, 1, 1, 2, 1, 1]);
    }
}
