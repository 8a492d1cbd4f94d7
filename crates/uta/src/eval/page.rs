//! An evaluation's result as it is printed.

use std::io::{BufWriter, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};
use torch_ext::Precision;
use uta_data::Rejected;
use uta_eval::ranking::{interval, wilson};

use super::setup::Setup;

/// A printed result: what was measured on which data, every setting that can change a number, and the numbers.
pub struct Page {
    /// Whether this process is the one that prints.
    prints: bool,
    title: &'static str,
    settings: Vec<(&'static str, String)>,
    counts: Vec<(&'static str, usize, String)>,
    problems: Vec<String>,
    /// Doubts about what was read.
    pub warnings: Vec<String>,
    rows: Vec<(String, String)>,
}

/// Said of nets that know no text.
const NEVER_ALIGNED: &str = "the image encoder was never aligned with texts (masked image modelling): chance is to be expected before \
                             it is fine-tuned on pairs";

impl Page {
    pub fn new(title: &'static str, setup: &Setup, text: Option<&Path>) -> Page {
        let mut settings = vec![("model", setup.args.model.path.display().to_string())];
        settings.extend(text.map(|text| ("text tower", text.display().to_string())));
        settings.push(("data", setup.args.data.join(" ")));
        settings.push(("images", setup.options.transform(&setup.model.config).to_string()));
        let precision = match setup.options.precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16 (autocast), scores in f32",
        };
        settings.push(("precision", format!("{precision} on {:?}", setup.device).to_lowercase()));
        let problems = setup.source.problems();
        let prints = setup.options.group.is_first();
        let (counts, mut warnings, rows) = (Vec::new(), Vec::new(), Vec::new());
        if !setup.model.config.is_aligned() {
            warnings.push(NEVER_ALIGNED.to_owned());
        }
        Page { prints, title, settings, counts, problems, warnings, rows }
    }

    pub fn setting(&mut self, name: &'static str, value: impl ToString) {
        self.settings.push((name, value.to_string()));
    }

    pub fn count(&mut self, name: &'static str, n: usize) {
        self.counts.push((name, n, String::new()));
    }

    /// Adds a count where it isn't 0, with the first few names of what it counts.
    pub fn left_out(
        &mut self,
        name: &'static str,
        n: usize,
        which: impl IntoIterator<Item = String>,
    ) {
        const SHOWN: usize = 3;
        if n > 0 {
            let mut which: Vec<String> = which.into_iter().take(SHOWN + 1).collect();
            if which.len() > SHOWN {
                which[SHOWN] = "...".into();
            }
            self.counts.push((name, n, which.join(", ")));
        }
    }

    pub fn unreadable(&mut self, rejected: &[Rejected]) {
        let keys = rejected.iter().map(|rejected| rejected.key.clone());
        self.left_out("unreadable, left out", rejected.len(), keys);
    }

    pub fn share(&mut self, name: &str, value: f64, n: usize, chance: f64) {
        let (low, high) = wilson(value, n);
        let line = format!(
            "{:6.2} %   95 % interval {:5.2} to {:5.2}   chance {:.2}",
            100.0 * value,
            100.0 * low,
            100.0 * high,
            100.0 * chance
        );
        self.rows.push((name.to_string(), line));
    }

    pub fn percent(&mut self, name: &str, value: f64) {
        self.rows.push((name.to_string(), format!("{:6.2} %", 100.0 * value)));
    }

    pub fn mean(&mut self, name: &str, mean: f64, std: Option<f64>, n: usize) {
        let spread = interval(mean, std, n).zip(std).map(|((low, high), std)| {
            format!(
                "   95 % interval {low:.4} to {high:.4}   standard deviation over images {std:.4}"
            )
        });
        self.rows.push((name.to_string(), format!("{mean:8.4}{}", spread.unwrap_or_default())));
    }

    /// Prints the page, or with `json` the report as one object, with `extra` members, the settings, and the samples that were
    /// left out when the set was opened.
    pub fn print<R: Serialize>(
        self,
        json: bool,
        report: &R,
        extra: impl FnOnce(&R, &mut Map<String, Value>),
    ) -> anyhow::Result<()> {
        if !self.prints {
            return Ok(());
        }
        let mut out = BufWriter::new(std::io::stdout().lock());
        if json {
            let Value::Object(mut object) = serde_json::to_value(report)? else {
                anyhow::bail!("a report is an object");
            };
            extra(report, &mut object);
            object.insert("problems".into(), json!(self.problems));
            object.insert("warnings".into(), json!(self.warnings));
            let settings: Map<String, Value> = self
                .settings
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect();
            object.insert("settings".into(), settings.into());
            line(&mut out, &object)?;
        } else {
            writeln!(out, "{}", self.title)?;
            for (name, value) in &self.settings {
                writeln!(out, "  {name:<24} {value}")?;
            }
            for (name, n, which) in &self.counts {
                let value = format!("{n}  {which}");
                writeln!(out, "  {name:<24} {}", value.trim_end())?;
            }
            for problem in &self.problems {
                writeln!(out, "  {:<24} {problem}", "left out")?;
            }
            for warning in &self.warnings {
                writeln!(out, "  {:<24} {warning}", "WARNING")?;
            }
            writeln!(out)?;
            for (name, value) in &self.rows {
                writeln!(out, "  {name:<24} {value}")?;
            }
        }
        Ok(out.flush()?)
    }
}

/// Writes `value` as a line of JSON.
pub fn line(out: &mut impl Write, value: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}
