//! The view that a model's own configuration asks for, against the library whose configuration it is;
//! `tests/golden/pixels_modes.py` made the values.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tch::Device;
use uta_data::DecodeOptions;
use uta_eval::EvalOptions;
use uta_model::{Clip, Layout, Origin};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// Library, configuration in its words, images.
fn cases() -> Vec<(String, Value, Vec<String>)> {
    serde_json::from_slice(&fs::read(golden("pixels/modes/cases.json")).unwrap()).unwrap()
}

/// A small net of the library in a folder of its own, with this configuration.
fn folder(library: &str, asked: &Value) -> (tempfile::TempDir, Layout) {
    let (net, file, layout) = match library {
        "open_clip" => ("open_clip", "open_clip_config.json", Layout::OpenClip),
        "timm" => ("timm_eva02_clip", "config.json", Layout::Timm),
        _ => ("hf_clip", "config.json", Layout::Hf),
    };
    let dir = tempfile::tempdir().unwrap();
    let net = golden("families").join(net);
    for entry in fs::read_dir(&net).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&fs::read(net.join(file)).unwrap()).unwrap();
    let (file, config) = match layout {
        Layout::OpenClip => {
            config["preprocess_cfg"] = asked.clone();
            (file, config)
        }
        Layout::Timm => {
            let mean = config["pretrained_cfg"]["mean"].clone();
            config["pretrained_cfg"] = asked.clone();
            config["pretrained_cfg"]["mean"] = mean;
            (file, config)
        }
        _ => ("preprocessor_config.json", asked.clone()),
    };
    fs::write(dir.path().join(file), config.to_string()).unwrap();
    (dir, layout)
}

#[test]
fn views_are_those_of_the_library_whose_configuration_it_is() {
    let mut wrong = vec![];
    for (i, (library, asked, images)) in cases().into_iter().enumerate() {
        let (dir, _) = folder(&library, &asked);
        let origin = Origin::open(dir.path(), None).unwrap();
        assert!(origin.notes.is_empty(), "{library} {asked}: {:?}", origin.notes);
        let transform = EvalOptions::default().transform(origin.clip_config("a view").unwrap());
        let theirs = fs::read(golden(&format!("pixels/modes/{i}.rgb"))).unwrap();
        assert_eq!(theirs.len(), images.len() * 8 * 32 * 3);
        for (image, theirs) in images.iter().zip(theirs.chunks(8 * 32 * 3)) {
            let file = fs::read(golden(&format!("pixels/modes/{image}.png"))).unwrap();
            let view = transform.view(&file, &DecodeOptions::default()).unwrap();
            let ours = view.chunks(32 * 3).step_by(4).flatten();
            let largest = ours.zip(theirs).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            println!("{library} {asked} {image}: {largest}");
            if largest > 1 {
                wrong.push(format!("{library} {asked} {image}: {largest} levels; {transform}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn an_export_asks_for_the_same_view() {
    for (library, asked, _) in cases() {
        let (dir, layout) = folder(&library, &asked);
        let clip = Clip::load(dir.path(), Device::Cpu).unwrap();
        for layout in [layout, Layout::Uta] {
            let out = tempfile::tempdir().unwrap();
            let exported = clip.export(layout, out.path(), None).unwrap();
            assert!(exported.notes.is_empty(), "{library} {asked}: {:?}", exported.notes);
            let again = Origin::open(out.path(), None).unwrap();
            assert_eq!(
                again.clip_config("a view").unwrap().preprocess,
                clip.config.preprocess,
                "{library} {asked}"
            );
        }
    }
    // A net with CLIP's own view has no word of it in its file, as before there was another.
    let (dir, _) = folder("open_clip", &json!({}));
    let out = tempfile::tempdir().unwrap();
    Clip::load(dir.path(), Device::Cpu).unwrap().export(Layout::Uta, out.path(), None).unwrap();
    let config = fs::read_to_string(out.path().join("config.json")).unwrap();
    assert!(!config.contains("preprocess"), "{config}");
}
