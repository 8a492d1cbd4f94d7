//! WebDataset tar shards: a writer whose bytes depend on its input only, and a reader with random access.
//!
//! A sample is a run of neighbouring members that share a key, which is the path up to the first dot of the file name:
//! `dogs/7.jpg`, `dogs/7.txt`, `dogs/7.cls`. Nothing is ever unpacked to a disk; links, devices and names that point
//! outside are refused all the same.

use std::path::{Path, PathBuf};

use tar::Archive;

use self::index::{problems, scan_all};
use self::scan::{BLOCK, Scan, name_of, split};
use crate::error::DataError;
use crate::image::decode::{EXTENSIONS, is_image};
use crate::source::sample::{Captions, OddClass, Sample};
use crate::source::{Part, Source};
use crate::storage;
use crate::storage::span::{Bytes, Span, Stamp};

pub(crate) mod index;
mod scan;
pub(crate) mod sizes;
mod write;

pub use self::index::{Indexed, index};
pub use self::write::{Limit, ShardWriter};

/// Where class names stand, a line each, in the order of the indices.
pub(crate) const CLASS_NAMES: &str = "classnames.txt";

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
        let bytes = storage::shards(&paths, stamps);
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

/// The `classnames.txt` of a folder or of the one above it, and its text.
fn class_file(folder: &Path) -> Result<Option<(PathBuf, String)>, DataError> {
    let folders = [Some(folder.to_owned()), storage::above(folder)];
    let places = folders.into_iter().flatten().map(|folder| folder.join(CLASS_NAMES));
    let text = |path: PathBuf| storage::text(&path).map(|text| Some((path, text?))).transpose();
    places.filter(|path| storage::is_file(path)).find_map(text).transpose()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::{self, File};

    use tar::EntryType;

    use super::*;
    use crate::testing::{open_shard, raw_tar, three_a_shard};

    #[test]
    fn a_shard_that_changes_or_vanishes_after_it_was_opened_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let paths = three_a_shard(dir.path(), 6);
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
        let shards = open_shard(&path);
        assert_eq!(shards.class_names().unwrap(), ["cat", "dog"]);
        assert_eq!(shards.read(0).unwrap().class, Some(1));
        assert_eq!(shards.read(2).unwrap().meta, b"{\"a\":");
        for (i, told) in [(1, "classnames.txt has 2 lines"), (3, "\"cat\"")] {
            let e = shards.read(i).unwrap().class().unwrap_err().to_string();
            assert!(e.contains(told), "{e}");
        }
    }
}
