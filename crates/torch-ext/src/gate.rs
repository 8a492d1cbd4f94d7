//! SwiGLU's gate in one pass over memory.

use std::ffi::c_char;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::{handle, made};

unsafe extern "C" {
    fn te_silu_times(a: *mut C_tensor, b: *mut C_tensor, out: *mut *mut C_tensor) -> *mut c_char;
}

/// `silu(a) * b` of two tensors of one shape, both f32 or both bf16, on the CPU. Differentiable; computed in f32.
///
/// # Errors
/// When shapes, kinds or devices aren't so.
pub fn silu_times(a: &Tensor, b: &Tensor) -> Result<Tensor, TchError> {
    // SAFETY: live tensors, borrowed for the call; `out` receives a new handle.
    made(|out| unsafe { te_silu_times(handle(a), handle(b), out) })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn the_gate_and_its_gradients_are_the_plain_ones_over_the_whole_range() {
        let random = || Tensor::randn([40, 33], (Kind::Float, Device::Cpu));
        let (a, b, weight) = (random() * 20.0, random(), random());
        for (kind, tolerance) in [(Kind::Float, 2e-6), (Kind::BFloat16, 0.02)] {
            let leaves =
                || [&a, &b].map(|t| t.to_kind(kind).detach().copy().set_requires_grad(true));
            let run = |gate: &dyn Fn(&Tensor, &Tensor) -> Tensor| {
                let [a, b] = leaves();
                let out = gate(&a, &b);
                (&out * weight.to_kind(kind)).sum(Kind::Float).backward();
                [out.detach(), a.grad(), b.grad()].map(|t| t.to_kind(Kind::Float))
            };
            let plain = run(&|a, b| a.silu() * b);
            let fused = run(&|a, b| silu_times(a, b).expect("shapes fit"));
            for (plain, fused) in plain.iter().zip(&fused) {
                let scale = plain.abs().max().double_value(&[]);
                let difference = (plain - fused).abs().max().double_value(&[]);
                assert!(difference <= tolerance * scale, "{kind:?}: {difference} of {scale}");
            }
        }
        let far =
            Tensor::from_slice(&[f32::NEG_INFINITY, -1e30, -200.0, 0.0, 200.0, 1e30, f32::NAN]);
        let gated = silu_times(&far, &far.ones_like()).expect("shapes fit");
        let gated = Vec::<f32>::try_from(&gated).expect("f32");
        assert!(gated[1].abs() < 1e-6 && gated[2].abs() < 1e-6 && gated[3] == 0.0, "{gated:?}");
        assert!(gated[4] == 200.0 && gated[5] == 1e30 && gated[6].is_nan(), "{gated:?}");
        assert!(silu_times(&a, &b.to_kind(Kind::BFloat16)).is_err());
    }
}
