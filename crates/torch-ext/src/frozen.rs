//! Layers of a network that nothing is learned in, on the CPU: prepacked weights, and operations fused with what follows.
//! None of them is differentiable; the C++ side is `cpp/frozen.cpp`.

use std::ffi::{CStr, c_char};
use std::ptr::null_mut;
use std::sync::LazyLock;

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::{handle, made};

unsafe extern "C" {
    fn te_cpu_has_tiles() -> bool;
    fn te_pack_linear(weight: *mut C_tensor, packed: *mut *mut C_tensor) -> *mut c_char;
    fn te_packed_linear(
        x: *mut C_tensor,
        packed: *mut C_tensor,
        bias: *mut C_tensor,
        act: *const c_char,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn te_packed_linear_times(
        x: *mut C_tensor,
        other: *mut C_tensor,
        packed: *mut C_tensor,
        bias: *mut C_tensor,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn te_add_layer_norm(
        x: *mut C_tensor,
        branch: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        eps: f64,
        bf16: bool,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// Whether this CPU has tile registers for bf16 products (AMX), and the system lets this process use them.
pub fn cpu_has_tiles() -> bool {
    // SAFETY: no arguments; asks the system for a permission, which is harmless to repeat.
    static TILES: LazyLock<bool> = LazyLock::new(|| unsafe { te_cpu_has_tiles() });
    *TILES
}

/// What follows a linear layer at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// GELU, by the error function.
    Gelu,
    /// `x sigmoid(x)`.
    Silu,
}

impl Activation {
    /// oneDNN's name.
    fn name(self) -> &'static CStr {
        match self {
            Activation::None => c"none",
            Activation::Gelu => c"gelu",
            Activation::Silu => c"swish",
        }
    }
}

/// A linear layer whose weight lies in memory as oneDNN reads it, so that no call has to reorder it.
#[derive(Debug)]
pub struct PackedLinear {
    weight: Tensor, // opaque
    bias: Option<Tensor>,
}

impl PackedLinear {
    /// Packs copies of `weight` `[out, in]` and `bias` `[out]` as `kind`, f32 or bf16.
    ///
    /// # Errors
    /// When they aren't on the CPU, or oneDNN can't do it.
    pub fn new(
        weight: &Tensor,
        bias: Option<&Tensor>,
        kind: Kind,
    ) -> Result<PackedLinear, TchError> {
        let cast = |t: &Tensor| t.detach().to_kind(kind).contiguous();
        if weight.device() != Device::Cpu {
            return Err(TchError::Shape("weights are packed on the CPU only".into()));
        }
        let weight = cast(weight);
        let weight = made(|out| {
            // SAFETY: a live tensor, borrowed for the call; `out` receives a new handle.
            unsafe { te_pack_linear(weight.as_ptr() as *mut C_tensor, out) }
        })?;
        Ok(PackedLinear { weight, bias: bias.map(cast) })
    }

    /// `act(x W^T + b)` of x `[..., in]` of the packed kind: `[..., out]`.
    ///
    /// # Errors
    /// When shapes or kinds differ.
    pub fn forward(&self, x: &Tensor, act: Activation) -> Result<Tensor, TchError> {
        made(|out| {
            // SAFETY: live tensors (or null), borrowed for the call, and a static string; `out` receives a new handle.
            unsafe {
                te_packed_linear(
                    handle(x),
                    handle(&self.weight),
                    self.bias(),
                    act.name().as_ptr(),
                    out,
                )
            }
        })
    }

    /// `other * (x W^T + b)`, other `[..., out]`.
    ///
    /// # Errors
    /// When shapes or kinds differ.
    pub fn times(&self, x: &Tensor, other: &Tensor) -> Result<Tensor, TchError> {
        made(|out| {
            // SAFETY: as in `forward`.
            unsafe {
                te_packed_linear_times(
                    handle(x),
                    handle(other),
                    handle(&self.weight),
                    self.bias(),
                    out,
                )
            }
        })
    }

    fn bias(&self) -> *mut C_tensor {
        self.bias.as_ref().map_or(null_mut(), handle)
    }
}

/// Adds `branch` to `x` `[..., D]` in place, and returns the layer norm of the sum as `kind`, bf16 or f32: one pass over
/// memory instead of four. `x` is f32, contiguous and on the CPU; `weight` and `bias` are f32 `[D]`.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn largest(a: &Tensor, b: &Tensor) -> f64 {
        (a.to_kind(Kind::Float) - b.to_kind(Kind::Float)).abs().max().double_value(&[])
    }

    #[test]
    fn packed_layers_equal_plain_ones() {
        let (x, w, b) = (random(&[3, 5, 32]), random(&[48, 32]), random(&[48]));
        let other = random(&[3, 5, 48]);
        for (kind, tolerance) in [(Kind::Float, 1e-4), (Kind::BFloat16, 0.2)] {
            for bias in [Some(&b), None] {
                let packed = PackedLinear::new(&w, bias, kind).unwrap();
                let plain = x.linear(&w, bias);
                let x = x.to_kind(kind);
                for (act, expected) in [
                    (Activation::None, plain.shallow_clone()),
                    (Activation::Gelu, plain.gelu("none")),
                    (Activation::Silu, plain.silu()),
                ] {
                    let found = packed.forward(&x, act).unwrap();
                    assert_eq!((found.kind(), found.size()), (kind, vec![3, 5, 48]));
                    assert!(largest(&found, &expected) < tolerance, "{kind:?} {act:?}");
                }
                let found = packed.times(&x, &other.to_kind(kind)).unwrap();
                assert!(largest(&found, &(&plain * &other)) < 3.0 * tolerance, "{kind:?}");
            }
        }
        let packed = PackedLinear::new(&w, None, Kind::Float).unwrap();
        assert!(packed.forward(&random(&[3, 31]), Activation::None).is_err());
    }

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
}
