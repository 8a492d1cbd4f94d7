//! Targets that were computed once: what a frozen teacher says of seeded crops, in shards that are read row by row.
//!
//! A shard `{set}-000003.safetensors` is of a range of samples, k crops of each, R in all; each crop has T rows of E numbers:
//!
//! ```text
//! views    U64 [R, 3]             the state of the generator that the crop is drawn from; the CRC-32C of its pixels; of both
//! checks   U32 [R, T]             the CRC-32C of each row of targets
//! targets  I8, F16 or F32 [R, T, E]
//! ```
//!
//! All sizes are known before anything is computed. So a row's place is arithmetic, and so are a shard's header and length,
//! by which a missing, cut or strange file is found. Whatever else may be damaged is under a checksum that is looked at
//! whenever it is read. What the numbers are, and of which teacher, this module doesn't know.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crc32c::crc32c;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uta_base::{AtomicFile, Lock};

use crate::rng::{Purpose, Rng};
use crate::stream::ahead::Ahead;
use crate::stream::guarded;
use crate::stream::parallel::Ordered;
use crate::{DataError, DecodeOptions, EvalTransform, Rejected, Source, TrainTransform};

/// Shards held open at once, far below the usual limit of 1024 files.
const OPEN_SHARDS: usize = 128;

/// Bytes of a shard's header, the eight of its length included.
const HEADER: usize = 1024;

/// Bytes of a crop in `views`.
const VIEW: u64 = 24;

/// Bytes of a row in `checks`.
const CHECK: u64 = 4;

/// Samples looked at before a set of targets is believed to be of a source.
const PROBES: u64 = 16;

/// How a target's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetKind {
    /// A byte each: the row's direction alone.
    I8,
    /// Half precision.
    F16,
    /// As they were computed.
    F32,
}

impl TargetKind {
    /// Bytes of a number.
    pub fn bytes(self) -> u64 {
        match self {
            TargetKind::I8 => 1,
            TargetKind::F16 => 2,
            TargetKind::F32 => 4,
        }
    }

    fn dtype(self) -> &'static str {
        match self {
            TargetKind::I8 => "I8",
            TargetKind::F16 => "F16",
            TargetKind::F32 => "F32",
        }
    }
}

/// The targets of all samples of one source: how many, how large, where.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetSet {
    /// The folder.
    pub dir: PathBuf,
    /// How its shards' names begin.
    pub name: &'static str,
    /// What tells its shards from those of other caches.
    pub mark: String,
    /// Samples of the source.
    pub samples: u64,
    /// k, the crops of a sample.
    pub crops: u64,
    /// Samples of a shard; the last one may have fewer.
    pub shard_samples: u64,
    /// T, the rows of a crop.
    pub tokens: u64,
    /// E, the numbers of a row.
    pub width: u64,
    /// How they are stored.
    pub kind: TargetKind,
}

/// Where the parts of a shard begin, and where it ends.
struct Places {
    views: u64,
    checks: u64,
    targets: u64,
    end: u64,
}

impl TargetSet {
    /// Whether the sizes, which come from a file, are such that arithmetic with them is safe.
    pub fn is_sane(&self) -> bool {
        let sizes = [self.crops, self.shard_samples, self.tokens, self.width];
        let numbers = sizes.into_iter().try_fold(1u64, |product, size| product.checked_mul(size));
        self.samples < 1 << 40 && numbers.is_some_and(|numbers| (1..1 << 44).contains(&numbers))
    }

    /// How many shards there are.
    pub fn shards(&self) -> u64 {
        self.samples.div_ceil(self.shard_samples)
    }

    /// The samples of a shard.
    pub fn samples_of(&self, shard: u64) -> Range<u64> {
        let first = shard * self.shard_samples;
        first..(first + self.shard_samples).min(self.samples)
    }

    /// The file of a shard.
    pub fn path(&self, shard: u64) -> PathBuf {
        self.dir.join(format!("{}-{shard:06}.safetensors", self.name))
    }

    /// Bytes of all shards.
    pub fn bytes(&self) -> u64 {
        (0..self.shards()).map(|shard| self.places(shard).end).sum()
    }

    fn row(&self) -> u64 {
        self.width * self.kind.bytes()
    }

    fn rows_of(&self, shard: u64) -> u64 {
        let samples = self.samples_of(shard);
        (samples.end - samples.start) * self.crops
    }

    /// The header of a shard, with its length before it.
    fn header(&self, shard: u64) -> Vec<u8> {
        let (r, t, e) = (self.rows_of(shard), self.tokens, self.width);
        let views = r * VIEW;
        let checks = views + r * t * CHECK;
        let targets = checks + r * t * self.row();
        let samples = self.samples_of(shard);
        let header = json!({
            "__metadata__": {
                "cache": self.mark,
                "samples": format!("{}..{}", samples.start, samples.end),
                "crops": self.crops.to_string(),
            },
            "views": { "dtype": "U64", "shape": [r, 3], "data_offsets": [0, views] },
            "checks": { "dtype": "U32", "shape": [r, t], "data_offsets": [views, checks] },
            "targets": { "dtype": self.kind.dtype(), "shape": [r, t, e], "data_offsets": [checks, targets] },
        });
        let mut whole = (HEADER as u64 - 8).to_le_bytes().to_vec();
        whole.extend_from_slice(header.to_string().as_bytes());
        assert!(whole.len() <= HEADER, "sane sizes have few digits");
        whole.resize(HEADER, b' ');
        whole
    }

    fn places(&self, shard: u64) -> Places {
        let rows = self.rows_of(shard);
        let views = HEADER as u64;
        let checks = views + rows * VIEW;
        let targets = checks + rows * self.tokens * CHECK;
        Places { views, checks, targets, end: targets + rows * self.tokens * self.row() }
    }

    /// Opens a shard whose length and header are what they must be.
    fn open(&self, shard: u64) -> Result<File, DataError> {
        let path = self.path(shard);
        let wrong = |reason: String| DataError::Targets { path: path.clone(), reason };
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(wrong(
                    "is missing: run uta cache again, which makes what isn't there".into(),
                ));
            }
            other => other.map_err(DataError::io("open", &path))?,
        };
        let (found, whole) =
            (file.metadata().map_err(DataError::io("read", &path))?.len(), self.places(shard).end);
        if found != whole {
            let what = if found < whole { "cut short" } else { "too long" };
            let redo = "run uta cache again, which makes it anew";
            return Err(wrong(format!("{what}: {found} bytes of {whole}; {redo}")));
        }
        let header = self.header(shard);
        let mut there = vec![0; header.len()];
        file.read_exact_at(&mut there, 0).map_err(DataError::io("read", &path))?;
        if there != header {
            let redo = "remove it and run uta cache again";
            return Err(wrong(format!("is of another cache, or damaged in its header; {redo}")));
        }
        Ok(file)
    }

    /// Whether a shard is there with the right length and header; with `thoroughly`, whether every row is what was written.
    pub fn is_whole(&self, shard: u64, thoroughly: bool) -> Result<bool, DataError> {
        let file = match self.open(shard) {
            Err(DataError::Targets { .. }) => return Ok(false),
            other => Arc::new(other?),
        };
        if !thoroughly {
            return Ok(true);
        }
        let (all, mut rows) = ((0..self.tokens).collect::<Vec<u64>>(), vec![]);
        for r in 0..self.rows_of(shard) {
            let place = Place { file: file.clone(), shard, r };
            rows.clear();
            let read = self.view(&place).and_then(|view| match view {
                Some(_) => self.read(&place, &all, &mut rows),
                None => Ok(()),
            });
            match read {
                Err(DataError::Targets { .. }) => return Ok(false),
                other => other?,
            }
        }
        Ok(true)
    }

    fn view(&self, place: &Place) -> Result<Option<View>, DataError> {
        let mut bytes = [[0; 8]; 3];
        place
            .file
            .read_exact_at(
                bytes.as_flattened_mut(),
                self.places(place.shard).views + place.r * VIEW,
            )
            .map_err(DataError::io("read", self.path(place.shard)))?;
        if bytes.as_flattened() == UNUSABLE {
            return Ok(None);
        }
        let [state, crc, _] = bytes.map(u64::from_le_bytes);
        let view = View { state, crc: crc as u32 };
        if view.bytes() != bytes {
            return Err(self.damaged(place, "its place in the table of views"));
        }
        Ok(Some(view))
    }

    /// The sample and which of its crops.
    fn crop_at(&self, place: &Place) -> (u64, u64) {
        let sample = self.samples_of(place.shard).start + place.r / self.crops;
        (sample, place.r % self.crops)
    }

    fn damaged(&self, place: &Place, what: &str) -> DataError {
        let (sample, crop) = self.crop_at(place);
        let redo = "run uta cache again with --check, which makes the shard anew";
        let reason = format!("damaged: sample {sample}, crop {crop}, {what}; {redo}");
        DataError::Targets { path: self.path(place.shard), reason }
    }

    /// Appends the wanted rows of a crop, neighbours in one read.
    fn read(&self, place: &Place, rows: &[u64], into: &mut Vec<u8>) -> Result<(), DataError> {
        let path = self.path(place.shard);
        let io = || DataError::io("read", &path);
        let places = self.places(place.shard);
        let first = place.r * self.tokens;
        let mut checks = vec![0; (self.tokens * CHECK) as usize];
        place.file.read_exact_at(&mut checks, places.checks + first * CHECK).map_err(io())?;
        let (checks, _) = checks.as_chunks::<4>();
        let row = self.row() as usize;
        for run in rows.chunk_by(|a, b| a + 1 == *b) {
            let start = into.len();
            into.resize(start + run.len() * row, 0);
            let offset = places.targets + (first + run[0]) * self.row();
            place.file.read_exact_at(&mut into[start..], offset).map_err(io())?;
            for (token, bytes) in run.iter().zip(into[start..].chunks_exact(row)) {
                if crc32c(bytes) != u32::from_le_bytes(checks[*token as usize]) {
                    return Err(self.damaged(place, &format!("token {token}")));
                }
            }
        }
        Ok(())
    }
}

/// A crop in an open shard.
struct Place {
    file: Arc<File>,
    shard: u64,
    /// Which of the shard's crops.
    r: u64,
}

/// A crop: everything random about it (box, flip, colours), and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Of the generator that it is drawn from.
    state: u64,
    /// Of its pixels.
    crc: u32,
}

/// What stands in `views` for the crops of an unusable sample.
const UNUSABLE: [u8; VIEW as usize] = [0xff; VIEW as usize];

impl View {
    /// The crop drawn from a generator of this state, by its pixels.
    pub fn new(state: u64, pixels: &[u8]) -> View {
        View { state, crc: crc32c(pixels) }
    }

    fn bytes(self) -> [[u8; 8]; 3] {
        let [state, crc] = [self.state, self.crc.into()].map(u64::to_le_bytes);
        [state, crc, u64::from(crc32c([state, crc].as_flattened())).to_le_bytes()]
    }
}

/// How a source's images become what the teacher sees.
#[derive(Clone, Debug)]
pub enum Cropping {
    /// Crop number c of sample i as a training stream of this seed draws it in epoch c.
    Train(Box<TrainTransform>, u64),
    /// The one view of evaluation.
    Eval(EvalTransform),
}

impl Cropping {
    fn draw(&self, crop: u64, sample: u64) -> u64 {
        match self {
            Cropping::Train(_, seed) => Rng::new(*seed, Purpose::Augment, &[crop, sample]).state(),
            Cropping::Eval(_) => 0,
        }
    }

    /// `[size, size, 3]` bytes.
    fn view(&self, image: &[u8], decode: &DecodeOptions, state: u64) -> Result<Vec<u8>, DataError> {
        match self {
            Cropping::Train(transform, _) => drawn(transform, image, decode, state),
            Cropping::Eval(transform) => transform.view(image, decode),
        }
    }
}

/// The view that a generator of this state draws, `[size, size, 3]` bytes.
fn drawn(
    transform: &TrainTransform,
    image: &[u8],
    decode: &DecodeOptions,
    state: u64,
) -> Result<Vec<u8>, DataError> {
    let views = transform.views(image, decode, &mut [Rng::from_state(state)])?;
    Ok(views.into_iter().next().expect("a view for the one generator"))
}

/// The first `count` crops of each of `samples`, in order, with their pixels; made in `workers` threads, `ahead` samples ahead.
pub fn crops(
    source: Arc<dyn Source>,
    cropping: Cropping,
    decode: DecodeOptions,
    count: u64,
    samples: Vec<u64>,
    (workers, ahead): (usize, u64),
) -> impl Iterator<Item = Result<Vec<(View, Vec<u8>)>, Rejected>> {
    let (jobs, samples) = (samples.len() as u64, Arc::new(samples));
    let next = {
        let samples = samples.clone();
        move |job| samples[job as usize] as usize
    };
    let coming = Ahead::new(source.clone(), 0..jobs, 0, vec![], next);
    Ordered::new(workers, ahead, 0..jobs, move |job| {
        coming.pass(job);
        let i = samples[job as usize];
        let look = || {
            let sample = source.read(i as usize)?;
            // Each is decoded alone: how much a JPEG may be reduced depends on the crops that are wanted of it.
            let crop = |crop| {
                let state = cropping.draw(crop, i);
                let pixels = cropping.view(&sample.image, &decode, state)?;
                Ok((View::new(state, &pixels), pixels))
            };
            (0..count).map(crop).collect()
        };
        guarded(look).map_err(|e| Rejected::new(source.as_ref(), i as usize, &e))
    })
}

/// Writes one shard, in any order; it has its name only once it is [finished](TargetWriter::finish).
pub struct TargetWriter<'a> {
    set: &'a TargetSet,
    shard: u64,
    file: AtomicFile,
    places: Places,
    /// `views` and `checks`.
    tables: Vec<u8>,
}

impl<'a> TargetWriter<'a> {
    /// Begins a shard in which every sample is unusable.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn create(set: &'a TargetSet, shard: u64) -> Result<TargetWriter<'a>, DataError> {
        let path = set.path(shard);
        let places = set.places(shard);
        let file = AtomicFile::create(&path).map_err(DataError::io("create", &path))?;
        let mut tables = vec![0; (places.targets - places.views) as usize];
        tables[..(places.checks - places.views) as usize].fill(0xff);
        let writer = TargetWriter { set, shard, file, places, tables };
        // What is left unwritten reads as zeros.
        let out = writer.file.file();
        out.set_len(writer.places.end)
            .and_then(|()| out.write_all_at(&set.header(shard), 0))
            .map_err(DataError::io("write", path))?;
        Ok(writer)
    }

    /// Writes the `[T, E]` rows of a crop.
    ///
    /// # Errors
    /// When the disk refuses.
    ///
    /// # Panics
    /// When the sample is not of this shard, or the rows have another size.
    pub fn put(
        &mut self,
        sample: u64,
        crop: u64,
        view: View,
        rows: &[u8],
    ) -> Result<(), DataError> {
        let set = self.set;
        assert!(set.samples_of(self.shard).contains(&sample) && crop < set.crops);
        assert_eq!(rows.len() as u64, set.tokens * set.row());
        let r = (sample - self.shard * set.shard_samples) * set.crops + crop;
        let at = (r * VIEW) as usize;
        self.tables[at..at + VIEW as usize].copy_from_slice(view.bytes().as_flattened());
        let checks = (self.places.checks - self.places.views + r * set.tokens * CHECK) as usize;
        let (checks, _) = self.tables[checks..].as_chunks_mut::<4>();
        for (check, row) in checks.iter_mut().zip(rows.chunks_exact(set.row() as usize)) {
            *check = crc32c(row).to_le_bytes();
        }
        let offset = self.places.targets + r * set.tokens * set.row();
        self.file
            .file()
            .write_all_at(rows, offset)
            .map_err(DataError::io("write", set.path(self.shard)))
    }

    /// Syncs the shard and gives it its name.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(self) -> Result<(), DataError> {
        let path = self.set.path(self.shard);
        self.file
            .file()
            .write_all_at(&self.tables, self.places.views)
            .and_then(|()| self.file.finish())
            .map_err(DataError::io("write", path))
    }
}

/// An open shard, by its number.
type Slot = Mutex<Option<(u64, Arc<File>)>>;

/// The targets of a source, for reading from any thread.
pub struct Targets {
    set: TargetSet,
    /// A shard may only be in the slot of its number modulo their count.
    files: Vec<Slot>,
}

impl Targets {
    /// Opens the shards of `set`, every one of which must be there and have its length.
    ///
    /// # Errors
    /// Names the first that isn't.
    pub fn open(set: TargetSet) -> Result<Targets, DataError> {
        for shard in 0..set.shards() {
            set.open(shard)?;
        }
        Ok(Targets::unchecked(set))
    }

    /// As [`open`](Targets::open), of a set that may lack shards yet.
    pub fn unchecked(set: TargetSet) -> Targets {
        let files = (0..set.shards().min(OPEN_SHARDS as u64)).map(|_| Mutex::new(None)).collect();
        Targets { set, files }
    }

    /// What they are.
    pub fn set(&self) -> &TargetSet {
        &self.set
    }

    fn place(&self, sample: u64, crop: u64) -> Result<Place, DataError> {
        let set = &self.set;
        if sample >= set.samples || crop >= set.crops {
            let reason = format!("has no crop {crop} of sample {sample}");
            return Err(DataError::Targets { path: set.dir.clone(), reason });
        }
        let shard = sample / set.shard_samples;
        let slot = &self.files[(shard % self.files.len() as u64) as usize];
        // A slot is only ever replaced as a whole, so a panic elsewhere can't have spoilt it.
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match &*slot {
            Some((holds, file)) if *holds == shard => file.clone(),
            _ => {
                let file = Arc::new(set.open(shard)?);
                *slot = Some((shard, file.clone()));
                file
            }
        };
        Ok(Place { file, shard, r: (sample % set.shard_samples) * set.crops + crop })
    }

    /// Appends the wanted rows of a crop, `[rows, E]`, and checks that they are what was written. Nothing else is read.
    ///
    /// # Errors
    /// When they can't be read or are damaged.
    pub fn read(
        &self,
        (sample, crop): (u64, u64),
        rows: &[u64],
        into: &mut Vec<u8>,
    ) -> Result<(), DataError> {
        self.set.read(&self.place(sample, crop)?, rows, into)
    }

    /// As [`read`](Targets::read), for someone who has `pixels` and wants them to be those that the targets are of.
    ///
    /// # Errors
    /// When they aren't.
    pub fn read_for(
        &self,
        (sample, crop): (u64, u64),
        pixels: &[u8],
        rows: &[u64],
        into: &mut Vec<u8>,
    ) -> Result<(), DataError> {
        let (place, view) = self.usable(sample, crop)?;
        self.read_seen(&place, view, pixels, rows, into)
    }

    /// Where a crop is, and what came of it.
    fn usable(&self, sample: u64, crop: u64) -> Result<(Place, View), DataError> {
        let place = self.place(sample, crop)?;
        match self.set.view(&place)? {
            Some(view) => Ok((place, view)),
            None => {
                let reason = format!("sample {sample} was unusable when they were computed");
                Err(DataError::Targets { path: self.set.path(place.shard), reason })
            }
        }
    }

    /// The rows of a crop whose view is known, if `pixels` are what came of it.
    fn read_seen(
        &self,
        place: &Place,
        view: View,
        pixels: &[u8],
        rows: &[u64],
        into: &mut Vec<u8>,
    ) -> Result<(), DataError> {
        if view.crc != crc32c(pixels) {
            let (sample, crop) = self.set.crop_at(place);
            let reason = format!(
                "sample {sample}, crop {crop}, isn't the picture that the targets are of: it, or how it is decoded or cropped, has changed"
            );
            return Err(DataError::Targets { path: self.set.path(place.shard), reason });
        }
        self.set.read(place, rows, into)
    }

    /// Whether these are targets of `source`: as many samples, and some of them with the same pixels.
    ///
    /// # Errors
    /// Says what differs.
    pub fn are_of(
        &self,
        source: &dyn Source,
        cropping: &Cropping,
        decode: &DecodeOptions,
    ) -> Result<(), DataError> {
        let (samples, here) = (self.set.samples, source.len() as u64);
        let wrong = |reason| Err(DataError::Targets { path: self.set.dir.clone(), reason });
        if samples != here {
            let name = self.set.name;
            return wrong(format!("is of other {name} data: {samples} samples there, {here} here"));
        }
        for probe in 0..PROBES.min(samples) {
            let i = probe * samples / PROBES.min(samples);
            // What isn't there, or damaged, is told of elsewhere.
            let Ok(place) = self.place(i, 0) else { continue };
            let Ok(Some(view)) = self.set.view(&place) else { continue };
            let look = || {
                let sample = source.read(i as usize)?;
                cropping.view(&sample.image, decode, view.state)
            };
            let Ok(pixels) = guarded(look) else { continue };
            if crc32c(&pixels) != view.crc {
                let (name, key) = (self.set.name, source.key(i as usize));
                return wrong(format!(
                    "is of other {name} data: {key}, sample {i}, isn't the picture that was there"
                ));
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Targets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.set.fmt(f)
    }
}

/// Which rows the image at a position of a stream is wanted with, in rising order.
pub type Wanted = dyn Fn(u64) -> Vec<u64> + Send + Sync;

/// Targets for the images of a training stream, which are then crops that there are targets of.
pub struct Replay {
    /// Where they are.
    pub targets: Targets,
    /// Which of their rows.
    pub wanted: Box<Wanted>,
}

impl Replay {
    /// Crop `number` of a sample, counted on from the first epoch, over and over the k that there are: its pixels. Its rows are
    /// appended to `into`.
    pub(crate) fn view(
        &self,
        transform: &TrainTransform,
        decode: &DecodeOptions,
        image: &[u8],
        (index, number, position): (u64, u64, u64),
        into: &mut Vec<u8>,
    ) -> Result<Vec<u8>, DataError> {
        let (place, view) = self.targets.usable(index, number % self.targets.set.crops)?;
        let pixels = drawn(transform, image, decode, view.state)?;
        self.targets.read_seen(&place, view, &pixels, &(self.wanted)(position), into)?;
        Ok(pixels)
    }
}

/// Makes the folder of a cache where needed, and holds it until dropped, so that two processes never write the same one.
///
/// # Errors
/// When another process has it, or it can't be made.
pub fn lock(dir: &Path) -> Result<Lock, DataError> {
    fs::create_dir_all(dir).map_err(DataError::io("create", dir))?;
    let path = dir.join(".lock");
    let lock = Lock::try_hold(&path).map_err(DataError::io("lock", &path))?;
    lock.ok_or_else(|| {
        let reason = "another process is writing here".into();
        DataError::Targets { path: dir.to_owned(), reason }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Fault, Sample, Stream, StreamOptions};

    /// Pictures whose colour is their number and a shade; number 5 is broken.
    struct Colours(u8);

    impl Source for Colours {
        fn len(&self) -> usize {
            11
        }
        fn read(&self, i: usize) -> Result<Sample, DataError> {
            let image = match i {
                5 => b"no picture".to_vec(),
                _ => gradient(i as u8, self.0),
            };
            Ok(Sample { key: self.key(i), image, ..Sample::default() })
        }
        fn key(&self, i: usize) -> String {
            format!("c{i}")
        }
        fn class_names(&self) -> Option<&[String]> {
            None
        }
    }

    /// No two crops of it are the same.
    fn gradient(i: u8, shade: u8) -> Vec<u8> {
        use image::{ImageFormat, Rgb, RgbImage};
        let mut bytes = io::Cursor::new(vec![]);
        let pixel = |x: u32, y: u32| Rgb([i, (x * 7) as u8, (y * 7) as u8 ^ shade]);
        RgbImage::from_fn(36, 30, pixel).write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    const K: u64 = 3;

    fn transform() -> TrainTransform {
        TrainTransform { size: 8, ..TrainTransform::default() }
    }

    fn set(dir: &Path) -> TargetSet {
        TargetSet {
            dir: dir.to_owned(),
            name: "train",
            mark: "this one".into(),
            samples: 11,
            crops: K,
            shard_samples: 4,
            tokens: 5,
            width: 6,
            kind: TargetKind::I8,
        }
    }

    /// What stands in row `token` of a crop.
    fn row(sample: u64, crop: u64, token: u64) -> Vec<u8> {
        (0..6).map(|i| (100 * crop + 40 * token + 7 * sample + i) as u8).collect()
    }

    fn write(set: &TargetSet) {
        let cropping = Cropping::Train(Box::new(transform()), 9);
        for shard in 0..set.shards() {
            let samples: Vec<u64> = set.samples_of(shard).collect();
            let decode = DecodeOptions::default();
            let source = Arc::new(Colours(0));
            let all = crops(source, cropping.clone(), decode, K, samples.clone(), (2, 3));
            let mut writer = TargetWriter::create(set, shard).unwrap();
            for (sample, views) in samples.into_iter().zip(all) {
                for (crop, (view, _)) in (0..).zip(views.into_iter().flatten()) {
                    let rows = (0..5).flat_map(|token| row(sample, crop, token));
                    writer.put(sample, crop, view, &rows.collect::<Vec<u8>>()).unwrap();
                }
            }
            writer.finish().unwrap();
        }
    }

    fn written() -> (tempfile::TempDir, TargetSet) {
        let dir = tempfile::tempdir().unwrap();
        let set = set(dir.path());
        write(&set);
        (dir, set)
    }

    fn options() -> StreamOptions {
        StreamOptions {
            batch: 5,
            seed: 9,
            workers: 2,
            max_rejected: 0.5,
            ..StreamOptions::default()
        }
    }

    fn replaying(set: &TargetSet) -> Stream {
        let wanted = Box::new(|position| vec![0, 1 + position % 4]);
        let replay = Replay { targets: Targets::open(set.clone()).unwrap(), wanted };
        let source = Arc::new(Colours(0));
        Stream::replaying(source, transform(), options(), 0, Some(Arc::new(replay))).unwrap()
    }

    #[test]
    fn the_source_is_told_of_every_sample_that_crops_are_made_of() {
        /// Remembers what it was told to expect; none of it is a picture.
        struct Told(Mutex<Vec<usize>>);
        impl Source for Told {
            fn len(&self) -> usize {
                4000
            }
            fn read(&self, i: usize) -> Result<Sample, DataError> {
                match self.0.lock().unwrap().contains(&i) {
                    true => Ok(Sample::default()),
                    false => Err(DataError::Caption { key: self.key(i) }),
                }
            }
            fn key(&self, i: usize) -> String {
                i.to_string()
            }
            fn class_names(&self) -> Option<&[String]> {
                None
            }
            fn expect(&self, samples: &[usize]) {
                self.0.lock().unwrap().extend(samples);
            }
        }
        let source = Arc::new(Told(Mutex::default()));
        // Of the shards that are missing.
        let samples: Vec<u64> = (100..900).chain(1500..1900).collect();
        let cropping = Cropping::Eval(EvalTransform::new(4));
        let options = DecodeOptions::default();
        let all = crops(source.clone(), cropping, options, 1, samples.clone(), (2, 8));
        let kinds: Vec<Fault> = all.filter_map(Result::err).map(|e| e.kind).collect();
        assert_eq!(kinds, vec![Fault::Image; samples.len()], "one is read and was not expected");
        let told: Vec<u64> = source.0.lock().unwrap().iter().map(|&i| i as u64).collect();
        assert_eq!(told, samples);
    }

    #[test]
    fn rows_are_read_back_and_a_damaged_one_hurts_only_who_wants_it() {
        let (_dir, set) = written();
        assert_eq!(std::fs::read_dir(&set.dir).unwrap().count(), 3);
        let targets = Targets::open(set.clone()).unwrap();
        let mut rows = vec![];
        targets.read((6, 2), &[0, 2, 3], &mut rows).unwrap();
        assert_eq!(rows, [0, 2, 3].map(|token| row(6, 2, token)).concat());
        // Sample 6 is the third of shard 1; its crop 2 is the ninth there.
        let path = set.path(1);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = set.places(1).targets as usize + (8 * 5 + 1) * 6;
        assert_eq!(bytes[at..at + 6], row(6, 2, 1));
        bytes[at + 3] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let targets = Targets::open(set).unwrap();
        targets.read((6, 2), &[0, 2, 3, 4], &mut rows).unwrap();
        let e = targets.read((6, 2), &[0, 1], &mut rows).unwrap_err().to_string();
        assert!(e.contains("train-000001") && e.contains("sample 6, crop 2, token 1"), "{e}");
        assert!(targets.read((11, 0), &[0], &mut rows).is_err());
        assert!(targets.read((0, 3), &[0], &mut rows).is_err());
    }

    #[test]
    fn a_shard_with_any_byte_changed_or_cut_or_added_is_not_whole() {
        let (_dir, set) = written();
        let path = set.path(2);
        let whole = std::fs::read(&path).unwrap();
        assert!(set.is_whole(2, true).unwrap());
        for i in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[i] ^= 0x04;
            std::fs::write(&path, &damaged).unwrap();
            assert!(!set.is_whole(2, true).unwrap(), "byte {i}");
        }
        for length in [0, 7, 1000, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(!set.is_whole(2, false).unwrap());
            let e = Targets::open(set.clone()).unwrap_err().to_string();
            assert!(e.contains("train-000002") && e.contains("cut short"), "{e}");
        }
        std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert!(Targets::open(set.clone()).unwrap_err().to_string().contains("too long"));
        std::fs::remove_file(&path).unwrap();
        assert!(Targets::open(set.clone()).unwrap_err().to_string().contains("is missing"));
        // One of another cache, of the very same sizes.
        std::fs::write(&path, &whole).unwrap();
        let other = TargetSet { mark: "that one".into(), ..set };
        assert!(Targets::open(other).unwrap_err().to_string().contains("of another cache"));
    }

    #[test]
    fn a_stream_replays_the_crops_of_a_live_one_with_their_targets_over_and_over() {
        let (_dir, set) = written();
        let mut live = Stream::new(Arc::new(Colours(0)), transform(), options(), 0).unwrap();
        let mut replayed = replaying(&set);
        let mut of_first = std::collections::BTreeMap::new();
        for step in 0..20 {
            let (ours, theirs) = (replayed.next_batch().unwrap(), live.next_batch().unwrap());
            assert_eq!(ours.items, theirs.items);
            let whole_epochs = (5 * step + 4) / 11 < K;
            assert_eq!(ours.pixels == theirs.pixels, whole_epochs, "step {step}");
            for (i, item) in ours.items.iter().enumerate() {
                let (sample, crop) = (item.index as u64, item.position / 11 % K);
                let rows = [row(sample, crop, 0), row(sample, crop, 1 + item.position % 4)];
                assert_eq!(ours.targets[i * 12..][..12], rows.concat());
                let pixels = ours.pixels[i * 192..][..192].to_vec();
                assert_eq!(of_first.entry((sample, crop)).or_insert(pixels.clone()), &pixels);
            }
        }
        // All crops of the ten pictures that aren't broken, but for a few that no stand-in was drawn for.
        assert!(of_first.len() > 28, "{}", of_first.len());
    }

    #[test]
    fn a_sample_with_damaged_targets_is_named_and_replaced() {
        let (_dir, set) = written();
        let path = set.path(0);
        let mut bytes = std::fs::read(&path).unwrap();
        let first = set.places(0).targets as usize;
        // All that there is of sample 0.
        bytes[first..first + 3 * 5 * 6].fill(0);
        std::fs::write(&path, &bytes).unwrap();
        let mut stream = replaying(&set);
        let batches: Vec<_> = (0..11).map(|_| stream.next_batch().unwrap()).collect();
        assert!(batches.iter().all(|batch| batch.len() == 5 && batch.targets.len() == 60));
        assert!(batches.iter().flat_map(|batch| &batch.items).all(|item| item.index != 0));
        let rejected: Vec<_> = batches.iter().flat_map(|batch| &batch.rejected).collect();
        let of = |key, reason: &str| {
            let same = |r: &&&Rejected| r.key == key && r.kind == Fault::Targets;
            rejected.iter().filter(same).filter(|r| r.reason.contains(reason)).count()
        };
        assert!(of("c0", "damaged") >= 4 && of("c5", "unusable when they were computed") >= 4);
        assert_eq!(of("c0", "") + of("c5", ""), rejected.len(), "{rejected:?}");
    }

    #[test]
    fn other_pictures_other_crops_and_another_number_are_refused() {
        let (_dir, set) = written();
        let targets = Targets::open(set.clone()).unwrap();
        let decode = DecodeOptions::default();
        let cropping = Cropping::Train(Box::new(transform()), 9);
        targets.are_of(&Colours(0), &cropping, &decode).unwrap();
        let e = targets.are_of(&Colours(64), &cropping, &decode).unwrap_err().to_string();
        assert!(e.contains("other train data: c0, sample 0"), "{e}");
        let flat = TrainTransform { scale: (0.9, 1.0), ..transform() };
        assert!(targets.are_of(&Colours(0), &Cropping::Train(Box::new(flat), 9), &decode).is_err());
        // Who has a picture and its targets is told when they don't belong together.
        let mut rows = vec![];
        let e = targets.read_for((1, 0), &[7; 192], &[0], &mut rows).unwrap_err().to_string();
        assert!(e.contains("sample 1, crop 0, isn't the picture"), "{e}");
        let e = targets.read_for((5, 0), &[7; 192], &[0], &mut rows).unwrap_err().to_string();
        assert!(e.contains("sample 5 was unusable"), "{e}");
        struct Fewer;
        impl Source for Fewer {
            fn len(&self) -> usize {
                10
            }
            fn read(&self, i: usize) -> Result<Sample, DataError> {
                Colours(0).read(i)
            }
            fn key(&self, i: usize) -> String {
                Colours(0).key(i)
            }
            fn class_names(&self) -> Option<&[String]> {
                None
            }
        }
        let e = targets.are_of(&Fewer, &cropping, &decode).unwrap_err().to_string();
        assert!(e.contains("11 samples there, 10 here"), "{e}");
    }

    #[test]
    fn sizes_that_would_overflow_are_no_sane_ones() {
        let set = set(Path::new("."));
        assert!(set.is_sane());
        assert!(!TargetSet { crops: 0, ..set.clone() }.is_sane());
        assert!(!TargetSet { shard_samples: 0, ..set.clone() }.is_sane());
        assert!(!TargetSet { shard_samples: u64::MAX, ..set.clone() }.is_sane());
        assert!(!TargetSet { samples: 1 << 50, ..set }.is_sane());
    }

    #[test]
    fn an_unfinished_shard_leaves_nothing_and_one_process_writes_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let set = set(dir.path());
        drop(TargetWriter::create(&set, 0).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let held = lock(dir.path()).unwrap();
        assert!(lock(dir.path()).unwrap_err().to_string().contains("another process"));
        drop(held);
        lock(dir.path()).unwrap();
    }
}
