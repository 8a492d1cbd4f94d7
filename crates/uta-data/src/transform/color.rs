//! Colours that stray: torchvision's jitter, and the photometric distortion of detection and segmentation.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::rng::Rng;

/// torchvision's `ColorJitter`: how far each factor may stray from none; 0 leaves it alone. In a recipe a table, or as timm's
/// `color_jitter = 0.4` one number for all but the hue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, remote = "Self")]
pub struct ColorJitter {
    /// Brightness factor in [1 - b, 1 + b].
    pub brightness: f64,
    /// Contrast factor.
    pub contrast: f64,
    /// Saturation factor.
    pub saturation: f64,
    /// Hue shift in [-h, h], in turns; at most 0.5.
    pub hue: f64,
}

impl Serialize for ColorJitter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ColorJitter::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for ColorJitter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ColorJitter, D::Error> {
        struct Written;

        impl<'de> Visitor<'de> for Written {
            type Value = ColorJitter;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a number, or a table of brightness, contrast, saturation and hue")
            }

            fn visit_f64<E: Error>(self, x: f64) -> Result<ColorJitter, E> {
                Ok(ColorJitter { brightness: x, contrast: x, saturation: x, hue: 0.0 })
            }

            fn visit_i64<E: Error>(self, x: i64) -> Result<ColorJitter, E> {
                self.visit_f64(x as f64)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ColorJitter, A::Error> {
                ColorJitter::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_any(Written)
    }
}

impl ColorJitter {
    /// An order, and the factors of brightness, contrast and saturation and the shift of the hue, as torchvision draws them.
    fn draw(&self, rng: &mut Rng) -> ([usize; 4], [f64; 4]) {
        let mut order = [0, 1, 2, 3];
        for last in (1..order.len()).rev() {
            order.swap(last, rng.below(last as u64 + 1) as usize);
        }
        let mut around_one = |spread: f64| rng.range((1.0 - spread).max(0.0), 1.0 + spread);
        let [brightness, contrast, saturation] =
            [self.brightness, self.contrast, self.saturation].map(&mut around_one);
        (order, [brightness, contrast, saturation, rng.range(-self.hue, self.hue)])
    }

    /// Draws and applies, in place.
    pub(crate) fn apply(&self, view: &mut [u8], rng: &mut Rng) {
        let (order, factors) = self.draw(rng);
        for which in order {
            match which {
                0 if self.brightness > 0.0 => adjust_brightness(view, factors[0]),
                1 if self.contrast > 0.0 => adjust_contrast(view, factors[1]),
                2 if self.saturation > 0.0 => adjust_saturation(view, factors[2]),
                3 if self.hue > 0.0 => adjust_hue(view, factors[3] as f32),
                _ => {}
            }
        }
    }
}

// What follows is torchvision's arithmetic on uint8 tensors (transforms/_functional_tensor.py), in f32 and rounded towards
// zero at the same places.

fn blend(a: u8, b: f32, factor: f64) -> u8 {
    // The factors are Python's, in f64, before they meet the tensor. `as` saturates, like clamp.
    (factor as f32 * f32::from(a) + (1.0 - factor) as f32 * b) as u8
}

fn luma([r, g, b]: [u8; 3]) -> u8 {
    (0.2989 * f32::from(r) + 0.587 * f32::from(g) + 0.114 * f32::from(b)) as u8
}

fn adjust_brightness(view: &mut [u8], factor: f64) {
    view.iter_mut().for_each(|channel| *channel = blend(*channel, 0.0, factor));
}

fn adjust_contrast(view: &mut [u8], factor: f64) {
    let (pixels, _) = view.as_chunks::<3>();
    let mean = pixels.iter().map(|&p| f64::from(luma(p))).sum::<f64>() / pixels.len() as f64;
    view.iter_mut().for_each(|channel| *channel = blend(*channel, mean as f32, factor));
}

/// Factor 0 is torchvision's `Grayscale(3)`.
pub(crate) fn adjust_saturation(view: &mut [u8], factor: f64) {
    let (pixels, _) = view.as_chunks_mut::<3>();
    for pixel in pixels {
        let gray = f32::from(luma(*pixel));
        *pixel = pixel.map(|channel| blend(channel, gray, factor));
    }
}

fn adjust_hue(view: &mut [u8], shift: f32) {
    let (pixels, _) = view.as_chunks_mut::<3>();
    for pixel in pixels {
        let [r, g, b] = pixel.map(|channel| f32::from(channel) / 255.0);
        let (max, min) = (r.max(g).max(b), r.min(g).min(b));
        let range = max - min;
        let saturation = if range == 0.0 { 0.0 } else { range / max };
        let divisor = if range == 0.0 { 1.0 } else { range };
        let (rc, gc, bc) = ((max - r) / divisor, (max - g) / divisor, (max - b) / divisor);
        let sixth = if max == r {
            bc - gc
        } else if max == g {
            2.0 + rc - bc
        } else {
            4.0 + gc - rc
        };
        let hue = (sixth / 6.0 + 1.0) % 1.0;
        let hue = (hue + shift).rem_euclid(1.0);
        let (value, sector) = (max, (hue * 6.0).floor());
        let fraction = hue * 6.0 - sector;
        let p = (value * (1.0 - saturation)).clamp(0.0, 1.0);
        let q = (value * (1.0 - saturation * fraction)).clamp(0.0, 1.0);
        let t = (value * (1.0 - saturation * (1.0 - fraction))).clamp(0.0, 1.0);
        let rgb = in_sector(sector as u32 % 6, value, [p, q, t]);
        // torchvision's convert_image_dtype: just below 256, so that 1.0 gives 255.
        *pixel = rgb.map(|channel| (channel * (256.0 - 1e-3)) as u8);
    }
}

/// Red, green and blue in one of the six sectors of the hue: the value, the lowest level `p`, and what falls (`q`) or rises
/// (`t`) in between.
fn in_sector(sector: u32, value: f32, [p, q, t]: [f32; 3]) -> [f32; 3] {
    match sector {
        0 => [value, t, p],
        1 => [q, value, p],
        2 => [p, value, t],
        3 => [p, q, value],
        4 => [t, p, value],
        _ => [value, p, q],
    }
}

/// mmsegmentation's `PhotoMetricDistortion` (SSD's, Liu et al., 2016), on bytes as OpenCV has them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PhotometricDistortion {
    /// Probability of each of the four.
    pub prob: f64,
    /// Levels added, in [-b, b].
    pub brightness: f64,
    /// Factors of levels, before or after saturation and hue.
    pub contrast: (f64, f64),
    /// Factors of saturation.
    pub saturation: (f64, f64),
    /// Shift of the hue in steps of 2 degrees, from -h to below h.
    pub hue: u32,
}

impl Default for PhotometricDistortion {
    /// mmsegmentation's.
    fn default() -> PhotometricDistortion {
        let (contrast, saturation) = ((0.5, 1.5), (0.5, 1.5));
        PhotometricDistortion { prob: 0.5, brightness: 32.0, contrast, saturation, hue: 18 }
    }
}

/// One draw of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Distortion {
    brightness: Option<f64>,
    contrast: Option<f64>,
    contrast_first: bool,
    saturation: Option<f64>,
    hue: Option<i32>,
}

impl PhotometricDistortion {
    fn draw(&self, rng: &mut Rng) -> Distortion {
        let mut maybe = |low: f64, high: f64| {
            let (does, value) = (rng.uniform() < self.prob, rng.range(low, high));
            does.then_some(value)
        };
        let (contrast, saturation, hue) = (self.contrast, self.saturation, f64::from(self.hue));
        Distortion {
            brightness: maybe(-self.brightness, self.brightness),
            contrast: maybe(contrast.0, contrast.1),
            saturation: maybe(saturation.0, saturation.1),
            hue: maybe(-hue, hue).map(|hue| hue.floor() as i32),
            contrast_first: rng.below(2) == 0,
        }
    }

    /// Draws and applies, in place.
    pub(crate) fn apply(&self, view: &mut [u8], rng: &mut Rng) {
        self.draw(rng).apply(view);
    }
}

impl Distortion {
    fn apply(self, view: &mut [u8]) {
        let scale = |view: &mut [u8], alpha: f64, beta: f64| {
            // `as` saturates, like their clip.
            let scaled = |level: u8| (f32::from(level) * alpha as f32 + beta as f32) as u8;
            view.iter_mut().for_each(|level| *level = scaled(*level));
        };
        if let Some(levels) = self.brightness {
            scale(view, 1.0, levels);
        }
        if let (Some(factor), true) = (self.contrast, self.contrast_first) {
            scale(view, factor, 0.0);
        }
        let (pixels, _) = view.as_chunks_mut::<3>();
        if let Some(factor) = self.saturation {
            for pixel in pixels.iter_mut() {
                let [hue, saturation, value] = hsv(*pixel);
                let saturation = (f32::from(saturation) * factor as f32) as u8;
                *pixel = rgb([hue, saturation, value]);
            }
        }
        if let Some(shift) = self.hue {
            for pixel in pixels.iter_mut() {
                let [hue, saturation, value] = hsv(*pixel);
                let hue = (i32::from(hue) + shift).rem_euclid(180) as u8;
                *pixel = rgb([hue, saturation, value]);
            }
        }
        if let (Some(factor), false) = (self.contrast, self.contrast_first) {
            scale(view, factor, 0.0);
        }
    }
}

/// OpenCV's hue of 180 steps, saturation and value, by its fixed-point quotients.
fn hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let [r, g, b] = [r, g, b].map(i32::from);
    let (value, range) = (r.max(g).max(b), r.max(g).max(b) - r.min(g).min(b));
    let quotient = |by: f64, part: i32| match part {
        0 => 0,
        part => (4096.0 * by / f64::from(part)).round_ties_even() as i32,
    };
    let rounded = |x: i32| (x + 2048) >> 12;
    let sixth = match value {
        value if value == r => g - b,
        value if value == g => b - r + 2 * range,
        _ => r - g + 4 * range,
    };
    let hue = rounded(sixth * quotient(30.0, range)).rem_euclid(180);
    [hue as u8, rounded(range * quotient(255.0, value)) as u8, value as u8]
}

/// And the way back, whose levels OpenCV 5.0 cuts and doesn't round; it multiplies by reciprocals.
fn rgb([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    let [saturation, value] = [saturation, value].map(|x| f32::from(x) * (1.0 / 255.0));
    let sector = f32::from(hue) * (6.0 / 180.0);
    let fraction = sector.fract();
    let p = value * (1.0 - saturation);
    let q = value * (1.0 - saturation * fraction);
    let t = value * (1.0 - saturation * (1.0 - fraction));
    in_sector(sector as u32, value, [p, q, t]).map(|channel| (channel * 255.0) as u8)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rng::Purpose;
    use crate::testing::{Draws, golden, golden_json};

    #[test]
    fn colours_stray_as_torchvisions_do_on_bytes() {
        let check = |name: &str, adjust: &dyn Fn(&mut [u8])| {
            let mut view = golden("data/resize/eval-32.rgb");
            adjust(&mut view);
            let theirs = golden(&format!("data/jitter/{name}.rgb"));
            let off = view.iter().zip(&theirs).filter(|(a, b)| a != b).count();
            let worst = view.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            // Rounding towards zero at an exact integer may fall either way in f32.
            assert!(worst <= 1 && off * 200 <= view.len(), "{name}: {off} off, by up to {worst}");
        };
        check("brightness-1.4", &|v| adjust_brightness(v, 1.4));
        check("brightness-0.6", &|v| adjust_brightness(v, 0.6));
        check("contrast-1.4", &|v| adjust_contrast(v, 1.4));
        check("contrast-0.6", &|v| adjust_contrast(v, 0.6));
        check("saturation-1.4", &|v| adjust_saturation(v, 1.4));
        check("saturation-0.6", &|v| adjust_saturation(v, 0.6));
        check("saturation-0", &|v| adjust_saturation(v, 0.0));
        check("hue-0.2", &|v| adjust_hue(v, 0.2));
        check("hue--0.1", &|v| adjust_hue(v, -0.1));
    }

    #[test]
    fn jitter_is_drawn_as_torchvision_draws_it() {
        // Saturation may stray by more than 1, and is 0 at least.
        let jitter = ColorJitter { brightness: 0.4, contrast: 0.3, saturation: 1.2, hue: 0.1 };
        let mut draws = Draws::default();
        for i in 0..20_000 {
            let (order, factors) = jitter.draw(&mut Rng::new(2, Purpose::Augment, &[i]));
            draws.add("jitter order", order.iter().fold(0, |code, &x| 10 * code + x as u32));
            for (name, factor) in
                ["brightness", "contrast", "saturation", "hue"].iter().zip(factors)
            {
                draws.add(format!("jitter {name}"), factor);
            }
        }
        draws.follow_their_laws(5);
    }

    #[test]
    fn distortions_are_those_of_opencvs_bytes() {
        for row in golden_json("augment/photometric.json").as_array().unwrap() {
            let f = |i: usize| row[i].as_f64();
            let distortion = Distortion {
                brightness: f(0),
                contrast: f(1),
                contrast_first: row[2] == true,
                saturation: f(3),
                hue: f(4).map(|hue| hue as i32),
            };
            let mut view = golden("data/decode/rgb.png.rgb");
            distortion.apply(&mut view);
            let theirs = row[5].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u8);
            // Each fifth byte is kept.
            let off: Vec<u8> =
                view.iter().step_by(5).zip(theirs).map(|(a, b)| a.abs_diff(b)).collect();
            let (worst, share) =
                (off.iter().max().unwrap(), off.iter().filter(|&&d| d > 0).count());
            println!("{distortion:?}: {share} of {} off, by up to {worst}", off.len());
            assert!(*worst <= 1 && share * 100 <= off.len(), "{distortion:?}: {share}, {worst}");
        }
    }

    #[test]
    fn distortions_are_drawn_as_mmsegmentation_draws_them() {
        let mut draws = Draws::default();
        for i in 0..20_000 {
            let mut rng = Rng::new(8, Purpose::Augment, &[i]);
            let drawn = PhotometricDistortion::default().draw(&mut rng);
            draws.add("photometric first", u8::from(drawn.contrast_first));
            for (name, value) in [
                ("brightness", drawn.brightness),
                ("contrast", drawn.contrast),
                ("saturation", drawn.saturation),
                ("hue", drawn.hue.map(f64::from)),
            ] {
                // What isn't done is drawn far away.
                draws.add(format!("photometric {name}"), value.unwrap_or(1000.0));
            }
        }
        draws.follow_their_laws(5);
    }
}
