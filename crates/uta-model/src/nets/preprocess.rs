//! Resizing and cropping of an image before a net sees it, normalisation apart: settings as this program writes them, and as
//! open_clip, timm and Hugging Face do.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ModelError;

/// The side that is brought to `size / crop_pct`, before the centre is cut out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resize {
    /// The shorter side: the excess of the longer one is cut. timm's `center`.
    #[default]
    #[serde(alias = "center")]
    Shortest,
    /// The longer side: the rest of the shorter one is filled. timm's `border`.
    #[serde(alias = "border")]
    Longest,
    /// Both sides, whatever becomes of the proportions.
    Squash,
}

/// The resampling filter, antialiased except for the nearest pixel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// The nearest pixel.
    Nearest,
    /// Pillow's box.
    Box,
    /// Linear.
    Bilinear,
    /// Pillow's Hamming window.
    Hamming,
    /// Pillow's cubic; open_clip's `random` is that where nothing is drawn.
    #[default]
    #[serde(alias = "random")]
    Bicubic,
    /// Lanczos of three lobes.
    Lanczos,
}

/// Pillow's numbers, which Hugging Face writes.
const RESAMPLE: [Interpolation; 6] = [
    Interpolation::Nearest,
    Interpolation::Lanczos,
    Interpolation::Bilinear,
    Interpolation::Bicubic,
    Interpolation::Box,
    Interpolation::Hamming,
];

/// The program whose way is followed where settings don't say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Convention {
    /// Palettes and alpha become RGB after resizing.
    #[default]
    OpenClip,
    /// They become RGB before resizing.
    Timm,
    /// They become RGB before resizing, on white; and a centre between two pixels goes to the upper left, not to the even one.
    Hf,
}

/// Resizing and cropping of an image. The default is CLIP's: shorter side, bicubic, centre.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Preprocess {
    /// The side that is resized.
    pub resize: Resize,
    /// The filter.
    pub interpolation: Interpolation,
    /// The net's share of the resized image's side, in (0, 1].
    pub crop_pct: f64,
    /// Red, green and blue of what the image doesn't cover.
    pub fill: [u8; 3],
    /// The program whose way is followed where settings don't say.
    pub convention: Convention,
}

impl Default for Preprocess {
    fn default() -> Preprocess {
        Preprocess {
            resize: Resize::Shortest,
            interpolation: Interpolation::Bicubic,
            crop_pct: 1.0,
            fill: [0; 3],
            convention: Convention::OpenClip,
        }
    }
}

/// The largest side that an image is resized to.
const MAX_SIDE: i64 = 1 << 16;

impl Preprocess {
    pub(crate) fn is_default(&self) -> bool {
        *self == Preprocess::default()
    }

    /// Checks that an image can be cropped so for a net of `image_size`.
    ///
    /// # Errors
    /// When it can't.
    pub(crate) fn check(&self, image_size: i64) -> Result<(), ModelError> {
        if 0.0 < self.crop_pct && self.crop_pct <= 1.0 && self.side(image_size) <= MAX_SIDE {
            return Ok(());
        }
        Err(ModelError::Config(format!(
            "preprocess.crop_pct = {}: must be above 0, at most 1, and leave images within {MAX_SIDE} pixels",
            self.crop_pct
        )))
    }

    /// The side of the resized image, of which `image_size` is cut out: timm's floor.
    pub fn side(&self, image_size: i64) -> i64 {
        (image_size as f64 / self.crop_pct).floor() as i64
    }

    /// open_clip's `preprocess_cfg` (`open_clip/transform.py`). What isn't known is noted.
    pub(crate) fn from_open_clip(cfg: &Value, image_size: i64, notes: &mut Vec<String>) -> Self {
        let usual = Preprocess::default();
        let fill = match &cfg["fill_color"] {
            Value::Number(n) => json!([n, n, n]),
            other => other.clone(),
        };
        let side = match &cfg["size"] {
            Value::Array(sides) if sides.len() == 2 && sides[0] == sides[1] => &sides[0],
            size => size,
        };
        same("size", side, json!(image_size), notes);
        same("mode", &cfg["mode"], json!("RGB"), notes);
        Preprocess {
            resize: asked("resize_mode", &cfg["resize_mode"], usual.resize, notes),
            interpolation: asked(
                "interpolation",
                &cfg["interpolation"],
                usual.interpolation,
                notes,
            ),
            fill: asked("fill_color", &fill, usual.fill, notes),
            ..usual
        }
    }

    /// timm's `pretrained_cfg` (`timm/data/config.py`, `transforms_factory.py`), of a net with this `mean`.
    pub(crate) fn from_timm(
        cfg: &Value,
        image_size: i64,
        mean: [f64; 3],
        notes: &mut Vec<String>,
    ) -> Self {
        let usual = Preprocess { convention: Convention::Timm, ..Preprocess::default() };
        if cfg.is_null() {
            return usual;
        }
        same("input_size", &cfg["input_size"], json!([3, image_size, image_size]), notes);
        let resize = asked("crop_mode", &cfg["crop_mode"], usual.resize, notes);
        let preprocess = Preprocess {
            resize,
            interpolation: asked(
                "interpolation",
                &cfg["interpolation"],
                usual.interpolation,
                notes,
            ),
            // timm's own default.
            crop_pct: asked("crop_pct", &cfg["crop_pct"], 0.875, notes),
            fill: if resize == Resize::Longest { filled_by(mean) } else { usual.fill },
            ..usual
        };
        match preprocess.check(image_size) {
            Ok(()) => preprocess,
            Err(_) => {
                unknown("crop_pct", &cfg["crop_pct"], &json!(1.0), notes);
                Preprocess { crop_pct: 1.0, ..preprocess }
            }
        }
    }

    /// Hugging Face's `preprocessor_config.json`; what it leaves out is CLIPImageProcessor's.
    pub(crate) fn from_hugging_face(cfg: &Value, image_size: i64, notes: &mut Vec<String>) -> Self {
        let usual = Preprocess { convention: Convention::Hf, ..Preprocess::default() };
        for (key, wanted) in [("do_resize", true), ("do_rescale", true), ("do_pad", false)] {
            same(key, &cfg[key], json!(wanted), notes);
        }
        let factor = cfg["rescale_factor"].as_f64();
        if factor.is_some_and(|factor| (factor * 255.0 - 1.0).abs() > 1e-6) {
            unknown("rescale_factor", &cfg["rescale_factor"], &json!(1.0 / 255.0), notes);
        }
        let resample = &cfg["resample"];
        let interpolation = match resample.as_u64().and_then(|n| RESAMPLE.get(n as usize)) {
            Some(filter) => *filter,
            None => {
                same("resample", resample, json!(3), notes);
                usual.interpolation
            }
        };
        let edge = |value: &Value| value.as_i64().filter(|side| (1..=MAX_SIDE).contains(side));
        let square =
            |size: &Value| edge(&size["height"]).filter(|_| size["height"] == size["width"]);
        let size = &cfg["size"];
        let shortest =
            if size["longest_edge"].is_null() { edge(&size["shortest_edge"]) } else { None };
        let (resize, side) = match (edge(size).or(shortest), square(size)) {
            (Some(side), _) => (Resize::Shortest, side),
            (None, Some(side)) => (Resize::Squash, side),
            (None, None) => {
                same("size", size, json!({"shortest_edge": image_size}), notes);
                (Resize::Shortest, image_size)
            }
        };
        let crop = &cfg["crop_size"];
        let crop = match cfg["do_center_crop"].as_bool() {
            Some(false) => {
                if resize == Resize::Shortest {
                    unknown("do_center_crop", &json!(false), &json!(true), notes);
                }
                side
            }
            _ => edge(crop).or(square(crop)).unwrap_or_else(|| {
                same("crop_size", crop, json!(image_size), notes);
                image_size
            }),
        };
        same("crop_size", &json!(crop), json!(image_size), notes);
        if crop > side {
            unknown("crop_size", &json!(crop), &json!(side), notes);
        }
        let crop_pct = crop_pct(crop.min(side), side);
        Preprocess { resize, interpolation, crop_pct, ..usual }
    }

    /// open_clip's words. What it has none for is noted.
    pub(crate) fn to_open_clip(
        self,
        mean: [f64; 3],
        std: [f64; 3],
        notes: &mut Vec<String>,
    ) -> Value {
        if self.crop_pct != 1.0 {
            no_word("open_clip", "crop_pct", self.crop_pct, "1", notes);
        }
        let known = [Interpolation::Bicubic, Interpolation::Bilinear];
        let interpolation = match self.interpolation {
            filter if known.contains(&filter) => filter,
            filter => {
                no_word("open_clip", "interpolation", filter, "bicubic", notes);
                Interpolation::Bicubic
            }
        };
        let mut cfg = json!({
            "mean": mean,
            "std": std,
            "interpolation": interpolation,
            "resize_mode": self.resize,
        });
        let [gray, ..] = self.fill;
        if self.fill != [gray; 3] {
            no_word("open_clip", "fill", self.fill, "its red for all", notes);
        }
        if gray != 0 {
            cfg["fill_color"] = gray.into();
        }
        cfg
    }

    /// Adds timm's words to a `pretrained_cfg`. What it has none for is noted.
    pub(crate) fn to_timm(self, cfg: &mut Value, mean: [f64; 3], notes: &mut Vec<String>) {
        cfg["interpolation"] = json!(self.interpolation);
        cfg["crop_pct"] = self.crop_pct.into();
        match self.resize {
            Resize::Shortest => {}
            Resize::Squash => cfg["crop_mode"] = "squash".into(),
            Resize::Longest => {
                cfg["crop_mode"] = "border".into();
                if self.fill != filled_by(mean) {
                    no_word("timm", "fill", self.fill, "the mean", notes);
                }
            }
        }
    }

    /// Adds Hugging Face's words to a `preprocessor_config.json`. What it has none for is noted.
    pub(crate) fn to_hugging_face(self, cfg: &mut Value, size: i64, notes: &mut Vec<String>) {
        let side = self.side(size);
        cfg["resample"] = RESAMPLE.iter().position(|filter| *filter == self.interpolation).into();
        cfg["size"] = match self.resize {
            Resize::Squash => json!({"height": side, "width": side}),
            Resize::Shortest => json!({"shortest_edge": side}),
            Resize::Longest => {
                no_word("CLIPImageProcessor", "resize", self.resize, "shortest", notes);
                json!({"shortest_edge": side})
            }
        };
    }
}

/// The share that gives `side` again.
fn crop_pct(crop: i64, side: i64) -> f64 {
    let share = crop as f64 / side as f64;
    let again = (crop as f64 / share).floor() as i64;
    if again == side { share } else { crop as f64 / (side as f64 + 0.5) }
}

/// The colour that timm fills with.
fn filled_by(mean: [f64; 3]) -> [u8; 3] {
    mean.map(|channel| (255.0 * channel).round_ties_even() as u8)
}

/// The value that a configuration asks for, or `usual` where it has none; a value that isn't known is noted.
fn asked<T: DeserializeOwned + Serialize>(
    key: &str,
    value: &Value,
    usual: T,
    notes: &mut Vec<String>,
) -> T {
    if value.is_null() {
        return usual;
    }
    serde_json::from_value(value.clone()).unwrap_or_else(|_| {
        unknown(key, value, &json!(usual), notes);
        usual
    })
}

/// Notes a value that isn't the one there is here.
fn same(key: &str, value: &Value, only: Value, notes: &mut Vec<String>) {
    if !value.is_null() && *value != only {
        unknown(key, value, &only, notes);
    }
}

fn unknown(key: &str, value: &Value, taken: &Value, notes: &mut Vec<String>) {
    notes.push(format!(
        "its configuration asks for {key} = {value} of images, which is not done here; {taken} is"
    ));
}

fn no_word(who: &str, key: &str, value: impl Serialize, taken: &str, notes: &mut Vec<String>) {
    let value = json!(value);
    notes.push(format!("{who} has no word for {key} = {value} of images, and will take {taken}"));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_not_done_is_noted_by_name() {
        let mut notes = vec![];
        let cfg = json!({"resize_mode": "stretch", "size": [16, 32], "fill_color": 300});
        assert_eq!(Preprocess::from_open_clip(&cfg, 32, &mut notes), Preprocess::default());
        let cfg = json!({"crop_pct": 1.5, "input_size": [3, 48, 48], "interpolation": "area"});
        let timm = Preprocess::from_timm(&cfg, 32, [0.5; 3], &mut notes);
        assert_eq!(timm, Preprocess { convention: Convention::Timm, ..Preprocess::default() });
        let cfg = json!({"do_resize": false, "size": {"longest_edge": 9}, "resample": 6,
            "do_center_crop": false, "rescale_factor": 1.0});
        let hf = Preprocess::from_hugging_face(&cfg, 32, &mut notes);
        assert_eq!(hf, Preprocess { convention: Convention::Hf, ..Preprocess::default() });
        let keys = ["size", "resize_mode", "fill_color", "input_size", "interpolation", "crop_pct"];
        let keys = keys.into_iter().chain(["do_resize", "rescale_factor", "resample", "size"]);
        let keys: Vec<&str> = keys.chain(["do_center_crop"]).collect();
        assert_eq!(notes.len(), keys.len(), "{notes:#?}");
        for key in keys {
            assert!(notes.iter().any(|n| n.contains(&format!("{key} = "))), "{key}: {notes:#?}");
        }
    }

    #[test]
    fn an_export_says_what_its_program_has_no_word_for() {
        let odd = Preprocess {
            resize: Resize::Longest,
            interpolation: Interpolation::Lanczos,
            crop_pct: 0.9,
            fill: [1, 2, 3],
            ..Preprocess::default()
        };
        let mut notes = vec![];
        odd.to_open_clip([0.5; 3], [0.5; 3], &mut notes);
        assert_eq!(notes.len(), 3, "{notes:#?}");
        odd.to_timm(&mut json!({}), [0.5; 3], &mut notes);
        odd.to_hugging_face(&mut json!({}), 224, &mut notes);
        assert_eq!(notes.len(), 5, "{notes:#?}");
    }

    #[test]
    fn a_share_gives_back_the_side_it_was_made_of() {
        for crop in 1..600 {
            for side in crop..700 {
                let crop_pct = crop_pct(crop, side);
                assert_eq!(Preprocess { crop_pct, ..Preprocess::default() }.side(crop), side);
            }
        }
    }
}
