//! Where an image lies in a view.

use crate::image::crop::CropBox;

/// How an image lies in a view: which part of it is shown, where in the view, and whether in a mirror. Labels follow the pixels
/// by it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement {
    /// The shown part: left, top, width, height in pixels of the image.
    pub part: [f64; 4],
    /// Where in the view the part lies before it is mirrored, in pixels.
    pub at: CropBox,
    /// Side of the view, in pixels.
    pub size: u32,
    /// Whether the whole view is a mirror image, left for right.
    pub mirrored: bool,
}

impl Placement {
    /// A crop of an image that fills the view.
    pub(crate) fn crop(crop: CropBox, size: u32) -> Placement {
        let part = [crop.left, crop.top, crop.width, crop.height].map(f64::from);
        Placement { part, at: CropBox::whole(size, size), size, mirrored: false }
    }

    /// Where a point x, y of the image lies in the view; it may be outside of it.
    pub fn point(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        let [left, top, width, height] = self.part;
        let x = f64::from(self.at.left) + (x - left) * f64::from(self.at.width) / width;
        let y = f64::from(self.at.top) + (y - top) * f64::from(self.at.height) / height;
        [if self.mirrored { f64::from(self.size) - x } else { x }, y]
    }

    /// The bounds x0, y0, x1, y1 within the view of what is shown of the image.
    pub fn shown(&self) -> [f64; 4] {
        let CropBox { left, top, width, height } = self.at;
        let [left, right] = match self.mirrored {
            true => [self.size - left - width, self.size - left],
            false => [left, left + width],
        };
        [left, top, right, top + height].map(f64::from)
    }
}
