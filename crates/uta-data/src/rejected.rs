//! Samples that could not be used, and why.

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Fault};
use crate::quietly::quietly;
use crate::source::Source;
use crate::storage;

/// A sample that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// The shard it lies in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
    /// Its key; empty where more than a sample is meant.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// Kind of the fault.
    pub kind: Fault,
    /// Why.
    pub reason: String,
}

impl Rejected {
    /// One of the [`problems`](Source::problems) of a source.
    pub fn part(problem: String) -> Rejected {
        Rejected { shard: None, key: String::new(), kind: Fault::Shard, reason: problem }
    }

    /// Sample `i` of a source, for what came up at it.
    pub(crate) fn new(source: &dyn Source, i: usize, error: &DataError) -> Rejected {
        Rejected {
            shard: source.shard(i),
            key: source.key(i),
            kind: error.fault(),
            reason: error.to_string(),
        }
    }

    /// Whether the disk or the network may be at fault and the sample usable another time, so that nothing should be kept that
    /// says it isn't. A file that is gone stays so.
    pub fn may_pass(&self) -> bool {
        let elsewhere = self.shard.as_ref().is_some_and(storage::is_url);
        self.kind == Fault::Unreadable || elsewhere && self.kind == Fault::Shard
    }

    /// A line of JSON, with its end: the step that met it, 0 before the first, and all that is known of it.
    pub fn line(&self, step: u64) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            step: u64,
            #[serde(flatten)]
            rejected: &'a Rejected,
        }
        serde_json::to_string(&Line { step, rejected: self }).expect("plain data") + "\n"
    }
}

/// A decoder that panics on a damaged image costs that sample, not the run.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T, DataError>) -> Result<T, DataError> {
    quietly(work)
        .unwrap_or_else(|_| Err(DataError::Image("the decoder panicked on this image".into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_now_may_be_another_time_and_what_is_broken_stays_so() {
        let may_pass = |shard: Option<&str>, kind| {
            let (shard, key, reason) = (shard.map(str::to_owned), "k".into(), "why".into());
            Rejected { shard, key, kind, reason }.may_pass()
        };
        let (near, far) = (Some("/data/0.tar"), Some("s3://bucket/0.tar"));
        for shard in [None, near, far] {
            assert!(may_pass(shard, Fault::Unreadable));
            assert!(!may_pass(shard, Fault::Image) && !may_pass(shard, Fault::Missing));
        }
        assert!(may_pass(far, Fault::Shard) && !may_pass(near, Fault::Shard));
    }
}
