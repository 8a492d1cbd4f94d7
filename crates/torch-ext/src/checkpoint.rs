//! Activation checkpointing. The C++ side is `cpp/checkpoint.cpp`.

use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::{caught, first_line, handle, made};

unsafe extern "C" {
    fn te_checkpoint(
        x: *mut C_tensor,
        closure: *mut c_void,
        call: extern "C" fn(*mut c_void, *mut C_tensor, *mut *mut C_tensor, *mut c_void) -> bool,
        drop: extern "C" fn(*mut c_void),
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn te_say(why: *mut c_void, text: *const u8, length: usize);
}

/// `part(x)`, of which nothing is kept for the backward pass but `x`: the part runs again there, under the same autocast and
/// with the same random draws, and its parameters get their gradients then.
///
/// Of tensors that aren't leaves the part may use `x` alone. In the backward pass of a net on a GPU it runs on a thread of
/// libtorch's.
///
/// # Errors
/// When no gradient is wanted of `x`, or the part panics.
pub fn checkpoint<F>(x: &Tensor, part: F) -> Result<Tensor, TchError>
where
    F: Fn(&Tensor) -> Tensor + Send + 'static,
{
    extern "C" fn call<F: Fn(&Tensor) -> Tensor>(
        closure: *mut c_void,
        x: *mut C_tensor,
        y: *mut *mut C_tensor,
        why: *mut c_void,
    ) -> bool {
        // SAFETY: the closure that `checkpoint` gave away, which lives until `dropped` and runs on one thread at a time, and
        // a handle that becomes ours.
        let (part, x) = unsafe { (&*closure.cast::<F>(), Tensor::from_ptr(x)) };
        let error = match catch_unwind(AssertUnwindSafe(|| caught(|| part(&x)))) {
            Ok(Ok(out)) => {
                // SAFETY: a place for one handle. The tensor's own goes to the caller.
                unsafe { *y = handle(&out) };
                std::mem::forget(out);
                return true;
            }
            Ok(Err(TchError::Torch(line))) => line,
            Ok(Err(e)) => first_line(&e),
            Err(_) => "a checkpointed part of a network panicked".into(),
        };
        // SAFETY: the text that `why` stands for lives until this returns, and copies the bytes.
        unsafe { te_say(why, error.as_ptr(), error.len()) };
        false
    }
    extern "C" fn dropped<F>(closure: *mut c_void) {
        // SAFETY: made by `Box::into_raw` below, and dropped once.
        drop(unsafe { Box::from_raw(closure.cast::<F>()) });
    }
    let closure = Box::into_raw(Box::new(part)).cast::<c_void>();
    made(|out| {
        // SAFETY: a live tensor; the closure goes to the C++ side, which drops it whatever happens; `out` receives a new
        // handle.
        unsafe { te_checkpoint(handle(x), closure, call::<F>, dropped::<F>, out) }
    })
}
