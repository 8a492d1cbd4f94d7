//! How fast the student's forward and backward pass is, beside plain matrix products in the same process:
//!
//!     cargo run --release -p uta-model --example vit_speed -- [preset or width] [depth] [kept] [batch] [bf16]
//!
//! The share of the products' rate says what everything that is no product costs.

use std::time::Instant;

use tch::{Device, Kind, Tensor, nn};
use torch_ext::{Precision, autocast};
use uta_model::{Vit, VitConfig};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |i: usize, default: i64| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let precision = if args.iter().any(|a| a == "bf16") { Precision::Bf16 } else { Precision::F32 };
    let device = Device::cuda_if_available();
    let named = args.first().and_then(|name| VitConfig::preset(name).ok());
    let width = number(0, 192);
    let mut config = named.unwrap_or(VitConfig {
        image_size: 48,
        patch_size: 8,
        width,
        heads: width / 64,
        hidden: width * 8 / 3,
        out: width,
        ..VitConfig::preset("uta-ti14").expect("a preset")
    });
    config.depth = number(1, config.depth);
    let (n, batch) = (config.num_patches(), number(3, 64));
    let kept = number(2, n);

    let vs = nn::VarStore::new(device);
    let vit = Vit::new(&vs.root(), &config);
    let side = config.image_size;
    let images = Tensor::randn([batch, 3, side, side], (Kind::Float, device));
    let rows: Vec<Tensor> = (0..batch)
        .map(|_| Tensor::randperm(n, (Kind::Int64, device)).narrow(0, 0, kept).sort(0, false).0)
        .collect();
    let rows = Tensor::stack(&rows, 0);
    let places = (kept < n).then_some(&rows);

    let step = || {
        autocast(device, precision, || {
            let tokens = vit.forward_t(&images, places, true);
            tokens.square().mean(Kind::Float).backward();
        });
        for mut parameter in vs.trainable_variables() {
            parameter.zero_grad();
        }
    };
    let side = 2048;
    let kind = if precision == Precision::Bf16 { Kind::BFloat16 } else { Kind::Float };
    let square = Tensor::randn([side, side], (Kind::Float, device)).to_kind(kind);
    let product = || drop(square.matmul(&square));

    // Products of a forward pass, times three with the backward pass.
    let (t, d) = ((1 + kept) as f64, config.width as f64);
    let block = 4.0 * d * d + 3.0 * d * config.hidden as f64 + 2.0 * t * d;
    let patch = (3 * config.patch_size * config.patch_size) as f64 * d;
    let macs = t * (config.depth as f64 * block + patch + d * config.out as f64);
    let flops = 6.0 * macs * batch as f64;

    // Taken in turn, so that a busy machine slows both; the fastest of each.
    let (mut fastest_step, mut fastest_product) = (f64::MAX, f64::MAX);
    for _ in 0..12 {
        fastest_step = fastest_step.min(seconds(device, &step));
        fastest_product = fastest_product.min(seconds(device, &product));
    }
    let rate = flops / fastest_step / 1e9;
    let ceiling = 2.0 * (side as f64).powi(3) / fastest_product / 1e9;
    println!(
        "width {} depth {} tokens {t} batch {batch} {precision:?}: {:.1} ms forward and backward, {:.0} images/s, \
         {rate:.0} GFLOP/s of {ceiling:.0} ({:.0} %)",
        config.width,
        config.depth,
        fastest_step * 1e3,
        batch as f64 / fastest_step,
        100.0 * rate / ceiling
    );
}

fn seconds(device: Device, work: &impl Fn()) -> f64 {
    let wait = || {
        if let Device::Cuda(index) = device {
            tch::Cuda::synchronize(index as i64);
        }
    };
    wait();
    let start = Instant::now();
    work();
    wait();
    start.elapsed().as_secs_f64()
}
