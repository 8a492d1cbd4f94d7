//! Class names and templates: the words a zero-shot classifier is made of, as data beside the set.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use uta_data::Source;

use crate::layout::is_no_word;
use crate::lines::{lines, shown};
use crate::named::{imagenet_templates, synset_name};
use crate::{EvalError, NamedSet};

/// Class names in label order, and templates with a hole for the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompts {
    /// A name for each label.
    pub names: Vec<String>,
    /// Sentences with `{}` (or CLIP_benchmark's `{c}`) where the name goes.
    pub templates: Vec<String>,
    /// Where the names come from, for the report.
    pub names_from: String,
    /// Where the templates come from, for the report.
    pub templates_from: String,
}

/// File names under which class names are looked for, first match first.
const NAMES: [&str; 1] = ["classnames.txt"];
/// The same for templates; the second is CLIP_benchmark's.
const TEMPLATES: [&str; 2] = ["templates.txt", "zeroshot_classification_templates.txt"];
/// The template where there is no file of them.
const PLAIN: &str = "a photo of a {}.";

impl Prompts {
    /// Names and templates from memory.
    ///
    /// # Errors
    /// When a list is empty or a template has no hole.
    pub fn new(names: Vec<String>, templates: Vec<String>) -> Result<Prompts, EvalError> {
        let given = "given".to_string();
        Prompts { names, templates, names_from: given.clone(), templates_from: given }.checked()
    }

    /// The prompts of a set: the files given, else `classnames.txt` and `templates.txt` in the folder of `spec` (what
    /// [`uta_data::open`] takes) or in its parent, else the set's class folders and one plain template. Where all are synsets of
    /// ImageNet-1K, in a packed set's `classnames.txt` too, its names and its 80 templates stand for them.
    ///
    /// # Errors
    /// When there are no names, when a file cannot be read, or when the names don't number the set's class folders.
    pub fn find(
        spec: &str,
        source: &dyn Source,
        given_names: Option<&Path>,
        given_templates: Option<&Path>,
    ) -> Result<Prompts, EvalError> {
        let folders = source.class_names();
        let (mut names, mut names_from) = match (listed_names(spec, given_names)?, folders) {
            (Some((names, path)), _) => (names, shown(&path)),
            (None, Some(folders)) => (folders.to_vec(), "class folders".to_string()),
            (None, None) => {
                return Err(EvalError::Prompts {
                    path: spec.into(),
                    message: "no classnames.txt in its folder or above it, and no class folders; \
                              give --classnames, a name a line in label order"
                        .into(),
                });
            }
        };
        if let Some(folders) = folders
            && folders.len() != names.len()
        {
            let message = format!(
                "{} names for a set of {} class folders; one name a folder is needed, in the folders' sorted order",
                names.len(),
                folders.len()
            );
            return Err(EvalError::Prompts { path: names_from, message });
        }
        // Shards come with a list of their folders, in the order of the labels.
        if let Some(folders) = folders.filter(|folders| *folders != names)
            && let Some(order) = by_number(folders)
        {
            let mut by_folder = names.clone();
            for (&folder, name) in order.iter().zip(names) {
                by_folder[folder] = name;
            }
            let [first, second] = [0, 1].map(|i| folders[order[i]].as_str());
            names_from +=
                &format!(", a line for each folder by its number: {first}, {second}, ...");
            names = by_folder;
        }
        let synsets: Option<Vec<_>> = names.iter().map(|name| synset_name(name)).collect();
        let synsets = synsets.filter(|_| given_names.is_none());
        let (templates, templates_from) =
            match given_templates.map(Path::to_path_buf).or(beside(spec, &TEMPLATES)) {
                Some(path) => (lines(&path)?, shown(&path)),
                None if synsets.is_some() => given_or_imagenets(None)?,
                None => {
                    let unseen =
                        if uta_data::is_url(spec) { ", none being read from a URL" } else { "" };
                    (vec![PLAIN.to_string()], format!("default \"{PLAIN}\"{unseen}"))
                }
            };
        let some = names.iter().any(|name| synset_name(name).is_some());
        if given_names.is_none() && some {
            let word = |name: String| synset_name(&name).map_or(name, str::to_owned);
            names = names.into_iter().map(word).collect();
            names_from = format!("the synsets of {names_from}");
        }
        Prompts { names, templates, names_from, templates_from }.checked()
    }

    /// The words of a set of Table 1: the files given, else its own names and ImageNet's 80 templates.
    ///
    /// # Errors
    /// When a file cannot be read or used.
    pub fn of(
        set: NamedSet,
        names: Option<&Path>,
        templates: Option<&Path>,
    ) -> Result<Prompts, EvalError> {
        let (names, names_from) = match names {
            Some(path) => (lines(path)?, shown(path)),
            None => (set.classes().into_iter().map(|(_, name)| name).collect(), set.to_string()),
        };
        let (templates, templates_from) = given_or_imagenets(templates)?;
        Prompts { names, templates, names_from, templates_from }.checked()
    }

    fn checked(self) -> Result<Prompts, EvalError> {
        let fail =
            |path: &str, message: String| Err(EvalError::Prompts { path: path.into(), message });
        if self.names.is_empty() {
            return fail(&self.names_from, "no class names; a name a line is needed".into());
        }
        if self.templates.is_empty() {
            return fail(
                &self.templates_from,
                "no templates; a line with {} for the name is needed".into(),
            );
        }
        match self.templates.iter().find(|t| !t.contains("{}") && !t.contains("{c}")) {
            Some(bad) => {
                let message = format!("template \"{bad}\" has no {{}} where the name goes");
                fail(&self.templates_from, message)
            }
            None => Ok(self),
        }
    }

    /// Doubts whether these are names of classes, a sentence each.
    pub(crate) fn doubts(&self) -> Vec<String> {
        let Prompts { names, names_from, .. } = self;
        let advice =
            "give the classes' names, one a line: --classnames, or classnames of a recipe's set";
        let those = |doubtful: &dyn Fn(&str) -> bool| -> Vec<&str> {
            names.iter().map(String::as_str).filter(|name| doubtful(name)).collect()
        };
        let shown = |names: &[&str]| names[..names.len().min(3)].join(", ");
        let number = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
        let id = |name: &str| {
            name.strip_prefix('n').is_some_and(|digits| digits.len() == 8 && number(digits))
        };
        let mut doubts = vec![];
        let (numbers, ids, folders) = (those(&number), those(&id), those(&is_no_word));
        if 2 * numbers.len() > names.len() {
            doubts.push(format!(
                "{} of {} classes are called by numbers ({}; from {names_from}), which say nothing to a text encoder: {advice}",
                numbers.len(),
                names.len(),
                shown(&numbers)
            ));
        }
        if !ids.is_empty() {
            doubts.push(format!(
                "{} of {} classes are called by synset ids ({}; from {names_from}): {advice}",
                ids.len(),
                names.len(),
                shown(&ids)
            ));
        }
        // Among many classes a train is one.
        if !folders.is_empty() && names.len() <= 10 * folders.len() {
            doubts.push(format!(
                "{} looks like a part of a data set, and was taken for a class (from {names_from})",
                shown(&folders)
            ));
        }
        doubts
    }

    /// Every name in every template: all sentences of the first name, then of the second.
    pub fn sentences(&self) -> Vec<String> {
        let fill = |t: &String, name: &String| t.replace("{c}", name).replace("{}", name);
        self.names
            .iter()
            .flat_map(|name| self.templates.iter().map(move |t| fill(t, name)))
            .collect()
    }

    /// Names that several classes share, and how many do; such classes tie.
    pub fn duplicates(&self) -> Vec<(&str, usize)> {
        let mut counts = BTreeMap::new();
        for name in &self.names {
            *counts.entry(name.as_str()).or_insert(0) += 1;
        }
        counts.into_iter().filter(|&(_, n)| n > 1).collect()
    }
}

/// The class names of the file given, else of the `classnames.txt` in the folder of `spec` or in its parent, and that file.
///
/// # Errors
/// A file that can't be read, or that has an empty line.
pub(crate) fn listed_names(
    spec: &str,
    given: Option<&Path>,
) -> Result<Option<(Vec<String>, PathBuf)>, EvalError> {
    let path = given.map(Path::to_path_buf).or_else(|| beside(spec, &NAMES));
    path.map(|path| Ok((lines(&path)?, path))).transpose()
}

/// The folders in the order of their numbers, where that isn't the order of their names: all differ first in a number (`7`,
/// `class_7`, `7-dogs`, `v2_7`), and none has it twice. Labels follow the sorted names, and people's lists the numbers.
fn by_number(folders: &[String]) -> Option<Vec<usize>> {
    let parts: Vec<Vec<Part>> = folders.iter().map(|name| parts(name)).collect();
    let differ = |at: &usize| parts.iter().any(|name| name.get(*at) != parts[0].get(*at));
    let at = (0..parts.first()?.len()).find(differ)?;
    let number = |parts: &Vec<Part>| match parts.get(at) {
        Some(Part::Number(number)) => Some(*number),
        _ => None,
    };
    let numbers: Vec<u64> = parts.iter().map(number).collect::<Option<_>>()?;
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by_key(|&i| numbers[i]);
    let unique = order.windows(2).all(|pair| numbers[pair[0]] < numbers[pair[1]]);
    (folders.is_sorted() && unique && !order.is_sorted()).then_some(order)
}

/// A part of a name.
#[derive(PartialEq)]
enum Part {
    /// In lower case.
    Text(String),
    Number(u64),
}

/// A name's numbers and the text between them.
fn parts(name: &str) -> Vec<Part> {
    let chars: Vec<char> = name.to_lowercase().chars().collect();
    let runs = chars.chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit());
    let part = |run: &[char]| {
        let text: String = run.iter().collect();
        text.parse().map_or(Part::Text(text), Part::Number)
    };
    runs.map(part).collect()
}

/// The first of `files` that lies in the folder of `spec` or in its parent.
fn beside(spec: &str, files: &[&str]) -> Option<PathBuf> {
    let path = Path::new(spec);
    // A relative path of one component has the parent "", and a folder such as "." none that names its parent.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let folder = if path.is_dir() { Some(path.as_path()) } else { path.parent() };
    let near = [folder, folder.and_then(Path::parent)];
    near.into_iter()
        .flatten()
        .flat_map(|dir| files.iter().map(move |file| dir.join(file)))
        .find(|candidate| candidate.is_file())
}

/// Templates and where they are from.
fn given_or_imagenets(templates: Option<&Path>) -> Result<(Vec<String>, String), EvalError> {
    Ok(match templates {
        Some(path) => (lines(path)?, shown(path)),
        None => (imagenet_templates(), "ImageNet".to_string()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::Pictures;
    use std::fs;

    fn message(result: Result<Prompts, EvalError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn words_are_found_in_the_folder_of_the_set_or_above_it_and_what_is_given_wins() {
        let root = tempfile::tempdir().unwrap();
        let set = root.path().join("held-out");
        fs::create_dir(&set).unwrap();
        fs::write(root.path().join("classnames.txt"), "red\nblue heart\n\n").unwrap();
        fs::write(set.join("zeroshot_classification_templates.txt"), "a {c}.\n{} !\n").unwrap();
        fs::write(set.join("one-000000.tar"), "").unwrap();
        let source = Pictures::new(2, 2);
        for spec in [set.clone(), set.join("one-000000.tar"), set.join("one-{000000..000004}.tar")]
        {
            let found = Prompts::find(spec.to_str().unwrap(), &source, None, None).unwrap();
            assert_eq!(found.sentences(), ["a red.", "red !", "a blue heart.", "blue heart !"]);
        }
        let given = root.path().join("other.txt");
        fs::write(&given, "x\ny").unwrap();
        let found = Prompts::find(set.to_str().unwrap(), &source, Some(&given), None).unwrap();
        assert_eq!(found.names, ["x", "y"]);
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_the_file_and_the_reason() {
        let root = tempfile::tempdir().unwrap();
        let (spec, source) = (root.path().to_str().unwrap(), Pictures::new(2, 2));
        let file = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let find = |names: &Path, templates: Option<&Path>| {
            message(Prompts::find(spec, &source, Some(names), templates))
        };
        assert!(message(Prompts::find(spec, &source, None, None)).contains("--classnames"));
        assert!(find(&root.path().join("absent.txt"), None).contains("absent.txt"));
        assert!(find(&file("gap.txt", "a\n\nb\n"), None).contains("gap.txt: line 2 is empty"));
        assert!(find(&file("none.txt", "\n"), None).contains("none.txt: no class names"));
        let (names, templates) = (file("names.txt", "a\nb"), file("bad.txt", "a {}\nno hole\n"));
        assert!(find(&names, Some(&templates)).contains("bad.txt: template \"no hole\""));
    }

    #[test]
    fn names_that_do_not_number_the_class_folders_are_refused() {
        let mut source = Pictures::new(2, 2);
        source.folders = Some(vec!["n01".into(), "n02".into()]);
        let root = tempfile::tempdir().unwrap();
        let spec = root.path().to_str().unwrap();
        assert_eq!(Prompts::find(spec, &source, None, None).unwrap().names, ["n01", "n02"]);
        let names = root.path().join("names.txt");
        fs::write(&names, "tench\ngoldfish\nshark").unwrap();
        let error = message(Prompts::find(spec, &source, Some(&names), None));
        assert!(error.contains("3 names for a set of 2 class folders"), "{error}");
    }
}
