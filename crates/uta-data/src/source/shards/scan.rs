//! A shard's headers, from one to the next: where each sample lies, and whatever is wrong with the tar.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path};

use tar::{Archive, EntryType};

use crate::error::DataError;
use crate::image::decode::is_image;
use crate::storage::Reader;

/// Tar's unit: a header is one block, contents are padded to whole ones.
pub(super) const BLOCK: u64 = 512;

/// Samples whose members take more are left out: a broken length must not eat the memory.
const MAX_SAMPLE: u64 = 1 << 30;

/// Contents of one shard by its headers.
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

/// Goes through the headers of a shard.
///
/// # Errors
/// A file that can't be opened or read, or is no plain tar.
pub(super) fn scan(path: &Path) -> Result<Scan, DataError> {
    let mut tar = Reader::open(path)?;
    let length = tar.length();
    let mut start = [0; 6];
    if tar.read_exact(&mut start).is_ok()
        && let Some((_, kind)) = PACKED.iter().find(|(mark, _)| start.starts_with(mark))
    {
        let reason = format!("is {kind}, not a plain tar: unpack it first");
        return Err(DataError::Shard { path: path.to_owned(), reason });
    }
    let scan = tar.rewind().map_err(DataError::io("read shard", path));
    let scan = scan.and_then(|()| walk(path, &mut tar, length));
    // What did not arrive is no damage of the shard.
    tar.failure().map_or(scan, |e| Err(DataError::io("read shard", path)(e)))
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
pub(super) fn name_of<R: io::Read>(member: &tar::Entry<'_, R>) -> Result<Option<String>, String> {
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
pub(super) fn split(name: &str) -> Option<(&str, &str)> {
    let file = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = file + name[file..].find('.').filter(|&dot| dot > 0)?;
    Some((&name[..dot], &name[dot + 1..]))
}

pub(super) fn stays_inside(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;
    use crate::source::shards::Shards;
    use crate::testing::{keys, open_shard, raw_tar, three_a_shard};
    use crate::{Captions, Source as _};

    #[test]
    fn a_cut_tar_keeps_the_samples_before_the_cut_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = three_a_shard(dir.path(), 3).remove(0);
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
            let shards = open_shard(&path);
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
        let path = three_a_shard(dir.path(), 3).remove(0);
        fs::remove_file(dir.path().join("sizes.json")).unwrap();
        let whole = fs::read(&path).unwrap();
        // Members to byte 7680, and the end mark.
        assert_eq!(whole.len(), 8704);
        let problems = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            open_shard(&path).problems()
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
        let path = three_a_shard(dir.path(), 3).remove(0);
        let mut bytes = fs::read(&path).unwrap();
        bytes[2 * 2560 + 10] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let shards = open_shard(&path);
        // Whether the sample before is whole can't be known.
        assert_eq!(keys(&shards), ["s0"]);
        assert!(shards.problems()[0].contains("damaged at byte 5120"), "{:?}", shards.problems());
        fs::write(&path, b"this is no tar".repeat(100)).unwrap();
        let e = Shards::open(vec![path], Captions::Lines).err().unwrap().to_string();
        assert!(e.contains("damaged at byte 0"), "{e}");
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
        let shards = open_shard(&path);
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
        let shards = open_shard(&path);
        let classes: Vec<_> = (0..shards.len()).map(|i| shards.read(i).unwrap().class).collect();
        assert_eq!(classes, [Some(1), Some(2)]);
    }
}
