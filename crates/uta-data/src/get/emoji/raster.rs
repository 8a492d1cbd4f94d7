//! One icon of an iconify set to pixels.

use std::fmt::Write as _;

use image::ImageEncoder as _;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use resvg::tiny_skia::{Color, Pixmap, Transform};
use resvg::usvg;

/// An SVG body with its view box and the turns that iconify's aliases add.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Icon<'a> {
    /// The elements between `<svg>` and `</svg>`.
    pub body: &'a str,
    /// View box: left, top, width, height.
    pub view: [f32; 4],
    /// Mirrored left to right, before it is turned.
    pub h_flip: bool,
    /// Mirrored top to bottom, before it is turned.
    pub v_flip: bool,
    /// Clockwise quarter turns, 0 to 3.
    pub rotate: u8,
}

/// Draws an icon, as large as fits and centred, on opaque white; returns a `size` x `size` RGB PNG. The same bytes for
/// the same input on every machine: no fonts, no files, no threads.
///
/// # Errors
/// The fault of the SVG, in words.
pub(super) fn rasterise(icon: &Icon<'_>, size: u32) -> Result<Vec<u8>, String> {
    let [left, top, width, height] = icon.view;
    if !(width > 0.0 && height > 0.0) {
        return Err(format!("its view box is {width} x {height}"));
    }
    let mut svg = String::with_capacity(icon.body.len() + 200);
    // Some bodies still refer by xlink:href without declaring it, because the sets keep the body alone.
    let _ = write!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">{}</svg>"#,
        icon.body
    );
    let tree = usvg::Tree::from_str(&svg, &usvg::Options::default()).map_err(|e| e.to_string())?;

    let side = size as f32;
    let scale = (side / width).min(side / height);
    let centred = Transform::from_scale(scale, scale)
        .post_translate((side - width * scale) / 2.0, (side - height * scale) / 2.0);
    let transform = centred.post_concat(turn(icon, side));

    let mut pixmap =
        Pixmap::new(size, size).ok_or_else(|| format!("cannot draw at {size} pixels"))?;
    pixmap.fill(Color::WHITE);
    resvg::render(&tree, transform, &mut pixmap.as_mut());

    // On opaque white every pixel stays opaque, so premultiplied is plain.
    let rgb: Vec<u8> = pixmap.data().chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect();
    let mut png = Vec::new();
    PngEncoder::new_with_quality(&mut png, CompressionType::Default, FilterType::Adaptive)
        .write_image(&rgb, size, size, image::ExtendedColorType::Rgb8)
        .map_err(|e| e.to_string())?;
    Ok(png)
}

/// Flips, then quarter turns about the centre of a `side` x `side` picture.
fn turn(icon: &Icon<'_>, side: f32) -> Transform {
    let mut transform = Transform::identity();
    if icon.h_flip {
        transform = transform.post_concat(Transform::from_row(-1.0, 0.0, 0.0, 1.0, side, 0.0));
    }
    if icon.v_flip {
        transform = transform.post_concat(Transform::from_row(1.0, 0.0, 0.0, -1.0, 0.0, side));
    }
    for _ in 0..icon.rotate % 4 {
        // (x, y) -> (side - y, x): exact, where a sine of 90 degrees would not be.
        transform = transform.post_concat(Transform::from_row(0.0, 1.0, -1.0, 0.0, side, 0.0));
    }
    transform
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const RED_LEFT_TOP: &str = r##"<path fill="#f00" d="M0 0h4v4h-4z"/>"##;

    fn icon(body: &str) -> Icon<'_> {
        Icon { body, view: [0.0, 0.0, 8.0, 8.0], h_flip: false, v_flip: false, rotate: 0 }
    }

    fn pixel(icon: &Icon<'_>, x: u32, y: u32) -> [u8; 3] {
        image::load_from_memory(&rasterise(icon, 16).unwrap()).unwrap().to_rgb8().get_pixel(x, y).0
    }

    const RED: [u8; 3] = [255, 0, 0];
    const WHITE: [u8; 3] = [255, 255, 255];

    #[test]
    fn paints_on_opaque_white() {
        let icon = icon(RED_LEFT_TOP);
        assert_eq!(pixel(&icon, 1, 1), RED);
        assert_eq!(pixel(&icon, 14, 14), WHITE);
    }

    #[test]
    fn flips_come_before_clockwise_turns() {
        let base = icon(RED_LEFT_TOP);
        assert_eq!(pixel(&Icon { h_flip: true, ..base.clone() }, 14, 1), RED);
        assert_eq!(pixel(&Icon { v_flip: true, ..base.clone() }, 1, 14), RED);
        assert_eq!(pixel(&Icon { rotate: 1, ..base.clone() }, 14, 1), RED);
        assert_eq!(pixel(&Icon { rotate: 3, ..base.clone() }, 1, 14), RED);
        assert_eq!(pixel(&Icon { h_flip: true, rotate: 1, ..base }, 14, 14), RED);
    }

    #[test]
    fn a_wide_icon_is_centred() {
        let wide = Icon {
            view: [0.0, 0.0, 8.0, 4.0],
            ..icon(r##"<path fill="#f00" d="M0 0h8v4h-8z"/>"##)
        };
        assert_eq!(pixel(&wide, 8, 1), WHITE);
        assert_eq!(pixel(&wide, 8, 8), RED);
        assert_eq!(pixel(&wide, 8, 14), WHITE);
    }

    #[test]
    fn a_view_box_may_start_anywhere() {
        let moved = Icon {
            view: [4.0, 4.0, 8.0, 8.0],
            ..icon(r##"<path fill="#f00" d="M8 8h4v4h-4z"/>"##)
        };
        assert_eq!(pixel(&moved, 14, 14), RED);
        assert_eq!(pixel(&moved, 1, 1), WHITE);
    }

    #[test]
    fn xlink_references_resolve() {
        let body =
            r##"<defs><path id="a" fill="#f00" d="M0 0h4v4h-4z"/></defs><use xlink:href="#a"/>"##;
        assert_eq!(pixel(&icon(body), 1, 1), RED);
    }

    #[test]
    fn a_broken_body_is_an_error_and_not_a_blank_picture() {
        assert!(rasterise(&icon("<path d="), 16).is_err());
        assert!(rasterise(&Icon { view: [0.0; 4], ..icon("") }, 16).is_err());
    }
}
