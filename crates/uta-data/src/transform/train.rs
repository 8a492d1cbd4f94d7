//! Training views: torchvision's and timm's augmentations on bytes.

use std::cell::RefCell;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::image::crop::CropBox;
use crate::image::decode::{DecodeOptions, Rgb, decode_with};
use crate::image::jpeg::Jpeg;
use crate::rng::Rng;
use crate::transform::color::{ColorJitter, PhotometricDistortion, adjust_saturation};
use crate::transform::erasing::RandomErasing;
use crate::transform::pixels::{Interpolation, mirror, resample};
use crate::transform::place::Placement;
use crate::transform::rand_augment::RandAugment;

/// Augmentation of training images, in this order: random resized crop, flip, RandAugment or jitter, photometric distortion,
/// gray, erasing, and to a whole batch, mixup and CutMix. A recipe's `[data.transforms]`; each transform is a field here, in
/// a file of its own where it is long. (Another way to frame an image, such as detection's large-scale jitter, belongs beside
/// [`crop_box`](TrainTransform::crop_box).)
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainTransform {
    /// Side of the result, in pixels.
    pub size: u32,
    /// The mean that the model normalises by, of 0 to 1: the colour of places that an image doesn't cover.
    #[serde(skip)]
    pub mean: [f64; 3],
    /// Its standard deviations, for noise.
    #[serde(skip)]
    pub std: [f64; 3],
    /// The crop's share of the image's area.
    pub scale: (f64, f64),
    /// The crop's width over its height.
    pub ratio: (f64, f64),
    /// How crops are resized, and RandAugment moves pixels.
    pub interpolation: Interpolation,
    /// Whether a JPEG whose crop has at least twice `size` pixels each way is decoded at a half, a quarter or an eighth of
    /// its size, as far as the crop stays at least `size` wide and high.
    pub reduce: bool,
    /// Probability of a mirror image.
    pub hflip: f64,
    /// Operations drawn from fifteen. Colours don't stray besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rand_augment: Option<RandAugment>,
    /// How far colours stray.
    pub color_jitter: ColorJitter,
    /// Probability that colours stray at all.
    pub color_jitter_prob: f64,
    /// Colours that stray as detectors' and segmenters' do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub photometric_distortion: Option<PhotometricDistortion>,
    /// Probability of a gray image.
    pub grayscale: f64,
    /// Rectangles that are lost.
    pub erasing: RandomErasing,
    /// Alpha of mixup's Beta distribution; 0 mixes none.
    pub mixup: f64,
    /// Alpha of CutMix's; 0 cuts none.
    pub cutmix: f64,
    /// The least and the largest share of the side that CutMix cuts, instead of its Beta distribution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cutmix_minmax: Option<(f64, f64)>,
    /// Probability that images are mixed at all.
    pub mixup_prob: f64,
    /// Probability of CutMix, where there are both.
    pub mixup_switch_prob: f64,
    /// For what the way of mixing is drawn.
    pub mixup_mode: MixupMode,
}

impl Default for TrainTransform {
    /// EVA-02's pre-training: crops of 20 % to 100 %, flips, no colours, at 224 pixels, around CLIP's mean.
    fn default() -> TrainTransform {
        TrainTransform {
            size: 224,
            mean: [0.48145466, 0.4578275, 0.40821073],
            std: [0.26862954, 0.26130258, 0.27577711],
            scale: (0.2, 1.0),
            ratio: (3.0 / 4.0, 4.0 / 3.0),
            interpolation: Interpolation::Bicubic,
            reduce: true,
            hflip: 0.5,
            rand_augment: None,
            color_jitter: ColorJitter::default(),
            color_jitter_prob: 1.0,
            photometric_distortion: None,
            grayscale: 0.0,
            erasing: RandomErasing::default(),
            mixup: 0.0,
            cutmix: 0.0,
            cutmix_minmax: None,
            mixup_prob: 1.0,
            mixup_switch_prob: 0.5,
            mixup_mode: MixupMode::Batch,
        }
    }
}

/// Crops of a decoded image.
struct Decoded {
    /// Where they are in the pixels that were decoded.
    crops: Vec<CropBox>,
    /// Where they are in the whole image, at its own size.
    shown: Vec<CropBox>,
}

/// For what the way of mixing is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MixupMode {
    /// Once for the batch.
    #[default]
    Batch,
    /// For each two images that are mixed with one another.
    Pair,
    /// For each image.
    Elem,
}

/// Parts of a transform that draw from a [fork](Rng::fork) of the image's generator.
#[repr(u64)]
enum Part {
    Filter,
    RandAugment,
    Erasing,
    Distortion,
}

impl TrainTransform {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field out of its range.
    pub fn validate(&self) -> Result<(), DataError> {
        check_size(self.size)?;
        let jitter = self.color_jitter;
        let photometric = self.photometric_distortion.unwrap_or_default();
        for (field, p) in [
            ("photometric_distortion.prob", photometric.prob),
            ("hflip", self.hflip),
            ("grayscale", self.grayscale),
            ("color_jitter_prob", self.color_jitter_prob),
            ("erasing.prob", self.erasing.prob),
            ("mixup_prob", self.mixup_prob),
            ("mixup_switch_prob", self.mixup_switch_prob),
        ] {
            check((0.0..=1.0).contains(&p), field, p, "is a probability")?;
        }
        for (field, x) in [
            ("color_jitter.brightness", jitter.brightness),
            ("color_jitter.contrast", jitter.contrast),
            ("color_jitter.saturation", jitter.saturation),
            ("photometric_distortion.brightness", photometric.brightness),
            ("mixup", self.mixup),
            ("cutmix", self.cutmix),
        ] {
            check(x.is_finite() && x >= 0.0, field, x, "is 0 or more")?;
        }
        for (field, (low, high), most) in [
            ("scale", self.scale, 1.0),
            ("ratio", self.ratio, f64::MAX),
            ("photometric_distortion.contrast", photometric.contrast, f64::MAX),
            ("photometric_distortion.saturation", photometric.saturation, f64::MAX),
            ("erasing.area", self.erasing.area, 1.0),
            ("erasing.aspect", self.erasing.aspect, f64::MAX),
            ("cutmix_minmax", self.cutmix_minmax.unwrap_or((1.0, 1.0)), 1.0),
        ] {
            let needed = match most {
                1.0 => "needs 0 < low <= high <= 1",
                _ => "needs 0 < low <= high",
            };
            let good = 0.0 < low && low <= high && high <= most;
            check(good, field, format!("[{low}, {high}]"), needed)?;
        }
        check((0.0..=0.5).contains(&jitter.hue), "color_jitter.hue", jitter.hue, "is 0 to 0.5")?;
        let hue = photometric.hue;
        check(hue <= 90, "photometric_distortion.hue", hue, "is 0 to 90 steps of 2 degrees")?;
        let count = self.erasing.count;
        check((1..=64).contains(&count), "erasing.count", count, "is 1 to 64")?;
        if let Some(policy) = self.rand_augment {
            let reason =
                "changes colours, and timm leaves color_jitter out beside it: give one of them";
            check(jitter == ColorJitter::default(), "rand_augment", policy, reason)?;
        }
        Ok(())
    }

    /// Draws a view of an image: `[size, size, 3]` bytes.
    ///
    /// # Errors
    /// When the image has no pixels.
    pub fn apply(&self, image: &Rgb, rng: &mut Rng) -> Result<Vec<u8>, DataError> {
        let crop = self.crop_box(image.width, image.height, rng);
        self.finish(image, crop, rng)
    }

    /// Draws as many views of an image file as there are generators: `[size, size, 3]` bytes each. The file is decoded
    /// once, and of a baseline JPEG only what the crops need.
    ///
    /// # Errors
    /// As [`decode`](crate::decode()). Damage outside of the crops may go unseen.
    pub fn views(
        &self,
        file: &[u8],
        options: &DecodeOptions,
        rngs: &mut [Rng],
    ) -> Result<Vec<Vec<u8>>, DataError> {
        let placed = self.placed(file, options, rngs)?;
        Ok(placed.into_iter().map(|(view, _)| view).collect())
    }

    /// As [`views`](TrainTransform::views), each with how the image lies in it.
    ///
    /// # Errors
    /// As [`views`](TrainTransform::views).
    pub fn placed(
        &self,
        file: &[u8],
        options: &DecodeOptions,
        rngs: &mut [Rng],
    ) -> Result<Vec<(Vec<u8>, Placement)>, DataError> {
        thread_local! {
            /// The last decoded image, for its memory.
            static IMAGE: RefCell<Rgb> = const { RefCell::new(Rgb { width: 0, height: 0, pixels: vec![] }) };
        }
        IMAGE.with_borrow_mut(|image| {
            let Decoded { crops, shown } = self.decode_shown(file, options, rngs, image)?;
            let crops = crops.into_iter().zip(shown).zip(rngs);
            let view = |((crop, part), rng): ((CropBox, CropBox), &mut Rng)| {
                let mut view = self.resize(image, crop, rng)?;
                let mirrored = self.adjust(&mut view, rng);
                Ok((view, Placement { mirrored, ..Placement::crop(part, self.size) }))
            };
            crops.map(view).collect()
        })
    }

    /// The first half of [`views`](TrainTransform::views): decodes into `image` what the crops need, and returns where in it
    /// they are.
    ///
    /// # Errors
    /// As [`decode`](crate::decode()).
    pub fn decode(
        &self,
        file: &[u8],
        options: &DecodeOptions,
        rngs: &mut [Rng],
        image: &mut Rgb,
    ) -> Result<Vec<CropBox>, DataError> {
        Ok(self.decode_shown(file, options, rngs, image)?.crops)
    }

    fn decode_shown(
        &self,
        file: &[u8],
        options: &DecodeOptions,
        rngs: &mut [Rng],
        image: &mut Rgb,
    ) -> Result<Decoded, DataError> {
        let mut crops = |width, height| -> Vec<CropBox> {
            rngs.iter_mut().map(|rng| self.crop_box(width, height, rng)).collect()
        };
        let jpeg = Jpeg::parse(file).filter(|jpeg| {
            let pixels = u64::from(jpeg.width) * u64::from(jpeg.height);
            // A large one is refused, and a turned one turned, by the whole decoder.
            pixels <= options.max_pixels && !options.orient
        });
        let Some(jpeg) = jpeg else {
            *image = decode_with(file, options)?;
            let crops = crops(image.width, image.height);
            return Ok(Decoded { shown: crops.clone(), crops });
        };
        let mut crops = crops(jpeg.width, jpeg.height);
        let shrink = match self.reduce {
            true => crops.iter().map(|&crop| jpeg.shrink(crop, self.size)).min().unwrap_or(1),
            false => 1,
        };
        let (width, height) = jpeg.size(shrink);
        let scaled: Vec<CropBox> =
            crops.iter().map(|crop| crop.scaled(shrink, width, height)).collect();
        let mut shown = crops.clone();
        let union =
            scaled.iter().copied().reduce(CropBox::union).unwrap_or(CropBox::whole(width, height));
        match jpeg.decode(union, shrink, &mut image.pixels) {
            Some(()) => {
                (image.width, image.height) = (union.width, union.height);
                shown = scaled.iter().map(|crop| crop.times(shrink)).collect();
                crops = scaled;
                for crop in &mut crops {
                    (crop.left, crop.top) = (crop.left - union.left, crop.top - union.top);
                }
            }
            // What is wrong, and whether it can be borne, the whole decoder says.
            None => *image = decode_with(file, options)?,
        }
        Ok(Decoded { crops, shown })
    }

    /// The second half of [`views`](TrainTransform::views): resizes a crop, and does to it what is drawn.
    ///
    /// # Errors
    /// When the crop is empty or reaches beyond the image.
    pub fn finish(&self, image: &Rgb, crop: CropBox, rng: &mut Rng) -> Result<Vec<u8>, DataError> {
        let mut view = self.resize(image, crop, rng)?;
        self.adjust(&mut view, rng);
        Ok(view)
    }

    /// A crop resized: `[size, size, 3]`.
    ///
    /// # Errors
    /// When the crop is empty or reaches beyond the image.
    pub fn resize(&self, image: &Rgb, crop: CropBox, rng: &Rng) -> Result<Vec<u8>, DataError> {
        let filter = self.interpolation.draw(&mut rng.fork(Part::Filter as u64));
        resample(image, crop, self.size, filter)
    }

    /// Augments a resized crop `[size, size, 3]`: flip, RandAugment or colours, erasing. Returns whether it was mirrored.
    pub fn adjust(&self, view: &mut [u8], rng: &mut Rng) -> bool {
        let fork = |part: Part| rng.fork(part as u64);
        let (mut operations, mut erasing) = (fork(Part::RandAugment), fork(Part::Erasing));
        let mut distortion = fork(Part::Distortion);
        // Every draw is taken whether or not it is used, so that switching one off leaves the others as they are.
        let (flip, jitter, gray) = (rng.uniform(), rng.uniform(), rng.uniform());
        let mirrored = flip < self.hflip;
        if mirrored {
            mirror(view, self.size);
        }
        if let Some(policy) = &self.rand_augment {
            let fill = self.mean.map(|mean| (255.0 * mean).round_ties_even() as u8);
            policy.apply(view, self.size as usize, self.interpolation, fill, &mut operations);
        }
        if self.color_jitter != ColorJitter::default() && jitter < self.color_jitter_prob {
            self.color_jitter.apply(view, rng);
        }
        if let Some(photometric) = &self.photometric_distortion {
            photometric.apply(view, &mut distortion);
        }
        if gray < self.grayscale {
            adjust_saturation(view, 0.0);
        }
        self.erasing.apply(view, self.size, self.mean, self.std, &mut erasing);
        mirrored
    }

    /// The crop of a width x height image: torchvision's `RandomResizedCrop.get_params`.
    ///
    /// Ten tries at a crop of uniform area and log-uniform ratio; if none fits, the largest central one of an allowed ratio.
    pub fn crop_box(&self, width: u32, height: u32, rng: &mut Rng) -> CropBox {
        let (w, h) = (f64::from(width), f64::from(height));
        for _ in 0..10 {
            let area = w * h * rng.range(self.scale.0, self.scale.1);
            let ratio = rng.range(self.ratio.0.ln(), self.ratio.1.ln()).exp();
            // Python rounds halves to even.
            let crop_w = (area * ratio).sqrt().round_ties_even();
            let crop_h = (area / ratio).sqrt().round_ties_even();
            if 0.0 < crop_w && crop_w <= w && 0.0 < crop_h && crop_h <= h {
                let (crop_w, crop_h) = (crop_w as u32, crop_h as u32);
                let top = rng.below(u64::from(height - crop_h) + 1) as u32;
                let left = rng.below(u64::from(width - crop_w) + 1) as u32;
                return CropBox { left, top, width: crop_w, height: crop_h };
            }
        }
        let (crop_w, crop_h) = if w / h < self.ratio.0 {
            (width, (w / self.ratio.0).round_ties_even() as u32)
        } else if w / h > self.ratio.1 {
            ((h * self.ratio.1).round_ties_even() as u32, height)
        } else {
            (width, height)
        };
        let (crop_w, crop_h) = (crop_w.clamp(1, width), crop_h.clamp(1, height));
        CropBox {
            left: (width - crop_w) / 2,
            top: (height - crop_h) / 2,
            width: crop_w,
            height: crop_h,
        }
    }
}

fn check(
    good: bool,
    field: &'static str,
    value: impl fmt::Display,
    reason: &str,
) -> Result<(), DataError> {
    if good {
        return Ok(());
    }
    Err(DataError::Option { field, value: value.to_string(), reason: reason.to_owned() })
}

fn check_size(size: u32) -> Result<(), DataError> {
    check((1..=8192).contains(&size), "size", size, "is 1 to 8192 pixels")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rng::Purpose;
    use crate::testing::{Draws, ramp};

    fn whole(size: u32) -> TrainTransform {
        TrainTransform { size, scale: (1.0, 1.0), ratio: (1.0, 1.0), ..TrainTransform::default() }
    }

    #[test]
    fn the_flip_mirrors_rows_and_only_when_drawn() {
        let image = ramp(16, 16);
        let view = |hflip| {
            let mut rng = Rng::new(1, Purpose::Augment, &[]);
            TrainTransform { hflip, ..whole(16) }.apply(&image, &mut rng).unwrap()
        };
        assert_eq!(view(0.0), image.pixels);
        let mirrored = view(1.0);
        assert_eq!(mirrored[..3], image.pixels[45..48]);
        assert_eq!(mirrored[45..48], image.pixels[..3]);
        let flipped = |&i: &u64| {
            let mut rng = Rng::new(1, Purpose::Augment, &[i]);
            whole(16).apply(&image, &mut rng).unwrap() != image.pixels
        };
        let flips = (0..1000).filter(flipped).count();
        assert!((430..570).contains(&flips), "{flips} flips of 1000 at probability 0.5");
    }

    #[test]
    fn gray_and_jitter_follow_their_probabilities() {
        let image = ramp(16, 16);
        let is_gray =
            |view: &[u8]| view.as_chunks::<3>().0.iter().all(|p| p[0] == p[1] && p[1] == p[2]);
        let view = |grayscale, color_jitter_prob, i| {
            let color_jitter = ColorJitter { brightness: 0.4, hue: 0.1, ..ColorJitter::default() };
            let colours =
                TrainTransform { grayscale, color_jitter, color_jitter_prob, ..whole(16) };
            let mut rng = Rng::new(1, Purpose::Augment, &[i]);
            TrainTransform { hflip: 0.0, ..colours }.apply(&image, &mut rng).unwrap()
        };
        assert!(is_gray(&view(1.0, 0.0, 0)) && is_gray(&view(1.0, 1.0, 0)));
        assert_eq!(view(0.0, 0.0, 0), image.pixels);
        let strayed = (0..20).filter(|&i| view(0.0, 1.0, i) != image.pixels).count();
        assert_eq!(strayed, 20);
    }

    #[test]
    fn crops_stay_inside_and_have_the_asked_share_and_ratio() {
        let transform = TrainTransform::default();
        let (mut shares, n) = (0.0, 4000);
        for i in 0..n {
            let crop = transform.crop_box(500, 400, &mut Rng::new(3, Purpose::Augment, &[i]));
            assert!(crop.left + crop.width <= 500 && crop.top + crop.height <= 400);
            let (w, h) = (f64::from(crop.width), f64::from(crop.height));
            assert!((0.74..1.35).contains(&(w / h)), "{crop:?}");
            shares += w * h / 200_000.0;
        }
        // torchvision's own mean over 20,000 draws is 0.514; large crops of a wrong ratio don't fit and are drawn again.
        let mean = shares / n as f64;
        assert!((mean - 0.514).abs() < 0.012, "{mean}");
    }

    #[test]
    fn crops_are_drawn_as_torchvision_draws_them() {
        let transform = TrainTransform { scale: (0.08, 1.0), ..TrainTransform::default() };
        let mut draws = Draws::default();
        for i in 0..20_000 {
            let crop = transform.crop_box(500, 375, &mut Rng::new(3, Purpose::Augment, &[i]));
            draws.add("crop area", crop.width * crop.height);
            draws.add("crop aspect", f64::from(crop.width) / f64::from(crop.height));
            draws.add("crop left", crop.left);
            draws.add("crop top", crop.top);
        }
        draws.follow_their_laws(4);
    }

    #[test]
    fn one_transform_more_leaves_what_the_others_draw() {
        let image = ramp(32, 24);
        let base = TrainTransform { size: 16, grayscale: 0.5, ..TrainTransform::default() };
        let view = |transform: &TrainTransform, i: u64| {
            transform.apply(&image, &mut Rng::new(1, Purpose::Augment, &[i])).unwrap()
        };
        // A policy that draws much and does nothing, and an eraser that erases nothing.
        let policy = Some("rand-n9-p0".parse().unwrap());
        let erasing = RandomErasing { prob: 1.0, area: (1e-9, 1e-9), ..Default::default() };
        let more = TrainTransform { rand_augment: policy, erasing, ..base.clone() };
        assert!((0..50).all(|i| view(&base, i) == view(&more, i)));
        let policy = Some("rand-m9-mstd0.5-inc1".parse().unwrap());
        let strong = TrainTransform { rand_augment: policy, ..base.clone() };
        let changed = (0..400).filter(|&i| view(&base, i) != view(&strong, i)).count();
        // A quarter of the images draws no operation, and some operations leave a ramp as it is.
        assert!((200..320).contains(&changed), "{changed} of 400");
        assert!((0..50).all(|i| view(&strong, i) == view(&strong, i)));
    }

    #[test]
    fn values_out_of_range_are_named() {
        let good = TrainTransform::default();
        assert!(good.validate().is_ok());
        let erasing = |prob, count| RandomErasing { prob, count, ..Default::default() };
        let rand_augment = Some(RandAugment::default());
        let color_jitter = ColorJitter { hue: 0.1, ..ColorJitter::default() };
        for (bad, field) in [
            (TrainTransform { size: 0, ..good.clone() }, "size"),
            (TrainTransform { scale: (0.0, 1.0), ..good.clone() }, "scale"),
            (TrainTransform { scale: (0.9, 0.2), ..good.clone() }, "scale"),
            (TrainTransform { ratio: (-1.0, 1.0), ..good.clone() }, "ratio"),
            (TrainTransform { hflip: 1.5, ..good.clone() }, "hflip"),
            (TrainTransform { grayscale: f64::NAN, ..good.clone() }, "grayscale"),
            (TrainTransform { mixup: -0.1, ..good.clone() }, "mixup"),
            (TrainTransform { cutmix: f64::INFINITY, ..good.clone() }, "cutmix"),
            (TrainTransform { cutmix_minmax: Some((0.5, 1.5)), ..good.clone() }, "cutmix_minmax"),
            (TrainTransform { erasing: erasing(1.5, 1), ..good.clone() }, "erasing.prob"),
            (TrainTransform { erasing: erasing(0.5, 0), ..good.clone() }, "erasing.count"),
            (TrainTransform { rand_augment, color_jitter, ..good.clone() }, "rand_augment"),
        ] {
            let e = bad.validate().unwrap_err().to_string();
            assert!(e.starts_with(field), "{e}");
        }
    }
}
