//! Writes presets with random weights, for `tests/golden/exports.py`:
//!
//! ```sh
//! cargo run -p uta-model --example random -- OUT PRESET...
//! ```
//!
//! makes the folders `OUT/PRESET`, with a text encoder where the preset has one.

use std::error::Error;
use std::path::Path;

use tch::{Device, Kind};
use uta_model::{Clip, ClipConfig, TextConfig, VitConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (out, presets) = args.split_first().ok_or("usage: random OUT PRESET...")?;
    tch::manual_seed(0);
    for preset in presets {
        let (vision, text) = (VitConfig::preset(preset)?, TextConfig::preset(preset).ok());
        let clip = Clip::new(&ClipConfig::new(vision, text), Device::Cpu);
        clip.save(&Path::new(out).join(preset), Kind::Float)?;
    }
    Ok(())
}
