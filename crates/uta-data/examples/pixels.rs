//! `pixels [--orient] OUT FILE...`: the pixels of images, as `tests/golden/jpeg_sweep.py` compares them with Pillow's. For each
//! file OUT has a line `WIDTH HEIGHT` and the RGB bytes, or `error: MESSAGE`.

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};

use uta_data::{DecodeOptions, decode_with};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let orient = arguments.first().is_some_and(|argument| argument == "--orient");
    let mut arguments = arguments.drain(usize::from(orient)..);
    let out = arguments.next().ok_or("no OUT")?;
    let mut out = BufWriter::new(File::create(out)?);
    let options = DecodeOptions { orient, ..DecodeOptions::default() };
    for file in arguments {
        match decode_with(&fs::read(file)?, &options) {
            Ok(image) => {
                writeln!(out, "{} {}", image.width, image.height)?;
                out.write_all(&image.pixels)?;
            }
            Err(e) => writeln!(out, "error: {e}")?,
        }
    }
    out.flush()?;
    Ok(())
}
