//! Work that a GPU does while the host goes on.

use std::ffi::c_char;
use std::sync::LazyLock;

use tch::{Device, TchError, Tensor};
use torch_sys::C_tensor;

use crate::{check, handle, made};

unsafe extern "C" {
    fn te_peak_memory(index: i32, bytes: *mut i64) -> *mut c_char;
    fn te_reset_peak_memory(index: i32) -> *mut c_char;
    fn te_gpu_takes(width: i64) -> bool;
    fn te_upload(x: *mut C_tensor, index: i32, out: *mut *mut C_tensor) -> *mut c_char;
    fn te_forbid_waiting(forbidden: bool) -> *mut c_char;
}

/// Whether [`layer_norm`](crate::layer_norm), [`gate()`](crate::gate()) and [`rotate()`](crate::rotate()) are to be used on
/// `device` over rows of `width` numbers: on a CPU always; on a GPU where `UTA_FUSE_GPU=1` is set, because they have not been
/// run on one yet, and where rows are made of vectors of four numbers and NVRTC, which comes with libtorch, is found.
pub fn fuses(device: Device, width: i64) -> bool {
    static WANTED: LazyLock<bool> =
        LazyLock::new(|| std::env::var_os("UTA_FUSE_GPU").is_some_and(|set| set == "1"));
    // SAFETY: no pointers; looks for libraries.
    !device.is_cuda() || (*WANTED && unsafe { te_gpu_takes(width) })
}

/// `x`, of the CPU, on `device`: on a GPU through pinned memory, without waiting.
///
/// # Errors
/// When there is no such device, or no memory left.
pub fn upload(x: Tensor, device: Device) -> Result<Tensor, TchError> {
    let Device::Cuda(index) = device else { return Ok(x) };
    // SAFETY: a live tensor, borrowed for the call; `out` receives a new handle.
    made(|out| unsafe { te_upload(handle(&x), index as i32, out) })
}

/// The most bytes of tensors that a GPU has held since the start, or since [`reset_peak_memory`]; `None` for a CPU, which has
/// no allocator of libtorch's that counts.
pub fn peak_memory(device: Device) -> Option<u64> {
    let Device::Cuda(index) = device else { return None };
    let mut bytes = 0;
    // SAFETY: `bytes` outlives the call.
    check(unsafe { te_peak_memory(index as i32, &mut bytes) }).ok()?;
    Some(bytes as u64)
}

/// Counts from what is held now.
pub fn reset_peak_memory(device: Device) {
    if let Device::Cuda(index) = device {
        // SAFETY: no pointers. Fails where CUDA hasn't begun, and then there is nothing to reset.
        let _ = check(unsafe { te_reset_peak_memory(index as i32) });
    }
}

/// Runs `f`, in which each call that would make the host wait for a GPU fails instead. Copies from memory that isn't pinned
/// and readings of numbers are such calls. For tests: one at a time, for it holds for the whole process. Without CUDA nothing
/// waits, and nothing fails.
pub fn without_waiting<T>(f: impl FnOnce() -> T) -> T {
    struct Allow;
    impl Drop for Allow {
        fn drop(&mut self) {
            // SAFETY: no pointers.
            let _ = check(unsafe { te_forbid_waiting(false) });
        }
    }
    // SAFETY: no pointers; sets a flag of libtorch's.
    check(unsafe { te_forbid_waiting(true) }).expect("a flag can be set");
    let _allow = Allow;
    f()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_no_peak_and_nothing_that_waits() {
        reset_peak_memory(Device::Cpu);
        assert_eq!(peak_memory(Device::Cpu), None);
        assert_eq!(without_waiting(|| 3), 3);
        assert!(fuses(Device::Cpu, 7));
    }
}
