//! Fused loops on a GPU beside the same on the CPU. Not run where there is none:
//!
//!     UTA_FUSE_GPU=1 cargo test -p torch-ext --test it cuda:: -- --ignored

use tch::{Device, Kind, Tensor};
use torch_ext::{Norm, fuses, gate, layer_norm, rotate};

const GPU: Device = Device::Cuda(0);

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

/// Values that `f` makes of the leaves, and their gradients, on the CPU and on the GPU.
fn on_both(leaves: &[Tensor], f: impl Fn(&[Tensor]) -> Vec<Tensor>) -> [Vec<Tensor>; 2] {
    [Device::Cpu, GPU].map(|device| {
        let leaves: Vec<Tensor> =
            leaves.iter().map(|t| t.to_device(device).detach().set_requires_grad(true)).collect();
        let outs = f(&leaves);
        let mut loss = Tensor::zeros([], (Kind::Float, device));
        for (i, out) in outs.iter().enumerate() {
            // Not the same everywhere: a plain sum would hide most of a norm's gradient.
            let weight = Tensor::arange(out.numel() as i64, (Kind::Float, device));
            let weight = (weight * 0.7 + i as f64).sin().view(out.size().as_slice());
            loss += (out.to_kind(Kind::Float) * weight).sum(Kind::Float);
        }
        loss.backward();
        let found = outs.iter().map(Tensor::detach).chain(leaves.iter().map(Tensor::grad));
        found.map(|t| t.to_device(Device::Cpu)).collect()
    })
}

/// The largest difference, as a share of the largest number.
fn apart(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!((a.kind(), a.size()), (b.kind(), b.size()));
    let [a, b] = [a, b].map(|t| t.to_kind(Kind::Double));
    let largest = a.abs().max().double_value(&[]);
    (a - b).abs().max().double_value(&[]) / largest.max(1e-30)
}

fn check(what: &str, kind: Kind, [cpu, gpu]: [Vec<Tensor>; 2]) {
    for (i, (cpu, gpu)) in cpu.iter().zip(&gpu).enumerate() {
        let found = apart(cpu, gpu);
        let allowed = if kind == Kind::BFloat16 { 2e-2 } else { 2e-5 };
        assert!(found <= allowed, "{what} {kind:?}, tensor {i}: {found:e}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn norms_of_sums_are_the_cpus() {
    let _turn = crate::generator();
    for d in [8, 96, 384, 768, 1408, 2052, 6144] {
        assert!(fuses(GPU, d) && !fuses(GPU, d + 2));
        for kind in [Kind::Float, Kind::BFloat16] {
            let leaves = [
                random(&[37, 11, d]) * 2.0 + 1.0,
                random(&[37, 11, d]).to_kind(kind),
                random(&[d]),
                random(&[d]),
            ];
            for branched in [false, true] {
                let run = |l: &[Tensor]| {
                    let norm = Norm { weight: &l[2], bias: &l[3], eps: 1e-6 };
                    let branch = branched.then_some(&l[1]);
                    let (total, normed) = layer_norm(&l[0], branch, norm, kind).unwrap();
                    if branched {
                        vec![total, normed]
                    } else {
                        vec![&normed + (&l[1] * 0.0).to_kind(kind)]
                    }
                };
                check(&format!("norm {d} {branched}"), kind, on_both(&leaves, run));
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gates_are_the_cpus() {
    let _turn = crate::generator();
    for n in [8, 340, 2048, 6144] {
        for kind in [Kind::Float, Kind::BFloat16] {
            let leaves = [
                (random(&[5, 70, n]) * 6.0).to_kind(kind),
                random(&[5, 70, n]).to_kind(kind),
                random(&[n]),
                random(&[n]),
            ];
            for (normed, joint) in [(false, false), (true, false), (true, true)] {
                let run = |l: &[Tensor]| {
                    let norm = normed.then_some(Norm { weight: &l[2], bias: &l[3], eps: 1e-6 });
                    let out = match joint {
                        true => gate(&Tensor::cat(&l[..2], -1), None, norm),
                        false => gate(&l[0], Some(&l[1]), norm),
                    };
                    let unused = (&l[2] * 0.0 + &l[3] * 0.0).to_kind(kind);
                    vec![out.unwrap() + unused]
                };
                check(&format!("gate {n} {normed} {joint}"), kind, on_both(&leaves, run));
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn rotations_are_the_cpus_whatever_the_order_of_heads_and_tokens() {
    let _turn = crate::generator();
    for kind in [Kind::Float, Kind::BFloat16] {
        for samples in [1, 6] {
            let (wide, angles) =
                (random(&[6, 21, 3 * 4 * 16]).to_kind(kind), random(&[samples, 21, 8]));
            let turns = Tensor::stack(&[angles.cos(), angles.sin()], -1).flatten(-2, -1);
            let run = |l: &[Tensor]| {
                // The second of three parts side by side, as of queries, keys and values.
                let x = l[0].chunk(3, -1).remove(1).unflatten(-1, [4, 16]);
                vec![rotate(&x, &turns.to_device(x.device())).unwrap() * 1.0]
            };
            check("rotate", kind, on_both(&[wide], run));
        }
    }
}

/// A fault there comes back as an error.
#[test]
#[ignore = "needs a GPU"]
fn rows_that_are_not_whole_vectors_are_refused() {
    let _turn = crate::generator();
    let (x, w) = (random(&[3, 6]).to_device(GPU), random(&[6]).to_device(GPU));
    assert!(layer_norm(&x, None, Norm { weight: &w, bias: &w, eps: 1e-6 }, Kind::Float).is_err());
    assert!(gate(&x, Some(&x), None).is_err());
    let cpu = random(&[3, 8]);
    let norm = Norm { weight: &random(&[8]), bias: &random(&[8]), eps: 1e-6 };
    assert!(layer_norm(&cpu.to_device(GPU), Some(&cpu), norm, Kind::Float).is_err());
}
