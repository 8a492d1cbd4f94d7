//! The values of a table, marked where they differ from published ones.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::cell::{Gap, Reason};
use super::description::{Model, Table};
use crate::error::Usage;

/// A table with its values, ready to be written in any format.
pub struct Rendered<'a> {
    pub table: &'a Table,
    pub rows: Vec<Row<'a>>,
    /// The notes that models have, numbered from 1.
    pub notes: Vec<&'a str>,
    /// Lines on samples that measured cells left out.
    pub caveats: Vec<String>,
    pub gaps: Vec<Gap>,
}

/// A row: the values of one origin for one model.
pub struct Row<'a> {
    pub model: &'a Model,
    pub origin: Origin,
    pub values: Vec<Option<Marked>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Uta,
    Paper,
    OpenClip,
}

impl Origin {
    pub fn name(self) -> &'static str {
        match self {
            Origin::Uta => "uta",
            Origin::Paper => "paper",
            Origin::OpenClip => "open_clip",
        }
    }

    /// A percentage with the decimals that the origin gives.
    fn format(self, value: f64) -> String {
        match self {
            Origin::Paper => format!("{value:.1}"),
            Origin::Uta | Origin::OpenClip => format!("{value:.2}"),
        }
    }
}

/// A percentage, and whether it differs from the paper's and from open_clip's.
#[derive(Clone, Copy, Debug)]
pub struct Marked {
    pub value: f64,
    pub paper: bool,
    pub open_clip: bool,
}

const PAPER_MARK: &str = "*";

const OPEN_CLIP_MARK: &str = "°";

impl<'a> Rendered<'a> {
    pub fn new(
        table: &'a Table,
        reports: &BTreeMap<(&str, &str), Value>,
        gaps: Vec<Gap>,
    ) -> Rendered<'a> {
        let mean = |values: &[Option<f64>]| {
            let all: Option<Vec<f64>> = values.iter().copied().collect();
            all.map(|all| all.iter().sum::<f64>() / all.len() as f64)
        };
        let (mut rows, mut notes) = (vec![], vec![]);
        for model in &table.models {
            for note in &model.notes {
                if !notes.contains(&note.as_str()) {
                    notes.push(note);
                }
            }
            let measured = table.columns.iter().map(|column| {
                column.find(reports.get(&(model.name.as_str(), column.set.as_str()))?)
            });
            let mut measured: Vec<Option<f64>> = measured.collect();
            let mut paper: Vec<Option<f64>> = model.paper.iter().map(|&v| Some(v)).collect();
            let mut open_clip: Vec<Option<f64>> =
                model.open_clip.iter().map(|&v| Some(v)).collect();
            if table.average {
                measured.push(mean(&measured));
                open_clip.push(mean(&open_clip).filter(|_| !model.open_clip.is_empty()));
            }
            let width = table.columns.len() + usize::from(table.average);
            paper.resize(width, None);
            open_clip.resize(width, None);
            let differs = |a: f64, b: Option<f64>| {
                let round = |x: f64| (10.0 * x).round() / 10.0;
                b.is_some_and(|b| (round(a) - round(b)).abs() > table.tolerance + 1e-6)
            };
            for (origin, values) in
                [(Origin::Uta, &measured), (Origin::Paper, &paper), (Origin::OpenClip, &open_clip)]
            {
                if origin != Origin::Uta && values.iter().all(Option::is_none) {
                    continue;
                }
                let marked = values.iter().enumerate().map(|(i, value)| {
                    let value = (*value)?;
                    Some(Marked {
                        value,
                        paper: origin == Origin::Uta && differs(value, paper[i]),
                        open_clip: origin != Origin::OpenClip && differs(value, open_clip[i]),
                    })
                });
                rows.push(Row { model, origin, values: marked.collect() });
            }
        }
        let caveats = reports.iter().flat_map(|((model, set), report)| {
            caveats(report).into_iter().map(move |what| format!("{model} on {set}: {what}."))
        });
        Rendered { table, rows, notes, caveats: caveats.collect(), gaps }
    }

    /// Rows of heads, outermost first, each as long as a row of values.
    pub fn heads(&self) -> Vec<Vec<&str>> {
        let (first, left) = (&self.table.columns[0], self.table.labels.len() + 1);
        let mut heads: Vec<Vec<&str>> = (0..first.above.len())
            .map(|level| {
                let above = self.table.columns.iter().map(|column| column.above[level].as_str());
                std::iter::repeat_n("", left).chain(above).collect()
            })
            .collect();
        let labels = self.table.labels.iter().map(String::as_str).chain(["from"]);
        heads.push(labels.chain(self.table.columns.iter().map(|c| c.name.as_str())).collect());
        if self.table.average {
            let levels = heads.len();
            for (level, head) in heads.iter_mut().enumerate() {
                head.push(if level + 1 == levels { "Average" } else { "" });
            }
        }
        heads
    }

    /// The numbers of a model's notes, like "1, 2".
    fn note_numbers(&self, model: &Model) -> String {
        let number = |note: &String| self.notes.iter().position(|known| known == note);
        let numbers: Vec<String> =
            model.notes.iter().filter_map(number).map(|i| (i + 1).to_string()).collect();
        numbers.join(", ")
    }

    /// The cells of each row: the model's labels (in its first row), the origin of the values, and the values.
    pub fn lines(&self) -> Vec<Vec<String>> {
        self.rows
            .iter()
            .map(|row| {
                let mut labels = row.model.labels.clone();
                let numbers = self.note_numbers(row.model);
                if row.origin != Origin::Uta {
                    labels.iter_mut().for_each(String::clear);
                } else if !numbers.is_empty() {
                    let _ = write!(labels[0], " [{numbers}]");
                }
                labels.push(row.origin.name().into());
                labels.extend(row.values.iter().map(|value| match value {
                    None => "–".into(),
                    Some(Marked { value, paper, open_clip }) => {
                        let paper = if *paper { PAPER_MARK } else { "" };
                        let open_clip = if *open_clip { OPEN_CLIP_MARK } else { "" };
                        format!("{}{paper}{open_clip}", row.origin.format(*value))
                    }
                }));
                labels
            })
            .collect()
    }

    /// The lines below the table: marks, sources, notes, gaps.
    pub fn below(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{PAPER_MARK} differs from the paper's value by more than {} points, {OPEN_CLIP_MARK} from open_clip's; – not measured.",
            self.table.tolerance
        )];
        lines.extend(self.table.sources.iter().map(|(name, source)| format!("{name}: {source}.")));
        let notes = self.notes.iter().zip(1..);
        lines.extend(notes.map(|(note, i)| format!("[{i}] {}", self.table.notes[*note])));
        lines.extend(self.caveats.iter().cloned());
        lines.extend(self.gap_lines());
        lines
    }

    /// A line for each reason, since one missing path empties many cells.
    fn gap_lines(&self) -> Vec<String> {
        let mut by_reason: BTreeMap<Reason, Vec<&Gap>> = BTreeMap::new();
        for gap in &self.gaps {
            let reasons = match &gap.reason {
                Reason::Missing(paths) => {
                    paths.iter().map(|path| Reason::Missing(vec![path.clone()])).collect()
                }
                failed => vec![failed.clone()],
            };
            for reason in reasons {
                by_reason.entry(reason).or_default().push(gap);
            }
        }
        let line = |(reason, gaps): (Reason, Vec<&Gap>)| {
            let one = |f: fn(&Gap) -> &str| gaps.iter().all(|gap| f(gap) == f(gaps[0]));
            let place = match (one(|gap| &gap.model), one(|gap| &gap.set)) {
                (true, true) => format!("{} on {}", gaps[0].model, gaps[0].set),
                (true, false) => gaps[0].model.clone(),
                (false, true) => format!("{} models on {}", gaps.len(), gaps[0].set),
                (false, false) => format!("{} cells", gaps.len()),
            };
            format!("gap: {place}: {reason}.")
        };
        by_reason.into_iter().map(line).collect()
    }

    /// An error that counts the gaps: a table with holes is no success to a script.
    pub fn complete(&self) -> anyhow::Result<()> {
        if self.gaps.is_empty() {
            return Ok(());
        }
        let (gaps, cells) = (self.gaps.len(), self.table.models.len() * self.table.sets.len());
        let message = format!("{gaps} of {cells} cells are gaps; the table says why");
        if self.gaps.iter().all(|gap| matches!(gap.reason, Reason::Missing(_))) {
            Err(Usage(message).into())
        } else {
            anyhow::bail!(message)
        }
    }
}

/// Lines on images that were left out, or whose number isn't the published one.
fn caveats(report: &Value) -> Vec<String> {
    let count = |key: &str| report.get(key).and_then(Value::as_u64);
    let mut found = vec![];
    if let Some(n) = report["rejected"].as_array().map(Vec::len).filter(|&n| n > 0) {
        found.push(format!("{n} images unreadable, left out"));
    }
    for (key, what) in [("unlabelled", "without a class"), ("without_caption", "without a caption")]
    {
        found.extend(count(key).filter(|&n| n > 0).map(|n| format!("{n} images {what}, left out")));
    }
    let published = &report["published"];
    for (key, what, published) in [
        ("n", "images", published.as_u64()),
        ("images", "images", published["images"].as_u64()),
        ("captions", "captions", published["captions"].as_u64()),
    ] {
        if let (Some(n), Some(published)) = (count(key), published)
            && n != published
        {
            found.push(format!("{n} {what}, {published} are published"));
        }
    }
    let problems = report["problems"].as_array().into_iter().flatten();
    found.extend(problems.filter_map(Value::as_str).map(String::from));
    found
}

/// Whether the head at `level` over column `i` continues that of the column before: it and all above it are the same.
pub fn same_head(heads: &[Vec<String>], level: usize, i: usize) -> bool {
    heads[..=level].iter().all(|head| head[i] == head[i - 1])
}
