//! The crops that targets are computed of.

use std::sync::Arc;

use crate::error::DataError;
use crate::image::decode::DecodeOptions;
use crate::rejected::{Rejected, guarded};
use crate::rng::{Purpose, Rng};
use crate::source::Source;
use crate::stream::ahead::Ahead;
use crate::stream::parallel::Ordered;
use crate::targets::layout::View;
use crate::transform::eval::EvalTransform;
use crate::transform::train::TrainTransform;

/// How a source's images become what the teacher sees.
#[derive(Clone, Debug)]
pub enum Cropping {
    /// Crop number c of sample i as a training stream of this seed draws it in epoch c.
    Train(Box<TrainTransform>, u64),
    /// The one view of evaluation.
    Eval(EvalTransform),
}

impl Cropping {
    fn draw(&self, crop: u64, sample: u64) -> u64 {
        match self {
            Cropping::Train(_, seed) => Rng::new(*seed, Purpose::Augment, &[crop, sample]).state(),
            Cropping::Eval(_) => 0,
        }
    }

    /// `[size, size, 3]` bytes.
    pub(super) fn view(
        &self,
        image: &[u8],
        decode: &DecodeOptions,
        state: u64,
    ) -> Result<Vec<u8>, DataError> {
        match self {
            Cropping::Train(transform, _) => drawn(transform, image, decode, state),
            Cropping::Eval(transform) => transform.view(image, decode),
        }
    }
}

/// The view that a generator of this state draws, `[size, size, 3]` bytes.
pub(super) fn drawn(
    transform: &TrainTransform,
    image: &[u8],
    decode: &DecodeOptions,
    state: u64,
) -> Result<Vec<u8>, DataError> {
    let views = transform.views(image, decode, &mut [Rng::from_state(state)])?;
    Ok(views.into_iter().next().expect("a view for the one generator"))
}

/// The first `count` crops of each of `samples`, in order, with their pixels; made in `workers` threads, `ahead` samples ahead.
pub fn crops(
    source: Arc<dyn Source>,
    cropping: Cropping,
    decode: DecodeOptions,
    count: u64,
    samples: Vec<u64>,
    (workers, ahead): (usize, u64),
) -> impl Iterator<Item = Result<Vec<(View, Vec<u8>)>, Rejected>> {
    let (jobs, samples) = (samples.len() as u64, Arc::new(samples));
    let next = {
        let samples = samples.clone();
        move |job| samples[job as usize] as usize
    };
    let coming = Ahead::new(source.clone(), 0..jobs, 0, vec![], next);
    Ordered::new(workers, ahead, 0..jobs, move |job| {
        coming.pass(job);
        let i = samples[job as usize];
        let look = || {
            let sample = source.read(i as usize)?;
            // Each is decoded alone: how much a JPEG may be reduced depends on the crops that are wanted of it.
            let crop = |crop| {
                let state = cropping.draw(crop, i);
                let pixels = cropping.view(&sample.image, &decode, state)?;
                Ok((View::new(state, &pixels), pixels))
            };
            (0..count).map(crop).collect()
        };
        guarded(look).map_err(|e| Rejected::new(source.as_ref(), i as usize, &e))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Mutex;

    use super::*;
    use crate::{Fault, Sample};

    #[test]
    fn the_source_is_told_of_every_sample_that_crops_are_made_of() {
        /// Remembers what it was told to expect; none of it is a picture.
        struct Told(Mutex<Vec<usize>>);
        impl Source for Told {
            fn len(&self) -> usize {
                4000
            }
            fn read(&self, i: usize) -> Result<Sample, DataError> {
                match self.0.lock().unwrap().contains(&i) {
                    true => Ok(Sample::default()),
                    false => Err(DataError::Caption { key: self.key(i) }),
                }
            }
            fn key(&self, i: usize) -> String {
                i.to_string()
            }
            fn class_names(&self) -> Option<&[String]> {
                None
            }
            fn expect(&self, samples: &[usize]) {
                self.0.lock().unwrap().extend(samples);
            }
        }
        let source = Arc::new(Told(Mutex::default()));
        // Of the shards that are missing.
        let samples: Vec<u64> = (100..900).chain(1500..1900).collect();
        let cropping = Cropping::Eval(EvalTransform::new(4));
        let options = DecodeOptions::default();
        let all = crops(source.clone(), cropping, options, 1, samples.clone(), (2, 8));
        let kinds: Vec<Fault> = all.filter_map(Result::err).map(|e| e.kind).collect();
        assert_eq!(kinds, vec![Fault::Image; samples.len()], "one is read and was not expected");
        let told: Vec<u64> = source.0.lock().unwrap().iter().map(|&i| i as u64).collect();
        assert_eq!(told, samples);
    }
}
