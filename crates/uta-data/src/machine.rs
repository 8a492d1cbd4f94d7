//! How much memory there is, and whether what a user asked for has room in it.

use std::fs;

use crate::DataError;

/// Bytes of memory that this process may have: the machine's, or less where its container or the shell's `ulimit -v` says so.
/// `None` where the system doesn't tell.
pub fn memory() -> Option<u64> {
    let machine = line(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:", 0)? << 10;
    let container = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let container = container.iter().filter_map(|path| {
        let text = fs::read_to_string(path).ok()?;
        text.trim().parse().ok()
    });
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    container.chain(line(&limits, "Max address space", 0)).chain([machine]).min()
}

/// The number in column `column` behind the words that a line begins with.
fn line(text: &str, words: &str, column: usize) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(words))?;
    rest.split_whitespace().nth(column)?.parse().ok()
}

/// Whether `bytes` for `field` of `value` have room in this machine's memory.
///
/// # Errors
/// When they don't, saying so.
pub fn has_room(field: &'static str, value: usize, bytes: u128) -> Result<(), DataError> {
    match memory() {
        Some(memory) if bytes > u128::from(memory) => {
            let [needed, memory] = [bytes as f64, memory as f64].map(|bytes| bytes / 1e9);
            let reason = format!(
                "takes {needed:.0} GB of memory, and this process may have {memory:.1} GB: take fewer"
            );
            Err(DataError::Option { field, value: value.to_string(), reason })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_no_machine_has_is_refused_and_what_any_has_is_not() {
        assert!(memory().unwrap() > 1 << 28);
        has_room("batch", 8, 1 << 20).unwrap();
        let e = has_room("batch", 8, 1 << 70).unwrap_err().to_string();
        assert!(e.starts_with("batch = 8: takes") && e.contains("GB"), "{e}");
    }

    #[test]
    fn a_limit_is_read_in_its_own_column_and_unlimited_is_none() {
        let text = "Limit       Soft Limit  Hard Limit Units\nMax address space         4096000000  unlimited bytes\n";
        assert_eq!(line(text, "Max address space", 0), Some(4_096_000_000));
        assert_eq!(line(text, "Max address space", 1), None);
        assert_eq!(line(text, "Max file size", 0), None);
    }
}
