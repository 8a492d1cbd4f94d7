//! How commands print their results.

use std::fmt::Display;
use std::io::Write;

use serde::Serialize;

/// A result on standard output: as one JSON object, or for people.
pub fn print(json: bool, value: &(impl Serialize + Display)) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(value)?)?
    } else {
        writeln!(out, "{value}")?
    }
    Ok(())
}
