//! SwiGLU's gate, and the layer norm behind it, in one pass over memory. The C++ side is `cpp/gate.cpp`.

use std::ffi::c_char;
use std::ptr::null_mut;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::{handle, made};

unsafe extern "C" {
    fn te_gate(
        x: *mut C_tensor,
        y: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        eps: f64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// Parameters of a layer norm, f32 `[N]`, and what is added to the variance.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// Factors of the normed values.
    pub weight: &'a Tensor,
    /// Terms that are added to them then.
    pub bias: &'a Tensor,
    /// Added to the variance.
    pub eps: f64,
}

/// `norm(silu(a) * b)` of `[a, b]` `[..., 2 N]` side by side or, where there is a `b`, of two tensors `[..., N]`; all f32 or
/// all bf16, on a device where it [`fuses`](crate::fuses()). Differentiable; computed in f32; what lies between gate and norm
/// isn't kept.
///
/// # Errors
/// When shapes, kinds or devices aren't so.
pub fn gate(a: &Tensor, b: Option<&Tensor>, norm: Option<Norm>) -> Result<Tensor, TchError> {
    let b = b.map_or(null_mut(), handle);
    let (weight, bias) =
        norm.map_or((null_mut(), null_mut()), |n| (handle(n.weight), handle(n.bias)));
    let eps = norm.map_or(0.0, |norm| norm.eps);
    // SAFETY: live tensors (or null), borrowed for the call; `out` receives a new handle.
    made(|out| unsafe { te_gate(handle(a), b, weight, bias, eps, out) })
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::testing::random;

    #[test]
    fn the_gate_and_its_gradients_are_the_plain_ones_over_the_whole_range() {
        let (a, b, weight) = (random(&[40, 33]) * 20.0, random(&[40, 33]), random(&[40, 33]));
        let (scale, shift) = (random(&[33]), random(&[33]));
        for (kind, joint, normed, tolerance) in [
            (Kind::Float, false, false, 2e-6),
            (Kind::Float, true, true, 1e-5),
            (Kind::BFloat16, true, false, 0.02),
            (Kind::BFloat16, false, true, 0.02),
        ] {
            let run = |gate: &dyn Fn(&Tensor, &Tensor, Option<Norm>) -> Tensor| {
                let leaf = |t: &Tensor| t.detach().copy().set_requires_grad(true);
                let leaves =
                    [leaf(&a.to_kind(kind)), leaf(&b.to_kind(kind)), leaf(&scale), leaf(&shift)];
                let [a, b, scale, shift] = &leaves;
                let norm = Norm { weight: scale, bias: shift, eps: 1e-6 };
                let out = gate(a, b, normed.then_some(norm));
                assert_eq!((out.kind(), out.size()), (kind, vec![40, 33]));
                (&out * weight.to_kind(kind)).sum(Kind::Float).backward();
                let learnt = if normed { 4 } else { 2 };
                let grads = leaves.iter().take(learnt).map(Tensor::grad);
                [out.detach()].into_iter().chain(grads).collect::<Vec<_>>()
            };
            // The plain one in f32 all the way, rounded at the end.
            let plain = run(&|a, b, norm| {
                let hidden = a.to_kind(Kind::Float).silu() * b.to_kind(Kind::Float);
                let hidden = match norm {
                    Some(n) => hidden.layer_norm([33], Some(n.weight), Some(n.bias), n.eps, false),
                    None => hidden,
                };
                hidden.to_kind(kind)
            });
            let fused = run(&|a, b, norm| match joint {
                true => gate(&Tensor::cat(&[a, b], -1), None, norm).expect("shapes fit"),
                false => gate(a, Some(b), norm).expect("shapes fit"),
            });
            assert_eq!(plain.len(), fused.len());
            for (plain, fused) in plain.iter().zip(&fused) {
                let scale = plain.abs().max().double_value(&[]);
                let difference = (plain - fused).abs().max().double_value(&[]);
                assert!(difference <= tolerance * scale, "{kind:?}: {difference} of {scale}");
            }
        }
        let far =
            Tensor::from_slice(&[f32::NEG_INFINITY, -1e30, -200.0, 0.0, 200.0, 1e30, f32::NAN]);
        let gated = gate(&far, Some(&far.ones_like()), None).expect("shapes fit");
        let gated = Vec::<f32>::try_from(&gated).expect("f32");
        assert!(gated[1].abs() < 1e-6 && gated[2].abs() < 1e-6 && gated[3] == 0.0, "{gated:?}");
        assert!(gated[4] == 200.0 && gated[5] == 1e30 && gated[6].is_nan(), "{gated:?}");
        assert!(gate(&a, Some(&b.to_kind(Kind::BFloat16)), None).is_err());
        assert!(gate(&a, None, None).is_err(), "33 values aren't two of one width");
        let norm = Norm { weight: &random(&[8]), bias: &random(&[8]), eps: 1e-6 };
        assert!(gate(&a, Some(&b), Some(norm)).is_err());
    }
}
