//! What a stream does when the data goes wrong under it, through the public face only.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{ImageFormat, RgbImage};
use uta_data::shards::{Limit, ShardWriter};
use uta_data::{
    Batch, DecodeOptions, EvalTransform, Source, Stream, StreamOptions, TrainTransform, decode,
    open, sweep,
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
    Stream::new(source.clone(), transform, options, 0).unwrap()
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
    let batches: Vec<Batch> = sweep(source, EvalTransform::new(4), DecodeOptions::default(), 64, 2)
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
