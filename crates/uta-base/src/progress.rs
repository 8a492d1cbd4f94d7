//! The one place that draws progress bars, so that log lines and bars don't overwrite each other.

use std::io::Write;
use std::sync::LazyLock;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressFinish, ProgressStyle};

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// A bar over `length` of `unit`, already at `done`; invisible when standard error is no terminal. Cleared when an error
/// drops it, too: the error's line then stands alone.
pub fn bar(length: u64, done: u64, unit: &str) -> ProgressBar {
    let template = format!(
        "{{prefix:>9.bold}} {{bar:28.cyan/black.bright}} {{pos}}/{{len}} {unit}  {{msg}}  [{{elapsed_precise}} < {{eta_precise}}]"
    );
    let style =
        ProgressStyle::with_template(&template).expect("a fixed template").progress_chars("━╸━");
    let bar = BARS.add(
        ProgressBar::new(length)
            .with_style(style)
            .with_position(done)
            .with_finish(ProgressFinish::AndClear),
    );
    bar.reset_eta();
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// A speed for people; large networks on small machines get their decimals.
pub fn images_per_second(speed: f64) -> String {
    let decimals = if speed < 10.0 { 2 } else { 0 };
    format!("{speed:.decimals$} images/s")
}

/// A count with its noun: `1 shard`, `2 shards`, `3 classes`.
pub fn counted(count: usize, noun: &str) -> String {
    let ending = match noun {
        _ if count == 1 => "",
        _ if noun.ends_with('s') => "es",
        _ => "s",
    };
    format!("{count} {noun}{ending}")
}

/// Standard error for log lines: bars step aside while one is written. One that nobody reads any more (`2>&1 | head`) is no
/// reason to end.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let _ = BARS.suspend(|| std::io::stderr().write_all(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let _ = std::io::stderr().flush();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn one_is_singular_and_any_other_count_plural() {
        assert_eq!(counted(1, "shard"), "1 shard");
        assert_eq!(counted(0, "shard"), "0 shards");
        assert_eq!(counted(1, "class"), "1 class");
        assert_eq!(counted(2, "class"), "2 classes");
    }
}
