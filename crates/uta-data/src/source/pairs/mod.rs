//! Pair tables: images named beside their captions, in CSV, TSV, JSON, JSON lines, Parquet, the files of COCO and of
//! Karpathy's splits, and the plain text of Flickr's captions.
//!
//! The rows of an image are one sample with all of their captions. The table is read once and held as two runs of text
//! with offsets; images are read when they are asked for. What of the table cannot be used is counted, and the first few
//! places named ([`Source::problems`]).

mod parquet;
mod python;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use serde::de::{DeserializeSeed, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::error::DataError;
use crate::image::decode::is_image;
use crate::source::Source;
use crate::source::file::image_file;
use crate::source::sample::{Captions, Sample};
use crate::text::without_mark;

/// How images are paired with captions; open_clip's names of columns where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairOptions {
    /// The folder of the images, and a fence: a path that leads out of it is refused (a link in it is followed). Else paths are
    /// taken as they are written, relative ones from the folder of the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
    /// The column of the image's path, or of its bytes (Parquet); `filepath` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_key: Option<String>,
    /// The column of the caption, or of a list of captions (JSON, Parquet); `title` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caption_key: Option<String>,
    /// Only rows whose `split` is this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// What a `.txt` beside an image is, where there is no table; lines if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captions: Option<Captions>,
}

impl PairOptions {
    /// Whether nothing is said.
    pub fn is_plain(&self) -> bool {
        *self == PairOptions::default()
    }

    /// What is for tables alone.
    pub fn of_table(&self) -> PairOptions {
        PairOptions { captions: None, ..self.clone() }
    }

    /// The same, with `captions` for what a `.txt` is where nothing is said of it.
    pub fn or_captions(&self, captions: Captions) -> PairOptions {
        PairOptions { captions: self.captions.or(Some(captions)), ..self.clone() }
    }

    pub(crate) fn captions(&self) -> Captions {
        self.captions.unwrap_or_default()
    }

    fn image_key(&self) -> &str {
        self.image_key.as_deref().unwrap_or("filepath")
    }

    fn caption_key(&self) -> &str {
        self.caption_key.as_deref().unwrap_or("title")
    }
}

/// The column that names the split of a row.
const SPLIT: &str = "split";

/// Bytes of a table of text: its captions are held in memory.
const MAX_TABLE: u64 = 16 << 30;
/// Bytes of a JSON document, which is not read line by line.
const MAX_JSON: u64 = 4 << 30;
/// Bytes of a caption, or of a path: more is a quote that was never closed, or no text.
const MAX_TEXT: usize = 1 << 16;

/// What to do about a quote that takes in more than its field.
const QUOTING: &str = "put the whole field in quotes and double those within (\"say \"\"hi\"\"\"), or take the quote out";

/// What the columns of a `.txt` may be called where no names are given.
const NAME_COLUMNS: [&str; 5] = ["image", "image_name", "filename", "file_name", "filepath"];
const CAPTION_COLUMNS: [&str; 4] = ["caption", "comment", "title", "text"];

/// Where COCO's and Flickr's images lie below the folder that was named, as their archives unpack.
const FOLDERS: [&str; 9] = [
    "",
    "val2014",
    "train2014",
    "val2017",
    "train2017",
    "flickr30k-images",
    "flickr30k_images",
    "images",
    "Images",
];

/// A table of images and captions.
pub(crate) struct Pairs {
    images: Images,
    captions: Strings,
    /// Captions `starts[i]..starts[i + 1]` are sample i's.
    starts: Vec<u32>,
    problems: Vec<String>,
}

/// Where the images are.
enum Images {
    Files(Files),
    Rows(parquet::Rows),
}

impl Pairs {
    /// Reads the table at `path`, whose extension is one of `TABLES`.
    ///
    /// # Errors
    /// When it can't be read, lacks the columns or the split, names no image, or none of its images is there.
    pub(crate) fn open(path: &Path, options: &PairOptions) -> Result<Pairs, DataError> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        let mut rows = Reading::new(path, options);
        let (limit, mut known_set, mut images) = (MAX_TABLE, false, None);
        let size = fs::metadata(path).map_err(DataError::io("read", path))?.len();
        if size > limit && extension != "parquet" {
            return Err(rows.fail(format!("{size} bytes; a table has at most {limit}: split it")));
        }
        if extension != "parquet" {
            rows.is_utf8()?;
        }
        match extension.to_str().unwrap_or_default() {
            "csv" => rows.delimited([b',', b'\t', b'|'])?,
            "tsv" => rows.delimited([b'\t', b',', b'|'])?,
            "json" => known_set = rows.json(size)?,
            "parquet" => images = parquet::read(&mut rows)?,
            "txt" => {
                known_set = true;
                rows.lines()?;
            }
            _ => rows.json_lines()?,
        }
        rows.finish(images, known_set)
    }
}

impl Source for Pairs {
    fn len(&self) -> usize {
        self.starts.len() - 1
    }

    fn read(&self, i: usize) -> Result<Sample, DataError> {
        let broken = |reason: String| DataError::Sample { key: self.key(i), reason };
        let image = match &self.images {
            Images::Files(files) => {
                image_file(&files.locate(files.names.get(i)).map_err(broken)?, || self.key(i))?
            }
            Images::Rows(rows) => rows.image(i).map_err(broken)?,
        };
        let captions = self.starts[i] as usize..self.starts[i + 1] as usize;
        let captions = captions.map(|c| self.captions.get(c).to_owned()).collect();
        Ok(Sample { key: self.key(i), image, captions, ..Sample::default() })
    }

    fn key(&self, i: usize) -> String {
        match &self.images {
            Images::Files(files) => {
                Path::new(files.names.get(i)).with_extension("").to_string_lossy().into_owned()
            }
            Images::Rows(rows) => rows.key(i),
        }
    }

    fn name(&self, i: usize) -> Option<String> {
        match &self.images {
            Images::Files(files) => Some(files.names.get(i).to_owned()),
            Images::Rows(_) => None,
        }
    }

    fn class_names(&self) -> Option<&[String]> {
        None
    }

    fn problems(&self) -> Vec<String> {
        self.problems.clone()
    }
}

/// Images as files.
struct Files {
    names: Strings,
    root: PathBuf,
    /// Whether nothing outside of the root is read.
    fenced: bool,
    /// Which of [`FOLDERS`] they lie in.
    folder: &'static str,
    /// Whether the folders that names begin with are not on the disk.
    flat: bool,
}

impl Files {
    /// Where the image of that name is, or why it isn't looked for.
    fn locate(&self, name: &str) -> Result<PathBuf, String> {
        if name.contains("://") {
            return Err("only files of this machine are read".into());
        }
        let written = Path::new(name);
        let written = match self.flat {
            true => Path::new(written.file_name().unwrap_or_default()),
            false => written,
        };
        let path = match written.is_absolute() {
            true => written.to_owned(),
            false => self.root.join(self.folder).join(written),
        };
        let up = written.components().any(|part| part == Component::ParentDir);
        if self.fenced && (up || !path.starts_with(&self.root)) {
            return Err(format!("lies outside of {}", self.root.display()));
        }
        Ok(path)
    }

    /// Finds out how the images lie on the disk, from some of them.
    ///
    /// # Errors
    /// When none of these is there in any way.
    fn settle(&mut self, table: &Path, known_set: bool) -> Result<(), DataError> {
        const PROBED: usize = 64;
        let n = self.names.len();
        let probes: Vec<usize> = (0..n.min(PROBED)).map(|i| i * n / n.min(PROBED)).collect();
        let ways = if known_set { &FOLDERS[..] } else { &FOLDERS[..1] };
        for flat in [false, true].into_iter().take(if known_set { 2 } else { 1 }) {
            for folder in ways {
                (self.folder, self.flat) = (folder, flat);
                let there =
                    |&i: &usize| self.locate(self.names.get(i)).is_ok_and(|path| path.is_file());
                if probes.iter().any(there) {
                    return Ok(());
                }
            }
        }
        (self.folder, self.flat) = ("", false);
        let first = match self.locate(self.names.get(0)) {
            Ok(path) => format!("no {}", path.display()),
            Err(reason) => format!("{} {reason}", self.names.get(0)),
        };
        let also = if known_set { ", nor in folders like val2014/" } else { "" };
        let reason = format!(
            "none of its {n} images is there ({first}{also}); say where they are (--images DIR; images in a recipe's [data.pairs])"
        );
        Err(DataError::Table { path: table.to_owned(), reason })
    }
}

/// Many strings in one.
#[derive(Default)]
struct Strings {
    text: String,
    ends: Vec<u64>,
}

impl Strings {
    fn push(&mut self, s: &str) {
        self.text.push_str(s);
        self.ends.push(self.text.len() as u64);
    }

    fn get(&self, i: usize) -> &str {
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        &self.text[start..self.ends[i] as usize]
    }

    fn len(&self) -> usize {
        self.ends.len()
    }
}

/// A table while it is read.
struct Reading<'a> {
    path: &'a Path,
    options: &'a PairOptions,
    names: Strings,
    /// Which image has a name of that hash; of another name with it, the hash after.
    seen: HashMap<u64, u32>,
    hasher: RandomState,
    captions: Strings,
    owners: Vec<u32>,
    /// Rows a split, where rows have one.
    splits: BTreeMap<String, usize>,
    faults: BTreeMap<&'static str, (usize, Vec<String>)>,
}

impl<'a> Reading<'a> {
    fn new(path: &'a Path, options: &'a PairOptions) -> Reading<'a> {
        Reading {
            path,
            options,
            names: Strings::default(),
            seen: HashMap::new(),
            hasher: RandomState::new(),
            captions: Strings::default(),
            owners: Vec::new(),
            splits: BTreeMap::new(),
            faults: BTreeMap::new(),
        }
    }

    fn fail(&self, reason: impl Into<String>) -> DataError {
        DataError::Table { path: self.path.to_owned(), reason: reason.into() }
    }

    /// Looks at the mark of byte order that the text may begin with.
    fn is_utf8(&self) -> Result<(), DataError> {
        let mut start = vec![];
        File::open(self.path)
            .and_then(|file| file.take(2).read_to_end(&mut start))
            .map_err(DataError::io("read", self.path))?;
        match start == *b"\xff\xfe" || start == *b"\xfe\xff" {
            true => Err(self.fail("is UTF-16: save it as UTF-8")),
            false => Ok(()),
        }
    }

    /// The columns that are looked for are not there.
    fn no_column(&self, wanted: &str, found: impl Iterator<Item = impl Display>) -> DataError {
        let short = |name: String| name.chars().take(40).collect::<String>();
        let found: Vec<String> = found.take(20).map(|name| short(name.to_string())).collect();
        self.fail(format!(
            "has no column {wanted}, but {}; name the columns (--image-key, --caption-key; image_key, caption_key in a recipe's [data.pairs])",
            found.join(", ")
        ))
    }

    /// Counts something that is left out, at a place like "line 7".
    fn fault(&mut self, what: &'static str, place: impl Display) {
        const NAMED: usize = 3;
        let (count, places) = self.faults.entry(what).or_default();
        *count += 1;
        if *count <= NAMED {
            places.push(place.to_string());
        }
    }

    /// Whether a row of that split is asked for.
    fn takes(&mut self, split: Option<&str>, place: impl Display) -> bool {
        // More names than any file of splits has: it is another kind of column.
        const MOST: usize = 100;
        match split.map(str::trim).filter(|split| !split.is_empty()) {
            Some(split) => {
                let wanted = self.options.split.as_deref();
                if self.splits.len() < MOST || wanted == Some(split) {
                    *self.splits.entry(split.into()).or_default() += 1;
                } else if let Some(n) = self.splits.get_mut(split) {
                    *n += 1;
                }
                wanted.is_none_or(|wanted| wanted == split)
            }
            None => {
                if self.options.split.is_some() {
                    self.fault("rows in no split", place);
                }
                self.options.split.is_none()
            }
        }
    }

    /// The image of that name, new or known.
    fn image(&mut self, name: &str) -> (u32, bool) {
        let mut hash = self.hasher.hash_one(name);
        loop {
            match self.seen.get(&hash) {
                None => break,
                Some(&i) if self.names.get(i as usize) == name => return (i, false),
                Some(_) => hash = hash.wrapping_add(1),
            }
        }
        let i = self.names.len() as u32;
        self.names.push(name);
        self.seen.insert(hash, i);
        (i, true)
    }

    /// Adds a row: an image and its captions, `None` for one that is no text.
    fn row<'b>(
        &mut self,
        place: impl Display,
        name: Option<&str>,
        captions: impl IntoIterator<Item = Option<&'b str>>,
    ) {
        let usable = |name: &&str| !name.is_empty() && name.len() <= MAX_TEXT;
        match name.map(str::trim).filter(usable) {
            None => self.fault("rows without an image", place),
            Some(name) => {
                let (image, _) = self.image(name);
                self.captions(place, image, captions);
            }
        }
    }

    /// Adds captions of an image.
    fn captions<'b>(
        &mut self,
        place: impl Display,
        image: u32,
        captions: impl IntoIterator<Item = Option<&'b str>>,
    ) {
        let (before, mut broken) = (self.owners.len(), 0);
        for caption in captions {
            match caption.map(str::trim) {
                Some(caption) if !caption.is_empty() && caption.len() <= MAX_TEXT => {
                    self.captions.push(caption);
                    self.owners.push(image);
                }
                _ => broken += 1,
            }
        }
        if broken > 0 {
            self.fault("captions that are empty, too long or no text", place);
        } else if before == self.owners.len() {
            self.fault("rows without a caption", place);
        }
    }

    /// Text with delimiters and a header; the first delimiter that finds both columns is the table's, since open_clip
    /// reads tabs from files called .csv.
    fn delimited(&mut self, delimiters: [u8; 3]) -> Result<(), DataError> {
        let (image, caption) = (self.options.image_key(), self.options.caption_key());
        let mut columns = vec![];
        for delimiter in delimiters {
            let (reader, header) = self.reader(delimiter)?;
            let find = |name: &str| header.iter().position(|h| h.trim_ascii() == name.as_bytes());
            if let (Some(image), Some(caption)) = (find(image), find(caption)) {
                let width = header.len();
                return self.records(reader, delimiter, width, [image, caption], find(SPLIT));
            }
            if columns.len() < header.len() {
                columns = header.iter().map(|h| String::from_utf8_lossy(h).into_owned()).collect();
            }
        }
        let wanted = if columns.iter().any(|c| c.trim() == image) { caption } else { image };
        Err(self.no_column(wanted, columns.iter()))
    }

    /// A reader of the records, and the header.
    fn reader(
        &self,
        delimiter: u8,
    ) -> Result<(csv::Reader<BufReader<File>>, csv::ByteRecord), DataError> {
        let file = File::open(self.path).map_err(DataError::io("read", self.path))?;
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .flexible(true)
            .from_reader(BufReader::with_capacity(1 << 16, file));
        let header = reader.byte_headers().map_err(|e| self.fail(e.to_string()))?.clone();
        match header.iter().any(|name| name.contains(&b'\n')) {
            true => {
                Err(self.fail(format!("line 1 opens a quote that is not closed in it; {QUOTING}")))
            }
            false => Ok((reader, header)),
        }
    }

    /// The records after the header, which has `width` columns.
    fn records(
        &mut self,
        mut reader: csv::Reader<BufReader<File>>,
        delimiter: u8,
        width: usize,
        [image, caption]: [usize; 2],
        split: Option<usize>,
    ) -> Result<(), DataError> {
        let mut record = csv::ByteRecord::new();
        let mut open_quote = None;
        while reader.read_byte_record(&mut record).map_err(|e| self.fail(e.to_string()))? {
            let line = record.position().map_or(0, |at| at.line());
            // Whatever else has lines was closed before the field after it.
            let last = record.iter().next_back().unwrap_or_default();
            open_quote = last.contains(&b'\n').then_some(line);
            let place = format_args!("line {line}");
            if let Some((below, row)) = self.swallowed(&record, delimiter, width, image) {
                let below = line + below as u64;
                return Err(self.fail(format!(
                    "line {line} opens a quote that is still open at line {below}, a row of its own ({row}); {QUOTING}"
                )));
            }
            if record.len() != width {
                self.fault("rows of another number of columns than the header", place);
                continue;
            }
            let text = |column: usize| std::str::from_utf8(&record[column]).ok();
            if self.takes(split.and_then(text), place) {
                self.row(place, text(image), [text(caption)]);
            }
        }
        // A quote that is never closed takes in all rows after it.
        let mut file = reader.into_inner().into_inner();
        let mut end = vec![];
        let size = file.seek(SeekFrom::End(0)).map_err(DataError::io("read", self.path))?;
        file.seek(SeekFrom::Start(size.saturating_sub(64)))
            .and_then(|_| file.read_to_end(&mut end))
            .map_err(DataError::io("read", self.path))?;
        match open_quote {
            Some(line) if end.trim_ascii_end().last() != Some(&b'"') => {
                Err(self.fail(format!("line {line} opens a quote that is never closed; {QUOTING}")))
            }
            _ => Ok(()),
        }
    }

    /// The row that a field of `record` holds besides its own text, because its quote is closed by another's: how many lines
    /// below the record's start it is, and how it begins. Captions may have lines, but none with an image's name in the
    /// image's column.
    fn swallowed(
        &self,
        record: &csv::ByteRecord,
        delimiter: u8,
        width: usize,
        image: usize,
    ) -> Option<(usize, String)> {
        let own = std::str::from_utf8(record.get(image)?).unwrap_or_default();
        let name = if self.names.len() > 0 { self.names.get(0) } else { own };
        let mut below = 0;
        for (column, field) in record.iter().enumerate() {
            let lines: Vec<&[u8]> = field.split(|&byte| byte == b'\n').collect();
            for (i, line) in lines.iter().enumerate().filter(|_| lines.len() > 1) {
                let line = String::from_utf8_lossy(line);
                let pieces: Vec<&str> = line.split(char::from(delimiter)).collect();
                let row = match i {
                    // The rest of the row that the field begins in, where the quote should have been closed.
                    0 => pieces.len() > 1 && column + pieces.len() == width && image > column,
                    _ => pieces.len() > 1 && image < pieces.len(),
                };
                let alike = || is_like(pieces[if i == 0 { image - column } else { image }], name);
                if row && (alike() || delimiter == b'\t' && i > 0 && pieces.len() == width) {
                    // The first line is the row's own: it is the next that is taken in.
                    let first =
                        if i == 0 { String::from_utf8_lossy(lines[1]) } else { line.clone() };
                    let shown: String = first.trim().chars().take(60).collect();
                    return Some((below + i.max(1), shown));
                }
            }
            below += lines.len() - 1;
        }
        None
    }

    /// An object a line.
    fn json_lines(&mut self) -> Result<(), DataError> {
        let file = File::open(self.path).map_err(DataError::io("read", self.path))?;
        let (mut reader, mut text, mut line) = (BufReader::new(file), vec![], 0);
        while reader.read_until(b'\n', &mut text).map_err(DataError::io("read", self.path))? > 0 {
            line += 1;
            let json = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text).trim_ascii();
            if !json.is_empty() {
                let read = serde_json::from_slice(json)
                    .or_else(|_| serde_json::from_slice(&python::to_json(json)));
                match read {
                    Ok(object) => self.object(format_args!("line {line}"), &object)?,
                    Err(_) => {
                        self.fault("rows that are no JSON object", format_args!("line {line}"))
                    }
                }
            }
            text.clear();
        }
        Ok(())
    }

    /// A row as a JSON object. The first one decides whether the keys are right.
    fn object(&mut self, place: impl Display, row: &Map<String, Value>) -> Result<(), DataError> {
        let (image, caption) = (self.options.image_key(), self.options.caption_key());
        if self.names.len() == 0
            && let Some(key) = [image, caption].into_iter().find(|key| !row.contains_key(*key))
        {
            return Err(self.no_column(key, row.keys()));
        }
        let place = place.to_string();
        if !self.takes(row.get(SPLIT).and_then(Value::as_str), &place) {
            return Ok(());
        }
        let name = row.get(image).and_then(Value::as_str);
        match row.get(caption) {
            Some(Value::Array(list)) => self.row(place, name, list.iter().map(Value::as_str)),
            Some(one) => self.row(place, name, [one.as_str()]),
            None => self.row(place, name, []),
        }
        Ok(())
    }

    /// A list of objects, or the file of a known set; returns whether it was one.
    fn json(&mut self, size: u64) -> Result<bool, DataError> {
        if size > MAX_JSON {
            return Err(self.fail(format!(
                "{size} bytes; a JSON document has at most {MAX_JSON}: use JSON lines"
            )));
        }
        let text = fs::read(self.path).map_err(DataError::io("read", self.path))?;
        let json = &*python::to_json(text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text));
        let path = self.path.to_owned();
        let broken = |e: serde_json::Error| DataError::Table { path, reason: e.to_string() };
        if json.trim_ascii_start().first() == Some(&b'[') {
            let mut failed = None;
            let mut item = 0;
            let each = |row: Option<Map<String, Value>>| {
                item += 1;
                match row {
                    Some(row) => failed = self.object(format_args!("item {item}"), &row).err(),
                    None => self.fault("rows that are no JSON object", format_args!("item {item}")),
                }
                failed.is_none()
            };
            let mut reader = serde_json::Deserializer::from_slice(json);
            let read = Each(each).deserialize(&mut reader).and_then(|()| reader.end());
            return match failed {
                Some(error) => Err(error),
                None => read.map_err(broken).map(|()| false),
            };
        }
        let listing: Listing = serde_json::from_slice(json).map_err(broken)?;
        self.listing(listing)?;
        Ok(true)
    }

    /// COCO's or Karpathy's file.
    fn listing(&mut self, listing: Listing) -> Result<(), DataError> {
        let mut by_id = HashMap::new();
        for (entry, at) in listing.images.iter().zip(1..) {
            let Some(file) = entry.filename.as_deref().filter(|name| !name.is_empty()) else {
                self.fault("images without a file name", format_args!("image {at}"));
                continue;
            };
            if !self.takes(entry.split.as_deref(), file) {
                continue;
            }
            let folder = entry.filepath.as_deref().unwrap_or_default();
            let name = if folder.is_empty() { file.into() } else { format!("{folder}/{file}") };
            let (image, new) = self.image(&name);
            if !new {
                self.fault("images listed again; their captions are joined", file);
            }
            if let Some(id) = &entry.id
                && by_id.insert(id, image).is_some_and(|other| other != image)
            {
                self.fault("images with the id of another, which loses its captions", file);
            }
            if let Some(sentences) = &entry.sentences {
                self.captions(file, image, sentences.iter().map(|s| s.raw.as_deref()));
            }
        }
        if self.options.split.is_none() && !self.splits.is_empty() {
            return Err(DataError::Splits {
                path: self.path.to_owned(),
                found: self.split_counts(),
            });
        }
        let mut captioned = vec![false; self.names.len()];
        for Annotation { image_id, caption } in &listing.annotations {
            let id = image_id.as_deref().unwrap_or("without an id");
            match image_id.as_ref().and_then(|id| by_id.get(id)) {
                Some(&image) => {
                    captioned[image as usize] = true;
                    self.captions(format_args!("image {id}"), image, [caption.as_deref()]);
                }
                None => self.fault("captions of no listed image", format_args!("image {id}")),
            }
        }
        if listing.images.iter().all(|entry| entry.sentences.is_none()) {
            let without: Vec<usize> = (0..captioned.len()).filter(|&i| !captioned[i]).collect();
            for i in without {
                let name = self.names.get(i).to_owned();
                self.fault("rows without a caption", name);
            }
        }
        Ok(())
    }

    /// Lines of an image's name and, last, its caption, usually below a header. CLIP_benchmark's (`datasets/flickr.py`) are
    /// `NAME.jpg,CAPTION` without quotes, though captions hold commas; Flickr's own are a CSV. It is one where each caption
    /// with a comma is in quotes.
    fn lines(&mut self) -> Result<(), DataError> {
        let mut first = String::new();
        self.each_line(|_, line| {
            first = line.unwrap_or_default().to_owned();
            false
        })?;
        let given = [&self.options.image_key, &self.options.caption_key];
        let headless = [',', '\t', '|'].into_iter().find(|&mark| named(&first, mark).is_some());
        let table = match headless {
            Some(_) if given.iter().any(|key| key.is_some()) => {
                let reason = "has no header, so that no column has a name: leave --image-key and --caption-key out";
                return Err(self.fail(reason));
            }
            Some(mark) => Lines { mark, width: 2, image: 0, caption: 1, split: None },
            None => self.header(&first)?,
        };
        if table.caption + 1 != table.width {
            let (reader, header) = self.reader(table.mark as u8)?;
            let columns = [table.image, table.caption];
            return self.records(reader, table.mark as u8, header.len(), columns, table.split);
        }
        let (mut quoted, mut bare) = (0, 0);
        self.each_line(|_, line| {
            if let Some((_, caption, _)) = line.and_then(|line| table.row(line)) {
                quoted += usize::from(unquoted(caption).is_some());
                bare += usize::from(unquoted(caption).is_none() && caption.contains(table.mark));
            }
            true
        })?;
        let csv = quoted > 0 && bare == 0;
        let path = self.path;
        Reading::each_line_of(path, |number, line| {
            let place = format_args!("line {number}");
            match line {
                Some(line) if line.is_empty() || number == 1 && headless.is_none() => {}
                Some(line) => match table.row(line) {
                    Some((name, caption, split)) => {
                        if self.takes(split, place) {
                            let undone = unquoted(caption).filter(|_| csv);
                            self.row(place, Some(name), [undone.as_deref().or(Some(caption))]);
                        }
                    }
                    None => self.fault("lines that are not NAME,CAPTION", place),
                },
                None => self.fault("lines that are no text", place),
            }
            true
        })
    }

    /// What the first line says of the lines below it.
    fn header(&self, first: &str) -> Result<Lines, DataError> {
        let columns = |mark: char| first.split(mark).count();
        let mark = [',', '\t', '|'].into_iter().rev().max_by_key(|&mark| columns(mark));
        let mark = mark.unwrap_or(',');
        let names: Vec<&str> =
            first.split(mark).map(|name| name.trim().trim_matches('"').trim()).collect();
        let find = |key: &Option<String>, known: &[&str]| match key {
            Some(key) => names.iter().position(|name| name == key),
            None => known
                .iter()
                .find_map(|known| names.iter().position(|name| name.eq_ignore_ascii_case(known))),
        };
        let PairOptions { image_key, caption_key, .. } = self.options;
        let (image, caption) =
            (find(image_key, &NAME_COLUMNS), find(caption_key, &CAPTION_COLUMNS));
        let width = names.len();
        let (image, caption) = match (image, caption) {
            (Some(image), Some(caption)) => (image, caption),
            // Two columns that are called something else.
            _ if width == 2 && image_key.is_none() && caption_key.is_none() => (0, 1),
            (None, _) => {
                let wanted = image_key.as_deref().unwrap_or(NAME_COLUMNS[0]);
                return Err(self.no_column(wanted, names.iter()));
            }
            (_, None) => {
                let wanted = caption_key.as_deref().unwrap_or(CAPTION_COLUMNS[0]);
                return Err(self.no_column(wanted, names.iter()));
            }
        };
        let split = names.iter().position(|&name| name == SPLIT);
        Ok(Lines { mark, width, image, caption, split })
    }

    /// Calls `each` with the number and the text of every line, trimmed, until it says false; `None` for what is no UTF-8.
    fn each_line(&self, each: impl FnMut(usize, Option<&str>) -> bool) -> Result<(), DataError> {
        Reading::each_line_of(self.path, each)
    }

    fn each_line_of(
        path: &Path,
        mut each: impl FnMut(usize, Option<&str>) -> bool,
    ) -> Result<(), DataError> {
        let file = File::open(path).map_err(DataError::io("read", path))?;
        let (mut reader, mut bytes, mut number) = (BufReader::new(file), vec![], 0);
        while reader.read_until(b'\n', &mut bytes).map_err(DataError::io("read", path))? > 0 {
            number += 1;
            let text = std::str::from_utf8(&bytes).ok();
            let text = text.map(|text| if number == 1 { without_mark(text) } else { text });
            if !each(number, text.map(str::trim)) {
                break;
            }
            bytes.clear();
        }
        Ok(())
    }

    fn split_counts(&self) -> String {
        let found: Vec<String> =
            self.splits.iter().map(|(name, n)| format!("{name} ({n})")).collect();
        found.join(", ")
    }

    fn finish(mut self, rows: Option<parquet::Rows>, known_set: bool) -> Result<Pairs, DataError> {
        let n = rows.as_ref().map_or(self.names.len(), parquet::Rows::len);
        if let Some(wanted) = &self.options.split {
            if self.splits.is_empty() {
                return Err(
                    self.fail(format!("has no splits, so none is {wanted}; leave --split out"))
                );
            }
            if !self.splits.contains_key(wanted) {
                return Err(
                    self.fail(format!("no split is {wanted}; there are {}", self.split_counts()))
                );
            }
        }
        let faults = std::mem::take(&mut self.faults);
        let problems: Vec<String> = faults
            .into_iter()
            .map(|(what, (count, mut places))| {
                if count > places.len() {
                    places.push("...".into());
                }
                format!("{}: {count} {what} ({})", self.path.display(), places.join(", "))
            })
            .collect();
        if n == 0 {
            let found = if problems.is_empty() { "no rows".into() } else { problems.join("; ") };
            let wanted = "rows of an image and a caption".into();
            return Err(DataError::Empty { path: self.path.to_owned(), wanted, found });
        }
        if n > u32::MAX as usize - 1 || self.owners.len() > u32::MAX as usize - 1 {
            return Err(self.fail("more than 4 billion rows; split it"));
        }

        let mut starts = vec![0u32; n + 1];
        for &owner in &self.owners {
            starts[owner as usize + 1] += 1;
        }
        for i in 0..n {
            starts[i + 1] += starts[i];
        }
        if !self.owners.is_sorted() {
            let mut next = starts.clone();
            let mut order = vec![0u32; self.owners.len()];
            for (caption, &owner) in self.owners.iter().enumerate() {
                order[next[owner as usize] as usize] = caption as u32;
                next[owner as usize] += 1;
            }
            let mut sorted = Strings::default();
            order.iter().for_each(|&caption| sorted.push(self.captions.get(caption as usize)));
            self.captions = sorted;
        }
        let images = match rows {
            Some(rows) => Images::Rows(rows),
            None => {
                let beside = self.path.parent().filter(|p| !p.as_os_str().is_empty());
                let beside = beside.unwrap_or(Path::new("."));
                let given = self.options.images.as_deref();
                let root = given.unwrap_or(beside);
                let mut files = Files {
                    names: self.names,
                    root: std::path::absolute(root).map_err(DataError::io("find", root))?,
                    fenced: given.is_some(),
                    folder: "",
                    flat: false,
                };
                files.settle(self.path, known_set)?;
                Images::Files(files)
            }
        };
        Ok(Pairs { images, captions: self.captions, starts, problems })
    }
}

/// How the lines of a `.txt` are made up.
struct Lines {
    /// What parts the columns.
    mark: char,
    width: usize,
    image: usize,
    caption: usize,
    split: Option<usize>,
}

impl Lines {
    /// The name, the caption and the split in a line; the caption is all that follows the other columns.
    fn row<'a>(&self, line: &'a str) -> Option<(&'a str, &'a str, Option<&'a str>)> {
        let Lines { mark, width, image, caption, split } = *self;
        // A name may hold commas, too, and ends where an image's name does.
        let (name, rest) = if image == 0 { named(line, mark)? } else { ("", line) };
        let before = usize::from(image == 0);
        let columns: Vec<&str> = rest.splitn(width - before, mark).map(str::trim).collect();
        let column = |at: usize| columns.get(at - before).copied();
        let name = if image == 0 { name } else { column(image)? };
        (columns.len() + before == width).then_some(())?;
        Some((name, column(caption)?, split.filter(|&at| at >= before).and_then(column)))
    }
}

/// The image's name that a line begins with, and what follows it. `NAME.jpg#0` is the first caption of NAME.jpg.
fn named(line: &str, mark: char) -> Option<(&str, &str)> {
    line.match_indices(mark).find_map(|(at, _)| {
        let name = line[..at].trim().trim_matches('"');
        let name = match name.rsplit_once('#') {
            Some((name, number)) if number.parse::<u32>().is_ok() => name,
            _ => name,
        };
        is_image(&ending(name)?).then_some((name, &line[at + mark.len_utf8()..]))
    })
}

/// The text in quotes, with those within undone; none where the text is not one field of a CSV in quotes.
fn unquoted(text: &str) -> Option<String> {
    let within = text.strip_prefix('"')?.strip_suffix('"')?;
    (!within.replace("\"\"", "").contains('"')).then(|| within.replace("\"\"", "\""))
}

/// The extension of a name, in lower case, without what a URL has behind it.
fn ending(name: &str) -> Option<String> {
    let extension = Path::new(name).extension().and_then(OsStr::to_str)?;
    let end = extension.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(extension.len());
    (end > 0).then(|| extension[..end].to_ascii_lowercase())
}

/// Whether a piece of text could be an image's name in a table that calls another image `name`.
fn is_like(piece: &str, name: &str) -> bool {
    let (piece, name) = (piece.trim(), name.trim());
    let spaced = |text: &str| text.contains(char::is_whitespace);
    if piece.is_empty() || spaced(piece) && !spaced(name) {
        return false;
    }
    match ending(name) {
        Some(of_name) => ending(piece).is_some_and(|e| e == of_name || is_image(&e)),
        None => true,
    }
}

/// What is read of COCO's caption files (`annotations` refer to `images` by id) and of Karpathy's (`sentences` inside).
#[derive(Deserialize)]
struct Listing {
    images: Vec<Listed>,
    #[serde(default)]
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(default, deserialize_with = "id")]
    id: Option<String>,
    #[serde(default, alias = "file_name", deserialize_with = "text")]
    filename: Option<String>,
    #[serde(default, deserialize_with = "text")]
    filepath: Option<String>,
    #[serde(default, deserialize_with = "text")]
    split: Option<String>,
    sentences: Option<Vec<Sentence>>,
}

#[derive(Deserialize)]
struct Sentence {
    #[serde(default, deserialize_with = "text")]
    raw: Option<String>,
}

#[derive(Deserialize)]
struct Annotation {
    #[serde(default, deserialize_with = "id")]
    image_id: Option<String>,
    #[serde(default, deserialize_with = "text")]
    caption: Option<String>,
}

/// A text; `None` for any other value.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => Some(text),
        _ => None,
    })
}

/// What joins annotations and images: any value, as text. A number is the same whether it is written 1, 1.0 or "1".
fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Null => None,
        Value::String(text) => Some(text),
        Value::Number(number) => Some(match number.as_f64() {
            Some(x) if number.is_f64() && x.fract() == 0.0 && x.abs() < 1e15 => {
                (x as i64).to_string()
            }
            _ => number.to_string(),
        }),
        other => Some(other.to_string()),
    })
}

/// Hands the objects of a JSON list on one by one, `None` for what is none, until told to stop.
struct Each<F>(F);

impl<'de, F: FnMut(Option<Map<String, Value>>) -> bool> DeserializeSeed<'de> for Each<F> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(Option<Map<String, Value>>) -> bool> Visitor<'de> for Each<F> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while let Some(item) = list.next_element::<Value>()? {
            let row = if let Value::Object(row) = item { Some(row) } else { None };
            if !(self.0)(row) {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::png;

    /// A folder with images a.png to d.png, and a table beside them.
    struct World(tempfile::TempDir);

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            for name in ["a", "b", "c", "d"] {
                fs::write(dir.path().join(format!("{name}.png")), png(2, 2, [1; 3])).unwrap();
            }
            World(dir)
        }

        fn open_with(
            &self,
            name: &str,
            text: impl AsRef<[u8]>,
            options: &PairOptions,
        ) -> Result<Pairs, DataError> {
            let path = self.0.path().join(name);
            fs::write(&path, text).unwrap();
            Pairs::open(&path, options)
        }

        fn open(&self, name: &str, text: impl AsRef<[u8]>) -> Pairs {
            self.open_with(name, text, &PairOptions::default()).unwrap()
        }

        fn error(&self, name: &str, text: impl AsRef<[u8]>) -> String {
            self.open_with(name, text, &PairOptions::default()).err().unwrap().to_string()
        }
    }

    fn contents(pairs: &Pairs) -> Vec<(String, Vec<String>)> {
        let sample = |i| {
            pairs.read(i).map(|s: Sample| (pairs.name(i).unwrap_or(s.key), s.captions)).unwrap()
        };
        (0..pairs.len()).map(sample).collect()
    }

    fn rows(rows: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
        let row = |(name, captions): &(&str, &[&str])| {
            (name.to_string(), captions.iter().map(|c| c.to_string()).collect())
        };
        rows.iter().map(row).collect()
    }

    #[test]
    fn rows_of_an_image_are_one_sample_in_the_order_of_the_table() {
        let world = World::new();
        let pairs =
            world.open("t.tsv", "title\tfilepath\n1\tb.png\n2\ta.png\n3\tb.png\n4\ta.png\n");
        assert_eq!(contents(&pairs), rows(&[("b.png", &["1", "3"]), ("a.png", &["2", "4"])]));
        assert_eq!(pairs.key(0), "b");
        assert!(pairs.problems().is_empty());
    }

    #[test]
    fn quotes_marks_of_byte_order_and_carriage_returns_are_no_part_of_a_field() {
        let world = World::new();
        let text = "\u{feff}filepath,title,more\r\na.png,\"one, \"\"two\"\"\nthree\",x\r\nb.png,plain \"q\" ,y\r\n";
        let pairs = world.open("t.csv", text);
        let wanted = rows(&[("a.png", &["one, \"two\"\nthree"]), ("b.png", &["plain \"q\""])]);
        assert_eq!(contents(&pairs), wanted);
        let json = "\u{feff}{\"filepath\":\"a.png\",\"title\":\"x\"}\r\n\r\n";
        assert_eq!(contents(&world.open("t.jsonl", json)), rows(&[("a.png", &["x"])]));
    }

    #[test]
    fn a_csv_of_tabs_is_read_as_open_clip_does_and_other_columns_are_named() {
        let world = World::new();
        assert_eq!(world.open("t.csv", "filepath\ttitle\na.png\tx, y\n").len(), 1);
        let e = world.error("t.csv", "image,caption\na.png,x\n");
        assert!(e.contains("no column filepath, but image, caption"), "{e}");
        let e = world.error("t.jsonl", "{\"filepath\":\"a.png\",\"text\":\"x\"}");
        assert!(e.contains("no column title, but filepath, text"), "{e}");
    }

    #[test]
    fn a_quote_that_is_never_closed_is_an_error_and_swallows_no_rows() {
        let world = World::new();
        let e = world.error("t.tsv", "filepath\ttitle\na.png\tx\nb.png\t\"y\nc.png\tz\n");
        assert!(e.contains("line 3 opens a quote"), "{e}");
        // Only the last field can be open at the end of the table.
        let pairs = world.open("t.csv", "title,filepath\nx,b.png\n\"two\nlines\",a.png\n");
        assert_eq!(contents(&pairs), rows(&[("b.png", &["x"]), ("a.png", &["two\nlines"])]));
        let e = world.error("t.csv", "title,filepath\nx,b.png\n\"two\nlines,a.png\n");
        assert!(e.contains("line 3 opens a quote"), "{e}");
    }

    #[test]
    fn what_is_broken_is_counted_and_named_and_the_image_stays() {
        let world = World::new();
        let mut text = b"filepath,title\na.png,x\nb.png,\nc.png,\xff\n,z\nd.png\n".to_vec();
        text.extend(b"d.png,");
        text.extend(vec![b'x'; MAX_TEXT + 1]);
        let pairs = world.open("t.csv", &text);
        let wanted = rows(&[("a.png", &["x"]), ("b.png", &[]), ("c.png", &[]), ("d.png", &[])]);
        assert_eq!(contents(&pairs), wanted);
        let problems = pairs.problems().join("\n");
        for part in [
            "3 captions that are empty, too long or no text (line 3, line 4, line 7)",
            "1 rows without an image (line 5)",
            "1 rows of another number of columns than the header (line 6)",
        ] {
            assert!(problems.contains(part), "{part}: {problems}");
        }
    }

    #[test]
    fn json_takes_lists_of_captions_and_tells_of_what_is_no_row() {
        let world = World::new();
        let text =
            r#"[{"filepath":"a.png","title":["x","y",3]}, 7, {"filepath":"b.png","title":null}]"#;
        let pairs = world.open("t.json", text);
        assert_eq!(contents(&pairs), rows(&[("a.png", &["x", "y"]), ("b.png", &[])]));
        assert!(pairs.problems().join(" ").contains("rows that are no JSON object (item 2)"));
        let e = world.error("t.json", &text[..40]);
        assert!(e.contains("t.json") && e.contains("line 1"), "{e}");
        let lines = "{\"filepath\":\"a.png\",\"title\":\"x\"}\n{broken\n";
        assert!(world.open("t.jsonl", lines).problems()[0].contains("(line 2)"));
    }

    #[test]
    fn an_image_listed_twice_in_no_split_or_not_at_all_is_told() {
        let world = World::new();
        let text = r#"{"images":[
            {"filename":"a.png","split":"test","sentences":[{"raw":"x"}]},
            {"filename":"a.png","split":"test","sentences":[{"raw":"y"}]},
            {"filename":"b.png","sentences":[{"raw":"z"}]},
            {"filename":"c.png","split":"train","sentences":[]}]}"#;
        let split = |name: &str| PairOptions { split: Some(name.into()), ..PairOptions::default() };
        let pairs = world.open_with("k.json", text, &split("test")).unwrap();
        assert_eq!(contents(&pairs), rows(&[("a.png", &["x", "y"])]));
        let problems = pairs.problems().join(" ");
        assert!(problems.contains("1 images listed again; their captions are joined (a.png)"));
        assert!(problems.contains("1 rows in no split (b.png)"), "{problems}");
        assert!(world.error("k.json", text).contains("test (2), train (1)"));
        let text = r#"{"images":[{"file_name":"a.png","id":1},{"file_name":"b.png","id":2}],
            "annotations":[{"image_id":1,"caption":"x"},{"image_id":9,"caption":"y"}]}"#;
        let pairs = world.open("c.json", text);
        assert_eq!(contents(&pairs), rows(&[("a.png", &["x"]), ("b.png", &[])]));
        let problems = pairs.problems().join(" ");
        assert!(problems.contains("1 captions of no listed image (image 9)"), "{problems}");
        assert!(problems.contains("1 rows without a caption (b.png)"), "{problems}");
    }

    #[test]
    fn a_column_of_splits_can_be_asked_for() {
        let world = World::new();
        let text = "filepath,title,split\na.png,x,train\nb.png,y,test\n";
        let split = |name: &str| PairOptions { split: Some(name.into()), ..PairOptions::default() };
        assert_eq!(world.open("t.csv", text).len(), 2);
        let pairs = world.open_with("t.csv", text, &split("test")).unwrap();
        assert_eq!(contents(&pairs), rows(&[("b.png", &["y"])]));
        let e = world.open_with("t.csv", text, &split("val")).err().unwrap().to_string();
        assert!(e.contains("no split is val; there are test (1), train (1)"), "{e}");
    }

    #[test]
    fn a_given_folder_is_a_fence_and_nothing_but_files_is_read() {
        let world = World::new();
        let (root, below) = (world.0.path(), world.0.path().join("below"));
        fs::create_dir(&below).unwrap();
        fs::copy(root.join("a.png"), below.join("e.png")).unwrap();
        let text = format!(
            "filepath,title\ne.png,1\n../a.png,2\n{},3\n{},4\n/dev/zero,5\nhttp://x/y.png,6\n",
            root.join("b.png").display(),
            below.join("e.png").display()
        );
        let fence = PairOptions { images: Some(below), ..PairOptions::default() };
        let pairs = world.open_with("t.csv", &text, &fence).unwrap();
        let read: Vec<bool> = (0..pairs.len()).map(|i| pairs.read(i).is_ok()).collect();
        assert_eq!(read, [true, false, false, true, false, false]);
        let e = pairs.read(1).unwrap_err().to_string();
        assert!(e.contains("outside of") && e.contains("../a"), "{e}");
        assert!(pairs.read(5).unwrap_err().to_string().contains("of this machine"));
        let open = world.open("below/t.csv", &text);
        let read: Vec<bool> = (0..open.len()).map(|i| open.read(i).is_ok()).collect();
        assert_eq!(read, [true, true, true, true, false, false]);
        assert!(open.read(4).unwrap_err().to_string().contains("no file"));
    }

    #[test]
    fn a_table_whose_images_are_all_elsewhere_says_where_it_looked() {
        let world = World::new();
        let e = world.error("t.csv", "filepath,title\nx/a.png,1\n");
        assert!(
            e.contains("none of its 1 images") && e.contains("x/a.png") && e.contains("--images"),
            "{e}"
        );
        let e = world.error("t.csv", "filepath,title\n");
        assert!(e.contains("no rows"), "{e}");
    }

    fn golden() -> Vec<u8> {
        fs::read("../../tests/golden/retrieval/emoji.parquet").unwrap()
    }

    fn keys() -> PairOptions {
        let (image, caption) = (Some("image".into()), Some("caption".into()));
        PairOptions { image_key: image, caption_key: caption, ..PairOptions::default() }
    }

    #[test]
    fn parquet_gives_each_row_its_own_image_in_any_order() {
        let world = World::new();
        let pairs = world.open_with("t.parquet", golden(), &keys()).unwrap();
        assert_eq!(pairs.len(), 96);
        let forward: Vec<Sample> = (0..96).map(|i| pairs.read(i).unwrap()).collect();
        for i in (0..96).rev() {
            let sample = pairs.read(i).unwrap();
            assert_eq!(sample, forward[i]);
            assert_eq!(sample.captions.len(), 1 + i % 7);
            assert_eq!(crate::dimensions(&sample.image).unwrap(), (48, 48));
        }
        assert_eq!(pairs.key(41), "t/41");
        let text = PairOptions { image_key: Some("image.path".into()), ..keys() };
        let e = world.open_with("t.parquet", golden(), &text).err().unwrap().to_string();
        assert!(e.contains("none of its 96 images"), "paths are taken as paths: {e}");
        let e = world.open_with("t.parquet", golden(), &PairOptions::default()).err().unwrap();
        assert!(e.to_string().contains("no column filepath, but image.bytes, image.path"), "{e}");
    }

    #[test]
    fn parquet_pages_that_carry_a_checksum_are_held_to_it() {
        let (world, whole) = (World::new(), crate::testing::golden("retrieval/checksums.parquet"));
        let wanted = rows(&[("a.png", &["a red square"]), ("b.png", &["a blue circle"])]);
        assert_eq!(contents(&world.open("t.parquet", &whole)), wanted);
        let mut damaged = whole;
        let at = damaged.windows(4).position(|bytes| bytes == b"blue").unwrap();
        damaged[at] ^= 1;
        let e = world.error("t.parquet", damaged);
        assert!(e.contains("t.parquet") && e.contains("CRC"), "{e}");
    }

    #[test]
    fn damaged_parquet_is_an_error_or_a_broken_sample_and_never_a_panic() {
        let (world, whole) = (World::new(), golden());
        let mut refused = 0;
        for at in (0..whole.len()).step_by(601) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            match world.open_with("t.parquet", &damaged, &keys()) {
                Ok(pairs) => (0..pairs.len()).for_each(|i| drop(pairs.read(i))),
                Err(_) => refused += 1,
            }
            refused += usize::from(world.open_with("t.parquet", &whole[..at], &keys()).is_err());
        }
        assert!(refused > whole.len() / 601, "{refused}");
    }
}
