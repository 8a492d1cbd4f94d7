//! A checkpointed part of a network is the part itself, and keeps its input alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tch::{Device, Kind, TchError, Tensor};
use torch_ext::{Precision, autocast, caught, checkpoint};

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

/// Two layers with dropout between them.
fn part(x: &Tensor, weights: &[Tensor; 2]) -> Tensor {
    let [v, w] = weights;
    x.linear::<&Tensor>(v, None).gelu("none").dropout(0.5, true).linear::<&Tensor>(w, None)
}

#[test]
fn outputs_and_gradients_are_those_without_it_to_the_bit_dropout_and_autocast_included() {
    let _turn = crate::generator();
    let x = random(&[6, 16]);
    let weights = [(); 2].map(|()| [random(&[32, 16]), random(&[16, 32])]);
    for precision in [Precision::F32, Precision::Bf16] {
        for inside in [true, false] {
            let run = |checkpointed: bool| {
                tch::manual_seed(3);
                let leaf = |t: &Tensor| t.copy().set_requires_grad(true);
                let x = leaf(&x);
                let weights = weights.each_ref().map(|pair| pair.each_ref().map(leaf));
                let loss = autocast(Device::Cpu, precision, || {
                    let mut y = x.shallow_clone();
                    for pair in &weights {
                        let shared = pair.each_ref().map(Tensor::shallow_clone);
                        y = match checkpointed {
                            true => checkpoint(&y, move |x| part(x, &shared)).unwrap(),
                            false => part(&y, &shared),
                        };
                    }
                    let loss = y.to_kind(Kind::Float).square().mean(Kind::Float);
                    if inside {
                        loss.backward();
                    }
                    loss
                });
                if !inside {
                    loss.backward();
                }
                let next = Tensor::rand([1], (Kind::Float, Device::Cpu));
                let gradients = [&x].into_iter().chain(weights.as_flattened()).map(Tensor::grad);
                [loss.detach(), next].into_iter().chain(gradients).collect::<Vec<_>>()
            };
            let (plain, ours) = (run(false), run(true));
            assert!(plain[2].abs().max().double_value(&[]) > 0.0);
            assert_eq!(ours, plain, "{precision:?}, backward inside of autocast: {inside}");
        }
    }
}

#[test]
fn the_part_runs_twice_and_is_dropped_with_the_loss() {
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(100, Ordering::Relaxed);
        }
    }
    let (count, x) = (
        Arc::new(AtomicUsize::new(0)),
        Tensor::from_slice(&[1f32, 2.0, 3.0]).set_requires_grad(true),
    );
    let counted = Dropped(count.clone());
    let y = checkpoint(&x, move |x| {
        counted.0.fetch_add(1, Ordering::Relaxed);
        x * 2.0
    });
    let loss = y.unwrap().sum(Kind::Float);
    assert_eq!(count.load(Ordering::Relaxed), 1);
    loss.backward();
    assert_eq!(count.load(Ordering::Relaxed), 2);
    assert_eq!(Vec::<f32>::try_from(x.grad()).unwrap(), [2.0; 3]);
    drop(loss);
    assert_eq!(count.load(Ordering::Relaxed), 102);
}

#[test]
fn a_panic_and_an_input_without_gradient_are_errors() {
    let x = Tensor::from_slice(&[1f32, 2.0, 3.0]);
    assert!(checkpoint(&x, |x| x * 2.0).is_err());
    let x = x.set_requires_grad(true);
    let error = checkpoint(&x, |_| panic!("inside")).unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
}

#[test]
fn what_fails_inside_is_told_as_libtorch_says_it_in_both_passes() {
    let _turn = crate::generator();
    let x = random(&[2, 3]).set_requires_grad(true);
    let of_matmul = |error: TchError| {
        let TchError::Torch(line) = &error else { panic!("{error}") };
        assert!(line.starts_with("mat1 and mat2 shapes") && !line.contains('\n'), "{line}");
    };
    of_matmul(checkpoint(&x, |x| x.matmul(x)).unwrap_err());
    let calls = AtomicUsize::new(0);
    let part = move |x: &Tensor| match calls.fetch_add(1, Ordering::Relaxed) {
        0 => x * 2.0,
        _ => x.matmul(x),
    };
    let y = checkpoint(&x, part).unwrap().sum(Kind::Float);
    of_matmul(caught(|| y.backward()).unwrap_err());
}
