//! ILSVRC2012's validation pictures side by side, and the lists of their labels.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use uta_data::{Folder, Source};

use crate::EvalError;
use crate::lines::{read, shown};
use crate::named::{SYNSETS, synset};

/// Lists of the labels of ILSVRC2012's validation pictures: the devkit's, Kaggle's, TensorFlow's, Caffe's.
const LABEL_LISTS: [&str; 4] = [
    "ILSVRC2012_validation_ground_truth.txt",
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "val.txt",
];

/// Where such a list lies, from the pictures or from one of the folders above them.
const LIST_PLACES: [&str; 3] = ["", "ILSVRC2012_devkit_t12/data", "data"];

/// How far above: Kaggle's list is four folders above its pictures.
const LIST_ABOVE: usize = 5;

/// Whether a folder has validation pictures of ILSVRC2012 side by side.
pub(crate) fn is_flat(dir: &Path) -> bool {
    files(dir).any(|name| number(&name).is_some())
}

/// The names of what a folder holds.
pub(crate) fn files(dir: &Path) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// The number in `ILSVRC2012_val_00000001.JPEG`, from 1; its extension may be missing, folders may stand before it.
fn number(name: &str) -> Option<usize> {
    let digits = name.rsplit('/').next()?.strip_prefix("ILSVRC2012_val_")?;
    digits.get(..8)?.parse().ok().filter(|_| matches!(digits.as_bytes().get(8), None | Some(b'.')))
}

/// A `val.txt` may be anybody's; it is Caffe's where it names the pictures.
fn is_label_list(path: &Path) -> bool {
    let names_pictures = || read(path).is_ok_and(|text| text.contains("ILSVRC2012_val_"));
    path.is_file() && (!path.ends_with("val.txt") || names_pictures())
}

/// Labels ILSVRC2012's validation pictures by the first list near them; returns the list, and the pictures that it has
/// and the folder lacks.
pub(crate) fn label_flat(folder: &mut Folder) -> Result<(PathBuf, Vec<String>), EvalError> {
    let root = std::path::absolute(&folder.root).unwrap_or_else(|_| folder.root.clone());
    let near = root.ancestors().take(LIST_ABOVE);
    let near = near.flat_map(|dir| LIST_PLACES.iter().map(move |place| dir.join(place)));
    let mut lists = near.flat_map(|dir| LABEL_LISTS.map(|name| dir.join(name)));
    let Some(list) = lists.find(|list| is_label_list(list)) else {
        return Err(EvalError::Layout {
            path: shown(&folder.root),
            wanted: format!(
                "the labels of the pictures in one of {}, here, in {} or up to {} folders above",
                LABEL_LISTS.join(", "),
                LIST_PLACES[1],
                LIST_ABOVE - 1
            ),
            found: format!("{} pictures and no such list", folder.len()),
        });
    };
    let labels = read_labels(&list)?;
    let mut absent: BTreeSet<usize> = labels.keys().copied().collect();
    let mut unlabelled = None;
    folder.relabel(|path, class| {
        let name = path.to_string_lossy();
        let Some(number) = number(&name) else { return true };
        absent.remove(&number);
        *class = labels.get(&number).copied();
        if class.is_none() {
            unlabelled.get_or_insert(name.into_owned());
        }
        true
    });
    if let Some(name) = unlabelled {
        let message = format!("has no label for {name}; it is another set's list");
        return Err(EvalError::Prompts { path: shown(&list), message });
    }
    let name = |number: usize| format!("ILSVRC2012_val_{number:08}");
    Ok((list, absent.into_iter().map(name).collect()))
}

/// Labels (places among the sorted wnids) by the number of the picture. A line is a label, or a file and a label; a label
/// is a wnid, or alone on its line the devkit's number, or after a file the place among the sorted wnids.
fn read_labels(list: &Path) -> Result<HashMap<usize, u32>, EvalError> {
    let text = read(list)?;
    let devkit: HashMap<u32, u32> = SYNSETS.iter().map(|synset| synset.devkit).zip(0..).collect();
    let label = |line: &str, at: usize| {
        let mut words = line.split([' ', '\t', ',']).filter(|word| !word.is_empty());
        let first = words.next()?;
        let synset = |wnid: &str| synset(wnid).map(|i| i as u32);
        match words.next() {
            None => {
                Some((at, synset(first).or_else(|| devkit.get(&first.parse().ok()?).copied())?))
            }
            Some(second) => {
                let place = || second.parse().ok().filter(|&i| (i as usize) < SYNSETS.len());
                Some((number(first)?, synset(second).or_else(place)?))
            }
        }
    };
    let lines = text.lines().filter(|line| !line.starts_with("ImageId,"));
    (1..)
        .zip(lines)
        .map(|(at, line)| {
            label(line.trim(), at).ok_or_else(|| EvalError::Prompts {
                path: shown(list),
                message: format!(
                    "line {at}, {:?}, is neither a wnid or a number of the devkit, nor a file of ILSVRC2012's \
                     validation set and its label",
                    line.chars().take(60).collect::<String>()
                ),
            })
        })
        .collect()
}
