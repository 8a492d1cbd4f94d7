//! A stream whose data go wrong under it, through the public face only.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use image::{ImageFormat, RgbImage};
use uta_data::rng::{Purpose, Rng};
use uta_data::shards::{Limit, ShardWriter};
use uta_data::{
    Batch, EvalTransform, EvalViews, Fault, LabelKind, Order, Rejected, Share, Source, Stream,
    StreamOptions, TrainTransform, TrainViews, decode, open, sweep,
};

fn image(i: u8, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(vec![]);
    let pixel = |x: u32, y: u32| image::Rgb([i, (40 * x) as u8, (40 * y) as u8]);
    RgbImage::from_fn(6, 6, pixel).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// `shards` shards of ten samples, keys `k000`, `k001`, ...
fn write(dir: &Path, shards: u8) -> Vec<PathBuf> {
    let limit = Limit { samples: 10, bytes: 1 << 30 };
    let mut writer = ShardWriter::create(dir, "set", limit).unwrap();
    for i in 0..10 * shards {
        let (png, caption) = (image(i, ImageFormat::Png), format!("number {i}"));
        writer.write(&format!("k{i:03}"), &[("png", &png), ("txt", caption.as_bytes())]).unwrap();
    }
    writer.finish().unwrap()
}

fn stream(source: &Arc<dyn Source>) -> Stream {
    let transform = TrainTransform { size: 4, ..TrainTransform::default() };
    let options = StreamOptions { batch: 20, workers: 3, ..StreamOptions::default() };
    Stream::new(source.clone(), Arc::new(TrainViews::new(transform)), options, 0).unwrap()
}

fn open_dir(dir: &Path) -> Arc<dyn Source> {
    open(dir.to_str().unwrap()).unwrap()
}

#[test]
fn a_vanished_shard_is_named_and_its_samples_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let paths = write(dir.path(), 20);
    let source = open_dir(dir.path());
    fs::remove_file(&paths[7]).unwrap();
    let mut stream = stream(&source);
    let epoch: Vec<Batch> = (0..10).map(|_| stream.next_batch().unwrap()).collect();
    assert!(epoch.iter().all(|batch| batch.len() == 20));
    let rejected: Vec<_> = epoch.iter().flat_map(|batch| &batch.rejected).collect();
    assert!(rejected.len() >= 10, "{rejected:?}");
    for rejected in rejected {
        assert!(rejected.key.contains("set-000007.tar"), "{rejected:?}");
        assert!(rejected.reason.contains("cannot open shard"), "{rejected:?}");
    }
    // A sample of the other shards comes once, and now and then once more in place of a lost one.
    let mut times = BTreeMap::<&str, usize>::new();
    for item in epoch.iter().flat_map(|batch| &batch.items) {
        *times.entry(&item.key).or_default() += 1;
    }
    assert_eq!(times.len(), 190);
}

#[test]
fn a_set_that_is_mostly_gone_ends_the_stream_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let paths = write(dir.path(), 10);
    let source = open_dir(dir.path());
    for path in &paths[3..] {
        fs::remove_file(path).unwrap();
    }
    let mut stream = stream(&source);
    let e = (0..5).find_map(|_| stream.next_batch().err()).unwrap().to_string();
    assert!(e.contains("of the last") && e.contains("cannot open shard"), "{e}");
    assert!(!e.contains('\n'));
}

#[test]
fn a_shard_that_is_cut_while_it_is_read_loses_only_what_was_cut() {
    let dir = tempfile::tempdir().unwrap();
    let paths = write(dir.path(), 20);
    let source = open_dir(dir.path());
    let length = fs::metadata(&paths[0]).unwrap().len();
    fs::File::options().write(true).open(&paths[0]).unwrap().set_len(length / 2).unwrap();
    let batches: Vec<Batch> =
        sweep(source, Arc::new(EvalViews::new(EvalTransform::new(4))), 64, 2, Share::ALL)
            .map(Result::unwrap)
            .collect();
    let lost: usize = batches.iter().map(|batch| batch.rejected.len()).sum();
    let kept: usize = batches.iter().map(Batch::len).sum();
    assert!((4..=6).contains(&lost) && kept + lost == 200, "{lost} lost");
}

#[test]
fn images_cut_short_are_errors_in_every_format() {
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif] {
        let noise = |x: u32, y: u32| image::Rgb([(x * y) as u8, (x * 31) as u8, (y * 17) as u8]);
        let mut whole = Cursor::new(vec![]);
        RgbImage::from_fn(64, 64, noise).write_to(&mut whole, format).unwrap();
        let whole = whole.into_inner();
        assert!(decode(&whole).is_ok(), "{format:?}");
        for share in [0, 5, 30, 60, 90] {
            let e = decode(&whole[..whole.len() * share / 100]).err();
            let e = e.unwrap_or_else(|| panic!("{format:?} cut at {share} %")).to_string();
            assert!(!e.contains('\n') && !e.is_empty(), "{e}");
        }
    }
}

#[test]
fn what_follows_the_end_of_a_jpeg_does_not_matter() {
    let whole = image(9, ImageFormat::Jpeg);
    let plain = decode(&whole).unwrap();
    for trailer in [&b"MotionPhoto\xff\xda\x00\x08film"[..], &[0xff, 0xd8, 0xff, 0xda], &[0; 9]] {
        let longer = [&whole[..], trailer].concat();
        assert_eq!(decode(&longer).unwrap(), plain);
    }
}

#[test]
fn no_damage_to_an_image_panics() {
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif] {
        let whole = image(9, format);
        for i in 0..whole.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[i] ^= flip;
                // Most are errors; some are other pictures, which nothing can tell.
                let _ = decode(&damaged);
            }
        }
    }
}

#[test]
fn a_header_that_claims_a_gigantic_image_is_refused_before_memory_is_spent() {
    let mut png = image(1, ImageFormat::Png);
    // Width and height of the IHDR, and its checksum.
    png[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    let e = decode(&png).unwrap_err().to_string();
    assert!(e.contains("65536 x 65536 pixels"), "{e}");
}

fn crc32(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 };
    !bytes.iter().fold(!0u32, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), bit))
}

#[test]
fn dropping_a_stream_leaves_no_thread() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 1);
    let source = open_dir(dir.path());
    let before = Arc::strong_count(&source);
    let mut stream = stream(&source);
    stream.next_batch().unwrap();
    assert!(Arc::strong_count(&source) > before);
    drop(stream);
    assert_eq!(Arc::strong_count(&source), before, "a thread still holds the source");
}

/// Runs `work` in a thread of its own: one that hangs fails its test, and does not keep the others waiting for ever.
fn within(limit: Duration, work: impl FnOnce() + Send + 'static) {
    let (done, end) = mpsc::channel();
    let thread = thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    match end.recv_timeout(limit) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("hangs: nothing came within {limit:?}"),
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}

/// Cuts `bytes` somewhere, three times in ten; else flips up to `most` bits anywhere.
fn corrupt(bytes: &mut Vec<u8>, rng: &mut Rng, most: u64) -> &'static str {
    let length = bytes.len() as u64;
    if rng.uniform() < 0.3 {
        bytes.truncate(rng.below(length) as usize);
        return "cut";
    }
    for _ in 0..=rng.below(most) {
        bytes[rng.below(length) as usize] ^= 1 << rng.below(8);
    }
    "flipped"
}

/// Outcome of a sample that was to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// With the pixels of the unharmed sample.
    Right,
    /// With others, which nothing in the file can tell.
    Other,
    Rejected(Fault),
}

/// An epoch of training: of each sample its view when it is drawn, or why another came in its place.
fn train(source: &Arc<dyn Source>, batch: usize) -> BTreeMap<usize, Result<Vec<u8>, Fault>> {
    let options =
        StreamOptions { batch, workers: 2, max_rejected: 1.0, ..StreamOptions::default() };
    let transform = TrainTransform { size: 8, ..TrainTransform::default() };
    let (order, batches) = (Order::new(source.as_ref(), options.seed), source.len() / batch);
    let views = Arc::new(TrainViews { label: LabelKind::Captions, ..TrainViews::new(transform) });
    let mut stream = Stream::new(source.clone(), views, options, 0).unwrap();
    let mut fates = BTreeMap::new();
    for number in 0..batches {
        let got = stream.next_batch().unwrap();
        assert_eq!((got.len(), got.pixels.len()), (batch, batch * 8 * 8 * 3));
        let told: BTreeMap<String, Fault> = kinds(&got.rejected).collect();
        for (i, (item, view)) in got.items.iter().zip(got.pixels.chunks(8 * 8 * 3)).enumerate() {
            let drawn = order.at((number * batch + i) as u64).index;
            let fate = match item.index == drawn {
                true => Ok(view.to_vec()),
                false => Err(told[&source.key(drawn)]),
            };
            assert!(fates.insert(drawn, fate).is_none(), "{drawn} twice");
        }
    }
    fates
}

/// A sweep as evaluation makes it.
fn evaluate(source: &Arc<dyn Source>, batch: usize) -> BTreeMap<usize, Result<Vec<u8>, Fault>> {
    let index: BTreeMap<String, usize> = (0..source.len()).map(|i| (source.key(i), i)).collect();
    let views = Arc::new(EvalViews::new(EvalTransform::new(8)));
    let mut fates = BTreeMap::new();
    for got in sweep(source.clone(), views, batch, 2, Share::ALL) {
        let got = got.unwrap();
        let views = got.items.iter().zip(got.pixels.chunks(8 * 8 * 3));
        let views = views.map(|(item, view)| (item.index, Ok(view.to_vec())));
        let told = kinds(&got.rejected).map(|(key, kind)| (index[&key], Err(kind)));
        for (i, fate) in views.chain(told) {
            assert!(fates.insert(i, fate).is_none(), "{i} twice");
        }
    }
    fates
}

/// The key and the fault of each.
fn kinds(rejected: &[Rejected]) -> impl Iterator<Item = (String, Fault)> {
    rejected.iter().map(|rejected| {
        assert!(!rejected.reason.contains("panicked"), "{rejected:?}");
        assert!(rejected.shard.as_ref().unwrap().ends_with("set-000000.tar"), "{rejected:?}");
        (rejected.key.clone(), rejected.kind)
    })
}

/// The images of `tests/golden/pixels/decode`, of every kind that is read: bits flipped anywhere, and cut anywhere. Each is
/// served or rejected and counted; a cut never gives other pixels, nor does a PNG, which has checksums.
#[test]
fn a_thousand_corruptions_of_images_are_each_served_or_rejected_and_counted() {
    within(Duration::from_secs(300), || {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/pixels/decode");
        let mut files = BTreeMap::<_, Vec<(String, Vec<u8>)>>::new();
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let extension = path.extension().unwrap().to_str().unwrap().to_owned();
            let kind = match path.to_str().unwrap().contains("progressive") {
                true => "progressive jpg".to_owned(),
                false => extension.clone(),
            };
            if extension != "rgb" {
                files.entry(kind).or_default().push((extension, fs::read(path).unwrap()));
            }
        }
        let files: Vec<_> = files.into_iter().collect();
        assert_eq!(files.len(), 5);
        let kind = |i: usize| &files[i / 2 % 5].0;

        // Every other sample is left whole: beside a corrupt one it must not suffer.
        let (whole, harmed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [mut into_whole, mut into_harmed] = [&whole, &harmed]
            .map(|dir| ShardWriter::create(dir.path(), "set", Limit::default()).unwrap());
        let mut harms = vec![];
        for i in 0..2000 {
            let (_, files) = &files[i / 2 % 5];
            let (extension, image) = &files[i / 10 % files.len()];
            let (key, mut bytes) = (format!("k{i:04}"), image.clone());
            harms.push(match i % 2 {
                0 => corrupt(&mut bytes, &mut Rng::new(4, Purpose::Order, &[i as u64]), 4),
                _ => "whole",
            });
            into_whole.write(&key, &[(extension, image), ("txt", b"words")]).unwrap();
            into_harmed.write(&key, &[(extension, &bytes), ("txt", b"words")]).unwrap();
        }
        into_whole.finish().unwrap();
        into_harmed.finish().unwrap();
        let (whole, harmed) = (open_dir(whole.path()), open_dir(harmed.path()));

        type Way = fn(&Arc<dyn Source>, usize) -> BTreeMap<usize, Result<Vec<u8>, Fault>>;
        for (way, run) in [("training", train as Way), ("evaluation", evaluate)] {
            let (right, got) = (run(&whole, 100), run(&harmed, 100));
            assert_eq!((right.len(), got.len()), (2000, 2000), "{way}: put in and told of");
            let mut counts = BTreeMap::<_, usize>::new();
            for (i, view) in got {
                let fate = match view {
                    Ok(view) if Ok(&view) == right[&i].as_ref() => Fate::Right,
                    Ok(_) => Fate::Other,
                    Err(kind) => Fate::Rejected(kind),
                };
                *counts.entry((kind(i).as_str(), harms[i], fate)).or_default() += 1;
            }
            println!("{way}");
            for ((kind, harm, fate), count) in &counts {
                println!("  {kind:16} {harm:8} {fate:?} {count}");
                let possible = match (*kind, *harm) {
                    (_, "whole") => *fate == Fate::Right,
                    (_, "cut") | ("png", _) => {
                        matches!(fate, Fate::Right | Fate::Rejected(Fault::Image))
                    }
                    _ => matches!(fate, Fate::Right | Fate::Other | Fate::Rejected(Fault::Image)),
                };
                assert!(possible, "{way}: {count} {kind} {harm}: {fate:?}");
            }
            for kind in ["jpg", "progressive jpg", "png", "webp", "gif"] {
                for harm in ["flipped", "cut"] {
                    let rejected = (kind, harm, Fate::Rejected(Fault::Image));
                    assert!(counts.contains_key(&rejected), "{way}: no {kind} {harm} is rejected");
                }
            }
        }
    });
}

/// Bits flipped anywhere in a shard, shards cut anywhere, and zeros from some place on: each of its samples is served, rejected
/// by its kind, or lost with a part of the shard that is named.
#[test]
fn a_thousand_corruptions_of_a_shard_are_each_told_and_every_sample_counted() {
    within(Duration::from_secs(300), || {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(dir.path(), "set", Limit::default()).unwrap();
        for i in 0..12u8 {
            let noise =
                |x: u32, y: u32| image::Rgb([(x * y) as u8 ^ i, (x * 31) as u8, (y * 17) as u8]);
            let (format, extension) = match i % 4 {
                0 => (ImageFormat::Jpeg, "jpg"),
                1 => (ImageFormat::Gif, "gif"),
                2 => (ImageFormat::Png, "png"),
                _ => (ImageFormat::WebP, "webp"),
            };
            let mut bytes = Cursor::new(vec![]);
            RgbImage::from_fn(29, 21, noise).write_to(&mut bytes, format).unwrap();
            let (bytes, class) = (bytes.into_inner(), i.to_string());
            let members = [(extension, &bytes[..]), ("txt", b"words"), ("cls", class.as_bytes())];
            writer.write(&format!("k{i}"), &members).unwrap();
        }
        let path = writer.finish().unwrap().remove(0);
        // Which would tell of every lost sample.
        fs::remove_file(dir.path().join("sizes.json")).unwrap();
        let whole = fs::read(&path).unwrap();
        let (mut kinds, mut served, mut silent) = (BTreeMap::<Fault, usize>::new(), 0, 0);
        for i in 0..1000 {
            let mut bytes = whole.clone();
            let mut rng = Rng::new(3, Purpose::Order, &[i]);
            match i % 5 {
                // Never written: a file's length came before what is in it.
                0 => bytes[rng.below(whole.len() as u64) as usize..].fill(0),
                _ => _ = corrupt(&mut bytes, &mut rng, 8),
            }
            fs::write(&path, &bytes).unwrap();
            let source = match open(dir.path().to_str().unwrap()) {
                Ok(source) => source,
                Err(e) => {
                    assert!(!e.to_string().contains('\n'));
                    *kinds.entry(Fault::Shard).or_default() += 12;
                    continue;
                }
            };
            let (n, problems) = (source.len(), source.problems());
            assert!(n == 12 || n < 12 && !problems.is_empty(), "{i}: samples are gone, untold");
            *kinds.entry(Fault::Shard).or_default() += 12 - n;
            if !(0..n).any(|i| source.read(i).is_ok_and(|sample| !sample.captions.is_empty())) {
                // No stream begins without a caption.
                *kinds.entry(Fault::Caption).or_default() += n;
                continue;
            }
            let fates = match n {
                // Nothing is there to take the place of what is broken.
                1 => evaluate(&source, 1),
                _ => train(&source, n),
            };
            assert_eq!(fates.len(), n);
            let rejected = fates.values().filter_map(|fate| fate.as_ref().err());
            rejected.for_each(|kind| *kinds.entry(*kind).or_default() += 1);
            served += fates.values().filter(|fate| fate.is_ok()).count();
            silent += usize::from(problems.is_empty() && fates.values().all(Result::is_ok));
        }
        println!("{served} served, {kinds:?}; {silent} corruptions without a word");
        assert_eq!(served + kinds.values().sum::<usize>(), 12 * 1000);
        // Padding is 3 bytes in 4 of this shard, and some bits only change a picture or a word.
        assert!(silent < 600, "{silent} of 1000");
        for kind in [Fault::Shard, Fault::Image, Fault::Caption] {
            assert!(kinds[&kind] > 0, "{kinds:?}");
        }
    });
}

#[test]
fn a_sample_is_rejected_with_its_shard_key_kind_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(dir.path(), "set", Limit::default()).unwrap();
    let png = image(1, ImageFormat::Png);
    for i in 0..20 {
        writer.write(&format!("good{i}"), &[("png", &png), ("txt", b"words")]).unwrap();
    }
    writer.write("no-image", &[("txt", b"words")]).unwrap();
    writer.write("no-picture", &[("png", b"x"), ("txt", b"words")]).unwrap();
    writer.write("no-words", &[("png", &png)]).unwrap();
    writer.write("no-text", &[("png", &png), ("txt", &[0xff, 0xfe])]).unwrap();
    // Nobody reads classes here.
    writer.write("odd-class", &[("png", &png), ("txt", b"words"), ("cls", b"dog")]).unwrap();
    writer.finish().unwrap();
    let source = open_dir(dir.path());
    assert!(source.problems()[0].contains("1 keys without an image"), "{:?}", source.problems());
    let options = StreamOptions { batch: 24, max_rejected: 1.0, ..StreamOptions::default() };
    let transform = TrainTransform { size: 4, ..TrainTransform::default() };
    let views = Arc::new(TrainViews { label: LabelKind::Captions, ..TrainViews::new(transform) });
    let mut stream = Stream::new(source.clone(), views.clone(), options.clone(), 0).unwrap();
    let rejected = stream.next_batch().unwrap().rejected;
    let told: BTreeMap<&str, Fault> = rejected.iter().map(|r| (r.key.as_str(), r.kind)).collect();
    let expected =
        [("no-picture", Fault::Image), ("no-words", Fault::Caption), ("no-text", Fault::Caption)];
    assert_eq!(told, BTreeMap::from(expected));
    assert!(rejected.iter().all(|r| r.shard.as_ref().unwrap().ends_with("set-000000.tar")));
    let strict = StreamOptions { max_rejected: 0.01, ..options };
    let mut stream = Stream::new(source, views, strict, 0).unwrap();
    let e = (0..20).find_map(|_| stream.next_batch().err()).unwrap().to_string();
    let counts = e.split(['(', ')']).nth(1).unwrap();
    assert!(["image", "caption"].iter().all(|kind| counts.contains(kind)), "{e}");
}
