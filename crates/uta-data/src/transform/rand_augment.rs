//! RandAugment (Cubuk et al., 2019) as timm does it (`timm/data/auto_augment.py` of 1.0): some operations of Pillow's, drawn
//! from fifteen, of a magnitude drawn around a middle.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::image::pillow;
use crate::image::resize::Filter;
use crate::rng::Rng;
use crate::transform::pixels::Interpolation;

/// A policy, written as timm's `rand-m9-mstd0.5-inc1`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RandAugment {
    /// `m`: how strong the operations are; 10 is what their ranges are made for.
    pub magnitude: u32,
    /// `n`: operations drawn for an image, with replacement.
    pub layers: u32,
    /// `p`: probability that one that was drawn is done.
    pub prob: f64,
    /// `mstd`: standard deviation of the magnitude; above 100 it is uniform from 0 to `magnitude`.
    pub std: f64,
    /// `mmax`: the largest magnitude that is drawn.
    pub max: u32,
    /// `inc`: all operations become stronger with the magnitude. Else posterize and solarize become weaker, and colours go
    /// from less to more.
    pub increasing: bool,
}

impl Default for RandAugment {
    /// timm's `rand`.
    fn default() -> RandAugment {
        RandAugment { magnitude: 10, layers: 2, prob: 0.5, std: 0.0, max: 10, increasing: false }
    }
}

/// A text that is no policy.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?}: {reason}; known are m0 to m100 (magnitude), n1 to n64 (operations), p (probability of each), mstd (spread of the magnitude), mmax and inc (0 or 1), as in \"rand-m9-mstd0.5-inc1\""
)]
pub struct PolicyError {
    /// The text that was read.
    pub text: String,
    /// The mistake in it.
    pub reason: String,
}

impl FromStr for RandAugment {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<RandAugment, PolicyError> {
        let fail = |reason: String| PolicyError { text: text.to_owned(), reason };
        let mut policy = RandAugment::default();
        let mut parts = text.split('-');
        if parts.next() != Some("rand") {
            return Err(fail("does not begin with \"rand\"".into()));
        }
        for part in parts {
            let bad = || fail(format!("{part:?} is not known"));
            let (key, value) =
                part.split_at(part.find(|c: char| c.is_ascii_digit()).ok_or_else(bad)?);
            let whole = |range: RangeInclusive<u32>| {
                value.parse().ok().filter(|n| range.contains(n)).ok_or_else(bad)
            };
            let number = |max: f64| {
                let number = value.parse().ok().filter(|x: &f64| (0.0..=max).contains(x));
                number.ok_or_else(bad)
            };
            match key {
                "m" => policy.magnitude = whole(0..=100)?,
                "n" => policy.layers = whole(1..=64)?,
                "p" => policy.prob = number(1.0)?,
                "mstd" => policy.std = number(1e6)?,
                "mmax" => policy.max = whole(0..=100)?,
                "inc" => policy.increasing = whole(0..=1)? == 1,
                _ => return Err(bad()),
            }
        }
        Ok(policy)
    }
}

impl TryFrom<String> for RandAugment {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<RandAugment, PolicyError> {
        text.parse()
    }
}

impl From<RandAugment> for String {
    fn from(policy: RandAugment) -> String {
        policy.to_string()
    }
}

impl fmt::Display for RandAugment {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let RandAugment { magnitude, layers, prob, std, max, increasing } = self;
        let inc = u8::from(*increasing);
        write!(f, "rand-m{magnitude}-n{layers}-p{prob}-mstd{std}-mmax{max}-inc{inc}")
    }
}

/// The operations, in timm's order; as `PosterizeIncreasing` where it has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    AutoContrast,
    Equalize,
    Invert,
    Rotate,
    Posterize,
    Solarize,
    SolarizeAdd,
    Color,
    Contrast,
    Brightness,
    Sharpness,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
}

const KINDS: [Kind; 15] = [
    Kind::AutoContrast,
    Kind::Equalize,
    Kind::Invert,
    Kind::Rotate,
    Kind::Posterize,
    Kind::Solarize,
    Kind::SolarizeAdd,
    Kind::Color,
    Kind::Contrast,
    Kind::Brightness,
    Kind::Sharpness,
    Kind::ShearX,
    Kind::ShearY,
    Kind::TranslateX,
    Kind::TranslateY,
];

/// An operation with what was drawn for it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Op {
    kind: Kind,
    /// Degrees, bits, a threshold, levels, a factor, a slope, or a share of the side; 0 where there is nothing to draw.
    amount: f64,
    /// How pixels that move are made.
    filter: Filter,
}

impl RandAugment {
    /// Draws the operations on an image, in their order.
    fn draw(&self, interpolation: Interpolation, rng: &mut Rng) -> Vec<Op> {
        let kinds: Vec<Kind> =
            (0..self.layers).map(|_| KINDS[rng.below(KINDS.len() as u64) as usize]).collect();
        let done = kinds.into_iter().filter_map(|kind| {
            if rng.uniform() >= self.prob {
                return None;
            }
            let middle = f64::from(self.magnitude);
            let magnitude = match self.std {
                0.0 => middle,
                std if std > 100.0 => rng.range(0.0, middle),
                std => middle + std * rng.normal(),
            };
            // As timm, which takes no bound for 0.
            let max = if self.max == 0 { 10.0 } else { f64::from(self.max) };
            let amount = self.amount(kind, magnitude.clamp(0.0, max), rng.uniform() > 0.5);
            Some(Op { kind, amount, filter: interpolation.draw(rng) })
        });
        done.collect()
    }

    /// The amount that a magnitude means for an operation.
    fn amount(&self, kind: Kind, magnitude: f64, negate: bool) -> f64 {
        let share = magnitude / 10.0;
        let signed = |x: f64| if negate { -x } else { x };
        let falling = |most: f64, x: f64| if self.increasing { (most - x).max(0.0) } else { x };
        match kind {
            Kind::AutoContrast | Kind::Equalize | Kind::Invert => 0.0,
            Kind::Rotate => signed(share * 30.0),
            Kind::Posterize => falling(4.0, (share * 4.0).floor()),
            Kind::Solarize => falling(256.0, (share * 256.0).floor().min(256.0)),
            Kind::SolarizeAdd => (share * 110.0).floor().min(128.0),
            Kind::Color | Kind::Contrast | Kind::Brightness | Kind::Sharpness => {
                match self.increasing {
                    true => (1.0 + signed(share * 0.9)).max(0.1),
                    false => share * 1.8 + 0.1,
                }
            }
            Kind::ShearX | Kind::ShearY => signed(share * 0.3),
            Kind::TranslateX | Kind::TranslateY => signed(share * 0.45),
        }
    }

    /// Draws and does operations on a view `[H, width, 3]`; places that nothing moves to get `fill`.
    pub fn apply(
        &self,
        view: &mut [u8],
        width: usize,
        interpolation: Interpolation,
        fill: [u8; 3],
        rng: &mut Rng,
    ) {
        self.draw(interpolation, rng).iter().for_each(|op| op.apply(view, width, fill));
    }
}

impl Op {
    fn apply(&self, view: &mut [u8], width: usize, fill: [u8; 3]) {
        let Op { kind, amount, filter } = *self;
        let (w, h) = (width as f64, (view.len() / 3 / width) as f64);
        let mut moved = |matrix| pillow::affine(view, width, matrix, filter, fill);
        match kind {
            Kind::AutoContrast => pillow::autocontrast(view),
            Kind::Equalize => pillow::equalize(view),
            Kind::Invert => pillow::invert(view),
            Kind::Posterize => pillow::posterize(view, amount as u32),
            Kind::Solarize => pillow::solarize(view, amount as u32),
            Kind::SolarizeAdd => pillow::solarize_add(view, amount as u8),
            Kind::Color => pillow::color(view, amount as f32),
            Kind::Contrast => pillow::contrast(view, amount as f32),
            Kind::Brightness => pillow::brightness(view, amount as f32),
            Kind::Sharpness => pillow::sharpness(view, width, amount as f32),
            Kind::Rotate => moved(pillow::rotation(amount, w, h)),
            Kind::ShearX => moved([1.0, amount, 0.0, 0.0, 1.0, 0.0]),
            Kind::ShearY => moved([1.0, 0.0, 0.0, amount, 1.0, 0.0]),
            Kind::TranslateX => moved([1.0, 0.0, amount * w, 0.0, 1.0, 0.0]),
            Kind::TranslateY => moved([1.0, 0.0, 0.0, 0.0, 1.0, amount * h]),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fmt::Write;

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::rng::Purpose;
    use crate::testing::{Draws, golden, golden_json};

    const FILL: [u8; 3] = [123, 117, 104];

    #[test]
    fn operations_give_pillows_bytes_for_timms_magnitudes() {
        let images = [("flat", "augment/flat.rgb", 16), ("rgb", "data/decode/rgb.png.rgb", 37)];
        let (mut wrong, mut cases) = (vec![], 0);
        for row in golden_json("augment/ops.json").as_array().unwrap() {
            let text = |i: usize| row[i].as_str().unwrap();
            let (_, file, width) = images.into_iter().find(|image| image.0 == text(0)).unwrap();
            let kind = KINDS.into_iter().find(|kind| format!("{kind:?}") == text(1)).unwrap();
            let filter = match text(5) {
                "nearest" => Filter::Nearest,
                "bilinear" => Filter::Bilinear,
                _ => Filter::Bicubic,
            };
            let policy = RandAugment { increasing: row[2] == true, ..RandAugment::default() };
            let amount = policy.amount(kind, row[3].as_f64().unwrap(), row[4] == true);
            let mut view = golden(file);
            Op { kind, amount, filter }.apply(&mut view, width, FILL);
            let mut digest = String::new();
            Sha256::digest(&view)[..8].iter().for_each(|b| write!(digest, "{b:02x}").unwrap());
            cases += 1;
            if digest != text(6) {
                wrong.push(row.to_string());
            }
        }
        println!("{cases} cases, {} other than Pillow's", wrong.len());
        assert!(wrong.is_empty(), "{} of {cases}:\n{}", wrong.len(), wrong.join("\n"));
        assert!(cases > 500);
    }

    #[test]
    fn operations_and_magnitudes_are_drawn_as_timm_draws_them() {
        let mut draws = Draws::default();
        for name in ["rand-m9-mstd0.5-inc1", "rand-m7-n3-p0.8-mstd101", "rand-m11-mstd2-mmax12"] {
            let policy: RandAugment = name.parse().unwrap();
            for i in 0..60_000 {
                let mut rng = Rng::new(4, Purpose::Augment, &[i]);
                let ops = policy.draw(Interpolation::Random, &mut rng);
                draws.add(format!("{name} operations"), ops.len() as u32);
                for Op { kind, amount, filter } in ops {
                    let index = KINDS.iter().position(|&other| other == kind).unwrap();
                    draws.add(format!("{name} operation"), index as u32);
                    draws.add(format!("{name} bicubic"), u8::from(filter == Filter::Bicubic));
                    if !matches!(kind, Kind::AutoContrast | Kind::Equalize | Kind::Invert) {
                        draws.add(format!("{name} {kind:?}"), amount);
                    }
                }
            }
        }
        draws.follow_their_laws(3 * 15);
    }

    #[test]
    fn policies_are_read_as_timm_writes_them_and_others_refused_with_what_is_known() {
        let policy: RandAugment = "rand-m9-mstd0.5-inc1".parse().unwrap();
        let timm =
            RandAugment { magnitude: 9, std: 0.5, increasing: true, ..RandAugment::default() };
        assert_eq!(policy, timm);
        assert_eq!(policy.to_string().parse::<RandAugment>().unwrap(), policy);
        assert_eq!("rand".parse::<RandAugment>().unwrap(), RandAugment::default());
        for (text, part) in [
            ("augmix-m5", "does not begin"),
            ("rand-m9-x3", "\"x3\" is not known"),
            ("rand-m9.5", "\"m9.5\" is not known"),
            ("rand-n0", "\"n0\" is not known"),
            ("rand-p2", "\"p2\" is not known"),
            ("rand-inc2", "\"inc2\" is not known"),
            ("rand-tweights", "\"tweights\" is not known"),
            ("rand-m\u{0663}", "is not known"),
            ("rand-", "\"\" is not known"),
        ] {
            let e = text.parse::<RandAugment>().unwrap_err().to_string();
            assert!(e.contains(part) && e.contains("mstd (spread"), "{e}");
        }
    }
}
