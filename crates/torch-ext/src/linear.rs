//! A linear layer in bf16 on the CPU, for learning. The C++ side is `cpp/linear.cpp`.

use std::ffi::c_char;
use std::ptr::null_mut;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::{handle, made};

unsafe extern "C" {
    fn te_linear(
        x: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// `x W^T + b` in bf16, `[..., in]` to `[..., out]`, on the CPU: what autocast computes, with a faster gradient of the weight
/// `[out, in]`. Autocast must be on, and keeps the casts of the weights.
///
/// # Errors
/// When shapes or devices aren't so, or autocast is off.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
    let bias = bias.map_or(null_mut(), handle);
    // SAFETY: live tensors (or null), borrowed for the call; `out` receives a new handle.
    made(|out| unsafe { te_linear(handle(x), handle(weight), bias, out) })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::testing::{largest, random};
    use crate::{Precision, autocast};

    #[test]
    fn its_output_and_gradients_are_autocasts() {
        // Widths and lengths that are and aren't made of whole tiles; narrower, wider and square weights.
        for (n, inside, out) in
            [(37, 24, 80), (64, 80, 24), (50, 13, 30), (40, 30, 13), (48, 32, 32)]
        {
            let (x, w, b) = (random(&[2, n, inside]), random(&[out, inside]), random(&[out]));
            let weight = random(&[2, n, out]).to_kind(Kind::BFloat16);
            let run = |layer: &dyn Fn(&Tensor, &Tensor, &Tensor) -> Tensor| {
                let leaves = [&x, &w, &b].map(|t| t.detach().copy().set_requires_grad(true));
                let [x, w, b] = &leaves;
                let y = autocast(Device::Cpu, Precision::Bf16, || layer(x, w, b));
                assert_eq!((y.kind(), y.size()), (Kind::BFloat16, vec![2, n, out]));
                (&y * &weight).sum(Kind::Float).backward();
                let [x, w, b] = leaves.map(|t| t.grad());
                [y.detach().to_kind(Kind::Float), x, w, b]
            };
            let plain = run(&|x, w, b| x.linear(w, Some(b)));
            let ours = run(&|x, w, b| linear(x, w, Some(b)).expect("shapes fit"));
            for (plain, ours) in plain.iter().zip(&ours) {
                assert_eq!((ours.kind(), ours.size()), (Kind::Float, plain.size()));
                let scale = plain.abs().max().double_value(&[]);
                let difference = largest(plain, ours);
                assert!(difference <= 0.004 * scale, "{n} {inside} {out}: {difference} of {scale}");
            }
        }
        let (x, w) = (random(&[3, 4]), random(&[5, 4]).set_requires_grad(true));
        autocast(Device::Cpu, Precision::Bf16, || linear(&x, &w, None).expect("shapes fit"))
            .sum(Kind::Float)
            .backward();
        assert!(
            largest(
                &w.grad(),
                &x.sum_dim_intlist([0i64].as_slice(), false, Kind::Float).expand([5, 4], false)
            ) < 0.05
        );
        assert!(linear(&x, &w, None).is_err(), "autocast is off");
        autocast(Device::Cpu, Precision::Bf16, || {
            assert!(linear(&x, &random(&[5, 6]), None).is_err());
        });
    }
}
