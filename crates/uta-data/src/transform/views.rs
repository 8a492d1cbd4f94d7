//! The transforms that most tasks take: augmented views for training, the views of evaluation, and texts alone.

use crate::error::DataError;
use crate::image::decode::DecodeOptions;
use crate::label::{Label, LabelKind, LabelMap};
use crate::rng::{Purpose, Rng};
use crate::source::{Sample, Source};
use crate::transform::boxes;
use crate::transform::eval::EvalTransform;
use crate::transform::place::Placement;
use crate::transform::train::TrainTransform;
use crate::transform::{Draw, Transform, View};

/// Augmented views for training. A sample without the label is unusable.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainViews {
    /// The augmentation of the pixels.
    pub transform: TrainTransform,
    /// How images are decoded.
    pub decode: DecodeOptions,
    /// The label that views come with. One of several captions is drawn.
    pub label: LabelKind,
}

impl TrainViews {
    /// Views without a label.
    pub fn new(transform: TrainTransform) -> TrainViews {
        TrainViews { transform, decode: DecodeOptions::default(), label: LabelKind::None }
    }

    fn label(&self, sample: &Sample, draw: &Draw, place: &Placement) -> Label {
        match label(sample, self.label, place) {
            Label::Captions(captions) if !captions.is_empty() => {
                let which = draw.rng(Purpose::Caption).below(captions.len() as u64);
                Label::Captions(vec![captions[which as usize].clone()])
            }
            label => label,
        }
    }

    /// The views that generators draw, one for each of `draws`.
    fn drawn(
        &self,
        sample: &Sample,
        draws: &[Draw],
        rngs: &mut [Rng],
    ) -> Result<Vec<View>, DataError> {
        require(sample, self.label)?;
        let placed = self.transform.placed(&sample.image, &self.decode, rngs)?;
        let view = |((pixels, place), draw): ((Vec<u8>, Placement), &Draw)| View {
            pixels,
            label: self.label(sample, draw, &place),
            targets: vec![],
        };
        Ok(placed.into_iter().zip(draws).map(view).collect())
    }
}

impl Transform for TrainViews {
    fn size(&self) -> u32 {
        self.transform.size
    }

    fn max_pixels(&self) -> u64 {
        self.decode.max_pixels
    }

    fn validate(&self) -> Result<(), DataError> {
        self.transform.validate()?;
        match self.transform.rand_augment {
            Some(policy) if self.label.has_places() => Err(DataError::Option {
                field: "rand_augment",
                value: policy.to_string(),
                reason: "moves pixels, and label maps and boxes would not follow: leave it out"
                    .into(),
            }),
            _ => Ok(()),
        }
    }

    fn check_source(&self, source: &dyn Source) -> Result<(), DataError> {
        require_labels(source, self.label)
    }

    fn views(&self, sample: &Sample, draws: &[Draw]) -> Result<Vec<View>, DataError> {
        let mut rngs: Vec<Rng> = draws.iter().map(|draw| draw.rng(Purpose::Augment)).collect();
        self.drawn(sample, draws, &mut rngs)
    }
}

/// The views of evaluation, which are no matter of chance.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalViews {
    /// The way of the pixels.
    pub transform: EvalTransform,
    /// How images are decoded.
    pub decode: DecodeOptions,
    /// The label that views come with: all captions. A `.cls` that gives no class makes its sample unusable.
    pub label: LabelKind,
    /// Whether a sample without the label is unusable; else it comes without.
    pub required: bool,
}

impl EvalViews {
    /// Views without a label.
    pub fn new(transform: EvalTransform) -> EvalViews {
        let decode = DecodeOptions::default();
        EvalViews { transform, decode, label: LabelKind::None, required: false }
    }
}

impl Transform for EvalViews {
    fn size(&self) -> u32 {
        self.transform.size
    }

    fn max_pixels(&self) -> u64 {
        self.decode.max_pixels
    }

    fn check_source(&self, source: &dyn Source) -> Result<(), DataError> {
        if self.required { require_labels(source, self.label) } else { Ok(()) }
    }

    fn views(&self, sample: &Sample, draws: &[Draw]) -> Result<Vec<View>, DataError> {
        let (pixels, place) = self.transform.placed(&sample.image, &self.decode)?;
        if self.label == LabelKind::Class {
            sample.class()?;
        }
        if self.required {
            require(sample, self.label)?;
        }
        let view = View { pixels, label: label(sample, self.label, &place), targets: vec![] };
        Ok(vec![view; draws.len()])
    }
}

/// A caption of a sample and no pixels: its picture, where there is one, is not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextViews {
    /// Whether the caption is drawn, anew in each pass; else it is the first.
    pub drawn: bool,
}

impl Transform for TextViews {
    fn size(&self) -> u32 {
        0
    }

    fn max_pixels(&self) -> u64 {
        0
    }

    fn check_source(&self, source: &dyn Source) -> Result<(), DataError> {
        require_captions(source)
    }

    fn views(&self, sample: &Sample, draws: &[Draw]) -> Result<Vec<View>, DataError> {
        require(sample, LabelKind::Captions)?;
        let all = &sample.captions;
        let view = |draw: &Draw| {
            let which = match self.drawn {
                true => draw.rng(Purpose::Caption).below(all.len() as u64) as usize,
                false => 0,
            };
            let label = Label::Captions(vec![all[which].clone()]);
            View { pixels: vec![], label, targets: vec![] }
        };
        Ok(draws.iter().map(view).collect())
    }
}

/// Transforms whose views can be drawn again later, from the state of a generator that was written down.
pub trait Redraw: Transform {
    /// The view of a sample that a generator in this `state` draws.
    ///
    /// # Errors
    /// As [`Transform::views`].
    fn redraw(&self, sample: &Sample, draw: &Draw, state: u64) -> Result<View, DataError>;
}

impl Redraw for TrainViews {
    fn redraw(&self, sample: &Sample, draw: &Draw, state: u64) -> Result<View, DataError> {
        let mut views = self.drawn(sample, &[*draw], &mut [Rng::from_state(state)])?;
        Ok(views.pop().expect("a view for the one draw"))
    }
}

impl Redraw for EvalViews {
    fn redraw(&self, sample: &Sample, draw: &Draw, _: u64) -> Result<View, DataError> {
        let mut views = self.views(sample, &[*draw])?;
        Ok(views.pop().expect("a view for the one draw"))
    }
}

/// The label of a sample as it lies in a view; none where it has none of the kind.
fn label(sample: &Sample, kind: LabelKind, place: &Placement) -> Label {
    match kind {
        LabelKind::None => Label::None,
        LabelKind::Captions => Label::Captions(sample.captions.clone()),
        LabelKind::Class => sample.class.map_or(Label::None, Label::Class),
        LabelKind::Map => {
            let map = sample.map.as_ref().map(|map| map.placed(place, LabelMap::IGNORED));
            map.map_or(Label::None, Label::Map)
        }
        LabelKind::Regions => {
            let regions = sample.regions.as_ref().map(|regions| boxes::placed(regions, place));
            regions.map_or(Label::None, Label::Regions)
        }
        LabelKind::Chat => Label::Chat(sample.chat.clone()),
    }
}

/// Whether a sample has a label of the kind.
///
/// # Errors
/// When it hasn't.
fn require(sample: &Sample, kind: LabelKind) -> Result<(), DataError> {
    let key = || sample.key.clone();
    let (found, what) = match kind {
        LabelKind::None => return Ok(()),
        LabelKind::Captions if sample.captions.is_empty() => {
            return Err(DataError::Caption { key: key() });
        }
        LabelKind::Captions => return Ok(()),
        LabelKind::Class => (sample.class()?.is_some(), "class"),
        LabelKind::Map => (sample.map.is_some(), "label map"),
        LabelKind::Regions => (sample.regions.is_some(), "boxes"),
        LabelKind::Chat => (!sample.chat.is_empty(), "conversation"),
    };
    if found {
        return Ok(());
    }
    Err(DataError::Sample { key: key(), reason: format!("has no {what}") })
}

/// Whether `source` has captions, by its first hundred samples.
///
/// # Errors
/// When none of them has one.
pub fn require_captions(source: &dyn Source) -> Result<(), DataError> {
    require_labels(source, LabelKind::Captions)
}

/// Whether `source` has labels of the kind, by its first hundred samples.
///
/// # Errors
/// When none of them has one.
fn require_labels(source: &dyn Source, kind: LabelKind) -> Result<(), DataError> {
    let looked_at = source.len().min(100);
    let has_label = |i| source.read(i).is_ok_and(|sample| require(&sample, kind).is_ok());
    if kind == LabelKind::None || (0..looked_at).any(has_label) {
        return Ok(());
    }
    let key = source.key(0);
    let what = match kind {
        LabelKind::None | LabelKind::Captions => {
            return Err(DataError::NoCaptions { looked_at, key });
        }
        LabelKind::Class => "classes",
        LabelKind::Map => "label maps",
        LabelKind::Regions => "boxes",
        LabelKind::Chat => "conversations",
    };
    Err(DataError::NoLabels { what, looked_at, key })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Cursor;

    use image::{ImageFormat, Rgb, RgbImage};

    use super::*;
    use crate::{Interpolation, Mask, Region, Role, Turn};

    const SIDES: (u32, u32) = (40, 28);

    #[test]
    fn a_text_comes_without_its_picture_drawn_anew_in_each_pass_or_the_first() {
        let broken = Sample { image: b"no picture".to_vec(), ..sample() };
        let draw = |pass| Draw { seed: 4, index: 0, pass, repeat: 0, position: 0 };
        let text = |drawn, pass| {
            let mut views = TextViews { drawn }.views(&broken, &[draw(pass)]).unwrap();
            let View { pixels, label, .. } = views.remove(0);
            assert!(pixels.is_empty());
            label.captions().to_vec()
        };
        let drawn: Vec<_> = (0..20).map(|pass| text(true, pass)).collect();
        assert!(drawn.contains(&vec!["one".to_owned()]) && drawn.contains(&vec!["two".to_owned()]));
        assert!(
            (0..20).all(
                |pass| text(false, pass) == ["one"] && text(true, pass) == drawn[pass as usize]
            )
        );
        let none = Sample { captions: vec![], ..sample() };
        let e = TextViews { drawn: true }.views(&none, &[draw(0)]).unwrap_err();
        assert!(matches!(e, DataError::Caption { .. }));
    }

    /// A picture whose red is each pixel's class, with a box around one of its pixels.
    fn sample() -> Sample {
        let class = |x: u32, y: u32| (x * 5 + y * 3) as u8;
        let (width, height) = SIDES;
        let mut image = Cursor::new(vec![]);
        let picture = RgbImage::from_fn(width, height, |x, y| Rgb([class(x, y), 0, 0]));
        picture.write_to(&mut image, ImageFormat::Png).unwrap();
        let classes = (0..height).flat_map(|y| (0..width).map(move |x| class(x, y))).collect();
        let square = vec![[10.0, 8.0], [20.0, 8.0], [20.0, 16.0], [10.0, 16.0]];
        Sample {
            key: "a".into(),
            image: image.into_inner(),
            captions: vec!["one".into(), "two".into()],
            class: Some(3),
            map: Some(LabelMap { width, height, classes }),
            regions: Some(vec![Region {
                class: 1,
                bounds: [10.0, 8.0, 20.0, 16.0],
                mask: Some(Mask::Polygons(vec![square])),
                crowd: false,
            }]),
            chat: vec![Turn { role: Role::User, text: "What is it?".into() }],
            ..Sample::default()
        }
    }

    fn views(label: LabelKind) -> TrainViews {
        let interpolation = Interpolation::Nearest;
        let transform = TrainTransform { size: 24, interpolation, ..TrainTransform::default() };
        TrainViews { label, ..TrainViews::new(transform) }
    }

    fn draw(position: u64) -> Draw {
        Draw { seed: 5, index: 0, pass: position, repeat: 0, position }
    }

    fn reds(view: &View) -> Vec<u8> {
        view.pixels.as_chunks::<3>().0.iter().map(|pixel| pixel[0]).collect()
    }

    #[test]
    fn a_label_map_shows_in_every_view_what_the_pixels_show() {
        let of = views(LabelKind::Map);
        let mut seen = std::collections::BTreeSet::new();
        for position in 0..60 {
            let view = of.views(&sample(), &[draw(position)]).unwrap().remove(0);
            let Label::Map(map) = &view.label else { panic!("{:?}", view.label) };
            assert_eq!((map.width, map.height), (24, 24));
            assert_eq!(map.classes, reds(&view), "{position}");
            // In a mirror classes fall to the right.
            seen.insert(map.classes[0] > map.classes[23]);
        }
        assert_eq!(seen.len(), 2, "views in a mirror and others");
    }

    #[test]
    fn boxes_lie_where_the_pixels_do() {
        let (maps, boxes) = (views(LabelKind::Map), views(LabelKind::Regions));
        let mut left_out = 0;
        for position in 0..60 {
            let draws = [draw(position)];
            let Label::Map(map) = maps.views(&sample(), &draws).unwrap().remove(0).label else {
                panic!("no map")
            };
            let Label::Regions(regions) = boxes.views(&sample(), &draws).unwrap().remove(0).label
            else {
                panic!("no regions")
            };
            let Some(region) = regions.first() else {
                left_out += 1;
                continue;
            };
            // The class in the middle of the box is one of those within it.
            let [x0, y0, x1, y1] = region.bounds;
            assert!(0.0 <= x0 && x1 <= 24.0 && 0.0 <= y0 && y1 <= 24.0, "{region:?}");
            let [x, y] = [(x0 + x1) / 2.0, (y0 + y1) / 2.0].map(|at| (at as usize).min(23));
            let within: Vec<u8> =
                (8..16u8).flat_map(|y| (10..20u8).map(move |x| x * 5 + y * 3)).collect();
            assert!(within.contains(&map.classes[y * 24 + x]), "{position}: {region:?}");
        }
        assert!((1..50).contains(&left_out), "{left_out}");
    }

    #[test]
    fn evaluation_fills_a_label_map_beside_the_image() {
        let transform = EvalTransform {
            fit: crate::Fit::Longest,
            filter: crate::Filter::Nearest,
            fill: [200; 3],
            ..EvalTransform::new(40)
        };
        let of = EvalViews { label: LabelKind::Map, ..EvalViews::new(transform) };
        let view = of.views(&sample(), &[draw(0)]).unwrap().remove(0);
        let Label::Map(map) = &view.label else { panic!("{:?}", view.label) };
        // Six rows above and below 28.
        let (red, rows) = (reds(&view), 6 * 40..34 * 40);
        assert_eq!(map.classes[rows.clone()], red[rows]);
        assert!(map.classes[..240].iter().all(|&class| class == LabelMap::IGNORED));
        assert!(map.classes[34 * 40..].iter().all(|&class| class == LabelMap::IGNORED));
    }

    #[test]
    fn other_labels_are_carried_along_and_those_that_are_missing_are_named() {
        let label = |kind| views(kind).views(&sample(), &[draw(0)]).unwrap().remove(0).label;
        assert_eq!(label(LabelKind::None), Label::None);
        assert_eq!(label(LabelKind::Class), Label::Class(3));
        assert_eq!(label(LabelKind::Chat), Label::Chat(sample().chat));
        assert_eq!(label(LabelKind::Captions).captions().len(), 1);
        let bare = Sample { key: "b".into(), image: sample().image, ..Sample::default() };
        for (kind, told) in [
            (LabelKind::Captions, "sample b: has no caption"),
            (LabelKind::Class, "sample b: has no class"),
            (LabelKind::Map, "sample b: has no label map"),
            (LabelKind::Regions, "sample b: has no boxes"),
            (LabelKind::Chat, "sample b: has no conversation"),
        ] {
            let e = views(kind).views(&bare, &[draw(0)]).unwrap_err().to_string();
            assert!(e.starts_with(told), "{e}");
        }
        let mut moved = views(LabelKind::Map);
        moved.transform.rand_augment = Some("rand-m9".parse().unwrap());
        assert!(moved.validate().unwrap_err().to_string().starts_with("rand_augment"));
    }
}
