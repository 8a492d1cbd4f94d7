//! Lines a second of the tokeniser, on one thread; `tests/golden/tokens.py` times open_clip's on the same lines:
//!
//! `cargo run --release -p uta-data --example tokens -- FILE [SECONDS]`
//!
//! The file holds a caption a line, or, as `.json`, rows that begin with one.

use std::hint::black_box;
use std::time::Instant;

use uta_data::Tokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: tokens FILE [SECONDS]")?;
    let seconds: f64 = args.next().map_or(Ok(3.0), |seconds| seconds.parse())?;
    let text = std::fs::read_to_string(&path)?;
    let lines: Vec<String> = if path.ends_with(".json") {
        let rows: Vec<(String, serde_json::Value)> = serde_json::from_str(&text)?;
        rows.into_iter().map(|(line, _)| line).collect()
    } else {
        text.lines().map(str::to_owned).collect()
    };

    let start = Instant::now();
    let tokenizer = Tokenizer::new(Tokenizer::VOCAB_SIZE, 77)?;
    println!("start  {:8.1} ms", start.elapsed().as_secs_f64() * 1e3);
    black_box(tokenizer.encode_batch(&lines));
    let (mut rounds, start) = (0, Instant::now());
    while start.elapsed().as_secs_f64() < seconds {
        black_box(tokenizer.encode_batch(&lines));
        rounds += 1;
    }
    let rate = (rounds * lines.len()) as f64 / start.elapsed().as_secs_f64();
    println!("tokens {rate:8.0} lines/s of {} lines", lines.len());
    Ok(())
}
