//! A small case of task `align` for several tests: a recipe, a teacher, pictures.

use tch::Device;
use uta_data::{Batch, Item, Label};
use uta_model::{Clip, ClipConfig, Ffn, VitConfig};
use uta_train::{Distill, Recipe};

/// A student of three blocks.
pub fn recipe(precision: &str, seed: i64, checkpointed: bool) -> Recipe {
    let text = format!(
        "task = \"align\"\n[model]\npreset = \"uta-b14\"\nimage_size = 32\npatch_size = 8\nwidth = 32\ndepth = 3\n\
         heads = 2\nhidden = 40\nout = 24\n[teacher]\narch = \"eva01-g-14-plus\"\n[mask]\nratio = 0.4\n\
         [data]\ntrain = [\"none\"]\n[optim]\nlr = 1e-3\n[train]\nsteps = 1\nbatch = 8\ndevice = \"cpu\"\n\
         precision = \"{precision}\"\nseed = {seed}\ncheckpoint_blocks = {checkpointed}\n"
    );
    Recipe::from_table(text.parse().unwrap()).unwrap()
}

/// EVA-01's kind of net, whose GELU and products are packed.
pub fn teacher(seed: i64, device: Device) -> Clip {
    tch::manual_seed(100 + seed);
    let vision = VitConfig {
        image_size: 32,
        patch_size: 8,
        width: 48,
        depth: 2,
        heads: 3,
        hidden: 64,
        out: 24,
        ..VitConfig::preset("eva01-g-14-plus").unwrap()
    };
    assert_eq!(vision.ffn, Ffn::Gelu);
    Clip::new(&ClipConfig::new(vision, None), device)
}

/// The task of `recipe` under `teacher`.
pub fn task(recipe: &Recipe, teacher: Clip, device: Device) -> Distill {
    uta_train::distill(recipe, teacher, device).unwrap().unwrap()
}

/// Eight pictures of `step`, from a set of 64.
pub fn batch(step: usize) -> Batch {
    let numbers = step * 8..step * 8 + 8;
    let pixels = numbers.clone().flat_map(|i| {
        let i = i % 64;
        (0..3 * 32 * 32).map(move |p| (i * 53 + p * (7 + i) + p / 96 * (i % 5)) as u8)
    });
    let item = |i: usize| Item {
        key: String::new(),
        label: Label::None,
        position: i as u64,
        index: i % 64,
    };
    Batch {
        index: step as u64,
        size: 32,
        pixels: pixels.collect(),
        items: numbers.map(item).collect(),
        targets: vec![],
        rejected: vec![],
        epoch: 0.0,
    }
}
