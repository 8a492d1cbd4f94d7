//! Shards elsewhere: on S3, GCS, Azure and web servers, read by ranges through `object_store`.
//!
//! A request that fails before its answer is sent again by `object_store`, with growing pauses; an answer that breaks off is
//! asked for again here, from where it broke. Either ends with an error after [`patience`]. What will be read soon
//! ([`Source::expect`](crate::Source::expect)) is fetched meanwhile, neighbours in one request; anything else is a request of
//! its own. Who may read is told by the environment variables that `object_store` knows, never by a URL.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::path::Path as Location;
use object_store::{
    BackoffConfig, ClientConfigKey, ClientOptions, Error, GetOptions, GetRange, ObjectMeta,
    ObjectStore, RetryConfig,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::storage::span::{Bytes, Span, Stamp, Together, gather};

/// Bytes that a [`Reader`] asks for at once.
const BLOCK: u64 = 8 << 20;

/// Blocks that a [`Reader`] has under way.
const BLOCKS_AHEAD: usize = 3;

/// A request for little takes one; each further 256 KiB one more.
const UNDER_WAY: usize = 256;

/// Bytes of samples that are expected or held: more are read when they are asked for.
const MOST_HELD: u64 = 8 << 30;

/// Bytes a second that the slowest connection in use brings.
const SLOWEST: u64 = 64 << 10;

/// How often in a row an answer may break off before it has brought anything.
const FRUITLESS: usize = 8;

/// The largest text file that is read: the sizes of a million shards need less.
const MOST_TEXT: u64 = 64 << 20;

/// How long a small read may take with all that is tried again: `UTA_REMOTE_PATIENCE` seconds, else two minutes.
fn patience() -> Duration {
    static PATIENCE: OnceLock<Duration> = OnceLock::new();
    *PATIENCE.get_or_init(|| {
        let given = std::env::var("UTA_REMOTE_PATIENCE").ok().and_then(|text| text.parse().ok());
        Duration::from_secs(given.filter(|&seconds| seconds > 0).unwrap_or(120))
    })
}

/// Silence after which a connection is given up.
fn stall() -> Duration {
    patience() / 6
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("remote")
            .enable_all()
            .build()
            .expect("the system gives two threads")
    })
}

/// A bucket, a container or a web server.
struct Store {
    objects: Box<dyn ObjectStore>,
    /// It has given no use of an answer within [`patience`], and none since.
    silent: AtomicBool,
    under_way: Semaphore,
}

/// Where something lies: `scheme://authority`, and the place below it.
fn split(url: &str) -> io::Result<(&str, Location)> {
    let wrong = |why: String| io::Error::new(ErrorKind::InvalidInput, why);
    let place = url.find("://").map_or(0, |at| at + 3);
    let end = place + url[place..].find('/').unwrap_or(url.len() - place);
    let location = Location::from_url_path(&url[end..]).map_err(|e| wrong(e.to_string()))?;
    Ok((&url[..end], location))
}

impl Store {
    /// The store of a URL, and the place in it.
    fn of(url: &str) -> io::Result<(Arc<Store>, Location)> {
        static STORES: OnceLock<Mutex<HashMap<String, Arc<Store>>>> = OnceLock::new();
        let (root, location) = split(url)?;
        let mut stores = lock(STORES.get_or_init(Mutex::default));
        if let Some(store) = stores.get(root) {
            return Ok((store.clone(), location));
        }
        let objects = connect(root).map_err(error)?;
        let (silent, under_way) = (AtomicBool::new(false), Semaphore::new(UNDER_WAY));
        let store = Arc::new(Store { objects, silent, under_way });
        stores.insert(root.to_owned(), store.clone());
        Ok((store, location))
    }

    /// How long it is waited for: less after it was waited for in vain.
    fn patience(&self) -> Duration {
        if self.silent.load(Ordering::Relaxed) { patience() / 20 } else { patience() }
    }

    /// The store's answer to a question, in time.
    async fn answer<T>(&self, asked: impl Future<Output = Result<T, Error>>) -> io::Result<T> {
        let answer = timeout(self.patience(), asked).await;
        let answer = answer.map_or_else(|_| Err(no_answer()), |answer| answer.map_err(error));
        self.note(&answer);
        answer
    }

    fn note<T>(&self, answer: &io::Result<T>) {
        let silent = |e: &io::Error| {
            matches!(e.kind(), ErrorKind::TimedOut | ErrorKind::Other | ErrorKind::UnexpectedEof)
        };
        self.silent.store(answer.as_ref().is_err_and(silent), Ordering::Relaxed);
    }
}

/// The store at `scheme://authority`, as the environment says.
fn connect(root: &str) -> Result<Box<dyn ObjectStore>, Error> {
    let retry = RetryConfig {
        backoff: BackoffConfig {
            max_backoff: stall().min(Duration::from_secs(15)),
            ..BackoffConfig::default()
        },
        max_retries: 8,
        retry_timeout: patience(),
    };
    // The whole of a request is bounded by its size, below; here is how long nothing may come.
    let limits = [
        (ClientConfigKey::ConnectTimeout, stall().min(Duration::from_secs(10))),
        (ClientConfigKey::ReadTimeout, stall()),
        (ClientConfigKey::Timeout, 100 * patience()),
    ];
    let limits = limits.map(|(key, limit)| (key, format!("{}ms", limit.as_millis())));
    Ok(match root.split("://").next().unwrap_or_default() {
        "s3" | "s3a" => {
            let store = AmazonS3Builder::from_env().with_url(root).with_retry(retry);
            let store = limits.into_iter().fold(store, |store, (key, limit)| {
                store.with_config(AmazonS3ConfigKey::Client(key), limit)
            });
            Box::new(store.build()?)
        }
        "gs" => {
            let store = GoogleCloudStorageBuilder::from_env().with_url(root).with_retry(retry);
            let store = limits.into_iter().fold(store, |store, (key, limit)| {
                store.with_config(GoogleConfigKey::Client(key), limit)
            });
            Box::new(store.build()?)
        }
        "az" | "azure" | "abfs" | "abfss" => {
            let store = MicrosoftAzureBuilder::from_env().with_url(root).with_retry(retry);
            let store = limits.into_iter().fold(store, |store, (key, limit)| {
                store.with_config(AzureConfigKey::Client(key), limit)
            });
            Box::new(store.build()?)
        }
        _ => {
            let options = ClientOptions::new().with_allow_http(root.starts_with("http://"));
            let options = limits
                .into_iter()
                .fold(options, |options, (key, limit)| options.with_config(key, limit));
            let store = HttpBuilder::new().with_url(root).with_client_options(options);
            Box::new(store.with_retry(retry).build()?)
        }
    })
}

/// The store's error, of the kind that a file's would have, on one line.
fn error(error: Error) -> io::Error {
    let mut text = error.to_string();
    let kind = match error {
        Error::NotFound { .. } => return io::Error::new(ErrorKind::NotFound, "it is not there"),
        Error::Precondition { .. } => return changed(),
        Error::NotSupported { .. } => {
            text =
                "its server sends whole files only (no range requests): copy it here first".into();
            ErrorKind::Unsupported
        }
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            ErrorKind::PermissionDenied
        }
        _ if causes(&error).any(|cause| cause.contains("timed out")) => ErrorKind::TimedOut,
        _ => ErrorKind::Other,
    };
    let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(400) {
        line.replace_range(end.., "...");
    }
    io::Error::new(kind, line)
}

fn causes(error: &dyn std::error::Error) -> impl Iterator<Item = String> {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string)
}

fn no_answer() -> io::Error {
    let why = "its server does not answer, or too slowly (UTA_REMOTE_PATIENCE is how many seconds it is waited for)";
    io::Error::new(ErrorKind::TimedOut, why)
}

fn changed() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "it has changed since it was opened")
}

/// Takes a lock. Its contents are whole: nothing panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The URLs of the shards that one without braces means: itself, or those in the folder that it names.
pub(crate) fn shards(url: &str) -> Result<Vec<PathBuf>, String> {
    let (scheme, place) = url.split_once("://").ok_or("each of its braces must be a URL")?;
    let is_web = matches!(scheme, "http" | "https");
    match scheme {
        "s3" | "s3a" | "gs" | "az" | "azure" | "abfs" | "abfss" | "http" | "https" => {}
        _ => return Err(format!("{scheme}:// is none of s3, gs, az, abfs, http, https")),
    }
    if place.contains(['*', '?', '#', '[']) {
        return Err("patterns and queries are not for URLs: use braces, {000..099}".into());
    }
    let authority = place.split('/').next().unwrap_or_default();
    if is_web && authority.contains('@') {
        return Err("passwords do not belong in a URL".into());
    }
    if !url.ends_with('/') {
        return Ok(vec![url.into()]);
    }
    if is_web {
        return Err("web servers do not list their files: name the shards, with braces".into());
    }
    let listed = Store::of(url).and_then(|(store, folder)| {
        let asked = store.objects.list_with_delimiter(Some(&folder));
        runtime().block_on(store.answer(asked))
    });
    let listed = listed.map_err(|e| format!("cannot list {url}: {e}"))?;
    let names = listed.objects.iter().filter_map(|object| object.location.filename());
    let shard = |name: &&str| !name.starts_with('.') && name.to_ascii_lowercase().ends_with(".tar");
    let mut urls: Vec<PathBuf> =
        names.filter(shard).map(|name| format!("{url}{name}").into()).collect();
    urls.sort();
    if urls.is_empty() { Err(format!("there is no .tar in {url}")) } else { Ok(urls) }
}

/// The state that the shard at a URL has now.
pub(crate) fn stamp(url: &Path) -> io::Result<Stamp> {
    // The first bytes instead of the head alone: it shows whether ranges are sent.
    let (store, location) = Store::of(&url.to_string_lossy())?;
    let range = Some(GetRange::Bounded(0..1));
    let asked = store.objects.get_opts(&location, GetOptions { range, ..GetOptions::default() });
    let answer = runtime().block_on(store.answer(asked))?;
    let ObjectMeta { size, last_modified, e_tag, .. } = answer.meta;
    let changed = (last_modified.timestamp().max(0) as u64, last_modified.timestamp_subsec_nanos());
    Ok(Stamp { bytes: size, changed, etag: e_tag })
}

/// The text at a URL; None where there is none, or none that may be read.
pub(crate) fn text(url: &Path) -> io::Result<Option<String>> {
    let tar = match stamp(url) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
            return Ok(None);
        }
        stamp => stamp?,
    };
    let length = tar.bytes;
    if length > MOST_TEXT {
        return Err(io::Error::other(format!("{length} bytes are too many for a text")));
    }
    let bytes = runtime().block_on(Object::new(url, tar)?.fetch(0..length))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// A shard elsewhere, in the state that it was found in.
struct Object {
    store: Arc<Store>,
    location: Location,
    tar: Stamp,
}

impl Object {
    fn new(url: &Path, tar: Stamp) -> io::Result<Object> {
        let (store, location) = Store::of(&url.to_string_lossy())?;
        Ok(Object { store, location, tar })
    }

    /// All bytes of a range, or an error within a time that its length bounds.
    async fn fetch(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let length = range.end - range.start;
        let slowest = Duration::from_secs(length / SLOWEST);
        let until = Instant::now() + self.store.patience() + slowest;
        let mut bytes = Vec::with_capacity(length as usize);
        let answer = timeout_at(until, self.fetch_into(&mut bytes, range)).await;
        let answer = answer.unwrap_or_else(|_| Err(no_answer()));
        self.store.note(&answer);
        answer.map(|()| bytes)
    }

    async fn fetch_into(&self, bytes: &mut Vec<u8>, range: Range<u64>) -> io::Result<()> {
        let length = (range.end - range.start) as usize;
        let (mut pause, mut fruitless) = (Duration::from_millis(100), 0);
        while bytes.len() < length {
            let before = bytes.len();
            let rest = range.start + before as u64..range.end;
            let broke = match self.ask(rest, bytes, length).await? {
                Ok(()) => io::Error::new(ErrorKind::UnexpectedEof, "its server sends too little"),
                Err(e) => error(e),
            };
            if bytes.len() == length {
                break;
            }
            if bytes.len() > before {
                (pause, fruitless) = (Duration::from_millis(100), 0);
            }
            fruitless += 1;
            if fruitless > FRUITLESS {
                return Err(broke);
            }
            tracing::debug!("{}: {broke}; asked again from byte {}", self.location, bytes.len());
            // Between a half and the whole of the pause, so that many don't come back at once.
            let share = RandomState::new().hash_one(before) as f64 / u64::MAX as f64;
            sleep(pause.mul_f64(0.5 + 0.5 * share)).await;
            pause = (2 * pause).min(stall());
        }
        Ok(())
    }

    /// Adds what one answer brings to `bytes`, up to `length`. The outer error is final, the inner one says how the answer
    /// broke off.
    async fn ask(
        &self,
        range: Range<u64>,
        bytes: &mut Vec<u8>,
        length: usize,
    ) -> io::Result<Result<(), Error>> {
        let strong = |etag: &&String| !etag.starts_with("W/");
        let options = GetOptions {
            if_match: self.tar.etag.as_ref().filter(strong).cloned(),
            range: Some(GetRange::Bounded(range)),
            ..GetOptions::default()
        };
        let answer = self.store.objects.get_opts(&self.location, options).await;
        let answer = match answer {
            // A range beyond the end of what is there now.
            Err(e) if causes(&e).any(|cause| cause.contains("416 Range Not Satisfiable")) => {
                return Err(changed());
            }
            answer => answer.map_err(error)?,
        };
        if answer.meta.size != self.tar.bytes {
            return Err(changed());
        }
        let mut body = answer.into_stream();
        while let Some(piece) = body.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(e) => return Ok(Err(e)),
            };
            let wanted = piece.len().min(length - bytes.len());
            bytes.extend_from_slice(&piece[..wanted]);
        }
        Ok(Ok(()))
    }
}

/// A block that is under way.
type Coming = (Range<u64>, JoinHandle<io::Result<Vec<u8>>>);

/// A shard from its beginning to its end, with the next blocks under way; for what reads on, with some steps ahead.
pub(crate) struct Reader {
    object: Arc<Object>,
    position: u64,
    /// A block and where it begins.
    block: (u64, Vec<u8>),
    coming: VecDeque<Coming>,
    failure: Option<io::Error>,
}

impl Reader {
    pub(crate) fn open(url: &Path) -> io::Result<Reader> {
        let object = Arc::new(Object::new(url, stamp(url)?)?);
        let coming = VecDeque::new();
        Ok(Reader { object, position: 0, block: (0, vec![]), coming, failure: None })
    }

    /// Bytes of the shard.
    pub(crate) fn length(&self) -> u64 {
        self.object.tar.bytes
    }

    /// The error that ended the reading, if it was neither the shard's end nor what it holds.
    pub(crate) fn failure(self) -> Option<io::Error> {
        self.failure
    }

    /// Goes on to the block that the position is in.
    fn advance(&mut self) -> io::Result<()> {
        self.coming.retain(|(range, _)| range.end > self.position);
        if self.coming.front().is_none_or(|(range, _)| range.start > self.position) {
            self.coming.clear();
        }
        while self.coming.len() < BLOCKS_AHEAD {
            let from = self.coming.back().map_or(self.position, |(range, _)| range.end);
            let range = from..(from + BLOCK).min(self.length());
            if range.is_empty() {
                break;
            }
            let (object, wanted) = (self.object.clone(), range.clone());
            let fetched = runtime().spawn(async move { object.fetch(wanted).await });
            self.coming.push_back((range, fetched));
        }
        if let Some((range, fetched)) = self.coming.pop_front() {
            let bytes = runtime().block_on(fetched).unwrap_or_else(|e| Err(e.into()))?;
            self.block = (range.start, bytes);
        }
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let within = |(start, bytes): &(u64, Vec<u8>), position: u64| {
            position.checked_sub(*start).filter(|&at| at < bytes.len() as u64)
        };
        if self.position >= self.length() || buffer.is_empty() {
            return Ok(0);
        }
        if within(&self.block, self.position).is_none()
            && let Err(e) = self.advance()
        {
            let told = io::Error::new(e.kind(), e.to_string());
            self.failure = Some(e);
            return Err(told);
        }
        let at = within(&self.block, self.position).expect("the block of the position") as usize;
        let bytes = &self.block.1[at..];
        let n = bytes.len().min(buffer.len());
        buffer[..n].copy_from_slice(&bytes[..n]);
        self.position += n as u64;
        Ok(n)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(to) => Some(to),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.length().checked_add_signed(by),
        };
        self.position = to.ok_or_else(|| io::Error::from(ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

/// The shards of a set elsewhere, and those of their samples that were read ahead.
pub(crate) struct Remote {
    shards: Vec<io::Result<Arc<Object>>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    expected: Mutex<Expected>,
    arrived: Condvar,
}

/// Samples that will be read soon.
#[derive(Default)]
struct Expected {
    samples: HashMap<usize, Sample>,
    /// Bytes of them all.
    bytes: u64,
    /// Whether it was said that there are too many.
    told: bool,
}

struct Sample {
    /// How often it will be read.
    times: usize,
    length: u32,
    state: State,
}

enum State {
    /// Not asked for.
    Waiting,
    UnderWay,
    Here(Vec<u8>),
    /// It did not come: whoever reads it hears why from its own request.
    Lost,
}

impl Expected {
    fn remove(&mut self, i: usize) {
        if let Some(sample) = self.samples.remove(&i) {
            self.bytes -= u64::from(sample.length);
        }
    }
}

impl Remote {
    pub(crate) fn new(urls: &[PathBuf], tars: Vec<Stamp>) -> Remote {
        let object = |(url, tar): (&PathBuf, _)| Object::new(url, tar).map(Arc::new);
        let shards = urls.iter().zip(tars).map(object).collect();
        Remote { shards, shared: Arc::default() }
    }

    fn object(&self, shard: u32) -> io::Result<&Arc<Object>> {
        let object = self.shards[shard as usize].as_ref();
        object.map_err(|e| io::Error::new(e.kind(), e.to_string()))
    }

    /// The bytes of an expected sample, where they are here or on their way.
    fn expected(&self, i: usize) -> Option<Vec<u8>> {
        let mut expected = lock(&self.shared.expected);
        loop {
            let sample = expected.samples.get_mut(&i)?;
            match &mut sample.state {
                // It ends within the time that a request has.
                State::UnderWay => {
                    let woken = self.shared.arrived.wait(expected);
                    expected = woken.unwrap_or_else(PoisonError::into_inner);
                }
                State::Here(bytes) if sample.times > 1 => {
                    sample.times -= 1;
                    return Some(bytes.clone());
                }
                State::Here(bytes) => {
                    let bytes = std::mem::take(bytes);
                    expected.remove(i);
                    return Some(bytes);
                }
                // Far back in the queue: one request of its own is faster.
                State::Waiting | State::Lost => {
                    sample.times -= 1;
                    if sample.times == 0 {
                        expected.remove(i);
                    }
                    return None;
                }
            }
        }
    }
}

impl Shared {
    /// Fetches the samples that are still expected, and says so to those who wait for them.
    async fn fetch(&self, object: &Object, Together { range, samples, .. }: Together) {
        let permits = 1 + (range.end - range.start) / (256 << 10);
        let permits = permits.min(UNDER_WAY as u64) as u32;
        let Ok(_permit) = object.store.under_way.acquire_many(permits).await else { return };
        if !self.mark(&samples) {
            return;
        }
        let bytes = object.fetch(range.clone()).await;
        let mut expected = lock(&self.expected);
        for (i, span) in samples {
            // Those who needed it at once have fetched it themselves.
            let Some(sample) = expected.samples.get_mut(&i) else { continue };
            sample.state = match &bytes {
                Ok(bytes) => {
                    let at = (span.offset - range.start) as usize;
                    State::Here(bytes[at..at + span.length as usize].to_vec())
                }
                Err(_) => State::Lost,
            };
        }
        self.arrived.notify_all();
    }

    /// Whether there is one of `samples` to fetch.
    fn mark(&self, samples: &[(usize, Span)]) -> bool {
        let mut expected = lock(&self.expected);
        let mut any = false;
        for (i, _) in samples {
            if let Some(sample) = expected.samples.get_mut(i)
                && matches!(sample.state, State::Waiting)
            {
                sample.state = State::UnderWay;
                any = true;
            }
        }
        any
    }
}

impl Bytes for Remote {
    fn read(&self, i: usize, span: Span, run: &mut [u8]) -> Result<(), (&'static str, io::Error)> {
        let direct = || {
            let range = span.offset..span.offset + u64::from(span.length);
            runtime().block_on(self.object(span.shard)?.fetch(range))
        };
        let bytes = match self.expected(i) {
            Some(bytes) => bytes,
            None => direct().map_err(|e| ("read shard", e))?,
        };
        run.copy_from_slice(&bytes);
        Ok(())
    }

    fn expect(&self, samples: &mut dyn Iterator<Item = (usize, Span)>) {
        let mut new = vec![];
        let mut expected = lock(&self.shared.expected);
        for (i, span) in samples {
            if let Some(known) = expected.samples.get_mut(&i) {
                known.times += 1;
                continue;
            }
            if expected.bytes + u64::from(span.length) > MOST_HELD {
                if !std::mem::replace(&mut expected.told, true) {
                    tracing::warn!(
                        "more than {} GiB would be held to be shuffled: lower data.shuffle_buffer",
                        MOST_HELD >> 30
                    );
                }
                break;
            }
            expected.bytes += u64::from(span.length);
            let (length, state) = (span.length, State::Waiting);
            expected.samples.insert(i, Sample { times: 1, length, state });
            new.push((i, span));
        }
        drop(expected);
        for together in gather(new.into_iter()) {
            // Without its store a sample stays waiting, and reading it tells why.
            let Ok(object) = self.object(together.shard).cloned() else { continue };
            let shared = self.shared.clone();
            runtime().spawn(async move { shared.fetch(&object, together).await });
        }
    }

    fn forget(&self) {
        let mut expected = lock(&self.shared.expected);
        *expected = Expected { told: expected.told, ..Expected::default() };
        self.shared.arrived.notify_all();
    }
}
