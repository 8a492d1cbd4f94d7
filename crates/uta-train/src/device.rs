//! Devices by the names that recipes have for them.

/// A device by the name that recipes have for it.
pub fn device_name(device: tch::Device) -> String {
    match device {
        tch::Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// The device a name stands for; `cuda` alone is the GPU of this process's number on its machine, or the only one it sees.
///
/// # Errors
/// When the name is none, or there is no such device.
pub fn device(name: &str, local_rank: usize) -> Result<tch::Device, String> {
    let count = tch::Cuda::device_count();
    let own = if count == 1 { 0 } else { local_rank };
    match gpu_named(name, own)? {
        None => Ok(tch::Device::Cpu),
        Some(_) if name == "auto" && !tch::Cuda::is_available() => Ok(tch::Device::Cpu),
        Some(n) if (n as i64) < count => Ok(tch::Device::Cuda(n)),
        Some(n) => Err(format!("{name:?} stands for GPU {n} here, but {count} GPUs were found")),
    }
}

/// The number of the GPU that a device's name asks for, `own` where it has none; `None` for the CPU.
pub(crate) fn gpu_named(name: &str, own: usize) -> Result<Option<usize>, String> {
    let number = match name {
        "cpu" => return Ok(None),
        "auto" | "cuda" => Some(own),
        _ => name.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
    };
    number.map(Some).ok_or_else(|| format!("{name:?} is none of auto, cpu, cuda, cuda:N"))
}
