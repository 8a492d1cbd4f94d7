//! Folders that the system sets aside for programs.

use std::path::PathBuf;

/// The folder for what can be computed again, by the XDG base directory specification: `$XDG_CACHE_HOME/uta`, else
/// `~/.cache/uta`.
pub fn cache_folder() -> Option<PathBuf> {
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("uta"))
}
