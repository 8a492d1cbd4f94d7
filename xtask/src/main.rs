//! `cargo xtask CHORE`: everything this repository does besides being compiled.
//!
//! Plain Rust without tch, because it is what fetches the libtorch that tch is compiled against. Most chores end
//! by becoming another command (`exec`), so that its exit status, closing lines and Ctrl-C reach the user undisturbed; what
//! a chore says on its way goes to standard error, which leaves `demo --json` one object there.

mod bench;
mod house;
mod setup;
mod unpack;
mod wheels;

use std::{
    env,
    ffi::OsString,
    fmt, iter,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};

use setup::Flavour;

const HELP: &str = "\
Usage: cargo xtask CHORE

  setup [--cuda | --cpu]  put libtorch 2.13.0 into .libtorch: without CUDA (0.5 GB to fetch) unless --cuda (2.4 GB)
  demo [ARGS]             setup, then `uta demo ARGS` in release: the whole method on real pictures
  test [ARGS]             setup, then `cargo test --workspace ARGS`
  house                   no files of a crate import each other in a circle, and no crate reaches up
  ci                      .ci/run: formatting, tests, clippy and rustdoc, warnings denied
  bench data [ARGS]       setup, then `uta bench data ARGS` in release: images a second of decoding and cropping
  bench step [ROW ...] [--pairs 5] [--threads 2] [--python PATH] [--json]
                          setup, then the pre-training step beside PyTorch's, in turn: student, student-8, step,
                          teacher-l, teacher-g, each with its -f32, and cached; all of them when none is named.
                          PATH (or UTA_BENCH_PYTHON) is a python with torch and timm

A libtorch of your own wins: LIBTORCH=/path/to/libtorch, or LIBTORCH_USE_PYTORCH=1 for the one of python3's torch.";

/// A mistake in the command line: exit status 2.
#[derive(Debug)]
struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; see `cargo xtask help`", self.0)
    }
}

impl std::error::Error for Usage {}

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    let chore = args.next().unwrap_or_else(|| "help".into());
    match run(&chore.to_string_lossy(), &args.collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

fn run(chore: &str, args: &[OsString]) -> Result<()> {
    // This crate's folder is one below the repository's.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ has a parent");
    match chore {
        "help" | "--help" | "-h" => {
            println!("{HELP}");
            Ok(())
        }
        "setup" => setup::run(root, flavour(args)?),
        "demo" => {
            setup::check_npm(root)?;
            setup::run(root, None)?;
            become_cargo(root, &["run", "--release", "--package", "uta", "--", "demo"], args)
        }
        "test" => {
            setup::run(root, None)?;
            become_cargo(root, &["test", "--workspace"], args)
        }
        "bench" => match args.split_first() {
            Some((what, args)) if what == "data" => {
                setup::run(root, None)?;
                let chore = ["run", "--release", "--package", "uta", "--", "bench", "data"];
                become_cargo(root, &chore, args)
            }
            Some((what, args)) if what == "step" => bench::step(root, args),
            _ => Err(usage("bench takes data or step")),
        },
        "house" if args.is_empty() => house::run(root),
        "house" => Err(usage("house takes no arguments")),
        // Calls `cargo xtask test`, and that sets up.
        "ci" if args.is_empty() => replace_by(Command::new(root.join(".ci/run"))),
        "ci" => Err(usage("ci takes no arguments")),
        _ => Err(usage("there is no such chore")),
    }
}

fn usage(message: &str) -> anyhow::Error {
    Usage(message.to_owned()).into()
}

fn flavour(args: &[OsString]) -> Result<Option<Flavour>> {
    match args.iter().map(|arg| arg.to_str()).collect::<Vec<_>>()[..] {
        [] => Ok(None),
        [Some("--cpu")] => Ok(Some(Flavour::Cpu)),
        [Some("--cuda")] => Ok(Some(Flavour::Cuda)),
        _ => Err(usage("setup takes --cuda, --cpu or nothing")),
    }
}

/// Ends this process as cargo, in the repository's root, with the words shown first.
fn become_cargo(root: &Path, chore: &[&str], args: &[OsString]) -> Result<()> {
    let shown = iter::once("cargo".into())
        .chain(chore.iter().map(|word| (*word).into()))
        .chain(args.iter().map(|word| word.to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ");
    eprintln!("+ {shown}");
    let mut cargo = setup::cargo(root);
    cargo.args(chore).args(args);
    replace_by(cargo)
}

fn replace_by(mut command: Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("starting {}", command.get_program().display()))
}
