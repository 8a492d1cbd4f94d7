//! libtorch's errors that tch tells by panicking.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use tch::TchError;

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` and gives its value, or libtorch's error where it panicked with it: methods of tch's do so unless called by their
/// `f_` names, which arithmetic isn't written with, and so does whoever unwraps what this crate returns. Nothing is printed
/// then; any other panic goes on as always.
///
/// # Errors
/// libtorch's, of which memory that ran out is the one to expect.
pub fn caught<T>(f: impl FnOnce() -> T) -> Result<T, TchError> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !(CATCHING.get() && error_in(info.payload()).is_some()) {
                usual(info);
            }
        }));
    });
    let before = CATCHING.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    CATCHING.set(before);
    result.or_else(|payload| match error_in(payload.as_ref()) {
        Some(message) => Err(TchError::Torch(message)),
        None => panic::resume_unwind(payload),
    })
}

/// The first line of libtorch's message, the rest of which is a trace, in what `Result::unwrap` or `expect` panicked with.
fn error_in(payload: &(dyn Any + Send)) -> Option<String> {
    let text: &String = payload.downcast_ref()?;
    let quoted = text.split_once(": Torch(\"")?.1;
    let line = quoted.split("\\n").next()?.trim_end_matches("\")");
    Some(line.replace("\\\"", "\"").replace("\\'", "'").replace("\\\\", "\\"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn an_error_of_libtorch_comes_back_as_its_first_line() {
        let zeros = || Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        assert_eq!(caught(|| zeros().sum(Kind::Float).double_value(&[])).unwrap(), 0.0);
        let shapes = caught(|| zeros().matmul(&zeros())).unwrap_err().to_string();
        assert!(shapes.contains("mat1 and mat2 shapes") && !shapes.contains('\n'), "{shapes}");
        let memory = caught(|| Tensor::zeros([1 << 50], (Kind::Uint8, Device::Cpu)));
        let memory = memory.unwrap_err().to_string();
        assert!(memory.contains("can't allocate memory: you tried to allocate"), "{memory}");
        let expected = || Err::<(), _>(TchError::Torch("out of memory\nin a trace".into()));
        let memory = caught(|| expected().expect("the layers of a net fit")).unwrap_err();
        assert!(matches!(&memory, TchError::Torch(line) if line == "out of memory"), "{memory}");
    }

    #[test]
    fn any_other_panic_goes_on() {
        let panicked = panic::catch_unwind(|| caught(|| panic!("of another kind")));
        let payload = panicked.err().unwrap();
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"of another kind"));
    }
}
