//! `cargo xtask setup`: libtorch into `.libtorch`, where `.cargo/config.toml` tells torch-sys to look for it.
//!
//! The folder is laid out as the wheels' own site-packages, because their libraries find each other by RPATHs such as
//! `$ORIGIN/../../nvidia/cu13/lib`; links at the top give it a libtorch's face:
//!
//! ```text
//! .libtorch/torch/{include,lib}   from the torch wheel
//!          /nvidia/...            from NVIDIA's wheels
//!          /include, /lib         links into torch/
//!          /build-version         read by torch-sys
//!          /wheels                what was installed, written last
//! .libtorch-cache/                the wheels, and the lock
//! ```
//!
//! Whether libtorch_cuda.so is there makes the difference: torch-sys links CUDA exactly when it is.

use std::{
    env,
    ffi::OsString,
    fs::{self, File, TryLockError},
    io::Write,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    unpack::unpack,
    wheels::{TORCH_VERSION, WHEELS, Wheel, empty_dir, pip_download, provide},
};

/// Which libtorch: the one that computes on the CPU alone, or the full one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    Cpu,
    Cuda,
}

impl Flavour {
    fn keep(self, wheel: &Wheel) -> &'static [&'static str] {
        match self {
            Flavour::Cpu => wheel.keep_cpu,
            Flavour::Cuda => wheel.keep_cuda,
        }
    }

    /// Text of `.libtorch/wheels` for this flavour: a line for the flavour, and one for each wheel.
    fn manifest(self) -> String {
        let mut manifest = format!("{self:?}\n");
        for wheel in WHEELS.iter().filter(|wheel| !self.keep(wheel).is_empty()) {
            manifest += &format!("{} {} sha256:{}\n", wheel.package, wheel.version, wheel.sha256);
        }
        manifest
    }

    fn name(self) -> &'static str {
        match self {
            Flavour::Cpu => "for the CPU",
            Flavour::Cuda => "with CUDA",
        }
    }
}

/// Makes sure that libtorch is there: `wanted`, or any if nothing in particular is (at first, the one for the CPU).
/// Does nothing when it is, or when the user brings a libtorch of his own.
pub fn run(root: &Path, wanted: Option<Flavour>) -> Result<()> {
    check_compiler()?;
    if let Some((variable, value)) = own_libtorch(root) {
        let split = env::var_os("LIBTORCH_LIB").is_some();
        ensure!(
            variable != "LIBTORCH" || split || Path::new(&value).join("lib").is_dir(),
            "LIBTORCH={0}: there is no {0}/lib; let it name a libtorch {TORCH_VERSION}, or unset it",
            value.display()
        );
        eprintln!("setup: {variable}={} is set, so nothing is fetched", value.display());
        return Ok(());
    }
    let place = root.join(".libtorch");
    let ready = || installed(&place).filter(|found| wanted.is_none_or(|wanted| wanted == *found));
    if let Some(found) = ready() {
        report(found);
        return Ok(());
    }
    check_platform()?;
    let cache = root.join(".libtorch-cache");
    fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
    let _lock = lock(&cache.join("lock"))?;
    // Another setup may have done it while this one waited.
    let flavour = match ready() {
        Some(found) => found,
        None => {
            let flavour = wanted.unwrap_or(Flavour::Cpu);
            install(root, &place, &cache, flavour)?;
            flavour
        }
    };
    report(flavour);
    Ok(())
}

/// The user's own choice of libtorch, if he made one, as he made it. It is seen in the environment, where cargo also
/// puts the LIBTORCH of `.cargo/config.toml` before it runs this program: that one is ours.
fn own_libtorch(root: &Path) -> Option<(&'static str, OsString)> {
    // torch-sys asks first whether this is set, and not to what.
    let ours =
        |name: &str, value: &OsString| name == "LIBTORCH" && *value == root.join(".libtorch");
    ["LIBTORCH_USE_PYTORCH", "LIBTORCH"]
        .into_iter()
        .filter_map(|name| Some((name, env::var_os(name)?)))
        .find(|(name, value)| !ours(name, value))
}

/// The cargo that runs us, in the repository's root, with the LIBTORCH that a cargo typed by hand would see. Inherited,
/// our own would look like a change of environment and cost a new torch-sys (minutes) at every switch between
/// `cargo xtask test` and `cargo test`.
pub fn cargo(root: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root);
    if own_libtorch(root).is_none() {
        cargo.env_remove("LIBTORCH");
    }
    cargo
}

/// The demo fetches its pictures with npm, unless they are there; better said before minutes of compiling than after.
pub fn check_npm(root: &Path) -> Result<()> {
    ensure!(
        root.join("data/emoji/dataset.json").exists() || runs("npm", &["--version"]),
        "npm was not found: the demo needs it once, to fetch its pictures; install Node.js (which brings npm)"
    );
    Ok(())
}

/// The flavour that lies at `place`, whole and of the pinned versions.
fn installed(place: &Path) -> Option<Flavour> {
    let manifest = fs::read_to_string(place.join("wheels")).ok()?;
    let flavour = [Flavour::Cpu, Flavour::Cuda].into_iter().find(|f| f.manifest() == manifest)?;
    let whole = ["lib/libtorch.so", "lib/libtorch_cpu.so", "lib/libc10.so", "include/torch"];
    whole.iter().all(|name| place.join(name).exists()).then_some(flavour)
}

fn install(root: &Path, place: &Path, cache: &Path, flavour: Flavour) -> Result<()> {
    check_pip()?;
    let fresh = root.join(".libtorch-new");
    empty_dir(&fresh)?;
    for wheel in &WHEELS {
        let keep = flavour.keep(wheel);
        if !keep.is_empty() {
            unpack(&provide(wheel, cache, pip_download)?, keep, &fresh)?;
        }
    }
    finish(&fresh, flavour).with_context(|| format!("writing {}", fresh.display()))?;
    forget_link_flags(root, place, flavour)?;
    swap(&fresh, place)
}

/// Adds the files that no wheel holds.
fn finish(fresh: &Path, flavour: Flavour) -> Result<()> {
    if flavour == Flavour::Cpu {
        // torch-sys links -ltorch; the wheel's own would bring libtorch_cuda.so in.
        let built = compiler()
            .args([
                "-shared",
                "-nostdlib",
                "-Wl,-soname,libtorch.so",
                "-x",
                "c++",
                "/dev/null",
                "-o",
            ])
            .arg(fresh.join("torch/lib/libtorch.so"))
            .status()?;
        ensure!(built.success(), "the C++ compiler could not link an empty libtorch.so");
    }
    symlink("torch/include", fresh.join("include"))?;
    symlink("torch/lib", fresh.join("lib"))?;
    fs::write(fresh.join("build-version"), TORCH_VERSION)?;
    fs::write(fresh.join("wheels"), flavour.manifest())?;
    Ok(())
}

/// torch-sys decides once, when it is compiled, whether to link CUDA, and cargo cannot see that the folder it looked
/// into has changed. So where the answer changes, it is to be compiled anew.
fn forget_link_flags(root: &Path, place: &Path, flavour: Flavour) -> Result<()> {
    let had_cuda = place.join("lib").exists().then(|| place.join("lib/libtorch_cuda.so").exists());
    if had_cuda == Some(flavour == Flavour::Cuda) {
        return Ok(());
    }
    for profile in ["dev", "release"] {
        let cleaned = cargo(root)
            .args(["clean", "--quiet", "--package", "torch-sys", "--profile", profile])
            .status()
            .context("starting cargo clean")?;
        ensure!(cleaned.success(), "cargo clean --package torch-sys failed");
    }
    Ok(())
}

/// Puts `fresh` in the place of `place`. Killed between the two renames it leaves nothing at `place`, which the next
/// setup mends from the wheels it has.
fn swap(fresh: &Path, place: &Path) -> Result<()> {
    let old = place.with_file_name(".libtorch-old");
    let renaming = || format!("putting {} in place", place.display());
    empty_dir(&old)?;
    if place.symlink_metadata().is_ok() {
        fs::rename(place, old.join("libtorch")).with_context(renaming)?;
    }
    fs::rename(fresh, place).with_context(renaming)?;
    // Programs that run with the old libraries keep them: they are mapped.
    fs::remove_dir_all(&old).with_context(|| format!("removing {}", old.display()))
}

/// Held until dropped, and by the system's hand also when this process is killed.
fn lock(path: &Path) -> Result<File> {
    let locking = || format!("locking {}", path.display());
    let file = File::create(path).with_context(locking)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("setup: another one is at work here, waiting for it");
            file.lock().with_context(locking)?;
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(locking),
    }
    Ok(file)
}

fn report(flavour: Flavour) {
    let gpu = Path::new("/dev/nvidiactl").exists() || Path::new("/dev/dxg").exists();
    let hint = match (flavour, gpu) {
        (Flavour::Cuda, false) => {
            "; no NVIDIA GPU was found on this machine, so it computes on the CPU"
        }
        (Flavour::Cpu, true) => "; for this machine's GPU, `cargo xtask setup --cuda`",
        _ => "",
    };
    eprintln!("setup: libtorch {TORCH_VERSION} {} is in .libtorch{hint}", flavour.name());
}

fn check_platform() -> Result<()> {
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "setup knows wheels for x86-64 Linux only: set LIBTORCH to a libtorch {TORCH_VERSION} of your own, \
         or LIBTORCH_USE_PYTORCH=1 to take the one of python3's torch"
    );
    Ok(())
}

fn check_pip() -> Result<()> {
    ensure!(
        runs("python3", &["--version"]),
        "python3 was not found: setup needs it, with pip, to fetch libtorch's wheels"
    );
    ensure!(
        runs("python3", &["-m", "pip", "--version"]),
        "python3 has no pip: setup needs it to fetch libtorch's wheels (Debian: apt install python3-pip)"
    );
    Ok(())
}

/// Requirements of torch-ext on a compiler: C++20, vectors put together from two, and a function built for every generation of
/// processors.
const PROBE: &str = r#"
#include <concepts>
typedef int Row __attribute__((vector_size(16)));
Row mixed(Row a, Row b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
#ifdef __x86_64__
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
int sum(const int *x) { return x[0] + x[1]; }
"#;

fn check_compiler() -> Result<()> {
    let checked = compiler()
        .args(["-std=c++20", "-x", "c++", "-", "-c", "-o", "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .and_then(|mut child| {
            // Closed at once, so that the compiler sees the end of its input.
            child.stdin.take().map_or(Ok(()), |mut input| input.write_all(PROBE.as_bytes()))?;
            child.wait()
        });
    let name = compiler().get_program().display().to_string();
    match checked {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => {
            bail!("{name} is too old a C++ compiler: install g++ 12 or newer, or set CXX")
        }
        Err(_) => bail!("no C++ compiler ({name}) was found: install g++ 12 or newer, or set CXX"),
    }
}

/// The compiler that crate cc will take for torch-sys.
fn compiler() -> Command {
    let cxx = env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut words = cxx.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("c++"));
    command.args(words);
    command
}

fn runs(program: &str, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A folder that looks like an installation, holding `mark`.
    fn fake(dir: &Path, flavour: Flavour, mark: &str) {
        for name in ["torch/lib", "torch/include/torch"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        for name in ["libtorch_cpu.so", "libc10.so", "libtorch.so"] {
            fs::write(dir.join("torch/lib").join(name), mark).unwrap();
        }
        finish(dir, flavour).unwrap();
    }

    #[test]
    fn only_a_whole_installation_of_these_versions_counts() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join(".libtorch");
        assert_eq!(installed(&place), None);
        for flavour in [Flavour::Cpu, Flavour::Cuda] {
            let fresh = root.path().join("fresh");
            fake(&fresh, flavour, "x");
            swap(&fresh, &place).unwrap();
            assert_eq!(installed(&place), Some(flavour));
        }
        let manifest = fs::read_to_string(place.join("wheels")).unwrap();
        fs::write(place.join("wheels"), manifest.replace("2.13.0", "2.12.0")).unwrap();
        assert_eq!(installed(&place), None);
        fs::write(place.join("wheels"), manifest).unwrap();
        fs::remove_file(place.join("torch/lib/libtorch_cpu.so")).unwrap();
        assert_eq!(installed(&place), None);
    }

    #[test]
    fn a_swap_leaves_the_new_one_alone() {
        let root = tempfile::tempdir().unwrap();
        let (fresh, place) = (root.path().join("fresh"), root.path().join(".libtorch"));
        fake(&place, Flavour::Cuda, "old");
        // Left by a swap that was killed.
        fs::create_dir_all(root.path().join(".libtorch-old/libtorch/lib")).unwrap();
        fake(&fresh, Flavour::Cuda, "new");
        swap(&fresh, &place).unwrap();
        assert_eq!(fs::read_to_string(place.join("lib/libc10.so")).unwrap(), "new");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_lock_is_held_until_dropped() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lock");
        let held = lock(&path).unwrap();
        let other = File::create(&path).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(held);
        other.try_lock().unwrap();
    }

    #[test]
    fn the_cpu_flavour_takes_no_cuda_library() {
        for wheel in &WHEELS {
            for name in wheel.keep_cpu {
                let cuda = name.contains("libtorch_cuda") || *name == "torch/lib/";
                assert!(!cuda && *name != "nvidia/", "{name}");
            }
        }
        assert_eq!(Flavour::Cpu.manifest().lines().count(), 4);
        assert_eq!(Flavour::Cuda.manifest().lines().count(), 1 + WHEELS.len());
    }
}
