//! Several sources end to end.

use std::sync::Arc;

use crate::error::DataError;
use crate::source::sample::Sample;
use crate::source::{Part, Source};

/// Sources end to end, each with the spec it is from and its weight.
pub(super) fn join(
    mut sources: Vec<(&String, f64, Arc<dyn Source>)>,
) -> Result<Arc<dyn Source>, DataError> {
    if let [(_, 1.0, _)] = sources.as_slice() {
        return Ok(sources.remove(0).2);
    }
    let named = sources.iter().filter_map(|(spec, _, source)| Some((spec, source.class_names()?)));
    let named: Vec<_> = named.collect();
    if let Some(pair) = named.windows(2).find(|pair| pair[0].1 != pair[1].1) {
        let [first, second] = [pair[0].0, pair[1].0].map(|spec| spec.to_string());
        return Err(DataError::ClassNames { first, second });
    }
    if sources.is_empty() {
        let reason = "give at least one path".into();
        return Err(DataError::NotFound { spec: "(nothing)".into(), reason });
    }
    let weighted = sources.into_iter().map(|(_, weight, source)| (source, weight));
    let (sources, weights): (Vec<Arc<dyn Source>>, Vec<f64>) = weighted.unzip();
    let starts = sources
        .iter()
        .scan(0, |end, source| {
            let start = *end;
            *end += source.len();
            Some(start)
        })
        .collect();
    Ok(Arc::new(Several { sources, weights, starts }))
}

/// Several sources end to end.
struct Several {
    sources: Vec<Arc<dyn Source>>,
    weights: Vec<f64>,
    /// Where each begins.
    starts: Vec<usize>,
}

impl Several {
    fn which(&self, i: usize) -> usize {
        self.starts.partition_point(|&start| start <= i) - 1
    }

    fn at(&self, i: usize) -> (&dyn Source, usize) {
        let which = self.which(i);
        (self.sources[which].as_ref(), i - self.starts[which])
    }
}

impl Source for Several {
    fn len(&self) -> usize {
        self.sources.iter().map(|source| source.len()).sum()
    }

    fn read(&self, i: usize) -> Result<Sample, DataError> {
        let (source, i) = self.at(i);
        source.read(i)
    }

    fn key(&self, i: usize) -> String {
        let (source, i) = self.at(i);
        source.key(i)
    }

    fn name(&self, i: usize) -> Option<String> {
        let (source, i) = self.at(i);
        source.name(i)
    }

    fn shard(&self, i: usize) -> Option<String> {
        let (source, i) = self.at(i);
        source.shard(i)
    }

    fn class_names(&self) -> Option<&[String]> {
        self.sources.iter().find_map(|source| source.class_names())
    }

    fn parts(&self) -> Vec<Part> {
        let weighted = self.sources.iter().zip(&self.weights);
        weighted
            .flat_map(|(source, weight)| {
                let parts = source.parts().into_iter();
                parts.map(move |part| Part { weight: part.weight * weight, ..part })
            })
            .collect()
    }

    fn problems(&self) -> Vec<String> {
        self.sources.iter().flat_map(|source| source.problems()).collect()
    }

    fn expect(&self, samples: &[usize]) {
        let mut of_each = vec![vec![]; self.sources.len()];
        for &i in samples {
            let which = self.which(i);
            of_each[which].push(i - self.starts[which]);
        }
        self.sources.iter().zip(of_each).for_each(|(source, samples)| source.expect(&samples));
    }

    fn forget(&self) {
        self.sources.iter().for_each(|source| source.forget());
    }
}
