//! Training on a GPU beside the CPU, and by itself. Not run where there is none:
//!
//!     cargo test -p uta-train --test it cuda:: -- --ignored --test-threads 1

use crate::small::{batch, recipe, teacher};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::{Precision, autocast};
use uta_train::{Distill, Ema, Mode, Optimizer, Task};

const GPU: Device = Device::Cuda(0);
const STEPS: usize = 60;

/// A run on `device` from the weights that the CPU draws.
struct Run {
    device: Device,
    precision: Precision,
    task: Distill,
    optimizer: Optimizer,
}

impl Run {
    fn new(precision: &str, checkpointed: bool, device: Device) -> Run {
        let recipe = recipe(precision, 1, checkpointed);
        let [cpu, task] = [Device::Cpu, device].map(|device| {
            let teacher = teacher(1, device);
            teacher.copy_from(&crate::small::teacher(1, Device::Cpu), "visual.").unwrap();
            tch::manual_seed(1);
            crate::small::task(&recipe, teacher, device)
        });
        no_grad(|| {
            for (from, to) in cpu.parameters().iter().zip(task.parameters()) {
                assert_eq!(from.name, to.name);
                to.tensor.shallow_clone().copy_(&from.tensor);
            }
        });
        let optimizer = Optimizer::new(&task.parameters(), &recipe.optim);
        Run { device, precision: recipe.train.precision.into(), task, optimizer }
    }

    /// Forward, backward and update of a batch; the loss, where it was computed.
    fn step(&mut self, i: usize) -> Tensor {
        let loss = autocast(self.device, self.precision, || {
            let loss = self.task.forward(&batch(i), Mode::Train).unwrap().loss;
            loss.backward();
            loss.detach()
        });
        let _norm = self.optimizer.step(1e-3).unwrap();
        loss
    }
}

fn curve(precision: &str, checkpointed: bool, device: Device) -> Vec<f64> {
    let mut run = Run::new(precision, checkpointed, device);
    let losses: Vec<Tensor> = (0..STEPS).map(|i| run.step(i)).collect();
    losses.iter().map(|loss| loss.double_value(&[])).collect()
}

fn furthest(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
#[ignore = "needs a GPU"]
fn a_gpu_learns_as_the_cpu_does() {
    let _turn = crate::generator();
    for (precision, tolerance) in [("f32", 1e-5), ("bf16", 1e-2)] {
        let [cpu, gpu] = [Device::Cpu, GPU].map(|device| curve(precision, false, device));
        assert!(cpu[STEPS - 1] < cpu[0] - 0.1, "it learns: {cpu:?}");
        let off = furthest(&cpu, &gpu);
        println!("{precision}: CPU and GPU are {off:.1e} apart");
        assert!(off < tolerance, "{precision}: {off:e}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_gpu_repeats_itself_to_the_bit_with_checkpointed_blocks_too() {
    let _turn = crate::generator();
    for precision in ["f32", "bf16"] {
        let first = curve(precision, false, GPU);
        for (what, again) in
            [("again", curve(precision, false, GPU)), ("checkpointed", curve(precision, true, GPU))]
        {
            let off = furthest(&first, &again);
            println!("{precision}: {what} is {off:.1e} off");
            assert_eq!(off, 0.0, "{precision} {what}");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_step_never_waits_for_the_gpu() {
    let _turn = crate::generator();
    for (precision, checkpointed) in [("bf16", false), ("bf16", true), ("f32", false)] {
        let mut run = Run::new(precision, checkpointed, GPU);
        let ema = Ema::new(&run.task.parameters(), 0.99);
        for i in 0..3 {
            let _loss = run.step(i);
        }
        torch_ext::without_waiting(|| {
            let _loss = run.step(3);
            ema.update(3).unwrap();
        });
    }
    // Reading a number is such a call.
    let number = Tensor::ones([], (Kind::Float, GPU));
    let read = torch_ext::without_waiting(|| number.f_double_value(&[]));
    assert!(read.is_err());
    assert!(torch_ext::peak_memory(GPU).unwrap() > 0);
}
