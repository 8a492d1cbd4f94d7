//! Unpacks a part of a wheel (a zip archive) without ever writing outside the folder it is told to write to.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result, bail};
use zip::ZipArchive;
use zip::read::{ArchiveOffset, Config};

/// Writes the members of `wheel` that `keep` names below `into`, which may hold other wheels' members already. A name
/// that ends in `/` stands for all below it. Checked: every member lies inside, none is there twice, each entry of
/// `keep` names something, and each byte agrees with the archive's CRC.
pub fn unpack(wheel: &Path, keep: &[&str], into: &Path) -> Result<()> {
    let reading = || format!("reading {}", wheel.display());
    let file = File::open(wheel).with_context(reading)?;
    // A wheel begins where its file does. The crate's own guess is wrong for directories of certain lengths.
    let known = Config { archive_offset: ArchiveOffset::Known(0) };
    let mut archive = ZipArchive::with_config(known, BufReader::new(file)).with_context(reading)?;
    let mut used = vec![false; keep.len()];
    for index in 0..archive.len() {
        let mut member = archive.by_index(index).with_context(reading)?;
        let Some(name) = member.enclosed_name() else {
            bail!("{}: member {:?} leaves the archive's folder", wheel.display(), member.name());
        };
        let Some(entry) = keep.iter().position(|kept| match kept.strip_suffix('/') {
            Some(dir) => name.starts_with(dir),
            None => name == Path::new(kept),
        }) else {
            continue;
        };
        if member.is_dir() {
            continue;
        }
        let target = into.join(name);
        let writing = || format!("writing {}", target.display());
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).with_context(writing)?;
        }
        let mut out =
            BufWriter::with_capacity(1 << 20, File::create_new(&target).with_context(writing)?);
        io::copy(&mut member, &mut out).and_then(|_| out.flush()).with_context(writing)?;
        used[entry] = true;
    }
    if let Some(missing) = keep.iter().zip(used).find_map(|(kept, used)| (!used).then_some(kept)) {
        bail!("{}: there is no {missing} in it", wheel.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::PathBuf;

    use tempfile::TempDir;
    use zip::{ZipWriter, write::SimpleFileOptions};

    use super::*;

    fn wheel(members: &[(&str, &str)]) -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.whl");
        let mut zip = ZipWriter::new(File::create(&path).unwrap());
        for (name, text) in members {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
        (dir, path)
    }

    #[test]
    fn only_what_is_kept_is_written() {
        let (dir, path) = wheel(&[
            ("torch/lib/liba.so", "a"),
            ("torch/lib/libab.so", "ab"),
            ("torch/include/deep/x.h", "x"),
            ("torch/includes.py", "no"),
        ]);
        let into = dir.path().join("into");
        unpack(&path, &["torch/lib/liba.so", "torch/include/"], &into).unwrap();
        assert_eq!(fs::read_to_string(into.join("torch/lib/liba.so")).unwrap(), "a");
        assert_eq!(fs::read_to_string(into.join("torch/include/deep/x.h")).unwrap(), "x");
        assert!(!into.join("torch/lib/libab.so").exists());
        assert!(!into.join("torch/includes.py").exists());
    }

    #[test]
    fn a_member_that_leaves_the_folder_is_refused() {
        for name in ["../evil", "torch/../../evil", "/evil"] {
            let (dir, path) = wheel(&[(name, "evil")]);
            let into = dir.path().join("deep/into");
            let result = unpack(&path, &["torch/", "evil", "../"], &into);
            // An absolute name may also be taken as one below the folder: what counts is where bytes arrive.
            assert!(result.is_err() || into.join("evil").exists(), "{name}");
            assert!(!dir.path().join("deep/evil").exists() && !Path::new("/evil").exists());
        }
    }

    #[test]
    fn a_wheel_without_a_kept_file_is_refused() {
        let (dir, path) = wheel(&[("torch/lib/liba.so", "a")]);
        let error = unpack(&path, &["torch/lib/libb.so"], dir.path()).unwrap_err().to_string();
        assert!(error.contains("torch/lib/libb.so"), "{error}");
    }

    /// With a zip64 end record of 76 bytes, and a first entry of the directory as long.
    #[test]
    fn a_wheel_is_read_however_long_its_names_are() {
        let names = ["a".repeat(30), "b".repeat(30)];
        let (dir, path) = wheel(&[(&names[0], "first"), (&names[1], "second")]);
        let mut bytes = fs::read(&path).unwrap();
        let end = bytes.split_off(bytes.len() - 22);
        let at = bytes.len() as u64;
        bytes.extend(b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0");
        bytes.extend([2, 2].iter().flat_map(|n: &u64| n.to_le_bytes()));
        for field in [12, 16] {
            bytes.extend(&end[field..field + 4]);
            bytes.extend([0; 4]);
        }
        bytes.extend(b"PK\x06\x07\0\0\0\0");
        bytes.extend(at.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(end);
        fs::write(&path, bytes).unwrap();
        let into = dir.path().join("into");
        unpack(&path, &[&names[0], &names[1]], &into).unwrap();
        assert_eq!(fs::read_to_string(into.join(&names[0])).unwrap(), "first");
    }

    #[test]
    fn a_cut_wheel_is_an_error() {
        let (dir, path) = wheel(&[("torch/lib/liba.so", "a"), ("torch/lib/libb.so", "b")]);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        unpack(&path, &["torch/"], &dir.path().join("into")).unwrap_err();
    }
}
