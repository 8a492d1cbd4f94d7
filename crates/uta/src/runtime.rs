//! Settings of the C libraries that have to be there before the program starts.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Settings of libgomp and of the C library, which are read before `main`: the process starts itself again with them. What
/// the user has set himself stays.
///
/// - OpenMP's threads wait a little for more work before they sleep. Forever, the default, starves the decoding threads; not
///   at all ([`OMP_WAIT_POLICY`] `passive`) costs small networks half of their speed, because work comes every few
///   microseconds.
/// - Memory that was freed is kept for the next step. Activations are large enough for the C library to ask the system for
///   each anew, which then clears it, page by page: a tenth of the time of a ViT-B's step.
/// - Pages are large where the system has them: a few hundredths more.
///
/// [`OMP_WAIT_POLICY`]: https://www.openmp.org/spec-html/5.0/openmpse55.html
pub fn restart_with_settings() {
    const SETTINGS: [&[(&str, &str)]; 3] = [
        &[("OMP_WAIT_POLICY", "passive"), ("GOMP_SPINCOUNT", "10000")],
        &[("MALLOC_MMAP_MAX_", "0"), ("MALLOC_TRIM_THRESHOLD_", "1000000000000")],
        &[("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")],
    ];
    let given =
        |group: &[(&str, &str)]| group.iter().any(|(name, _)| std::env::var_os(name).is_some());
    let missing: Vec<_> =
        SETTINGS.into_iter().filter(|group| !given(group)).flatten().copied().collect();
    if missing.is_empty() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        // Returns only if it failed; then the run is slower, no more.
        let mut words = std::env::args_os();
        let mut command = Command::new(program);
        if let Some(own) = words.next() {
            command.arg0(own);
        }
        let _ = command.args(words).envs(missing).exec();
    }
}
