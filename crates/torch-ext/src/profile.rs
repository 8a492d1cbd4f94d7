//! Where time goes, operator by operator.

use std::ffi::{CStr, c_char, c_void};

use tch::Device;

use crate::check;

type Each = unsafe extern "C" fn(*mut c_void, *const c_char, f64, i64);

unsafe extern "C" {
    fn te_profile_begin(cuda: i32) -> *mut c_char;
    fn te_profile_end(each: Each, to: *mut c_void) -> *mut c_char;
}

/// One of libtorch's operators.
#[derive(Clone, Debug, PartialEq)]
pub struct OperatorTime {
    /// Its name, `aten::mm` for example.
    pub name: String,
    /// Seconds in it, those of the operators that it calls left out.
    pub seconds: f64,
    /// How often it was called.
    pub calls: u64,
}

/// Runs `f` and says where its time on `device` went, the longest first. A backward pass on the CPU runs on the thread that
/// asks for it, which alone is watched. On a GPU, where it runs on another, all threads are, and each operator is waited for:
/// the sum is longer than without a profile.
pub fn profile<T>(device: Device, f: impl FnOnce() -> T) -> (T, Vec<OperatorTime>) {
    unsafe extern "C" fn each(to: *mut c_void, name: *const c_char, seconds: f64, calls: i64) {
        // SAFETY: `to` is the list below, which outlives the call, and `name` a string that ends with 0.
        let (list, name) = unsafe { (&mut *to.cast::<Vec<OperatorTime>>(), CStr::from_ptr(name)) };
        let name = name.to_string_lossy().into_owned();
        list.push(OperatorTime { name, seconds, calls: calls as u64 });
    }
    let cuda = match device {
        Device::Cuda(index) => index as i32,
        _ => -1,
    };
    // SAFETY: no pointers; registers an observer.
    check(unsafe { te_profile_begin(cuda) }).expect("an observer can be added");
    let result = f();
    let mut list: Vec<OperatorTime> = vec![];
    // SAFETY: `list` outlives the call, and is what `each` takes it for.
    check(unsafe { te_profile_end(each, (&raw mut list).cast()) }).expect("and removed");
    list.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    (result, list)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn operators_are_counted_forward_and_backward() {
        let x = Tensor::randn([64, 64], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let ((), found) = profile(Device::Cpu, || x.matmul(&x).sum(Kind::Float).backward());
        let mm = found.iter().find(|o| o.name == "aten::mm").expect("products are seen");
        assert!(mm.calls == 3 && mm.seconds > 0.0, "{found:?}");
        assert!(found.windows(2).all(|pair| pair[0].seconds >= pair[1].seconds));
        assert!(profile(Device::Cpu, || ()).1.is_empty());
    }
}
