//! Collectives and data parallel gradients between real processes: each test starts this very binary again, once a rank.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::on_ranks::{DONE, free_port, on_ranks};
use tch::nn::{self, Module};
use tch::{Device, Kind, Tensor};
use torch_ext::distributed::{Ddp, DistError, ProcessGroup, Reduce};

fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.detach().reshape(-1)).unwrap()
}

fn near(a: &[f32], b: &[f32], tolerance: f32) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance)
}

#[test]
fn collectives_give_every_rank_the_same() {
    on_ranks("ranks::collectives_give_every_rank_the_same", 3, 60, |group| {
        let rank = group.rank() as f32;
        for (reduce, want) in [(Reduce::Sum, 3.0), (Reduce::Max, 2.0), (Reduce::Mean, 1.0)] {
            let mut x = Tensor::from_slice(&[rank, rank]);
            group.all_reduce(&mut x, reduce).unwrap();
            assert_eq!(floats(&x), [want, want], "{reduce:?}");
        }
        let mut whole = Tensor::from_slice(&[10i64.pow(group.rank() as u32)]);
        group.all_reduce(&mut whole, Reduce::Sum).unwrap();
        assert_eq!(whole.int64_value(&[0]), 111);

        let (a, b) = (Tensor::from_slice(&[rank + 5.0]), Tensor::from_slice(&[rank; 3]));
        let leaf = b.set_requires_grad(true);
        group.broadcast(&[a.shallow_clone(), leaf.shallow_clone()]).unwrap();
        assert_eq!((floats(&a), floats(&leaf)), (vec![5.0], vec![0.0; 3]));

        let rows = group.all_gather(&Tensor::from_slice(&[rank, -rank]).view([1, 2])).unwrap();
        assert_eq!(rows.size(), [3, 2]);
        assert_eq!(floats(&rows), [0.0, 0.0, 1.0, -1.0, 2.0, -2.0]);

        let mine = vec![b'x'; 2 * group.rank()];
        assert_eq!(group.exchange(&mine).unwrap(), [vec![], vec![b'x'; 2], vec![b'x'; 4]]);
        assert!(group.any(group.rank() == 1).unwrap() && !group.any(false).unwrap());
        group.barrier().unwrap();
    });
}

/// Loss of rank r: the sum over all gathered rows times (r + 1) (row number + 1).
#[test]
fn the_gradient_of_a_gathered_row_is_the_sum_of_what_all_ranks_have_for_it() {
    let name = "ranks::the_gradient_of_a_gathered_row_is_the_sum_of_what_all_ranks_have_for_it";
    on_ranks(name, 3, 60, |group| {
        let local = Tensor::ones([2, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let rows = group.all_gather(&(&local * 1.0)).unwrap();
        let weights = (Tensor::arange(6, (Kind::Float, Device::Cpu)) + 1.0).view([6, 1]);
        (rows * weights * (group.rank() as f64 + 1.0)).sum(Kind::Float).backward();
        let first = 2.0 * group.rank() as f32 + 1.0;
        // 1 + 2 + 3 ranks' factors.
        assert_eq!(floats(&local.grad().select(1, 0)), [6.0 * first, 6.0 * (first + 1.0)]);
    });
}

/// Two ranks and two micro-batches, against the whole batch at once.
#[test]
fn averaged_gradients_equal_those_of_one_process_with_accumulation_too() {
    let name = "ranks::averaged_gradients_equal_those_of_one_process_with_accumulation_too";
    on_ranks(name, 2, 60, |group| {
        let net = |seed| {
            tch::manual_seed(seed);
            let store = nn::VarStore::new(Device::Cpu);
            let layer = |name: &str, i, o| {
                nn::linear(store.root() / name, i, o, nn::LinearConfig::default())
            };
            let net = nn::seq()
                .add(layer("a", 16, 600))
                .add_fn(Tensor::tanh)
                .add(layer("b", 600, 600))
                .add_fn(Tensor::tanh)
                .add(layer("c", 600, 3));
            (store, net)
        };
        // Rank 1 begins with other weights, which rank 0's replace.
        let (ours, alone) = (net(7 + group.rank() as i64), net(7));
        let params = |store: &nn::VarStore| -> Vec<Tensor> {
            let mut all: Vec<_> = store.variables().into_iter().collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all.into_iter().map(|(_, tensor)| tensor).collect()
        };
        let (p, q) = (params(&ours.0), params(&alone.0));
        let ddp = Ddp::new(&group, &p).unwrap();
        for step in 0..3 {
            tch::manual_seed(100 + step);
            let x = Tensor::randn([8, 16], (Kind::Float, Device::Cpu));
            alone.1.forward(&x).square().mean(Kind::Float).backward();
            for part in 0..2 {
                let rows = x.narrow(0, part * 4 + group.rank() as i64 * 2, 2);
                let loss = ours.1.forward(&rows).square().mean(Kind::Float) / 2.0;
                ddp.backward(&loss, part == 1).unwrap();
            }
            for (p, q) in p.iter().zip(&q) {
                let (a, b) = (floats(&p.grad()), floats(&q.grad()));
                assert!(b.iter().any(|x| x.abs() > 1e-4), "gradients must tell something");
                assert!(near(&a, &b, 1e-6), "step {step}: {:?} {:?}", &a[..3], &b[..3]);
                for tensor in [p, q] {
                    let _ = tensor.grad().zero_();
                }
            }
        }
    });
}

#[test]
fn an_error_of_one_rank_is_told_to_all_whatever_they_exchange() {
    let name = "ranks::an_error_of_one_rank_is_told_to_all_whatever_they_exchange";
    on_ranks(name, 3, 60, |group| {
        let lost = || DistError::Environment("the disk is gone".into());
        let error = match group.rank() {
            1 => group.agree::<(), _>(Err(lost())).unwrap_err(),
            0 => group.exchange(b"some longer words").map(|_| ()).unwrap_err(),
            _ => group.any(true).map(|_| ()).unwrap_err(),
        };
        let want = match group.rank() {
            1 => "the disk is gone".to_owned(),
            r => format!("rank {r} of 3 ends because rank 1 failed: the disk is gone"),
        };
        assert_eq!(error.to_string(), want);
        // Nobody is left behind: the next exchange is in step again.
        assert_eq!(group.exchange(b"on").unwrap().concat(), b"ononon");
    });
}

#[test]
fn a_rank_that_ends_ends_the_others_calls() {
    on_ranks("ranks::a_rank_that_ends_ends_the_others_calls", 3, 20, |group| {
        if group.rank() == 1 {
            std::process::exit(DONE);
        }
        let began = Instant::now();
        let error = group.all_gather(&Tensor::from_slice(&[1f32])).unwrap_err().to_string();
        let start = format!("rank {} of 3: all_gather: another rank has ended", group.rank());
        assert!(error.starts_with(&start) && !error.contains('\n'), "{error}");
        assert!(began.elapsed() < Duration::from_secs(15), "waited for the timeout");
    });
}

#[test]
fn a_rank_that_hangs_is_waited_for_no_longer_than_the_timeout() {
    let name = "ranks::a_rank_that_hangs_is_waited_for_no_longer_than_the_timeout";
    on_ranks(name, 2, 5, |group| {
        if group.rank() == 0 {
            let error = group.barrier().unwrap_err().to_string();
            assert!(error.contains("doesn't answer; UTA_DIST_TIMEOUT"), "{error}");
        } else {
            std::thread::sleep(Duration::from_secs(8));
        }
    });
}

#[test]
fn ranks_that_never_come_are_waited_for_no_longer_than_the_timeout() {
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ranks::waits_alone", "--nocapture", "--ignored"])
        .envs([("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")])
        .envs([("MASTER_PORT", free_port().to_string()), ("UTA_DIST_TIMEOUT", "2".to_owned())])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{text}");
}

/// Started by the test above, as rank 0 of two.
#[test]
#[ignore]
fn waits_alone() {
    let began = Instant::now();
    let error = ProcessGroup::from_env().err().unwrap().to_string();
    assert!(error.starts_with("rank 0 of 2: meeting the other ranks: at 127.0.0.1:"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(30));
}
