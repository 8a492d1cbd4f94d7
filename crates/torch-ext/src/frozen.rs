//! Linear layers of a network that nothing is learned in: weights cast once, on the CPU prepacked too, and what follows fused
//! in. Not differentiable; the C++ side is `cpp/frozen.cpp`.

use std::ffi::{CStr, c_char};
use std::ptr::null_mut;
use std::sync::LazyLock;

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::{handle, made};

unsafe extern "C" {
    fn te_cpu_has_tiles() -> bool;
    fn te_cpu_has_bf16() -> bool;
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
}

/// Whether this CPU has tile registers for bf16 products (AMX), the system lets this process use them, and oneDNN does so: it
/// is told otherwise by `ONEDNN_MAX_CPU_ISA`, and some builds of libtorch lack its small products.
pub fn cpu_has_tiles() -> bool {
    // SAFETY: no arguments; asks the system for a permission, which is harmless to repeat.
    static TILES: LazyLock<bool> = LazyLock::new(|| unsafe { te_cpu_has_tiles() });
    *TILES
}

/// Whether this CPU has products of bf16 numbers, and oneDNN uses them (`ONEDNN_MAX_CPU_ISA` may tell it otherwise): on x86 in
/// registers of 512 bits and wider, on ARM with its instructions for them. Without, libtorch computes them number by number,
/// dozens of times slower than in f32.
pub fn cpu_has_bf16() -> bool {
    // SAFETY: no arguments; asks oneDNN.
    static BF16: LazyLock<bool> = LazyLock::new(|| unsafe { te_cpu_has_bf16() });
    *BF16
}

/// Activation that follows a linear layer at once.
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

/// A linear layer whose weight lies in memory as it is read, so that no call has to cast it, nor oneDNN to reorder it.
#[derive(Debug)]
pub struct PackedLinear {
    weight: Tensor, // [out, in] on a GPU, opaque on the CPU
    bias: Option<Tensor>,
    kind: Kind,
}

impl PackedLinear {
    /// Packs copies of `weight` `[out, in]` and `bias` `[out]` as `kind`, f32 or bf16.
    ///
    /// # Errors
    /// When oneDNN can't do it.
    pub fn new(
        weight: &Tensor,
        bias: Option<&Tensor>,
        kind: Kind,
    ) -> Result<PackedLinear, TchError> {
        let cast = |t: &Tensor| t.detach().to_kind(kind).contiguous();
        let mut weight = cast(weight);
        if weight.device() == Device::Cpu {
            weight = made(|out| {
                // SAFETY: a live tensor, borrowed for the call; `out` receives a new handle.
                unsafe { te_pack_linear(handle(&weight), out) }
            })?;
        }
        Ok(PackedLinear { weight, bias: bias.map(cast), kind })
    }

    /// `act(x W^T + b)` of x `[..., in]`, which is cast to the packed kind: `[..., out]`.
    ///
    /// # Errors
    /// When shapes differ.
    pub fn forward(&self, x: &Tensor, act: Activation) -> Result<Tensor, TchError> {
        let x = x.to_kind(self.kind);
        let on_gpu = x.device() != Device::Cpu;
        // Fused into an f32 product without AVX-512, oneDNN's activations take longer than a pass of their own.
        let narrow = cfg!(target_arch = "x86_64") && !cpu_has_bf16();
        let apart = on_gpu || (narrow && self.kind == Kind::Float);
        if apart && act != Activation::None {
            let mut x = self.forward(&x, Activation::None)?;
            return if act == Activation::Gelu { x.f_gelu_("none") } else { x.f_silu_() };
        }
        if on_gpu {
            return self.product(&x);
        }
        made(|out| {
            // SAFETY: live tensors (or null), borrowed for the call, and a static string; `out` receives a new handle.
            unsafe {
                te_packed_linear(
                    handle(&x),
                    handle(&self.weight),
                    self.bias(),
                    act.name().as_ptr(),
                    out,
                )
            }
        })
    }

    /// `other * (x W^T + b)`, other `[..., out]`; both are cast to the packed kind.
    ///
    /// # Errors
    /// When shapes differ.
    pub fn times(&self, x: &Tensor, other: &Tensor) -> Result<Tensor, TchError> {
        let (x, other) = (x.to_kind(self.kind), other.to_kind(self.kind));
        if x.device() != Device::Cpu {
            return self.product(&x)?.f_mul_(&other);
        }
        made(|out| {
            // SAFETY: as in `forward`.
            unsafe {
                te_packed_linear_times(
                    handle(&x),
                    handle(&other),
                    handle(&self.weight),
                    self.bias(),
                    out,
                )
            }
        })
    }

    /// On a GPU.
    fn product(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_linear(&self.weight, self.bias.as_ref())
    }

    fn bias(&self) -> *mut C_tensor {
        self.bias.as_ref().map_or(null_mut(), handle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{largest, random};

    #[test]
    fn packed_layers_equal_plain_ones() {
        let (x, w, b) = (random(&[3, 5, 32]), random(&[48, 32]), random(&[48]));
        let other = random(&[3, 5, 48]);
        for (kind, tolerance) in [(Kind::Float, 1e-4), (Kind::BFloat16, 0.2)] {
            for bias in [Some(&b), None] {
                let packed = match PackedLinear::new(&w, bias, kind) {
                    // Plain layers do without.
                    Err(_) if kind == Kind::BFloat16 && !cpu_has_bf16() => continue,
                    packed => packed.unwrap(),
                };
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
}
