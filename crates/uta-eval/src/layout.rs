//! How a classification set lies in folders: which of them are splits, which are no classes, and lists of labels beside
//! pictures that lie in no class folder.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use uta_data::{Folder, holds_images, subfolders};

use crate::EvalError;
use crate::lines::{read, shown};

/// Words for pictures to train on.
const TRAINING: [&str; 2] = ["train", "training"];

/// Words for pictures to measure, the preferred ones first.
const MEASURED: [&str; 8] =
    ["val", "validation", "valid", "dev", "eval", "evaluation", "test", "testing"];

/// Folders in which data sets keep pictures or what belongs to them.
const CONTAINERS: [&str; 9] =
    ["images", "image", "img", "imgs", "pictures", "photos", "annotations", "labels", "data"];

/// Other words that stand beside a split's: `test_set`, `seg_train`.
const BESIDE: [&str; 5] = ["set", "dataset", "split", "folder", "seg"];

/// A folder that is called as splits are.
struct Split<'a> {
    folder: &'a str,
    /// The place of its word in [`MEASURED`]; `None` for pictures to train on.
    measured: Option<usize>,
    /// The rest of its name, where that isn't the usual one: `asl` of `asl_train`.
    rest: Vec<String>,
}

impl<'a> Split<'a> {
    /// `None` where the name has no word of a split, or several.
    fn of(folder: &'a str) -> Option<Split<'a>> {
        let (words, mut rest): (Vec<String>, Vec<String>) = words(folder)
            .into_iter()
            .partition(|word| [&TRAINING[..], &MEASURED].concat().contains(&word.as_str()));
        rest.retain(|word| ![&CONTAINERS[..], &BESIDE].concat().contains(&word.as_str()));
        let [word] = words.as_slice() else { return None };
        let measured = MEASURED.iter().position(|measured| measured == word);
        Some(Split { folder, measured, rest })
    }
}

/// The words of a name in lower case, without numbers: `train`, `set` of `TrainSet_2017`.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for c in name.chars() {
        let begins = before.is_lowercase() && c.is_uppercase();
        if begins || !c.is_alphabetic() {
            words.push(String::new());
        }
        if c.is_alphabetic()
            && let Some(word) = words.last_mut()
        {
            word.extend(c.to_lowercase());
        }
        before = c;
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Whether a name is one of a split or of a data set's folder, and so hardly one of a class.
pub(crate) fn is_no_word(name: &str) -> bool {
    let container = CONTAINERS.iter().any(|known| known.eq_ignore_ascii_case(name));
    container || Split::of(name).is_some_and(|split| split.rest.is_empty())
}

/// `root`, or the split in it to measure.
///
/// Two folders that are called as splits are (`train2017` and `val2017`, `asl_train` and `asl_test`) are splits. Since a class
/// may be called `train`, one alone is a split only where no other folder holds pictures.
///
/// # Errors
/// Where there is nothing but pictures to train on.
pub(crate) fn split_of(root: &Path) -> Result<PathBuf, EvalError> {
    let folders = subfolders(root)?;
    let splits: Vec<Split> = folders.iter().filter_map(|name| Split::of(name)).collect();
    let has_sibling = |split: &Split| {
        let differs = |other: &&Split| other.measured != split.measured;
        splits.iter().filter(differs).any(|other| other.rest == split.rest)
    };
    let (paired, alone): (Vec<&Split>, Vec<&Split>) = splits.iter().partition(|s| has_sibling(s));
    let lone = |split: &&Split| {
        let others = folders.iter().filter(|other| *other != split.folder);
        split.rest.is_empty() && !others.into_iter().any(|other| holds_images(&root.join(other)))
    };
    let splits: Vec<&Split> =
        if paired.is_empty() { alone.into_iter().filter(lone).collect() } else { paired };
    let Some(first) = splits.first() else { return Ok(root.to_owned()) };
    let mut there: Vec<&&Split> = splits.iter().filter(|split| split.measured.is_some()).collect();
    there.sort_by_key(|split| split.measured);
    let holding = there.iter().find(|split| holds_images(&root.join(split.folder)));
    match holding.or(there.first()) {
        Some(split) => Ok(within(root.join(split.folder))),
        None => Err(EvalError::Layout {
            path: shown(root),
            wanted: format!("a split to measure ({}), or class folders", MEASURED.join(", ")),
            found: format!(
                "only {}; to measure that, name it: {}",
                first.folder,
                shown(&root.join(first.folder))
            ),
        }),
    }
}

/// The folder of class folders that a split means: itself, or below it the one folder that holds pictures, where that is
/// called as no class is (`test_set/test_set`).
fn within(split: PathBuf) -> PathBuf {
    let holding = |dir: &Path| {
        let folders = subfolders(dir).unwrap_or_default().into_iter().map(|name| dir.join(name));
        folders.filter(|folder| holds_images(folder)).collect::<Vec<_>>()
    };
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match holding(&split).as_slice() {
        [only] if is_no_word(&name(only)) && !holding(only).is_empty() => within(only.clone()),
        _ => split,
    }
}

/// Takes the folders that hold no picture out of the classes; returns their names.
pub(crate) fn without_empty(folder: &mut Folder) -> Vec<String> {
    let Some(names) = folder.names.take() else { return vec![] };
    let mut used = vec![false; names.len()];
    folder.relabel(|_, class| {
        if let Some(class) = *class {
            used[class as usize] = true;
        }
        true
    });
    // Places of the classes that stay.
    let mut place = 0;
    let places: Vec<u32> = used
        .iter()
        .map(|&used| {
            place += u32::from(used);
            place - u32::from(used)
        })
        .collect();
    folder.relabel(|_, class| {
        *class = class.map(|class| places[class as usize]);
        true
    });
    let (kept, empty): (Vec<_>, Vec<_>) = names.into_iter().zip(used).partition(|(_, used)| *used);
    folder.names = Some(kept.into_iter().map(|(name, _)| name).collect());
    empty.into_iter().map(|(name, _)| name).collect()
}

/// The labels of Tiny ImageNet's validation pictures, which lie side by side.
const ANNOTATIONS: &str = "val_annotations.txt";

/// The pictures of `dir` with the classes of the [`ANNOTATIONS`] in it, and how that lies on disk. `None` where there is no
/// such list. The classes are the synsets of `wnids.txt` in `dir` or above it, else those of the list, sorted.
///
/// # Errors
/// A list that can't be read, or that lacks a picture or a synset.
pub(crate) fn annotated(dir: &Path) -> Result<Option<(Folder, String)>, EvalError> {
    let list = dir.join(ANNOTATIONS);
    if !list.is_file() {
        return Ok(None);
    }
    let wrong = |message: String| EvalError::Prompts { path: shown(&list), message };
    let text = read(&list)?;
    let mut synsets = HashMap::new();
    for (line, at) in text.lines().zip(1..) {
        let mut fields = line.split('\t').map(str::trim);
        match (fields.next(), fields.next()) {
            (Some(file), Some(wnid)) if !file.is_empty() && !wnid.is_empty() => {
                synsets.insert(file, wnid);
            }
            _ if line.trim().is_empty() => {}
            _ => {
                return Err(wrong(format!(
                    "line {at} is no picture and its synset, with a tab between"
                )));
            }
        }
    }
    let above = [Some(dir), dir.parent()].into_iter().flatten().map(|dir| dir.join("wnids.txt"));
    let whole = above.into_iter().find(|path| path.is_file());
    let classes: BTreeSet<String> = match &whole {
        Some(path) => read(path)?.split_whitespace().map(str::to_owned).collect(),
        None => synsets.values().map(|wnid| (*wnid).to_owned()).collect(),
    };
    let place: HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
    let mut folder = Folder::open(dir)?;
    let mut missing = None;
    folder.relabel(|path, class| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let synset = synsets.get(name.as_ref());
        *class = synset.and_then(|wnid| place.get(wnid)).copied();
        if class.is_none() {
            missing.get_or_insert_with(|| match synset {
                Some(wnid) => format!("{name} is of {wnid}, which wnids.txt doesn't list"),
                None => format!("has no line for {name}"),
            });
        }
        true
    });
    if let Some(missing) = missing {
        return Err(wrong(missing));
    }
    folder.names = Some(classes.into_iter().collect());
    Ok(Some((folder, format!("pictures in {}, classes from {}", shown(dir), shown(&list)))))
}
