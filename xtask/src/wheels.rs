//! The Python wheels that carry libtorch, pinned by version and sha256, and the folder that keeps them.
//!
//! pip fetches (it knows the user's index, proxy and certificates); whether a file is the right one is decided here.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, IsTerminal},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};

/// The release of libtorch that tch 0.26 is made for.
pub const TORCH_VERSION: &str = "2.13.0";

/// One wheel, and what of it is unpacked. A name of `keep_*` that ends in `/` stands for all below it; an empty list
/// says that the wheel is not needed.
pub struct Wheel {
    pub package: &'static str,
    pub version: &'static str,
    pub sha256: &'static str,
    pub megabytes: u32,
    /// Kept for a libtorch without CUDA. PyPI's only Linux wheel is the CUDA build, and its libtorch_cpu.so wants the
    /// CUDA runtime's two libraries to be loaded, which work without a driver.
    pub keep_cpu: &'static [&'static str],
    pub keep_cuda: &'static [&'static str],
}

/// The wheels that torch 2.13.0's metadata asks for (cuda-toolkit 13.0.3 and its extras written out), less Python's own; and two
/// wheels of headers (nvidia-cuda-crt, nvidia-cuda-cccl) that c10d's NCCL header includes.
#[rustfmt::skip]
pub const WHEELS: [Wheel; 18] = [
    Wheel {
        keep_cpu: &["torch/include/", "torch/lib/libc10.so", "torch/lib/libgomp.so.1", "torch/lib/libtorch_cpu.so"],
        keep_cuda: &["torch/include/", "torch/lib/"],
        ..nvidia("torch", TORCH_VERSION, 527, "60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7")
    },
    Wheel {
        keep_cpu: &["nvidia/cu13/lib/libcudart.so.13"],
        ..nvidia("nvidia-cuda-runtime", "13.0.96", 2, "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548")
    },
    Wheel {
        keep_cpu: &["nvidia/cu13/lib/libcupti.so.13"],
        ..nvidia("nvidia-cuda-cupti", "13.0.85", 11, "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8")
    },
    nvidia("nvidia-cublas", "13.1.1.3", 423, "37936a16db8fe4ac1f065c2139360608a543a09275cb1a1af612e08cfa065436"),
    nvidia("nvidia-cuda-nvrtc", "13.0.88", 90, "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575"),
    nvidia("nvidia-cudnn-cu13", "9.20.0.48", 366, "0c45dd8eeb50b603f07995b1b300c62ffe6a1980482b82b3bcf94a4ca9d49304"),
    nvidia("nvidia-cufft", "12.0.0.61", 214, "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3"),
    nvidia("nvidia-cufile", "1.15.1.6", 1, "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44"),
    nvidia("nvidia-curand", "10.4.0.35", 60, "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc"),
    nvidia("nvidia-cusolver", "12.0.4.66", 201, "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112"),
    nvidia("nvidia-cusparse", "12.6.3.3", 146, "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b"),
    nvidia("nvidia-cusparselt-cu13", "0.8.1", 170, "786ce87568c303fadb5afcc7102d454cd3040d75f6f8626f5db460d1871f4dd0"),
    nvidia("nvidia-nccl-cu13", "2.29.7", 206, "edd81538446786ec3b73972543e53bb43bcaf0bfc8ef76cb679fcc390ffe136d"),
    nvidia("nvidia-nvjitlink", "13.0.88", 41, "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b"),
    nvidia("nvidia-nvshmem-cu13", "3.4.5", 60, "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80"),
    nvidia("nvidia-cuda-crt", "13.0.88", 1, "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4"),
    nvidia("nvidia-cuda-cccl", "13.0.85", 3, "e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649"),
    nvidia("nvidia-nvtx", "13.0.85", 1, "4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4"),
];

const fn nvidia(
    package: &'static str,
    version: &'static str,
    megabytes: u32,
    sha256: &'static str,
) -> Wheel {
    let keep_cuda = &["nvidia/"];
    Wheel { package, version, sha256, megabytes, keep_cpu: &[], keep_cuda }
}

/// The wheel's file below `cache`: the one already there if it is whole, else a new one put there by `fetch`, which is
/// given an empty folder to leave a single `.whl` in. A file of the wrong checksum never stays in the cache.
pub fn provide(
    wheel: &Wheel,
    cache: &Path,
    fetch: impl FnOnce(&Wheel, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let Wheel { package, version, sha256, .. } = wheel;
    let kept = cache.join(format!("{package}-{version}.whl"));
    if kept.exists() {
        if digest(&kept)? == *sha256 {
            return Ok(kept);
        }
        eprintln!("{}: damaged, fetching it again", kept.display());
        fs::remove_file(&kept).with_context(|| format!("removing {}", kept.display()))?;
    }
    let incoming = cache.join("incoming");
    empty_dir(&incoming)?;
    fetch(wheel, &incoming)?;
    let fetched = only_wheel(&incoming)
        .with_context(|| format!("pip left no {package} {version} in {}", incoming.display()))?;
    let found = digest(&fetched)?;
    if found != *sha256 {
        fs::remove_dir_all(&incoming).ok();
        bail!(
            "{package} {version}: the file fetched has sha256 {found}, not {sha256}; \
             run setup again, and look at pip's index settings if it stays so"
        );
    }
    fs::rename(&fetched, &kept).with_context(|| format!("writing {}", kept.display()))?;
    fs::remove_dir_all(&incoming).ok();
    Ok(kept)
}

/// `pip download` of exactly this wheel, for this platform whatever python3 itself is, into `dir`.
pub fn pip_download(wheel: &Wheel, dir: &Path) -> Result<()> {
    let Wheel { package, version, megabytes, .. } = wheel;
    eprintln!("fetching {package} {version} ({megabytes} MB)");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"])
        .args(["--disable-pip-version-check", "--no-input"])
        .args(["--python-version", "3.11", "--implementation", "cp"])
        // pip takes platform tags literally: a manylinux_2_17 wheel is not found under manylinux_2_28.
        .args(
            (17..=28)
                .flat_map(|glibc| ["--platform".into(), format!("manylinux_2_{glibc}_x86_64")]),
        )
        .args(["--platform", "manylinux2014_x86_64", "--dest"])
        .arg(dir)
        .arg(format!("{package}=={version}"))
        // pip writes half a gigabyte there first, and /tmp is often small.
        .env("TMPDIR", dir)
        .env("PIP_REQUIRE_VIRTUALENV", "0")
        .stdout(io::stderr().as_fd().try_clone_to_owned().context("standard error")?)
        .stderr(Stdio::piped());
    if !io::stderr().is_terminal() {
        pip.arg("--quiet"); // no progress bar in a log
    }
    let mut child = pip.spawn().context("starting python3 -m pip")?;
    let said = BufReader::new(child.stderr.take().expect("piped above"));
    let said: Vec<String> = said.lines().map_while(Result::ok).collect();
    if !child.wait().context("waiting for pip")?.success() {
        bail!("pip could not fetch {package} {version}: {}", reason(&said));
    }
    Ok(())
}

/// The line of pip's standard error that says what happened.
fn reason(said: &[String]) -> String {
    let error = said.iter().rev().find_map(|line| line.strip_prefix("ERROR: "));
    match error {
        // All that pip says of an index it can't reach, after many warnings.
        Some(error) if error.starts_with("No matching distribution") => {
            format!("{error}; can this machine reach the package index?")
        }
        Some(error) if !error.starts_with("Exception") => error.to_owned(),
        // A full disk, say: a traceback, whose last line names it.
        _ => said.iter().rfind(|line| !line.is_empty()).map_or("it gave no reason", |l| l).into(),
    }
}

/// Makes `dir` an empty folder, whatever an interrupted run left in it.
pub fn empty_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::create_dir_all(dir),
    }
    .with_context(|| format!("emptying {}", dir.display()))
}

fn only_wheel(dir: &Path) -> Result<PathBuf> {
    fs::read_dir(dir)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| anyhow!("there is no .whl file"))
}

fn digest(path: &Path) -> Result<String> {
    let reading = || format!("reading {}", path.display());
    let mut file = BufReader::with_capacity(1 << 20, File::open(path).with_context(reading)?);
    let mut hash = Sha256::new();
    loop {
        let chunk = file.fill_buf().with_context(reading)?;
        if chunk.is_empty() {
            break;
        }
        hash.update(chunk);
        let read = chunk.len();
        file.consume(read);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// sha256 of `b"abc"` (FIPS 180-2, appendix B.1).
    const ABC: Wheel = nvidia(
        "letters",
        "1.0",
        1,
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    );

    fn write(bytes: &'static [u8]) -> impl FnOnce(&Wheel, &Path) -> Result<()> {
        move |_, dir| Ok(fs::write(dir.join("letters-1.0-py3-none-any.whl"), bytes)?)
    }

    fn never(_: &Wheel, _: &Path) -> Result<()> {
        panic!("a finished wheel was fetched again")
    }

    #[test]
    fn a_finished_wheel_is_never_fetched_again() {
        let cache = tempfile::tempdir().unwrap();
        let first = provide(&ABC, cache.path(), write(b"abc")).unwrap();
        assert_eq!(fs::read(&first).unwrap(), b"abc");
        assert_eq!(provide(&ABC, cache.path(), never).unwrap(), first);
    }

    #[test]
    fn a_damaged_wheel_is_fetched_anew() {
        let cache = tempfile::tempdir().unwrap();
        let path = provide(&ABC, cache.path(), write(b"abc")).unwrap();
        fs::write(&path, b"ab").unwrap();
        assert_eq!(provide(&ABC, cache.path(), write(b"abc")).unwrap(), path);
        assert_eq!(fs::read(&path).unwrap(), b"abc");
    }

    #[test]
    fn a_wrong_checksum_is_refused_and_leaves_nothing() {
        let cache = tempfile::tempdir().unwrap();
        let error = provide(&ABC, cache.path(), write(b"abd")).unwrap_err().to_string();
        assert!(error.contains("letters 1.0") && error.contains(ABC.sha256), "{error}");
        assert!(!error.contains('\n'), "{error}");
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_an_interrupted_fetch_left_does_not_matter() {
        let cache = tempfile::tempdir().unwrap();
        let incoming = cache.path().join("incoming");
        fs::create_dir(&incoming).unwrap();
        fs::write(incoming.join("letters-1.0-py3-none-any.whl"), b"a").unwrap();
        fs::write(incoming.join("other.whl"), b"b").unwrap();
        let path = provide(&ABC, cache.path(), write(b"abc")).unwrap();
        assert_eq!(fs::read(path).unwrap(), b"abc");
    }

    #[test]
    fn pips_reason_is_one_line() {
        let reason = |text: &str| reason(&text.lines().map(str::to_owned).collect::<Vec<_>>());
        let full = "ERROR: Exception:\nTraceback (most recent call last):\nOSError: [Errno 28] No space\n\n";
        assert_eq!(reason(full), "OSError: [Errno 28] No space");
        let index = "WARNING: Retrying\nERROR: Could not find\nERROR: No matching distribution found for a==1";
        assert!(reason(index).starts_with("No matching distribution found for a==1; can"));
        assert_eq!(reason("WARNING: x\nERROR: Bad option\nWARNING: y"), "Bad option");
        assert_eq!(reason(""), "it gave no reason");
    }

    #[test]
    fn every_pin_is_exact() {
        for wheel in &WHEELS {
            let hex = wheel.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            assert!(hex && wheel.sha256.len() == 64, "{}", wheel.package);
            assert!(
                wheel.version.bytes().all(|b| b.is_ascii_digit() || b == b'.'),
                "{}",
                wheel.package
            );
            assert!(wheel.megabytes > 0 && !wheel.keep_cuda.is_empty(), "{}", wheel.package);
        }
    }
}
