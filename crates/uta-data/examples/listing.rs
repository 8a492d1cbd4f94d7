//! 14 million names in the folders of ImageNet-21K: how long a run takes to start from their listing, and what they take of
//! memory, drawn in the order of an epoch. The listing is made up; the folders are there, the images are not.
//!
//!     cargo run --release -p uta-data --example listing

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::time::{Instant, UNIX_EPOCH};

use serde_json::json;
use uta_data::{Order, open};

const FOLDERS: u32 = 21_841;
const IMAGES: u32 = 650;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let root = dir.path().canonicalize()?.join("set");
    let (mut folders, mut ends, mut within, mut names) = (vec![], vec![], vec![], vec![]);
    let mut add = |name: &str| -> std::io::Result<()> {
        let changed = fs::metadata(root.join(name))?.modified()?.duration_since(UNIX_EPOCH);
        let changed = changed.unwrap_or_default();
        folders.push(json!([name, [changed.as_secs(), changed.subsec_nanos()]]));
        Ok(())
    };
    let synset = |folder: u32| format!("n{:08}", 1_440_764 + 37 * folder);
    (0..FOLDERS).try_for_each(|folder| fs::create_dir_all(root.join(synset(folder))))?;
    add("")?;
    for folder in 0..FOLDERS {
        add(&synset(folder))?;
        for image in 0..IMAGES {
            names.extend_from_slice(format!("{}_{}.JPEG", synset(folder), 7 * image).as_bytes());
            ends.extend((names.len() as u64).to_le_bytes());
            within.extend((folder + 1).to_le_bytes());
        }
    }
    let files = (FOLDERS * IMAGES) as usize;
    let header = json!({
        "uta_listing": 2,
        "folders": folders,
        "files": files,
        "names": names.len(),
        "unread": null,
    });
    let listing = root.with_file_name(".set.uta-listing");
    let mut out = BufWriter::new(File::create(&listing)?);
    let mut crc = flate2::Crc::new();
    for part in [header.to_string().as_bytes(), b"\n", &ends, &within, &names] {
        crc.update(part);
        out.write_all(part)?;
    }
    out.write_all(&crc.sum().to_le_bytes())?;
    out.into_inner()?.sync_all()?;
    drop((folders, ends, within, names));

    fs::write("/proc/self/clear_refs", "5")?; // The peak is counted from here.
    let before = memory("VmRSS:")?;
    let began = Instant::now();
    let source = open(root.to_str().ok_or("a folder in UTF-8")?)?;
    let seconds = began.elapsed().as_secs_f64();
    if source.len() != files {
        return Err(format!("{} names of {files}", source.len()).into());
    }
    let each = |bytes: f64| (bytes - before) / files as f64;
    let (held, peak) = (each(memory("VmRSS:")?), each(memory("VmHWM:")?));
    println!(
        "{files} names: {seconds:.2} s to start, {peak:.1} bytes each at most, {held:.1} then"
    );

    let (order, began) = (Order::new(source.as_ref(), 0), Instant::now());
    let letters: usize = (0..order.epoch()).map(|i| source.key(order.at(i).index).len()).sum();
    let (seconds, held) = (began.elapsed().as_secs_f64(), each(memory("VmRSS:")?));
    println!(
        "{} keys of an epoch in its order: {:.1} million a second, {held:.1} bytes each ({letters} letters)",
        order.epoch(),
        order.epoch() as f64 / seconds / 1e6,
    );
    Ok(())
}

/// Bytes of a line of /proc/self/status.
fn memory(name: &str) -> Result<f64, Box<dyn std::error::Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such line")?;
    Ok(1024.0 * line.trim().trim_end_matches(" kB").parse::<f64>()?)
}
