//! Helpers of tests at the command line: the program in a folder of its own, and its answers.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Runs `uta` in `dir` with words that have no spaces in them; what it keeps between runs stays in there too.
pub fn uta(dir: &Path, args: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_uta"))
        .args(args.split_whitespace())
        .current_dir(dir)
        .env("XDG_CACHE_HOME", dir.join("cache"))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// The one JSON object that a command prints.
pub fn json(dir: &Path, args: &str) -> Value {
    let out = uta(dir, args);
    assert!(out.status.success(), "{args}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// The one line of a mistake.
pub fn mistake(dir: &Path, args: &str) -> String {
    let out = uta(dir, args);
    let line = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(2), "{args}: {line}");
    assert!(out.stdout.is_empty(), "{args}: nothing belongs on standard output");
    assert_eq!(line.trim_end().lines().count(), 1, "{args}: {line}");
    line
}
