//! The contrastive loss over several ranks is that of the whole batch on one.

use std::rc::Rc;

use crate::on_ranks::on_ranks;
use tch::{Device, Tensor, no_grad};
use torch_ext::distributed::{Ddp, ProcessGroup, Reduce};
use uta_data::{Batch, Item, Label};
use uta_train::{Mode, Recipe, Task, build};

const RECIPE: &str = r#"
    task = "contrastive"
    [model]
    image_size = 16
    patch_size = 4
    width = 16
    depth = 2
    heads = 2
    hidden = 32
    out = 16
    [model.text]
    context_length = 12
    vocab_size = 1000
    width = 16
    heads = 2
    layers = 1
    out = 16
    [contrastive]
    label_smoothing = 0.1
    [data]
    train = ["none"]
    [train]
    steps = 1
    batch = 12
    device = "cpu"
"#;

/// Pairs `from..to` of an endless set.
fn pairs(from: usize, to: usize) -> Batch {
    let items = (from..to).map(|i| Item {
        key: i.to_string(),
        label: Label::Captions(vec![format!("picture {}", i * 37 % 101)]),
        position: i as u64,
        index: i,
    });
    let pixels = (from..to).flat_map(|i| (0..768).map(move |p| (i * 53 + p * p * 7 + p / 3) as u8));
    let (items, pixels) = (items.collect(), pixels.collect());
    Batch { index: 0, size: 16, pixels, items, targets: vec![], rejected: vec![], epoch: 0.0 }
}

fn task(group: &Rc<ProcessGroup>) -> Box<dyn Task> {
    let recipe = Recipe::from_table(RECIPE.parse().unwrap()).unwrap();
    build(&recipe, Device::Cpu, group).unwrap()
}

fn tensors(task: &dyn Task) -> Vec<Tensor> {
    task.parameters().into_iter().map(|p| p.tensor).collect()
}

#[test]
fn the_loss_of_shared_batches_and_its_gradients_are_those_of_the_whole_batch() {
    let name = "ranks::the_loss_of_shared_batches_and_its_gradients_are_those_of_the_whole_batch";
    on_ranks(name, 2, 60, |group| {
        let (ours, alone) = (task(&group), task(&ProcessGroup::single()));
        let ddp = Ddp::new(&group, &tensors(ours.as_ref())).unwrap();
        for step in 0..2 {
            let whole = alone.forward(&pairs(step * 12, step * 12 + 12), Mode::Train).unwrap();
            whole.loss.backward();
            let first = step * 12 + group.rank() * 6;
            let share = ours.forward(&pairs(first, first + 6), Mode::Train).unwrap();
            ddp.backward(&share.loss, true).unwrap();

            let mut means = vec![share.loss.detach()];
            means.extend(share.metrics.into_iter().map(|(_, value)| value));
            let mut means = Tensor::stack(&means, 0);
            group.all_reduce(&mut means, Reduce::Mean).unwrap();
            let mut wanted = vec![whole.loss.detach()];
            wanted.extend(whole.metrics.into_iter().map(|(_, value)| value));
            let off = (means - Tensor::stack(&wanted, 0)).abs().max().double_value(&[]);
            assert!(off < 1e-6, "step {step}: loss and metrics {off} off");
            for (p, q) in tensors(ours.as_ref()).iter().zip(tensors(alone.as_ref())) {
                let off = (p.grad() - q.grad()).abs().max().double_value(&[]);
                let size = q.grad().abs().max().double_value(&[]);
                // Of the tensor's largest gradient, where that is above 1. Products of 6 samples and of 12 sum in orders of
                // their own, on every CPU others: some thirty units in f32's last place.
                assert!(off < 4e-6 * size.max(1.0) && size > 0.0, "step {step}: {off} of {size}");
                for mut grad in [p.grad(), q.grad()] {
                    let _ = grad.zero_();
                }
            }
        }
    });
}

#[test]
fn validation_batches_of_unequal_lengths_give_the_whole_loss_too() {
    let name = "ranks::validation_batches_of_unequal_lengths_give_the_whole_loss_too";
    on_ranks(name, 3, 60, |group| {
        let (ours, alone) = (task(&group), task(&ProcessGroup::single()));
        let whole = no_grad(|| alone.forward(&pairs(0, 7), Mode::Validate)).unwrap();
        // 4, 3 and no samples.
        let (from, to) = [(0, 4), (4, 7), (7, 7)][group.rank()];
        let share = no_grad(|| ours.forward(&pairs(from, to), Mode::Validate)).unwrap();
        let weight = (to - from) as f64 / 7.0;
        let mut loss = match to > from {
            true => share.loss * weight,
            false => Tensor::from(0f32),
        };
        group.all_reduce(&mut loss, Reduce::Sum).unwrap();
        let off = (loss.double_value(&[]) - whole.loss.double_value(&[])).abs();
        assert!(off < 1e-6, "{off}");
    });
}
