//! Drawings in SVG.
//!
//! One drawing serves three places: the report, whose style sheet gives the classes their light and
//! dark colours, a .svg file, and through resvg a .png file. That is why the charts are drawn here:
//! a plotting crate's output has its colours burnt in, and its bitmaps have no antialiasing.

use std::fmt::{self, Display, Write as _};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use resvg::tiny_skia::{ColorU8, Pixmap};
use resvg::{tiny_skia, usvg};
use uta_base::AtomicFile;

use crate::error::Usage;

/// White around a file's drawing.
const MARGIN: f64 = 20.0;

/// Colours of a file that stands alone. `assets/report/report.css` holds those of the report.
const STYLE: &str = "\
    text{font-family:Inter,system-ui,sans-serif;fill:#1c2330}\
    .title{font-size:14px;font-weight:600}.small{font-size:11px;fill:#657084}\
    .grid{stroke:#e6e9ef}.axis{stroke:#aab2c0}\
    .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}\
    .faint{fill:none;stroke-width:1;stroke-opacity:.28}\
    .reference{fill:none;stroke-width:1.25;stroke-dasharray:5 4}\
    .h0{stroke:#3a66d6}.h1{stroke:#e0592a}.h2{stroke:#1f9d76}.h3{stroke:#9c4fd0}\
    .h4{stroke:#c98a00}.h5{stroke:#d6387a}.h6{stroke:#1593b8}.h7{stroke:#8a6a4f}\
    .neutral{stroke:#8a93a5}\
    .dot{fill:#fff;stroke-width:2}.frame{fill:none;stroke:#d5dae3}\
    .kept{fill:#3a66d6}.masked{fill:#e6e9ef}";

/// File format of a drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text.
    Svg,
    /// Pixels.
    Png,
}

impl Format {
    /// The format that the ending of a file's name stands for.
    pub fn of(path: &Path) -> Result<Format, Usage> {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        match ending.to_ascii_lowercase().as_str() {
            "svg" => Ok(Format::Svg),
            "png" => Ok(Format::Png),
            _ => Err(Usage(format!("{}: the name must end in .png or .svg", path.display()))),
        }
    }
}

/// The end of a text that its position refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The left.
    Start,
    /// The middle.
    Middle,
    /// The right.
    End,
}

/// An SVG drawing under way. Colours come from classes only, except those of heat maps.
#[derive(Clone, Debug)]
pub struct Drawing {
    width: f64,
    height: f64,
    body: String,
    pictures: Vec<Picture>,
}

/// Pixels within a drawing, below its lines and texts.
#[derive(Clone, Debug)]
struct Picture {
    /// The upper left corner and the side in the drawing.
    place: (f64, f64, f64),
    /// RGB bytes, `[side, side, 3]`.
    rgb: Vec<u8>,
    /// In pixels.
    side: usize,
}

impl Drawing {
    /// An empty drawing.
    pub fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new(), pictures: vec![] }
    }

    pub fn element(&mut self, element: fmt::Arguments<'_>) {
        let _ = self.body.write_fmt(element);
    }

    pub fn open(&mut self, attributes: fmt::Arguments<'_>) {
        self.element(format_args!("<g {attributes}>"));
    }

    pub fn close(&mut self) {
        self.body.push_str("</g>");
    }

    /// Draws what `inner` draws with its origin at (x, y).
    pub fn at(&mut self, x: f64, y: f64, inner: impl FnOnce(&mut Self)) {
        self.open(format_args!("transform=\"translate({x:.1} {y:.1})\""));
        inner(self);
        self.close();
    }

    /// Writes a text on the base line (x, y).
    pub fn text(&mut self, x: f64, y: f64, class: &str, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = Escaped(text);
        self.element(format_args!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    }

    /// Draws a square picture of `rgb` bytes, `[side, side, 3]`, with its corner at (x, y) of the whole drawing and `size` wide,
    /// each pixel a square.
    pub fn picture(&mut self, (x, y, size): (f64, f64, f64), rgb: &[u8], side: usize) {
        self.pictures.push(Picture { place: (x, y, size), rgb: rgb.to_vec(), side });
    }

    /// Draws a straight line.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        self.element(format_args!(
            "<path class=\"{class}\" d=\"M{:.1} {:.1}L{:.1} {:.1}\"/>",
            from.0, from.1, to.0, to.1
        ));
    }

    /// Draws a row-major map of shares (0 to 1) with `columns` columns, in a square of `side` at (0, 0).
    pub fn heat_map(&mut self, shares: &[f64], columns: usize, side: f64) {
        self.cells(shares.len(), columns, side, 0.0, |i| {
            format!("fill=\"{}\"><title>{:.1} %</title></rect>", heat(shares[i]), shares[i] * 100.0)
        });
    }

    /// Draws a mask, row-major, in a square of `side` at (0, 0): masked cells pale, kept ones strong.
    pub fn mask(&mut self, kept: &[bool], columns: usize, side: f64) {
        let gap = if columns <= 16 { 0.8 } else { 0.4 };
        self.cells(kept.len(), columns, side, gap, |i| {
            format!("class=\"{}\"/>", if kept[i] { "kept" } else { "masked" })
        });
    }

    /// One rectangle a cell; `rest` gives what stands after its place and size.
    fn cells(
        &mut self,
        cells: usize,
        columns: usize,
        side: f64,
        gap: f64,
        rest: impl Fn(usize) -> String,
    ) {
        let rows = cells.div_ceil(columns);
        let pitch = side / columns.max(rows) as f64;
        // Without a gap, cells overlap by a hair: else the background shines through between them.
        let size = if gap > 0.0 { pitch - gap } else { pitch + 0.3 };
        for i in 0..cells {
            let (x, y) = ((i % columns) as f64 * pitch, (i / columns) as f64 * pitch);
            self.element(format_args!(
                "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{size:.2}\" height=\"{size:.2}\" {}",
                rest(i)
            ));
        }
    }

    /// Draws the key of heat maps, 0 to 100 %, `width` wide and 34 high.
    pub fn heat_key(&mut self, width: f64) {
        const STEPS: u32 = 64;
        self.text(0.0, 0.0, "small", Anchor::Start, "share of samples that mask a patch");
        let pitch = width / f64::from(STEPS);
        for i in 0..STEPS {
            let colour = heat((f64::from(i) + 0.5) / f64::from(STEPS));
            let (x, wide) = (f64::from(i) * pitch, pitch + 0.3);
            self.element(format_args!(
                "<rect x=\"{x:.2}\" y=\"7\" width=\"{wide:.2}\" height=\"8\" fill=\"{colour}\"/>"
            ));
        }
        self.text(0.0, 29.0, "small", Anchor::Start, "0 %");
        self.text(width / 2.0, 29.0, "small", Anchor::Middle, "50 %");
        self.text(width, 29.0, "small", Anchor::End, "100 %");
    }

    /// The drawing as an element of a page whose style sheet gives the colours.
    pub fn inline(&self, description: &str) -> String {
        let Self { width, height, body, .. } = self;
        format!(
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">{body}</svg>",
            Escaped(description)
        )
    }

    /// The drawing as a file of its own, on white with a margin.
    ///
    /// # Errors
    /// When a picture has no pixels.
    pub fn standalone(&self) -> anyhow::Result<String> {
        let mut below = format!(
            "<rect x=\"{0}\" y=\"{0}\" width=\"100%\" height=\"100%\" fill=\"#fff\"/>",
            -MARGIN
        );
        for Picture { place: (x, y, size), rgb, side } in &self.pictures {
            let png = BASE64_STANDARD.encode(pixmap(rgb, *side)?.encode_png()?);
            write!(
                below,
                "<image x=\"{x:.1}\" y=\"{y:.1}\" width=\"{size:.1}\" height=\"{size:.1}\" \
                 style=\"image-rendering:pixelated\" href=\"data:image/png;base64,{png}\"/>"
            )?;
        }
        Ok(self.file(&below))
    }

    /// The drawing with `below` under it.
    fn file(&self, below: &str) -> String {
        let (width, height) = (self.width + 2.0 * MARGIN, self.height + 2.0 * MARGIN);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"{0} {0} {width} {height}\"><style>{STYLE}</style>{below}{1}</svg>\n",
            -MARGIN, self.body
        )
    }

    /// Writes a .svg or .png file, by the name's ending.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let bytes = match Format::of(path)? {
            Format::Svg => self.standalone()?.into_bytes(),
            Format::Png => self.png()?,
        };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        AtomicFile::create_or_write_through(path)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.finish()))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The picture in PNG, at twice the size for sharp screens.
    fn png(&self) -> anyhow::Result<Vec<u8>> {
        const SCALE: f32 = 2.0;
        let mut options = usvg::Options { font_family: "Inter".into(), ..Default::default() };
        let fonts = Arc::make_mut(&mut options.fontdb);
        fonts.load_font_data(include_bytes!("../../assets/fonts/Inter-Regular.otf").to_vec());
        fonts.load_font_data(include_bytes!("../../assets/fonts/Inter-SemiBold.otf").to_vec());
        fonts.set_sans_serif_family("Inter");
        let tree = usvg::Tree::from_str(&self.file(""), &options)?;
        let size = tree.size().to_int_size().scale_by(SCALE).context("the drawing is empty")?;
        let mut pixels = Pixmap::new(size.width(), size.height())
            .context("the drawing is too large for a bitmap")?;
        pixels.fill(tiny_skia::Color::WHITE);
        for Picture { place: (x, y, size), rgb, side } in &self.pictures {
            let scale = SCALE * *size as f32 / *side as f32;
            let [x, y] = [x, y].map(|at| SCALE * (at + MARGIN) as f32);
            let place = tiny_skia::Transform::from_scale(scale, scale).post_translate(x, y);
            let paint = tiny_skia::PixmapPaint::default(); // nearest pixel
            pixels.draw_pixmap(0, 0, pixmap(rgb, *side)?.as_ref(), &paint, place, None);
        }
        let transform = tiny_skia::Transform::from_scale(SCALE, SCALE);
        resvg::render(&tree, transform, &mut pixels.as_mut());
        Ok(pixels.encode_png()?)
    }
}

/// A square picture of RGB bytes.
///
/// # Errors
/// When it has no pixels.
pub fn pixmap(rgb: &[u8], side: usize) -> anyhow::Result<Pixmap> {
    let mut picture = Pixmap::new(side as u32, side as u32).context("a picture without pixels")?;
    for (to, rgb) in picture.pixels_mut().iter_mut().zip(rgb.chunks_exact(3)) {
        *to = ColorU8::from_rgba(rgb[0], rgb[1], rgb[2], 255).premultiply();
    }
    Ok(picture)
}

/// Light yellow to dark violet, evenly spaced in lightness, so that it also reads in grey.
fn heat(share: f64) -> String {
    const STOPS: [[f64; 3]; 6] = [
        [253.0, 245.0, 214.0],
        [250.0, 204.0, 132.0],
        [240.0, 145.0, 96.0],
        [203.0, 84.0, 106.0],
        [131.0, 48.0, 119.0],
        [49.0, 24.0, 87.0],
    ];
    let place = share.clamp(0.0, 1.0) * (STOPS.len() - 1) as f64;
    let lower = (place as usize).min(STOPS.len() - 2);
    let part = place - lower as f64;
    let mixed = |c: usize| (STOPS[lower][c] * (1.0 - part) + STOPS[lower + 1][c] * part) as u8;
    format!("#{:02x}{:02x}{:02x}", mixed(0), mixed(1), mixed(2))
}

/// Text with the characters escaped that mean something in markup.
pub struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}
