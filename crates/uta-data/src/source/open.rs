//! Where samples come from: shards, image folders, class folders, pair tables, behind one trait with random access.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use glob::MatchOptions;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::image::decode;
use crate::progress::counted;
use crate::source::listing::{Listing, is_passed_over};
use crate::source::pairs::{self, Captions, PairOptions, Pairs};
use crate::source::shards::Shards;
use crate::source::shards::sizes::without_mark;
use crate::stream::order::Part;
use crate::{DataError, MAX_PIXELS};

/// One sample, still encoded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Its name within the source: the path without the extension.
    pub key: String,
    /// The image file's bytes.
    pub image: Vec<u8>,
    /// Its captions: rows of a table, or its `.txt` as [`Captions`] has it.
    pub captions: Vec<String>,
    /// The number in its `.cls`, or the index of its class folder.
    pub class: Option<u32>,
    /// Its `.cls`, where that gives no class; who reads no classes need not mind.
    pub odd_class: Option<OddClass>,
    /// Its `.json`, which nothing here looks into.
    pub meta: Vec<u8>,
}

/// A `.cls` that gives no class: a word, or a number that `classnames.txt` doesn't name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OddClass {
    /// What it holds.
    pub text: String,
    /// Why that is no class.
    pub reason: String,
}

impl Sample {
    /// The class, for who needs one.
    ///
    /// # Errors
    /// A `.cls` that gives none.
    pub fn class(&self) -> Result<Option<u32>, DataError> {
        let odd = |odd: &OddClass| DataError::Sample {
            key: self.key.clone(),
            reason: odd.reason.clone(),
        };
        self.odd_class.as_ref().map_or(Ok(self.class), |of| Err(odd(of)))
    }

    /// Takes in the file of that extension, in whatever case, beside the image: `.txt`, `.cls`, `.json`. Others are not read.
    pub(crate) fn add(&mut self, extension: &str, contents: &[u8], captions: Captions) {
        match Companion::of(extension) {
            // What is no text is no caption; whether that matters, the task knows.
            Some(Companion::Captions) => {
                let text = without_mark(std::str::from_utf8(contents).unwrap_or_default());
                let parts: Vec<&str> = match captions {
                    Captions::File => vec![text],
                    Captions::Lines => text.lines().collect(),
                };
                let captions = parts.into_iter().map(str::trim).filter(|text| !text.is_empty());
                self.captions = captions.map(str::to_owned).collect();
            }
            Some(Companion::Class) => {
                let text = String::from_utf8_lossy(contents);
                let text = without_mark(&text).trim();
                self.class = text.parse().ok();
                self.odd_class = self.class.is_none().then(|| {
                    let shown: String = text.chars().take(40).collect();
                    let reason = format!(".cls holds {shown:?}, not a class index");
                    OddClass { text: text.to_owned(), reason }
                });
            }
            Some(Companion::Meta) => self.meta = contents.to_vec(),
            None => {}
        }
    }
}

/// What is read beside an image, by its extension.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Companion {
    Captions,
    Class,
    Meta,
}

impl Companion {
    /// What a file of that extension is, in whatever case.
    pub(crate) fn of(extension: &str) -> Option<Companion> {
        let kinds =
            [("txt", Companion::Captions), ("cls", Companion::Class), ("json", Companion::Meta)];
        kinds.into_iter().find(|(e, _)| e.eq_ignore_ascii_case(extension)).map(|(_, kind)| kind)
    }
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

    /// The key of sample `i`, for messages: a shard is read for it.
    fn key(&self, i: usize) -> String;

    /// What sample `i` is called in the source, with its extension, where it is a file of its own; else its key is its name.
    fn name(&self, _i: usize) -> Option<String> {
        None
    }

    /// The shard that sample `i` lies in, for messages.
    fn shard(&self, _i: usize) -> Option<String> {
        None
    }

    /// What the classes are called, by index, where the source knows.
    fn class_names(&self) -> Option<&[String]>;

    /// Which samples are drawn alike.
    fn parts(&self) -> Vec<Part> {
        vec![Part { samples: self.len(), weight: 1.0, shards: vec![] }]
    }

    /// How many samples an epoch of training draws: all, unless some weigh more or less.
    fn epoch(&self) -> usize {
        self.parts().iter().map(|part| part.drawn() as usize).sum()
    }

    /// What was found wrong when the source was opened, a line each; such parts are left out.
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }

    /// Takes note that these samples will be read soon, in any order, each as often as it is named; over a network they are
    /// fetched meanwhile, and from a disk those that lie together.
    fn expect(&self, _samples: &[usize]) {}

    /// Takes note that none of those expected will be read.
    fn forget(&self) {}
}

/// Opens a data spec: a folder of `.tar`, a `.tar`, a pattern of them (`*`, `?`, `{000..099}`, `{a,b}`), a folder of
/// images, a folder of class folders, or pair tables (`.csv`, `.tsv`, `.jsonl`, `.json`, `.parquet`, `.txt`; patterns
/// too). With the feature `remote` also URLs of shards (`s3://`, `gs://`, `az://`, `abfs://`, `http://`, `https://`), with
/// braces or, where the store lists them, of their folder, ended by `/`.
///
/// # Errors
/// When nothing is there, saying what was looked for and what was found.
pub fn open(spec: &str) -> Result<Arc<dyn Source>, DataError> {
    open_with(&[spec.to_owned()], &PairOptions::default())
}

/// Opens several specs as one source, in their order.
///
/// # Errors
/// As [`open`]; when there are no specs; when two of them name their classes differently.
pub fn open_all(specs: &[String]) -> Result<Arc<dyn Source>, DataError> {
    open_with(specs, &PairOptions::default())
}

/// As [`open_all`], with options for the pair tables among them.
///
/// # Errors
/// As [`open_all`].
pub fn open_with(specs: &[String], options: &PairOptions) -> Result<Arc<dyn Source>, DataError> {
    let sets: Vec<Set> = specs.iter().map(|spec| Set::from(spec.as_str())).collect();
    open_sets(&sets, options)
}

/// A set to train on among others: in a recipe its spec, or `{ data = SPEC, weight = 2.0, pairs = { ... } }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// What [`open`] takes.
    pub data: String,
    /// How often each of its samples comes in an epoch, above 0.
    pub weight: f64,
    /// How its tables of pairs are read, where they are no ones like the others.
    pub pairs: Option<PairOptions>,
}

impl From<&str> for Set {
    fn from(spec: &str) -> Set {
        Set { data: spec.to_owned(), weight: 1.0, pairs: None }
    }
}

/// [`Set`] as a table.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetTable {
    data: String,
    #[serde(default = "one")]
    weight: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pairs: Option<PairOptions>,
}

fn one() -> f64 {
    1.0
}

impl<'de> Deserialize<'de> for Set {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Set, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Set;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, or { data = path, weight = number, pairs = { ... } }")
            }

            fn visit_str<E>(self, spec: &str) -> Result<Set, E> {
                Ok(Set::from(spec))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Set, A::Error> {
                let table = SetTable::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Set { data: table.data, weight: table.weight, pairs: table.pairs })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Serialize for Set {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Set { data, weight, pairs } = self.clone();
        if weight == 1.0 && pairs.is_none() {
            return serializer.serialize_str(&data);
        }
        SetTable { data, weight, pairs }.serialize(serializer)
    }
}

/// Opens several sets as one source, in their order. `options` are for those without their own.
///
/// # Errors
/// As [`open_all`]; when a weight is none.
pub fn open_sets(sets: &[Set], options: &PairOptions) -> Result<Arc<dyn Source>, DataError> {
    let mut sources = vec![];
    for Set { data, weight, pairs } in sets {
        // Far above any use, and far below what a count of samples holds.
        if !(*weight > 0.0 && *weight <= 1e6) {
            let reason = format!("of {data}: must be above 0, and at most a million");
            return Err(DataError::Option { field: "weight", value: weight.to_string(), reason });
        }
        let paths = expand(data)?;
        if paths.iter().all(|path| path.is_file() && is_table(path)) {
            for path in paths {
                let pairs = Pairs::open(&path, pairs.as_ref().unwrap_or(options))?;
                sources.push((data, *weight, Arc::new(pairs) as Arc<dyn Source>));
            }
        } else {
            let pairs = pairs.as_ref().unwrap_or(options);
            sources.push((data, *weight, pictures(data, paths, pairs.captions())?));
        }
    }
    join(sources)
}

/// Whether a file, or a spec, is a table of pairs by its extension.
pub fn is_table(path: impl AsRef<Path>) -> bool {
    pairs::EXTENSIONS.iter().any(|extension| has_extension(path.as_ref(), extension))
}

/// Shards or a folder.
fn pictures(
    spec: &str,
    paths: Vec<PathBuf>,
    captions: Captions,
) -> Result<Arc<dyn Source>, DataError> {
    if let [dir] = paths.as_slice()
        && dir.is_dir()
    {
        let (tars, folders) = (tars(dir)?.len(), subfolders(dir)?);
        if tars == 0 {
            return Ok(Arc::new(Folder { captions, ..Folder::open(dir)? }));
        }
        // ImageNet's archives lie beside what was unpacked from them.
        if let Some(first) = folders.first() {
            tracing::warn!(
                "{spec}: its {tars} .tar are read, and not its folders; name one for that, as {}",
                dir.join(first).display()
            );
        }
    }
    Ok(Arc::new(Shards::open(shards(spec, paths)?, captions)?))
}

/// The shards that a spec means.
///
/// # Errors
/// When it means something else, or nothing.
pub(crate) fn shards_of(spec: &str) -> Result<Vec<PathBuf>, DataError> {
    shards(spec, expand(spec)?)
}

fn shards(spec: &str, mut paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, DataError> {
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
    let is_shard = |path: &&PathBuf| has_extension(path, "tar") && (is_url(path) || path.is_file());
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
            pairs::EXTENSIONS.join(", .")
        )),
        None if paths.is_empty() => wrong("there is no .tar shard in it".into()),
        None => Ok(paths),
    }
}

/// The shards in a folder, on a disk or elsewhere: its plain files that end in `.tar`, sorted, hidden ones left out.
///
/// # Errors
/// When it can't be listed.
pub fn tars(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    if is_url(dir) {
        let spec = format!("{}/", dir.display());
        return elsewhere(&spec).map_err(|reason| DataError::NotFound { spec, reason });
    }
    let is_shard = |path: &PathBuf| has_extension(path, "tar") && path.is_file();
    Ok(listing(dir)?.into_iter().filter(is_shard).collect())
}

/// Endings of archives that aren't read as they are.
const PACKED: [&str; 8] = ["gz", "tgz", "zip", "zst", "xz", "bz2", "7z", "lz4"];

/// Sources end to end, each with the spec it is from and its weight.
fn join(mut sources: Vec<(&String, f64, Arc<dyn Source>)>) -> Result<Arc<dyn Source>, DataError> {
    if let [(_, 1.0, _)] = sources.as_slice() {
        return Ok(sources.remove(0).2);
    }
    let named = sources.iter().filter_map(|(spec, _, source)| Some((spec, source.class_names()?)));
    let named: Vec<_> = named.collect();
    if let Some(pair) = named.windows(2).find(|pair| pair[0].1 != pair[1].1) {
        let [first, second] = [pair[0].0, pair[1].0].map(|spec| spec.to_string());
        return Err(DataError::ClassNames { first, second });
    }
    if sources.is_empty() {
        let reason = "give at least one path".into();
        return Err(DataError::NotFound { spec: "(nothing)".into(), reason });
    }
    let weighted = sources.into_iter().map(|(_, weight, source)| (source, weight));
    let (sources, weights): (Vec<Arc<dyn Source>>, Vec<f64>) = weighted.unzip();
    let starts = sources
        .iter()
        .scan(0, |end, source| {
            let start = *end;
            *end += source.len();
            Some(start)
        })
        .collect();
    Ok(Arc::new(Several { sources, weights, starts }))
}

/// Image files one by one, in the order of their paths; the folders that they lie in are no classes.
///
/// # Errors
/// When one isn't there.
pub fn open_files(mut paths: Vec<PathBuf>) -> Result<Arc<dyn Source>, DataError> {
    paths.sort();
    if let Some(path) = paths.iter().find(|path| !path.is_file()) {
        let spec = path.display().to_string();
        return Err(DataError::NotFound { spec, reason: absent(path) });
    }
    Ok(Arc::new(Files(paths)))
}

/// Several sources end to end.
struct Several {
    sources: Vec<Arc<dyn Source>>,
    weights: Vec<f64>,
    /// Where each begins.
    starts: Vec<usize>,
}

impl Several {
    fn which(&self, i: usize) -> usize {
        self.starts.partition_point(|&start| start <= i) - 1
    }

    fn at(&self, i: usize) -> (&dyn Source, usize) {
        let which = self.which(i);
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

    fn name(&self, i: usize) -> Option<String> {
        let (source, i) = self.at(i);
        source.name(i)
    }

    fn shard(&self, i: usize) -> Option<String> {
        let (source, i) = self.at(i);
        source.shard(i)
    }

    fn class_names(&self) -> Option<&[String]> {
        self.sources.iter().find_map(|source| source.class_names())
    }

    fn parts(&self) -> Vec<Part> {
        let weighted = self.sources.iter().zip(&self.weights);
        weighted
            .flat_map(|(source, weight)| {
                let parts = source.parts().into_iter();
                parts.map(move |part| Part { weight: part.weight * weight, ..part })
            })
            .collect()
    }

    fn problems(&self) -> Vec<String> {
        self.sources.iter().flat_map(|source| source.problems()).collect()
    }

    fn expect(&self, samples: &[usize]) {
        let mut of_each = vec![vec![]; self.sources.len()];
        for &i in samples {
            let which = self.which(i);
            of_each[which].push(i - self.starts[which]);
        }
        self.sources.iter().zip(of_each).for_each(|(source, samples)| source.expect(&samples));
    }

    fn forget(&self) {
        self.sources.iter().for_each(|source| source.forget());
    }
}

/// A folder of images, or of class folders; at any depth below. Who knows the classes better says so by
/// [`relabel`](Folder::relabel) and `names`.
#[derive(Debug)]
pub struct Folder {
    /// Where it is.
    pub root: PathBuf,
    /// What the classes are called, by index.
    pub names: Option<Vec<String>>,
    files: Listing,
    /// The class of every image.
    classes: Vec<Option<u32>>,
    captions: Captions,
    /// What was left out.
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
        let captions = Captions::default();
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
    Ok(listing(dir)?.into_iter().filter(|path| path.is_dir()).filter_map(name).collect())
}

/// Whether an image lies in `dir` or below it, hidden files and what systems leave behind left out; links are followed, but
/// not in circles. A folder that can't be listed holds none.
pub fn holds_images(dir: &Path) -> bool {
    fn below(dir: &Path, above: &mut Vec<PathBuf>) -> bool {
        let (Ok(paths), Ok(real)) = (listing(dir), dir.canonicalize()) else { return false };
        if above.contains(&real) {
            return false;
        }
        above.push(real);
        let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) =
            paths.into_iter().partition(|path| path.is_dir());
        let image = |path: &PathBuf| {
            path.extension().and_then(std::ffi::OsStr::to_str).is_some_and(decode::is_image)
        };
        let found = files.iter().any(image) || folders.iter().any(|folder| below(folder, above));
        above.pop();
        found
    }
    below(dir, &mut vec![])
}

/// The bytes of an image file, of the sample `key`.
pub(crate) fn image_file(path: &Path, key: impl FnOnce() -> String) -> Result<Vec<u8>, DataError> {
    let found = fs::metadata(path).map_err(DataError::io("read", path))?;
    // No image of the allowed number of pixels needs more than this, whatever its format.
    let reason = match found.len() {
        _ if !found.is_file() => format!("{} is no file", path.display()),
        size if size > 8 * MAX_PIXELS => format!("{size} bytes are too many for an image"),
        _ => return fs::read(path).map_err(DataError::io("read", path)),
    };
    Err(DataError::Sample { key: key(), reason })
}

/// Image files named one by one.
struct Files(Vec<PathBuf>);

impl Source for Files {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn read(&self, i: usize) -> Result<Sample, DataError> {
        let (path, key) = (&self.0[i], self.key(i));
        let image = image_file(path, || key.clone())?;
        let mut sample = Sample { key, image, ..Sample::default() };
        sample.add_companions(path, SPELLINGS.into_iter(), Captions::default())?;
        Ok(sample)
    }

    fn key(&self, i: usize) -> String {
        self.0[i].with_extension("").to_string_lossy().into_owned()
    }

    fn name(&self, i: usize) -> Option<String> {
        Some(self.0[i].to_string_lossy().into_owned())
    }

    fn class_names(&self) -> Option<&[String]> {
        None
    }
}

/// How the extensions of [`Companion`]s are written, where no listing tells.
const SPELLINGS: [&str; 6] = ["CLS", "JSON", "TXT", "cls", "json", "txt"];

impl Sample {
    /// Takes in what lies beside an image file under these extensions; of two of a kind the later one.
    fn add_companions<'a>(
        &mut self,
        image: &Path,
        spellings: impl Iterator<Item = &'a str>,
        captions: Captions,
    ) -> Result<(), DataError> {
        for extension in spellings {
            let beside = image.with_extension(extension);
            match fs::read(&beside) {
                Ok(contents) => self.add(extension, &contents, captions),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(DataError::io("read", &beside)(e)),
            }
        }
        Ok(())
    }
}

fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(wanted))
}

/// The sorted entries of a folder, hidden ones and [junk](is_passed_over) left out.
fn listing(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut paths = vec![];
    for entry in fs::read_dir(dir).map_err(DataError::io("list", dir))? {
        let entry = entry.map_err(DataError::io("list", dir))?;
        if !is_passed_over(&entry.file_name()) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

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
        return elsewhere(spec).map_err(missing);
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

/// Whether a spec, or a path that it means, is a URL.
pub fn is_url(spec: impl AsRef<Path>) -> bool {
    spec.as_ref().to_str().is_some_and(|spec| spec.contains("://"))
}

/// The URLs of shards that the URL of a spec means; or why it means none.
#[cfg(feature = "remote")]
fn elsewhere(spec: &str) -> Result<Vec<PathBuf>, String> {
    let mut urls = vec![];
    for url in braces(spec)? {
        urls.extend(crate::storage::remote::shards(&url)?);
    }
    Ok(urls)
}

#[cfg(not(feature = "remote"))]
fn elsewhere(spec: &str) -> Result<Vec<PathBuf>, String> {
    /// Those that the feature reads.
    const SCHEMES: [&str; 9] = ["s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "http", "https"];
    let scheme = spec.split_once("://").map_or("", |(scheme, _)| scheme);
    if !scheme.contains('{') && !SCHEMES.contains(&scheme) {
        let hub = match scheme {
            "hf" => {
                "; fetch the files first (`hf download REPOSITORY --repo-type dataset --local-dir DIR`)"
            }
            _ => "",
        };
        return Err(format!("{scheme}:// is no kind of address that is read{hub}"));
    }
    let build = "cargo build --release -p uta --features remote";
    Err(format!("this program reads nothing from a network; one built by `{build}` does"))
}

/// How much of a path that does not exist does exist.
fn absent(path: &Path) -> String {
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
    use crate::source::shards::{Limit, ShardWriter};
    use crate::testing::png;

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
    fn nothing_to_read_says_what_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        let e = open(root).err().unwrap().to_string();
        assert!(e.contains("looked for images") && e.contains(root), "{e}");
        let e = open(&format!("{root}/x-*.tar")).err().unwrap().to_string();
        assert!(e.contains("nothing matches"), "{e}");
        let e = open(&format!("{root}/none")).err().unwrap().to_string();
        assert!(e.contains("there is no") && e.contains(&format!("({root} exists)")), "{e}");
        if cfg!(not(feature = "remote")) {
            let e = open("s3://bucket/{000..099}.tar").err().unwrap().to_string();
            assert!(e.contains("cargo build --release -p uta --features remote"), "{e}");
            let e = open("hf://datasets/a/b").err().unwrap().to_string();
            assert!(e.contains("hf:// is no kind of address") && e.contains("hf download"), "{e}");
            assert!(!e.contains("--features"), "{e}");
        }
        let e = open("pipe:aws s3 cp s3://bucket/0.tar -").err().unwrap().to_string();
        assert!(e.contains("no commands are run"), "{e}");
        fs::create_dir(dir.path().join("train")).unwrap();
        fs::write(dir.path().join("train/a.tar"), b"").unwrap();
        let e = open(root).err().unwrap().to_string();
        assert!(e.contains("1 shards in folders below") && e.contains("train"), "{e}");
        fs::remove_dir_all(dir.path().join("train")).unwrap();
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
            (sample.key.as_str(), sample.class, sample.meta.as_slice()),
            ("k4", Some(3), &b"{\"a\":1}"[..])
        );
        fs::remove_file(&shards[1]).unwrap();
        let e = source.read(2).unwrap_err().to_string();
        assert!(e.contains("s-000001.tar"), "{e}");
        assert!(source.read(0).is_ok());
    }

    #[test]
    fn sets_are_written_as_paths_or_as_tables_with_weights_and_read_as_such() {
        let written = r#"["a.tar",{"data":"b.tsv","weight":2.5,"pairs":{"image_key":"url"}}]"#;
        let sets: Vec<Set> = serde_json::from_str(written).unwrap();
        assert_eq!(sets[0], Set::from("a.tar"));
        assert_eq!((sets[1].data.as_str(), sets[1].weight), ("b.tsv", 2.5));
        assert_eq!(serde_json::to_string(&sets).unwrap(), written);
        let e = serde_json::from_str::<Set>(r#"{"data":"a","wieght":1}"#).unwrap_err().to_string();
        assert!(e.contains("`wieght`") && e.contains("`weight`"), "{e}");

        let dir = tempfile::tempdir().unwrap();
        let mut specs = vec![];
        for (name, samples) in [("a", 4), ("b", 3)] {
            let mut writer = ShardWriter::create(dir.path(), name, Limit::default()).unwrap();
            for i in 0..samples {
                writer.write(&format!("{name}{i}"), &[("png", &png(2, 2, [0; 3]))]).unwrap();
            }
            specs.push(writer.finish().unwrap().remove(0).display().to_string());
        }
        let set = |spec: &String, weight| Set { weight, ..Set::from(spec.as_str()) };
        let sets = [set(&specs[0], 0.5), set(&specs[1], 2.0)];
        let source = open_sets(&sets, &PairOptions::default()).unwrap();
        assert_eq!((source.len(), source.epoch()), (7, 8));
        assert_eq!(source.parts()[1], Part { samples: 3, weight: 2.0, shards: vec![3] });
        let alone = open_sets(&sets[1..], &PairOptions::default()).unwrap();
        assert_eq!((alone.len(), alone.epoch()), (3, 6));
        let e = open_sets(&[set(&specs[0], 0.0)], &PairOptions::default()).err().unwrap();
        assert!(e.to_string().contains("weight = 0: of"), "{e}");
        let e = open(&specs.join("::")).err().unwrap().to_string();
        assert!(e.contains("not joined by ::"), "{e}");
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

    #[test]
    fn sets_that_name_their_classes_differently_are_not_mixed() {
        let dir = tempfile::tempdir().unwrap();
        let set = |name: &str, class: &str| {
            let folder = dir.path().join(name).join(class);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("x.png"), png(2, 2, [0; 3])).unwrap();
            dir.path().join(name).display().to_string()
        };
        let (a, b, c) = (set("a", "cat"), set("b", "cat"), set("c", "dog"));
        let both = open_all(&[a.clone(), b]).unwrap();
        assert_eq!((both.len(), both.class_names().unwrap().len()), (2, 1));
        let e = open_all(&[a, c]).err().unwrap().to_string();
        assert!(e.contains("name their classes differently"), "{e}");
        assert!(open_all(&[]).is_err());
    }
}
