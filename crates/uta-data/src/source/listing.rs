//! The images in a folder and in the folders below it: 14 million names of ImageNet-21K in 32 bytes each, listed once and
//! then kept in a file beside the folder.
//!
//! `.NAME.uta-listing` is a [`sidecar`]: its line holds the folders with their times of change, and then come where each
//! image's name ends (u64), each image's folder (u32), little-endian, and the names. A folder's time of change is another
//! when a file in it comes or goes, so a listing is believed as long as they are all the same.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::DataError;
use crate::image::decode::{format, is_image};
use crate::source::sample::Companion;
use crate::storage::local::is_passed_over;
use crate::storage::sidecar;

const VERSION: u32 = 3;

/// Fewer images are listed anew each time, which takes less than a second.
const WORTH_KEEPING: usize = 100_000;

/// Endings of pictures that other programs read and this one doesn't: such files are told of, not passed over.
const UNREAD: [&str; 15] = [
    "bmp", "tif", "tiff", "ppm", "pgm", "heic", "heif", "avif", "jp2", "jxl", "svg", "svgz", "ico",
    "tga", "psd",
];

/// Files without an extension that are looked into, to see whether they are pictures.
const LOOKED_INTO: usize = 100;

/// Seconds and nanoseconds since 1970.
type Changed = (u64, u32);

/// Images below a root, in the order of their paths.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Listing {
    /// Below the root, with their times of change.
    pub(crate) folders: Vec<(PathBuf, Changed)>,
    /// All names one after the other.
    names: Vec<u8>,
    /// Where each name ends.
    ends: Vec<u64>,
    /// Each image's folder.
    within: Vec<u32>,
    /// Shards met.
    pub(crate) tars: Vec<PathBuf>,
    /// How the extensions of files that may belong to images are written here: `txt`, `TXT`.
    pub(crate) companions: BTreeSet<String>,
    /// Pictures of a kind, or under an ending, that isn't read: how many, and the first.
    pub(crate) unread: Option<(usize, PathBuf)>,
    /// Other files met: how many, and the first.
    pub(crate) others: Option<(usize, PathBuf)>,
    /// Files without an extension that were looked into.
    looked_into: usize,
}

#[derive(Serialize, Deserialize)]
struct Header {
    uta_listing: u32,
    folders: Vec<(String, Changed)>,
    files: usize,
    names: usize,
    companions: BTreeSet<String>,
    unread: Option<(usize, PathBuf)>,
}

impl Listing {
    /// The images below `root`, from the listing beside it or by listing it. Links are followed, but not in circles; hidden
    /// files are left out.
    ///
    /// # Errors
    /// A folder that can't be read.
    pub(crate) fn of(root: &Path) -> Result<Listing, DataError> {
        let real = root.canonicalize().map_err(DataError::io("list", root))?;
        let kept = kept(&real);
        if let Some(listing) = kept.as_deref().and_then(|path| Listing::load(path, root)) {
            return Ok(listing);
        }
        let mut listing = Listing::default();
        listing.walk(root, PathBuf::new(), &mut vec![real])?;
        // What changes while it is listed may change once more within the clock's step.
        let settled = |changed: Changed| {
            let at = UNIX_EPOCH + Duration::new(changed.0, changed.1);
            SystemTime::now().duration_since(at).is_ok_and(|age| age > Duration::from_secs(2))
        };
        let settled = listing.folders.iter().all(|&(_, changed)| settled(changed));
        if let (Some(path), true) = (kept, settled && listing.len() >= WORTH_KEEPING)
            && let Err(e) = listing.store(&path)
        {
            tracing::debug!("no listing in {}: {e}", path.display());
        }
        Ok(listing)
    }

    /// Adds the images of a folder and of those below it.
    fn walk(
        &mut self,
        root: &Path,
        below: PathBuf,
        above: &mut Vec<PathBuf>,
    ) -> Result<(), DataError> {
        let dir = root.join(&below);
        let failed = || DataError::io("list", &dir);
        let changed = changed(&dir).map_err(failed())?;
        let folder = self.folders.len() as u32;
        self.folders.push((below.clone(), changed));
        let mut entries = vec![];
        for entry in fs::read_dir(&dir).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            if !is_passed_over(&entry.file_name()) {
                let kind = entry.file_type().map_err(failed())?;
                let is_dir = kind.is_dir() || kind.is_symlink() && entry.path().is_dir();
                entries.push((entry.file_name(), is_dir));
            }
        }
        entries.sort();
        for (name, is_dir) in entries {
            let path = Path::new(&name);
            let extension = path.extension().and_then(OsStr::to_str);
            if is_dir {
                let real = dir.join(path);
                let real = real.canonicalize().map_err(DataError::io("list", &real))?;
                // The real paths of the folders that the walk is in: a link back to one of these is a circle.
                if !above.contains(&real) {
                    above.push(real);
                    self.walk(root, below.join(path), above)?;
                    above.pop();
                }
            } else if extension.is_some_and(is_image) {
                self.push(name.as_bytes(), folder);
            } else if extension.is_some_and(|e| e.eq_ignore_ascii_case("tar")) {
                self.tars.push(below.join(path));
            } else if self.is_unread(extension, &dir.join(path)) {
                self.unread.get_or_insert_with(|| (0, below.join(path))).0 += 1;
            } else {
                if let Some(extension) = extension.filter(|e| Companion::of(e).is_some())
                    && !self.companions.contains(extension)
                {
                    self.companions.insert(extension.to_owned());
                }
                self.others.get_or_insert_with(|| (0, below.join(path))).0 += 1;
            }
        }
        Ok(())
    }

    /// Whether a file is a picture that isn't read: by its ending, one like `.jpg_large`, `.jpg?width=400` or `.jpg ` included,
    /// or without an ending by its first bytes.
    fn is_unread(&mut self, extension: Option<&str>, path: &Path) -> bool {
        if let Some(extension) = extension {
            let word = extension.find(|c: char| !c.is_ascii_alphanumeric());
            let word = word.map(|end| &extension[..end]);
            let known = |word: &str| UNREAD.iter().any(|unread| unread.eq_ignore_ascii_case(word));
            return known(extension) || word.is_some_and(|word| known(word) || is_image(word));
        }
        // Opening a pipe would wait for its writer.
        if path.extension().is_some() || self.looked_into == LOOKED_INTO || !path.is_file() {
            return false;
        }
        self.looked_into += 1;
        let mut start = vec![];
        let read = File::open(path).and_then(|file| file.take(64).read_to_end(&mut start));
        read.is_ok() && format(&start).is_ok()
    }

    fn push(&mut self, name: &[u8], folder: u32) {
        self.names.extend_from_slice(name);
        self.ends.push(self.names.len() as u64);
        self.within.push(folder);
    }

    /// Leaves out the images of which `kept` says false.
    pub(crate) fn retain(&mut self, kept: &[bool]) {
        let names = std::mem::take(&mut self.names);
        let images =
            std::mem::take(&mut self.ends).into_iter().zip(std::mem::take(&mut self.within));
        let mut start = 0;
        for ((end, folder), &kept) in images.zip(kept) {
            if kept {
                self.push(&names[start..end as usize], folder);
            }
            start = end as usize;
        }
    }

    /// How many images there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The folder of image `i`, by its number.
    pub(crate) fn folder(&self, i: usize) -> usize {
        self.within[i] as usize
    }

    /// How many images lie in the root itself, and so in no class folder, and the first of them.
    pub(crate) fn beside_folders(&self) -> (usize, Option<PathBuf>) {
        let mut beside = (0..self.len()).filter(|&i| self.folder(i) == 0);
        let first = beside.next();
        (first.map_or(0, |_| 1 + beside.count()), first.map(|i| self.path(i)))
    }

    /// The path of image `i` below the root.
    pub(crate) fn path(&self, i: usize) -> PathBuf {
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        let name = OsStr::from_bytes(&self.names[start..self.ends[i] as usize]);
        self.folders[self.within[i] as usize].0.join(name)
    }

    /// A listing that was stored, if it is whole and no folder of it has changed.
    fn load(path: &Path, root: &Path) -> Option<Listing> {
        let (header, mut body): (Header, _) = sidecar::load(path)?;
        let length = header.files.checked_mul(12)?.checked_add(header.names)?;
        if header.uta_listing != VERSION || body.len() != length {
            return None;
        }
        let folders: Vec<(PathBuf, Changed)> =
            header.folders.into_iter().map(|(path, changed)| (path.into(), changed)).collect();
        let same = |(path, then): &(PathBuf, Changed)| {
            changed(&root.join(path)).is_ok_and(|now| now == *then)
        };
        if !folders.iter().all(same) {
            return None;
        }
        let (ends, rest) = body.split_at(8 * header.files);
        let (within, _) = rest.split_at(4 * header.files);
        let ends: Vec<u64> = ends.as_chunks().0.iter().map(|&b| u64::from_le_bytes(b)).collect();
        let within: Vec<u32> =
            within.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
        body.drain(..12 * header.files);
        body.shrink_to_fit();
        let (names, companions, unread) = (body, header.companions, header.unread);
        let sound = ends.is_sorted()
            && ends.last().is_none_or(|&end| end == names.len() as u64)
            && within.iter().all(|&folder| (folder as usize) < folders.len());
        let rest = Listing::default();
        sound.then_some(Listing { folders, names, ends, within, companions, unread, ..rest })
    }

    fn store(&self, path: &Path) -> std::io::Result<()> {
        let folders: Option<Vec<_>> = self
            .folders
            .iter()
            .map(|(path, changed)| Some((path.to_str()?.to_owned(), *changed)))
            .collect();
        let folders = folders.ok_or_else(|| std::io::Error::other("a name is no UTF-8"))?;
        let ends: Vec<u8> = self.ends.iter().flat_map(|end| end.to_le_bytes()).collect();
        let within: Vec<u8> = self.within.iter().flat_map(|folder| folder.to_le_bytes()).collect();
        let header = Header {
            uta_listing: VERSION,
            folders,
            files: self.len(),
            names: self.names.len(),
            companions: self.companions.clone(),
            unread: self.unread.clone(),
        };
        sidecar::store(path, &header, &[&ends, &within, &self.names])
    }
}

/// Where the listing of a folder is kept: beside it, because a file within would change its time of change.
fn kept(real: &Path) -> Option<PathBuf> {
    let name = real.file_name()?.to_str()?;
    Some(real.parent()?.join(format!(".{name}.uta-listing")))
}

fn changed(dir: &Path) -> std::io::Result<Changed> {
    let since = fs::metadata(dir)?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((since.as_secs(), since.subsec_nanos()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn folder(dir: &Path) -> PathBuf {
        let root = dir.join("set");
        for path in [
            "b/2.png",
            "b/1.jpg",
            "a/x/y.webp",
            "a/z.png",
            "a/notes.txt",
            "a/scan.tiff",
            ".hidden/h.png",
        ] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        root
    }

    #[test]
    fn a_stored_listing_is_believed_until_a_folder_of_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let root = folder(dir.path());
        let listed = Listing::of(&root).unwrap();
        let paths: Vec<PathBuf> = (0..listed.len()).map(|i| listed.path(i)).collect();
        assert_eq!(paths, ["a/x/y.webp", "a/z.png", "b/1.jpg", "b/2.png"].map(PathBuf::from));
        assert_eq!(listed.others, Some((1, "a/notes.txt".into())));
        assert_eq!(listed.unread, Some((1, "a/scan.tiff".into())));
        let file = kept(&root).unwrap();
        assert!(!file.exists(), "four names are not worth a file");
        listed.store(&file).unwrap();
        let loaded = Listing::load(&file, &root).unwrap();
        assert_eq!(loaded, Listing { others: None, ..listed });
        let whole = fs::read(&file).unwrap();
        for i in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[i] ^= 0x04;
            fs::write(&file, &damaged).unwrap();
            let read = Listing::load(&file, &root);
            assert!(read.is_none(), "byte {i}");
        }
        fs::write(&file, &whole).unwrap();
        assert!(Listing::load(&file, &root).is_some());
        fs::write(root.join("b/3.png"), b"").unwrap();
        File::open(root.join("b")).unwrap().set_modified(SystemTime::now()).unwrap();
        assert!(Listing::load(&file, &root).is_none());
    }
}
