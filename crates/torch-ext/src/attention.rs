//! Softmax attention of a joint product, forward and backward, on CPUs with tile registers. The C++ side is
//! `cpp/attention.cpp`.

use std::ffi::c_char;
use std::ptr::null_mut;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::{handle, made};

unsafe extern "C" {
    fn te_attention(
        qkv: *mut C_tensor,
        turns: *mut C_tensor,
        heads: i64,
        wanted: i64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// Softmax attention, scaled by the root of the head width W, of queries, keys and values `[B, T, 3 H W]` as one product
/// leaves them, bf16: what the first `wanted` tokens find among all, `[B, wanted, H W]`. Queries and keys are turned before
/// by `turns` `[B or 1, T, W]`, as by [`rotate()`](crate::rotate()). Only where [`cpu_has_tiles`](crate::cpu_has_tiles);
/// differentiable in `qkv`; scores and sums are f32, and no scores are kept.
///
/// # Errors
/// When shapes, kinds or devices aren't so, or the CPU has no tiles.
pub fn attention(
    qkv: &Tensor,
    turns: Option<&Tensor>,
    heads: i64,
    wanted: i64,
) -> Result<Tensor, TchError> {
    let turns = turns.map_or(null_mut(), handle);
    // SAFETY: live tensors (or null), borrowed for the call; `out` receives a new handle.
    made(|out| unsafe { te_attention(handle(qkv), turns, heads, wanted, out) })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::testing::{largest, random};
    use crate::{cpu_has_tiles, rotate};

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

    #[test]
    fn it_and_its_gradient_are_those_of_whole_matrices() {
        if !cpu_has_tiles() {
            let qkv = random(&[1, 2, 12]).to_kind(Kind::BFloat16);
            assert!(attention(&qkv, None, 1, 2).is_err());
            return;
        }
        // Tokens and widths that are and aren't whole tiles, more queries than are looked at together, fewer than tokens.
        for (b, t, wanted, heads, width, turns_for) in [
            (2, 64, 64, 2, 64, 2),
            (3, 155, 155, 3, 64, 3),
            (2, 37, 37, 2, 88, 0),
            (2, 50, 1, 2, 32, 1),
            (1, 601, 601, 1, 16, 1),
            (1, 300, 290, 2, 64, 0),
        ] {
            let qkv = (random(&[b, t, 3 * heads * width]) * 1.5).to_kind(Kind::BFloat16);
            let turns = (turns_for > 0).then(|| {
                let angles = random(&[turns_for, t, width / 2]) * 3.0;
                Tensor::stack(&[angles.cos(), angles.sin()], -1).flatten(-2, -1)
            });
            let weight = random(&[b, wanted, heads * width]).to_kind(Kind::BFloat16);
            let run = |f: &dyn Fn(&Tensor) -> Tensor| {
                let qkv = qkv.detach().copy().set_requires_grad(true);
                let out = f(&qkv);
                (&out * &weight).sum(Kind::Float).backward();
                [out.detach(), qkv.grad()].map(|t| t.to_kind(Kind::Float))
            };
            let expected = run(&|qkv| plain(qkv, turns.as_ref(), heads, wanted));
            let ours = run(&|qkv| attention(qkv, turns.as_ref(), heads, wanted).unwrap());
            for (expected, ours) in expected.iter().zip(&ours) {
                let scale = expected.abs().max().double_value(&[]);
                let mean = (expected - ours).abs().mean(Kind::Float).double_value(&[]) / scale;
                let worst = largest(expected, ours) / scale;
                assert!(worst < 0.02 && mean < 2e-3, "{b} {t} {heads} {width}: {worst} {mean}");
            }
        }
        let odd = Tensor::zeros([1, 4, 3 * 6], (Kind::BFloat16, Device::Cpu));
        assert!(attention(&odd, None, 2, 4).is_err());
        assert!(attention(&odd, None, 1, 5).is_err());
        assert!(attention(&odd, Some(&random(&[1, 3, 6])), 1, 4).is_err());
        assert!(attention(&odd.to_kind(Kind::Float), None, 1, 4).is_err());
    }

    #[test]
    fn what_is_not_a_number_stays_so_in_its_own_sample() {
        if !cpu_has_tiles() {
            return;
        }
        let qkv = random(&[2, 9, 3 * 32]);
        let _ = qkv.get(0).get(3).fill_(f64::NAN);
        let out = attention(&qkv.to_kind(Kind::BFloat16), None, 1, 9).unwrap();
        assert!(out.get(0).isnan().all().int64_value(&[]) == 1);
        assert!(out.get(1).isfinite().all().int64_value(&[]) == 1);
    }
}
