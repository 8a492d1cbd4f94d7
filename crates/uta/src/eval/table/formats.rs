//! A table as text for the terminal, and as Markdown, CSV, LaTeX and JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::description::Column;
use super::values::{Origin, Rendered, same_head};

impl Rendered<'_> {
    pub fn terminal(&self) -> String {
        let (heads, mut lines) = (self.heads(), self.lines());
        let left = self.table.labels.len() + 1;
        // Points stand under each other, whatever decimals and marks follow.
        let after = |cell: &str| cell.find('.').map_or(0, |at| cell[at..].chars().count());
        for i in left..lines[0].len() {
            let most = lines.iter().map(|line| after(&line[i])).max().unwrap_or(0);
            for line in &mut lines {
                let pad = most - after(&line[i]);
                line[i].push_str(&" ".repeat(pad));
            }
        }
        let heads: Vec<Vec<String>> =
            heads.iter().map(|head| head.iter().map(|cell| cell.to_string()).collect()).collect();
        let chars = |s: &String| s.chars().count();
        // Heads above are printed once over their columns and need no room of their own.
        let named = heads.last().into_iter().chain(&lines);
        let widths: Vec<usize> = (0..lines[0].len())
            .map(|i| named.clone().map(|row| chars(&row[i])).max().unwrap_or(0))
            .collect();
        let mut page = format!("{}\n\n", self.table.title);
        for (level, head) in heads.iter().enumerate() {
            let mut line = String::new();
            for (i, cell) in head.iter().enumerate() {
                let last = level + 1 == heads.len();
                let repeated = !last && i > 0 && same_head(&heads, level, i);
                if repeated || (!last && cell.is_empty()) {
                    continue;
                }
                let start: usize = widths[..i].iter().map(|w| w + 2).sum();
                let pad = if last && i >= left { widths[i] - chars(cell) } else { 0 };
                let _ = write!(line, "{:1$}{cell}", "", (start + pad).saturating_sub(chars(&line)));
            }
            let _ = writeln!(page, "{}", line.trim_end());
        }
        let _ = writeln!(page, "{}", "-".repeat(widths.iter().map(|w| w + 2).sum::<usize>() - 2));
        for line in &lines {
            let mut text = String::new();
            for (i, cell) in line.iter().enumerate() {
                let gap = " ".repeat(widths[i] - chars(cell));
                let (before, after) =
                    if i < left { ("", gap.as_str()) } else { (gap.as_str(), "") };
                let _ = write!(text, "{before}{cell}{after}  ");
            }
            let _ = writeln!(page, "{}", text.trim_end());
        }
        page.push('\n');
        self.below().iter().for_each(|line| page.push_str(&format!("{line}\n")));
        page
    }

    pub fn markdown(&self) -> String {
        let cell = |text: &str| text.replace('|', "\\|").replace('*', "\\*");
        let mut page = format!("**{}**\n\n", self.table.title);
        // Markdown has one row of heads: those above are said in each.
        let heads = self.heads();
        let joined = (0..heads[0].len()).map(|i| {
            let parts: Vec<&str> =
                heads.iter().map(|head| head[i]).filter(|h| !h.is_empty()).collect();
            cell(&parts.join(" "))
        });
        let joined: Vec<String> = joined.collect();
        let _ = writeln!(page, "| {} |", joined.join(" | "));
        let left = self.table.labels.len() + 1;
        let rule = (0..joined.len()).map(|i| if i < left { "---" } else { "---:" });
        let _ = writeln!(page, "|{}|", rule.collect::<Vec<_>>().join("|"));
        for line in self.lines() {
            let cells: Vec<String> = line.iter().map(|text| cell(text)).collect();
            let _ = writeln!(page, "| {} |", cells.join(" | "));
        }
        page.push('\n');
        for line in self.below() {
            let _ = writeln!(page, "- {}", cell(&line));
        }
        page
    }

    /// For programs: a line for each value, with the marks in columns of their own.
    pub fn csv(&self) -> anyhow::Result<String> {
        let mut csv = csv::Writer::from_writer(vec![]);
        csv.write_record([
            "model",
            "from",
            "column",
            "set",
            "percent",
            "differs_from_paper",
            "differs_from_open_clip",
        ])?;
        for row in &self.rows {
            for (i, value) in row.values.iter().enumerate() {
                let (name, set) = match self.table.columns.get(i) {
                    Some(Column { name, above, set, .. }) => {
                        let parts: Vec<&str> =
                            above.iter().chain([name]).map(String::as_str).collect();
                        (parts.join(" "), set.as_str())
                    }
                    None => ("Average".into(), ""),
                };
                let [percent, paper, open_clip] = match value {
                    None => [(); 3].map(|()| String::new()),
                    Some(v) => [v.value.to_string(), v.paper.to_string(), v.open_clip.to_string()],
                };
                csv.write_record([
                    &row.model.name,
                    row.origin.name(),
                    &name,
                    set,
                    &percent,
                    &paper,
                    &open_clip,
                ])?;
            }
        }
        Ok(String::from_utf8(csv.into_inner()?)?)
    }

    /// A `table` for a paper that loads booktabs and graphicx.
    pub fn latex(&self) -> String {
        let escape = |text: &str| {
            let mut safe = String::new();
            for c in text.chars() {
                match c {
                    '&' | '%' | '$' | '#' | '_' | '{' | '}' => safe.extend(['\\', c]),
                    '\\' => safe.push_str("\\textbackslash{}"),
                    '~' => safe.push_str("\\textasciitilde{}"),
                    '^' => safe.push_str("\\textasciicircum{}"),
                    '*' => safe.push_str("$^{*}$"),
                    '°' => safe.push_str("$^{\\circ}$"),
                    '–' => safe.push_str("--"),
                    c => safe.push(c),
                }
            }
            safe
        };
        let (heads, left) = (self.heads(), self.table.labels.len() + 1);
        let columns = heads[0].len();
        let mut page =
            String::from("% \\usepackage{booktabs,graphicx}\n\\begin{table}\n\\centering\n");
        let _ = writeln!(page, "\\caption{{{}}}", escape(&self.table.title));
        let _ = writeln!(page, "\\resizebox{{\\linewidth}}{{!}}{{%");
        let _ = writeln!(
            page,
            "\\begin{{tabular}}{{{}{}}}",
            "l".repeat(left),
            "r".repeat(columns - left)
        );
        page.push_str("\\toprule\n");
        let whole: Vec<Vec<String>> =
            heads.iter().map(|head| head.iter().map(|cell| cell.to_string()).collect()).collect();
        for (level, head) in heads.iter().enumerate() {
            let last = level + 1 == heads.len();
            let (mut cells, mut rules, mut i) = (vec![], String::new(), 0);
            while i < columns {
                let mut end = i + 1;
                while !last && end < columns && same_head(&whole, level, end) {
                    end += 1;
                }
                cells.push(match end - i {
                    _ if head[i].is_empty() => "& ".repeat(end - i - 1).trim_end().to_string(),
                    1 => escape(head[i]),
                    n => {
                        let _ = write!(rules, "\\cmidrule(lr){{{}-{end}}}", i + 1);
                        format!("\\multicolumn{{{n}}}{{c}}{{{}}}", escape(head[i]))
                    }
                });
                i = end;
            }
            let _ = writeln!(page, "{} \\\\{rules}", cells.join(" & "));
        }
        page.push_str("\\midrule\n");
        for (i, (line, row)) in self.lines().iter().zip(&self.rows).enumerate() {
            if i > 0 && row.origin == Origin::Uta {
                page.push_str("\\addlinespace\n");
            }
            let cells: Vec<String> = line.iter().map(|cell| escape(cell)).collect();
            let _ = writeln!(page, "{} \\\\", cells.join(" & "));
        }
        page.push_str("\\bottomrule\n\\end{tabular}}\n\n\\footnotesize\\raggedright\n");
        self.below().iter().for_each(|line| page.push_str(&format!("{}\\par\n", escape(line))));
        page.push_str("\\end{table}\n");
        page
    }

    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let values: Vec<Value> = row
                    .values
                    .iter()
                    .map(|value| match value {
                        None => Value::Null,
                        Some(v) => json!({
                            "percent": v.value,
                            "differs_from_paper": v.paper,
                            "differs_from_open_clip": v.open_clip,
                        }),
                    })
                    .collect();
                json!({ "model": row.model.name, "labels": row.model.labels, "from": row.origin.name(),
                        "notes": row.model.notes, "values": values })
            })
            .collect();
        let columns: Vec<Value> = self
            .table
            .columns
            .iter()
            .map(|c| json!({ "name": c.name, "above": c.above, "set": c.set, "value": c.value }))
            .collect();
        json!({ "title": self.table.title, "columns": columns, "average": self.table.average,
                "rows": rows, "caveats": self.caveats, "gaps": self.gaps, "notes": self.table.notes, "sources": self.table.sources })
    }
}
