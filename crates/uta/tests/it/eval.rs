//! `uta eval` and `uta data` at the command line: what scripts rely on (JSON, key names, exit status) and what a user
//! sees after a mistake.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;
use tch::{Device, Kind};
use uta_eval::NamedSet;
use uta_model::{Clip, ClipConfig, Ffn, TextConfig, VitConfig};

/// A folder with a CLIP, a student without text, and twelve captioned pictures in three class folders.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let world = World { dir: tempfile::tempdir().unwrap() };
        let vision = VitConfig {
            image_size: 16,
            patch_size: 4,
            width: 16,
            depth: 1,
            heads: 2,
            hidden: 32,
            out: 16,
            ffn: Ffn::SwiGlu,
            rope: true,
            drop_path: 0.0,
            patch_grad: 1.0,
            ..VitConfig::preset("uta-b14").unwrap()
        };
        let text = TextConfig {
            context_length: 12,
            vocab_size: 600,
            width: 16,
            heads: 2,
            layers: 1,
            out: 16,
            quick_gelu: false,
        };
        let save = |config: &ClipConfig, name: &str| {
            Clip::new(config, Device::Cpu).save(&world.path(name), Kind::Float).unwrap();
        };
        save(&ClipConfig::new(vision.clone(), Some(text)), "clip");
        save(&ClipConfig::new(vision, None), "student");
        for i in 0..12u8 {
            let class = ["blue", "green", "red"][usize::from(i % 3)];
            let folder = world.path("set").join(class);
            fs::create_dir_all(&folder).unwrap();
            let colour = |x: u32, y: u32| image::Rgb([20 * i, (12 * x) as u8, (12 * y) as u8]);
            let picture = image::RgbImage::from_fn(20, 18, colour);
            picture.save(folder.join(format!("{i}.png"))).unwrap();
            fs::write(folder.join(format!("{i}.txt")), format!("number {i}\n{class} {i}")).unwrap();
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn uta(&self, args: &str) -> Output {
        crate::common::uta(self.dir.path(), args)
    }

    fn json(&self, args: &str) -> Value {
        crate::common::json(self.dir.path(), args)
    }

    fn mistake(&self, args: &str) -> String {
        crate::common::mistake(self.dir.path(), args)
    }
}

fn share(value: &Value) -> f64 {
    let share = value.as_f64().unwrap();
    assert!((0.0..=1.0).contains(&share), "{share}");
    share
}

#[test]
fn zeroshot_prints_one_object_and_predictions_that_add_up_to_it() {
    let world = World::new();
    fs::write(world.path("templates.txt"), "a {}\nthe {} one\n").unwrap();
    let found = world
        .json("eval zeroshot --model clip --data set --batch 5 --predictions out.jsonl --json");
    assert_eq!((&found["n"], &found["classes"]), (&12.into(), &3.into()));
    assert_eq!(share(&found["top5"]), 1.0);
    assert!(found["settings"]["templates"].as_str().unwrap().starts_with("2 from"));
    let predictions = fs::read_to_string(world.path("out.jsonl")).unwrap();
    let predictions: Vec<Value> =
        predictions.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(predictions.len(), 12);
    let right = predictions.iter().filter(|p| p["label"] == p["top5"][0]).count();
    assert!((share(&found["top1"]) - right as f64 / 12.0).abs() < 1e-9);
    let first = &predictions[0];
    assert_eq!(first["names"].as_array().unwrap().len(), first["scores"].as_array().unwrap().len());
}

/// A picture in each class folder of a set, the set's published number of pictures apart.
fn named_set(world: &World, below: &str, classes: &[(String, String)]) {
    let picture = fs::read(world.path("set/blue/0.png")).unwrap();
    for (folder, _) in classes {
        let folder = world.path(below).join(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("0.png"), &picture).unwrap();
    }
}

#[test]
fn a_named_set_is_known_by_its_folders_and_says_what_is_missing() {
    let world = World::new();
    let classes = NamedSet::ImageNetA.classes();
    named_set(&world, "imagenet-a", &classes);
    fs::remove_file(world.path("imagenet-a/n01498041/0.png")).unwrap();
    let command = "eval zeroshot --model clip --data imagenet-a --per-class out.csv";
    let found = world.json(&format!("{command} --json"));
    assert_eq!((&found["set"], &found["n"]), (&"imagenet-a".into(), &199.into()));
    assert_eq!((&found["classes"], &found["published"]), (&200.into(), &7500.into()));
    assert_eq!(found["missing"]["images"], 7301);
    assert_eq!(found["empty_classes"], serde_json::json!(["stingray"]));
    assert_eq!(found["settings"]["templates"], "80 from ImageNet");
    assert!(found["settings"]["activations"].as_str().unwrap().contains("Gelu for texts"));
    let csv = fs::read_to_string(world.path("out.csv")).unwrap();
    let rows: Vec<&str> = csv.lines().collect();
    assert_eq!((rows.len(), rows[0]), (201, "label,folder,name,n,top1,low,high"));
    assert_eq!(rows[1], "0,n01498041,stingray,0,,,");
    let page = String::from_utf8(world.uta(command).stdout).unwrap();
    assert!(page.contains("published, not there     7301"), "{page}");
    assert!(page.contains("classes without images   1  stingray"), "{page}");
}

#[test]
fn duplicate_names_of_imagenet_are_told() {
    let world = World::new();
    named_set(&world, "root/val", &NamedSet::ImageNet.classes());
    fs::write(world.path("one.txt"), "a {}\n").unwrap();
    let found = world.json("eval zeroshot --model clip --data root --templates one.txt --json");
    assert_eq!((&found["set"], &found["n"]), (&"imagenet".into(), &1000.into()));
    assert_eq!(found["duplicate_names"], serde_json::json!({"missile": 2, "sunglasses": 2}));
}

#[test]
fn objectnets_frame_is_cut_when_asked_and_the_page_says_which() {
    let world = World::new();
    named_set(&world, "objectnet-1.0/images", &NamedSet::ObjectNet.classes());
    let command = "eval zeroshot --model clip --data objectnet-1.0 --json --predictions out.jsonl";
    let scores = |crop: &str| {
        let found = world.json(&format!("{command} {crop}"));
        assert_eq!((&found["set"], &found["n"]), (&"objectnet".into(), &113.into()));
        let first = fs::read_to_string(world.path("out.jsonl")).unwrap();
        let first: Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
        assert_eq!((&first["file"], &first["label"]), (&"alarm_clock/0.png".into(), &0.into()));
        (found["settings"].clone(), first["scores"].clone())
    };
    let ((whole, a), (cut, b)) = (scores(""), scores("--objectnet-crop"));
    assert!(whole["frame"].as_str().unwrap().contains("left"), "{whole}");
    assert!(cut["frame"].is_null() && whole["images"] != cut["images"], "{cut}");
    assert_ne!(a, b);
    let line = world.mistake("eval zeroshot --model clip --data set --objectnet-crop");
    assert!(line.contains("--objectnet-crop: the set is a folder of classes"), "{line}");
}

#[test]
fn flat_validation_pictures_need_their_list() {
    let world = World::new();
    let picture = fs::read(world.path("set/blue/0.png")).unwrap();
    fs::create_dir_all(world.path("ilsvrc/val")).unwrap();
    for i in 1..=3 {
        fs::write(world.path(&format!("ilsvrc/val/ILSVRC2012_val_0000000{i}.JPEG")), &picture)
            .unwrap();
    }
    let command = "eval zeroshot --model clip --data ilsvrc";
    let line = world.mistake(command);
    assert!(line.contains("ILSVRC2012_validation_ground_truth.txt"), "{line}");
    let devkit = world.path("ilsvrc/ILSVRC2012_devkit_t12/data");
    fs::create_dir_all(&devkit).unwrap();
    fs::write(devkit.join("ILSVRC2012_validation_ground_truth.txt"), "490\n361\n171\n822\n")
        .unwrap();
    let found = world.json(&format!("{command} --predictions out.jsonl --json"));
    assert_eq!((&found["set"], &found["n"]), (&"imagenet".into(), &3.into()));
    assert_eq!(found["missing"]["named"], serde_json::json!(["ILSVRC2012_val_00000004"]));
    let out = fs::read_to_string(world.path("out.jsonl")).unwrap();
    // The first pictures' places among the sorted wnids, as Caffe's val.txt has them.
    let labels =
        out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["label"].clone());
    assert_eq!(labels.collect::<Vec<_>>(), [65, 970, 230]);
}

#[test]
fn shards_of_clip_benchmark_bring_their_own_words() {
    let world = World::new();
    world.json("data pack set --out shards --json");
    let tars = |dir: &str| -> Vec<PathBuf> {
        let list = fs::read_dir(world.path(dir)).unwrap().map(|entry| entry.unwrap().path());
        list.filter(|path| path.extension().is_some_and(|e| e == "tar")).collect()
    };
    fs::create_dir_all(world.path("wds/test")).unwrap();
    fs::copy(&tars("shards")[0], world.path("wds/test/0.tar")).unwrap();
    fs::write(world.path("wds/test/nshards.txt"), "1\n").unwrap();
    fs::write(world.path("wds/classnames.txt"), "sky\ngrass\nblood\n").unwrap();
    fs::write(world.path("wds/zeroshot_classification_templates.txt"), "a {c}\nthe {c}.\n")
        .unwrap();
    let command = "eval zeroshot --model clip --data wds";
    let found = world.json(&format!("{command} --json"));
    assert_eq!((&found["n"], &found["per_class"][2]["name"]), (&12.into(), &"blood".into()));
    assert!(found["settings"]["templates"].as_str().unwrap().starts_with("2 from"));
    let line = world.mistake(&format!("{command} --set imagenet-a"));
    assert!(line.contains("imagenet-a's 200 classes; found 3 class names"), "{line}");
    fs::write(world.path("wds/test/nshards.txt"), "2").unwrap();
    let line = world.mistake(command);
    assert!(line.contains("looked for 2 shards (nshards.txt); found 1"), "{line}");
    fs::write(world.path("wds/test/nshards.txt"), "1").unwrap();
    fs::write(world.path("wds/dataset_type.txt"), "multilabel\n").unwrap();
    assert!(world.mistake(command).contains("dataset_type.txt says \"multilabel\""));
}

#[test]
fn a_classifier_is_kept_between_runs_unless_told_not_to() {
    let world = World::new();
    let command = "eval zeroshot --model clip --data set --json";
    let kept = || fs::read_dir(world.path("cache/uta/classifiers")).map_or(0, Iterator::count);
    let first = world.json(&format!("{command} --no-cache"));
    assert_eq!(kept(), 0);
    assert_eq!(world.json(command), first);
    assert_eq!(kept(), 1);
    let out = world.uta(command);
    assert!(String::from_utf8_lossy(&out.stderr).contains("classifier from"));
    assert_eq!(serde_json::from_slice::<Value>(&out.stdout).unwrap(), first);
    world.json(&format!("{command} --cache elsewhere"));
    assert!(world.path("elsewhere/classifiers").is_dir());
}

#[test]
fn retrieval_prints_recall_both_ways() {
    let world = World::new();
    let found = world.json("eval retrieval --model clip --data set --json");
    assert_eq!((&found["images"], &found["captions"]), (&12.into(), &24.into()));
    for way in ["text_to_image", "image_to_text"] {
        let [r1, r5, r10] = ["r1", "r5", "r10"].map(|k| share(&found[way][k]));
        assert!(r1 <= r5 && r5 <= r10, "{way}: {found}");
    }
}

#[test]
fn align_compares_with_a_teacher_whole_or_masked() {
    let world = World::new();
    let itself = world.json("eval align --model clip --teacher clip --data set --json");
    for key in ["cosine", "cosine_cls", "cosine_patches"] {
        assert!((itself[key].as_f64().unwrap() - 1.0).abs() < 1e-5, "{key}: {itself}");
    }
    let masked = world.json(
        "eval align --model student --teacher clip --data set --mask-ratio 0.5 --mask-kind block-reversed --json",
    );
    assert_eq!((&masked["n"], &masked["kept"]), (&12.into(), &8.into()));
    assert_eq!(masked["per_image"].as_array().unwrap().len(), 12);
    assert!(masked["cosine"].as_f64().unwrap() < 0.99);
}

#[test]
fn a_student_uses_the_text_tower_that_it_is_given() {
    let world = World::new();
    let line = world.mistake("eval zeroshot --model student --data set --json");
    assert!(line.contains("--text-model"), "{line}");
    let found = world.json("eval zeroshot --model student --text-model clip --data set --json");
    assert_eq!(found["settings"]["text tower"], "clip");
    let given = "eval zeroshot --model student --text-model clip --text-arch clip/config.json";
    assert_eq!(world.json(&format!("{given} --data set --json")), found);
}

#[test]
fn a_checkpoint_of_a_run_is_evaluated_with_the_teacher_that_the_run_names() {
    let world = World::new();
    let step = world.path("run/checkpoints/step-00000010");
    fs::create_dir_all(&step).unwrap();
    let from = world.path("student");
    fs::copy(from.join("model.safetensors"), step.join("model.safetensors")).unwrap();
    fs::copy(from.join("config.json"), world.path("run/config.json")).unwrap();
    let recipe = |teacher: &str| {
        let text = format!(
            "task = \"align\"\n[model]\npreset = \"uta-b14\"\n[teacher]\n{teacher}\n[data]\ntrain = [\"set\"]\n\
             [train]\nbatch = 4\nsteps = 10\ndevice = \"cpu\"\n"
        );
        fs::write(world.path("run/recipe.toml"), text).unwrap();
    };
    recipe("path = \"clip\"");
    let given = world.json("eval zeroshot --model student --text-model clip --data set --json");
    for model in
        ["run/checkpoints/step-00000010", "run/checkpoints/step-00000010/model.safetensors"]
    {
        let found = world.json(&format!("eval zeroshot --model {model} --data set --json"));
        let tower = world.path("clip").display().to_string();
        assert_eq!(
            (&found["top1"], &found["settings"]["text tower"]),
            (&given["top1"], &tower.into())
        );
        world.json(&format!("eval align --model {model} --data set --json"));
    }
    // What the recipe says of the teacher's net is heeded, and its mistakes are told.
    recipe("path = \"clip\"\narch = \"vit-x\"");
    let model = "--model run/checkpoints/step-00000010 --data set";
    for command in ["zeroshot", "align"] {
        let line = world.mistake(&format!("eval {command} {model}"));
        assert!(line.contains("no preset \"vit-x\""), "{line}");
    }
    recipe("pth = \"clip\"");
    let line = world.mistake(&format!("eval zeroshot {model}"));
    assert!(line.contains("recipe.toml") && line.contains("pth"), "{line}");
}

#[test]
fn packed_sets_have_the_words_of_their_folders() {
    let world = World::new();
    let zeroshot =
        |data: &str| world.json(&format!("eval zeroshot --model clip --data {data} --json"));
    let labels_of = |found: &Value| -> Vec<String> {
        let classes = found["per_class"].as_array().unwrap();
        classes.iter().map(|class| class["name"].as_str().unwrap().to_owned()).collect()
    };
    // Two synsets, which are no set of Table 1's.
    let synsets = ["n01440764".to_string(), "n01443537".to_string()];
    named_set(&world, "fish", &synsets.map(|folder| (folder, String::new())));
    world.json("data pack fish --out packed-fish --json");
    for data in ["fish", "packed-fish"] {
        let found = zeroshot(data);
        assert_eq!(labels_of(&found), ["tench", "goldfish"], "{data}");
        assert_eq!(found["settings"]["templates"], "80 from ImageNet");
    }
    // Folders 0 to 999 are packed as 0, 1, 10, 100, ...
    named_set(&world, "v2", &NamedSet::ImageNetV2.classes());
    world.json("data pack v2 --out packed-v2 --json");
    let names = NamedSet::ImageNetV2.classes();
    for set in ["", " --set imagenet-v2"] {
        let found = zeroshot(&format!("packed-v2{set}"));
        assert_eq!(found["set"], "imagenet-v2");
        let labels = labels_of(&found);
        assert_eq!(
            [&labels[1], &labels[2], &labels[3]],
            [&names[1].1, &names[10].1, &names[100].1]
        );
    }
    // A list of names is in the order of the folders' numbers, and so it counts for what was packed.
    let words: Vec<String> = (0..1000).map(|label| format!("word {label}")).collect();
    fs::write(world.path("words.txt"), words.join("\n")).unwrap();
    let labels = labels_of(&zeroshot("packed-v2 --set imagenet-v2 --classnames words.txt"));
    assert_eq!(labels[1..4], ["word 1", "word 10", "word 100"]);
}

#[test]
fn all_or_none_of_many_pictures_named_rightly_is_doubted() {
    let world = World::new();
    let picture = fs::read(world.path("set/blue/0.png")).unwrap();
    fs::create_dir_all(world.path("copies/a")).unwrap();
    fs::create_dir_all(world.path("copies/b")).unwrap();
    fs::write(world.path("copies/classnames.txt"), "a\nb\n").unwrap();
    for (pictures, doubted) in [(50, false), (51, true)] {
        (0..pictures).for_each(|i| {
            fs::write(world.path(&format!("copies/a/{i}.png")), &picture).unwrap();
        });
        let found = world.json("eval zeroshot --model clip --data copies --json");
        assert!([0.0, 1.0].contains(&share(&found["top1"])), "{found}");
        let told = format!("of {pictures} images named rightly");
        let warnings = found["warnings"].as_array().unwrap();
        let told = warnings.iter().any(|warning| warning.as_str().unwrap().contains(&told));
        assert_eq!(told, doubted, "{found}");
    }
}

#[test]
fn a_label_that_is_no_number_is_named_where_classes_are_asked_for() {
    let world = World::new();
    for i in 0..12 {
        let class = ["blue", "green", "red"][i % 3];
        fs::write(world.path(&format!("set/{class}/{i}.cls")), i.to_string()).unwrap();
    }
    world.json("data pack set --out shards --json");
    // The same shards with a word in the place of a number, of the same length.
    let shard = world.path("shards/set-000000.tar");
    let shard = if shard.is_file() {
        shard
    } else {
        uta_data::tars(&world.path("shards")).unwrap().remove(0)
    };
    let mut bytes = fs::read(&shard).unwrap();
    let at = bytes.windows(4).position(|name| name == b".cls").unwrap();
    let at = at - at % 512 + 512;
    assert!(bytes[at].is_ascii_digit());
    bytes[at] = b'x';
    fs::write(&shard, bytes).unwrap();
    let found = world.json("data stats shards --json");
    assert_eq!(found["samples"], 12);
    fs::write(world.path("shards/classnames.txt"), "a\nb\nc\n").unwrap();
    let out = world.uta("eval zeroshot --model clip --data shards --json");
    let log = String::from_utf8(out.stderr).unwrap();
    assert!(log.contains("not a class index"), "{log}");
}

#[test]
fn a_text_beside_a_picture_is_one_caption_or_one_a_line_as_is_asked_for() {
    let world = World::new();
    for (how, captions) in [("lines", 24), ("file", 12)] {
        let found = world.json(&format!("data stats set --captions {how} --json"));
        assert_eq!(found["captions"], captions, "{how}: {found}");
        let found =
            world.json(&format!("eval retrieval --model clip --data set --captions {how} --json"));
        assert_eq!(found["captions"], captions, "{how}: {found}");
    }
    assert!(world.mistake("data stats set --captions words").contains("words"));
}

#[test]
fn pictures_of_a_kind_that_is_not_read_are_told() {
    let world = World::new();
    for name in ["a.bmp", "b.tiff", "c.jpg_large", "d.jpg?width=400"] {
        fs::write(world.path("set/red").join(name), b"BM").unwrap();
    }
    fs::copy(world.path("set/red/2.png"), world.path("set/red/unnamed")).unwrap();
    let said = String::from_utf8(world.uta("data stats set").stderr).unwrap();
    assert!(
        said.contains("5 pictures of a kind that isn't read") && said.contains("a.bmp"),
        "{said}"
    );
}

#[test]
fn a_broken_picture_is_counted_and_named() {
    let world = World::new();
    fs::write(world.path("set/red/broken.png"), b"\x89PNG but not really").unwrap();
    let found = world.json("eval zeroshot --model clip --data set --json");
    assert_eq!(found["n"], 12);
    assert!(found["rejected"][0]["key"].as_str().unwrap().contains("broken"), "{found}");
    let out = world.uta("eval zeroshot --model clip --data set");
    let (page, log) =
        (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    assert!(page.contains("unreadable") && page.contains("broken"), "{page}");
    assert!(page.contains("top-1") && page.contains("95 % interval"), "{page}");
    assert!(log.contains("broken"), "{log}");
}

#[test]
fn a_mistake_is_one_line_with_exit_status_2() {
    let world = World::new();
    fs::write(world.path("names.txt"), "one\ntwo\n").unwrap();
    for (args, says) in [
        ("eval zeroshot --model absent --data set", "absent"),
        ("eval zeroshot --model clip --data nowhere", "nowhere"),
        ("eval zeroshot --model clip --data set --classnames names.txt", "names.txt"),
        ("eval zeroshot --model clip --data set --classnames missing.txt", "missing.txt"),
        ("eval zeroshot --model clip --data set --batch 0", "--batch"),
        (
            "eval zeroshot --model clip --data set --set imagenet",
            "found 3 folders: blue, green, red",
        ),
        ("eval zeroshot --model clip --data set --per-class no/such/folder.csv", "folder.csv"),
        ("eval zeroshot --model clip --data set --device tpu", "tpu"),
        (
            "eval zeroshot --model clip --data set --predictions no/such/folder.jsonl",
            "folder.jsonl",
        ),
        ("eval align --model clip --data set", "--teacher"),
        ("eval align --model clip --teacher clip --data set --mask-ratio 1.5", "1.5"),
        (
            "eval align --model clip --teacher clip --teacher-arch vit-x --data set",
            "no preset \"vit-x\"",
        ),
        ("eval zeroshot --model student --text-model clip --text-arch vit-x --data set", "vit-x"),
        ("data stats nowhere", "nowhere"),
        ("data pack nowhere --out shards", "nowhere"),
    ] {
        let line = world.mistake(args);
        assert!(line.contains(says), "{args}: {line}");
    }
}

#[test]
fn a_packed_folder_scores_as_the_folder_does() {
    let world = World::new();
    let packed = world.json("data pack set --out shards --json");
    fs::create_dir(world.path("shards/val")).unwrap();
    let said = String::from_utf8(world.uta("data stats shards").stderr).unwrap();
    assert!(said.contains("not its folders; name one for that, as shards/val"), "{said}");
    assert_eq!((&packed["samples"], &packed["captioned"]), (&12.into(), &12.into()));
    assert_eq!(world.json("data stats shards --json")["samples"], 12);
    let scores = |data: &str| {
        let found = world.json(&format!("eval zeroshot --model clip --data {data} --json"));
        (share(&found["top1"]), found["n"].clone(), found["classes"].clone())
    };
    assert_eq!(scores("set"), scores("shards"));
}
