//! Classification sets as they lie on disk: those of the paper's Table 1 by name, and any folder of classes. From what a
//! user has to samples with the right labels, and to words.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uta_data::{Folder, Source, holds_images, subfolders};

use crate::ilsvrc::{files, is_flat, label_flat};
use crate::layout::{annotated, split_of, without_empty};
use crate::lines::{listed, read, shown};
use crate::prompts::listed_names;
use crate::{EvalError, NamedSet, Prompts};

/// A classification set that was opened: pictures with labels, and words for the labels.
pub struct ClassSet {
    /// Its samples.
    pub source: Arc<dyn Source>,
    /// Its classes in words.
    pub prompts: Prompts,
    /// Which of Table 1's it is, given or plain from its layout.
    pub set: Option<NamedSet>,
    /// How it lies on disk, for the report.
    pub layout: String,
    /// Pictures that were published and are not there: how many, and the names that are known.
    pub missing: (usize, Vec<String>),
    /// Doubts about the set, a sentence each.
    pub warnings: Vec<String>,
}

impl ClassSet {
    /// Opens what `specs` mean (see [`uta_data::open`]) as `set`, which is guessed from the layout where that is certain.
    ///
    /// A folder may hold class folders, itself or in a split such as `val`; the validation pictures of ILSVRC2012 or of
    /// Tiny ImageNet side by side, with a list of their labels near them; CLIP_benchmark's shards; or what the sets of
    /// Table 1 unpack to. `names` and `templates` are files that replace the set's own words.
    ///
    /// # Errors
    /// One line that says what was looked for and what was found; a set of one class; as [`Prompts::find`].
    pub fn open(
        specs: &[String],
        set: Option<NamedSet>,
        names: Option<&Path>,
        templates: Option<&Path>,
    ) -> Result<ClassSet, EvalError> {
        let mut found = ClassSet::find(specs, set, names, templates)?;
        if let [name] = found.prompts.names.as_slice() {
            return Err(EvalError::Layout {
                path: specs.join(" "),
                wanted: "two classes or more".into(),
                found: format!("one, {name:?} ({}; {})", found.prompts.names_from, found.layout),
            });
        }
        found.warnings.extend(found.prompts.doubts());
        Ok(found)
    }

    fn find(
        specs: &[String],
        set: Option<NamedSet>,
        names: Option<&Path>,
        templates: Option<&Path>,
    ) -> Result<ClassSet, EvalError> {
        let root = match specs {
            [spec] if Path::new(spec).is_dir() => Path::new(spec),
            _ => {
                let layout = format!("shards {}", specs.join(" "));
                return ClassSet::shards(specs, set, names, templates, layout);
            }
        };
        // Class folders first: beside them may lie the tar that they were unpacked from.
        let mut warnings = vec![];
        let found = match set {
            Some(set) => place(root, set)?.map(|dir| (set, dir)),
            None => guess(root, &mut warnings)?,
        };
        if let Some((set, dir)) = found {
            return ClassSet::named(set, &dir, names, templates);
        }
        if let Some(dir) = benchmark_shards(root)? {
            let (layout, spec) = (format!("shards in {}", shown(&dir)), dir.to_string_lossy());
            return ClassSet::shards(&[spec.into_owned()], set, names, templates, layout);
        }
        if let Some(set) = set {
            return Err(not_in(set, root)?);
        }
        let dir = split_of(root)?;
        let spec = dir.to_string_lossy();
        let (source, layout) = match annotated(&dir)? {
            Some(found) => found,
            None => {
                let mut folder = Folder::open(&dir)?;
                let all = folder.names.as_ref().map_or(0, Vec::len);
                // A list of names may have a line for an empty folder too.
                let listed = listed_names(&spec, names)?.is_some_and(|(list, _)| list.len() == all);
                if !listed {
                    warnings.extend(no_classes(&dir, &without_empty(&mut folder)));
                }
                let classes = folder.names.as_ref().map_or(0, Vec::len);
                (folder, format!("{classes} class folders in {}", shown(&dir)))
            }
        };
        let source: Arc<dyn Source> = Arc::new(source);
        let prompts = Prompts::find(&spec, source.as_ref(), names, templates)?;
        Ok(ClassSet { source, prompts, set: None, layout, missing: (0, vec![]), warnings })
    }

    /// Shards with labels in `.cls`.
    fn shards(
        specs: &[String],
        set: Option<NamedSet>,
        names: Option<&Path>,
        templates: Option<&Path>,
        layout: String,
    ) -> Result<ClassSet, EvalError> {
        let source = uta_data::open_all(specs)?;
        let set = set.or_else(|| source.class_names().and_then(of_folders));
        let prompts = match set {
            None => Prompts::find(&specs[0], source.as_ref(), names, templates)?,
            Some(set) => {
                let mut prompts = Prompts::of(set, names, templates)?;
                if let Some(there) = source.class_names() {
                    if there.len() != prompts.names.len() {
                        return Err(EvalError::Layout {
                            path: specs[0].clone(),
                            wanted: format!("{set}'s {} classes", prompts.names.len()),
                            found: format!("{} class names beside the shards", there.len()),
                        });
                    }
                    // Where folders were packed labels go by their names, sorted: 0, 1, 10, 100 where those are numbers.
                    let folders = set.classes().into_iter().map(|(folder, _)| folder);
                    let place: HashMap<String, usize> = folders.zip(0..).collect();
                    let name = |folder: &String| Some(prompts.names[*place.get(folder)?].clone());
                    if place.len() == prompts.names.len()
                        && let Some(names) = there.iter().map(name).collect::<Option<Vec<_>>>()
                    {
                        prompts.names = names;
                    }
                }
                prompts
            }
        };
        let missing = set.map_or(0, |set| set.published().saturating_sub(source.len()));
        let (missing, warnings) = ((missing, vec![]), vec![]);
        Ok(ClassSet { source, prompts, set, layout, missing, warnings })
    }

    /// `set` in `dir`, which [`place`] found.
    fn named(
        set: NamedSet,
        dir: &Path,
        names: Option<&Path>,
        templates: Option<&Path>,
    ) -> Result<ClassSet, EvalError> {
        let prompts = Prompts::of(set, names, templates)?;
        let mut folder = Folder::open(dir)?;
        let (layout, named) = if set == NamedSet::ImageNet && is_flat(dir) {
            let (list, absent) = label_flat(&mut folder)?;
            (format!("pictures in {}, labels from {}", shown(dir), shown(&list)), absent)
        } else {
            let all = label_folders(&mut folder, set)?;
            (format!("{} of {all} class folders in {}", set.classes().len(), shown(dir)), vec![])
        };
        folder.names = Some(set.classes().into_iter().map(|(folder, _)| folder).collect());
        if prompts.names.len() != set.classes().len() {
            let message = format!(
                "{} names for the {} classes of {set}",
                prompts.names.len(),
                set.classes().len()
            );
            return Err(EvalError::Prompts { path: prompts.names_from, message });
        }
        let missing = (set.published().saturating_sub(folder.len()), named);
        let warnings = match set {
            // It has classes that ImageNet lacks.
            NamedSet::ObjectNet => vec![],
            _ => no_classes(dir, &strays(dir, set)?).into_iter().collect(),
        };
        let (source, set) = (Arc::new(folder), Some(set));
        Ok(ClassSet { source, prompts, set, layout, missing, warnings })
    }
}

/// The error that nothing of `set` lies in `root`.
fn not_in(set: NamedSet, root: &Path) -> Result<EvalError, EvalError> {
    let flat = match set {
        NamedSet::ImageNet => ", or pictures ILSVRC2012_val_*.JPEG",
        _ => "",
    };
    let (first, places) = (set.folders(), set.places()[1..].join(", "));
    Ok(EvalError::Layout {
        path: shown(root),
        wanted: format!("{set}'s {} {first}{flat}, here or in {places}", set.classes().len()),
        found: listed(&subfolders(root)?, "folders"),
    })
}

/// The folder of shards that `root` means: its own, or CLIP_benchmark's `test`, checked against what lies beside them.
fn benchmark_shards(root: &Path) -> Result<Option<PathBuf>, EvalError> {
    let tars = |dir: &Path| uta_data::tars(dir).map_or(0, |tars| tars.len());
    let places = ["", "test", "val", "validation"].map(|place| root.join(place));
    let Some(dir) = places.into_iter().find(|dir| tars(dir) > 0) else { return Ok(None) };
    let wrong =
        |wanted: String, found: String| Err(EvalError::Layout { path: shown(&dir), wanted, found });
    if let Some(path) =
        [&dir, root].map(|d| d.join("dataset_type.txt")).into_iter().find(|p| p.is_file())
    {
        let kind = read(&path)?;
        if kind.trim() != "classification" {
            let wanted = "a set of one class a picture".into();
            return wrong(wanted, format!("dataset_type.txt says {:?}", kind.trim()));
        }
    }
    let count = dir.join("nshards.txt");
    if count.is_file() {
        let text = read(&count)?;
        let (wanted, found) = (text.trim().parse::<usize>(), tars(&dir));
        if wanted != Ok(found) {
            return wrong(format!("{} shards (nshards.txt)", text.trim()), format!("{found}"));
        }
    }
    Ok(Some(dir))
}

/// The folder that holds `set`'s class folders (one of them at least), or ILSVRC2012's validation pictures.
fn place(root: &Path, set: NamedSet) -> Result<Option<PathBuf>, EvalError> {
    let classes: HashSet<String> = set.classes().into_iter().map(|(folder, _)| folder).collect();
    for dir in set.places().iter().map(|place| root.join(place)).filter(|dir| dir.is_dir()) {
        if subfolders(&dir)?.iter().any(|name| classes.contains(name))
            || set == NamedSet::ImageNet && is_flat(&dir)
        {
            return Ok(Some(dir));
        }
    }
    Ok(None)
}

/// The set that a folder is beyond doubt: by all of its class folders and no others, or by ILSVRC2012's file names.
/// Where other folders with pictures stand in the way, `warnings` gets a sentence.
fn guess(
    root: &Path,
    warnings: &mut Vec<String>,
) -> Result<Option<(NamedSet, PathBuf)>, EvalError> {
    for set in NamedSet::ALL {
        let Some(dir) = place(root, set)? else { continue };
        let there: HashSet<String> = subfolders(&dir)?.into_iter().collect();
        let classes = set.classes();
        let whole = classes.iter().all(|(folder, _)| there.contains(folder));
        // Folders without pictures are no classes of another set.
        let mut others = if whole { strays(&dir, set)? } else { vec![] };
        others.retain(|other| holds_images(&dir.join(other)));
        if whole && (set == NamedSet::ObjectNet || others.is_empty()) {
            // Sketch has ImageNet's folders; its files are called sketch_0.JPEG.
            let drawn = set == NamedSet::ImageNet
                && files(&dir.join(&classes[0].0)).any(|name| name.starts_with("sketch_"));
            return Ok(Some((if drawn { NamedSet::ImageNetSketch } else { set }, dir)));
        }
        if whole {
            warnings.push(format!(
                "{} has all class folders of {set} and {} besides, which was taken for a class too, and the whole for \
                 no known set: move it elsewhere",
                shown(&dir),
                listed(&others, "")
            ));
        }
        if set == NamedSet::ImageNet && is_flat(&dir) {
            return Ok(Some((set, dir)));
        }
    }
    Ok(None)
}

/// The set whose class folders these are, all and no others. ImageNet's are Sketch's too, and its training set's: a folder's
/// files would tell them apart.
fn of_folders(names: &[String]) -> Option<NamedSet> {
    let there: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    NamedSet::ALL.into_iter().find(|&set| {
        let classes = set.classes();
        let several = matches!(set, NamedSet::ImageNet | NamedSet::ImageNetSketch);
        !several
            && there.len() == classes.len()
            && classes.iter().all(|(f, _)| there.contains(f.as_str()))
    })
}

/// The folders in `dir` that are no class of `set`.
fn strays(dir: &Path, set: NamedSet) -> Result<Vec<String>, EvalError> {
    let classes: HashSet<String> = set.classes().into_iter().map(|(folder, _)| folder).collect();
    // ILSVRC2012's pictures may lie side by side, and then no folder is a class.
    let all = subfolders(dir)?;
    let any = all.iter().any(|name| classes.contains(name));
    Ok(all.into_iter().filter(|name| any && !classes.contains(name)).collect())
}

/// A warning where folders without pictures were left out of the classes.
fn no_classes(dir: &Path, strays: &[String]) -> Option<String> {
    match strays {
        [] => None,
        [one] => Some(format!("in {}, folder {one} holds no picture and is no class", shown(dir))),
        all => {
            let folders = listed(all, "folders");
            Some(format!("in {}, {folders} hold no picture and are no classes", shown(dir)))
        }
    }
}

/// Gives every file the label of its folder; returns how many class folders there are. Files outside of class folders
/// have no label.
fn label_folders(folder: &mut Folder, set: NamedSet) -> Result<usize, EvalError> {
    let classes = set.classes();
    let labels: HashMap<&str, u32> =
        classes.iter().map(|(folder, _)| folder.as_str()).zip(0..).collect();
    let there = subfolders(&folder.root)?;
    let present: HashSet<&str> = there.iter().map(String::as_str).collect();
    let lacking: Vec<String> =
        classes.iter().map(|(f, _)| f.clone()).filter(|f| !present.contains(f.as_str())).collect();
    let mut others = HashSet::new();
    folder.relabel(|path, class| {
        let mut parts = path.components().map(|part| part.as_os_str().to_string_lossy());
        let first = parts.next().unwrap_or_default();
        *class = labels.get(first.as_ref()).copied();
        let other = class.is_none() && parts.next().is_some();
        if other {
            others.insert(first.into_owned());
        }
        !other
    });
    let mut others: Vec<String> = others.into_iter().collect();
    others.sort();
    let strange = set != NamedSet::ObjectNet && !others.is_empty();
    if lacking.is_empty() && !strange {
        return Ok(there.len());
    }
    let mut found = format!("{} of them", classes.len() - lacking.len());
    if !lacking.is_empty() {
        found += &format!(", without {}", listed(&lacking, ""));
    }
    if strange {
        found += &format!(", and {}", listed(&others, "others"));
    }
    let wanted = format!("{set}'s {} {}", classes.len(), set.folders());
    Err(EvalError::Layout { path: shown(&folder.root), wanted, found })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::named::SYNSETS;
    use std::fs;

    /// Files without contents: opening reads names only.
    fn touch(path: PathBuf) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"").unwrap();
    }

    /// Two pictures in each class folder of `set`, in `dir`.
    fn folders(dir: &Path, set: NamedSet, file: &str) {
        for (folder, _) in set.classes() {
            touch(dir.join(&folder).join(format!("{file}_1.JPEG")));
            touch(dir.join(&folder).join(format!("{file}_2.JPEG")));
        }
    }

    fn open(root: &Path, set: Option<NamedSet>) -> Result<ClassSet, EvalError> {
        ClassSet::open(&[root.to_str().unwrap().to_owned()], set, None, None)
    }

    fn error(root: &Path, set: NamedSet) -> String {
        open(root, Some(set)).err().unwrap().to_string()
    }

    /// (folder, class) of every picture.
    fn labels(set: &ClassSet) -> Vec<(String, Option<u32>)> {
        let folder = |i| set.source.name(i).unwrap().split('/').next().unwrap().to_owned();
        (0..set.source.len()).map(|i| (folder(i), set.source.read(i).unwrap().class)).collect()
    }

    #[test]
    fn whole_layouts_are_known_without_being_named_and_labels_follow_the_folders() {
        for (set, below, file) in [
            (NamedSet::ImageNet, "val", "ILSVRC2012_val_0000000"),
            (NamedSet::ImageNetA, "imagenet-a", "0.01_fox squirrel"),
            (NamedSet::ImageNetR, "", "art"),
            (NamedSet::ImageNetV2, "imagenetv2-matched-frequency-format-val", "a"),
            (NamedSet::ImageNetSketch, "sketch", "sketch"),
        ] {
            let root = tempfile::tempdir().unwrap();
            folders(&root.path().join(below), set, file);
            if set == NamedSet::ImageNet {
                // Beside it: what torchvision leaves there.
                touch(root.path().join("train/n01440764/a.JPEG"));
                touch(root.path().join("ILSVRC2012_img_val.tar"));
            }
            let found = open(root.path(), None).unwrap();
            assert_eq!(found.set, Some(set));
            assert_eq!(found.missing.0, set.published() - found.source.len());
            let classes = set.classes();
            assert_eq!(found.source.len(), 2 * classes.len());
            for (folder, class) in labels(&found) {
                assert_eq!(classes[class.unwrap() as usize].0, folder, "{set}");
            }
        }
    }

    #[test]
    fn the_folders_of_v2_are_numbers_and_not_words() {
        let root = tempfile::tempdir().unwrap();
        folders(root.path(), NamedSet::ImageNetV2, "a");
        let found = open(root.path(), Some(NamedSet::ImageNetV2)).unwrap();
        let labels = labels(&found);
        assert!(
            labels.contains(&("10".into(), Some(10))) && labels.contains(&("2".into(), Some(2)))
        );
        assert_eq!(found.prompts.names[10], "brambling");
    }

    #[test]
    fn objectnet_keeps_its_113_classes_and_drops_the_others() {
        let root = tempfile::tempdir().unwrap();
        let images = root.path().join("objectnet-1.0/images");
        folders(&images, NamedSet::ObjectNet, "x");
        touch(images.join("air_freshener/x.png"));
        let found = open(root.path(), None).unwrap();
        assert_eq!((found.set, found.source.len()), (Some(NamedSet::ObjectNet), 226));
        assert!(found.layout.starts_with("113 of 114 class folders"), "{}", found.layout);
        fs::remove_dir_all(images.join("banana")).unwrap();
        assert!(error(root.path(), NamedSet::ObjectNet).contains("112 of them, without banana"));
    }

    #[test]
    fn a_wrong_layout_is_told_in_one_line_of_what_was_looked_for_and_found() {
        let root = tempfile::tempdir().unwrap();
        folders(root.path(), NamedSet::ImageNet, "a");
        for wnid in ["n01443537", "n02119789"] {
            fs::remove_dir_all(root.path().join(wnid)).unwrap();
        }
        let e = error(root.path(), NamedSet::ImageNet);
        assert!(e.contains("looked for imagenet's 1000 synset folders"), "{e}");
        assert!(e.contains("found 998 of them, without n01443537, n02119789"), "{e}");
        touch(root.path().join("notes/a.png"));
        let e = error(root.path(), NamedSet::ImageNet);
        assert!(e.contains("and 1 others: notes"), "{e}");
        let e = error(root.path(), NamedSet::ImageNetA);
        assert!(e.contains("others: n01440764"), "{e}");
        let e = error(root.path(), NamedSet::ObjectNet);
        assert!(
            e.contains("looked for objectnet's 113 folders") && e.contains("999 folders"),
            "{e}"
        );
        let empty = tempfile::tempdir().unwrap();
        let e = error(empty.path(), NamedSet::ImageNet);
        assert!(e.contains("here or in val") && e.contains("found no folders"), "{e}");
    }

    #[test]
    fn an_empty_class_folder_is_a_class_and_a_picture_outside_has_none() {
        let root = tempfile::tempdir().unwrap();
        folders(root.path(), NamedSet::ImageNetA, "a");
        for i in [1, 2] {
            fs::remove_file(root.path().join(format!("n01498041/a_{i}.JPEG"))).unwrap();
        }
        touch(root.path().join("stray.png"));
        let found = open(root.path(), None).unwrap();
        assert_eq!((found.set, found.source.len()), (Some(NamedSet::ImageNetA), 399));
        let without = labels(&found).into_iter().filter(|(_, class)| class.is_none());
        assert_eq!(without.map(|(name, _)| name).collect::<Vec<_>>(), ["stray.png"]);
    }

    #[test]
    fn flat_validation_pictures_take_their_labels_from_any_of_the_usual_lists() {
        let truth = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt";
        let kaggle = "ImageId,PredictionString\nILSVRC2012_val_00000002,n15075141 1 2 3 4\n\
                      ILSVRC2012_val_00000003,n01443537 1 2 3 4\nILSVRC2012_val_00000001,n01751748 5 6 7 8 \n";
        for (pictures, list, text) in [
            ("val", truth, "490\n999\n450\n"),
            ("ILSVRC/Data/CLS-LOC/val", "LOC_val_solution.csv", kaggle),
            ("", "imagenet_2012_validation_synset_labels.txt", "n01751748\nn15075141\nn01443537\n"),
            (
                "val",
                "val.txt",
                "x/ILSVRC2012_val_00000003.JPEG 1\nILSVRC2012_val_00000001.JPEG 65\n\
                                ILSVRC2012_val_00000002.JPEG 999\n",
            ),
        ] {
            let root = tempfile::tempdir().unwrap();
            for i in [1, 2] {
                touch(root.path().join(pictures).join(format!("ILSVRC2012_val_0000000{i}.JPEG")));
            }
            touch(root.path().join(list));
            let text = match list == truth {
                true => text.replace("999", &SYNSETS[999].devkit.to_string()),
                false => text.to_owned(),
            };
            fs::write(root.path().join(list), text).unwrap();
            let found = open(root.path(), None).unwrap();
            let classes: Vec<_> = labels(&found).into_iter().map(|(_, class)| class).collect();
            assert_eq!((found.set, classes), (Some(NamedSet::ImageNet), vec![Some(65), Some(999)]));
            assert_eq!(found.missing, (49_998, vec!["ILSVRC2012_val_00000003".to_owned()]));
            assert!(found.layout.contains(list), "{}", found.layout);
        }
    }

    #[test]
    fn flat_pictures_without_their_list_or_with_another_are_refused() {
        let root = tempfile::tempdir().unwrap();
        touch(root.path().join("ILSVRC2012_val_00000003.JPEG"));
        let e = error(root.path(), NamedSet::ImageNet);
        assert!(e.contains("looked for the labels") && e.contains("LOC_val_solution.csv"), "{e}");
        let list = root.path().join("imagenet_2012_validation_synset_labels.txt");
        fs::write(&list, "n01751748\n").unwrap();
        assert!(
            error(root.path(), NamedSet::ImageNet).contains("no label for ILSVRC2012_val_00000003")
        );
        fs::write(&list, "n01751748\n1001\n").unwrap();
        assert!(error(root.path(), NamedSet::ImageNet).contains("line 2, \"1001\""));
    }

    #[test]
    fn synsets_that_are_no_whole_set_have_their_names_and_splits_are_not_classes() {
        let root = tempfile::tempdir().unwrap();
        for path in ["train/n01440764/a.JPEG", "val/n15075141/a.JPEG", "val/n01440764/a.JPEG"] {
            touch(root.path().join(path));
        }
        let found = open(root.path(), None).unwrap();
        assert_eq!((found.set, found.prompts.names.len()), (None, 2));
        assert_eq!(found.prompts.names, ["tench", "toilet paper"]);
        assert_eq!(found.prompts.templates.len(), 80);
        assert!(found.layout.ends_with("val"), "{}", found.layout);
    }

    #[test]
    fn folders_without_pictures_turn_no_known_set_off_and_win_no_prediction() {
        for (set, below) in [(NamedSet::ImageNetSketch, "sketch"), (NamedSet::ImageNetV2, "")] {
            let root = tempfile::tempdir().unwrap();
            folders(&root.path().join(below), set, "sketch");
            for stray in ["__MACOSX", "lost+found", "notes/deeper"] {
                fs::create_dir_all(root.path().join(below).join(stray)).unwrap();
            }
            touch(root.path().join(below).join("@eaDir/a.png"));
            let found = open(root.path(), None).unwrap();
            assert_eq!((found.set, found.prompts.names.len()), (Some(set), 1000));
            assert!(
                found.warnings[0].contains("folder notes holds no picture"),
                "{:?}",
                found.warnings
            );
        }
        // A part of ImageNet.
        let root = tempfile::tempdir().unwrap();
        for path in ["n01440764/a.png", "n15075141/a.png"] {
            touch(root.path().join(path));
        }
        for stray in ["backup", "@eaDir", "n02102040"] {
            fs::create_dir(root.path().join(stray)).unwrap();
        }
        let classes = |found: &ClassSet| -> Vec<_> {
            labels(found).into_iter().map(|(_, class)| class).collect()
        };
        let found = open(root.path(), None).unwrap();
        assert_eq!(found.prompts.names, ["tench", "toilet paper"]);
        assert_eq!(found.prompts.templates.len(), 80);
        assert_eq!(classes(&found), [Some(0), Some(1)]);
        let told = "2 folders: backup, n02102040 hold no picture and are no classes";
        assert!(found.warnings[0].contains(told), "{:?}", found.warnings);
        // A list that names the empty ones too makes them classes.
        fs::write(root.path().join("classnames.txt"), "old\na\nb\nc\n").unwrap();
        let found = open(root.path(), None).unwrap();
        assert_eq!(found.prompts.names, ["old", "a", "b", "c"]);
        assert_eq!(classes(&found), [Some(1), Some(3)]);
        fs::write(root.path().join("classnames.txt"), "a\nc\n").unwrap();
        let found = open(root.path(), None).unwrap();
        assert_eq!(
            (&found.prompts.names[..], classes(&found)),
            (&["a".into(), "c".into()][..], vec![Some(0), Some(1)])
        );
    }

    #[test]
    fn a_folder_of_pictures_beside_all_classes_of_a_known_set_is_told() {
        let root = tempfile::tempdir().unwrap();
        folders(root.path(), NamedSet::ImageNetA, "a");
        touch(root.path().join("extras/x.png"));
        let found = open(root.path(), None).unwrap();
        assert_eq!((found.set, found.prompts.names.len()), (None, 201));
        let told = "has all class folders of imagenet-a and extras besides";
        assert!(found.warnings[0].contains(told), "{:?}", found.warnings);
    }

    #[test]
    fn a_set_whose_pictures_lie_in_one_class_folder_is_refused_whatever_lies_beside_it() {
        for files in [
            &["val/images/a.png", "val/labels/a.txt"][..],
            &["cat/a.png", "dog/.hidden.png", "dog/notes.txt"],
        ] {
            let root = tempfile::tempdir().unwrap();
            files.iter().for_each(|file| touch(root.path().join(file)));
            let e = open(root.path(), None).err().unwrap().to_string();
            assert!(e.contains("looked for two classes or more; found one"), "{e}");
        }
    }

    #[test]
    fn a_link_to_a_folder_of_pictures_is_a_class_and_a_circle_of_links_ends() {
        let root = tempfile::tempdir().unwrap();
        let set = root.path().join("set");
        touch(root.path().join("elsewhere/a.png"));
        touch(set.join("train/a.png"));
        let link = |from: &Path, to: &str| std::os::unix::fs::symlink(from, set.join(to)).unwrap();
        link(&root.path().join("elsewhere"), "bus");
        link(&set, "train/again");
        assert_eq!(open(&set, None).unwrap().prompts.names, ["bus", "train"]);
    }

    #[test]
    fn a_list_names_numbered_folders_in_the_order_of_their_numbers() {
        for name in ["", "class_", "c", "v2_", "set1_class"]
            .map(|letters| move |i: usize| format!("{letters}{i}"))
        {
            let root = tempfile::tempdir().unwrap();
            for i in 0..12 {
                touch(root.path().join(name(i)).join("x.png"));
            }
            let list: String = (0..12).map(|i| format!("name{i}\n")).collect();
            let given = root.path().join("given.list");
            fs::write(&given, &list).unwrap();
            let spec = [root.path().to_str().unwrap().to_owned()];
            let right = |found: ClassSet| {
                for (folder, class) in labels(&found) {
                    let number = folder.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap();
                    let wanted = format!("name{number}");
                    assert_eq!(found.prompts.names[class.unwrap() as usize], wanted);
                }
                assert!(found.prompts.names_from.contains("by its number"));
            };
            right(ClassSet::open(&spec, None, Some(&given), None).unwrap());
            fs::write(root.path().join("classnames.txt"), &list).unwrap();
            right(open(root.path(), None).unwrap());
        }
        // Without a list the numbers are all there is, which is told.
        let root = tempfile::tempdir().unwrap();
        (0..12).for_each(|i| touch(root.path().join(format!("{i}/x.png"))));
        let found = open(root.path(), None).unwrap();
        assert!(found.warnings[0].contains("called by numbers (0, 1, 10"), "{:?}", found.warnings);
    }

    #[test]
    fn a_list_names_the_numbered_classes_of_packed_folders_by_their_numbers() {
        let root = tempfile::tempdir().unwrap();
        let mut text: Vec<String> = (0..12).map(|i| i.to_string()).collect();
        text.sort();
        let mut source = crate::testing::Pictures::new(12, 12);
        source.folders = Some(text.clone());
        let spec = root.path().to_str().unwrap();
        // The list beside the shards is that of the folders, in the order of the labels.
        fs::write(root.path().join("classnames.txt"), text.join("\n")).unwrap();
        assert_eq!(Prompts::find(spec, &source, None, None).unwrap().names, text);
        let given = root.path().join("given.list");
        fs::write(&given, (0..12).map(|i| format!("name{i}\n")).collect::<String>()).unwrap();
        let names = Prompts::find(spec, &source, Some(&given), None).unwrap().names;
        assert_eq!(names[..3], ["name0", "name1", "name10"]);
    }

    #[test]
    fn splits_are_measured_and_are_no_classes_however_they_are_called() {
        for (split, others) in [
            ("valid", &["train"][..]),
            ("val", &["train", "Test", "__MACOSX"]),
            ("Val", &["Train"]),
            ("dev", &["training", "TEST"]),
            ("eval", &["train", "annotations"]),
            ("testing", &["train"]),
            ("validation", &["train", "extra"]),
            ("val2017", &["train2017", "annotations"]),
            ("seg_test", &["seg_train", "extra"]),
            ("test_set", &["training_set"]),
            ("asl_alphabet_test", &["asl_alphabet_train"]),
            ("ValImages", &["TrainImages", "extra"]),
            ("val", &["test", "extra"]),
        ] {
            let root = tempfile::tempdir().unwrap();
            for folder in others.iter().chain([&split]) {
                match *folder {
                    "annotations" => touch(root.path().join("annotations/a.xml")),
                    "extra" => touch(root.path().join("extra/a.png")),
                    _ => ["cat", "dog"].iter().for_each(|class| {
                        touch(root.path().join(folder).join(class).join("a.png"));
                    }),
                }
            }
            let found = open(root.path(), None).unwrap();
            assert_eq!(found.prompts.names, ["cat", "dog"], "{split}");
            assert!(found.layout.ends_with(split), "{split}: {}", found.layout);
        }
        // Archives that hold a folder of their own name.
        let root = tempfile::tempdir().unwrap();
        for path in
            ["test_set/test_set/cats", "test_set/test_set/dogs", "training_set/training_set/cats"]
        {
            touch(root.path().join(path).join("a.png"));
        }
        let found = open(root.path(), None).unwrap();
        assert_eq!(found.prompts.names, ["cats", "dogs"]);
        assert!(found.layout.ends_with("test_set/test_set"), "{}", found.layout);
        // Splits without class folders are no classes of another set.
        let root = tempfile::tempdir().unwrap();
        for path in ["train/a.png", "val/a.png", "extra/a.png"] {
            touch(root.path().join(path));
        }
        let e = open(root.path(), None).err().unwrap().to_string();
        assert!(e.contains("val: ") && e.contains("no class folders"), "{e}");
        // What is to be trained on isn't measured unless it is named.
        let root = tempfile::tempdir().unwrap();
        touch(root.path().join("train/cat/a.png"));
        touch(root.path().join("train/dog/a.png"));
        let e = open(root.path(), None).err().unwrap().to_string();
        assert!(e.contains("looked for a split to measure") && e.contains("name it: "), "{e}");
        assert_eq!(open(&root.path().join("train"), None).unwrap().prompts.names.len(), 2);
        // A train is a class among others.
        let root = tempfile::tempdir().unwrap();
        ["bus", "toy_train", "train", "tram"]
            .iter()
            .for_each(|c| touch(root.path().join(c).join("a.png")));
        let found = open(root.path(), None).unwrap();
        assert_eq!(found.prompts.names, ["bus", "toy_train", "train", "tram"]);
        assert!(found.warnings[0].contains("train looks like a part of a data set"));
    }

    #[test]
    fn tiny_imagenets_annotations_are_its_labels_and_a_set_of_one_class_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let val = root.path().join("val");
        for i in 0..3 {
            touch(val.join(format!("images/val_{i}.JPEG")));
        }
        for wnid in ["n01443537", "n01629819"] {
            touch(root.path().join(format!("train/{wnid}/images/{wnid}_0.JPEG")));
        }
        touch(root.path().join("test/images/test_0.JPEG"));
        let e = open(root.path(), None).err().unwrap().to_string();
        assert!(e.contains("looked for two classes or more; found one, \"images\""), "{e}");
        let list =
            "\u{feff}val_0.JPEG\tn01629819\t0\t32\t44\t62\r\nval_1.JPEG\tn01443537\t1\t2\t3\t4\r\n";
        fs::write(val.join("val_annotations.txt"), list).unwrap();
        let e = open(root.path(), None).err().unwrap().to_string();
        assert!(e.contains("val_annotations.txt: has no line for val_2.JPEG"), "{e}");
        fs::write(val.join("val_annotations.txt"), format!("{list}val_2.JPEG\tn01629819\t0"))
            .unwrap();
        fs::write(root.path().join("wnids.txt"), "n15075141\nn01629819\nn01443537\n").unwrap();
        for place in [root.path(), &val] {
            let found = open(place, None).unwrap();
            let classes: Vec<_> = labels(&found).into_iter().map(|(_, class)| class).collect();
            assert_eq!(classes, [Some(1), Some(0), Some(1)]);
            assert_eq!(found.prompts.names, ["goldfish", "fire salamander", "toilet paper"]);
            assert!(
                found.layout.contains("classes from")
                    && found.layout.contains("val_annotations.txt")
            );
        }
    }

    #[test]
    fn byte_order_marks_are_no_part_of_a_name_a_template_or_a_label() {
        let root = tempfile::tempdir().unwrap();
        for class in ["a", "b"] {
            touch(root.path().join(class).join("x.png"));
        }
        fs::write(root.path().join("classnames.txt"), "\u{feff}red heart\r\nblue heart\r\n")
            .unwrap();
        fs::write(root.path().join("templates.txt"), "\u{feff}a {}.\r\n").unwrap();
        let prompts = open(root.path(), None).unwrap().prompts;
        assert_eq!(prompts.sentences(), ["a red heart.", "a blue heart."]);
        for (list, text) in [
            (
                "LOC_val_solution.csv",
                "ImageId,PredictionString\r\nILSVRC2012_val_00000001,n01751748 5 6 7 8\r\n",
            ),
            ("imagenet_2012_validation_synset_labels.txt", "n01751748\r\n"),
            ("val.txt", "ILSVRC2012_val_00000001.JPEG 65\r\n"),
        ] {
            let root = tempfile::tempdir().unwrap();
            touch(root.path().join("ILSVRC2012_val_00000001.JPEG"));
            fs::write(root.path().join(list), format!("\u{feff}{text}")).unwrap();
            assert_eq!(labels(&open(root.path(), None).unwrap())[0].1, Some(65), "{list}");
        }
    }
}
