//! `RUN/environment.json`: versions, devices, git commit.

use std::fs;
use std::path::PathBuf;

use serde_json::json;
use tch::Device;

use super::tensorboard::seconds_since_epoch;
use crate::Recipe;
use crate::device::device_name;

/// The names of this machine's NVIDIA GPUs, as their driver tells them.
fn gpus() -> Vec<String> {
    let mut cards: Vec<PathBuf> = fs::read_dir("/proc/driver/nvidia/gpus")
        .into_iter()
        .flatten()
        .filter_map(|card| Some(card.ok()?.path().join("information")))
        .collect();
    cards.sort();
    let texts = cards.iter().filter_map(|card| fs::read_to_string(card).ok());
    let name =
        |text: String| Some(text.lines().find_map(|l| l.strip_prefix("Model:"))?.trim().into());
    texts.filter_map(name).collect()
}

/// The versions, devices and settings that a run of `recipe` begins with, as JSON.
pub(super) fn environment(recipe: &Recipe, device: Device, world: usize) -> String {
    let commit = std::process::Command::new("git")
        .args(["rev-parse", "HEAD"])
        .stderr(std::process::Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|info| {
        let line = info.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split(':').nth(1)?.trim().to_owned())
    });
    let environment = json!({
        "uta": env!("CARGO_PKG_VERSION"),
        "libtorch": torch_ext::libtorch_version(),
        "device": device_name(device),
        "cuda_devices": tch::Cuda::device_count(),
        "gpus": gpus(),
        "cpu": cpu,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "threads": tch::get_num_threads(),
        "git_commit": commit,
        "seed": recipe.train.seed,
        "world_size": world,
        "started": seconds_since_epoch(),
        "command": std::env::args().collect::<Vec<_>>(),
    });
    serde_json::to_string_pretty(&environment).expect("plain data")
}
