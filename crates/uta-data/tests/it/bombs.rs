//! Small files that ask for much memory: every decoder in a process of its own that may have little.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};
use uta_data::{DecodeOptions, decode_with};

/// KiB of address space for a process.
const LIMIT: u32 = 500_000;

/// Allowed pixels in these processes.
const MAX_PIXELS: u64 = 1 << 20;

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut crc = Crc::new();
    crc.update(kind);
    crc.update(data);
    let length = (data.len() as u32).to_be_bytes();
    [&length[..], kind, data, &crc.sum().to_be_bytes()].concat()
}

fn deflated(zeros: usize) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(vec![], Compression::best());
    let block = vec![0; 1 << 20];
    (0..zeros >> 20).for_each(|_| encoder.write_all(&block).unwrap());
    encoder.write_all(&block[..zeros % (1 << 20)]).unwrap();
    encoder.finish().unwrap()
}

/// A PNG of black pixels, with chunks before its pixels and after.
fn png(width: u32, height: u32, before: &[u8], after: &[u8]) -> Vec<u8> {
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let pixels = deflated(if width < 100 { (3 * width as usize + 1) * height as usize } else { 9 });
    let parts = [&chunk(b"IHDR", &header)[..], before, &chunk(b"IDAT", &pixels), after];
    [b"\x89PNG\r\n\x1a\n", &parts.concat()[..], &chunk(b"IEND", b"")].concat()
}

fn riff(chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
    let mut body = b"WEBP".to_vec();
    for (kind, data) in chunks {
        body.extend_from_slice(*kind);
        body.extend_from_slice(&(data.len() as u32).to_le_bytes());
        body.extend_from_slice(data);
        body.resize(body.len().next_multiple_of(2), 0);
    }
    [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat()
}

/// A lossless WebP's header, and no pixels.
fn vp8l(width: u32, height: u32) -> Vec<u8> {
    let sizes = (width - 1) | (height - 1) << 14;
    [&[0x2f], &sizes.to_le_bytes()[..], &[0; 64]].concat()
}

fn vp8x(flags: u8, width: u32, height: u32) -> Vec<u8> {
    let side = |length: u32| (length - 1).to_le_bytes()[..3].to_vec();
    [vec![flags, 0, 0, 0], side(width), side(height)].concat()
}

/// A lossless WebP of 37 x 29 pixels.
fn whole_webp() -> Vec<u8> {
    let path = "../../tests/golden/pixels/decode/lossless.webp";
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn gif(screen: u16, frame: u16) -> Vec<u8> {
    let (screen, frame) = (screen.to_le_bytes(), frame.to_le_bytes());
    let colours = [0, 0, 0, 255, 255, 255];
    let mut gif = [b"GIF89a", &screen[..], &screen, &[0x80, 0, 0], &colours].concat();
    // A comment of 2 MB.
    gif.extend_from_slice(b"!\xfe");
    (0..8000).for_each(|_| gif.extend([&[255][..], &[b'x'; 255]].concat()));
    gif.push(0);
    gif.extend([b",\0\0\0\0", &frame[..], &frame, b"\0\x02\x02\x44\x01\0;"].concat());
    gif
}

/// A JPEG that claims a size and has no blocks, with segments before its frame and scans' headers behind.
fn jpeg(size: u16, segment: &[u8], segments: usize, scans: usize) -> Vec<u8> {
    let size = size.to_be_bytes();
    let mut jpeg = vec![0xff, 0xd8];
    (0..segments).for_each(|_| jpeg.extend_from_slice(segment));
    jpeg.extend([&[0xff, 0xc2, 0, 17, 8], &size[..], &size].concat());
    jpeg.extend([3, 1, 0x22, 0, 2, 0x11, 0, 3, 0x11, 0]);
    jpeg.extend([0xff, 0xdb, 0, 67, 0]);
    jpeg.extend([1; 64]);
    (0..scans).for_each(|_| jpeg.extend([0xff, 0xda, 0, 8, 1, 1, 0, 0, 0, 0, 0x00]));
    jpeg.extend([0xff, 0xd9]);
    jpeg
}

/// Name, file, and whether it is read.
fn bombs() -> Vec<(&'static str, Vec<u8>, bool)> {
    let big = deflated(600 << 20);
    let text = |head: &[u8]| [head, &big].concat();
    let small = |before: &[u8]| png(40, 30, before, b"");
    let exif = [&[0xff, 0xe1, 0xff, 0xff][..], b"Exif\0\0", &vec![b'x'; 65527]].concat();
    let ztxt = text(b"Raw profile type exif\0\0");
    let itxt = text(b"XML:com.adobe.xmp\0\x01\0\0\0");
    let anmf = [
        &[0; 6][..],
        &vp8x(0, 16383, 16383)[4..],
        &[0; 4],
        &riff(&[(b"VP8L", vp8l(16383, 16383))])[12..],
    ]
    .concat();
    vec![
        ("PNG, iCCP of 600 MiB", small(&chunk(b"iCCP", &text(b"p\0\0"))), true),
        ("PNG, zTXt of 600 MiB", small(&chunk(b"zTXt", &ztxt)), true),
        ("PNG, iTXt of 600 MiB", small(&chunk(b"iTXt", &itxt)), true),
        ("PNG, zTXt behind the pixels", png(40, 30, b"", &chunk(b"zTXt", &ztxt)), true),
        ("PNG, eXIf of 8 MiB", small(&chunk(b"eXIf", &vec![0; 8 << 20])), true),
        ("PNG of 65535 x 65535", png(65535, 65535, b"", b""), false),
        (
            "PNG, pixels of 600 MiB for 40 x 30",
            {
                let whole = small(b"");
                let at = whole.windows(4).position(|w| w == b"IDAT").unwrap() - 4;
                [&whole[..at], &chunk(b"IDAT", &big), &chunk(b"IEND", b"")].concat()
            },
            true,
        ),
        ("WebP of 16383 x 16383", riff(&[(b"VP8L", vp8l(16383, 16383))]), false),
        (
            "WebP of 40 x 30, pixels of 16383 x 16383",
            riff(&[(b"VP8X", vp8x(0, 40, 30)), (b"VP8L", vp8l(16383, 16383))]),
            false,
        ),
        (
            "WebP of 40 x 30, a frame of 16383 x 16383",
            riff(&[(b"VP8X", vp8x(2, 40, 30)), (b"ANIM", vec![0; 6]), (b"ANMF", anmf)]),
            false,
        ),
        (
            "WebP, ICCP, EXIF, XMP of 8 MiB each",
            {
                let (head, large) = (vp8x(0x2c, 37, 29), || vec![0; 8 << 20]);
                let parts = riff(&[(b"VP8X", head), (b"ICCP", large())]);
                let behind = riff(&[(b"EXIF", large()), (b"XMP ", large())]);
                let mut file = [&parts, &whole_webp()[12..], &behind[12..]].concat();
                let length = (file.len() as u32 - 8).to_le_bytes();
                file[4..8].copy_from_slice(&length);
                file
            },
            true,
        ),
        ("GIF of 65535 x 65535", gif(65535, 4), false),
        ("GIF of 40 x 40, a frame of 65535 x 65535", gif(40, 65535), false),
        ("JPEG of 65500 x 65500", jpeg(65500, &[], 0, 1), false),
        ("JPEG, 100 EXIF segments of 64 KiB", jpeg(1000, &exif, 100, 1), false),
        ("JPEG, 100,000 empty scans", jpeg(1000, &[], 0, 100_000), false),
    ]
}

/// Run by the test below.
#[test]
#[ignore = "a part of `no_small_file_takes_much_memory`"]
fn one() {
    let Ok(path) = std::env::var("BOMB") else { return };
    let bytes = fs::read(path).unwrap();
    let options = DecodeOptions { max_pixels: MAX_PIXELS, orient: true };
    let result = decode_with(&bytes, &options);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    println!("peak {}", peak.trim());
    match result {
        Ok(image) => println!("read {} x {}", image.width, image.height),
        Err(e) => println!("refused {e}"),
    }
}

#[cfg(target_os = "linux")]
#[test]
fn no_small_file_takes_much_memory() {
    let dir = tempfile::tempdir().unwrap();
    let program = std::env::current_exe().unwrap();
    let run = |path: &Path| {
        let line =
            format!("ulimit -v {LIMIT} && exec \"$0\" --exact bombs::one --ignored --nocapture");
        let mut command = Command::new("sh");
        command.args(["-c", &line]).arg(&program).env("BOMB", path);
        command.output().unwrap()
    };
    let (mut wrong, path) = (vec![], dir.path().join("bomb"));
    for (name, bytes, read) in bombs() {
        fs::write(&path, &bytes).unwrap();
        let output = run(&path);
        let text = String::from_utf8_lossy(&output.stdout);
        let line =
            |start: &str| text.lines().find_map(|line| line.strip_prefix(start)).map(str::to_owned);
        let peak = line("peak ").and_then(|peak| peak.strip_suffix(" kB")?.parse::<u64>().ok());
        let end =
            line("read ").map_or(line("refused ").unwrap_or_default(), |s| format!("read, {s}"));
        println!("{name:44} {:9} bytes, peak {:6} KiB: {end}", bytes.len(), peak.unwrap_or(0));
        let sound = output.status.success() && peak.is_some_and(|peak| peak < 100 << 10);
        if !sound || end.starts_with("read, ") != read {
            wrong.push(format!("{name}: {text}{}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
