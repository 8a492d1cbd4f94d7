//! The layer norm of an f32 residual stream in one pass over memory. The C++ side is `cpp/norm.cpp`.

use std::ffi::c_char;
use std::ptr::null_mut;

use tch::{Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::{Norm, handle, made};

unsafe extern "C" {
    fn te_add_layer_norm(
        x: *mut C_tensor,
        branch: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        eps: f64,
        bf16: bool,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn te_layer_norm(
        x: *mut C_tensor,
        branch: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        eps: f64,
        bf16: bool,
        total: *mut *mut C_tensor,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// Adds `branch` to `x` `[..., D]` in place, and returns the layer norm of the sum as `kind`, bf16 or f32. `x` is f32,
/// contiguous, and on a device where it [`fuses`](crate::fuses()). Not differentiable.
///
/// # Errors
/// When shapes, kinds or devices aren't so.
pub fn add_layer_norm(
    x: &mut Tensor,
    branch: Option<&Tensor>,
    norm: Norm,
    kind: Kind,
) -> Result<Tensor, TchError> {
    let Norm { weight, bias, eps } = norm;
    let (bf16, branch) = (kind == Kind::BFloat16, branch.map_or(null_mut(), handle));
    made(|out| {
        // SAFETY: live tensors (or null), borrowed for the call; `x`, which is written, mutably.
        unsafe {
            te_add_layer_norm(handle(x), branch, handle(weight), handle(bias), eps, bf16, out)
        }
    })
}

/// `x + branch` `[..., D]`, f32, and the layer norm of it as `kind`, bf16 or f32: what autocast makes of them for the product
/// that follows, in one pass over memory, and one pass back. Where there is no branch the sum is `x` itself. `x` is f32,
/// contiguous, and on a device where it [`fuses`](crate::fuses()). Gradients are f32 but for a bf16 branch's, and repeat
/// themselves to the bit on every number of threads.
///
/// # Errors
/// When shapes, kinds or devices aren't so.
pub fn layer_norm(
    x: &Tensor,
    branch: Option<&Tensor>,
    norm: Norm,
    kind: Kind,
) -> Result<(Tensor, Tensor), TchError> {
    let Norm { weight, bias, eps } = norm;
    let bf16 = kind == Kind::BFloat16;
    let mut total = null_mut();
    let normed = made(|out| {
        let (branch, weight, bias) =
            (branch.map_or(null_mut(), handle), handle(weight), handle(bias));
        // SAFETY: live tensors (or null), borrowed for the call; `total` and `out` receive new handles.
        unsafe { te_layer_norm(handle(x), branch, weight, bias, eps, bf16, &mut total, out) }
    })?;
    let total = match branch {
        // SAFETY: the call succeeded, so that `total` is a handle that nothing else owns.
        Some(_) => unsafe { Tensor::from_ptr(total) },
        None => x.shallow_clone(),
    };
    Ok((total, normed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{largest, random};

    #[test]
    fn the_norm_of_a_sum_equals_the_sum_and_then_the_norm() {
        for d in [8i64, 16, 48, 100, 768] {
            let (x, branch) = (random(&[3, 7, d]) * 3.0 + 1.0, random(&[3, 7, d]));
            let (w, b) = (random(&[d]), random(&[d]));
            for (branch, kind) in [
                (None, Kind::Float),
                (Some(&branch), Kind::Float),
                (Some(&branch.to_kind(Kind::BFloat16)), Kind::BFloat16),
                (Some(&branch), Kind::BFloat16),
            ] {
                let sum = match branch {
                    Some(branch) => &x + branch.to_kind(Kind::Float),
                    None => x.copy(),
                };
                let mut stream = x.copy();
                let norm = Norm { weight: &w, bias: &b, eps: 1e-6 };
                let found = add_layer_norm(&mut stream, branch, norm, kind).unwrap();
                let (total, again) = layer_norm(&x, branch, norm, kind).unwrap();
                assert_eq!((&total, &again), (&sum, &found));
                assert_eq!((stream, found.kind()), (sum.shallow_clone(), kind));
                let expected = sum.layer_norm([d], Some(&w), Some(&b), 1e-6, false);
                if kind == Kind::BFloat16 {
                    // Rounded to nearest as libtorch rounds: a unit of the last place where the f32 values differ.
                    assert!(largest(&found, &expected.to_kind(kind)) < 0.04, "{d}");
                } else {
                    assert!(largest(&found, &expected) < 2e-5, "{d}");
                }
            }
        }
        let mut wide = random(&[2, 8]).to_kind(Kind::Double);
        let norm = Norm { weight: &random(&[8]), bias: &random(&[8]), eps: 1e-6 };
        assert!(add_layer_norm(&mut wide, None, norm, Kind::Float).is_err());
        let x = random(&[2, 8]);
        assert!(layer_norm(&x, Some(&random(&[1, 8])), norm, Kind::Float).is_err());
    }

    #[test]
    fn nothing_that_is_not_finite_is_hidden_by_rounding() {
        let mut x = Tensor::from_slice(&[1f32, f32::NAN, 2.0, 3.0]);
        let (w, b) = (Tensor::from_slice(&[1f32; 4]), Tensor::from_slice(&[0f32; 4]));
        let norm = Norm { weight: &w, bias: &b, eps: 1e-6 };
        let normed = add_layer_norm(&mut x, None, norm, Kind::BFloat16).unwrap();
        assert!(normed.isnan().all().int64_value(&[]) == 1);
    }

    #[test]
    fn its_gradients_are_those_of_the_plain_sum_and_norm() {
        for (d, kind, branched, tolerance) in [
            (16i64, Kind::Float, true, 1e-4),
            (100, Kind::Float, false, 1e-4),
            (768, Kind::BFloat16, true, 0.1),
        ] {
            let (x, branch) = (random(&[5, 9, d]) * 2.0 - 1.0, random(&[5, 9, d]).to_kind(kind));
            let (w, b) = (random(&[d]), random(&[d]));
            let (down, weight) = (random(&[5, 9, d]), random(&[5, 9, d]).to_kind(kind));
            // What takes the norm alone, and what takes the sum as well.
            for stream in [false, true] {
                let run = |f: &dyn Fn(&Tensor, &Tensor, Norm) -> (Tensor, Tensor)| {
                    let leaves =
                        [&x, &branch, &w, &b].map(|t| t.detach().copy().set_requires_grad(true));
                    let [x, branch, weight_, bias] = &leaves;
                    let (total, normed) = f(x, branch, Norm { weight: weight_, bias, eps: 1e-6 });
                    let mut loss = (normed.to_kind(kind) * &weight).sum(Kind::Float);
                    if stream {
                        loss += (total * &down).sum(Kind::Float);
                    }
                    loss.backward();
                    leaves.map(|t| t.grad())
                };
                let plain = run(&|x, branch, norm| {
                    let total = if branched { x + branch } else { x.shallow_clone() };
                    let Norm { weight, bias, eps } = norm;
                    let normed = total.layer_norm([d], Some(weight), Some(bias), eps, false);
                    (total, normed)
                });
                let ours = run(&|x, branch, norm| {
                    layer_norm(x, branched.then_some(branch), norm, kind).expect("shapes fit")
                });
                for (i, (plain, ours)) in plain.iter().zip(&ours).enumerate() {
                    if i == 1 && !branched {
                        assert!(!ours.defined());
                        continue;
                    }
                    assert_eq!((ours.kind(), ours.size()), (plain.kind(), plain.size()));
                    let worst = largest(plain, ours);
                    assert!(worst < tolerance, "{d} {kind:?} {i}: {worst}");
                }
            }
        }
        // What takes the sum alone.
        let x = random(&[3, 8]).set_requires_grad(true);
        let branch = random(&[3, 8]).to_kind(Kind::BFloat16).set_requires_grad(true);
        let norm = Norm { weight: &random(&[8]), bias: &random(&[8]), eps: 1e-6 };
        let (total, _) = layer_norm(&x, Some(&branch), norm, Kind::BFloat16).unwrap();
        total.sum(Kind::Float).backward();
        assert_eq!(x.grad(), x.ones_like());
        assert_eq!(branch.grad(), branch.ones_like());
    }

    #[test]
    fn no_rows_have_a_norm_without_rows_and_weights_gradients_of_nothing() {
        let x = random(&[0, 16]).set_requires_grad(true);
        let [w, b] = [0, 1].map(|_| random(&[16]).set_requires_grad(true));
        let norm = Norm { weight: &w, bias: &b, eps: 1e-6 };
        let (_, out) = layer_norm(&x, None, norm, Kind::Float).unwrap();
        out.sum(Kind::Float).backward();
        assert_eq!(out.size(), [0, 16]);
        assert_eq!(w.grad().abs().sum(Kind::Float).double_value(&[]), 0.0);
    }
}
