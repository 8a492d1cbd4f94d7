//! `uta data show`: samples as a net gets them, drawn. The first thing to look at when a run learns nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;

use uta_data::progress::counted;
use uta_data::{Batch, Item, Label, LabelMap, Mask, Region};
use uta_train::{Preview, Recipe};

use crate::error::Usage;
use crate::report::svg::{Anchor, Drawing, Format};

/// Draw samples as a recipe's net gets them
///
/// The first samples of the training stream, after crops, flips and colours, each with its caption or class; with --val
/// those of the validation set. Nothing is trained, and no teacher is read.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  uta data show recipes/mini/uta-emoji.toml --out samples.png
  uta data show recipes/mini/clip-emoji.toml --out samples.png --set data.transforms.scale='[0.1, 1.0]'")]
pub struct Args {
    /// The recipe (TOML)
    recipe: PathBuf,
    /// The picture to write; .png or .svg
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Samples to draw
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..=400))]
    samples: u16,
    /// Draw samples of data.val, as validation sees them
    #[arg(long)]
    val: bool,
    /// Override a key of the recipe; may be given often
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    sets: Vec<String>,
}

/// Side of a picture in the drawing, and the gap between two.
const SIDE: f64 = 168.0;
const GAP: f64 = 14.0;
/// Height of a line of text, letters of a line, and lines below a picture.
const LINE: f64 = 15.0;
const LETTERS: usize = 27;
const LINES: usize = 3;
/// Pictures beside each other.
const COLUMNS: usize = 6;

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    Format::of(&args.out)?;
    let recipe = Recipe::load(&args.recipe, &args.sets)?;
    let Preview { batch, classes } = Preview::of(&recipe, args.samples.into(), args.val)?;
    if batch.is_empty() {
        let message = "none of the first samples can be read; see `uta data verify`";
        return Err(Usage(format!("{}: {message}", args.recipe.display())).into());
    }
    let set = if args.val { "data.val" } else { "data.train" };
    let samples = match batch.size {
        0 => counted(batch.len(), "text"),
        side => format!("{} of {side} x {side} pixels", counted(batch.len(), "view")),
    };
    let title = format!(
        "{set} of {}: {samples}, task {}",
        args.recipe.file_name().unwrap_or_default().to_string_lossy(),
        recipe.task.kind(),
    );
    draw(&title, &batch, classes.as_deref()).save(&args.out)?;
    let what = if batch.size == 0 { "text" } else { "view" };
    eprintln!("{} in {}", counted(batch.len(), what), args.out.display());
    Ok(())
}

/// The pictures of a batch in rows, each above its label; of texts the labels alone.
fn draw(title: &str, batch: &Batch, classes: Option<&[String]>) -> Drawing {
    const TITLE: f64 = 34.0;
    let columns = batch.len().min(COLUMNS);
    let texts: Vec<Vec<String>> = batch.items.iter().map(|item| label(item, classes)).collect();
    let lines = texts.iter().map(Vec::len).max().unwrap_or(0);
    let side = if batch.size == 0 { 0.0 } else { SIDE };
    let height = side + GAP + LINE * lines as f64;
    let rows = batch.len().div_ceil(columns);
    let width = (columns as f64 * (SIDE + GAP) - GAP).max(520.0);
    let mut drawing = Drawing::new(width, TITLE + rows as f64 * height - GAP);
    drawing.text(0.0, 14.0, "title", Anchor::Start, title);
    let pixels = |i: usize| {
        let bytes = 3 * batch.size * batch.size;
        batch.pixels[i * bytes..][..bytes].to_vec()
    };
    for (i, (item, text)) in batch.items.iter().zip(&texts).enumerate() {
        let (x, y) = ((i % columns) as f64 * (SIDE + GAP), TITLE + (i / columns) as f64 * height);
        let (mut rgb, scale) = (pixels(i), SIDE / batch.size as f64);
        match &item.label {
            Label::Map(map) => tint(&mut rgb, map, |class| {
                (class != LabelMap::IGNORED).then(|| colour(class.into()))
            }),
            Label::Regions(regions) => {
                for region in regions {
                    if let Some(Mask::Pixels(map)) = &region.mask {
                        tint(&mut rgb, map, |inside| (inside == 1).then(|| colour(region.class)));
                    }
                    drawing.at(x, y, |drawing| outline(drawing, region, scale));
                }
            }
            _ => {}
        }
        if batch.size > 0 {
            drawing.picture((x, y, SIDE), &rgb, batch.size);
        }
        for (line, text) in text.iter().enumerate() {
            let y = y + side + LINE * (line as f64 + 0.85);
            drawing.text(x, y, "small", Anchor::Start, text);
        }
    }
    drawing
}

/// Mixes the colour that `of` gives each value of `map`, where it gives one, with the pixels of the same size.
fn tint(rgb: &mut [u8], map: &LabelMap, of: impl Fn(u8) -> Option<[u8; 3]>) {
    for (pixel, &value) in rgb.chunks_exact_mut(3).zip(&map.classes) {
        for (channel, colour) in pixel.iter_mut().zip(of(value).into_iter().flatten()) {
            *channel = channel.midpoint(colour);
        }
    }
}

/// Draws the bounds of a region of a view, and its outlines where it has some, `scale` times as large.
fn outline(drawing: &mut Drawing, region: &Region, scale: f64) {
    let hue = format!("line h{}", region.class % 8);
    let [x0, y0, x1, y1] = region.bounds.map(|at| scale * f64::from(at));
    drawing.element(format_args!(
        "<rect class=\"{hue}\" x=\"{x0:.1}\" y=\"{y0:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
        x1 - x0,
        y1 - y0
    ));
    if let Some(Mask::Polygons(polygons)) = &region.mask {
        for polygon in polygons {
            let points: Vec<String> = polygon
                .iter()
                .map(|[x, y]| format!("{:.1},{:.1}", scale * f64::from(*x), scale * f64::from(*y)))
                .collect();
            drawing.element(format_args!(
                "<polygon class=\"{hue}\" points=\"{}\"/>",
                points.join(" ")
            ));
        }
    }
}

/// A colour for a class: hues a golden angle apart, so that neighbours differ.
fn colour(class: u32) -> [u8; 3] {
    let hue = (f64::from(class) * 0.618_034).fract() * 6.0;
    [5.0, 3.0, 1.0].map(|at| {
        let along: f64 = (at + hue) % 6.0;
        (255.0 * (1.0 - along.min(4.0 - along).clamp(0.0, 1.0))) as u8
    })
}

/// The lines below a picture: its label, or its name where the task asks for none.
fn label(item: &Item, classes: Option<&[String]>) -> Vec<String> {
    let text = match &item.label {
        Label::None => item.key.clone(),
        Label::Captions(captions) => captions.first().cloned().unwrap_or_default(),
        Label::Class(class) => match classes.and_then(|all| all.get(*class as usize)) {
            Some(name) => format!("class {class}: {name}"),
            None => format!("class {class}"),
        },
        Label::Map(map) => counted(map.classes.iter().collect::<BTreeSet<_>>().len(), "class"),
        Label::Regions(regions) => counted(regions.len(), "object"),
        Label::Chat(turns) => turns.last().map_or_else(String::new, |turn| turn.text.clone()),
    };
    wrapped(&text, LINES)
}

/// A text in at most `most` lines, with an ellipsis where more would follow.
fn wrapped(text: &str, most: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let word: String = word.chars().take(LETTERS).collect();
        let line = lines.last_mut().expect("there is always a line");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > LETTERS {
            lines.push(word);
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(&word);
        }
    }
    if lines.len() > most {
        lines.truncate(most);
        if let Some(line) = lines.last_mut() {
            line.push('…');
        }
    }
    lines.retain(|line| !line.is_empty());
    lines
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn batch(label: Label) -> Batch {
        let item = Item { key: "k".into(), label, position: 0, index: 0 };
        Batch {
            index: 0,
            size: 2,
            pixels: vec![100; 12],
            items: vec![item],
            targets: vec![],
            rejected: vec![],
            epoch: 0.0,
        }
    }

    #[test]
    fn maps_tint_the_pixels_and_regions_are_outlined_where_they_lie() {
        let map = LabelMap { width: 2, height: 2, classes: vec![0, 1, 1, LabelMap::IGNORED] };
        let mut rgb = vec![100; 12];
        tint(&mut rgb, &map, |class| (class != LabelMap::IGNORED).then(|| colour(class.into())));
        assert_eq!(rgb[9..], [100, 100, 100], "what is ignored stays as it is");
        assert_eq!(rgb[3..6], rgb[6..9]);
        assert_ne!(rgb[..3], rgb[3..6]);
        let region = Region {
            class: 3,
            bounds: [0.0, 0.5, 1.0, 2.0],
            mask: Some(Mask::Polygons(vec![vec![[0.0, 0.5], [1.0, 0.5], [1.0, 2.0]]])),
            crowd: false,
        };
        let svg = draw("t", &batch(Label::Regions(vec![region])), None).standalone().unwrap();
        let half = SIDE / 2.0;
        let (top, tall) = (half / 2.0, 1.5 * half);
        let rect = format!("x=\"0.0\" y=\"{top:.1}\" width=\"{half:.1}\" height=\"{tall:.1}\"");
        assert!(
            svg.contains(&rect) && svg.contains("line h3") && svg.contains("1 object"),
            "{svg}"
        );
        assert!(svg.contains(&format!("points=\"0.0,{top:.1} {half:.1},{top:.1}")), "{svg}");
    }

    #[test]
    fn long_captions_are_wrapped_and_cut_with_an_ellipsis() {
        assert_eq!(wrapped("", 2), Vec::<String>::new());
        assert_eq!(wrapped("a red heart", 2), ["a red heart"]);
        let lines = wrapped(&"word ".repeat(40), 3);
        assert_eq!(lines.len(), 3);
        assert!(lines[2].ends_with('…') && lines.iter().all(|line| line.chars().count() <= 28));
    }
}
