//! Boxes in images.

/// A part of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropBox {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl CropBox {
    pub(crate) fn whole(width: u32, height: u32) -> CropBox {
        CropBox { left: 0, top: 0, width, height }
    }

    /// The box in an image of 1 / `shrink` the size, `width` x `height`, to the nearest pixel.
    pub(crate) fn scaled(self, shrink: u32, width: u32, height: u32) -> CropBox {
        let side = |start: u32, length: u32, whole: u32| {
            let length = (length / shrink).clamp(1, whole);
            (((start + shrink / 2) / shrink).min(whole - length), length)
        };
        let ((left, width), (top, height)) =
            (side(self.left, self.width, width), side(self.top, self.height, height));
        CropBox { left, top, width, height }
    }

    /// The same box in an image of `factor` times the size.
    pub(crate) fn times(self, factor: u32) -> CropBox {
        let CropBox { left, top, width, height } = self;
        let [left, top, width, height] = [left, top, width, height].map(|x| x * factor);
        CropBox { left, top, width, height }
    }

    /// The smallest box around both.
    pub(crate) fn union(self, other: CropBox) -> CropBox {
        let (left, top) = (self.left.min(other.left), self.top.min(other.top));
        let end = |start, length, other_start, other_length| {
            u32::max(start + length, other_start + other_length)
        };
        let right = end(self.left, self.width, other.left, other.width);
        let bottom = end(self.top, self.height, other.top, other.height);
        CropBox { left, top, width: right - left, height: bottom - top }
    }
}
