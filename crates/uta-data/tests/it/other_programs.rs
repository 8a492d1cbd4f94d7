//! Sets as other programs and other systems leave them.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use uta_data::shards::{Limit, ShardWriter};
use uta_data::{DataError, PairOptions, Source, open, open_with};

struct World(tempfile::TempDir);

impl World {
    /// A folder with the pictures a.png to d.png.
    fn new() -> World {
        let world = World(tempfile::tempdir().unwrap());
        ["a.png", "b.png", "c.png", "d.png"].iter().for_each(|name| world.picture(name));
        world
    }

    fn empty() -> World {
        World(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn spec(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    fn picture(&self, name: &str) {
        let mut bytes = std::io::Cursor::new(vec![]);
        image::RgbImage::new(4, 3).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        self.write(name, bytes.into_inner());
    }

    /// A shard of the four pictures, whose companions have these extensions.
    fn shard(&self, prefix: &str, companions: &[(&str, &[u8])]) -> PathBuf {
        let picture = fs::read(self.path("a.png")).unwrap();
        let mut writer =
            ShardWriter::create(self.path("shards"), prefix, Limit::default()).unwrap();
        for i in 0..4 {
            let members = [&[("png", &picture[..])], companions].concat();
            writer.write(&format!("k{i}"), &members).unwrap();
        }
        writer.finish().unwrap().remove(0)
    }
}

fn captions(source: &Arc<dyn Source>) -> Vec<Vec<String>> {
    (0..source.len()).map(|i| source.read(i).unwrap().captions).collect()
}

fn error(opened: Result<Arc<dyn Source>, DataError>) -> String {
    opened.err().unwrap().to_string()
}

#[test]
fn an_index_of_another_program_is_left_as_it_is_and_ours_has_its_own_name() {
    let world = World::new();
    let shard = world.shard("s", &[]);
    let foreign = shard.with_extension("tar.idx");
    fs::write(&foreign, b"offsets of another program").unwrap();
    for _ in 0..2 {
        assert_eq!(open(shard.to_str().unwrap()).unwrap().len(), 4);
        assert_eq!(fs::read(&foreign).unwrap(), b"offsets of another program");
    }
    let ours = world.path("shards/.s-000000.tar.uta-index");
    assert!(ours.is_file());
    // A file that uta didn't write stays even under that name.
    fs::write(&ours, b"a note").unwrap();
    assert_eq!(open(shard.to_str().unwrap()).unwrap().len(), 4);
    assert_eq!(fs::read(&ours).unwrap(), b"a note");
}

#[test]
fn a_quote_that_closes_rows_later_is_an_error_that_names_its_line() {
    let world = World::new();
    for (rows, line) in [
        ("a.png\tone\nb.png\t\"two\nc.png\tthree\nd.png\tfour\"\n", "line 3"),
        ("a.png\t\"one\nb.png\ttwo\nc.png\t\"three\nd.png\tfour\n", "line 2"),
    ] {
        world.write("t.tsv", format!("filepath\ttitle\n{rows}"));
        let e = error(open(&world.spec("t.tsv")));
        assert!(e.contains(&format!("{line} opens a quote")), "{e}");
    }
    world.write("t.csv", "filepath,title\na.png,\"two\nlines\"\nb.png,x\n");
    let both = captions(&open(&world.spec("t.csv")).unwrap());
    assert_eq!(both, [["two\nlines"], ["x"]]);
}

#[test]
fn flickrs_captions_are_read_by_their_header() {
    let world = World::new();
    world.write(
        "captions.txt",
        "\u{feff}image,caption\na.png,\"One , two\"\na.png,\"Said \"\"hi\"\" , left\"\nb.png,x\n",
    );
    let source = open(&world.spec("captions.txt")).unwrap();
    assert_eq!(source.len(), 2);
    assert_eq!(captions(&source), [vec!["One , two", "Said \"hi\" , left"], vec!["x"]]);
    world.write(
        "captions.txt",
        "image_name,comment_number,comment\na.png,0,Two men .\na.png,1,Men .\n",
    );
    let keys = PairOptions {
        image_key: Some("image_name".into()),
        caption_key: Some("comment".into()),
        ..PairOptions::default()
    };
    let source = open_with(&[world.spec("captions.txt")], &keys).unwrap();
    assert_eq!(captions(&source), [["Two men .", "Men ."]]);
}

#[test]
fn companions_are_found_in_any_case() {
    let world = World::new();
    for (prefix, txt, cls) in [("upper", "TXT", "CLS"), ("mixed", "Txt", "cLs")] {
        let shard = world.shard(prefix, &[(txt, b"words"), (cls, b"1")]);
        let sample = open(shard.to_str().unwrap()).unwrap().read(0).unwrap();
        assert_eq!((sample.captions, sample.class), (vec!["words".to_owned()], Some(1)));
    }
    let folder = World::new();
    folder.write("b.TXT", "words");
    let source = open(folder.0.path().to_str().unwrap()).unwrap();
    assert_eq!(source.read(1).unwrap().captions, ["words"]);
}

#[test]
fn a_strange_label_costs_nothing_where_no_class_is_asked_for() {
    let world = World::new();
    for (prefix, text) in [("word", "dog"), ("float", "1.5"), ("below", "-1")] {
        let shard = world.shard(prefix, &[("cls", text.as_bytes())]);
        let sample = open(shard.to_str().unwrap()).unwrap().read(0).unwrap();
        assert_eq!(sample.class, None);
        let e = sample.class().unwrap_err().to_string();
        assert!(e.contains(text) && e.contains("not a class index"), "{e}");
    }
}

#[test]
fn marks_of_byte_order_are_no_part_of_captions_labels_and_tables() {
    let world = World::new();
    let marked = |text: &str| format!("\u{feff}{text}").into_bytes();
    let shard = world.shard("marked", &[("txt", &marked("words")), ("cls", &marked("2"))]);
    let sample = open(shard.to_str().unwrap()).unwrap().read(0).unwrap();
    assert_eq!((&sample.captions[..], sample.class), (&["words".to_owned()][..], Some(2)));
    for (name, text) in [
        ("t.csv", "filepath,title\na.png,words\n"),
        ("t.tsv", "filepath\ttitle\na.png\twords\n"),
        ("t.jsonl", r#"{"filepath":"a.png","title":"words"}"#),
        ("t.json", r#"[{"filepath":"a.png","title":"words"}]"#),
        ("t.txt", "image,caption\na.png,words\n"),
    ] {
        world.write(name, marked(text));
        assert_eq!(captions(&open(&world.spec(name)).unwrap()), [["words"]], "{name}");
    }
}

#[test]
fn a_list_of_sizes_that_cannot_be_parsed_stays_as_it_is() {
    let world = World::new();
    let shard = world.shard("s", &[]);
    world.write("shards/sizes.json", "not a list");
    assert_eq!(open(shard.to_str().unwrap()).unwrap().len(), 4);
    // Adding to it would lose it.
    let more = ShardWriter::create(world.path("shards"), "more", Limit::default());
    let e = more.err().unwrap().to_string();
    assert!(e.contains("sizes.json") && e.contains("no list of sizes"), "{e}");
    assert_eq!(fs::read(world.path("shards/sizes.json")).unwrap(), b"not a list");
}

#[test]
fn patterns_match_no_hidden_files_and_folders_are_no_shards() {
    let world = World::new();
    let shard = world.shard("s", &[]);
    world.write("shards/._s-000000.tar", "resource fork");
    fs::create_dir(world.path("shards/t.tar")).unwrap();
    assert_eq!(open(&world.spec("shards/*.tar")).unwrap().len(), 4);
    assert_eq!(open(&world.spec("shards")).unwrap().len(), 4);
    world.write("x.csv", "filepath,title\na.png,x\n");
    world.write("._x.csv", "resource fork");
    assert_eq!(open(&world.spec("*.csv")).unwrap().len(), 1);
    let packed = shard.with_file_name("packed.tar");
    fs::write(&packed, [0x1f, 0x8b, 8, 0, 0, 0, 0, 0]).unwrap();
    let e = error(open(packed.to_str().unwrap()));
    assert!(e.contains("is gzip") && e.contains("unpack it first"), "{e}");
}

#[test]
fn pythons_numbers_and_any_kind_of_id_are_read() {
    let world = World::new();
    let row = r#"{"filepath":"a.png","title":"NaN, Infinity","score":NaN,"x":[-Infinity]}"#;
    for (name, text) in [("t.json", format!("[{row}]")), ("t.jsonl", format!("{row}\n"))] {
        world.write(name, text);
        assert_eq!(captions(&open(&world.spec(name)).unwrap()), [["NaN, Infinity"]]);
    }
    for id in ["\"0001\"", "-7", "7.5", "18446744073709551615"] {
        let coco = format!(
            r#"{{"images":[{{"id":{id},"file_name":"b.png","score":NaN}}],"annotations":[{{"image_id":{id},"caption":"x"}}]}}"#
        );
        world.write("coco.json", coco);
        assert_eq!(captions(&open(&world.spec("coco.json")).unwrap()), [["x"]], "{id}");
    }
}

#[test]
fn what_systems_leave_behind_is_no_class_and_one_picture_beside_turns_none_off() {
    let world = World::empty();
    ["cat/1.png", "cat/2.jfif", "dog/1.JPE", "preview.png"]
        .iter()
        .for_each(|name| world.picture(name));
    ["__MACOSX/x.png", "@eaDir/x.png", "lost+found/x.png"].iter().for_each(|n| world.picture(n));
    let source = open(world.0.path().to_str().unwrap()).unwrap();
    assert_eq!(source.class_names().unwrap(), ["cat", "dog"]);
    let classes: Vec<_> = (0..source.len()).map(|i| source.read(i).unwrap().class).collect();
    assert_eq!(classes, [Some(0), Some(0), Some(1), None]);
}
