//! The rotary embedding in one pass over memory.

use std::ffi::c_char;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::{handle, made};

unsafe extern "C" {
    fn te_rotate(x: *mut C_tensor, turns: *mut C_tensor, out: *mut *mut C_tensor) -> *mut c_char;
}

/// Turns pairs of neighbouring channels of x `[B, T, H, W]`, f32 or bf16, by the angles whose cosines and sines
/// are `turns` `[B or 1, T, W]`, f32: cos, sin, cos, ...; heads come first in the result, `[B, H, T, W]`. Differentiable in
/// x; computed in f32.
///
/// # Errors
/// When shapes, kinds or devices aren't so.
pub fn rotate(x: &Tensor, turns: &Tensor) -> Result<Tensor, TchError> {
    // SAFETY: live tensors, borrowed for the call; `out` receives a new handle.
    made(|out| unsafe { te_rotate(handle(x), handle(turns), out) })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn pairs_turn_as_complex_numbers_do_and_gradients_turn_back() {
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        for (batch, kind, tolerance) in
            [(1, Kind::Float, 1e-6), (3, Kind::Float, 1e-6), (3, Kind::BFloat16, 0.03)]
        {
            let (x, angles, weight) =
                (random(&[3, 5, 2, 8]), random(&[batch, 5, 4]), random(&[3, 2, 5, 8]));
            let x = x.to_kind(kind);
            let turns = Tensor::stack(&[angles.cos(), angles.sin()], -1).flatten(-2, -1);
            let gradient = |f: &dyn Fn(&Tensor) -> Tensor| {
                let x = x.detach().copy().set_requires_grad(true);
                let y = f(&x);
                (&y * weight.to_kind(kind)).sum(Kind::Float).backward();
                (y.detach().to_kind(Kind::Float), x.grad().to_kind(Kind::Float))
            };
            let plain = gradient(&|x| {
                let pairs = x.to_kind(Kind::Float).unflatten(-1, [-1, 2]).view_as_complex();
                let turns = turns.unflatten(-1, [-1, 2]).view_as_complex().unsqueeze(2);
                (pairs * turns).view_as_real().flatten(-2, -1).to_kind(kind).transpose(1, 2)
            });
            let fused = gradient(&|x| rotate(x, &turns).expect("shapes fit"));
            for (a, b) in [(&plain.0, &fused.0), (&plain.1, &fused.1)] {
                assert!((a - b).abs().max().double_value(&[]) <= tolerance, "{kind:?}");
            }
            // A part of a wider tensor, as of queries, keys and values in one.
            let wide = Tensor::cat(&[&x, &x, &x], 2);
            assert_eq!(
                rotate(&wide.narrow(2, 2, 2), &turns).expect("shapes fit").to_kind(Kind::Float),
                fused.0
            );
        }
        assert!(rotate(&random(&[1, 2, 3, 8]), &random(&[1, 3, 8])).is_err());
    }
}
