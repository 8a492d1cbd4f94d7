//! The layer norm of an f32 residual stream in one pass over memory, on the CPU. The C++ side is `cpp/norm.cpp`.

use std::ffi::c_char;
use std::ptr::null_mut;

use tch::{Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::{handle, made};

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
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        eps: f64,
        bf16: bool,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// Adds `branch` to `x` `[..., D]` in place, and returns the layer norm of the sum as `kind`, bf16 or f32. `x` is f32,
/// contiguous and on the CPU; `weight` and `bias` are f32 `[D]`. Not differentiable.
///
/// # Errors
/// When shapes, kinds or devices aren't so.
pub fn add_layer_norm(
    x: &mut Tensor,
    branch: Option<&Tensor>,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    kind: Kind,
) -> Result<Tensor, TchError> {
    let bf16 = kind == Kind::BFloat16;
    let branch = branch.map_or(null_mut(), handle);
    made(|out| {
        // SAFETY: live tensors (or null), borrowed for the call; `x`, which is written, mutably.
        unsafe {
            te_add_layer_norm(handle(x), branch, handle(weight), handle(bias), eps, bf16, out)
        }
    })
}

/// The layer norm of `x` `[..., D]` as `kind`, bf16 or f32: what autocast makes of it for the product that follows, without
/// the f32 copy. `x` is f32, contiguous and on the CPU; `weight` and `bias` are f32 `[D]`. Gradients are f32, whatever comes
/// in, and don't depend on the number of threads.
///
/// # Errors
/// When shapes, kinds or devices aren't so.
pub fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    kind: Kind,
) -> Result<Tensor, TchError> {
    let bf16 = kind == Kind::BFloat16;
    // SAFETY: live tensors, borrowed for the call; `out` receives a new handle.
    made(|out| unsafe { te_layer_norm(handle(x), handle(weight), handle(bias), eps, bf16, out) })
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
                let found = add_layer_norm(&mut stream, branch, &w, &b, 1e-6, kind).unwrap();
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
        assert!(
            add_layer_norm(&mut wide, None, &random(&[8]), &random(&[8]), 1e-6, Kind::Float)
                .is_err()
        );
    }

    #[test]
    fn nothing_that_is_not_finite_is_hidden_by_rounding() {
        let mut x = Tensor::from_slice(&[1f32, f32::NAN, 2.0, 3.0]);
        let (w, b) = (Tensor::from_slice(&[1f32; 4]), Tensor::from_slice(&[0f32; 4]));
        let normed = add_layer_norm(&mut x, None, &w, &b, 1e-6, Kind::BFloat16).unwrap();
        assert!(normed.isnan().all().int64_value(&[]) == 1);
    }

    #[test]
    fn its_gradients_are_those_of_the_plain_norm() {
        for (d, kind, tolerance) in
            [(16i64, Kind::Float, 1e-4), (100, Kind::Float, 1e-4), (768, Kind::BFloat16, 0.1)]
        {
            let (x, w, b) = (random(&[5, 9, d]) * 2.0 - 1.0, random(&[d]), random(&[d]));
            let weight = random(&[5, 9, d]).to_kind(kind);
            let gradients = |norm: &dyn Fn(&Tensor, &Tensor, &Tensor) -> Tensor| {
                let leaves = [&x, &w, &b].map(|t| t.detach().copy().set_requires_grad(true));
                let [x, w, b] = &leaves;
                (norm(x, w, b).to_kind(kind) * &weight).sum(Kind::Float).backward();
                leaves.map(|t| t.grad())
            };
            let plain = gradients(&|x, w, b| x.layer_norm([d], Some(w), Some(b), 1e-6, false));
            let ours = gradients(&|x, w, b| layer_norm(x, w, b, 1e-6, kind).expect("shapes fit"));
            for (plain, ours) in plain.iter().zip(&ours) {
                assert_eq!((ours.kind(), ours.size()), (Kind::Float, plain.size()));
                assert!(largest(plain, ours) < tolerance, "{d} {kind:?}: {}", largest(plain, ours));
            }
        }
    }
}
