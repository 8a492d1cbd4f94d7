//! Folders of images, and of class folders.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::image::decode;
use crate::progress::counted;
use crate::source::Source;
use crate::source::file::image_file;
use crate::source::listing::Listing;
use crate::source::sample::{Captions, Companion, Sample};
use crate::storage::local::list;

/// A folder of images, or of class folders; at any depth below. Callers that know the classes better
/// can override them by [`relabel`](Folder::relabel) and `names`.
#[derive(Debug)]
pub struct Folder {
    /// Where it is.
    pub root: PathBuf,
    /// Names of the classes, by index.
    pub names: Option<Vec<String>>,
    files: Listing,
    /// The class of every image.
    classes: Vec<Option<u32>>,
    captions: Captions,
    /// Parts that were left out.
    problems: Vec<String>,
}

impl Folder {
    /// Finds the images below `root`. The folders just below the root are the classes, sorted; one without images is a class
    /// too. An image beside these folders has no class, which the log tells; where there are as many of such as lie in
    /// folders, the folders are no classes.
    ///
    /// # Errors
    /// When there are none, saying what was looked for and what was found.
    pub fn open(root: &Path) -> Result<Folder, DataError> {
        Folder::with_captions(root, Captions::default())
    }

    /// As [`open`](Folder::open), where the `.txt` beside an image is read as `captions` says.
    pub(super) fn with_captions(root: &Path, captions: Captions) -> Result<Folder, DataError> {
        let files = Listing::of(root)?;
        if files.len() == 0 {
            let found = match files.tars.first().and_then(|tar| tar.parent()) {
                Some(below) => {
                    let (count, below) = (files.tars.len(), root.join(below));
                    format!("{count} shards in folders below: name one, like {}", below.display())
                }
                None => match (&files.unread, &files.others) {
                    (Some((count, first)), _) => {
                        format!("{count} pictures of a kind that isn't read: {}", first.display())
                    }
                    (None, Some((count, first))) => {
                        format!("{count} other files: {}", first.display())
                    }
                    (None, None) => "nothing".into(),
                },
            };
            return Err(DataError::Empty {
                path: root.to_owned(),
                wanted: format!(
                    "images ({}), class folders of them, or .tar shards",
                    decode::EXTENSIONS.join(", ")
                ),
                found,
            });
        }
        let (beside, first) = files.beside_folders();
        let names = (2 * beside < files.len()).then(|| subfolders(root)).transpose()?;
        if let (Some(first), Some(_)) = (first, &names) {
            tracing::warn!(
                "{}: {} beside its class folders, and so in no class: {}",
                root.display(),
                counted(beside, "picture"),
                first.display()
            );
        }
        let class = |(folder, _): &(PathBuf, _)| {
            let first = folder.components().next()?.as_os_str().to_string_lossy();
            let place = names.as_ref()?.binary_search_by(|name| name.as_str().cmp(&first));
            place.ok().map(|i| i as u32)
        };
        let of_folders: Vec<Option<u32>> = files.folders.iter().map(class).collect();
        let classes = (0..files.len()).map(|i| of_folders[files.folder(i)]).collect();
        let problems = files.unread.as_ref().map(|(count, first)| {
            let pictures = counted(*count, "picture");
            format!("{pictures} of a kind that isn't read: {}", root.join(first).display())
        });
        let problems: Vec<String> = problems.into_iter().collect();
        problems.iter().for_each(|problem| tracing::warn!("left out: {problem}"));
        Ok(Folder { root: root.to_owned(), names, files, classes, captions, problems })
    }

    /// Shows `relabel` the path below the root and the class of each image, to change the class, and leaves out the images
    /// of which it says false.
    pub fn relabel(&mut self, mut relabel: impl FnMut(&Path, &mut Option<u32>) -> bool) {
        let Folder { files, classes, .. } = self;
        let mut kept = classes.iter_mut().enumerate();
        let kept: Vec<bool> =
            kept.by_ref().map(|(i, class)| relabel(&files.path(i), class)).collect();
        files.retain(&kept);
        let mut kept = kept.into_iter();
        classes.retain(|_| kept.next().unwrap_or(true));
    }
}

impl Source for Folder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn read(&self, i: usize) -> Result<Sample, DataError> {
        let path = self.root.join(self.files.path(i));
        let mut sample = Sample { key: self.key(i), ..Sample::default() };
        sample.image = image_file(&path, || sample.key.clone())?;
        let spellings = self.files.companions.iter().map(String::as_str);
        // Where folders are the classes, they have the only word.
        let asked = self.names.is_none() && self.classes[i].is_none();
        let spellings = spellings.filter(|e| asked || Companion::of(e) != Some(Companion::Class));
        sample.add_companions(&path, spellings, self.captions)?;
        sample.class = self.classes[i].or(sample.class);
        Ok(sample)
    }

    fn key(&self, i: usize) -> String {
        self.files.path(i).with_extension("").to_string_lossy().into_owned()
    }

    fn name(&self, i: usize) -> Option<String> {
        Some(self.files.path(i).to_string_lossy().into_owned())
    }

    fn class_names(&self) -> Option<&[String]> {
        self.names.as_deref()
    }

    fn problems(&self) -> Vec<String> {
        self.problems.clone()
    }
}

/// The names of the folders just below `dir`, sorted; hidden ones, and those that systems leave behind (`__MACOSX`,
/// `lost+found`), left out.
///
/// # Errors
/// When it can't be listed.
pub fn subfolders(dir: &Path) -> Result<Vec<String>, DataError> {
    let name = |path: PathBuf| Some(path.file_name()?.to_string_lossy().into_owned());
    Ok(list(dir)?.into_iter().filter(|path| path.is_dir()).filter_map(name).collect())
}

/// Whether an image lies in `dir` or below it, hidden files and what systems leave behind left out; links are followed, but
/// not in circles. A folder that can't be listed holds none.
pub fn holds_images(dir: &Path) -> bool {
    fn below(dir: &Path, above: &mut Vec<PathBuf>) -> bool {
        let (Ok(paths), Ok(real)) = (list(dir), dir.canonicalize()) else { return false };
        if above.contains(&real) {
            return false;
        }
        above.push(real);
        let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) =
            paths.into_iter().partition(|path| path.is_dir());
        let image =
            |path: &PathBuf| path.extension().and_then(OsStr::to_str).is_some_and(decode::is_image);
        let found = files.iter().any(image) || folders.iter().any(|folder| below(folder, above));
        above.pop();
        found
    }
    below(dir, &mut vec![])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use crate::open;
    use crate::testing::png;

    #[test]
    fn class_folders_give_sorted_classes_and_captions_lie_beside() {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [("dog/b.png", Some("a dog\n\n two dogs \n")), ("cat/a.png", None)] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, png(4, 4, [1, 2, 3])).unwrap();
            if let Some(text) = text {
                fs::write(path.with_extension("txt"), text).unwrap();
            }
        }
        let source = open(dir.path().to_str().unwrap()).unwrap();
        assert_eq!(source.class_names().unwrap(), ["cat", "dog"]);
        let dog = source.read(1).unwrap();
        assert_eq!((dog.key.as_str(), dog.class), ("dog/b", Some(1)));
        assert_eq!(dog.captions, ["a dog", "two dogs"]);
    }

    #[test]
    fn a_cls_beside_an_image_is_its_class_where_no_folder_is() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, contents: &[u8]| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        };
        let picture = png(4, 4, [1, 2, 3]);
        for set in ["flat", "folders/cat"] {
            for (name, contents) in
                [("a.png", &picture[..]), ("a.cls", b"7\n"), ("b.png", &picture), ("b.cls", b"x")]
            {
                write(&format!("{set}/{name}"), contents);
            }
        }
        let source = |name| open(dir.path().join(name).to_str().unwrap()).unwrap();
        let (flat, folders) = (source("flat"), source("folders"));
        assert_eq!(flat.read(0).unwrap().class, Some(7));
        let e = flat.read(1).unwrap().class().unwrap_err().to_string();
        assert!(e.contains("sample b: .cls holds \"x\""), "{e}");
        assert_eq!([0, 1].map(|i| folders.read(i).unwrap().class), [Some(0); 2]);
    }

    #[test]
    fn a_class_folder_without_images_stays_a_class_and_unread_kinds_are_told() {
        let dir = tempfile::tempdir().unwrap();
        for class in ["ant", "bee", "cow"] {
            fs::create_dir(dir.path().join(class)).unwrap();
        }
        fs::write(dir.path().join("cow/a.png"), png(4, 4, [1, 2, 3])).unwrap();
        fs::write(dir.path().join("cow/b.BMP"), b"BM").unwrap();
        let source = open(dir.path().to_str().unwrap()).unwrap();
        assert_eq!(source.class_names().unwrap(), ["ant", "bee", "cow"]);
        assert_eq!((source.len(), source.read(0).unwrap().class), (1, Some(2)));
        assert!(source.problems()[0].contains("cow/b.BMP"), "{:?}", source.problems());
    }

    #[test]
    fn links_are_followed_but_not_in_circles() {
        let dir = tempfile::tempdir().unwrap();
        let (set, elsewhere) = (dir.path().join("set"), dir.path().join("elsewhere"));
        for folder in [&set, &elsewhere] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("a.png"), png(2, 2, [0; 3])).unwrap();
        }
        std::os::unix::fs::symlink(&elsewhere, set.join("linked")).unwrap();
        std::os::unix::fs::symlink(&set, set.join("circle")).unwrap();
        let source = open(set.to_str().unwrap()).unwrap();
        assert_eq!((0..source.len()).map(|i| source.key(i)).collect::<Vec<_>>(), ["a", "linked/a"]);
        assert!(source.class_names().is_none(), "one picture lies in no class folder");
    }
}
