//! Panics of decoders, which damaged files can bring about.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Returns the value of `work`, or its panic, which prints nothing. Panics of other threads, and outside of this call,
/// print what they always did.
pub(crate) fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    let before = QUIET.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    result
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::Command;
    use std::thread;

    use super::*;

    #[test]
    #[ignore = "a part of the test below"]
    fn one_panic_within_and_one_without() {
        assert!(quietly(|| panic!("a caught panic")).is_err());
        assert!(thread::spawn(|| panic!("another panic")).join().is_err());
    }

    #[test]
    fn a_caught_panic_prints_nothing_and_others_print_what_they_always_did() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = "quietly::tests::one_panic_within_and_one_without";
        let output = command.args(["--exact", name, "--ignored", "--nocapture"]).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{printed}");
        assert!(
            printed.contains("another panic") && !printed.contains("a caught panic"),
            "{printed}"
        );
    }
}
