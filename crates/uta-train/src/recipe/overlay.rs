//! Recipes laid over each other: `extends`, and `--set`.

use std::path::Path;

use toml::{Table, Value};

use super::check::RecipeError;

/// A recipe with what it extends, and `sets` laid over both.
pub(super) fn table(path: &Path, sets: &[String]) -> Result<Table, RecipeError> {
    let mut table = read_extended(path, 0)?;
    lay_sets_over(&mut table, sets)?;
    Ok(table)
}

/// Lays `sets` over a recipe.
pub(super) fn lay_sets_over(table: &mut Table, sets: &[String]) -> Result<(), RecipeError> {
    // First what takes others back: those that are set beside it count, in whatever order they were given.
    let first = |set: &&String| TAKING.iter().any(|(key, _)| key_of(set) == Some(key));
    let (taking, others): (Vec<&String>, Vec<&String>) = sets.iter().partition(first);
    for set in taking.into_iter().chain(others) {
        let fail = |message| RecipeError { origin: format!("--set {set}"), message };
        apply_set(table, set).map_err(fail)?;
    }
    Ok(())
}

/// The key of a `--set`.
fn key_of(set: &str) -> Option<&str> {
    set.split_once('=').map(|(key, _)| key)
}

/// An error with its `message`, blamed on the `--set` that brought it about, where one did, or else on the file.
pub(super) fn blamed(path: &Path, sets: &[String], message: String) -> RecipeError {
    let starts =
        |key: &str| message.strip_prefix(key).is_some_and(|rest| rest.starts_with([':', '.', ' ']));
    let named = |set: &&String| key_of(set).is_some_and(starts);
    // What a section says of one of its keys.
    let within = |set: &&String| {
        let (section, key) = key_of(set)?.rsplit_once('.')?;
        let unknown = message.contains(&format!("`{section}`"));
        Some(starts(section) && (unknown || message.contains(key)))
    };
    let mentioned = |set: &&String| key_of(set).is_some_and(|key| message.contains(key));
    let set = sets.iter().rev().find(named);
    if let (Some(_), Some((what, why))) = (set, message.split_once(": ")) {
        return RecipeError { origin: format!("--set {what}"), message: why.to_owned() };
    }
    let set = sets.iter().rev().find(|set| within(set) == Some(true));
    let set = set.or_else(|| sets.iter().rev().find(mentioned));
    let origin = match set {
        Some(set) => format!("--set {set}"),
        None => path.display().to_string(),
    };
    RecipeError { origin, message }
}

/// Reads a file and lays it over the one that it extends.
fn read_extended(path: &Path, depth: usize) -> Result<Table, RecipeError> {
    let fail = |message: String| RecipeError { origin: path.display().to_string(), message };
    if depth > 8 {
        return Err(fail("extends more than eight files; is there a circle?".into()));
    }
    let text = std::fs::read_to_string(path).map_err(|e| fail(format!("can't be read: {e}")))?;
    let mut table: Table = text.parse().map_err(|e: toml::de::Error| {
        let line =
            e.span().map_or(0, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        fail(format!("line {line}: {}", e.message().trim().replace('\n', " ")))
    })?;
    match table.remove("extends") {
        None => Ok(table),
        Some(Value::String(base)) => {
            let base = path.parent().unwrap_or(Path::new("")).join(base);
            let mut under = read_extended(&base, depth + 1)?;
            lay_over(&mut under, table);
            Ok(under)
        }
        Some(other) => Err(fail(format!("extends = {other}: must be the path of a recipe"))),
    }
}

/// Keys of a section that say one thing in several ways: who says it in one way takes back what was said below in another.
const ALTERNATIVES: [(&str, &[&str]); 2] =
    [("train", &["steps", "epochs", "samples"]), ("schedule", &["warmup", "warmup_epochs"])];

/// Keys that describe anew what others of their section described: what of it then stays. Of `[model]`, what is no size of the
/// vision transformer, and `out`, which is the teacher's; of `[teacher]` nothing.
const TAKING: [(&str, &[&str]); 2] =
    [("model.preset", &["init", "text", "out", "drop_path", "patch_grad"]), ("teacher.path", &[])];

/// Drops from `section` of `recipe` what setting `key` there takes back: its alternatives, and what described another preset
/// or teacher.
fn take_back(recipe: &mut Table, section: &str, key: &str) {
    let Some(Value::Table(table)) = recipe.get_mut(section) else { return };
    for (_, keys) in ALTERNATIVES.iter().filter(|(s, keys)| *s == section && keys.contains(&key)) {
        table.retain(|key, _| !keys.contains(&key));
    }
    let taking = TAKING.iter().find(|(path, _)| path.split_once('.') == Some((section, key)));
    if let Some((_, kept)) = taking {
        table.retain(|key, _| kept.contains(&key));
    }
}

/// `over` on `under`: tables merge key by key, and anything else replaces, as do keys that take others back.
fn lay_over(under: &mut Table, over: Table) {
    for (section, table) in &over {
        let keys = table.as_table().into_iter().flat_map(Table::keys);
        keys.for_each(|key| take_back(under, section, key));
    }
    merge(under, over);
}

fn merge(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => merge(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

/// Sets one value: `train.steps=60`, `data.train=a,b` is one string, `data.train=["a","b"]` a list, text needs no quotes.
fn apply_set(table: &mut Table, set: &str) -> Result<(), String> {
    let (path, text) = set.split_once('=').ok_or("must look like key.path=value")?;
    let value = match format!("v = {text}").parse::<Table>() {
        Ok(mut parsed) => parsed.remove("v").ok_or("has no value")?,
        Err(_) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            return Err("is too large a number".into());
        }
        Err(_) => Value::String(text.to_owned()),
    };
    let (parents, last) = path.rsplit_once('.').map_or((None, path), |(p, l)| (Some(p), l));
    if let Some(section) = parents {
        take_back(table, section, last);
    }
    let mut at = table;
    for part in parents.into_iter().flat_map(|p| p.split('.')) {
        at = at
            .entry(part)
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .ok_or_else(|| format!("{part} is a value, not a table"))?;
    }
    // A single path given for a list of paths means a list of one.
    let list = matches!(path, "data.train" | "data.val") && value.is_str();
    at.insert(last.to_owned(), if list { Value::Array(vec![value]) } else { value });
    Ok(())
}
