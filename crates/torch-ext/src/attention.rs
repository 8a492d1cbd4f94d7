//! Softmax attention on the CPU, forward and backward. The C++ side is `cpp/attention.cpp`.

use std::ffi::c_char;
use std::ptr::null_mut;
use std::sync::LazyLock;

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::{cpu_has_tiles, handle, made};

unsafe extern "C" {
    fn te_attention(
        qkv: *const *mut C_tensor,
        n: i64,
        turns: *mut C_tensor,
        heads: i64,
        wanted: i64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// Whether [`attention`] takes queries, keys and values of `kind` on `device`, and is the faster way: on CPUs, f32 where there
/// are registers of 256 bits, and bf16 where there are tiles. `UTA_FUSE_ATTENTION=0` says no everywhere: what other
/// processors do can then be tried on any.
pub fn attends(device: Device, kind: Kind) -> bool {
    static WANTED: LazyLock<bool> =
        LazyLock::new(|| std::env::var_os("UTA_FUSE_ATTENTION").is_none_or(|set| set != "0"));
    #[cfg(target_arch = "x86_64")]
    let wide = is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    let wide = false;
    match (device, kind) {
        (Device::Cpu, Kind::Float) => *WANTED && wide,
        (Device::Cpu, Kind::BFloat16) => *WANTED && cpu_has_tiles(),
        _ => false,
    }
}

/// Softmax attention, scaled by the root of the head width W, of queries, keys and values as products leave them: one tensor
/// `[B, T, 3 H W]`, or three `[B, T, H W]`. What the first `wanted` tokens find among all, `[B, wanted, H W]`. Queries and
/// keys are turned before by `turns` `[B or 1, T, W]`, as by [`rotate()`](crate::rotate()). On the CPU, in f32, or in bf16
/// where it [`attends`]; differentiable in `qkv`; scores and sums are f32, and no scores are kept.
///
/// # Errors
/// When shapes, kinds or devices aren't so, or the CPU has no tiles for bf16.
pub fn attention(
    qkv: &[&Tensor],
    turns: Option<&Tensor>,
    heads: i64,
    wanted: i64,
) -> Result<Tensor, TchError> {
    let parts: Vec<_> = qkv.iter().map(|part| handle(part)).collect();
    let (n, turns) = (parts.len() as i64, turns.map_or(null_mut(), handle));
    // SAFETY: n live tensors and one more (or null), borrowed for the call; `out` receives a new handle.
    made(|out| unsafe { te_attention(parts.as_ptr(), n, turns, heads, wanted, out) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotate;
    use crate::testing::{largest, random};

    /// By f32 products of whole matrices.
    fn plain(qkv: &Tensor, turns: Option<&Tensor>, heads: i64, wanted: i64) -> Tensor {
        let qkv = qkv.to_kind(Kind::Float).unflatten(-1, [3, heads, -1]);
        let turn = |x: Tensor| match turns {
            Some(turns) => rotate(&x, turns).unwrap(),
            None => x.transpose(1, 2),
        };
        let (q, k) = (turn(qkv.select(2, 0)), turn(qkv.select(2, 1)));
        let scale = (q.size()[3] as f64).powf(-0.5);
        let scores = q.narrow(2, 0, wanted).matmul(&k.transpose(-2, -1)) * scale;
        let v = qkv.select(2, 2).transpose(1, 2);
        scores.softmax(-1, Kind::Float).matmul(&v).transpose(1, 2).flatten(2, 3)
    }

    /// Attention over queries, keys and values that lie in three tensors.
    fn apart(qkv: &Tensor, turns: Option<&Tensor>, heads: i64, wanted: i64) -> Tensor {
        let parts = qkv.chunk(3, -1);
        let parts: Vec<_> = parts.iter().collect();
        attention(&parts, turns, heads, wanted).unwrap()
    }

    #[test]
    fn it_and_its_gradient_are_those_of_whole_matrices() {
        // Tokens and widths that are and aren't whole tiles, more queries than are looked at together, fewer than tokens.
        for (b, t, wanted, heads, width, turns_for) in [
            (2, 64, 64, 2, 64, 2),
            (3, 155, 155, 3, 64, 3),
            (2, 37, 37, 2, 88, 0),
            (2, 50, 1, 2, 32, 1),
            (1, 601, 601, 1, 16, 1),
            (1, 300, 290, 2, 64, 0),
            (2, 5, 5, 3, 6, 2),
        ] {
            let qkv = random(&[b, t, 3 * heads * width]) * 1.5;
            let turns = (turns_for > 0).then(|| {
                let angles = random(&[turns_for, t, width / 2]) * 3.0;
                Tensor::stack(&[angles.cos(), angles.sin()], -1).flatten(-2, -1)
            });
            let weight = random(&[b, wanted, heads * width]);
            for (kind, at_most, mean_at_most) in
                [(Kind::Float, 1e-5, 1e-6), (Kind::BFloat16, 0.02, 2e-3)]
            {
                if kind == Kind::BFloat16 && !cpu_has_tiles() {
                    assert!(attention(&[&qkv.to_kind(kind)], None, heads, wanted).is_err());
                    continue;
                }
                let (qkv, weight) = (qkv.to_kind(kind), weight.to_kind(kind));
                let run = |f: &dyn Fn(&Tensor) -> Tensor| {
                    let qkv = qkv.detach().copy().set_requires_grad(true);
                    let out = f(&qkv);
                    (&out * &weight).sum(Kind::Float).backward();
                    [out.detach(), qkv.grad()].map(|t| t.to_kind(Kind::Float))
                };
                let turns = turns.as_ref();
                let expected = run(&|qkv| plain(qkv, turns, heads, wanted));
                let ours = run(&|qkv| attention(&[qkv], turns, heads, wanted).unwrap());
                for (expected, ours) in expected.iter().zip(&ours) {
                    let scale = expected.abs().max().double_value(&[]);
                    let mean = (expected - ours).abs().mean(Kind::Float).double_value(&[]) / scale;
                    let worst = largest(expected, ours) / scale;
                    assert!(
                        worst < at_most && mean < mean_at_most,
                        "{kind:?} {b} {t} {heads} {width}: {worst} {mean}"
                    );
                }
                assert_eq!(run(&|qkv| apart(qkv, turns, heads, wanted)), ours);
            }
        }
        let odd = Tensor::zeros([1, 4, 3 * 6], (Kind::Float, Device::Cpu));
        assert!(attention(&[&odd], None, 1, 4).is_ok());
        assert!(attention(&[&odd], None, 2, 4).is_err());
        assert!(attention(&[&odd], None, 1, 5).is_err());
        assert!(attention(&[&odd], Some(&random(&[1, 3, 6])), 1, 4).is_err());
        assert!(attention(&[&odd.to_kind(Kind::Double)], None, 1, 4).is_err());
        assert!(attention(&[&odd, &odd], None, 1, 4).is_err());
        assert!(attention(&[&odd, &odd, &odd.narrow(1, 0, 3)], None, 1, 4).is_err());
    }

    #[test]
    fn what_is_not_a_number_stays_so_in_its_own_sample() {
        for kind in [Kind::Float, Kind::BFloat16] {
            if kind == Kind::BFloat16 && !cpu_has_tiles() {
                continue;
            }
            let qkv = random(&[2, 9, 3 * 32]);
            let _ = qkv.get(0).get(3).fill_(f64::NAN);
            let out = attention(&[&qkv.to_kind(kind)], None, 1, 9).unwrap();
            assert!(out.get(0).isnan().all().int64_value(&[]) == 1);
            assert!(out.get(1).isfinite().all().int64_value(&[]) == 1);
        }
    }
}
