//! How many samples shards hold by the word of what lies beside them: `sizes.json` (the samples of each shard by its file
//! name) and `__len__` (those of the whole folder), which open_clip reads to know how long an epoch is. Here it is written
//! for others, and checked; what the shards themselves say is what counts.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::DataError;
use crate::storage;

const SIZES: &str = "sizes.json";
const LENGTH: &str = "__len__";

/// Where the word differs from `shards`, each with the samples that were found in it: a line each.
pub(crate) fn disagreements<'a>(shards: impl Iterator<Item = (&'a Path, usize)>) -> Vec<String> {
    let mut folders = BTreeMap::<&Path, BTreeMap<String, usize>>::new();
    for (path, samples) in shards {
        let name = file_name(path);
        folders.entry(path.parent().unwrap_or(Path::new(""))).or_default().insert(name, samples);
    }
    let mut lines = vec![];
    for (folder, shards) in folders {
        lines.extend(by_shard(&folder.join(SIZES), &shards));
        lines.extend(by_folder(&folder.join(LENGTH), &shards));
    }
    lines
}

fn by_shard(path: &Path, shards: &BTreeMap<String, usize>) -> Vec<String> {
    let told = match storage::text(path).map(|text| text.map(|text| serde_json::from_str(&text))) {
        Ok(None) => return vec![],
        Ok(Some(Ok(told))) => told,
        Ok(Some(Err(e))) => return vec![format!("{}: no list of sizes: {e}", path.display())],
        Err(e) => return vec![e.to_string()],
    };
    let told: Map<String, Value> = told;
    let differs = |(name, &samples): (&String, &usize)| {
        let says = told.get(name)?;
        // open_clip takes a number in quotes, too.
        let number = says.as_u64().or_else(|| says.as_str()?.trim().parse().ok());
        (number != Some(samples as u64)).then(|| {
            format!("{}: says {says} samples of {name}, which holds {samples}", path.display())
        })
    };
    let mut lines: Vec<String> = shards.iter().filter_map(differs).collect();
    let unnamed: Vec<&String> = shards.keys().filter(|name| !told.contains_key(*name)).collect();
    if let Some(first) = unnamed.first() {
        let (unnamed, all) = (unnamed.len(), shards.len());
        lines.push(format!("{}: lacks {unnamed} of {all} shards: {first}", path.display()));
    }
    lines
}

fn by_folder(path: &Path, shards: &BTreeMap<String, usize>) -> Option<String> {
    let text = match storage::text(path) {
        Ok(text) => text?,
        Err(e) => return Some(e.to_string()),
    };
    // Of a part of the folder it says nothing.
    let there = storage::tars(path.parent()?).ok()?;
    if there.iter().any(|shard| !shards.contains_key(&file_name(shard))) {
        return None;
    }
    let (says, samples) = (text.trim(), shards.values().sum::<usize>());
    let differs = says.parse() != Ok(samples);
    let says: String = says.chars().take(40).collect();
    differs.then(|| {
        let shards = shards.len();
        format!("{}: says {says} samples, and the {shards} shards hold {samples}", path.display())
    })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The `sizes.json` of `folder`; empty where there is none.
///
/// # Errors
/// One that is no list of sizes, which would be lost by adding to it.
pub(crate) fn of(folder: &Path) -> Result<BTreeMap<String, Value>, DataError> {
    let path = folder.join(SIZES);
    let Some(text) = storage::text(&path)? else { return Ok(BTreeMap::new()) };
    serde_json::from_str(&text).map_err(|e| DataError::NotOurs {
        path,
        reason: format!("the sizes of shards would be added, and it is no list of sizes ({e})"),
    })
}

/// Adds shards to the `sizes.json` of `folder`, which is made where there is none.
///
/// # Errors
/// As [`of`]; a disk that refuses.
pub(crate) fn add<'a>(
    folder: &Path,
    shards: impl Iterator<Item = (&'a Path, usize)>,
) -> Result<(), DataError> {
    let path = folder.join(SIZES);
    let mut sizes = of(folder)?;
    sizes.extend(shards.map(|(shard, samples)| (file_name(shard), samples.into())));
    let text = serde_json::to_string_pretty(&sizes).expect("names and numbers") + "\n";
    uta_base::write_atomically(&path, text.as_bytes()).map_err(DataError::io("write", &path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;
    use crate::open;
    use crate::source::shards::{Limit, ShardWriter, index};
    use crate::testing::png;

    #[test]
    fn written_sizes_are_those_of_all_shards_and_what_differs_names_both_figures() {
        let dir = tempfile::tempdir().unwrap();
        let limit = Limit { samples: 3, bytes: 1 << 20 };
        for (prefix, samples) in [("a", 7), ("b", 2)] {
            let mut writer = ShardWriter::create(dir.path(), prefix, limit).unwrap();
            for i in 0..samples {
                writer.write(&format!("k{i}"), &[("png", &png(2, 2, [0; 3]))]).unwrap();
            }
            writer.finish().unwrap();
        }
        let (sizes, length) = (dir.path().join(SIZES), dir.path().join(LENGTH));
        let text = fs::read_to_string(&sizes).unwrap();
        let told: BTreeMap<String, usize> = serde_json::from_str(&text).unwrap();
        let names = ["a-000000.tar", "a-000001.tar", "a-000002.tar", "b-000000.tar"];
        assert_eq!(told, names.map(str::to_owned).into_iter().zip([3, 3, 1, 2]).collect());

        let spec = dir.path().to_str().unwrap();
        let problems = || open(spec).unwrap().problems();
        assert_eq!(problems(), Vec::<String>::new());
        fs::write(&length, "9\n").unwrap();
        assert_eq!(problems(), Vec::<String>::new());
        fs::write(&length, "1e9").unwrap();
        fs::write(&sizes, r#"{"a-000000.tar": 3, "a-000001.tar": "3", "a-000002.tar": 4}"#)
            .unwrap();
        let found = problems();
        assert_eq!(found.len(), 3, "{found:#?}");
        let told = ["says 4 samples of a-000002.tar, which holds 1", "lacks 1 of 4 shards: b-0"];
        assert!(found[0].contains(told[0]) && found[1].contains(told[1]), "{found:#?}");
        assert!(found[2].contains("__len__: says 1e9 samples, and the 4 shards hold 9"));
        assert_eq!(index(spec).unwrap().problems, found);
        // A part of the folder is not the whole, and a part of the list is asked for.
        assert_eq!(open(&format!("{spec}/a-00000[01].tar")).unwrap().problems().len(), 0);
        fs::write(&sizes, "[3, 3]").unwrap();
        assert!(problems()[0].contains("no list of sizes"), "{:?}", problems());
    }
}
