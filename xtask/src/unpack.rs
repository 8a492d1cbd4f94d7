//! Unpacks a part of a wheel (a zip archive) without ever writing outside the folder it is told to write to.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result, bail};
use zip::ZipArchive;

/// Writes the members of `wheel` that `keep` names below `into`, which may hold other wheels' members already. A name
/// that ends in `/` stands for all below it. Checked: every member lies inside, none is there twice, each entry of
/// `keep` names something, and each byte agrees with the archive's CRC.
pub fn unpack(wheel: &Path, keep: &[&str], into: &Path) -> Result<()> {
    let reading = || format!("reading {}", wheel.display());
    let file = File::open(wheel).with_context(reading)?;
    let mut archive = ZipArchive::new(BufReader::new(file)).with_context(reading)?;
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

    #[test]
    fn a_cut_wheel_is_an_error() {
        let (dir, path) = wheel(&[("torch/lib/liba.so", "a"), ("torch/lib/libb.so", "b")]);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        unpack(&path, &["torch/"], &dir.path().join("into")).unwrap_err();
    }
}
