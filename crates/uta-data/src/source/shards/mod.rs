//! WebDataset tar shards: a writer whose bytes depend on its input only, and a reader with random access.
//!
//! A sample is a run of neighbouring members that share a key, which is the path up to the first dot of the file name:
//! `dogs/7.jpg`, `dogs/7.txt`, `dogs/7.cls`. Nothing is ever unpacked to a disk; links, devices and names that point
//! outside are refused all the same.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
#[cfg(target_os = "linux")]
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, thread};

use serde::{Deserialize, Serialize};
use tar::{Archive, EntryType};
use uta_base::{AtomicFile, CompleteFile};

pub(crate) mod index;
pub(crate) mod sizes;

use self::index::Stamp;
use crate::image::decode::{EXTENSIONS, is_image};
use crate::progress::counted;
use crate::{Captions, DataError, OddClass, Part, Sample, Source, source};

/// Tar's unit: a header is one block, contents are padded to whole ones.
const BLOCK: u64 = 512;

/// Samples whose members take more are left out: a broken length must not eat the memory.
const MAX_SAMPLE: u64 = 1 << 30;

/// Shards held open at once, far below the usual limit of 1024 files.
const OPEN_SHARDS: usize = 128;

/// The most that is fetched at once, except for a sample that is larger.
const AT_ONCE: u64 = 8 << 20;

/// Bytes between two samples that are rather fetched than left out by a request more.
const GAP: u64 = 64 << 10;

/// Bytes of a file that Linux may be advised of: of more it reads no more than its read-ahead, this much unless it is set.
#[cfg(target_os = "linux")]
const ADVICE: usize = 128 << 10;

/// Where class names stand, a line each, in the order of the indices.
pub(crate) const CLASS_NAMES: &str = "classnames.txt";

/// When a shard is full; whichever is reached first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Samples in a shard.
    pub samples: usize,
    /// Bytes of a shard.
    pub bytes: u64,
}

impl Default for Limit {
    /// WebDataset's habits: 10,000 samples or 1 GB.
    fn default() -> Limit {
        Limit { samples: 10_000, bytes: 1_000_000_000 }
    }
}

/// Writes `{dir}/{prefix}-000000.tar`, `-000001.tar`, ..., and `sizes.json`; nothing has its final name before
/// [`ShardWriter::finish`].
pub struct ShardWriter {
    dir: PathBuf,
    prefix: String,
    limit: Limit,
    /// The shard being written, and its bytes.
    open: Option<(tar::Builder<AtomicFile>, u64)>,
    shards: Vec<Begun>,
}

/// A shard that was begun.
struct Begun {
    path: PathBuf,
    samples: usize,
    /// Once it is closed, until it has its name.
    complete: Option<CompleteFile>,
}

impl ShardWriter {
    /// Starts a set of shards; makes `dir` where needed.
    ///
    /// # Errors
    /// When shards of that prefix are already there, or a `sizes.json` that is no list of sizes, or the folder can't be made.
    pub fn create(
        dir: impl AsRef<Path>,
        prefix: &str,
        limit: Limit,
    ) -> Result<ShardWriter, DataError> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir).map_err(DataError::io("create", dir))?;
        let path = dir.join(format!("{prefix}-000000.tar"));
        if path.exists() {
            return Err(DataError::Exists { path });
        }
        // Not after hours of packing.
        sizes::of(dir)?;
        let prefix = prefix.to_owned();
        Ok(ShardWriter { dir: dir.to_owned(), prefix, limit, open: None, shards: vec![] })
    }

    /// Adds one sample: a member `{key}.{ext}` for each of `members`.
    ///
    /// # Errors
    /// A bad key or extension, or a disk that refuses.
    pub fn write(&mut self, key: &str, members: &[(&str, &[u8])]) -> Result<(), DataError> {
        let base = key.rsplit('/').next().unwrap_or_default();
        if base.is_empty() || base.contains('.') || !stays_inside(Path::new(key)) {
            return Err(DataError::Sample {
                key: key.to_owned(),
                reason: "is no key: it must be a relative path without a dot in its name".into(),
            });
        }
        // A header and its padding for each member.
        let bytes: u64 = members.iter().map(|(_, data)| 1024 + data.len() as u64).sum();
        let samples = self.shards.last().map_or(0, |shard| shard.samples);
        let full = self.open.as_ref().is_some_and(|&(_, written)| {
            samples >= self.limit.samples || written + bytes > self.limit.bytes
        });
        if full {
            self.close()?;
        }
        if self.open.is_none() {
            let name = format!("{}-{:06}.tar", self.prefix, self.shards.len());
            let path = self.dir.join(name);
            if path.exists() {
                return Err(DataError::Exists { path });
            }
            let file = AtomicFile::create(&path).map_err(DataError::io("create", &path))?;
            self.shards.push(Begun { path, samples: 0, complete: None });
            self.open = Some((tar::Builder::new(file), 0));
        }
        let shard = self.shards.last_mut().expect("a shard is open");
        let (builder, written) = self.open.as_mut().expect("a shard is open");
        for (extension, data) in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(0);
            builder
                .append_data(&mut header, format!("{key}.{extension}"), *data)
                .map_err(DataError::io("write", &shard.path))?;
        }
        shard.samples += 1;
        *written += bytes;
        Ok(())
    }

    /// Ends and syncs the open shard, which gets its name with all others.
    fn close(&mut self) -> Result<(), DataError> {
        let Some((builder, ..)) = self.open.take() else { return Ok(()) };
        let shard = self.shards.last_mut().expect("a shard is open");
        let complete = builder.into_inner().and_then(AtomicFile::complete);
        shard.complete = Some(complete.map_err(DataError::io("write", &shard.path))?);
        Ok(())
    }

    /// Ends, syncs and renames every shard into place, and adds them to `sizes.json`; returns their paths.
    ///
    /// # Errors
    /// A disk that refuses; none of the shards is then left.
    pub fn finish(mut self) -> Result<Vec<PathBuf>, DataError> {
        self.close()?;
        let mut named = vec![];
        if let Err(e) = self.give_names(&mut named) {
            // They would be in the way of another try.
            for path in named {
                let _ = fs::remove_file(path);
            }
            return Err(e);
        }
        Ok(named)
    }

    /// Gives every shard its name, which is added to `named`.
    fn give_names(&mut self, named: &mut Vec<PathBuf>) -> Result<(), DataError> {
        for Begun { path, complete, .. } in &mut self.shards {
            let complete = complete.take().expect("every shard is closed");
            complete.give_name().map_err(DataError::io("rename", &*path))?;
            named.push(path.clone());
        }
        sizes::add(&self.dir, self.shards.iter().map(|shard| (&*shard.path, shard.samples)))
    }
}

/// A set of tar shards with random access to its samples.
///
/// The headers are scanned once, and an index is left beside the shard where that can be written. What stays in memory is
/// where each sample's run of members begins and how long it is, 16 bytes a sample, so that a read is one positioned read,
/// from any thread.
pub(crate) struct Shards {
    paths: Vec<PathBuf>,
    spans: Vec<Span>,
    /// And the file that names them.
    class_names: Option<(PathBuf, Vec<String>)>,
    captions: Captions,
    problems: Vec<String>,
    bytes: Box<dyn Bytes>,
}

/// Where the bytes of a set's shards are had from.
pub(crate) trait Bytes: Send + Sync {
    /// Fills `run` with the bytes of sample `i`, which are at `span`.
    ///
    /// # Errors
    /// What the system says, by what was tried as in [`DataError::Io`].
    fn read(&self, i: usize, span: Span, run: &mut [u8]) -> Result<(), (&'static str, io::Error)>;

    /// As [`Source::expect`].
    fn expect(&self, _samples: &mut dyn Iterator<Item = (usize, Span)>) {}

    /// As [`Source::forget`].
    fn forget(&self) {}
}

/// Files, held open.
struct Files {
    paths: Vec<PathBuf>,
    /// A shard may only be in the slot of its number modulo their count.
    slots: Vec<Slot>,
}

/// An open shard, by its number.
type Slot = Mutex<Option<(u32, Arc<File>)>>;

impl Files {
    fn new(paths: &[PathBuf]) -> Files {
        let slots = (0..OPEN_SHARDS.min(paths.len())).map(|_| Mutex::new(None)).collect();
        Files { paths: paths.to_vec(), slots }
    }

    fn file(&self, shard: u32) -> io::Result<Arc<File>> {
        let slot = &self.slots[shard as usize % self.slots.len()];
        // A slot is only ever replaced as a whole, so a panic elsewhere can't have spoilt it.
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Some((holds, file)) if *holds == shard => Ok(file.clone()),
            _ => {
                let file = Arc::new(File::open(&self.paths[shard as usize])?);
                *slot = Some((shard, file.clone()));
                Ok(file)
            }
        }
    }
}

impl Bytes for Files {
    fn read(&self, _: usize, span: Span, run: &mut [u8]) -> Result<(), (&'static str, io::Error)> {
        let file = self.file(span.shard).map_err(|e| ("open shard", e))?;
        file.read_exact_at(run, span.offset).map_err(|e| ("read shard", e))
    }

    fn expect(&self, samples: &mut dyn Iterator<Item = (usize, Span)>) {
        // A sample alone is as soon read as asked for.
        let several = |together: &Together| together.samples.len() > 1;
        for Together { shard, range, .. } in gather(samples).into_iter().filter(several) {
            // Whoever reads it is told why it can't be opened.
            if let Ok(file) = self.file(shard) {
                fetch(&file, range);
            }
        }
    }
}

/// Where a sample's members lie in its shard, headers included.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) shard: u32,
}

/// Neighbouring samples of a shard, which are fetched at once.
pub(crate) struct Together {
    pub(crate) shard: u32,
    pub(crate) range: Range<u64>,
    pub(crate) samples: Vec<(usize, Span)>,
}

/// Samples by what is fetched at once, in the order in which each is first needed.
pub(crate) fn gather(samples: impl Iterator<Item = (usize, Span)>) -> Vec<Together> {
    let mut all: Vec<Together> = vec![];
    for (i, span) in samples {
        let end = span.offset + u64::from(span.length);
        match all.last_mut() {
            Some(last)
                if last.shard == span.shard
                    && (last.range.end..=last.range.end + GAP).contains(&span.offset)
                    && end - last.range.start <= AT_ONCE =>
            {
                last.range.end = end;
                last.samples.push((i, span));
            }
            _ => all.push(Together {
                shard: span.shard,
                range: span.offset..end,
                samples: vec![(i, span)],
            }),
        }
    }
    all
}

impl Shards {
    /// Takes what the indices of `paths` say, or scans their headers, several at a time, and writes the indices. What is
    /// damaged, cut short or of no use is left out and told by [`problems`](Source::problems); the samples before a cut stay.
    ///
    /// # Errors
    /// A file that can't be opened or read; no sample in all of them; class names that differ.
    pub(crate) fn open(paths: Vec<PathBuf>, captions: Captions) -> Result<Shards, DataError> {
        let (scans, stamps): (Vec<Scan>, Vec<Stamp>) =
            scan_all(&paths)?.into_iter().map(|found| (found.scan, found.tar)).unzip();
        let mut spans = Vec::with_capacity(scans.iter().map(|scan| scan.spans.len()).sum());
        let problems = problems(&paths, scans.iter());
        let members: usize = scans.iter().map(|scan| scan.members).sum();
        for (shard, scan) in (0..).zip(scans) {
            let span = |(offset, length)| Span { offset, length, shard };
            spans.extend(scan.spans.into_iter().map(span));
        }
        if spans.is_empty() {
            let shards = paths.len();
            let count = if shards == 1 { "a tar".to_owned() } else { format!("{shards} tars") };
            let why = problems.first().map(|p| format!(" ({p})")).unwrap_or_default();
            return Err(DataError::Empty {
                path: paths.into_iter().next().unwrap_or_default(),
                wanted: format!("members that end in .{}", EXTENSIONS.join(", .")),
                found: format!("{count} with {members} members, none of them an image{why}"),
            });
        }
        for problem in &problems {
            tracing::warn!("{problem}");
        }
        let class_names = class_names(&paths)?;
        let bytes = bytes(&paths, stamps);
        Ok(Shards { paths, spans, class_names, captions, problems, bytes })
    }

    /// The bytes of a sample's run of members.
    fn run(&self, i: usize) -> Result<Vec<u8>, DataError> {
        let span = self.spans[i];
        let length = span.length as usize;
        // Whole blocks: the padding of the last member may be missing from a tar without an end mark.
        let mut run = vec![0; length.next_multiple_of(BLOCK as usize)];
        self.bytes
            .read(i, span, &mut run[..length])
            .map_err(|(action, e)| DataError::io(action, &self.paths[span.shard as usize])(e))?;
        Ok(run)
    }

    /// Calls `each` with the key, the extension and the contents of every member of a run.
    fn members<'a>(
        &self,
        span: Span,
        run: &'a [u8],
        mut each: impl FnMut(&str, &str, &'a [u8]) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let changed = |reason: &dyn std::fmt::Display| DataError::Shard {
            path: self.paths[span.shard as usize].clone(),
            reason: format!("changed since it was opened: at byte {}: {reason}", span.offset),
        };
        for member in Archive::new(run).entries().map_err(|e| changed(&e))? {
            let member = member.map_err(|e| changed(&e))?;
            let Ok(Some(name)) = name_of(&member) else { continue };
            let Some((key, extension)) = split(&name) else { continue };
            let start = member.raw_file_position() as usize;
            let contents = usize::try_from(member.size())
                .ok()
                .and_then(|size| run.get(start..start.checked_add(size)?))
                .ok_or_else(|| changed(&"a member ends outside its sample"))?;
            each(key, extension, contents)?;
        }
        Ok(())
    }
}

/// Has the system read a part of a file in the background, though its samples are asked for in another order.
fn fetch(file: &File, range: Range<u64>) {
    // Advice: refused, reading is slower and no more.
    #[cfg(target_os = "linux")]
    for start in range.clone().step_by(ADVICE) {
        let length = NonZeroU64::new((range.end - start).min(ADVICE as u64));
        let _ = rustix::fs::fadvise(file, start, length, rustix::fs::Advice::WillNeed);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, range);
}

impl Source for Shards {
    fn len(&self) -> usize {
        self.spans.len()
    }

    fn read(&self, i: usize) -> Result<Sample, DataError> {
        let span = self.spans[i];
        let run = self.run(i)?;
        let mut sample = Sample::default();
        let mut image = None;
        self.members(span, &run, |key, extension, contents| {
            if sample.key.is_empty() {
                key.clone_into(&mut sample.key);
            }
            if is_image(extension) {
                image.get_or_insert(contents);
                return Ok(());
            }
            sample.add(extension, contents, self.captions);
            Ok(())
        })?;
        let gone = || DataError::Shard {
            path: self.paths[span.shard as usize].clone(),
            reason: format!("changed since it was opened: no image at byte {}", span.offset),
        };
        sample.image = image.ok_or_else(gone)?.to_vec();
        if let (Some(class), Some((file, names))) = (sample.class, &self.class_names)
            && class as usize >= names.len()
        {
            let (text, file, lines) = (class.to_string(), file.display(), names.len());
            let reason = format!("class {class}, but {file} has {lines} lines");
            (sample.class, sample.odd_class) = (None, Some(OddClass { text, reason }));
        }
        Ok(sample)
    }

    /// Keys are read anew: those of ten million samples would take hundreds of megabytes for the sake of messages.
    fn key(&self, i: usize) -> String {
        let span = self.spans[i];
        let mut found = None;
        let read = self.run(i).and_then(|run| {
            self.members(span, &run, |key, _, _| {
                found.get_or_insert_with(|| key.to_owned());
                Ok(())
            })
        });
        read.ok().and(found).unwrap_or_else(|| {
            format!("{}@{}", self.paths[span.shard as usize].display(), span.offset)
        })
    }

    fn shard(&self, i: usize) -> Option<String> {
        Some(self.paths[self.spans[i].shard as usize].display().to_string())
    }

    fn parts(&self) -> Vec<Part> {
        let mut shards = vec![0; self.paths.len()];
        self.spans.iter().for_each(|span| shards[span.shard as usize] += 1);
        // A shard of which nothing can be used is no shard to visit.
        shards.retain(|&samples| samples > 0);
        vec![Part { samples: self.len(), weight: 1.0, shards }]
    }

    fn class_names(&self) -> Option<&[String]> {
        self.class_names.as_ref().map(|(_, names)| names.as_slice())
    }

    fn problems(&self) -> Vec<String> {
        self.problems.clone()
    }

    fn expect(&self, samples: &[usize]) {
        self.bytes.expect(&mut samples.iter().map(|&i| (i, self.spans[i])));
    }

    fn forget(&self) {
        self.bytes.forget();
    }
}

fn bytes(paths: &[PathBuf], stamps: Vec<Stamp>) -> Box<dyn Bytes> {
    #[cfg(feature = "remote")]
    if paths.iter().any(source::is_url) {
        return Box::new(crate::storage::remote::Remote::new(paths, stamps));
    }
    // Whether a file is still the same is not asked.
    drop(stamps);
    Box::new(Files::new(paths))
}

/// What the headers of one shard say.
#[derive(Default)]
pub(crate) struct Scan {
    /// (offset, length) of each sample's run of members.
    pub(crate) spans: Vec<(u64, u32)>,
    pub(crate) members: usize,
    pub(crate) problems: Vec<String>,
    /// Keys without an image.
    pub(crate) imageless: usize,
}

/// Neighbouring members of one key, while the scan is among them.
struct Run {
    key: String,
    extensions: Vec<String>,
    start: u64,
    end: u64,
}

/// What came of writing the index of a shard that lacked one.
type Stored = Option<io::Result<()>>;

/// A shard, what its headers say, and what came of writing that down.
struct Found {
    tar: Stamp,
    scan: Scan,
    stored: Stored,
}

/// What the headers of every shard say, by their indices where they have one; else an index is made.
fn scan_all(paths: &[PathBuf]) -> Result<Vec<Found>, DataError> {
    // Waiting for a disk or a network, not computing: more threads than cores pay.
    let threads = paths.len().min(8);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = vec![];
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(path) = paths.get(i) else { return done };
            done.push((i, indexed(path)));
        }
    };
    let mut scans: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|t| t.join().expect("a scan does not panic")).collect()
    });
    scans.sort_by_key(|(i, _)| *i);
    scans.into_iter().map(|(_, scan)| scan).collect()
}

/// The scan of a shard, by its index or to make one.
fn indexed(path: &Path) -> Result<Found, DataError> {
    let tar = Stamp::of(path).map_err(DataError::io("open shard", path))?;
    if let Some(scan) = index::load(path, &tar) {
        return Ok(Found { tar, scan, stored: None });
    }
    let scan = scan(path)?;
    let stored = index::store(path, &tar, &scan);
    match &stored {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            tracing::warn!("{} has no index, and is scanned each time: {e}", path.display());
        }
        // Shards on a disk that is only read are scanned each time.
        Err(e) => tracing::debug!("no index of {}: {e}", path.display()),
        Ok(()) => {}
    }
    Ok(Found { tar, scan, stored: Some(stored) })
}

/// What `uta data index` found.
#[derive(Clone, Debug, Serialize)]
pub struct Indexed {
    /// Shards.
    pub shards: usize,
    /// Of them, those whose index was missing or of another tar.
    pub scanned: usize,
    /// Samples in all.
    pub samples: usize,
    /// What is wrong with whole shards.
    pub problems: Vec<String>,
}

impl fmt::Display for Indexed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "problem: {problem}")?;
        }
        let (samples, shards) = (counted(self.samples, "sample"), counted(self.shards, "shard"));
        write!(f, "{samples} in {shards}, {} of them scanned", self.scanned)
    }
}

/// Writes the index of every shard of a spec that lacks one.
///
/// # Errors
/// As [`open`](crate::open); a folder that can't be written to.
pub fn index(spec: &str) -> Result<Indexed, DataError> {
    let paths = source::shards_of(spec)?;
    let (mut scans, mut scanned) = (vec![], 0);
    for (path, Found { scan, stored, .. }) in paths.iter().zip(scan_all(&paths)?) {
        if let Some(stored) = stored {
            stored.map_err(DataError::io("write the index of", path))?;
            scanned += 1;
        }
        scans.push(scan);
    }
    Ok(Indexed {
        shards: paths.len(),
        scanned,
        samples: scans.iter().map(|scan| scan.spans.len()).sum(),
        problems: problems(&paths, scans.iter()),
    })
}

/// What is wrong with shards, and with the sizes that stand beside them.
fn problems<'a>(paths: &[PathBuf], scans: impl Iterator<Item = &'a Scan> + Clone) -> Vec<String> {
    let told = paths.iter().zip(scans.clone()).flat_map(|(path, scan)| {
        scan.problems.iter().map(move |problem| format!("{}: {problem}", path.display()))
    });
    let samples = paths.iter().zip(scans).map(|(path, scan)| (path.as_path(), scan.spans.len()));
    told.chain(sizes::disagreements(samples)).collect()
}

/// Where an index, or img2dataset's `NAME_stats.json`, tells of another shard than the tar is, which is scanned anew: a line
/// each.
pub(crate) fn misled(paths: &[PathBuf]) -> Result<Vec<String>, DataError> {
    #[derive(Deserialize)]
    struct Stats {
        successes: usize,
    }
    let mut lines = vec![];
    for path in paths {
        let tar = Stamp::of(path).map_err(DataError::io("open shard", path))?;
        let scan = scan(path)?;
        let holds = format!("and the tar holds {}", scan.spans.len());
        if let Some((index, told)) = index::place(path).zip(index::load(path, &tar))
            && (&told.spans, &told.problems) != (&scan.spans, &scan.problems)
        {
            let (index, says) = (index.display(), told.spans.len());
            lines.push(format!(
                "{index}: tells of {says} samples, {holds}, or elsewhere: delete it"
            ));
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let stats = path.with_file_name(format!("{stem}_stats.json"));
        let told =
            sizes::read(&stats).ok().flatten().and_then(|text| serde_json::from_str(&text).ok());
        if let Some(Stats { successes }) =
            told.filter(|told: &Stats| told.successes != scan.spans.len())
        {
            lines.push(format!("{}: says {successes} samples, {holds}", stats.display()));
        }
    }
    Ok(lines)
}

fn scan(path: &Path) -> Result<Scan, DataError> {
    #[cfg(feature = "remote")]
    if source::is_url(path) {
        let mut tar = crate::storage::remote::Reader::open(path)
            .map_err(DataError::io("open shard", path))?;
        let length = tar.length();
        let scan = walk(path, &mut tar, length);
        // What did not arrive is no damage of the shard.
        return tar.failure().map_or(scan, |e| Err(DataError::io("read shard", path)(e)));
    }
    let tar = File::open(path).map_err(DataError::io("open shard", path))?;
    let length = tar.metadata().map_err(DataError::io("read shard", path))?.len();
    let mut start = [0; 6];
    if tar.read_exact_at(&mut start, 0).is_ok()
        && let Some((_, kind)) = PACKED.iter().find(|(mark, _)| start.starts_with(mark))
    {
        let reason = format!("is {kind}, not a plain tar: unpack it first");
        return Err(DataError::Shard { path: path.to_owned(), reason });
    }
    walk(path, tar, length)
}

/// How files begin that hold a tar, or are taken for one, and must be unpacked.
const PACKED: [(&[u8], &str); 7] = [
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
];

/// From header to header through a tar of that many bytes.
fn walk(path: &Path, tar: impl Read + Seek, length: u64) -> Result<Scan, DataError> {
    let mut scan = Scan::default();
    let mut run: Option<Run> = None;
    // Where the last member ends, which is where the headers of the next one begin.
    let mut end = 0;
    let mut archive = Archive::new(tar);
    for member in archive.entries_with_seek().map_err(DataError::io("read shard", path))? {
        let member = match member {
            Ok(member) => member,
            Err(e) if e.raw_os_error().is_some() => {
                return Err(DataError::io("read shard", path)(e));
            }
            Err(e) => {
                scan.ends_early(&format!("damaged at byte {end} ({e})"));
                return Ok(scan);
            }
        };
        let start = end;
        end = member.raw_file_position().saturating_add(member.size());
        let name = name_of(&member);
        if end > length {
            // A sample that lacks a member, its caption say, would be another sample: only those before are used.
            let key = name.as_ref().ok().and_then(|name| Some(split(name.as_ref()?)?.0));
            scan.close(run.filter(|run| key.is_some_and(|key| key != run.key)), length);
            scan.ends_early(&format!("cut short at byte {length}"));
            return Ok(scan);
        }
        end = end.next_multiple_of(BLOCK);
        scan.members += 1;
        let name = match name {
            Ok(Some(name)) => name,
            Ok(None) => continue,
            Err(refused) => {
                scan.problems.push(refused);
                continue;
            }
        };
        let Some((key, extension)) = split(&name) else { continue };
        // A sample ends where the key changes or, in tars that hold a key twice, an extension comes again.
        let again = |run: &Run| run.extensions.iter().any(|e| e.eq_ignore_ascii_case(extension));
        let continues = |run: &&mut Run| run.key == key && !again(run);
        match run.as_mut().filter(continues) {
            Some(run) => {
                run.extensions.push(extension.to_owned());
                run.end = end;
            }
            None => {
                let (key, extensions) = (key.to_owned(), vec![extension.to_owned()]);
                scan.close(run.replace(Run { key, extensions, start, end }), length);
            }
        }
    }
    scan.close(run, length);
    if length <= end {
        let problem = "has no end mark: it may have been cut between two members".to_owned();
        scan.problems.push(problem);
    } else if !is_end(archive.into_inner(), end, length)
        .map_err(DataError::io("read shard", path))?
    {
        scan.problems.push(format!("ends at byte {end} of {length}: what follows is not read"));
    }
    scan.tell_imageless();
    Ok(scan)
}

/// Whether a tar of that many bytes has nothing but its end behind its last member: two blocks of zeros, and as many more as
/// fill a record, which is 20 blocks unless its writer was told another number, usually a power of two. More zeros may be a
/// part of it that was never written.
fn is_end(mut tar: impl Read + Seek, end: u64, length: u64) -> io::Result<bool> {
    let marked = end + 2 * BLOCK;
    let mut records = (1..=11).map(|k| BLOCK << k).chain([20 * BLOCK]);
    if length > marked && !records.any(|record| length == marked.next_multiple_of(record)) {
        return Ok(false);
    }
    let mut rest = vec![0; (length - end) as usize];
    tar.seek(SeekFrom::Start(end))?;
    tar.read_exact(&mut rest)?;
    Ok(rest.iter().all(|&byte| byte == 0))
}

impl Scan {
    fn close(&mut self, run: Option<Run>, length: u64) {
        let Some(run) = run else { return };
        let bytes = run.end.min(length) - run.start;
        if !run.extensions.iter().any(|e| is_image(e)) {
            self.imageless += 1;
        } else if bytes > MAX_SAMPLE {
            let limit = MAX_SAMPLE >> 20;
            self.problems.push(format!("sample {} is left out: larger than {limit} MiB", run.key));
        } else {
            self.spans.push((run.start, bytes as u32));
        }
    }

    fn ends_early(&mut self, why: &str) {
        self.problems.push(format!("{why}; only the {} samples before are used", self.spans.len()));
        self.tell_imageless();
    }

    fn tell_imageless(&mut self) {
        if self.imageless > 0 {
            self.problems.push(format!("{} keys without an image are left out", self.imageless));
        }
    }
}

/// The name of a member to read; None for folders and records about the archive, an error for what is refused.
fn name_of<R: io::Read>(member: &tar::Entry<'_, R>) -> Result<Option<String>, String> {
    let name = String::from_utf8_lossy(&member.path_bytes()).into_owned();
    match member.header().entry_type() {
        EntryType::Regular | EntryType::Continuous => {}
        EntryType::Directory | EntryType::XGlobalHeader => return Ok(None),
        kind => return Err(format!("member {name} is refused: not a plain file ({kind:?})")),
    }
    if !stays_inside(Path::new(&name)) {
        return Err(format!("member {name} is refused: it points outside of the archive"));
    }
    Ok(Some(name.strip_prefix("./").map(str::to_owned).unwrap_or(name)))
}

/// WebDataset's rule: the key ends at the first dot of the file name.
fn split(name: &str) -> Option<(&str, &str)> {
    let file = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = file + name[file..].find('.').filter(|&dot| dot > 0)?;
    Some((&name[..dot], &name[dot + 1..]))
}

fn stays_inside(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// The lines of the `classnames.txt` beside the shards, or of the one in the folder above them.
fn class_names(shards: &[PathBuf]) -> Result<Option<(PathBuf, Vec<String>)>, DataError> {
    let mut folders: Vec<&Path> = shards.iter().filter_map(|shard| shard.parent()).collect();
    folders.dedup();
    let mut found: Option<(PathBuf, Vec<String>)> = None;
    for folder in folders {
        let Some((path, text)) = class_file(folder)? else { return Ok(None) };
        // A blank line at the end is no class.
        let lines = text.trim_end().lines();
        let names: Vec<String> = lines.map(|line| line.trim().to_owned()).collect();
        match &found {
            None => found = Some((path, names)),
            Some((first, others)) if *others != names => {
                let (first, second) = (first.display().to_string(), path.display().to_string());
                return Err(DataError::ClassNames { first, second });
            }
            Some(_) => {}
        }
    }
    Ok(found)
}

/// The `classnames.txt` of a folder or of the one above it, and what it holds.
fn class_file(folder: &Path) -> Result<Option<(PathBuf, String)>, DataError> {
    if source::is_url(folder) {
        let folders = [Some(folder), folder.parent().filter(|path| source::is_url(path))];
        let mut places = folders.into_iter().flatten().map(|folder| folder.join(CLASS_NAMES));
        let text = |path: PathBuf| sizes::read(&path).map(|text| Some((path, text?))).transpose();
        return places.find_map(text).transpose();
    }
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let places = [folder.join(CLASS_NAMES), folder.join("..").join(CLASS_NAMES)];
    let Some(path) = places.into_iter().find(|path| path.is_file()) else { return Ok(None) };
    let text = sizes::read(&path)?;
    Ok(text.map(|text| (path, text)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn write(dir: &Path, samples: usize) -> Vec<PathBuf> {
        let mut writer =
            ShardWriter::create(dir, "set", Limit { samples: 3, bytes: 1 << 20 }).unwrap();
        for i in 0..samples {
            writer.write(&format!("s{i}"), &[("png", &[i as u8; 700]), ("txt", b"words")]).unwrap();
        }
        writer.finish().unwrap()
    }

    fn open(path: &Path) -> Shards {
        Shards::open(vec![path.to_owned()], Captions::Lines).unwrap()
    }

    fn keys(shards: &Shards) -> Vec<String> {
        (0..shards.len()).map(|i| shards.key(i)).collect()
    }

    /// A tar of (name, type, contents) without the writer's checks.
    fn raw_tar(path: &Path, members: &[(&str, EntryType, &[u8])]) {
        let mut builder = tar::Builder::new(File::create(path).unwrap());
        for (name, kind, contents) in members {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(*kind);
            header.set_size(contents.len() as u64);
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, *contents).unwrap();
        }
        builder.finish().unwrap();
    }

    #[test]
    fn shards_split_at_the_limit_and_read_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let paths = write(dir.path(), 7);
        assert_eq!(paths.len(), 3);
        let shards = open(&paths[1]);
        assert_eq!(keys(&shards), ["s3", "s4", "s5"]);
        assert_eq!(shards.problems(), Vec::<String>::new());
        let sample = shards.read(1).unwrap();
        assert_eq!((sample.key.as_str(), sample.image), ("s4", vec![4u8; 700]));
        assert_eq!(sample.captions, ["words"]);
        let again = ShardWriter::create(dir.path(), "set", Limit::default()).err().unwrap();
        assert!(again.to_string().contains("is already there"), "{again}");
    }

    #[test]
    fn an_index_is_left_beside_and_believed_only_for_the_same_tar() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), 3).remove(0);
        let idx = dir.path().join(".set-000000.tar.uta-index");
        let spec = path.to_str().unwrap();
        assert_eq!(keys(&open(&path)), ["s0", "s1", "s2"]);
        assert!(idx.is_file());
        let names = |dir: &Path| fs::read_dir(dir).unwrap().count();
        assert_eq!(names(dir.path()), 3, "more than shard, index and sizes.json");
        let again = super::index(spec).unwrap();
        assert_eq!((again.shards, again.scanned, again.samples), (1, 0, 3));
        // What it says is taken without a look at the tar: here of one that has become something else.
        let tar = fs::metadata(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, vec![7; bytes.len()]).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(tar.modified().unwrap())
            .unwrap();
        assert_eq!(open(&path).len(), 3);
        // Another time of change or size, or a damaged index, and it is scanned.
        fs::write(&path, &bytes[..2 * 2560]).unwrap();
        let shards = open(&path);
        assert_eq!((shards.len(), shards.problems().len()), (2, 2));
        assert_eq!(open(&path).problems(), shards.problems(), "from the index");
        let whole = fs::read(&idx).unwrap();
        for i in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[i] ^= 0x10;
            fs::write(&idx, &damaged).unwrap();
            let shards = open(&path);
            assert_eq!(keys(&shards), ["s0", "s1"], "byte {i} of the index");
        }
        fs::write(&idx, &whole[..whole.len() - 12]).unwrap();
        assert_eq!(open(&path).len(), 2);
    }

    #[test]
    fn neighbours_are_fetched_together_up_to_a_bound_and_a_gap() {
        let span = |shard, offset, length| Span { shard, offset, length };
        let mib = 1 << 20;
        let spans = [
            span(0, 0, 100),
            span(0, 100, 100),
            // The last that is near enough, and the first that is not.
            span(0, 200 + GAP, 50),
            span(0, 251 + 2 * GAP, 9),
            // Before it, and in another shard.
            span(0, 0, 100),
            span(1, 100, 3 * mib),
            span(1, 100 + 3 * u64::from(mib), 5 * mib),
            span(1, 100 + AT_ONCE, 1),
            span(2, 0, 9 * mib),
        ];
        let all = gather(spans.into_iter().enumerate());
        let ranges: Vec<_> = all.iter().map(|of| (of.shard, of.range.clone())).collect();
        let far = 251 + 2 * GAP;
        let wanted = [
            (0, 0..250 + GAP),
            (0, far..far + 9),
            (0, 0..100),
            (1, 100..100 + AT_ONCE),
            (1, 100 + AT_ONCE..101 + AT_ONCE),
            (2, 0..9 * u64::from(mib)),
        ];
        assert_eq!(ranges, wanted);
        let counts: Vec<usize> = all.iter().map(|of| of.samples.len()).collect();
        assert_eq!(counts, [3, 1, 1, 2, 1, 1]);
    }

    #[test]
    fn the_same_samples_give_the_same_bytes() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (a, b) in write(a.path(), 4).iter().zip(write(b.path(), 4)) {
            assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap());
        }
    }

    #[test]
    fn long_names_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(dir.path(), "w", Limit::default()).unwrap();
        let long = format!("{}/{}", "folder".repeat(30), "name".repeat(30));
        for key in ["first", &long, "last"] {
            writer.write(key, &[("png", b"x"), ("txt", key.as_bytes())]).unwrap();
        }
        let shards = open(&writer.finish().unwrap()[0]);
        assert_eq!(keys(&shards), ["first", &long, "last"]);
        assert_eq!(shards.read(1).unwrap().captions, [long]);
    }

    #[test]
    fn a_cut_tar_keeps_the_samples_before_the_cut_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), 3).remove(0);
        let bytes = fs::read(&path).unwrap();
        // Each sample takes 512 + 1024 + 512 + 512 bytes.
        for (cut, samples, told) in [
            (2560 + 900, 1, "cut short at byte 3460; only the 1 samples before"),
            (2560 + 1536 + 100, 1, "damaged at byte 4096"),
            (2560 + 1536 + 512 + 3, 1, "cut short"),
            (2 * 2560, 2, "no end mark"),
            // The last caption is whole, its padding and the end mark are not there.
            (3 * 2560 - 507, 3, "no end mark"),
        ] {
            fs::write(&path, &bytes[..cut]).unwrap();
            let shards = open(&path);
            assert_eq!(shards.len(), samples, "cut at {cut}");
            assert!(shards.problems()[0].contains(told), "{cut}: {:?}", shards.problems());
            for i in 0..samples {
                assert_eq!(shards.read(i).unwrap().image, [i as u8; 700]);
                assert_eq!(shards.read(i).unwrap().captions, ["words"]);
            }
        }
        fs::write(&path, &bytes[..700]).unwrap();
        let e = Shards::open(vec![path], Captions::Lines).err().unwrap().to_string();
        assert!(e.contains("none of them an image") && e.contains("cut short at byte 700"), "{e}");
    }

    #[test]
    fn what_follows_the_end_mark_is_told_unless_it_fills_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), 3).remove(0);
        fs::remove_file(dir.path().join("sizes.json")).unwrap();
        let whole = fs::read(&path).unwrap();
        // Members to byte 7680, and the end mark.
        assert_eq!(whole.len(), 8704);
        let problems = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            open(&path).problems()
        };
        for padded in [8192, 8704, 10240, 16384, 1 << 20] {
            let mut bytes = whole.clone();
            bytes.resize(padded, 0);
            assert_eq!(problems(&bytes), Vec::<String>::new(), "{padded} bytes");
        }
        let mut holed = whole.clone();
        holed[2560..5120].fill(0);
        let mut zeroed = whole.clone();
        zeroed[2560..].fill(0);
        let mut longer = whole.clone();
        longer.resize(2 << 20, 0);
        let twice = whole.repeat(2);
        for (bytes, end) in [(holed, 2560), (zeroed, 2560), (longer, 7680), (twice, 7680)] {
            let told = format!("ends at byte {end} of {}: what follows is", bytes.len());
            let problems = problems(&bytes);
            assert!(problems.len() == 1 && problems[0].contains(&told), "{problems:?}");
        }
    }

    #[test]
    fn a_damaged_header_ends_the_shard_and_something_else_is_no_shard() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), 3).remove(0);
        let mut bytes = fs::read(&path).unwrap();
        bytes[2 * 2560 + 10] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let shards = open(&path);
        // Whether the sample before is whole can't be known.
        assert_eq!(keys(&shards), ["s0"]);
        assert!(shards.problems()[0].contains("damaged at byte 5120"), "{:?}", shards.problems());
        fs::write(&path, b"this is no tar".repeat(100)).unwrap();
        let e = Shards::open(vec![path], Captions::Lines).err().unwrap().to_string();
        assert!(e.contains("damaged at byte 0"), "{e}");
    }

    #[test]
    fn a_shard_that_changes_or_vanishes_after_it_was_opened_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let paths = write(dir.path(), 6);
        let shards = Shards::open(paths.clone(), Captions::Lines).unwrap();
        fs::remove_file(&paths[1]).unwrap();
        let e = shards.read(4).unwrap_err().to_string();
        assert!(e.contains("cannot open shard") && e.contains("set-000001.tar"), "{e}");
        assert!(shards.key(4).contains("set-000001.tar@2560"), "{}", shards.key(4));
        assert!(shards.read(0).is_ok());
        File::options().write(true).open(&paths[0]).unwrap().set_len(3000).unwrap();
        let e = shards.read(1).unwrap_err().to_string();
        assert!(e.contains("cannot read shard") && e.contains("set-000000.tar"), "{e}");
        fs::write(&paths[0], [7u8; 1 << 14]).unwrap();
        let e = shards.read(0).unwrap_err().to_string();
        assert!(e.contains("changed since it was opened"), "{e}");
    }

    #[test]
    fn members_outside_and_links_are_refused_and_the_rest_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mixed.tar");
        raw_tar(
            &path,
            &[
                ("./good/", EntryType::Directory, b""),
                ("./good/a.png", EntryType::Regular, b"a"),
                ("../evil.png", EntryType::Regular, b"x"),
                ("/etc/evil.png", EntryType::Regular, b"x"),
                ("link.png", EntryType::Symlink, b""),
                ("device.png", EntryType::Char, b""),
                ("only-words.txt", EntryType::Regular, b"x"),
                ("b.JPG", EntryType::Regular, b"b"),
            ],
        );
        let shards = open(&path);
        assert_eq!(keys(&shards), ["good/a", "b"]);
        let problems = shards.problems();
        assert_eq!(problems.len(), 5, "{problems:#?}");
        assert!(problems[0].contains("../evil.png") && problems[0].contains("outside"));
        assert!(problems[2].contains("link.png") && problems[2].contains("not a plain file"));
        assert!(problems[4].contains("1 keys without an image"));
    }

    #[test]
    fn a_key_that_comes_twice_gives_two_samples() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("twice.tar");
        let file = EntryType::Regular;
        raw_tar(
            &path,
            &[
                ("a.png", file, b"1"),
                ("a.cls", file, b"1"),
                ("a.png", file, b"2"),
                ("a.cls", file, b"2"),
            ],
        );
        let shards = open(&path);
        let classes: Vec<_> = (0..shards.len()).map(|i| shards.read(i).unwrap().class).collect();
        assert_eq!(classes, [Some(1), Some(2)]);
    }

    #[test]
    fn a_class_without_a_name_is_an_error_of_its_sample_and_a_json_is_passed_on_unread() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("train")).unwrap();
        fs::write(dir.path().join(CLASS_NAMES), "cat\ndog\n\n").unwrap();
        let path = dir.path().join("train/t.tar");
        let file = EntryType::Regular;
        raw_tar(
            &path,
            &[
                ("a.png", file, b"1"),
                ("a.cls", file, b"1\n"),
                ("b.png", file, b"2"),
                ("b.cls", file, b"2"),
                ("c.png", file, b"3"),
                ("c.json", file, b"{\"a\":"),
                ("d.png", file, b"3"),
                ("d.cls", file, b"cat"),
            ],
        );
        let shards = open(&path);
        assert_eq!(shards.class_names().unwrap(), ["cat", "dog"]);
        assert_eq!(shards.read(0).unwrap().class, Some(1));
        assert_eq!(shards.read(2).unwrap().meta, b"{\"a\":");
        for (i, told) in [(1, "classnames.txt has 2 lines"), (3, "\"cat\"")] {
            let e = shards.read(i).unwrap().class().unwrap_err().to_string();
            assert!(e.contains(told), "{e}");
        }
    }

    #[test]
    fn keys_that_a_reader_would_cut_or_that_lead_outside_are_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(dir.path(), "w", Limit::default()).unwrap();
        for key in ["../x", "/x", "a.b", "", "folder/"] {
            assert!(writer.write(key, &[("png", b"x")]).is_err(), "{key:?}");
        }
    }

    #[test]
    fn an_unfinished_set_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(dir.path(), "w", Limit::default()).unwrap();
        writer.write("x", &[("png", b"x")]).unwrap();
        drop(writer);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
