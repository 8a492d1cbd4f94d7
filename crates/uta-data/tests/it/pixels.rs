//! Images of every kind, and evaluation views of photographs, against Pillow and torchvision; `tests/golden/pixels.py` made
//! the values.

use std::fs;
use std::path::{Path, PathBuf};

use uta_data::{DecodeOptions, EvalTransform, decode, decode_with};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/pixels").join(name)
}

/// (largest difference, mean difference) in levels.
fn difference(ours: &[u8], theirs: &[u8]) -> (u8, f64) {
    assert_eq!(ours.len(), theirs.len());
    let differences = || ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b));
    (differences().max().unwrap(), differences().map(f64::from).sum::<f64>() / ours.len() as f64)
}

/// The files of a folder, less the reference values.
fn files(folder: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(golden(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().unwrap() != "rgb")
        .map(|path| {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn images_of_every_kind_are_pillows() {
    let (mut wrong, mut kinds) = (vec![], 0);
    for (name, bytes) in files("decode") {
        kinds += 1;
        let image = match decode(&bytes) {
            Ok(image) => image,
            Err(e) => {
                wrong.push(format!("{name}: {e}"));
                continue;
            }
        };
        assert_eq!((image.width, image.height), (37, 29), "{name}");
        let theirs = fs::read(golden(&format!("decode/{name}.rgb"))).unwrap();
        let (largest, mean) = difference(&image.pixels, &theirs);
        println!("{name:24} {largest:3} {mean:.4}");
        // Lossy WebP leaves the rounding of colours to the decoder.
        let (allowed, on_average) = match name.as_str() {
            "lossy.webp" | "lossy-alpha.webp" => (2, 0.5),
            _ => (0, 0.0),
        };
        if largest > allowed || mean > on_average {
            wrong.push(format!("{name}: {largest} levels, {mean:.3} on average"));
        }
    }
    assert!(wrong.is_empty(), "{} of {kinds}: {wrong:#?}", wrong.len());
}

#[test]
fn views_of_photographs_are_torchvisions_within_a_level() {
    for (name, bytes) in files("photo") {
        let image = decode(&bytes).unwrap();
        if name.ends_with(".jpg") {
            let theirs = fs::read(golden(&format!("photo/{name}.rgb"))).unwrap();
            let row = 3 * image.width as usize;
            let ours: Vec<u8> = image.pixels.chunks(row).step_by(16).flatten().copied().collect();
            let (largest, mean) = difference(&ours, &theirs);
            println!("{name}: {largest} {mean:.4}");
            assert!(largest == 0, "{name}: {largest} levels, {mean} mean");
            continue;
        }
        for size in [224, 336] {
            let transform = EvalTransform::new(size);
            let exact = transform.view(&bytes, &DecodeOptions::default()).unwrap();
            let view = transform.apply(&image).unwrap();
            let ours: Vec<u8> =
                view.chunks(3 * size as usize).step_by(24).flatten().copied().collect();
            let stem = name.strip_suffix(".webp").unwrap();
            let theirs = fs::read(golden(&format!("photo/{stem}-{size}.rgb"))).unwrap();
            let (largest, mean) = difference(&ours, &theirs);
            println!("{stem} {size}: {largest} {mean:.4}");
            assert!(largest <= 1, "{name} at {size}: {largest} levels, {mean} mean");
            let rows = exact.chunks(3 * size as usize).step_by(24).flatten();
            assert!(
                rows.eq(&theirs),
                "{name} at {size}: a file that loses nothing has Pillow's bytes"
            );
        }
    }
}

#[test]
fn views_of_files_are_resized_in_pillows_mode_for_them() {
    let mut images = files("decode");
    images.push(("tall.png".into(), fs::read(golden("view/tall.png")).unwrap()));
    let mut views = 0;
    for (name, bytes) in images {
        for size in [16, 29, 48] {
            let Ok(theirs) = fs::read(golden(&format!("view/{name}-{size}.rgb"))) else { continue };
            let ours = EvalTransform::new(size).view(&bytes, &DecodeOptions::default()).unwrap();
            let (largest, mean) = difference(&ours, &theirs);
            println!("{name:24} {size} {largest:3} {mean:.4}");
            // Pillow sums 16-bit gray in floating point.
            let (allowed, on_average) = match name.as_str() {
                "cmyk.jpg" => (1, 0.02),
                _ if name.starts_with("gray16") => (1, 0.001),
                _ => (0, 0.0),
            };
            assert!(
                largest <= allowed && mean <= on_average,
                "{name} at {size}: {largest}, {mean}"
            );
            views += 1;
        }
    }
    assert!(views >= 43, "{views} views");
}

#[test]
fn orientation_is_followed_only_when_asked_for() {
    let (_, bytes) = files("decode").into_iter().find(|(name, _)| name == "turned.jpg").unwrap();
    let options = DecodeOptions { orient: true, ..DecodeOptions::default() };
    let image = decode_with(&bytes, &options).unwrap();
    assert_eq!((image.width, image.height), (29, 37));
    let theirs = fs::read(golden("view/turned.jpg.rgb")).unwrap();
    assert_eq!(image.pixels, theirs);
}

#[test]
fn a_gif_s_canvas_grows_to_its_frame() {
    for name in ["still.gif", "part.gif"] {
        let mut bytes = fs::read(golden(&format!("decode/{name}"))).unwrap();
        let whole = decode(&bytes).unwrap();
        // The frame's descriptor lies behind the global palette and the extensions.
        let at = bytes.iter().enumerate().skip(13 + 3 * (2 << (bytes[10] & 7)));
        let at = at.map(|(at, _)| at).find(|&at| bytes[at] == b',').unwrap();
        let side = |at: usize| u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let (width, height) = (side(at + 1) + side(at + 5), side(at + 3) + side(at + 7));
        for screen in [0, 1, 5] {
            bytes[6..10].copy_from_slice(&[screen, 0, screen, 0]);
            let image = decode(&bytes).unwrap();
            assert_eq!((image.width, image.height), (width, height), "{name}");
            let rows = whole.pixels.chunks(3 * whole.width as usize).take(height as usize);
            let part: Vec<u8> = rows.flat_map(|row| &row[..3 * width as usize]).copied().collect();
            assert!(image.pixels == part, "{name}, screen of {screen}");
        }
    }
}

#[test]
fn orientation_of_every_number_type_and_of_xmp_is_followed() {
    let bytes = fs::read(golden("decode/420.jpg")).unwrap();
    let with = |segment: &[u8]| {
        let length = (segment.len() as u16 + 2).to_be_bytes();
        [&bytes[..2], &[0xff, 0xe1], &length, segment, &bytes[2..]].concat()
    };
    let options = DecodeOptions { orient: true, ..DecodeOptions::default() };
    let turned = |file: &[u8]| decode_with(file, &options).unwrap().width == 29;
    let six = |kind: u16| -> Vec<u8> {
        match kind {
            1 | 2 | 6 | 7 => vec![6],
            3 | 8 => 6u16.to_be_bytes().to_vec(),
            5 | 10 => [6u32.to_be_bytes(), 1u32.to_be_bytes()].concat(),
            11 => 6f32.to_be_bytes().to_vec(),
            12 => 6f64.to_be_bytes().to_vec(),
            16 => 6u64.to_be_bytes().to_vec(),
            _ => 6u32.to_be_bytes().to_vec(),
        }
    };
    for kind in 1..=16 {
        let (mut value, mut behind) = (six(kind), vec![]);
        if value.len() > 4 {
            behind = std::mem::replace(&mut value, 26u32.to_be_bytes().to_vec());
        }
        value.resize(4, 0);
        let exif = [
            b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12",
            &kind.to_be_bytes()[..],
            &[0, 0, 0, 1],
            &value,
            &[0; 4],
            &behind,
        ];
        // As Pillow has it, a byte and text are no numbers.
        let expected = matches!(kind, 3..=6 | 8..=13 | 16);
        assert_eq!(turned(&with(&exif.concat())), expected, "type {kind}");
    }
    for (xmp, expected) in [("=\"6\"", true), (">6<", true), ("=\"1\"", false), (" 6", false)] {
        let xmp = format!("http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation{xmp}");
        assert_eq!(turned(&with(xmp.as_bytes())), expected, "{xmp}");
    }
}

/// A PNG's chunk.
fn chunk(kind: &[u8], data: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(kind);
    crc.update(data);
    [&(data.len() as u32).to_be_bytes()[..], kind, data, &crc.sum().to_be_bytes()].concat()
}

#[test]
fn orientation_of_a_png_is_followed_before_and_after_its_pixels_and_as_text() {
    let png = fs::read(golden("decode/gray8.png")).unwrap();
    let (header, end) = (33, png.len() - 12);
    let exif = *b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0";
    let hex: String = exif.iter().map(|byte| format!("{byte:02x}")).collect();
    let raw = format!("Raw profile type exif\0\nexif\n      22\n{hex}\n");
    let xmp = b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation=\"8\"/>";
    let chunks = [chunk(b"eXIf", &exif), chunk(b"tEXt", raw.as_bytes()), chunk(b"iTXt", xmp)];
    let options = DecodeOptions { orient: true, ..DecodeOptions::default() };
    for (chunk, at) in chunks.iter().flat_map(|chunk| [(chunk, header), (chunk, end)]) {
        let file = [&png[..at], chunk, &png[at..]].concat();
        assert_eq!(decode(&file).unwrap(), decode(&png).unwrap());
        assert_eq!(decode_with(&file, &options).unwrap().width, 29, "{chunk:?}");
    }
}

#[test]
fn a_palette_loses_the_bytes_that_are_no_whole_colour() {
    let png = fs::read(golden("decode/palette8.png")).unwrap();
    let whole = decode(&png).unwrap();
    let at = png.windows(4).position(|w| w == b"PLTE").unwrap();
    let palette = &png[at + 4..at + 4 + 768];
    for more in 1..3 {
        // One colour fewer, so that the picture's entry 255 alone is lost.
        let odd = chunk(b"PLTE", &palette[..765 + more]);
        let image = decode(&[&png[..at - 4], &odd, &png[at + 776..]].concat()).unwrap();
        let pairs = image.pixels.as_chunks::<3>().0.iter().zip(whole.pixels.as_chunks::<3>().0);
        let last: [u8; 3] = palette[765..].try_into().unwrap();
        assert!(pairs.into_iter().all(|(ours, theirs)| ours == theirs || *theirs == last));
    }
}

/// `tests/golden/jpeg_sweep.py --write` made the files, and compares thousands more.
#[test]
fn jpegs_of_every_layout_have_pillows_bytes() {
    let mut wrong = vec![];
    let files = files("jpeg");
    for (name, bytes) in &files {
        let theirs = fs::read(golden(&format!("jpeg/{name}.rgb"))).unwrap();
        match decode(bytes) {
            Ok(image) if image.pixels == theirs => {}
            Ok(image) => wrong.push(format!("{name}: {:?}", difference(&image.pixels, &theirs))),
            Err(e) => wrong.push(format!("{name}: {e}")),
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), files.len());
    assert!(files.len() > 50);
}

/// A cut with an end mark behind it, as download tools and repairs leave them.
#[test]
fn a_jpeg_that_lacks_some_of_its_blocks_is_an_error_though_it_has_an_end_mark() {
    for (name, bytes) in files("jpeg") {
        let whole = decode(&bytes).unwrap();
        let first = bytes.windows(2).position(|w| w == [0xff, 0xda]).unwrap();
        let (mut errors, mut others) = (0, 0);
        for cut in (first..bytes.len() - 2).filter(|cut| bytes[cut - 1] != 0xff) {
            match decode(&[&bytes[..cut], &[0xff, 0xd9]].concat()) {
                Err(e) => {
                    assert!(!e.to_string().contains('\n') && !e.to_string().contains("panic"));
                    errors += 1;
                }
                // All blocks are there but what only fills up a byte, or the end mark was cut.
                Ok(image) if image == whole => {}
                Ok(_) => others += 1,
            }
        }
        assert!(errors > 10 && others == 0, "{name}: {errors} errors, {others} others");
    }
}
