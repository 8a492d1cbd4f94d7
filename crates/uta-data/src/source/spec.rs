//! Data specs: the paths that a folder's name, a pattern or braces mean.

use std::path::{Path, PathBuf};

use glob::MatchOptions;

use crate::error::DataError;
use crate::storage::local::has_extension;
use crate::storage::{is_file, is_url, tars, tars_at};

/// Extensions of tables of pairs.
const TABLES: [&str; 7] = ["csv", "tsv", "jsonl", "ndjson", "json", "parquet", "txt"];

/// Whether a file, or a spec, is a table of pairs by its extension.
pub fn is_table(path: impl AsRef<Path>) -> bool {
    TABLES.iter().any(|extension| has_extension(path.as_ref(), extension))
}

/// The shards that a spec means.
///
/// # Errors
/// When it means something else, or nothing.
pub(crate) fn shards_of(spec: &str) -> Result<Vec<PathBuf>, DataError> {
    shards(spec, expand(spec)?)
}

pub(super) fn shards(spec: &str, mut paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, DataError> {
    let wrong = |reason| Err(DataError::NotFound { spec: spec.to_owned(), reason });
    if let [dir] = paths.as_slice()
        && dir.is_dir()
    {
        paths = tars(dir)?;
    } else if paths.len() > 1 {
        paths.retain(|path| {
            let folder = has_extension(path, "tar") && path.is_dir();
            if folder {
                tracing::warn!("{} is a folder, and no shard: left out", path.display());
            }
            !folder
        });
    }
    let is_shard = |path: &&PathBuf| has_extension(path, "tar") && (is_file(path));
    match paths.iter().find(|path| !is_shard(path)) {
        Some(url) if is_url(url) => wrong(format!(
            "{} is no .tar: only shards are read from elsewhere (a folder of them ends with /)",
            url.display()
        )),
        Some(other) if PACKED.iter().any(|packed| has_extension(other, packed)) => {
            wrong(format!("{} is packed: unpack it first", other.display()))
        }
        Some(other) => wrong(format!(
            "{} is neither a folder, a .tar shard nor a table of pairs (.{})",
            other.display(),
            TABLES.join(", .")
        )),
        None if paths.is_empty() => wrong("there is no .tar shard in it".into()),
        None => Ok(paths),
    }
}

/// Endings of archives that aren't read as they are.
const PACKED: [&str; 8] = ["gz", "tgz", "zip", "zst", "xz", "bz2", "7z", "lz4"];

/// The paths that a spec means: itself where it exists, else its braces and then its wildcards expanded.
///
/// # Errors
/// When nothing is there.
pub fn expand(spec: &str) -> Result<Vec<PathBuf>, DataError> {
    let missing = |reason: String| DataError::NotFound { spec: spec.to_owned(), reason };
    if Path::new(spec).exists() {
        return Ok(vec![PathBuf::from(spec)]);
    }
    if spec.starts_with("pipe:") {
        return Err(missing("no commands are run: name the files, or their URLs".into()));
    }
    if is_url(spec) {
        let found = braces(spec).and_then(|urls| {
            let found: Result<Vec<_>, _> = urls.iter().map(|url| tars_at(url)).collect();
            Ok(found?.concat())
        });
        return found.map_err(missing);
    }
    if spec.contains("::") {
        let told = "sets are not joined by ::, but named one after the other (data.train = [...])";
        return Err(missing(told.into()));
    }
    let mut paths = vec![];
    for plain in braces(spec).map_err(missing)? {
        if Path::new(&plain).exists() {
            paths.push(PathBuf::from(plain));
            continue;
        }
        if !plain.contains(['*', '?', '[']) {
            return Err(missing(absent(Path::new(&plain))));
        }
        // As in a shell, and in a folder that is named: what is hidden is met by its dot alone.
        let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::new() };
        let found = glob::glob_with(&plain, options);
        let found = found.map_err(|e| missing(format!("a broken pattern: {e}")))?;
        let before = paths.len();
        for path in found {
            paths.push(path.map_err(|e| DataError::io("list", e.path().to_owned())(e.into()))?);
        }
        if paths.len() == before {
            return Err(missing(format!("nothing matches {plain}")));
        }
    }
    Ok(paths)
}

/// How much of a path that does not exist does exist.
pub(super) fn absent(path: &Path) -> String {
    let folder = path.ancestors().skip(1).find(|p| !p.as_os_str().is_empty() && p.is_dir());
    match folder {
        _ if path.is_symlink() => format!("{} is a link to nowhere", path.display()),
        Some(folder) => format!("there is no {} ({} exists)", path.display(), folder.display()),
        None => format!("there is no {}", path.display()),
    }
}

/// The shell's `{a,b}` and `{000..099}`, from the left.
fn braces(spec: &str) -> Result<Vec<String>, String> {
    /// More shards than any set has: a slip of the finger must not fill the memory.
    const MOST: u64 = 1_000_000;
    let Some(start) = spec.find('{') else { return Ok(vec![spec.to_owned()]) };
    let end = start + spec[start..].find('}').ok_or("a { has no }")?;
    let (before, inside, after) = (&spec[..start], &spec[start + 1..end], &spec[end + 1..]);
    let choices: Vec<String> = match inside.split_once("..") {
        Some((from, to)) => {
            let number = |text: &str| text.parse::<u64>().ok();
            let (first, last) = number(from)
                .zip(number(to))
                .filter(|(first, last)| first <= last && last - first < MOST)
                .ok_or_else(|| format!("{{{inside}}} is no range like {{000..099}}"))?;
            (first..=last).map(|n| format!("{n:0width$}", width = from.len())).collect()
        }
        None if inside.contains(',') => inside.split(',').map(str::to_owned).collect(),
        None => return Err(format!("{{{inside}}} is neither {{000..099}} nor {{a,b}}")),
    };
    let mut all = vec![];
    for choice in choices {
        all.extend(braces(&format!("{before}{choice}{after}"))?);
        if all.len() as u64 > MOST {
            return Err(format!("its braces mean more than {MOST} paths"));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn braces_expand_as_the_shells() {
        let all = |spec| braces(spec).unwrap();
        assert_eq!(all("a-{08..10}.tar"), ["a-08.tar", "a-09.tar", "a-10.tar"]);
        assert_eq!(all("a-{8..10}.tar"), ["a-8.tar", "a-9.tar", "a-10.tar"]);
        assert_eq!(all("{x,y}/{1,2}"), ["x/1", "x/2", "y/1", "y/2"]);
        assert_eq!(all("plain"), ["plain"]);
        for wrong in ["a{b", "a{}b", "a{b}c", "{9..1}", "{0..99999999999}", "{a..z}"] {
            assert!(braces(wrong).is_err(), "{wrong}");
        }
        assert!(braces("{0..9999}{0..9999}").is_err());
    }
}
