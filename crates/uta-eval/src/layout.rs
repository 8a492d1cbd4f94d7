//! How a classification set lies in folders: which of them are splits, which are no classes, and lists of labels beside
//! pictures that lie in no class folder.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use uta_data::{Folder, subfolders};

use crate::EvalError;
use crate::prompts::{read, shown};
use crate::sets::synset_name;

/// Folders of pictures to train on.
const TRAINING: [&str; 2] = ["train", "training"];

/// Folders of pictures to measure, the preferred ones first.
const MEASURED: [&str; 8] =
    ["val", "validation", "valid", "dev", "eval", "evaluation", "test", "testing"];

/// Folders in which data sets keep pictures or what belongs to them.
const CONTAINERS: [&str; 9] =
    ["images", "image", "img", "imgs", "pictures", "photos", "annotations", "labels", "data"];

fn is_one_of(names: &[&str], name: &str) -> bool {
    names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Whether a name is one of a split or of a data set's folder, and so hardly one of a class.
pub(crate) fn is_no_word(name: &str) -> bool {
    [&TRAINING[..], &MEASURED, &CONTAINERS].iter().any(|names| is_one_of(names, name))
}

/// `root`, or the split in it to measure.
///
/// Folders are splits where no others hold pictures. Since a class may be called `train`, other folders beside splits for
/// both training and measuring don't count only if the split to measure has folders of its own.
///
/// # Errors
/// Where there is nothing but pictures to train on.
pub(crate) fn split_of(root: &Path) -> Result<PathBuf, EvalError> {
    let folders = subfolders(root)?;
    let (splits, others): (Vec<&String>, Vec<&String>) =
        folders.iter().partition(|name| is_one_of(&TRAINING, name) || is_one_of(&MEASURED, name));
    if splits.is_empty() {
        return Ok(root.to_owned());
    }
    let known = |split: &&str| splits.iter().find(|name| name.eq_ignore_ascii_case(split));
    let there: Vec<PathBuf> = MEASURED.iter().filter_map(known).map(|s| root.join(s)).collect();
    let measured = there.iter().find(|split| holds_pictures(split)).or(there.first());
    let alone = !others.iter().any(|other| holds_pictures(&root.join(other)));
    match measured {
        Some(split) if alone => Ok(split.clone()),
        Some(split) if there.len() < splits.len() && !subfolders(split)?.is_empty() => {
            Ok(split.clone())
        }
        None if alone => Err(EvalError::Layout {
            path: shown(root),
            wanted: format!("a split to measure ({}), or class folders", MEASURED.join(", ")),
            found: format!(
                "only {0}; to measure that, name it: {1}",
                splits[0],
                shown(&root.join(splits[0]))
            ),
        }),
        _ => Ok(root.to_owned()),
    }
}

/// Whether a picture lies in `dir` or below it; links are not followed.
pub(crate) fn holds_pictures(dir: &Path) -> bool {
    let entries: Vec<fs::DirEntry> = fs::read_dir(dir).into_iter().flatten().flatten().collect();
    let is_picture = |entry: &fs::DirEntry| {
        let path = entry.path();
        path.extension().and_then(OsStr::to_str).is_some_and(uta_data::is_image) && path.is_file()
    };
    let is_folder = |entry: &&fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.iter().any(is_picture)
        || entries.iter().filter(is_folder).any(|entry| holds_pictures(&entry.path()))
}

/// Where all class folders that hold pictures are synsets of ImageNet-1K, the others are no classes: leaves them out and
/// returns their names.
pub(crate) fn without_strays(folder: &mut Folder) -> Vec<String> {
    let Some(names) = folder.names.clone() else { return vec![] };
    let mut used = vec![false; names.len()];
    folder.relabel(|_, class| {
        if let Some(class) = *class {
            used[class as usize] = true;
        }
        true
    });
    let is_synset = |name: &String| synset_name(name).is_some();
    let strays: Vec<String> = names.iter().filter(|name| !is_synset(name)).cloned().collect();
    let synsets_only = names.iter().zip(&used).all(|(name, used)| !used || is_synset(name));
    if strays.is_empty() || !synsets_only {
        return vec![];
    }
    let kept: Vec<String> = names.iter().filter(|name| is_synset(name)).cloned().collect();
    let place: HashMap<&str, u32> = kept.iter().map(String::as_str).zip(0..).collect();
    folder.relabel(|_, class| {
        *class = class.and_then(|class| place.get(names[class as usize].as_str()).copied());
        true
    });
    folder.names = Some(kept);
    strays
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
