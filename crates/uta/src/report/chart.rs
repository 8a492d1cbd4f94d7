//! Line charts.

use std::fmt::Write as _;

use super::axes::{TICKS, Unit, count, minus, number, span, ticks};
use super::metrics::Curve;
use super::svg::{Anchor, Drawing, Escaped};

/// The number of distinct series colours; further series begin again.
const HUES: usize = 8;

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stroke {
    /// A line, with a mark at each point when there are few.
    Line,
    /// A thin, pale line: the values that a smoothed line was made from.
    Faint,
    /// A dashed level, the curve's last value, across the whole chart.
    Reference,
}

/// One curve of a chart.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in the legend; none is shown for an empty one.
    pub label: String,
    /// Number of the series colour; `None` is grey.
    pub hue: Option<usize>,
    /// How it is drawn.
    pub stroke: Stroke,
    /// Points (x, y); no line is drawn to a value that isn't finite.
    pub points: Curve,
}

/// Curves over a common axis.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Heading of the chart.
    pub title: String,
    /// Label of the x axis.
    pub x_label: String,
    /// Unit of y.
    pub unit: Unit,
    /// Whether y is logarithmic; only positive values are then drawn.
    pub logarithmic: bool,
    /// Whether long curves are drawn as their running mean, over a pale line of the measured values.
    pub noisy: bool,
    /// The curves, the topmost last.
    pub series: Vec<Series>,
}

/// Width of a chart, in the drawing's units.
pub const WIDTH: f64 = 480.0;

/// Height of a chart.
pub const HEIGHT: f64 = 280.0;

impl Chart {
    /// An empty chart of the metric `title` over training steps.
    pub fn over_steps(title: impl Into<String>, unit: Unit) -> Self {
        Self {
            title: title.into(),
            x_label: "step".into(),
            unit,
            logarithmic: false,
            noisy: true,
            series: Vec::new(),
        }
    }

    /// Adds a curve of the training steps.
    pub fn push(&mut self, label: impl Into<String>, hue: usize, curve: &Curve) {
        let (label, hue) = (label.into(), Some(hue));
        let measured = extremes(curve);
        let points = if self.noisy { smooth(curve) } else { measured.clone() };
        if points != measured {
            let (label, stroke) = (String::new(), Stroke::Faint);
            self.series.push(Series { label, hue, stroke, points: measured });
        }
        self.series.push(Series { label, hue, stroke: Stroke::Line, points });
    }

    /// Draws the chart at (0, 0), [`WIDTH`] x [`HEIGHT`], without the surrounding `<svg>`.
    ///
    /// The group carries the geometry that the report's script needs to read values off the curves.
    pub fn draw(&self, to: &mut Drawing) {
        let Some(frame) = Frame::fit(self) else { return };
        let Frame { left, top, right, bottom, .. } = frame;
        to.open(format_args!(
            "class=\"chart\" data-frame=\"{left:.1} {top:.1} {right:.1} {bottom:.1}\" \
             data-range=\"{} {} {} {}\" data-log=\"{}\" data-percent=\"{}\"",
            frame.x.0,
            frame.x.1,
            frame.y.0,
            frame.y.1,
            u8::from(self.logarithmic),
            u8::from(self.unit == Unit::Percent),
        ));
        to.text(0.0, 14.0, "title", Anchor::Start, &self.title);
        self.draw_legend(to);
        for tick in frame.y_ticks() {
            let y = frame.y_at(tick);
            to.line((left, y), (right, y), "grid");
            let label = frame.y_label(tick, self.unit);
            to.text(left - 8.0, y + 4.0, "small", Anchor::End, &label);
        }
        for tick in ticks(frame.x.0, frame.x.1) {
            let x = frame.x_at(tick);
            to.line((x, bottom), (x, bottom + 4.0), "axis");
            to.text(x, bottom + 18.0, "small", Anchor::Middle, &count(tick));
        }
        to.line((left, bottom), (right, bottom), "axis");
        to.text(left - 12.0, bottom + 18.0, "small", Anchor::End, &self.x_label);
        for series in &self.series {
            self.draw_series(to, &frame, series);
        }
        to.close();
    }

    fn draw_series(&self, to: &mut Drawing, frame: &Frame, series: &Series) {
        let hue = hue_class(series.hue);
        let label = Escaped(&series.label);
        match series.stroke {
            Stroke::Reference => {
                let Some(&(_, value)) = series.points.last() else { return };
                let y = frame.y_at(value);
                if y.is_finite() {
                    let (from, till) = (frame.left, frame.right);
                    to.element(format_args!(
                        "<path class=\"reference {hue}\" d=\"M{from:.1} {y:.1}H{till:.1}\"/>"
                    ));
                }
            }
            Stroke::Line | Stroke::Faint => {
                let class = if series.stroke == Stroke::Line { "line" } else { "faint" };
                let path = frame.path(&series.points);
                to.element(format_args!(
                    "<path class=\"{class} {hue}\" data-label=\"{label}\" d=\"{path}\"/>"
                ));
                if series.stroke == Stroke::Line && series.points.len() <= 24 {
                    for &(x, y) in &series.points {
                        let (x, y) = (frame.x_at(x), frame.y_at(y));
                        if y.is_finite() {
                            to.element(format_args!(
                                "<circle class=\"dot {hue}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\"/>"
                            ));
                        }
                    }
                }
            }
        }
    }

    /// The series that the legend names: all that have a name, unless it is a single curve.
    fn named(&self) -> Vec<&Series> {
        let named: Vec<_> = self.series.iter().filter(|series| !series.label.is_empty()).collect();
        if named.len() < 2 { Vec::new() } else { named }
    }

    fn legend_rows(&self) -> Vec<Vec<&Series>> {
        let mut rows: Vec<Vec<&Series>> = Vec::new();
        let mut room = 0.0;
        for series in self.named() {
            let width = legend_width(series);
            if width > room || rows.is_empty() {
                rows.push(Vec::new());
                room = WIDTH;
            }
            room -= width;
            if let Some(row) = rows.last_mut() {
                row.push(series);
            }
        }
        rows
    }

    fn draw_legend(&self, to: &mut Drawing) {
        for (row, entries) in self.legend_rows().into_iter().enumerate() {
            let y = 34.0 + LEGEND_ROW * row as f64;
            let mut x = 0.0;
            for series in entries {
                let class = if series.stroke == Stroke::Reference { "reference" } else { "line" };
                let hue = hue_class(series.hue);
                to.element(format_args!(
                    "<path class=\"{class} {hue}\" d=\"M{x:.1} {:.1}h14\"/>",
                    y - 4.0
                ));
                to.text(x + 19.0, y, "small", Anchor::Start, &series.label);
                x += legend_width(series);
            }
        }
    }
}

const LEGEND_ROW: f64 = 17.0;

fn legend_width(series: &Series) -> f64 {
    19.0 + text_width(&series.label) + 14.0
}

/// Roughly, at 11 px: enough to place things, and independent of the reader's font.
fn text_width(text: &str) -> f64 {
    6.1 * text.chars().count() as f64
}

fn hue_class(hue: Option<usize>) -> String {
    hue.map_or_else(|| "neutral".to_owned(), |hue| format!("h{}", hue % HUES))
}

/// The place of a chart's values in the drawing.
struct Frame {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
    x: (f64, f64),
    y: (f64, f64),
    logarithmic: bool,
}

impl Frame {
    /// `None` when there is nothing to draw.
    fn fit(chart: &Chart) -> Option<Self> {
        let logarithmic = chart.logarithmic;
        let visible = |y: f64| y.is_finite() && (!logarithmic || y > 0.0);
        let curves = chart.series.iter().filter(|series| series.stroke != Stroke::Reference);
        let x = span(curves.flat_map(|series| &series.points).map(|point| point.0))?;
        let ranging = chart.series.iter().flat_map(|series| {
            let mut values: Vec<f64> =
                series.points.iter().map(|point| point.1).filter(|&y| visible(y)).collect();
            // A few outliers of a noisy curve don't set the range.
            if series.stroke == Stroke::Faint {
                values.sort_by(f64::total_cmp);
                let outliers = values.len() / 50;
                values = values[outliers..values.len() - outliers].to_vec();
            }
            values
        });
        let mut y = span(ranging)?;
        if logarithmic {
            y = (y.0 / 1.25, y.1 * 1.25);
        } else {
            let room = if y.1 > y.0 { (y.1 - y.0) * 0.06 } else { y.1.abs().max(1e-9) * 0.1 };
            // A quantity that is never negative keeps zero as its floor.
            let floor = if y.0 >= 0.0 { 0.0 } else { f64::NEG_INFINITY };
            y = ((y.0 - room).max(floor), y.1 + room);
        }
        let mut frame = Self {
            left: 0.0,
            top: 34.0 + LEGEND_ROW * chart.legend_rows().len() as f64,
            right: WIDTH - 12.0,
            bottom: HEIGHT - 26.0,
            x: if x.1 > x.0 { x } else { (x.0 - 0.5, x.1 + 0.5) },
            y,
            logarithmic,
        };
        let labels = frame.y_ticks().into_iter().map(|tick| frame.y_label(tick, chart.unit));
        frame.left = 10.0 + labels.map(|label| text_width(&label)).fold(28.0, f64::max);
        Some(frame)
    }

    fn x_at(&self, x: f64) -> f64 {
        self.left + (x - self.x.0) / (self.x.1 - self.x.0) * (self.right - self.left)
    }

    /// Clamped a little outside the frame, so that an outlier leaves the picture instead of filling it.
    fn y_at(&self, y: f64) -> f64 {
        let share = if self.logarithmic {
            (y / self.y.0).ln() / (self.y.1 / self.y.0).ln()
        } else {
            (y - self.y.0) / (self.y.1 - self.y.0)
        };
        self.bottom - share.clamp(0.0, 1.0) * (self.bottom - self.top)
    }

    fn y_ticks(&self) -> Vec<f64> {
        if !self.logarithmic {
            return ticks(self.y.0, self.y.1);
        }
        let decades = (self.y.1 / self.y.0).log10();
        let steps: &[f64] = match decades {
            d if d > 3.0 => &[1.0],
            d if d > 1.0 => &[1.0, 2.0, 5.0],
            _ => &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
        };
        let first = self.y.0.log10().floor() as i32;
        (first..first + decades.ceil() as i32 + 2)
            .flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)))
            .filter(|tick| (self.y.0..=self.y.1).contains(tick))
            .collect()
    }

    fn y_label(&self, tick: f64, unit: Unit) -> String {
        let step = (self.y.1 - self.y.0) / TICKS;
        match unit {
            _ if tick.abs() < step * 1e-6 => if unit == Unit::Percent { "0 %" } else { "0" }.into(),
            _ if self.logarithmic => {
                let text = number(tick);
                if text.contains('.') {
                    text.trim_end_matches('0').trim_end_matches('.').to_owned()
                } else {
                    text
                }
            }
            Unit::Percent => {
                let digits = if step >= 0.01 {
                    0
                } else if step >= 0.001 {
                    1
                } else {
                    2
                };
                format!("{:.digits$} %", tick * 100.0)
            }
            Unit::Number if self.y.1.abs().max(self.y.0.abs()) >= 1000.0 => count(tick),
            Unit::Number if step < 2e-4 => number(tick),
            Unit::Number => {
                let digits = (0..4).find(|&digits| step * 10f64.powi(digits) >= 0.9).unwrap_or(4);
                minus(format!("{tick:.0$}", digits as usize))
            }
        }
    }

    fn path(&self, points: &Curve) -> String {
        let mut path = String::new();
        let mut pen_down = false;
        for &(x, y) in points {
            let (x, y) = (self.x_at(x), self.y_at(y));
            if y.is_finite() {
                let command = if pen_down { 'L' } else { 'M' };
                let _ = write!(path, "{command}{x:.1} {y:.1}");
            }
            pen_down = y.is_finite();
        }
        path
    }
}

/// The most points of a curve worth drawing.
const DRAWN: usize = 400;

/// The running mean over a fortieth of the curve, at no more than [`DRAWN`] places; a curve of few
/// points stays as it is. Steps are averaged like values: where the window is cut off at an end, the
/// point moves inwards instead of off the trend.
fn smooth(curve: &Curve) -> Curve {
    let n = curve.len();
    if n <= 40 {
        return curve.clone();
    }
    let reach = n / 80;
    let places = n.min(DRAWN);
    (0..places)
        .map(|place| {
            let i = place * (n - 1) / (places - 1);
            let window = &curve[i.saturating_sub(reach)..=(i + reach).min(n - 1)];
            let mean = |part: fn(&(f64, f64)) -> f64| {
                window.iter().map(part).sum::<f64>() / window.len() as f64
            };
            (mean(|point| point.0), mean(|point| point.1))
        })
        .collect()
}

/// The lowest and the highest point of each stretch of a long curve.
fn extremes(curve: &Curve) -> Curve {
    if curve.len() <= 2 * DRAWN {
        return curve.clone();
    }
    let mut kept = Curve::with_capacity(2 * DRAWN);
    for stretch in curve.chunks(curve.len().div_ceil(DRAWN)) {
        let order = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let ends = [stretch.iter().min_by(order), stretch.iter().max_by(order)];
        let mut ends: Vec<_> = ends.into_iter().flatten().copied().collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        kept.extend(ends);
    }
    kept
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use resvg::tiny_skia;
    use std::path::Path;

    fn chart(points: Curve) -> Chart {
        let mut chart = Chart::over_steps("loss <train>", Unit::Number);
        chart.push("a & b", 0, &points);
        chart
    }

    fn drawn(chart: &Chart) -> Drawing {
        let mut drawing = Drawing::new(WIDTH, HEIGHT);
        chart.draw(&mut drawing);
        drawing
    }

    #[test]
    fn a_running_mean_follows_a_straight_line_to_its_ends() {
        let line: Curve = (0..5000).map(|i| (f64::from(i), f64::from(i) * 2.0)).collect();
        let smoothed = smooth(&line);
        assert_eq!(smoothed.len(), DRAWN);
        assert!(smoothed[0].0 < 5000.0 / 80.0 && smoothed[DRAWN - 1].0 > 5000.0 * 79.0 / 80.0);
        assert!(smoothed.iter().all(|(x, y)| (y - 2.0 * x).abs() < 1e-6));
        let mut spiked = line.clone();
        spiked[2500].1 = 1e9;
        assert!(extremes(&spiked).contains(&(2500.0, 1e9)), "a spike must stay visible");
    }

    #[test]
    fn an_axis_spans_the_curve_and_the_line_stays_in_the_frame() {
        let points: Curve = (0..20).map(|i| (f64::from(i), (-f64::from(i)).exp())).collect();
        let frame = Frame::fit(&chart(points.clone())).unwrap();
        assert_eq!(frame.x_at(0.0), frame.left);
        assert_eq!(frame.x_at(19.0), frame.right);
        assert_eq!(frame.y.0, 0.0);
        for (_, y) in points {
            assert!((frame.top..=frame.bottom).contains(&frame.y_at(y)));
        }
    }

    #[test]
    fn what_is_not_finite_is_a_gap_and_nothing_at_all_draws_nothing() {
        let gap = chart(vec![(0.0, 1.0), (1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0), (4.0, 1.5)]);
        let svg = drawn(&gap).standalone().unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let path = svg.split("line h0\"").nth(1).unwrap().split("/>").next().unwrap();
        assert_eq!(path.matches('M').count(), 2);
        let nothing = Drawing::new(WIDTH, HEIGHT).standalone().unwrap();
        assert_eq!(drawn(&chart(vec![])).standalone().unwrap(), nothing);
        assert_eq!(drawn(&chart(vec![(0.0, f64::NAN)])).standalone().unwrap(), nothing);
    }

    #[test]
    fn a_chart_becomes_a_png_with_its_line_and_text_on_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/chart.png");
        drawn(&chart(vec![(0.0, 1.0), (1.0, 2.0)])).save(&path).unwrap();
        let picture = tiny_skia::Pixmap::load_png(&path).unwrap();
        assert_eq!((picture.width(), picture.height()), (1040, 640));
        let count = |colour: [u8; 3]| {
            let near = |a: u8, b: u8| a.abs_diff(b) < 24;
            let like = |p: &&tiny_skia::PremultipliedColorU8| {
                near(p.red(), colour[0]) && near(p.green(), colour[1]) && near(p.blue(), colour[2])
            };
            picture.pixels().iter().filter(like).count()
        };
        assert!(count([0x3a, 0x66, 0xd6]) > 1000, "the line");
        assert!(count([0x1c, 0x23, 0x30]) > 100, "the title, in the font of the program");
        let error = drawn(&chart(vec![(0.0, 1.0)])).save(Path::new("chart.pdf")).unwrap_err();
        assert!(error.to_string().contains("chart.pdf"), "{error}");
    }
}
