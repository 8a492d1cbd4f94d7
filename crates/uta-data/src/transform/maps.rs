//! Label maps that follow the pixels of a view.

use crate::label::LabelMap;
use crate::transform::place::Placement;

impl LabelMap {
    /// The map of a view, `[size, size]`: the nearest pixel's class, as Pillow's `NEAREST` finds it, and `fill` where the view
    /// shows nothing of the image.
    pub fn placed(&self, place: &Placement, fill: u8) -> LabelMap {
        let size = place.size;
        let mut classes = vec![fill; (size * size) as usize];
        let [left, top, width, height] = place.part;
        let at = place.at;
        let columns: Vec<usize> = nearest((left, width), at.width, self.width).collect();
        for (y, row) in (at.top..).zip(nearest((top, height), at.height, self.height)) {
            let row = row * self.width as usize;
            let start = (y * size + at.left) as usize;
            for (class, column) in classes[start..].iter_mut().zip(&columns) {
                *class = self.classes.get(row + column).copied().unwrap_or(fill);
            }
        }
        if place.mirrored {
            classes.chunks_exact_mut(size.max(1) as usize).for_each(<[u8]>::reverse);
        }
        LabelMap { width: size, height: size, classes }
    }
}

/// Which pixel of a side each of `count` pixels takes that share the part of it with that start and length. Pillow adds up
/// steps, and so does this, so that ties fall the same way.
fn nearest(
    (start, length): (f64, f64),
    count: u32,
    side: u32,
) -> impl Iterator<Item = usize> + use<> {
    let step = length / f64::from(count);
    let (whole, last) = (start.floor(), f64::from(side.saturating_sub(1)));
    let all = std::iter::successors(Some(0.5 * step), move |at| Some(at + step));
    all.take(count as usize)
        .map(move |at| (whole + (start - whole + at).floor()).clamp(0.0, last) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CropBox;

    /// 4 x 3: 0 1 2 3 / 10 11 12 13 / 20 21 22 23.
    fn map() -> LabelMap {
        let classes = (0..3).flat_map(|y| (0..4).map(move |x| 10 * y + x)).collect();
        LabelMap { width: 4, height: 3, classes }
    }

    #[test]
    fn a_crop_of_a_map_is_doubled_and_mirrored_like_its_pixels() {
        let crop = CropBox { left: 1, top: 1, width: 2, height: 2 };
        let place = Placement::crop(crop, 4);
        let doubled = map().placed(&place, 255);
        let (upper, lower) = ([11, 11, 12, 12], [21, 21, 22, 22]);
        assert_eq!(doubled.classes, [upper, upper, lower, lower].concat());
        let mirrored = map().placed(&Placement { mirrored: true, ..place }, 255);
        let (upper, lower) = ([12, 12, 11, 11], [22, 22, 21, 21]);
        assert_eq!(mirrored.classes, [upper, upper, lower, lower].concat());
    }

    #[test]
    fn a_smaller_map_takes_the_pixels_in_the_middle() {
        // Each pixel of the view stands for two columns and one and a half rows: columns 1 and 3, rows 0.75 and 2.25.
        let place = Placement::crop(CropBox::whole(4, 3), 2);
        assert_eq!(map().placed(&place, 255).classes, [1, 3, 21, 23]);
    }

    #[test]
    fn beside_the_image_a_map_is_filled() {
        // The whole image in the middle rows of a view of 4 x 4, in a mirror.
        let at = CropBox { left: 0, top: 0, width: 4, height: 3 };
        let place = Placement { at, mirrored: true, ..Placement::crop(CropBox::whole(4, 3), 4) };
        let fill = [255; 4];
        let rows = [[3, 2, 1, 0], [13, 12, 11, 10], [23, 22, 21, 20], fill];
        assert_eq!(map().placed(&place, 255).classes, rows.concat());
    }
}
