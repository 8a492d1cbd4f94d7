//! A table as its file describes it: columns, sets, models and published values.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::error::Usage;

/// A table as its file describes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    pub title: String,
    /// The `uta eval` command that makes the cells.
    pub measure: Measure,
    /// Whether a last column shows the mean of the others.
    #[serde(default)]
    pub average: bool,
    /// Percent by which two values may differ without a mark, both rounded to the paper's decimal.
    pub tolerance: f64,
    /// Heads of the columns that describe a model.
    pub labels: Vec<String>,
    /// Sources of the published values: `paper`, `open_clip`.
    pub sources: BTreeMap<String, String>,
    pub columns: Vec<Column>,
    pub sets: Vec<Set>,
    pub models: Vec<Model>,
    /// Texts that models refer to.
    #[serde(default)]
    pub notes: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    Zeroshot,
    Retrieval,
}

impl Measure {
    pub fn command(self) -> &'static str {
        match self {
            Measure::Zeroshot => "zeroshot",
            Measure::Retrieval => "retrieval",
        }
    }
}

/// A column of values.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    pub name: String,
    /// Heads above it, outermost first. Equal heads of neighbouring columns are joined.
    #[serde(default)]
    pub above: Vec<String>,
    /// Name of the set that it is measured on.
    pub set: String,
    /// Path of its value, a share, in the command's JSON: `top1`, `image_to_text.r1`.
    pub value: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Set {
    pub name: String,
    /// Below `--data`, or absolute.
    pub data: PathBuf,
    /// The images of a table of pairs, below `--data` too.
    pub images: Option<PathBuf>,
    /// More options for the command.
    #[serde(default)]
    pub args: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    pub name: String,
    /// Below `--models`, or absolute; the name when left out.
    pub path: Option<PathBuf>,
    /// Model whose text tower it uses, where it has none; also below `--models`, or absolute.
    pub text_model: Option<PathBuf>,
    /// More options for the command.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its description, a cell for each of the table's labels.
    pub labels: Vec<String>,
    /// The paper's percentages, and its average where there is one.
    #[serde(default)]
    pub paper: Vec<f64>,
    /// open_clip's published percentages.
    #[serde(default)]
    pub open_clip: Vec<f64>,
    /// Names of notes on it.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Table {
    pub fn read(path: &Path) -> anyhow::Result<Table> {
        let fail = |what: String| Usage(format!("{}: {what}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
        let table: Table = toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            fail(format!("line {line}: {}", e.message()))
        })?;
        table.check().map_err(fail)?;
        Ok(table)
    }

    fn check(&self) -> Result<(), String> {
        if self.columns.is_empty() {
            return Err("no columns".into());
        }
        let sets: Vec<&str> = self.sets.iter().map(|set| set.name.as_str()).collect();
        let models: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
        for names in [&sets, &models] {
            let mut seen = BTreeSet::new();
            for name in names {
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
                    return Err(format!("{name:?} names files: use letters, digits, -, _ and ."));
                }
                if !seen.insert(name) {
                    return Err(format!("two are called {name}"));
                }
            }
        }
        if let Some(model) = self.models.iter().find(|model| model.labels.is_empty()) {
            return Err(format!("model {}: labels is empty; say what the model is", model.name));
        }
        for Column { name, set, above, .. } in &self.columns {
            if !sets.contains(&set.as_str()) {
                return Err(format!(
                    "column {name}: no set is called {set}; there are {}",
                    sets.join(", ")
                ));
            }
            if above.len() != self.columns[0].above.len() {
                return Err(format!(
                    "column {name} has {} heads above it, others another number",
                    above.len()
                ));
            }
        }
        let columns = self.columns.len();
        for Model { name, labels, paper, open_clip, notes, .. } in &self.models {
            let with_average = columns + usize::from(self.average);
            for (what, found, wanted) in [
                ("labels", labels.len(), self.labels.len()),
                ("values of the paper", paper.len(), with_average),
                ("values of open_clip", open_clip.len(), columns),
            ] {
                if found != wanted && (found > 0 || what == "labels") {
                    return Err(format!("model {name}: {found} {what}, not {wanted}"));
                }
            }
            if let Some(note) = notes.iter().find(|note| !self.notes.contains_key(*note)) {
                return Err(format!("model {name}: there is no note {note}"));
            }
        }
        if models.is_empty() { Err("no models".into()) } else { Ok(()) }
    }
}

impl Column {
    /// Its percentage in a report.
    pub fn find(&self, report: &Value) -> Option<f64> {
        let value = self.value.split('.').try_fold(report, |value, key| value.get(key));
        Some(100.0 * value?.as_f64()?)
    }
}
