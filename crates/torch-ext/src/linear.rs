//! Linear layers of one input in bf16 on the CPU, for learning. The C++ side is `cpp/linear.cpp`.

use std::ffi::c_char;
use std::ptr::null_mut;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::{handle, made};

unsafe extern "C" {
    fn te_linear(
        x: *mut C_tensor,
        weights: *const *mut C_tensor,
        biases: *const *mut C_tensor,
        n: i64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// `x W^T + b` of each of `layers` (weight `[out, in]` f32, bias `[out]` f32) side by side in bf16, `[..., in]` to
/// `[..., the sum of out]`, on the CPU: what autocast computes, in one product, with a faster gradient of the weights, which is
/// f32 and doesn't depend on the number of threads.
///
/// # Errors
/// When shapes, kinds or devices aren't so.
pub fn linear(x: &Tensor, layers: &[(&Tensor, Option<&Tensor>)]) -> Result<Tensor, TchError> {
    let weights: Vec<_> = layers.iter().map(|(weight, _)| handle(weight)).collect();
    let biases: Vec<_> = layers.iter().map(|(_, bias)| bias.map_or(null_mut(), handle)).collect();
    let n = layers.len() as i64;
    // SAFETY: n live tensors (or null) in each list, borrowed for the call; `out` receives a new handle.
    made(|out| unsafe { te_linear(handle(x), weights.as_ptr(), biases.as_ptr(), n, out) })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::testing::{largest, random};
    use crate::{Precision, autocast};

    #[test]
    fn its_output_and_gradients_are_autocasts() {
        // Widths and lengths that are and aren't made of whole tiles; narrower, wider and square weights; several layers.
        for (n, inside, outs) in [
            (37, 24, vec![80]),
            (64, 80, vec![24]),
            (50, 13, vec![30]),
            (40, 30, vec![13]),
            (48, 32, vec![32]),
            (33, 40, vec![40, 40, 40]),
            (75, 100, vec![70, 130]),
            (20, 100, vec![30, 20]),
        ] {
            let total: i64 = outs.iter().sum();
            let x = random(&[2, n, inside]);
            let layers: Vec<_> =
                outs.iter().map(|&out| (random(&[out, inside]), random(&[out]))).collect();
            let weight = random(&[2, n, total]).to_kind(Kind::BFloat16);
            // The second of several layers has no bias.
            type Layers<'a> = &'a [(&'a Tensor, Option<&'a Tensor>)];
            let run = |f: &dyn Fn(&Tensor, Layers) -> Tensor| {
                let leaf = |t: &Tensor| t.detach().copy().set_requires_grad(true);
                let x = leaf(&x);
                let layers: Vec<_> = layers.iter().map(|(w, b)| (leaf(w), leaf(b))).collect();
                let views: Vec<_> =
                    layers.iter().zip(0..).map(|((w, b), i)| (w, (i != 1).then_some(b))).collect();
                let y = autocast(Device::Cpu, Precision::Bf16, || f(&x, &views));
                assert_eq!((y.kind(), y.size()), (Kind::BFloat16, vec![2, n, total]));
                (&y * &weight).sum(Kind::Float).backward();
                let grads = views.iter().flat_map(|(w, b)| [Some(*w), *b]).flatten();
                let grads = grads.map(Tensor::grad);
                [y.detach().to_kind(Kind::Float), x.grad()].into_iter().chain(grads).collect()
            };
            let plain: Vec<Tensor> = run(&|x, layers| {
                let each: Vec<_> = layers.iter().map(|(w, b)| x.linear(w, *b)).collect();
                Tensor::cat(&each, -1)
            });
            let ours = run(&|x, layers| linear(x, layers).expect("shapes fit"));
            assert_eq!(plain.len(), ours.len());
            for (plain, ours) in plain.iter().zip(&ours) {
                assert_eq!((ours.kind(), ours.size()), (Kind::Float, plain.size()));
                let scale = plain.abs().max().double_value(&[]);
                let difference = largest(plain, ours);
                assert!(
                    difference <= 0.008 * scale,
                    "{n} {inside} {outs:?}: {difference} of {scale}"
                );
            }
        }
        // Parameters that don't learn, and an input that does.
        let x = random(&[3, 4]).set_requires_grad(true);
        let (w, b) = (random(&[5, 4]), random(&[5]));
        linear(&x, &[(&w, Some(&b))]).expect("shapes fit").sum(Kind::Float).backward();
        assert!(
            largest(&x.grad(), &w.sum_dim_intlist([0i64].as_slice(), false, Kind::Float)) < 0.05
        );
        assert!(linear(&x, &[]).is_err());
        assert!(linear(&x, &[(&random(&[5, 6]), None)]).is_err());
        assert!(linear(&x, &[(&w, Some(&random(&[4])))]).is_err());
        assert!(linear(&x, &[(&w.to_kind(Kind::BFloat16), None)]).is_err());
    }
}
