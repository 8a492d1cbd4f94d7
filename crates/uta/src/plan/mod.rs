//! `uta plan`: what a run of a recipe takes on given devices, before money is spent. The arithmetic of nets is
//! [`uta_train::plan`]'s; here it meets devices, hours and the terminal.

mod text;

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde::{Deserialize, Serialize};
use torch_ext::Precision;
use uta_train::plan::{Kernels, Memory};
use uta_train::recipe::PrecisionName;
use uta_train::{Planned, Recipe, RecipeError, TrainError};

use crate::bench::Product;
use crate::error::Usage;
use crate::output::print;
use crate::report::grouped;

/// The devices there are figures for.
const DEVICES: &str = include_str!("../devices.toml");

/// Images of ImageNet-21K, the paper's data (section 3).
const IMAGENET_21K: u64 = 14_200_000;

/// The share of a device's memory that is planned with. The rest is left to the driver's context, libraries' workspaces
/// and gaps between tensors.
const USABLE: f64 = 0.9;

/// FLOPs, memory, hours and traffic of a recipe's run, before money is spent
///
/// Arithmetic on shapes: no weights are made and no picture is read. Hours are those of the products at the utilisation
/// that is given; measure it with `uta bench step`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  uta plan recipes/pretrain/uta-b14-in21k.toml --device h100 --count 64
  uta plan recipes/pretrain/uta-l14-in21k.toml --device a100-80 --count 32 --set train.epochs=90
  uta plan recipes/pretrain/uta-b14-in21k.toml --device cpu --set train.batch=8")]
pub struct Args {
    /// The recipe (TOML)
    recipe: PathBuf,
    /// a100-40, a100-80, h100, h200; or cpu, this machine, whose products are then measured
    #[arg(long, value_name = "NAME", default_value = "h100")]
    device: String,
    /// Devices, each with its share of the batch
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    count: u64,
    /// Rate of the step's products over the device's peak
    #[arg(long, value_name = "U", default_value_t = 0.4)]
    utilisation: f64,
    /// Images of an epoch [default: those in data.train, and ImageNet-21K's where it isn't there]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    samples_per_epoch: Option<u64>,
    /// Mean size of a picture's file in kB; ImageNet-1K's is 115
    #[arg(long, value_name = "KB", default_value_t = 115.0)]
    image_kb: f64,
    /// Override a key of the recipe; may be given often
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    sets: Vec<String>,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// An entry of `devices.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sheet {
    name: String,
    bf16_tflops: f64,
    f32_tflops: f64,
    memory_gb: f64,
    bandwidth_gb_per_second: f64,
    source: String,
}

/// A device, for products of one type.
#[derive(Debug, Serialize)]
struct Device {
    name: String,
    /// FLOP/s.
    peak: f64,
    memory_bytes: f64,
    memory_bytes_per_second: Option<f64>,
    source: String,
    #[serde(skip)]
    kernels: Kernels,
}

impl Device {
    fn find(name: &str, precision: PrecisionName) -> Result<Device, Usage> {
        if name == "cpu" {
            return Device::here(precision);
        }
        let mut sheets: BTreeMap<String, Sheet> =
            toml::from_str(DEVICES).expect("the table of devices is tested");
        let Some(sheet) = sheets.remove(name) else {
            let known = sheets.into_keys().collect::<Vec<_>>().join(", ");
            return Err(Usage(format!("--device {name}: not known; there are {known} and cpu")));
        };
        Ok(Device {
            name: sheet.name,
            peak: 1e12
                * match precision {
                    PrecisionName::Bf16 => sheet.bf16_tflops,
                    PrecisionName::F32 => sheet.f32_tflops,
                },
            memory_bytes: 1e9 * sheet.memory_gb,
            memory_bytes_per_second: Some(1e9 * sheet.bandwidth_gb_per_second),
            source: sheet.source,
            kernels: Kernels::Gpu,
        })
    }

    /// This machine, by one measurement of a plain product.
    fn here(precision: PrecisionName) -> Result<Device, Usage> {
        let memory = uta_data::machine::memory()
            .ok_or_else(|| Usage("--device cpu: /proc/meminfo can't be read".into()))?;
        let product = Product::new(tch::Device::Cpu, Precision::from(precision));
        product.seconds(); // warms up
        Ok(Device {
            name: format!("this CPU with {} threads", tch::get_num_threads()),
            peak: product.flops() / product.seconds(),
            memory_bytes: memory as f64,
            memory_bytes_per_second: None,
            source: "measured now: a plain product of 2048 x 2048".into(),
            kernels: Kernels::of_this_cpu(precision),
        })
    }
}

/// The plan of a run on images.
#[derive(Debug, Serialize)]
struct Report {
    recipe: String,
    device: Device,
    count: u64,
    utilisation: f64,
    precision: PrecisionName,
    steps: u64,
    samples: u64,
    epochs: f64,
    samples_per_epoch: u64,
    samples_per_epoch_from: &'static str,
    /// Views of a sample in a batch.
    repeats: u64,
    batch: u64,
    accumulate: u64,
    micro_batch: u64,
    student: Net,
    teacher: Net,
    /// The student's products as a share of those without a mask.
    relative_flops: f64,
    /// Whether the recipe reads its targets from a cache: then there is no teacher in `memory`.
    targets_cached: bool,
    /// With the teacher in every step.
    live: Speed,
    /// With the teacher's targets read from a cache.
    cached: Speed,
    /// Memory of a device.
    memory: Memory,
    usable_memory_bytes: f64,
    fits: bool,
    largest_micro_batch: u64,
    image_bytes: f64,
    /// That a device sends a step, and receives.
    all_reduce_bytes: f64,
    update_bytes: u64,
    /// Bytes of the targets of all images and one crop, at 8 bits a value unless the recipe's cache has more.
    cache_bytes: u64,
    /// That training from it reads, a second, over all devices.
    cache_bytes_per_second: f64,
}

/// Products of a net.
#[derive(Debug, Serialize)]
struct Net {
    tokens: i64,
    image_flops: f64,
    run_flops: f64,
    share: f64,
}

/// Rates of all devices together, and what they need to keep it.
#[derive(Debug, Serialize)]
struct Speed {
    images_per_second: f64,
    step_seconds: f64,
    hours: f64,
    device_hours: f64,
    data_bytes_per_second: f64,
    /// That a device sends, and receives.
    all_reduce_bytes_per_second: f64,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    for (flag, value, most) in
        [("--utilisation", args.utilisation, 1.0), ("--image-kb", args.image_kb, 1e6)]
    {
        if !(value > 0.0 && value <= most) {
            return Err(Usage(format!("{flag} {value}: must be above 0 and at most {most}")).into());
        }
    }
    let mut recipe = Recipe::load(&args.recipe, &args.sets)?;
    let planned = uta_train::planned(&mut recipe).map_err(|e| match e {
        TrainError::Recipe(e) if e.origin == "recipe" => {
            RecipeError { origin: args.recipe.display().to_string(), ..e }.into()
        }
        other => other,
    })?;
    let shapes = match planned {
        Planned::Images(shapes) => shapes.on_devices(args.count),
        Planned::Texts(shapes) => return text::run(args, recipe, shapes),
    };
    let (batch, repeats) = (recipe.train.batch as u64, recipe.data.repeats as u64);
    let micro_batch = recipe.micro_batch(args.count as usize)?;
    let absent = (IMAGENET_21K, "ImageNet-21K's, as data.train isn't there");
    let epoch = Epoch::of(args, &recipe, absent);
    recipe.resolve_length(epoch.samples as usize);
    let device = Device::find(&args.device, recipe.train.precision)?;

    let samples = recipe.steps() * batch;
    let flops = [shapes.student_flops(), shapes.teacher_flops()];
    let both: f64 = flops.iter().sum();
    let targets_cached = shapes.is_cached();
    let spent = if targets_cached { [flops[0], 0.0] } else { flops };
    let [student, teacher] = [0, 1].map(|net| Net {
        tokens: shapes.tokens()[net],
        image_flops: flops[net],
        run_flops: spent[net] * samples as f64,
        share: spent[net] / spent.iter().sum::<f64>(),
    });
    let all_reduce_bytes = shapes.all_reduce_bytes(args.count);
    let speed = |image_flops: f64| {
        let images_per_second = args.count as f64 * device.peak * args.utilisation / image_flops;
        let step_seconds = batch as f64 / images_per_second;
        let hours = samples as f64 / images_per_second / 3600.0;
        Speed {
            images_per_second,
            step_seconds,
            hours,
            device_hours: args.count as f64 * hours,
            data_bytes_per_second: 1e3 * args.image_kb * images_per_second / repeats as f64,
            all_reduce_bytes_per_second: all_reduce_bytes / step_seconds,
        }
    };
    let (live, cached) = (speed(both), speed(flops[0]));
    let memory = shapes.memory(micro_batch as i64, device.kernels);
    let usable = USABLE * device.memory_bytes;
    let [kept, all] = shapes.tokens().map(|tokens| shapes.target_bytes(tokens));
    let report = Report {
        recipe: args.recipe.display().to_string(),
        count: args.count,
        utilisation: args.utilisation,
        precision: recipe.train.precision,
        steps: recipe.steps(),
        samples,
        epochs: samples as f64 / (epoch.samples * repeats) as f64,
        samples_per_epoch: epoch.samples,
        samples_per_epoch_from: epoch.from,
        repeats,
        batch,
        accumulate: recipe.train.accumulate as u64,
        micro_batch: micro_batch as u64,
        relative_flops: shapes.relative(),
        fits: memory.step.max(memory.start) as f64 <= usable,
        largest_micro_batch: shapes.largest_batch(usable as i64, device.kernels) as u64,
        usable_memory_bytes: usable,
        memory,
        image_bytes: 1e3 * args.image_kb,
        all_reduce_bytes,
        update_bytes: shapes.update_bytes() as u64,
        cache_bytes: all as u64 * epoch.stored,
        cache_bytes_per_second: kept as f64 * cached.images_per_second,
        student,
        teacher,
        targets_cached,
        live,
        cached,
        device,
    };
    print(args.json, &report)
}

/// The samples of a recipe's data.
struct Epoch {
    /// That an epoch draws.
    samples: u64,
    /// That there are, however often each is drawn.
    stored: u64,
    /// Where the numbers are from.
    from: &'static str,
}

impl Epoch {
    /// Those of `recipe`, or as many as `absent` says where its data aren't there.
    fn of(args: &Args, recipe: &Recipe, absent: (u64, &'static str)) -> Epoch {
        let all = |samples, from| Epoch { samples, stored: samples, from };
        if let Some(samples) = args.samples_per_epoch {
            return all(samples, "as given");
        }
        match recipe.open_train() {
            Ok(source) if !source.is_empty() => Epoch {
                samples: source.epoch() as u64,
                stored: source.len() as u64,
                from: "counted in data.train",
            },
            _ => all(absent.0, absent.1),
        }
    }
}

/// Three digits and a prefix: 534.8e9 is 535 G.
fn si(value: f64) -> String {
    const PREFIXES: [&str; 8] = ["", "k", "M", "G", "T", "P", "E", "Z"];
    let power = (value.max(1.0).log10() / 3.0 + 1e-9).floor().min(7.0);
    let scaled = value / 1e3f64.powf(power);
    let decimals = if scaled < 9.995 { 2 } else { usize::from(scaled < 99.95) };
    format!("{scaled:.decimals$} {}", PREFIXES[power as usize])
}

/// The line on the devices.
fn heading(
    f: &mut Formatter<'_>,
    device: &Device,
    count: u64,
    precision: PrecisionName,
    utilisation: f64,
) -> fmt::Result {
    let precision = match precision {
        PrecisionName::Bf16 => "bf16",
        PrecisionName::F32 => "f32",
    };
    let Device { name, source, .. } = device;
    writeln!(
        f,
        "{count} x {name}, {precision}: {}FLOP/s each at utilisation {utilisation}; {source}",
        si(device.peak)
    )
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.recipe)?;
        heading(f, &self.device, self.count, self.precision, self.utilisation)?;
        self.length(f)?;
        self.products(f)?;
        self.speed(f)?;
        self.memory(f)?;
        self.traffic(f)
    }
}

impl Report {
    fn length(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nlength")?;
        writeln!(
            f,
            "  steps           {:>14}   of {} images",
            grouped(self.steps),
            grouped(self.batch)
        )?;
        writeln!(f, "  images          {:>14}", grouped(self.samples))?;
        writeln!(
            f,
            "  epochs          {:>14.2}   of {} images ({}){}",
            self.epochs,
            grouped(self.samples_per_epoch),
            self.samples_per_epoch_from,
            match self.repeats {
                1 => String::new(),
                repeats => format!(", {repeats} views of each"),
            }
        )
    }

    fn products(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Report { student, teacher, .. } = self;
        writeln!(f, "\nproducts                an image          the run    share")?;
        let mut line = |name, image, run, share, note: String| {
            let [image, run] = [image, run].map(|flops| si(flops) + "FLOP");
            writeln!(f, "  {name:<10} {image:>19} {run:>16} {:>6.1} %{note}", 100.0 * share)
        };
        let note = match self.targets_cached {
            true => "   an image, in none of the steps: targets are read from the cache".to_owned(),
            false => format!("   {} tokens, forward", teacher.tokens),
        };
        line("teacher", teacher.image_flops, teacher.run_flops, teacher.share, note)?;
        let note = format!(
            "   {} tokens, forward and backward; {:.2} of that without a mask",
            student.tokens, self.relative_flops
        );
        line("student", student.image_flops, student.run_flops, student.share, note)?;
        if self.targets_cached {
            return Ok(());
        }
        let (image, run) =
            (teacher.image_flops + student.image_flops, teacher.run_flops + student.run_flops);
        line("both", image, run, 1.0, String::new())
    }

    fn speed(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nspeed              teacher runs   targets cached")?;
        let mut line = |name, of: &dyn Fn(&Speed) -> String| {
            writeln!(f, "  {name:<12} {:>16} {:>16}", of(&self.live), of(&self.cached))
        };
        let rounded = |value: f64| match value {
            100.0.. => grouped(value.round() as u64),
            _ => format!("{value:.2}"),
        };
        line("images/s", &|speed| rounded(speed.images_per_second))?;
        line("a step", &|speed| format!("{} ms", rounded(1e3 * speed.step_seconds)))?;
        line("hours", &|speed| rounded(speed.hours))?;
        line("device hours", &|speed| rounded(speed.device_hours))
    }

    fn memory(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let m = &self.memory;
        let micro = grouped(self.micro_batch);
        writeln!(f, "\nmemory of a device, {micro} images at a time")?;
        for (name, bytes, note) in [
            ("weights", m.weights, "the student's, f32"),
            ("gradients", m.gradients, "f32"),
            ("moments", m.moments, "AdamW's two, f32"),
            ("average", m.average, "of the weights, f32"),
            ("copies", m.copies, "of the weights, bf16, for a step"),
            ("teacher", m.teacher, "frozen"),
            ("text towers", m.text, "the student's, and the teacher's where it is there, f32"),
            ("pixels", m.pixels, "bytes and f32"),
            ("ahead", m.ahead, "crops and cached targets that wait, in the host's memory"),
            ("activations", m.activations, "kept for the backward pass, with the targets"),
            ("transient", m.transient, "alive for a moment"),
        ] {
            if bytes > 0 {
                writeln!(f, "  {name:<12} {:>16}   {note}", si(bytes as f64) + "B")?;
            }
        }
        writeln!(f, "  {:<12} {:>16}", "a step", si(m.step as f64) + "B")?;
        writeln!(
            f,
            "  {:<12} {:>16}   before the first step{}",
            "start",
            si(m.start as f64) + "B",
            if self.targets_cached { "" } else { ", the teacher in f32" }
        )?;
        writeln!(
            f,
            "  {} in {}B ({:.0} % of the device's); at most {} images at a time",
            if self.fits { "fits" } else { "DOES NOT FIT" },
            si(self.usable_memory_bytes),
            100.0 * USABLE,
            grouped(self.largest_micro_batch),
        )?;
        if !self.fits && self.largest_micro_batch > 0 {
            // Views of a sample stay together.
            let share = self.batch / self.count / self.repeats;
            let parts = (1..=share).find(|parts| {
                share.is_multiple_of(*parts)
                    && self.repeats * share / parts <= self.largest_micro_batch
            });
            if let Some(parts) = parts {
                writeln!(f, "  --set train.accumulate={parts} makes it fit")?;
            }
        }
        Ok(())
    }

    fn traffic(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let a_second = |bytes: f64| si(bytes) + "B/s";
        writeln!(f, "\ntraffic            teacher runs   targets cached")?;
        let mut line = |name, live: String, cached: String, note: String| {
            writeln!(f, "  {name:<12} {live:>16} {cached:>16}   {note}")
        };
        let [live, cached] = [&self.live, &self.cached];
        line(
            "pictures",
            a_second(live.data_bytes_per_second),
            a_second(cached.data_bytes_per_second),
            format!("over all devices, {}B a picture", si(self.image_bytes)),
        )?;
        line(
            "targets",
            "-".into(),
            a_second(self.cache_bytes_per_second),
            format!(
                "over all devices, kept tokens; the cache has {}B for a crop of each",
                si(self.cache_bytes as f64)
            ),
        )?;
        if self.count > 1 {
            line(
                "gradients",
                a_second(live.all_reduce_bytes_per_second),
                a_second(cached.all_reduce_bytes_per_second),
                format!("sent by each device, {}B a step", si(self.all_reduce_bytes)),
            )?;
        }
        let update = self.update_bytes as f64;
        let time = self
            .device
            .memory_bytes_per_second
            .map_or_else(String::new, |rate| format!(": at least {:.1} ms", 1e3 * update / rate));
        write!(f, "  an update moves {}B of a device's memory{time}", si(update))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_device_has_its_figures_and_an_unknown_one_is_answered_with_those_there_are() {
        let sheets: BTreeMap<String, Sheet> = toml::from_str(DEVICES).unwrap();
        for (name, sheet) in &sheets {
            let bf16 = Device::find(name, PrecisionName::Bf16).unwrap();
            let f32 = Device::find(name, PrecisionName::F32).unwrap();
            assert!(bf16.peak > f32.peak && f32.peak > 1e12, "{name}");
            assert!(!sheet.source.is_empty(), "{name}");
        }
        let error = Device::find("h900", PrecisionName::Bf16).unwrap_err().to_string();
        assert!(error.contains("h900") && error.contains("h100, h200 and cpu"), "{error}");
    }

    #[test]
    fn numbers_have_three_digits_and_a_prefix() {
        for (value, text) in [
            (0.0, "0.00 "),
            (999.0, "999 "),
            (1000.0, "1.00 k"),
            (534.8e9, "535 G"),
            (99.96e6, "100 M"),
            (1.1394e21, "1.14 Z"),
        ] {
            assert_eq!(si(value), text);
        }
    }
}
