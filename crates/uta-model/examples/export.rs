//! Writes a net in other programs' layouts, for `tests/golden/exports.py` to load there:
//!
//! ```sh
//! cargo run -p uta-model --example export -- OUT MODEL...
//! ```
//!
//! makes `OUT/NAME/LAYOUT` for every model and every layout that can express it. A model is anything that
//! [`Clip::load`] reads, or the name of a preset, which gets random weights.

use std::error::Error;
use std::path::Path;

use tch::{Device, Kind};
use uta_model::{Clip, ClipConfig, Layout, TextConfig, VitConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (out, models) = args.split_first().ok_or("usage: export OUT MODEL...")?;
    for model in models {
        let path = Path::new(model);
        let clip = if path.exists() {
            Clip::load(path, Device::Cpu)?
        } else {
            let vision = VitConfig::preset(model)?;
            let text = TextConfig::preset(model).ok();
            Clip::new(&ClipConfig::new(vision, text), Device::Cpu)
        };
        let folder = if path.is_file() { path.parent().unwrap_or(path) } else { path };
        let name = folder.file_name().unwrap_or_default();
        for (word, layout) in Layout::ALL {
            let dir = Path::new(out).join(name).join(word);
            match clip.export(layout, &dir, Some(Kind::Float)) {
                Ok(exported) => println!("{} ({})", dir.display(), exported.family),
                Err(e) => println!("{}: {e}", dir.display()),
            }
        }
    }
    Ok(())
}
