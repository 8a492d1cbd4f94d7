//! Boxes and masks that follow the pixels of a view.

use crate::label::{LabelMap, Mask, Region};
use crate::transform::place::Placement;

/// Regions in a view: moved with the pixels, cut at the edges of what is shown, mirrored where the view is. Regions of which
/// nothing is left are dropped; where one is cut, its box becomes that of the rest of its mask.
pub fn placed(regions: &[Region], place: &Placement) -> Vec<Region> {
    regions.iter().filter_map(|region| region.placed(place)).collect()
}

impl Region {
    /// The region in a view; None where nothing of it is shown.
    pub fn placed(&self, place: &Placement) -> Option<Region> {
        let [x0, y0, x1, y1] = self.bounds.map(f64::from);
        let moved = around([place.point([x0, y0]), place.point([x1, y1])].into_iter())?;
        let shown = place.shown();
        let mut bounds = common(moved, shown)?;
        let mask = self.mask.as_ref().map(|mask| mask.placed(place));
        if let Some(mask) = &mask {
            let rest = mask.bounds()?;
            if bounds != moved {
                bounds = common(rest, shown)?;
            }
        }
        Some(Region { bounds: bounds.map(|x| x as f32), mask, ..self.clone() })
    }
}

impl Mask {
    /// The part of the mask that a view shows.
    fn placed(&self, place: &Placement) -> Mask {
        match self {
            Mask::Pixels(map) => Mask::Pixels(map.placed(place, 0)),
            Mask::Polygons(polygons) => {
                let polygons = polygons.iter().map(|polygon| {
                    let points = polygon.iter().map(|point| place.point(point.map(f64::from)));
                    clipped(points.collect(), place.shown())
                });
                let polygons = polygons.filter(|polygon| area(polygon) > 0.0);
                let points = |polygon: Vec<[f64; 2]>| {
                    polygon.into_iter().map(|point| point.map(|x| x as f32)).collect()
                };
                Mask::Polygons(polygons.map(points).collect())
            }
        }
    }

    /// The smallest box around the mask: x0, y0, x1, y1; None around an empty one.
    fn bounds(&self) -> Option<[f64; 4]> {
        match self {
            Mask::Polygons(polygons) => {
                around(polygons.iter().flatten().map(|point| point.map(f64::from)))
            }
            Mask::Pixels(LabelMap { width, classes, .. }) => {
                let within = classes.iter().zip(0u32..).filter(|(class, _)| **class != 0);
                let corners = within.flat_map(|(_, i)| {
                    let (x, y) = (f64::from(i % width), f64::from(i / width));
                    [[x, y], [x + 1.0, y + 1.0]]
                });
                around(corners)
            }
        }
    }
}

/// The smallest box around points; None around none.
fn around(points: impl Iterator<Item = [f64; 2]>) -> Option<[f64; 4]> {
    points
        .map(|[x, y]| [x, y, x, y])
        .reduce(|a, b| [a[0].min(b[0]), a[1].min(b[1]), a[2].max(b[2]), a[3].max(b[3])])
}

/// The part that two boxes have in common; None where that is empty.
fn common(a: [f64; 4], b: [f64; 4]) -> Option<[f64; 4]> {
    let both = [a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])];
    (both[0] < both[2] && both[1] < both[3]).then_some(both)
}

/// The part of a polygon within a box, by Sutherland and Hodgman's algorithm ("Reentrant polygon clipping", 1974): parts that
/// fall apart stay joined along the edge of the box, by lines without area.
fn clipped(polygon: Vec<[f64; 2]>, [x0, y0, x1, y1]: [f64; 4]) -> Vec<[f64; 2]> {
    // (axis, where the edge is, the sign of what is within)
    let edges = [(0, x0, 1.0), (0, x1, -1.0), (1, y0, 1.0), (1, y1, -1.0)];
    edges.into_iter().fold(polygon, |polygon, (axis, edge, sign)| {
        let within = |point: &[f64; 2]| (point[axis] - edge) * sign >= 0.0;
        let mut rest = vec![];
        let before = polygon.iter().cycle().skip(polygon.len().saturating_sub(1));
        for (from, to) in before.zip(&polygon) {
            if within(from) != within(to) {
                let share = (edge - from[axis]) / (to[axis] - from[axis]);
                let mut crossing = [0, 1].map(|i| from[i] + share * (to[i] - from[i]));
                crossing[axis] = edge;
                rest.push(crossing);
            }
            if within(to) {
                rest.push(*to);
            }
        }
        rest
    })
}

/// The area of a polygon (the shoelace formula).
fn area(polygon: &[[f64; 2]]) -> f64 {
    let next = polygon.iter().cycle().skip(1);
    let sum: f64 = polygon.iter().zip(next).map(|(a, b)| a[0] * b[1] - b[0] * a[1]).sum();
    sum.abs() / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CropBox;

    fn region(bounds: [f32; 4], mask: Option<Mask>) -> Region {
        Region { class: 7, bounds, mask, crowd: false }
    }

    /// The right lower quarter of an image of 8 x 8, at 8 x 8: everything is moved by 4 and doubled.
    fn quarter() -> Placement {
        Placement::crop(CropBox { left: 4, top: 4, width: 4, height: 4 }, 8)
    }

    #[test]
    fn boxes_are_moved_cut_and_mirrored_and_those_outside_are_dropped() {
        let inside = region([5.0, 5.0, 6.0, 7.0], None);
        let cut = region([2.0, 6.0, 5.0, 9.0], None);
        let touching = region([1.0, 1.0, 4.0, 8.0], None);
        let found = placed(&[inside.clone(), touching.clone(), cut.clone()], &quarter());
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].bounds, found[0].class), ([2.0, 2.0, 4.0, 6.0], 7));
        assert_eq!(found[1].bounds, [0.0, 4.0, 2.0, 8.0]);
        let mirror = Placement { mirrored: true, ..quarter() };
        let found = placed(&[inside, touching, cut], &mirror);
        assert_eq!(found[0].bounds, [4.0, 2.0, 6.0, 6.0]);
        assert_eq!(found[1].bounds, [6.0, 4.0, 8.0, 8.0]);
    }

    #[test]
    fn a_cut_polygon_keeps_its_shape_and_its_box_is_that_of_the_rest() {
        // A triangle with its right angle at 2, 4, of which the crop shows the tip beyond column 4: a height of 2 at column 4,
        // and none at column 6.
        let triangle = vec![[2.0, 4.0], [6.0, 4.0], [2.0, 8.0]];
        let of = region([2.0, 4.0, 6.0, 8.0], Some(Mask::Polygons(vec![triangle])));
        let found = of.placed(&quarter()).expect("a part of it is shown");
        // Its box alone would be cut to 0, 0, 4, 8.
        assert_eq!(found.bounds, [0.0, 0.0, 4.0, 4.0]);
        let Some(Mask::Polygons(polygons)) = &found.mask else { panic!("{found:?}") };
        let points: Vec<[f64; 2]> = polygons[0].iter().map(|point| point.map(f64::from)).collect();
        assert_eq!(area(&points), 8.0);
        assert_eq!(around(points.into_iter()), Some([0.0, 0.0, 4.0, 4.0]));
    }

    #[test]
    fn a_region_whose_mask_is_outside_is_dropped_though_its_box_is_not() {
        let corner = vec![[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]];
        let of = region([0.0, 0.0, 6.0, 6.0], Some(Mask::Polygons(vec![corner])));
        assert_eq!(of.placed(&quarter()), None);
    }

    #[test]
    fn a_mask_of_pixels_follows_like_a_label_map() {
        // Pixels 3..6 of rows 5 and 6.
        let within = |i: u32| u8::from((3..6).contains(&(i % 8)) && (5..7).contains(&(i / 8)));
        let map = LabelMap { width: 8, height: 8, classes: (0..64).map(within).collect() };
        let of = region([3.0, 5.0, 6.0, 7.0], Some(Mask::Pixels(map)));
        let mirror = Placement { mirrored: true, ..quarter() };
        let found = of.placed(&mirror).expect("a part of it is shown");
        assert_eq!(found.bounds, [4.0, 2.0, 8.0, 6.0]);
        let Some(Mask::Pixels(map)) = &found.mask else { panic!("{found:?}") };
        let expected = |i: u32| u8::from((4..8).contains(&(i % 8)) && (2..6).contains(&(i / 8)));
        assert_eq!(map.classes, (0..64).map(expected).collect::<Vec<u8>>());
    }
}
