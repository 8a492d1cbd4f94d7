//! `uta bench data`: where the time between a shard and a normalised batch goes.

use std::fmt::{self, Display, Formatter};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use uta_data::rng::{Purpose, Rng};
use uta_data::{Rgb, Stream, StreamOptions, TrainTransform, TrainViews, open, open_sets};
use uta_train::Recipe;

use crate::error::Usage;
use crate::output::print;

/// Images a second of reading, decoding, cropping, and of all together
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A recipe (.toml), whose data and transforms are taken, or data to train on: shards, a folder, a pattern
    #[arg(value_name = "RECIPE|SHARDS")]
    what: String,
    /// Decoding threads; normalising has one of its own [default: the recipe's, or one a core]
    #[arg(long, value_name = "W", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
    /// Images through the whole; at most 1,000 of them through each stage
    #[arg(long, value_name = "N", default_value_t = 4000, value_parser = clap::value_parser!(u64).range(1..))]
    samples: u64,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// Images a second; the stages are measured one by one on one thread.
#[derive(Debug, Serialize)]
struct Report {
    /// Images a second of all stages together, with all workers.
    images_per_second: f64,
    /// The same for each second of processor time that the process took.
    images_per_cpu_second: Option<f64>,
    /// MiB that the process holds, after the first batch and after each tenth: over many samples, whether it leaks.
    memory: Option<Vec<f64>>,
    workers: usize,
    images: u64,
    /// Side of the views in pixels.
    size: u32,
    stages: Stages,
}

#[derive(Debug, Serialize)]
struct Stages {
    read: f64,
    decode: f64,
    crop_resize: f64,
    /// Flip, colours, and float32 around the mean.
    rest: f64,
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let stages = &self.stages;
        for (name, speed) in [
            ("read", stages.read),
            ("decode", stages.decode),
            ("crop, resize", stages.crop_resize),
            ("rest", stages.rest),
        ] {
            writeln!(f, "{name:13} {speed:8.0} images/s, one thread")?;
        }
        let (speed, workers) = (self.images_per_second, self.workers);
        write!(
            f,
            "{:13} {speed:8.0} images/s at {} pixels, {workers} workers",
            "whole", self.size
        )?;
        if let Some(speed) = self.images_per_cpu_second {
            write!(f, "; {speed:.0} for each second of a core")?;
        }
        match self.memory.as_deref() {
            Some([first, .., last]) => {
                write!(f, "\n{:13} {first:8.0} MiB, {last:.0} at the end", "memory")
            }
            _ => Ok(()),
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let (source, views, mut options) = match Path::new(&args.what).extension() {
        Some(extension) if extension == "toml" => {
            let Recipe { data, train, task, .. } = Recipe::load(Path::new(&args.what), &[])?;
            if task.reads_texts_alone() {
                let message = format!("task \"{}\" decodes no pictures", task.kind());
                return Err(Usage(format!("{}: {message}", args.what)).into());
            }
            let options = StreamOptions {
                batch: train.batch / train.accumulate,
                repeats: data.repeats,
                order: data.order,
                shuffle_buffer: data.shuffle_buffer,
                workers: data.workers,
                prefetch: data.prefetch,
                max_rejected: data.max_rejected,
                ..StreamOptions::default()
            };
            let (decode, transform) = (data.decode(), data.transforms);
            let views = TrainViews { decode, ..TrainViews::new(transform) };
            (open_sets(&data.train, &data.pairs)?, views, options)
        }
        _ => {
            let options = StreamOptions { batch: 64, ..StreamOptions::default() };
            (open(&args.what)?, TrainViews::new(TrainTransform::default()), options)
        }
    };
    if let Some(workers) = args.workers {
        options.workers = workers.into();
    }

    let TrainViews { transform, decode, .. } = &views;
    let few = args.samples.min(1000);
    let [mut reading, mut decoding, mut cropping, mut resting] = [Duration::ZERO; 4];
    let (mut timed, mut planes) = (0.0, vec![]);
    let mut image = Rgb { width: 0, height: 0, pixels: vec![] };
    for i in 0..few {
        let index = (i as usize * source.len() / few as usize) % source.len();
        let mut rngs = [Rng::new(options.seed, Purpose::Augment, &[0, i])];
        let began = Instant::now();
        let Ok(sample) = source.read(index) else { continue };
        let read = Instant::now();
        let crops = transform.decode(&sample.image, decode, &mut rngs, &mut image);
        let Ok(crops) = crops else { continue };
        let decoded = Instant::now();
        let mut view = transform.resize(&image, crops[0], &rngs[0])?;
        let cropped = Instant::now();
        transform.adjust(&mut view, &mut rngs[0]);
        normalise(&view, &mut planes);
        timed += 1.0;
        reading += read - began;
        decoding += decoded - read;
        cropping += cropped - decoded;
        resting += cropped.elapsed();
    }
    let speed = |spent: Duration| timed / spent.as_secs_f64().max(1e-9);

    let (size, workers, batch) = (transform.size, options.workers, options.batch as u64);
    let mut stream = Stream::new(source, Arc::new(views), options, 0)?;
    // Threads and buffers are there after the first.
    stream.next_batch()?;
    let batches = args.samples.div_ceil(batch);
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let mut memory = vec![resident()];
    for batch in 1..=batches {
        for view in stream.next_batch()?.pixels.chunks_exact(3 * (size * size) as usize) {
            normalise(view, &mut planes);
        }
        if batch * 10 / batches > (batch - 1) * 10 / batches {
            memory.push(resident());
        }
    }
    let images = batches * batch;
    let per = |seconds: f64| images as f64 / seconds;
    let report = Report {
        images_per_second: per(began.elapsed().as_secs_f64()),
        images_per_cpu_second: cpu.zip(cpu_seconds()).map(|(before, now)| per(now - before)),
        memory: memory.into_iter().collect(),
        workers,
        images,
        size,
        stages: Stages {
            read: speed(reading),
            decode: speed(decoding),
            crop_resize: speed(cropping),
            rest: speed(resting),
        },
    };
    print(args.json, &report)
}

/// The first thing that a model does with a view `[size, size, 3]`: f32 `[3, size, size]` around CLIP's mean, into `planes`.
fn normalise(view: &[u8], planes: &mut Vec<f32>) {
    const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
    const STD: [f32; 3] = [0.268_629_5, 0.261_302_6, 0.275_777_1];
    let (pixels, _) = view.as_chunks::<3>();
    planes.resize(view.len(), 0.0);
    for (c, plane) in planes.chunks_exact_mut(pixels.len()).enumerate() {
        let (scale, shift) = (1.0 / (255.0 * STD[c]), -MEAN[c] / STD[c]);
        for (value, pixel) in plane.iter_mut().zip(pixels) {
            *value = f32::from(pixel[c]) * scale + shift;
        }
    }
    black_box(planes);
}

/// Processor time of this process so far, over all threads, where the system tells it.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the name, which may hold anything: fields 14 and 15 of proc(5), in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

/// MiB of memory that this process holds, where the system tells it.
fn resident() -> Option<f64> {
    Some(super::memory("VmRSS:")? as f64 / 1024.0 / 1024.0)
}
