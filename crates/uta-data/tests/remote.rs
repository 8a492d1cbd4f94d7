//! Shards behind a server of this machine that drops connections, fails, stalls, falls silent, or loses files: what arrives is
//! what local shards give, and what can't arrive ends in time.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Cursor, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use image::{ImageFormat, RgbImage};
use tempfile::TempDir;
use uta_data::rng::{Purpose, Rng};
use uta_data::shards::{Limit, ShardWriter, index};
use uta_data::verify::verify;
use uta_data::{
    Batch, EvalTransform, EvalViews, Fault, LabelKind, OrderKind, PairOptions, Share, Source,
    Stream, StreamOptions, TrainTransform, TrainViews, open, sweep,
};

/// Faults of a server: shares of its answers.
#[derive(Clone, Debug, Default)]
struct Faults {
    /// End in mid-body.
    dropped: f64,
    /// Are none: the connection ends.
    refused: f64,
    /// Are 500 or 503.
    failed: f64,
    /// Stop in mid-body and never go on.
    stalled: f64,
    /// Ranges are not for it.
    whole: bool,
    /// Tells no ETag.
    nameless: bool,
    /// Milliseconds until each answer.
    late: u64,
}

/// A web server of one folder.
struct Server {
    url: String,
    shared: Arc<Shared>,
}

struct Shared {
    root: PathBuf,
    faults: Faults,
    /// Accepts connections and answers nothing.
    silent: AtomicBool,
    /// Requests, and how many of them met each fault.
    requests: AtomicU64,
    met: Mutex<[u64; 4]>,
    bytes: AtomicU64,
}

impl Server {
    fn start(root: &Path, faults: Faults) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            root: root.to_owned(),
            faults,
            silent: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            met: Mutex::default(),
            bytes: AtomicU64::new(0),
        });
        let served = shared.clone();
        thread::spawn(move || {
            for connection in listener.incoming() {
                let (connection, served) = (connection.unwrap(), served.clone());
                thread::spawn(move || served.serve(&connection));
            }
        });
        Server { url, shared }
    }

    fn requests(&self) -> u64 {
        self.shared.requests.load(SeqCst)
    }

    fn bytes(&self) -> u64 {
        self.shared.bytes.load(SeqCst)
    }

    /// Answers that were dropped, refused, failed and stalled.
    fn met(&self) -> [u64; 4] {
        *self.shared.met.lock().unwrap()
    }
}

impl Shared {
    /// Requests of one connection, until one of the sides ends it.
    fn serve(&self, connection: &TcpStream) -> Option<()> {
        let (mut lines, mut out) = (BufReader::new(connection).lines(), connection);
        loop {
            let request = lines.next()?.ok()?;
            let path = request.split(' ').nth(1)?.trim_start_matches('/').to_owned();
            let (mut range, mut condition) = (None, None);
            loop {
                let line = lines.next()?.ok()?.to_ascii_lowercase();
                match line.split_once(": ") {
                    Some(("range", value)) => {
                        let (from, to) = value.strip_prefix("bytes=")?.split_once('-')?;
                        range = Some((from.parse().ok()?, to.parse::<u64>().ok()? + 1));
                    }
                    Some(("if-match", value)) => condition = Some(value.to_owned()),
                    _ if line.is_empty() => break,
                    _ => {}
                }
            }
            let number = self.requests.fetch_add(1, SeqCst);
            if self.silent.load(SeqCst) {
                thread::sleep(Duration::from_secs(3600));
            }
            let Faults { dropped, refused, failed, stalled, whole, nameless, late } = self.faults;
            thread::sleep(Duration::from_millis(late));
            let mut rng = Rng::new(5, Purpose::Order, &[number]);
            let drawn = rng.uniform();
            let shares = [dropped, refused, failed, stalled];
            let until = shares.iter().scan(0.0, |sum, share| {
                *sum += share;
                Some(*sum)
            });
            let fault = until.enumerate().find(|(_, until)| drawn < *until);
            let fault = fault.map(|(i, _)| {
                self.met.lock().unwrap()[i] += 1;
                ["dropped", "refused", "failed", "stalled"][i]
            });
            match fault {
                Some("refused") => return None,
                Some("failed") => {
                    let status = ["500 Broken", "503 Busy"][number as usize % 2];
                    write!(out, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").ok()?;
                    continue;
                }
                _ => {}
            }
            let path = self.root.join(&path);
            let Ok(file) = File::open(&path) else {
                write!(out, "HTTP/1.1 404 Gone\r\nContent-Length: 0\r\n\r\n").ok()?;
                continue;
            };
            let length = file.metadata().ok()?.len();
            let mut head = String::new();
            if !nameless {
                // As good as a name: the sum of all bytes, each with its place.
                let etag =
                    fs::read(&path).ok()?.iter().zip(1u64..).fold(0, |sum, (&byte, place)| {
                        u64::wrapping_add(sum, u64::from(byte).wrapping_mul(place))
                    });
                head = format!("ETag: \"{etag:x}\"\r\n");
                if condition.is_some_and(|condition| !head.contains(&condition)) {
                    write!(out, "HTTP/1.1 412 Changed\r\nContent-Length: 0\r\n\r\n").ok()?;
                    continue;
                }
            }
            let (from, to) = match range.filter(|_| !whole) {
                Some((from, to)) => {
                    let to = length.min(to);
                    let range = format!("{from}-{}/{length}", to - 1);
                    head = format!("HTTP/1.1 206 Some\r\nContent-Range: bytes {range}\r\n{head}");
                    (from, to)
                }
                None => {
                    head = format!("HTTP/1.1 200 OK\r\n{head}");
                    (0, length)
                }
            };
            let mut body = vec![0; (to - from) as usize];
            file.read_exact_at(&mut body, from).ok()?;
            write!(out, "{head}Content-Length: {}\r\n\r\n", body.len()).ok()?;
            let sent = match fault {
                Some(_) => &body[..rng.below(body.len() as u64) as usize],
                None => &body,
            };
            self.bytes.fetch_add(sent.len() as u64, SeqCst);
            out.write_all(sent).ok()?;
            match fault {
                Some("stalled") => thread::sleep(Duration::from_secs(3600)),
                Some(_) => return None,
                None => {}
            }
        }
    }
}

/// Whether this is the process to run `test` in: with a cache folder and a patience of its own. Else it is run in one.
fn apart(test: &str, patience: u64) -> bool {
    if std::env::var_os("UTA_REMOTE_PATIENCE").is_some() {
        return true;
    }
    let cache = tempfile::tempdir().unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--include-ignored"])
        .env("UTA_REMOTE_PATIENCE", patience.to_string())
        .env("XDG_CACHE_HOME", cache.path())
        .env("NO_PROXY", "127.0.0.1")
        .status()
        .unwrap();
    assert!(status.success());
    false
}

/// `shards` shards of thirty pictures of noise, 3 KB each.
fn write(dir: &Path, shards: u64) {
    let limit = Limit { samples: 30, bytes: 1 << 30 };
    let mut writer = ShardWriter::create(dir, "set", limit).unwrap();
    for i in 0..30 * shards {
        let mut rng = Rng::new(1, Purpose::Order, &[i]);
        let mut noise = || rng.below(256) as u8;
        let picture = RgbImage::from_fn(32, 32, |_, _| image::Rgb([noise(), noise(), noise()]));
        let mut png = Cursor::new(vec![]);
        picture.write_to(&mut png, ImageFormat::Png).unwrap();
        let members: [(&str, &[u8]); 3] =
            [("png", png.get_ref()), ("txt", b"noise"), ("cls", &[b'0' + (i % 3) as u8])];
        writer.write(&format!("k{i:03}"), &members).unwrap();
    }
    writer.finish().unwrap();
    fs::write(dir.join("classnames.txt"), "one\ntwo\nthree\n").unwrap();
}

/// A folder of such shards, and a server of it.
fn served(shards: u64, faults: Faults) -> (TempDir, Server) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), shards);
    let server = Server::start(dir.path(), faults);
    (dir, server)
}

fn local(dir: &Path) -> Arc<dyn Source> {
    open(dir.to_str().unwrap()).unwrap()
}

fn stream(source: &Arc<dyn Source>, order: OrderKind, first: u64) -> Stream {
    let transform = TrainTransform { size: 8, ..TrainTransform::default() };
    let options = StreamOptions {
        batch: 7,
        workers: 3,
        order,
        shuffle_buffer: 50,
        max_rejected: 0.5,
        ..StreamOptions::default()
    };
    let views = Arc::new(TrainViews { label: LabelKind::Captions, ..TrainViews::new(transform) });
    Stream::new(source.clone(), views, options, first).unwrap()
}

fn batches(source: &Arc<dyn Source>, order: OrderKind, first: u64, count: usize) -> Vec<Batch> {
    let mut stream = stream(source, order, first);
    (0..count).map(|_| stream.next_batch().unwrap()).collect()
}

/// All that the local shards give, and the source that gave it.
fn same_as_local(dir: &Path, server: &Server, spec: &str) -> Arc<dyn Source> {
    let (near, far) = (local(dir), open(spec).unwrap());
    assert_eq!((near.len(), near.parts()), (far.len(), far.parts()));
    assert_eq!(near.class_names(), far.class_names());
    for i in 0..near.len() {
        assert_eq!(near.read(i).unwrap(), far.read(i).unwrap());
    }
    for order in [OrderKind::Indexed, OrderKind::Streaming] {
        // Two epochs and a half; then from within the buffer, and from another epoch.
        let whole = batches(&near, order, 0, 45);
        assert_eq!(whole, batches(&far, order, 0, 45), "{order:?}");
        for first in [3, 30] {
            let resumed = batches(&far, order, first as u64, 5);
            assert_eq!(whole[first..first + 5], resumed, "{order:?} from {first}");
        }
    }
    let swept = |source: &Arc<dyn Source>| -> Vec<Batch> {
        let shares = [0, 1].map(|rank| Share { rank, world: 2 });
        let views = EvalViews::new(EvalTransform::new(8));
        let views = Arc::new(EvalViews { label: LabelKind::Captions, ..views });
        let sweep = |share| sweep(source.clone(), views.clone(), 16, 2, share);
        shares.into_iter().flat_map(sweep).map(Result::unwrap).collect()
    };
    assert_eq!(swept(&near), swept(&far));
    println!(
        "{} requests, {:?} of them {:?}",
        server.requests(),
        server.met(),
        server.shared.faults
    );
    far
}

#[test]
fn dropped_refused_and_failed_answers_change_nothing() {
    if !apart("dropped_refused_and_failed_answers_change_nothing", 120) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 4);
    for nameless in [false, true] {
        let faults =
            Faults { dropped: 0.2, refused: 0.05, failed: 0.1, nameless, ..Faults::default() };
        let server = Server::start(dir.path(), faults);
        same_as_local(dir.path(), &server, &format!("{}/set-{{000000..000003}}.tar", server.url));
        assert!(server.met()[..3].iter().all(|&met| met > 20), "{:?}", server.met());
    }
}

#[test]
fn stalled_answers_are_asked_for_again() {
    if !apart("stalled_answers_are_asked_for_again", 6) {
        return;
    }
    let (dir, server) = served(2, Faults { stalled: 0.03, ..Faults::default() });
    let (near, far) =
        (local(dir.path()), open(&format!("{}/set-00000{{0,1}}.tar", server.url)).unwrap());
    let whole = batches(&near, OrderKind::Streaming, 0, 20);
    assert_eq!(whole, batches(&far, OrderKind::Streaming, 0, 20));
    for i in 0..near.len() {
        assert_eq!(near.read(i).unwrap(), far.read(i).unwrap());
    }
    assert!(server.met()[3] > 0, "{:?}", server.met());
}

#[test]
fn a_server_that_falls_silent_ends_the_stream_in_time() {
    if !apart("a_server_that_falls_silent_ends_the_stream_in_time", 2) {
        return;
    }
    let (_dir, server) = served(1, Faults::default());
    let url = format!("{}/set-000000.tar", server.url);
    let far = open(&url).unwrap();
    server.shared.silent.store(true, SeqCst);
    let began = Instant::now();
    let e = far.read(3).unwrap_err();
    assert_eq!(e.fault(), Fault::Unreadable);
    assert!(e.to_string().contains("does not answer") && !e.to_string().contains('\n'), "{e}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    // Every replacement of the unreadable sample is as silent, and waited for less.
    let options = StreamOptions { batch: 7, workers: 3, ..StreamOptions::default() };
    let transform = TrainTransform { size: 8, ..TrainTransform::default() };
    let views = Arc::new(TrainViews::new(transform));
    let mut stream = Stream::new(far, views, options, 0).unwrap();
    let e = stream.next_batch().unwrap_err().to_string();
    drop(stream);
    assert!(e.contains("20 unreadable") && e.contains("does not answer"), "{e}");
    assert!(began.elapsed() < Duration::from_secs(90), "{:?}", began.elapsed());
    let e = open(&url).err().unwrap().to_string();
    assert!(e.contains("cannot open shard") && e.contains(&url), "{e}");
}

#[test]
fn a_shard_that_vanishes_is_rejected_and_one_that_was_never_there_is_named() {
    if !apart("a_shard_that_vanishes_is_rejected_and_one_that_was_never_there_is_named", 120) {
        return;
    }
    let (dir, server) = served(4, Faults::default());
    let spec = format!("{}/set-{{000000..000003}}.tar", server.url);
    let far = open(&spec).unwrap();
    fs::remove_file(dir.path().join("set-000002.tar")).unwrap();
    for order in [OrderKind::Indexed, OrderKind::Streaming] {
        let epoch = batches(&far, order, 0, 18);
        let rejected: Vec<_> = epoch.iter().flat_map(|batch| &batch.rejected).collect();
        assert!(rejected.len() >= 30, "{}", rejected.len());
        for rejected in rejected {
            assert!(rejected.shard.as_ref().unwrap().ends_with("set-000002.tar"), "{rejected:?}");
            assert_eq!(rejected.kind, Fault::Missing);
            assert!(rejected.reason.contains("is not there"), "{rejected:?}");
        }
    }
    let e = open(&spec).err().unwrap().to_string();
    assert!(e.contains("set-000002.tar") && e.contains("is not there"), "{e}");
}

#[test]
fn an_index_is_kept_for_the_same_shard_and_another_one_is_scanned() {
    if !apart("an_index_is_kept_for_the_same_shard_and_another_one_is_scanned", 120) {
        return;
    }
    let (dir, server) = served(1, Faults::default());
    let url = format!("{}/set-000000.tar", server.url);
    let tar = dir.path().join("set-000000.tar");
    let first = index(&url).unwrap();
    assert_eq!((first.shards, first.scanned, first.samples), (1, 1, 30));
    assert!(server.bytes() >= fs::metadata(&tar).unwrap().len() - 1024);
    let before = server.bytes();
    let far = open(&url).unwrap();
    assert!(server.bytes() - before < 100, "it was read through again");
    // The same length, and other bytes.
    let mut bytes = fs::read(&tar).unwrap();
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    fs::write(&tar, &bytes).unwrap();
    let e = far.read(0).unwrap_err();
    assert!(e.fault() == Fault::Shard && e.to_string().contains("has changed"), "{e}");
    assert_eq!(index(&url).unwrap().scanned, 1);
    assert_eq!(open(&url).unwrap().read(0).unwrap(), local(&tar).read(0).unwrap());
    fs::write(&tar, &bytes[..bytes.len() / 2]).unwrap();
    let far = open(&url).unwrap();
    assert!(far.len() < 30 && far.problems()[0].contains("cut short"), "{:?}", far.problems());
}

#[test]
fn sizes_that_stand_beside_shards_elsewhere_are_compared_with_them() {
    if !apart("sizes_that_stand_beside_shards_elsewhere_are_compared_with_them", 120) {
        return;
    }
    let (dir, server) = served(2, Faults::default());
    let spec = format!("{}/set-00000{{0,1}}.tar", server.url);
    assert_eq!(open(&spec).unwrap().problems(), Vec::<String>::new());
    let sizes = dir.path().join("sizes.json");
    let text = fs::read_to_string(&sizes).unwrap();
    fs::write(&sizes, text.replacen("30", "31", 1)).unwrap();
    let told = format!("{}/sizes.json: says 31 samples of set-000000.tar", server.url);
    let problems = open(&spec).unwrap().problems();
    assert!(problems.len() == 1 && problems[0].starts_with(&told), "{problems:?}");
    assert!(problems[0].ends_with("which holds 30"), "{problems:?}");
    assert_eq!(index(&spec).unwrap().problems, problems);
    // What img2dataset wrote of a shard is looked at when it is verified.
    fs::write(dir.path().join("set-000001_stats.json"), r#"{"successes": 29}"#).unwrap();
    let verified = verify(&[spec], &PairOptions::default(), false, |_| Ok(())).unwrap();
    let told: Vec<&str> =
        verified.faults[&Fault::Shard].first.iter().map(|fault| fault.reason.as_str()).collect();
    assert!(told.len() == 2 && told[0] == problems[0], "{told:?}");
    assert!(told[1].contains("says 29 samples, and the tar holds 30"), "{told:?}");
}

#[test]
fn neighbours_are_fetched_together_and_nothing_twice() {
    if !apart("neighbours_are_fetched_together_and_nothing_twice", 120) {
        return;
    }
    let (_dir, server) = served(20, Faults::default());
    let far = open(&format!("{}/set-0000{{00..19}}.tar", server.url)).unwrap();
    let tars = server.bytes();
    // Time for what is expected to come; then an epoch of 600 samples is read.
    let mut stream = stream(&far, OrderKind::Streaming, 0);
    thread::sleep(Duration::from_millis(500));
    let before = server.requests();
    let (requests, bytes) = (before - 20, server.bytes());
    for _ in 0..80 {
        stream.next_batch().unwrap();
    }
    drop(stream);
    println!("{requests} requests and {} more, {bytes} bytes", server.requests() - before);
    assert!(server.requests() - before < 60, "{}", server.requests() - before);
    assert!(server.bytes() - tars < 3 * tars, "{} of {tars}", server.bytes() - tars);
}

#[test]
fn what_can_not_be_read_from_elsewhere_is_refused_in_a_line() {
    if !apart("what_can_not_be_read_from_elsewhere_is_refused_in_a_line", 120) {
        return;
    }
    let (_dir, server) = served(1, Faults { whole: true, ..Faults::default() });
    let of = |path: &str| format!("{}/{path}", server.url);
    for (spec, told) in [
        (of("set-000000.tar"), "no range requests"),
        (of("pairs.csv"), "only shards are read from elsewhere"),
        (of(""), "web servers do not list"),
        (of("*.tar"), "use braces"),
        (of("a.tar?key=1"), "use braces"),
        ("ftp://host/a.tar".into(), "none of s3, gs, az"),
        ("https://me:secret@host/a.tar".into(), "passwords do not belong"),
    ] {
        let e = open(&spec).err().unwrap().to_string();
        assert!(e.contains(told) && !e.contains('\n'), "{e}");
    }
}

/// `cargo test -p uta-data --features remote --test remote -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, for a quiet machine"]
fn an_answer_that_takes_fifty_milliseconds_costs_little() {
    if !apart("an_answer_that_takes_fifty_milliseconds_costs_little", 120) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let limit = Limit { samples: 500, bytes: 1 << 30 };
    let mut writer = ShardWriter::create(dir.path(), "set", limit).unwrap();
    let pictures: Vec<Vec<u8>> = (0..50)
        .map(|i| {
            let mut rng = Rng::new(2, Purpose::Order, &[i]);
            let mut grain = |x: u32| (x / 3 + rng.below(24) as u32) as u8;
            let picture =
                RgbImage::from_fn(500, 375, |x, y| image::Rgb([grain(x), grain(y), grain(x + y)]));
            let mut jpeg = Cursor::new(vec![]);
            picture.write_to(&mut jpeg, ImageFormat::Jpeg).unwrap();
            jpeg.into_inner()
        })
        .collect();
    for i in 0..4000 {
        writer.write(&format!("k{i:04}"), &[("jpg", &pictures[i % pictures.len()])]).unwrap();
    }
    writer.finish().unwrap();
    let server =
        Server::start(dir.path(), Faults { late: 50, nameless: true, ..Faults::default() });
    let far = open(&format!("{}/set-{{000000..000007}}.tar", server.url)).unwrap();
    let mut speeds = vec![];
    for (order, workers) in [(OrderKind::Streaming, 2), (OrderKind::Indexed, 2)] {
        for (place, source) in [("disk", local(dir.path())), ("50 ms", far.clone())] {
            let options = StreamOptions {
                batch: 50,
                workers,
                order,
                shuffle_buffer: 1000,
                ..StreamOptions::default()
            };
            let (began, requests) = (Instant::now(), server.requests());
            let views = Arc::new(TrainViews::new(TrainTransform::default()));
            let mut stream = Stream::new(source, views, options, 0).unwrap();
            for _ in 0..60 {
                assert!(stream.next_batch().unwrap().rejected.is_empty());
            }
            let speed = 3000.0 / began.elapsed().as_secs_f64();
            println!(
                "{order:?} from {place}: {speed:.0} images/s, {} requests, {} bytes each",
                server.requests() - requests,
                pictures[0].len()
            );
            speeds.push(speed);
        }
    }
    assert!(speeds[1] > 0.7 * speeds[0] && speeds[3] > 0.7 * speeds[2], "{speeds:?}");
}
