//! Pair tables, Karpathy's files and tables of results at the command line: recall and cosines equal to CLIP_benchmark's
//! and PyTorch's, counts that are told, and what a user sees after a mistake.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};
use tch::{Device, Kind};
use uta_data::PairOptions;
use uta_model::Clip;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The emoji that `tests/golden/retrieval.py` measured, in a folder of its own.
struct World {
    dir: tempfile::TempDir,
    expected: Value,
    /// (file, captions)
    rows: Vec<(String, Vec<String>)>,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let golden = repository().join("tests/golden/retrieval");
        let expected = fs::read(golden.join("expected.json")).unwrap();
        let expected = serde_json::from_slice(&expected).unwrap();
        let root = repository();
        std::os::unix::fs::symlink(root.join("assets/clip-emoji"), dir.path().join("clip"))
            .unwrap();
        fs::copy(golden.join("emoji.parquet"), dir.path().join("emoji.parquet")).unwrap();
        let keys = PairOptions {
            image_key: Some("image".into()),
            caption_key: Some("caption".into()),
            ..PairOptions::default()
        };
        let spec = dir.path().join("emoji.parquet").display().to_string();
        let source = uta_data::open_with(&[spec], &keys).unwrap();
        fs::create_dir(dir.path().join("pictures")).unwrap();
        let rows = (0..source.len()).map(|i| {
            let sample = source.read(i).unwrap();
            let file = format!("{i:03}.png");
            fs::write(dir.path().join("pictures").join(&file), &sample.image).unwrap();
            (file, sample.captions)
        });
        let rows = rows.collect();
        World { dir, expected, rows }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A TSV under open_clip's names, the captions of an image on rows of their own.
    fn tsv(&self, folder: &str) -> String {
        let mut text = String::from("filepath\ttitle\n");
        for (file, captions) in &self.rows {
            captions.iter().for_each(|c| text.push_str(&format!("{folder}{file}\t{c}\n")));
        }
        text
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

    fn is_expected(&self, found: &Value) {
        for key in ["images", "captions"] {
            assert_eq!(found[key], self.expected[key]);
        }
        for way in ["text_to_image", "image_to_text"] {
            for k in ["r1", "r5", "r10"] {
                let (found, wanted) = (&found[way][k], &self.expected[way][k]);
                let (found, wanted) = (found.as_f64().unwrap(), wanted.as_f64().unwrap());
                assert!(
                    (found - wanted).abs() < 1e-6,
                    "{way} {k}: {found}, CLIP_benchmark {wanted}"
                );
            }
        }
    }
}

#[test]
fn recall_on_real_pictures_equals_clip_benchmarks_from_every_kind_of_table() {
    let world = World::new();
    world.write("pairs.tsv", &world.tsv("pictures/"));
    world.is_expected(&world.json("eval retrieval --model clip --data pairs.tsv --json"));

    world.write("elsewhere/pairs.csv", &world.tsv(""));
    let args = "eval retrieval --model clip --data elsewhere/pairs.csv --images pictures --json";
    world.is_expected(&world.json(args));

    let keys = "--image-key image --caption-key caption";
    let args = format!("eval retrieval --model clip --data emoji.parquet {keys} --json");
    world.is_expected(&world.json(&args));

    let list: Vec<Value> =
        world.rows.iter().map(|(f, c)| json!({ "image": f, "caption": c })).collect();
    world.write("list.json", &json!(list).to_string());
    let lines: Vec<String> = list.iter().map(Value::to_string).collect();
    world.write("lines.jsonl", &lines.join("\n"));
    for table in ["list.json", "lines.jsonl"] {
        let args = format!("eval retrieval --model clip --data {table} --images pictures {keys}");
        world.is_expected(&world.json(&format!("{args} --json")));
    }
}

#[test]
fn karpathys_and_cocos_files_are_read_with_images_as_their_archives_unpack() {
    let world = World::new();
    let images: Vec<Value> = world.rows.iter().zip(0..).map(|((file, captions), i)| {
        let sentences: Vec<Value> = captions.iter().map(|raw| json!({ "raw": raw })).collect();
        let split = if i < 4 { "val" } else { "test" };
        json!({ "filename": file, "filepath": "val2014", "split": split, "sentences": sentences })
    }).collect();
    world.write("dataset_coco.json", &json!({ "images": images, "dataset": "coco" }).to_string());

    let retrieval = "eval retrieval --model clip --json --data";
    let error = world.mistake(&format!("{retrieval} dataset_coco.json"));
    assert!(error.contains("test (92), val (4)") && error.contains("--split"), "{error}");
    let error = world.mistake(&format!("{retrieval} dataset_coco.json --split dev"));
    assert!(error.contains("no split is dev"), "{error}");
    let error = world.mistake(&format!("{retrieval} dataset_coco.json --split val --images clip"));
    assert!(
        error.contains("none of its 4 images is there") && error.contains("--images"),
        "{error}"
    );

    // Flat, and in the archive's folder; the test split is taken for a named set, and its size is told.
    let flat = world.json(&format!("{retrieval} dataset_coco.json --split val --images pictures"));
    assert_eq!((&flat["images"], &flat["captions"]), (&4.into(), &10.into()));
    fs::create_dir(world.path("coco")).unwrap();
    fs::rename(world.path("pictures"), world.path("coco/val2014")).unwrap();
    let named = world.json(&format!("{retrieval} dataset_coco.json --images coco --set coco"));
    assert_eq!((&named["images"], &named["published"]["captions"]), (&92.into(), &25_010.into()));
    assert!(named["settings"]["set"].as_str().unwrap().contains("NOT as published"));

    // mehdidc's: COCO's own form, and lines for Flickr.
    let listed: Vec<Value> = world
        .rows
        .iter()
        .zip(1..)
        .map(|((file, _), id)| json!({ "file_name": file, "id": id }))
        .collect();
    let annotations: Vec<Value> = world
        .rows
        .iter()
        .zip(1..)
        .flat_map(|((_, captions), id)| {
            captions.iter().map(move |caption| json!({ "image_id": id, "caption": caption }))
        })
        .collect();
    let file = json!({ "images": listed, "annotations": annotations });
    world.write("coco_test_karpathy.json", &file.to_string());
    world.is_expected(
        &world.json(&format!("{retrieval} coco_test_karpathy.json --images coco --set coco")),
    );
    let error =
        world.mistake(&format!("{retrieval} coco_test_karpathy.json --images coco --split test"));
    assert!(error.contains("has no splits"), "{error}");

    // The decoder looks at contents, so that PNGs may be called .jpg.
    fs::create_dir(world.path("flickr30k-images")).unwrap();
    let mut text = String::from("image,caption\n");
    for (file, captions) in &world.rows {
        let name = file.replace("png", "jpg");
        fs::copy(world.path("coco/val2014").join(file), world.path("flickr30k-images").join(&name))
            .unwrap();
        captions.iter().for_each(|c| text.push_str(&format!("{name},{c}\n")));
    }
    world.write("flickr30k_test_karpathy.txt", &text);
    world.is_expected(
        &world.json(&format!("{retrieval} flickr30k_test_karpathy.txt --set flickr30k")),
    );
}

#[test]
fn cosines_of_every_image_equal_pytorchs_whole_and_masked() {
    let world = World::new();
    let student = Clip::load(&world.path("clip"), Device::Cpu).unwrap();
    tch::no_grad(|| {
        for (name, mut weight) in student.store.variables() {
            if name.starts_with("visual.blocks.2.") || name.starts_with("visual.blocks.3.") {
                weight *= 0.5;
            }
        }
    });
    student.save(&world.path("student"), Kind::Float).unwrap();
    let align = "eval align --model student --teacher clip --data emoji.parquet --image-key image --caption-key caption --json";
    for (name, mask) in [("whole", ""), ("masked", "--mask-ratio 0.5 --mask-kind random --seed 7")]
    {
        let found = world.json(&format!("{align} {mask}"));
        let expected = world.expected["align"][name].as_array().unwrap();
        let images = found["per_image"].as_array().unwrap();
        assert_eq!(images.len(), expected.len());
        for key in ["cosine", "cosine_cls", "cosine_patches"] {
            let column = |rows: &[Value]| -> Vec<f64> {
                rows.iter().map(|row| row[key].as_f64().unwrap()).collect()
            };
            let (ours, theirs) = (column(images), column(expected));
            for (a, b) in ours.iter().zip(&theirs) {
                assert!((a - b).abs() < 2e-6, "{name} {key}: {a}, PyTorch {b}");
            }
            let n = theirs.len() as f64;
            let mean = theirs.iter().sum::<f64>() / n;
            let std = (theirs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
            assert!((found[key].as_f64().unwrap() - mean).abs() < 1e-5);
            assert!((found[format!("{key}_std")].as_f64().unwrap() - std).abs() < 1e-5);
            let low = found[format!("{key}_interval")][0].as_f64().unwrap();
            assert!((mean - low - 1.96 * std / n.sqrt()).abs() < 1e-4);
        }
    }
}

#[test]
fn nothing_that_is_left_out_goes_untold() {
    let world = World::new();
    let rows = "pictures/000.png\tone\npictures/none.png\tmissing\npictures/001.png\t\n\
                short\npictures/002.png\ttwo\npictures/000.png\tagain\n\tnobody\n";
    world.write("pairs.tsv", &format!("filepath\ttitle\n{rows}"));
    let found = world.json("eval retrieval --model clip --data pairs.tsv --json");
    assert_eq!((&found["images"], &found["captions"]), (&2.into(), &3.into()));
    assert_eq!(found["without_caption"], 1);
    assert_eq!(found["rejected"][0]["key"], "pictures/none");
    let problems = found["problems"].to_string();
    for part in [
        "1 captions that are empty, too long or no text (line 4)",
        "header (line 5)",
        "1 rows without an image (line 8)",
    ] {
        assert!(problems.contains(part), "{part}: {problems}");
    }
    let page = world.uta("eval retrieval --model clip --data pairs.tsv");
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(page.contains("pictures/none") && page.contains("line 4"), "{page}");

    let stats = world.json("data stats pairs.tsv --json");
    assert_eq!((&stats["samples"], &stats["captions"]), (&4.into(), &3.into()));
    assert_eq!(stats["broken"][0]["key"], "pictures/none");

    let out = world.uta("data verify pairs.tsv --json --report faults.jsonl");
    let verified: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((out.status.code(), &verified["sound"]), (Some(1), &2.into()), "{verified}");
    let kinds = ["shard", "missing", "caption"];
    let counts = kinds.map(|kind| verified["faults"][kind]["count"].as_u64().unwrap());
    assert_eq!(counts, [3, 1, 1], "{verified}");
    let report = fs::read_to_string(world.path("faults.jsonl")).unwrap();
    let report: Vec<Value> = report.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let reported = kinds.map(|kind| report.iter().filter(|line| line["kind"] == kind).count());
    assert_eq!((reported, report.len()), ([3, 1, 1], 5), "{report:?}");
    let missing = report.iter().find(|line| line["kind"] == "missing").unwrap();
    assert_eq!((&missing["step"], &missing["key"]), (&0.into(), &"pictures/none".into()));
    let out = world.uta("data verify emoji.parquet --image-key image --caption-key caption");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && text.contains("96 of 96 samples are sound"), "{text}");
    assert!(world.mistake("data verify nowhere").contains("there is no nowhere"));

    let error = world.mistake("eval retrieval --model clip --data pairs.tsv --image-key file");
    assert!(error.contains("no column file") && error.contains("filepath, title"), "{error}");
    let error = world.mistake("eval retrieval --model clip --data pictures --split test");
    assert!(error.contains("is no table"), "{error}");
}

#[test]
fn a_contrastive_run_trains_on_a_table() {
    let world = World::new();
    let recipe = repository().join("recipes/mini/clip-emoji.toml");
    world.write("elsewhere.csv", &world.tsv(""));
    let out = world.uta(&format!(
        "train {} --out run --set data.train=elsewhere.csv --set data.pairs.images=pictures --set data.val=[] --set eval.sets=[] \
         --set train.steps=2 --set schedule.warmup=1 --set train.batch=8 --set data.workers=1",
        recipe.display()
    ));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let kept = fs::read_to_string(world.path("run/recipe.toml")).unwrap();
    assert!(kept.contains(&format!("images = {:?}", world.path("pictures"))), "{kept}");
}

/// A table of one real model and one that is missing, on a set that is there.
fn table(world: &World) {
    world.write("data/emoji.tsv", &world.tsv("../pictures/"));
    fs::create_dir(world.path("models")).unwrap();
    std::os::unix::fs::symlink(world.path("clip"), world.path("models/emoji")).unwrap();
    let column = |way: &str, key: &str| {
        format!(
            "[[columns]]\nname = \"R@1\"\nabove = [\"{way}\"]\nset = \"pairs\"\nvalue = \"{key}.r1\"\n"
        )
    };
    world.write("t.toml", &format!(
        "title = \"T & U\"\nmeasure = \"retrieval\"\naverage = true\ntolerance = 0.1\nlabels = [\"Method\"]\n\
         [sources]\npaper = \"a paper\"\n[notes]\nodd = \"An odd row.\"\n\
         [[sets]]\nname = \"pairs\"\ndata = \"emoji.tsv\"\n{}{}\
         [[models]]\nname = \"emoji\"\nlabels = [\"CLIP\"]\npaper = [84.4, 80.0, 82.2]\nopen_clip = [84.4, 87.1]\nnotes = [\"odd\"]\n\
         [[models]]\nname = \"absent\"\nlabels = [\"UTA\"]\npaper = [1.0, 2.0, 1.5]\n",
        column("Text", "image_to_text"), column("Image", "text_to_image")
    ));
}

#[test]
fn a_table_measures_what_is_there_marks_differences_and_shows_gaps() {
    let world = World::new();
    table(&world);
    let out = world.uta("eval table t.toml --out out -- --batch 32");
    assert_eq!(out.status.code(), Some(2), "a gap is no success");
    assert!(String::from_utf8_lossy(&out.stderr).contains("1 of 2 cells are gaps"));
    let page = String::from_utf8(out.stdout).unwrap();
    let rows: Vec<Vec<&str>> = page.lines().map(|line| line.split_whitespace().collect()).collect();
    // 84.38 is the paper's 84.4; 87.07 is not its 80.0, but open_clip's; the mean is neither's.
    assert!(rows.contains(&vec!["CLIP", "[1]", "uta", "84.38", "87.07*", "85.72*"]), "{page}");
    assert!(rows.contains(&vec!["paper", "84.4", "80.0°", "82.2°"]), "{page}");
    assert!(rows.contains(&vec!["UTA", "uta", "–", "–", "–"]), "{page}");
    assert!(page.contains("[1] An odd row.") && page.contains("absent"), "{page}");
    assert!(page.contains("there is no models/absent"), "{page}");

    let markdown = fs::read_to_string(world.path("out/t.md")).unwrap();
    assert!(markdown.contains("| CLIP [1] | uta | 84.38 | 87.07\\* | 85.72\\* |"), "{markdown}");
    let latex = fs::read_to_string(world.path("out/t.tex")).unwrap();
    assert!(latex.contains("\\caption{T \\& U}") && latex.contains("87.07$^{*}$"), "{latex}");
    let csv = fs::read_to_string(world.path("out/t.csv")).unwrap();
    assert!(csv.contains("emoji,paper,Image R@1,pairs,80,false,true"), "{csv}");

    // The kept cell is the single command's own JSON, and serves again; another option measures anew.
    let kept = world.path("out/cells/emoji--pairs.json");
    let cell: Value = serde_json::from_slice(&fs::read(&kept).unwrap()).unwrap();
    let command: Vec<&str> =
        cell["command"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
    assert_eq!(world.json(&command.join(" ")), cell["report"]);
    let mut changed = cell.clone();
    changed["report"]["image_to_text"]["r1"] = json!(0.5);
    fs::write(&kept, changed.to_string()).unwrap();
    let again = world.json("eval table t.toml --out out --only emoji --json -- --batch 32");
    assert_eq!(again["rows"][0]["values"][0]["percent"], 50.0, "the kept cell is used");
    let other = world.json("eval table t.toml --out out --only emoji --json -- --batch 16");
    assert!(other["rows"][0]["values"][0]["percent"].as_f64().unwrap() > 84.0);
}

#[test]
fn a_cell_that_fails_is_a_gap_with_its_own_words_and_wrong_tables_are_refused() {
    let world = World::new();
    table(&world);
    fs::create_dir(world.path("models/absent")).unwrap();
    let out = world.uta("eval table t.toml --out out");
    assert_eq!(out.status.code(), Some(1));
    let page = String::from_utf8(out.stdout).unwrap();
    assert!(page.contains("gap: absent on pairs: ") && page.contains("84.38"), "{page}");

    let good = fs::read_to_string(world.path("t.toml")).unwrap();
    for (from, to, say) in [
        ("set = \"pairs\"", "set = \"other\"", "no set is called other"),
        ("[84.4, 80.0, 82.2]", "[84.4]", "1 values of the paper, not 3"),
        ("name = \"absent\"", "name = \"../absent\"", "names files"),
        ("name = \"absent\"", "name = \"emoji\"", "two are called emoji"),
        ("tolerance", "tolerence", "tolerence"),
        ("[\"odd\"]", "[\"even\"]", "no note even"),
    ] {
        world.write("bad.toml", &good.replacen(from, to, 1));
        let error = world.mistake("eval table bad.toml --out out");
        assert!(error.contains(say) && error.contains("bad.toml"), "{error}");
    }
    let error = world.mistake("eval table t.toml --only nobody");
    assert!(error.contains("emoji, absent"), "{error}");
}

#[test]
fn the_papers_tables_are_read_whole() {
    let world = World::new();
    for (name, models, sets) in [("table1", 19, 6), ("table2", 15, 2)] {
        let table = repository().join(format!("recipes/tables/{name}.toml"));
        let out = world.uta(&format!("eval table {} --out out --json", table.display()));
        assert_eq!(out.status.code(), Some(2), "no model is there");
        let found: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(found["gaps"].as_array().unwrap().len(), models * sets);
    }
}
