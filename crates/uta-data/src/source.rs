//! Where samples come from: shards, image folders, class folders, behind one trait with random access.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::decode::{self, is_image};
use crate::shards::{self, Entry};
use crate::{DataError, MAX_PIXELS};

/// One sample, still encoded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Its name within the source: the path without the extension.
    pub key: String,
    /// The image file's bytes.
    pub image: Vec<u8>,
    /// The lines of its `.txt`, empty ones left out.
    pub captions: Vec<String>,
    /// Its `.cls`, or the index of its class folder.
    pub class: Option<u32>,
    /// Its `.json`.
    pub meta: Map<String, Value>,
}

/// A set of samples with random access from any thread.
pub trait Source: Send + Sync {
    /// How many samples there are; never 0 for a source that [`open`] returned.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads sample `i`.
    ///
    /// # Errors
    /// When it can't be read, naming it.
    fn read(&self, i: usize) -> Result<Sample, DataError>;

    /// The key of sample `i`, for messages.
    fn key(&self, i: usize) -> String;

    /// What the classes are called, by index, where the source knows.
    fn class_names(&self) -> Option<&[String]>;

    /// What was found wrong when the source was opened, a line each; such parts are left out.
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Opens a data spec: a folder of `.tar`, a `.tar`, a pattern of them (`*`, `?`, `{000..099}`, `{a,b}`), a folder of
/// images, or a folder of class folders.
///
/// # Errors
/// When nothing is there, saying what was looked for and what was found.
pub fn open(spec: &str) -> Result<Arc<dyn Source>, DataError> {
    let paths = expand(spec)?;
    let tars: Vec<PathBuf> = match paths.as_slice() {
        [dir] if dir.is_dir() => {
            let tars = listing(dir)?
                .into_iter()
                .filter(|path| has_extension(path, "tar"))
                .collect::<Vec<_>>();
            if tars.is_empty() {
                return Ok(Arc::new(Folder::open(dir)?));
            }
            tars
        }
        paths => paths.to_vec(),
    };
    if let Some(other) = tars.iter().find(|path| !has_extension(path, "tar") || !path.is_file()) {
        return Err(DataError::NotFound {
            spec: spec.to_owned(),
            reason: format!("{} is neither a folder nor a .tar shard", other.display()),
        });
    }
    Ok(Arc::new(Shards::open(&tars)?))
}

/// Opens several specs as one source, in their order.
///
/// # Errors
/// As [`open`]; when there are no specs; when two of them name their classes differently.
pub fn open_all(specs: &[String]) -> Result<Arc<dyn Source>, DataError> {
    let mut sources = specs.iter().map(|spec| open(spec)).collect::<Result<Vec<_>, _>>()?;
    if sources.len() == 1 {
        return Ok(sources.remove(0));
    }
    let mut named =
        specs.iter().zip(&sources).filter_map(|(spec, s)| Some((spec, s.class_names()?)));
    let first = named.next();
    if let Some((spec, _)) = first.and_then(|(_, names)| named.find(|&(_, other)| other != names)) {
        return Err(DataError::NotFound {
            spec: spec.clone(),
            reason: "its class names differ from the other sets'; they can't be mixed".into(),
        });
    }
    if sources.is_empty() {
        let reason = "give at least one path".into();
        return Err(DataError::NotFound { spec: "(nothing)".into(), reason });
    }
    let starts = sources
        .iter()
        .scan(0, |end, source| {
            let start = *end;
            *end += source.len();
            Some(start)
        })
        .collect();
    Ok(Arc::new(Several { sources, starts }))
}

/// Several sources end to end.
struct Several {
    sources: Vec<Arc<dyn Source>>,
    /// Where each begins.
    starts: Vec<usize>,
}

impl Several {
    fn at(&self, i: usize) -> (&dyn Source, usize) {
        let which = self.starts.partition_point(|&start| start <= i) - 1;
        (self.sources[which].as_ref(), i - self.starts[which])
    }
}

impl Source for Several {
    fn len(&self) -> usize {
        self.sources.iter().map(|source| source.len()).sum()
    }

    fn read(&self, i: usize) -> Result<Sample, DataError> {
        let (source, i) = self.at(i);
        source.read(i)
    }

    fn key(&self, i: usize) -> String {
        let (source, i) = self.at(i);
        source.key(i)
    }

    fn class_names(&self) -> Option<&[String]> {
        self.sources.iter().find_map(|source| source.class_names())
    }

    fn problems(&self) -> Vec<String> {
        self.sources.iter().flat_map(|source| source.problems()).collect()
    }
}

/// WebDataset shards, indexed when opened; a shard is opened anew for each sample, so that thousands need no handles.
struct Shards {
    paths: Vec<PathBuf>,
    /// (shard, sample)
    entries: Vec<(u32, Entry)>,
    names: Option<Vec<String>>,
    problems: Vec<String>,
}

impl Shards {
    fn open(paths: &[PathBuf]) -> Result<Shards, DataError> {
        let (mut entries, mut problems) = (vec![], vec![]);
        for (shard, path) in paths.iter().enumerate() {
            let (found, wrong) = shards::index(path)?;
            let usable = |e: &Entry| e.members.iter().any(|(extension, ..)| is_image(extension));
            entries.extend(found.into_iter().filter(usable).map(|entry| (shard as u32, entry)));
            problems.extend(wrong);
        }
        for problem in &problems {
            tracing::warn!("{problem}");
        }
        if entries.is_empty() {
            return Err(DataError::Empty {
                path: paths.first().cloned().unwrap_or_default(),
                wanted: format!(
                    "images ({}) in {} shards",
                    decode::EXTENSIONS.join(", "),
                    paths.len()
                ),
                found: problems.first().cloned().unwrap_or_else(|| "none".into()),
            });
        }
        let names = paths.first().and_then(|path| path.parent()).and_then(|dir| {
            let above = dir.parent().unwrap_or(Path::new(""));
            [dir, above]
                .into_iter()
                .find_map(|dir| fs::read_to_string(dir.join("classnames.txt")).ok())
        });
        let names = names.map(|text| text.lines().map(str::to_owned).collect());
        Ok(Shards { paths: paths.to_vec(), entries, names, problems })
    }
}

impl Source for Shards {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn read(&self, i: usize) -> Result<Sample, DataError> {
        let (shard, entry) = &self.entries[i];
        let path = &self.paths[*shard as usize];
        let file = File::open(path).map_err(DataError::io("open", path))?;
        let mut sample = Sample { key: entry.key.clone(), ..Sample::default() };
        for (extension, offset, size) in &entry.members {
            let wanted =
                is_image(extension) || ["txt", "cls", "json"].contains(&extension.as_str());
            if !wanted {
                continue;
            }
            let mut bytes = vec![0; *size as usize];
            file.read_exact_at(&mut bytes, *offset).map_err(DataError::io("read", path))?;
            match extension.as_str() {
                "txt" => sample.captions = captions(&bytes),
                "cls" => {
                    let text = String::from_utf8_lossy(&bytes);
                    sample.class = Some(text.trim().parse().map_err(|_| DataError::Sample {
                        key: entry.key.clone(),
                        reason: format!(".cls holds {:?}, not a class index", text.trim()),
                    })?);
                }
                "json" => {
                    sample.meta =
                        serde_json::from_slice(&bytes).map_err(|e| DataError::Sample {
                            key: entry.key.clone(),
                            reason: format!("broken .json: {e}"),
                        })?;
                }
                _ => sample.image = bytes,
            }
        }
        Ok(sample)
    }

    fn key(&self, i: usize) -> String {
        self.entries[i].1.key.clone()
    }

    fn class_names(&self) -> Option<&[String]> {
        self.names.as_deref()
    }

    fn problems(&self) -> Vec<String> {
        self.problems.clone()
    }
}

/// A folder of images, or of class folders; at any depth below.
struct Folder {
    root: PathBuf,
    /// (path below the root, class)
    files: Vec<(PathBuf, Option<u32>)>,
    names: Option<Vec<String>>,
}

impl Folder {
    fn open(root: &Path) -> Result<Folder, DataError> {
        let mut files = vec![];
        let mut others = 0;
        walk(root, root, 0, &mut |path| match path.extension().and_then(|e| e.to_str()) {
            Some(extension) if is_image(extension) => files.push(path.to_owned()),
            _ => others += 1,
        })?;
        if files.is_empty() {
            return Err(DataError::Empty {
                path: root.to_owned(),
                wanted: format!(
                    "images ({}), class folders of them, or .tar shards",
                    decode::EXTENSIONS.join(", ")
                ),
                found: format!("{others} other files"),
            });
        }
        files.sort();
        let class = |path: &Path| {
            let mut parts = path.components();
            let first = parts.next()?;
            parts.next().map(|_| first.as_os_str().to_string_lossy().into_owned())
        };
        let mut names: Vec<String> = files.iter().filter_map(|path| class(path)).collect();
        names.sort();
        names.dedup();
        // Class folders only where no picture lies outside of them.
        let names = files.iter().all(|path| class(path).is_some()).then_some(names);
        let files = files
            .into_iter()
            .map(|path| {
                let index =
                    names.as_ref().and_then(|names| names.binary_search(&class(&path)?).ok());
                (path, index.map(|i| i as u32))
            })
            .collect();
        Ok(Folder { root: root.to_owned(), files, names })
    }
}

impl Source for Folder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn read(&self, i: usize) -> Result<Sample, DataError> {
        let (below, class) = &self.files[i];
        let path = self.root.join(below);
        // No image of the allowed number of pixels needs more than this, whatever its format.
        let size = fs::metadata(&path).map_err(DataError::io("read", &path))?.len();
        if size > 8 * MAX_PIXELS {
            let reason = format!("{size} bytes are too many for an image");
            return Err(DataError::Sample { key: self.key(i), reason });
        }
        let image = fs::read(&path).map_err(DataError::io("read", &path))?;
        let text = path.with_extension("txt");
        let captions = match fs::read(&text) {
            Ok(bytes) => captions(&bytes),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => vec![],
            Err(e) => return Err(DataError::io("read", &text)(e)),
        };
        Ok(Sample { key: self.key(i), image, captions, class: *class, meta: Map::new() })
    }

    fn key(&self, i: usize) -> String {
        self.files[i].0.with_extension("").to_string_lossy().into_owned()
    }

    fn class_names(&self) -> Option<&[String]> {
        self.names.as_deref()
    }
}

fn captions(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(wanted))
}

/// The sorted entries of a folder, hidden ones left out.
fn listing(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut paths = vec![];
    for entry in fs::read_dir(dir).map_err(DataError::io("list", dir))? {
        let entry = entry.map_err(DataError::io("list", dir))?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Calls `each` with every file below `root`, as a path relative to it. Links to folders are followed, so depth is bounded.
fn walk(
    root: &Path,
    dir: &Path,
    depth: usize,
    each: &mut impl FnMut(&Path),
) -> Result<(), DataError> {
    for path in listing(dir)? {
        if path.is_dir() {
            if depth < 16 {
                walk(root, &path, depth + 1, each)?;
            }
        } else if let Ok(below) = path.strip_prefix(root) {
            each(below);
        }
    }
    Ok(())
}

/// Braces, then patterns.
fn expand(spec: &str) -> Result<Vec<PathBuf>, DataError> {
    let missing = |reason: String| DataError::NotFound { spec: spec.to_owned(), reason };
    let mut paths = vec![];
    for plain in braces(spec) {
        if Path::new(&plain).exists() {
            paths.push(PathBuf::from(plain));
            continue;
        }
        if !plain.contains(['*', '?', '[']) {
            return Err(missing(format!("there is no {plain}")));
        }
        let found = glob::glob(&plain).map_err(|e| missing(format!("a broken pattern: {e}")))?;
        let before = paths.len();
        paths.extend(found.flatten());
        if paths.len() == before {
            return Err(missing(format!("nothing matches {plain}")));
        }
    }
    Ok(paths)
}

/// The shell's `{a,b}` and `{000..099}`, from the left; anything else between braces stays.
fn braces(spec: &str) -> Vec<String> {
    let Some((start, end)) = spec.find('{').and_then(|s| Some((s, s + spec[s..].find('}')?)))
    else {
        return vec![spec.to_owned()];
    };
    let (before, inside, after) = (&spec[..start], &spec[start + 1..end], &spec[end + 1..]);
    let range = inside.split_once("..").and_then(|(from, to)| {
        let range = from.parse::<u64>().ok()?..=to.parse::<u64>().ok()?;
        Some(range.map(|n| format!("{n:0width$}", width = from.len())).collect::<Vec<_>>())
    });
    let choices = range.unwrap_or_else(|| inside.split(',').map(str::to_owned).collect());
    if choices.len() == 1 && !inside.contains("..") {
        return vec![spec.to_owned()];
    }
    choices.iter().flat_map(|choice| braces(&format!("{before}{choice}{after}"))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::shards::{Limit, ShardWriter};
    use crate::testing::png;

    #[test]
    fn braces_expand_as_the_shells() {
        assert_eq!(braces("a-{08..10}.tar"), ["a-08.tar", "a-09.tar", "a-10.tar"]);
        assert_eq!(braces("{x,y}/{1,2}"), ["x/1", "x/2", "y/1", "y/2"]);
        assert_eq!(braces("plain"), ["plain"]);
    }

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
    fn nothing_to_read_says_what_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        let e = open(root).err().unwrap().to_string();
        assert!(e.contains("looked for images") && e.contains(root), "{e}");
        let e = open(&format!("{root}/x-*.tar")).err().unwrap().to_string();
        assert!(e.contains("nothing matches"), "{e}");
        let e = open(&format!("{root}/none")).err().unwrap().to_string();
        assert!(e.contains("there is no"), "{e}");
        fs::write(dir.path().join("empty.tar"), [0u8; 1024]).unwrap();
        let e = open(&format!("{root}/empty.tar")).err().unwrap().to_string();
        assert!(e.contains("no samples"), "{e}");
    }

    #[test]
    fn several_shards_read_as_one_source_and_a_vanished_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer =
            ShardWriter::create(dir.path(), "s", Limit { samples: 2, bytes: 1 << 30 }).unwrap();
        for i in 0..5u8 {
            writer
                .write(
                    &format!("k{i}"),
                    &[("png", &png(2, 2, [i; 3])), ("cls", b"3\n"), ("json", b"{\"a\":1}")],
                )
                .unwrap();
        }
        let shards = writer.finish().unwrap();
        let source = open_all(&[
            format!("{}/s-000000.tar", dir.path().display()),
            format!("{}/s-{{000001..000002}}.tar", dir.path().display()),
        ])
        .unwrap();
        assert_eq!(source.len(), 5);
        let sample = source.read(4).unwrap();
        assert_eq!(
            (sample.key.as_str(), sample.class, sample.meta["a"].as_i64()),
            ("k4", Some(3), Some(1))
        );
        fs::remove_file(&shards[1]).unwrap();
        let e = source.read(2).unwrap_err().to_string();
        assert!(e.contains("s-000001.tar"), "{e}");
        assert!(source.read(0).is_ok());
    }
}
