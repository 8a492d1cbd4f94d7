//! Axes of charts: round ticks, and how values are written on them.

/// How values are written on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// As they are.
    Number,
    /// A share, as a percentage.
    Percent,
}

impl Unit {
    /// The unit of the number called `metric`: percent for those that are shares by their definition.
    pub fn of(metric: &str) -> Self {
        let name = metric.rsplit(['/', '_']).next().unwrap_or(metric);
        let cut_off = name.strip_prefix("top").or(name.strip_prefix('r'));
        let ranked =
            cut_off.is_some_and(|k| !k.is_empty() && k.bytes().all(|b| b.is_ascii_digit()));
        if ranked || metric == "data_wait" { Self::Percent } else { Self::Number }
    }

    /// A value by itself, to about three digits.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Percent if value == 0.0 => "0 %".into(),
            Self::Percent if value.abs() < 0.001 => {
                format!("{:.3} %", value * 100.0)
            }
            Self::Percent if value.abs() < 0.0995 => format!("{:.2} %", value * 100.0),
            Self::Percent => format!("{:.1} %", value * 100.0),
            Self::Number => number(value),
        }
    }
}

pub fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |span, value| {
        let (low, high) = span.unwrap_or((value, value));
        Some((value.min(low), value.max(high)))
    })
}

/// The most steps between the ticks of an axis.
pub const TICKS: f64 = 6.0;

/// Round values within low..=high, evenly spaced.
pub fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / TICKS;
    if !(rough.is_finite() && rough > 0.0) {
        return vec![low];
    }
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(10.0 * power);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// A value to three digits.
pub fn number(value: f64) -> String {
    let size = value.abs();
    minus(match size {
        0.0 => "0".to_owned(),
        _ if !(1e-3..1e6).contains(&size) => {
            let text = format!("{value:.1e}");
            text.replace(".0e", "e")
        }
        _ if size >= 99.95 => format!("{value:.0}"),
        _ if size >= 9.995 => format!("{value:.1}"),
        _ if size >= 0.0995 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    })
}

/// A count: 250, 1.5k, 20k, 3M.
pub fn count(value: f64) -> String {
    let (value, suffix) = match value.abs() {
        size if size >= 1e9 => (value / 1e9, "G"),
        size if size >= 1e6 => (value / 1e6, "M"),
        size if size >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = format!("{value:.2}");
    minus(format!("{}{suffix}", text.trim_end_matches('0').trim_end_matches('.')))
}

pub fn minus(text: String) -> String {
    text.replace('-', "\u{2212}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within_the_range() {
        assert_eq!(ticks(0.0, 1000.0), [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]);
        let found = ticks(-0.93, -0.11);
        assert!(found.iter().all(|tick| (-0.93..=-0.11).contains(tick)), "{found:?}");
        assert_eq!(found.len(), 4);
        assert_eq!(ticks(3.0, 3.0), [3.0]);
    }

    #[test]
    fn values_are_written_to_about_three_digits() {
        assert_eq!(number(-0.92345), "\u{2212}0.923");
        assert_eq!(number(1.5e-3), "0.0015");
        assert_eq!(number(2e-5), "2e\u{2212}5");
        assert_eq!(count(1500.0), "1.5k");
        assert_eq!(Unit::of("text_to_image/r1"), Unit::Percent);
        assert_eq!(Unit::of("top5").show(0.1256), "12.6 %");
        assert_eq!(Unit::of("top1").show(1.0 / 1607.0), "0.062 %");
        assert_eq!(Unit::of("learning_rate"), Unit::Number);
        assert_eq!(Unit::of("rate"), Unit::Number);
        assert_eq!(Unit::of("batch_top1"), Unit::Percent);
        assert_eq!(Unit::of("data_wait"), Unit::Percent);
    }
}
