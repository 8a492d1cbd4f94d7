//! Images a second, stage by stage and through a whole stream:
//!
//! `cargo run --release -p uta-data --example throughput -- SPEC [SIZE] [WORKERS]`

use std::hint::black_box;
use std::time::Instant;

use uta_data::rng::{Purpose, Rng};
use uta_data::{Stream, StreamOptions, TrainTransform, decode, open};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let spec = args.next().ok_or("usage: throughput SPEC [SIZE] [WORKERS]")?;
    let size = args.next().map_or(Ok(48), |size| size.parse())?;
    let workers = args.next().map_or(Ok(1), |workers| workers.parse())?;

    let start = Instant::now();
    let source = open(&spec)?;
    println!("open       {:8.1} ms, {} samples", start.elapsed().as_secs_f64() * 1e3, source.len());

    let n = source.len().min(5000);
    let time = |stage: &str, start: Instant| {
        println!("{stage:10} {:8.0} images/s", n as f64 / start.elapsed().as_secs_f64());
    };
    let start = Instant::now();
    let samples = (0..n).map(|i| source.read(i)).collect::<Result<Vec<_>, _>>()?;
    time("read", start);

    let start = Instant::now();
    let images = samples.iter().map(|s| decode(&s.image)).collect::<Result<Vec<_>, _>>()?;
    time("decode", start);

    let transform = TrainTransform { size, ..TrainTransform::default() };
    let start = Instant::now();
    for (i, image) in images.iter().enumerate() {
        black_box(transform.apply(image, &mut Rng::new(0, Purpose::Augment, &[i as u64]))?);
    }
    time("augment", start);

    let options = StreamOptions { batch: 256, workers, ..StreamOptions::default() };
    let mut stream = Stream::new(source, transform, options, 0)?;
    stream.next_batch()?;
    let (batches, start) = (100, Instant::now());
    for _ in 0..batches {
        black_box(stream.next_batch()?);
    }
    let rate = (256 * batches) as f64 / start.elapsed().as_secs_f64();
    println!("stream     {rate:8.0} images/s with {workers} workers");
    Ok(())
}
