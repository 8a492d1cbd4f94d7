//! Mixup (Zhang et al., 2017) and CutMix (Yun et al., 2019) of the images and classes of a batch, as timm's
//! `FastCollateMixup` does them to bytes (`timm/data/mixup.py` of 1.0): image i with image B - 1 - i.

use crate::error::DataError;
use crate::image::crop::CropBox;
use crate::rng::{Purpose, Rng};
use crate::stream::batch::{Batch, Item};
use crate::transform::train::{MixupMode, TrainTransform};

/// How an image is mixed with another one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mix {
    /// It stays.
    Alone,
    /// This share of it and the rest of the other one.
    Blend(f64),
    /// This part of it is the other one's.
    Patch(CropBox),
}

impl Mix {
    /// The image's own share.
    fn share(self, size: u32) -> f64 {
        match self {
            Mix::Alone => 1.0,
            Mix::Blend(share) => share,
            Mix::Patch(CropBox { width, height, .. }) => {
                1.0 - f64::from(width * height) / f64::from(size * size)
            }
        }
    }

    /// `own` becomes the mixture of it and `other`, `[size, size, 3]` both.
    fn apply(self, own: &mut [u8], other: &[u8], size: u32) {
        match self {
            Mix::Alone => {}
            Mix::Blend(share) => {
                let (share, rest) = (share as f32, (1.0 - share) as f32);
                for (own, &other) in own.iter_mut().zip(other) {
                    let mixed = f32::from(*own) * share + f32::from(other) * rest;
                    *own = mixed.round_ties_even() as u8;
                }
            }
            Mix::Patch(CropBox { left, top, width, height }) => {
                for y in top..top + height {
                    let start = 3 * (y * size + left) as usize;
                    let row = start..start + 3 * width as usize;
                    own[row.clone()].copy_from_slice(&other[row]);
                }
            }
        }
    }
}

/// Mixes the images of a batch, and returns what the mixtures are of.
fn mixed(
    batch: &mut Batch,
    mixes: &[Mix],
    class: &[usize],
    classes: usize,
    smoothing: f64,
) -> Vec<f32> {
    let (n, view, size) = (batch.len(), 3 * batch.size * batch.size, batch.size as u32);
    let mut targets = vec![(smoothing / classes as f64) as f32; n * classes];
    let alone = mixes.iter().all(|&mix| mix == Mix::Alone);
    let before = if alone { vec![] } else { batch.pixels.clone() };
    for (i, mix) in mixes.iter().enumerate() {
        let other = n - 1 - i;
        if *mix != Mix::Alone {
            let own = &mut batch.pixels[i * view..][..view];
            mix.apply(own, &before[other * view..][..view], size);
        }
        let share = mix.share(size);
        let row = &mut targets[i * classes..][..classes];
        row[class[i]] += ((1.0 - smoothing) * share) as f32;
        row[class[other]] += ((1.0 - smoothing) * (1.0 - share)) as f32;
    }
    targets
}

impl TrainTransform {
    /// Whether images are mixed, so that classes are needed.
    pub fn mixes(&self) -> bool {
        self.mixup > 0.0 || self.cuts()
    }

    fn cuts(&self) -> bool {
        self.cutmix > 0.0 || self.cutmix_minmax.is_some()
    }

    /// Mixes the images of a batch, and returns what they are then: `[B, classes]`, rows of sum 1, of which `smoothing` is
    /// spread over all classes. What is drawn follows from `seed` and the place of the batch in the stream.
    ///
    /// # Errors
    /// When an image has no class, or one that isn't below `classes`.
    pub fn mix(
        &self,
        batch: &mut Batch,
        classes: usize,
        smoothing: f64,
        seed: u64,
    ) -> Result<Vec<f32>, DataError> {
        let class = |item: &Item| {
            let class = item.class().map(|class| class as usize);
            class.filter(|&class| class < classes).ok_or_else(|| DataError::Sample {
                key: item.key.clone(),
                reason: match class {
                    None => "has no class".into(),
                    Some(class) => format!("is of class {class}, and there are {classes}"),
                },
            })
        };
        let class: Vec<usize> = batch.items.iter().map(class).collect::<Result<_, _>>()?;
        let place = batch.items.first().map_or(0, |item| item.position);
        let mut rng = Rng::new(seed, Purpose::Mix, &[place]);
        let mixes = self.draw_mixes(batch.len(), batch.size as u32, &mut rng);
        Ok(mixed(batch, &mixes, &class, classes, smoothing))
    }

    /// Draws how each of `n` images is mixed.
    fn draw_mixes(&self, n: usize, size: u32, rng: &mut Rng) -> Vec<Mix> {
        match self.mixup_mode {
            MixupMode::Batch => vec![self.draw_mix(size, rng); n],
            MixupMode::Elem => (0..n).map(|_| self.draw_mix(size, rng)).collect(),
            MixupMode::Pair => {
                let half: Vec<Mix> = (0..n.div_ceil(2)).map(|_| self.draw_mix(size, rng)).collect();
                (0..n).map(|i| half[i.min(n - 1 - i)]).collect()
            }
        }
    }

    fn draw_mix(&self, size: u32, rng: &mut Rng) -> Mix {
        if !self.mixes() || rng.uniform() >= self.mixup_prob {
            return Mix::Alone;
        }
        let switch = rng.uniform() < self.mixup_switch_prob;
        if !self.cuts() || self.mixup > 0.0 && !switch {
            return Mix::Blend(rng.beta(self.mixup, self.mixup));
        }
        if let Some((low, high)) = self.cutmix_minmax {
            let [low, high] = [low, high].map(|share| (f64::from(size) * share) as u32);
            let mut side = || {
                let length = low + rng.below(u64::from(high - low).max(1)) as u32;
                (rng.below(u64::from(size - length) + 1) as u32, length)
            };
            let ((top, height), (left, width)) = (side(), side());
            return Mix::Patch(CropBox { left, top, width, height });
        }
        let share = rng.beta(self.cutmix, self.cutmix);
        let length = (f64::from(size) * (1.0 - share).sqrt()) as u32;
        // Around any pixel; what lies beyond the image is cut off.
        let mut side = || {
            let middle = rng.below(size.into()) as u32;
            let start = middle.saturating_sub(length / 2);
            (start, (middle + length.div_ceil(2)).min(size) - start)
        };
        let ((top, height), (left, width)) = (side(), side());
        Mix::Patch(CropBox { left, top, width, height })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::Value;

    use super::*;
    use crate::Label;
    use crate::testing::{Draws, golden_json};

    fn batch(size: usize, pixels: Vec<u8>, classes: &[Option<u32>]) -> Batch {
        let item = |(i, &class): (usize, &Option<u32>)| Item {
            key: format!("image {i}"),
            label: class.map_or(Label::None, Label::Class),
            position: i as u64,
            index: i,
        };
        let items = classes.iter().enumerate().map(item).collect();
        Batch { index: 0, size, pixels, items, targets: vec![], rejected: vec![], epoch: 0.0 }
    }

    fn numbers(value: &Value) -> Vec<f64> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    }

    #[test]
    fn mixtures_are_timms_for_the_same_draws() {
        let golden = golden_json("augment/mix.json");
        let whole = |key: &str| golden[key].as_u64().unwrap() as usize;
        let pixels: Vec<u8> = numbers(&golden["pixels"]).iter().map(|&x| x as u8).collect();
        let labels: Vec<usize> = numbers(&golden["labels"]).iter().map(|&x| x as usize).collect();
        for case in golden["cases"].as_array().unwrap() {
            let mix = |value: &Value| match value.as_f64() {
                Some(share) => Mix::Blend(share),
                None => {
                    let [left, top, width, height] =
                        [0, 1, 2, 3].map(|i| value[i].as_u64().unwrap() as u32);
                    Mix::Patch(CropBox { left, top, width, height })
                }
            };
            let drawn: Vec<Mix> = case["mixes"].as_array().unwrap().iter().map(mix).collect();
            let mixes: Vec<Mix> = match case["mode"].as_str().unwrap() {
                "batch" => vec![drawn[0]; 4],
                "pair" => vec![drawn[0], drawn[1], drawn[1], drawn[0]],
                _ => drawn,
            };
            let mut batch = batch(whole("size"), pixels.clone(), &[None; 4]);
            let targets = mixed(&mut batch, &mixes, &labels, whole("classes"), 0.1);
            let theirs = numbers(&case["pixels"]);
            let off = batch.pixels.iter().zip(&theirs).filter(|&(&a, &b)| f64::from(a) != b);
            assert_eq!(off.count(), 0, "{case}");
            for (ours, theirs) in targets.iter().zip(numbers(&case["target"])) {
                assert!((f64::from(*ours) - theirs).abs() < 1e-6, "{ours} {theirs} {case}");
            }
        }
    }

    #[test]
    fn mixtures_are_drawn_as_timm_draws_them() {
        let plain = TrainTransform::default();
        let mut draws = Draws::default();
        for (name, transform) in [
            ("mixup 0.8", TrainTransform { mixup: 0.8, ..plain.clone() }),
            ("mixup 0.1", TrainTransform { mixup: 0.1, ..plain.clone() }),
            ("mixup 3", TrainTransform { mixup: 3.0, mixup_prob: 0.7, ..plain.clone() }),
            ("cutmix 1", TrainTransform { cutmix: 1.0, ..plain.clone() }),
            ("cutmix minmax", TrainTransform { cutmix_minmax: Some((0.2, 0.8)), ..plain.clone() }),
            (
                "both",
                TrainTransform {
                    mixup: 0.8,
                    cutmix: 1.0,
                    mixup_prob: 0.8,
                    mixup_switch_prob: 0.3,
                    ..plain.clone()
                },
            ),
        ] {
            for i in 0..30_000 {
                let mix = transform.draw_mix(64, &mut Rng::new(6, Purpose::Mix, &[i]));
                draws.add(format!("{name} share"), mix.share(64));
                if let Mix::Patch(CropBox { left, top, width, .. }) = mix {
                    draws.add(format!("{name} width"), width);
                    draws.add(format!("{name} top"), top);
                    draws.add(format!("{name} left"), left);
                }
            }
        }
        draws.follow_their_laws(6 + 3 * 3);
    }

    #[test]
    fn modes_share_what_is_drawn_and_batches_draw_apart() {
        let of = |mixup_mode, place| {
            let both = TrainTransform { mixup: 0.8, cutmix: 1.0, mixup_mode, ..Default::default() };
            both.draw_mixes(5, 8, &mut Rng::new(1, Purpose::Mix, &[place]))
        };
        let batch = of(MixupMode::Batch, 0);
        assert!(batch.iter().all(|&mix| mix == batch[0]) && batch != of(MixupMode::Batch, 5));
        let pair = of(MixupMode::Pair, 0);
        assert!(pair[0] == pair[4] && pair[1] == pair[3] && pair[0] != pair[1]);
        let elem = of(MixupMode::Elem, 0);
        assert!(elem[0] != elem[4] && elem[1] != elem[3]);
    }

    #[test]
    fn without_mixing_targets_are_the_classes_and_a_lack_of_them_is_named() {
        let plain = TrainTransform::default();
        let pixels: Vec<u8> = (0..24).collect();
        let mut two = batch(2, pixels.clone(), &[Some(1), Some(0)]);
        let targets = plain.mix(&mut two, 4, 0.2, 0).unwrap();
        assert_eq!(two.pixels, pixels);
        assert_eq!(targets, [0.05, 0.85, 0.05, 0.05, 0.85, 0.05, 0.05, 0.05]);
        let mixing = |classes: [Option<u32>; 2]| {
            let mix = TrainTransform { mixup: 1.0, ..plain.clone() };
            mix.mix(&mut batch(2, pixels.clone(), &classes), 4, 0.0, 0)
        };
        let row: f32 = mixing([Some(3), Some(0)]).unwrap()[..4].iter().sum();
        assert!((row - 1.0).abs() < 1e-6);
        let e = mixing([Some(1), None]).unwrap_err().to_string();
        assert!(e.contains("image 1: has no class"), "{e}");
        let e = mixing([Some(4), Some(1)]).unwrap_err().to_string();
        assert!(e.contains("image 0: is of class 4, and there are 4"), "{e}");
    }
}
