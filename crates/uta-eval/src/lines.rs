//! Lists that people write: class names, templates, labels.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use uta_data::without_mark;

use crate::EvalError;

/// A path as a person would write it: below the working directory, relative to it.
pub(crate) fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

/// The lines of a list; blank ones at the end don't count, a blank one between is refused, as it would shift labels.
pub(crate) fn lines(path: &Path) -> Result<Vec<String>, EvalError> {
    let text = read(path)?;
    let lines: Vec<String> = text.trim_end().lines().map(|line| line.trim().to_string()).collect();
    match lines.iter().position(String::is_empty) {
        Some(at) => Err(EvalError::Prompts {
            path: path.display().to_string(),
            message: format!("line {} is empty; one entry a line is needed", at + 1),
        }),
        None => Ok(lines),
    }
}

/// A text of a size that lists have, without a byte order mark.
pub(crate) fn read(path: &Path) -> Result<String, EvalError> {
    const LONGEST: u64 = 1 << 26;
    let mut text = String::new();
    let file = File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text));
    file.map_err(|source| EvalError::Read { path: path.to_path_buf(), source })?;
    Ok(without_mark(&text).to_owned())
}

/// "3 folders: a, b, c", with the first few only.
pub(crate) fn listed(names: &[String], what: &str) -> String {
    const SHOWN: usize = 5;
    let what = if what.is_empty() { String::new() } else { format!("{} {what}: ", names.len()) };
    let more =
        if names.len() > SHOWN { format!(", ... ({} in all)", names.len()) } else { String::new() };
    match names {
        [] => format!("no {}", what.trim_start_matches("0 ").trim_end_matches(": ")),
        _ => format!("{what}{}{more}", names[..names.len().min(SHOWN)].join(", ")),
    }
}
