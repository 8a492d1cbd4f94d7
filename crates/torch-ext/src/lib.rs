//! The parts of libtorch that tch leaves out, and nothing of vision: autocast on every device, activation checkpointing, the
//! fused AdamW kernel, fused loops over rows, arithmetic over many tensors in one call, and [`distributed`] training. The C++ side is
//! in `cpp/`; this is its safe face.

mod attention;
mod caught;
mod checkpoint;
mod device;
pub mod distributed;
mod frozen;
mod gate;
mod linear;
mod norm;
mod profile;
mod rotate;

use std::ffi::{CStr, c_char};

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

pub use attention::{attends, attention};
pub use caught::caught;
pub use checkpoint::checkpoint;
pub use device::{fuses, peak_memory, reset_peak_memory, upload, without_waiting};
pub use frozen::{Activation, PackedLinear, cpu_has_bf16, cpu_has_tiles};
pub use gate::{Norm, gate};
pub use linear::linear;
pub use norm::{add_layer_norm, layer_norm};
pub use profile::{OperatorTime, profile};
pub use rotate::rotate;

unsafe extern "C" {
    fn te_version() -> *const c_char;
    fn te_free_message(message: *mut c_char);
    fn te_autocast_enter(cuda: i32, enabled: bool, was_enabled: *mut bool) -> *mut c_char;
    fn te_autocast_exit(cuda: i32, was_enabled: bool) -> *mut c_char;
    fn te_autocast_is_on(cuda: i32) -> bool;
    fn te_fused_adamw(
        params: *const *mut C_tensor,
        grads: *const *mut C_tensor,
        exp_avgs: *const *mut C_tensor,
        exp_avg_sqs: *const *mut C_tensor,
        steps: *const *mut C_tensor,
        n: i64,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        found_inf: *mut C_tensor,
    ) -> *mut c_char;
    fn te_drop_grads(params: *const *mut C_tensor, n: i64) -> *mut c_char;
    fn te_global_norm(
        tensors: *const *mut C_tensor,
        n: i64,
        norm: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn te_scale(tensors: *const *mut C_tensor, n: i64, factor: *mut C_tensor) -> *mut c_char;
    fn te_lerp(
        averages: *const *mut C_tensor,
        values: *const *mut C_tensor,
        n: i64,
        weight: f64,
    ) -> *mut c_char;
}

/// Turns a message from the C++ side into an error, and frees it.
fn check(message: *mut c_char) -> Result<(), TchError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null message is a NUL-terminated string from strdup that we own.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    // SAFETY: as above; it is not used afterwards.
    unsafe { te_free_message(message) };
    Err(TchError::Torch(text))
}

/// The version of libtorch that this program was built against, such as `2.13.0`.
pub fn libtorch_version() -> String {
    // SAFETY: a NUL-terminated constant.
    unsafe { CStr::from_ptr(te_version()) }.to_string_lossy().into_owned()
}

/// libtorch's message without its trace.
pub fn first_line(error: &TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

fn handle(tensor: &Tensor) -> *mut C_tensor {
    tensor.as_ptr() as *mut C_tensor
}

/// The tensor that `make` puts into the handle it gets.
fn made(make: impl FnOnce(*mut *mut C_tensor) -> *mut c_char) -> Result<Tensor, TchError> {
    let mut out = std::ptr::null_mut();
    check(make(&mut out))?;
    // SAFETY: on success `out` is a valid handle that nothing else owns.
    Ok(unsafe { Tensor::from_ptr(out) })
}

fn handles(tensors: &[Tensor]) -> Vec<*mut C_tensor> {
    tensors.iter().map(handle).collect()
}

/// The type that matrix products and convolutions compute in. Weights, losses and norms stay f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// No casting.
    F32,
    /// bfloat16 under autocast.
    Bf16,
}

impl Precision {
    /// The type itself.
    pub fn kind(self) -> Kind {
        match self {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        }
    }
}

/// Runs `f` with autocast to bf16 on `device` where `precision` asks for it, and without autocast otherwise.
///
/// Calls may be nested; the cached bf16 copies of the weights live until the outermost call returns, so a whole step
/// (forward of every micro-batch) belongs in one call. The former state comes back even when `f` panics.
pub fn autocast<T>(device: Device, precision: Precision, f: impl FnOnce() -> T) -> T {
    struct Exit(i32, bool);
    impl Drop for Exit {
        fn drop(&mut self) {
            // SAFETY: no pointers; changes this thread's autocast state only.
            let message = unsafe { te_autocast_exit(self.0, self.1) };
            debug_assert!(message.is_null());
        }
    }
    let cuda = i32::from(device.is_cuda());
    let mut was = false;
    // SAFETY: `was` outlives the call.
    check(unsafe { te_autocast_enter(cuda, precision == Precision::Bf16, &mut was) })
        .expect("switching autocast cannot fail for the CPU or CUDA");
    let _exit = Exit(cuda, was);
    f()
}

/// The type that autocast makes products on `device` compute in; `None` while it is off.
pub fn autocast_kind(device: Device) -> Option<Kind> {
    // SAFETY: no pointers; reads this thread's state.
    unsafe { te_autocast_is_on(i32::from(device.is_cuda())) }.then_some(Kind::BFloat16)
}

/// The numbers of one AdamW update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// One AdamW step over all `params` in place, by libtorch's fused kernel (CPU and CUDA).
///
/// `exp_avgs` and `exp_avg_sqs` have the shapes of `params`; `steps` holds one f32 scalar tensor a parameter, which
/// counts the steps and is advanced **by the caller** before this call, as PyTorch's own optimiser does (one tensor may
/// stand for all). Where `found_inf`, an f32 scalar tensor on the same device, is 1, nothing changes: a step with
/// non-finite gradients is skipped without the host ever waiting for the device.
///
/// # Errors
/// When shapes, layouts in memory, devices or types of a parameter, its gradient and its moments differ.
pub fn fused_adamw(
    params: &[Tensor],
    grads: &[Tensor],
    exp_avgs: &[Tensor],
    exp_avg_sqs: &[Tensor],
    steps: &[Tensor],
    adamw: AdamW,
    found_inf: Option<&Tensor>,
) -> Result<(), TchError> {
    let n = params.len();
    if [grads.len(), exp_avgs.len(), exp_avg_sqs.len(), steps.len()] != [n; 4] {
        return Err(TchError::Shape(format!(
            "fused_adamw: {n} parameters, {} gradients, {} and {} moments, {} steps",
            grads.len(),
            exp_avgs.len(),
            exp_avg_sqs.len(),
            steps.len()
        )));
    }
    if n == 0 {
        return Ok(());
    }
    let (p, g, m, v, s) =
        (handles(params), handles(grads), handles(exp_avgs), handles(exp_avg_sqs), handles(steps));
    // SAFETY: each list holds n live tensors, borrowed for the call.
    check(unsafe {
        te_fused_adamw(
            p.as_ptr(),
            g.as_ptr(),
            m.as_ptr(),
            v.as_ptr(),
            s.as_ptr(),
            n as i64,
            adamw.lr,
            adamw.betas.0,
            adamw.betas.1,
            adamw.weight_decay,
            adamw.eps,
            found_inf.map_or(std::ptr::null_mut(), handle),
        )
    })
}

/// The 2-norm over all elements of all `tensors` (on one device): an f32 scalar tensor on that device, so that reading
/// it is the only synchronisation.
///
/// # Errors
/// When the list is empty or spans devices.
pub fn global_norm(tensors: &[Tensor]) -> Result<Tensor, TchError> {
    if tensors.is_empty() {
        return Err(TchError::Shape("global_norm of no tensors".into()));
    }
    let list = handles(tensors);
    // SAFETY: the list holds live tensors; `norm` receives a new handle.
    made(|norm| unsafe { te_global_norm(list.as_ptr(), list.len() as i64, norm) })
}

/// Multiplies every tensor in place by `factor`, a scalar tensor on the same device.
///
/// # Errors
/// When devices differ.
pub fn scale_(tensors: &[Tensor], factor: &Tensor) -> Result<(), TchError> {
    if tensors.is_empty() {
        return Ok(());
    }
    let list = handles(tensors);
    // SAFETY: live tensors, borrowed for the call.
    check(unsafe { te_scale(list.as_ptr(), list.len() as i64, handle(factor)) })
}

/// Takes the gradients off `params` and gives their memory back: the next ones take their place instead of being added to zeros.
pub fn drop_grads(params: &[Tensor]) {
    let list = handles(params);
    // SAFETY: live tensors, borrowed for the call.
    check(unsafe { te_drop_grads(list.as_ptr(), list.len() as i64) })
        .expect("any tensor can be without a gradient");
}

/// Moves every average towards its value: `average += weight * (value - average)`.
///
/// # Errors
/// When lengths, shapes or devices differ.
pub fn lerp_(averages: &[Tensor], values: &[Tensor], weight: f64) -> Result<(), TchError> {
    if averages.len() != values.len() {
        return Err(TchError::Shape(format!(
            "lerp_: {} averages, {} values",
            averages.len(),
            values.len()
        )));
    }
    if averages.is_empty() {
        return Ok(());
    }
    let (a, v) = (handles(averages), handles(values));
    // SAFETY: both lists hold n live tensors, borrowed for the call.
    check(unsafe { te_lerp(a.as_ptr(), v.as_ptr(), a.len() as i64, weight) })
}

/// Helpers of this crate's tests.
#[cfg(test)]
mod testing {
    use tch::{Device, Kind, Tensor};

    /// Normal draws, f32.
    pub fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    /// The largest difference.
    pub fn largest(a: &Tensor, b: &Tensor) -> f64 {
        (a.to_kind(Kind::Float) - b.to_kind(Kind::Float)).abs().max().double_value(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn autocast_computes_products_in_bf16_and_restores_the_state_after_a_panic() {
        let a = Tensor::randn([4, 4], (Kind::Float, Device::Cpu));
        let kind = autocast(Device::Cpu, Precision::Bf16, || a.matmul(&a).kind());
        assert_eq!(kind, Kind::BFloat16);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            autocast(Device::Cpu, Precision::Bf16, || panic!("inside"))
        }));
        assert!(panicked.is_err());
        assert_eq!(a.matmul(&a).kind(), Kind::Float);
        let inner = autocast(Device::Cpu, Precision::Bf16, || {
            autocast(Device::Cpu, Precision::F32, || a.matmul(&a).kind())
        });
        assert_eq!(inner, Kind::Float);
    }

    #[test]
    fn global_norm_is_the_norm_of_everything_laid_end_to_end() {
        let tensors = [Tensor::from_slice(&[3f32, 0.0]), Tensor::from_slice(&[4f32])];
        assert!((global_norm(&tensors).unwrap().double_value(&[]) - 5.0).abs() < 1e-6);
        assert!(global_norm(&[]).is_err());
    }

    #[test]
    fn lerp_and_scale_work_in_place() {
        let a = [Tensor::from_slice(&[0f32, 10.0])];
        lerp_(&a, &[Tensor::from_slice(&[10f32, 10.0])], 0.1).unwrap();
        assert_eq!(Vec::<f32>::try_from(&a[0]).unwrap(), [1.0, 10.0]);
        scale_(&a, &Tensor::from(0.5f32)).unwrap();
        assert_eq!(Vec::<f32>::try_from(&a[0]).unwrap(), [0.5, 5.0]);
        assert!(lerp_(&a, &[], 0.1).is_err());
    }

    #[test]
    fn a_dropped_gradient_is_gone_and_the_next_one_counts_from_nothing() {
        let x = Tensor::from_slice(&[1f32, 2.0]).set_requires_grad(true);
        for _ in 0..2 {
            (&x * 3.0).sum(Kind::Float).backward();
            assert_eq!(Vec::<f32>::try_from(&x.grad()).unwrap(), [3.0, 3.0]);
            drop_grads(&[x.shallow_clone()]);
            assert!(!x.grad().defined());
        }
    }

    #[test]
    fn gradients_and_moments_that_do_not_lie_as_their_parameter_are_refused_and_nothing_changes() {
        let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
        let adamw = AdamW { lr: 1.0, betas: (0.9, 0.98), eps: 1e-6, weight_decay: 0.0 };
        let update = |grad: Tensor, moment: Tensor| {
            let (p, steps) = ([zeros(&[2, 3])], [Tensor::from(1f32)]);
            let done = fused_adamw(&p, &[grad], &[zeros(&[2, 3])], &[moment], &steps, adamw, None);
            (done, p[0].abs().sum(Kind::Float).double_value(&[]))
        };
        let ones = zeros(&[2, 3]) + 1.0;
        for (grad, moment) in [
            (zeros(&[1]) + 1.0, zeros(&[2, 3])),
            (ones.copy(), zeros(&[2])),
            ((zeros(&[3, 2]) + 1.0).tr(), zeros(&[2, 3])),
            (ones.to_kind(Kind::Double), zeros(&[2, 3])),
        ] {
            let (done, sum) = update(grad, moment);
            assert!(done.unwrap_err().to_string().contains("is not as its parameter"));
            assert_eq!(sum, 0.0);
        }
        let (done, sum) = update(ones, zeros(&[2, 3]));
        done.unwrap();
        assert!(sum > 5.0, "{sum}");
    }
}
