//! Pair tables: images named beside their captions, in CSV, TSV, JSON, JSON lines, Parquet, the files of COCO and of
//! Karpathy's splits, and the plain text of Flickr's captions.
//!
//! Where texts alone are asked for, a table needs no column of images, each row is a sample, and a `.txt` may hold a text a line.
//!
//! The rows of an image are one sample with all of their captions. The table is read once and held as two runs of text
//! with offsets; images are read when they are asked for. What of the table cannot be used is counted, and the first few
//! places named ([`Source::problems`]).

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use self::files::{Files, Strings};
pub use self::options::PairOptions;
use self::reading::Reading;
use crate::error::DataError;
use crate::source::Source;
use crate::source::file::image_file;
use crate::source::sample::Sample;

mod delimited;
mod files;
mod json;
mod lines;
mod options;
mod parquet;
mod python;
mod reading;

/// Bytes of a table of text: its captions are held in memory.
const MAX_TABLE: u64 = 16 << 30;

/// A table of images and captions.
pub(crate) struct Pairs {
    images: Images,
    captions: Strings,
    /// Captions `starts[i]..starts[i + 1]` are sample i's.
    starts: Vec<u32>,
    problems: Vec<String>,
}

/// Where the images are.
enum Images {
    Files(Files),
    Rows(parquet::Rows),
    /// Nowhere: texts alone were asked for. The table's name stands in their keys.
    None(String),
}

impl Pairs {
    /// Reads the table at `path`, whose extension is one of `TABLES`.
    ///
    /// # Errors
    /// When it can't be read, lacks the columns or the split, names no image, or none of its images is there.
    pub(crate) fn open(path: &Path, options: &PairOptions) -> Result<Pairs, DataError> {
        Pairs::read_table(path, options, false)
    }

    /// Reads the texts alone of the table at `path`, whose extension is one of `TABLES`.
    ///
    /// # Errors
    /// When it can't be read, lacks the column or the split, or options speak of images.
    pub(crate) fn open_texts(path: &Path, options: &PairOptions) -> Result<Pairs, DataError> {
        let keys = [
            ("images", options.images.as_ref().map(|images| images.display().to_string())),
            ("image_key", options.image_key.clone()),
        ];
        if let Some((field, Some(value))) = keys.into_iter().find(|(_, value)| value.is_some()) {
            let reason = "only texts are read, and they have no images: leave it out".into();
            return Err(DataError::Option { field, value, reason });
        }
        Pairs::read_table(path, options, true)
    }

    fn read_table(path: &Path, options: &PairOptions, texts: bool) -> Result<Pairs, DataError> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        let mut rows = Reading::new(path, options, texts);
        let (limit, mut known_set, mut images) = (MAX_TABLE, false, None);
        let size = fs::metadata(path).map_err(DataError::io("read", path))?.len();
        if size > limit && extension != "parquet" {
            return Err(rows.fail(format!("{size} bytes; a table has at most {limit}: split it")));
        }
        if extension != "parquet" {
            rows.is_utf8()?;
        }
        match extension.to_str().unwrap_or_default() {
            "csv" => rows.delimited([b',', b'\t', b'|'])?,
            "tsv" => rows.delimited([b'\t', b',', b'|'])?,
            "json" => known_set = rows.json(size)?,
            "parquet" => images = parquet::read(&mut rows)?,
            "txt" => {
                known_set = true;
                rows.lines()?;
            }
            _ => rows.json_lines()?,
        }
        rows.finish(images, known_set)
    }
}

impl Source for Pairs {
    fn len(&self) -> usize {
        self.starts.len() - 1
    }

    fn read(&self, i: usize) -> Result<Sample, DataError> {
        let broken = |reason: String| DataError::Sample { key: self.key(i), reason };
        let image = match &self.images {
            Images::Files(files) => {
                image_file(&files.locate(files.names.get(i)).map_err(broken)?, || self.key(i))?
            }
            Images::Rows(rows) => rows.image(i).map_err(broken)?,
            Images::None(_) => vec![],
        };
        let captions = self.starts[i] as usize..self.starts[i + 1] as usize;
        let captions = captions.map(|c| self.captions.get(c).to_owned()).collect();
        Ok(Sample { key: self.key(i), image, captions, ..Sample::default() })
    }

    fn key(&self, i: usize) -> String {
        match &self.images {
            Images::Files(files) => {
                Path::new(files.names.get(i)).with_extension("").to_string_lossy().into_owned()
            }
            Images::Rows(rows) => rows.key(i),
            Images::None(table) => format!("{table}/{i}"),
        }
    }

    fn name(&self, i: usize) -> Option<String> {
        match &self.images {
            Images::Files(files) => Some(files.names.get(i).to_owned()),
            Images::Rows(_) | Images::None(_) => None,
        }
    }

    fn class_names(&self) -> Option<&[String]> {
        None
    }

    fn problems(&self) -> Vec<String> {
        self.problems.clone()
    }
}

impl Reading<'_> {
    /// The source of the rows that were read; Parquet's own pictures are `rows`.
    fn finish(mut self, rows: Option<parquet::Rows>, known_set: bool) -> Result<Pairs, DataError> {
        let n = rows.as_ref().map_or(self.names.len(), parquet::Rows::len);
        if let Some(wanted) = &self.options.split {
            if self.splits.is_empty() {
                return Err(
                    self.fail(format!("has no splits, so none is {wanted}; leave --split out"))
                );
            }
            if !self.splits.contains_key(wanted) {
                return Err(
                    self.fail(format!("no split is {wanted}; there are {}", self.split_counts()))
                );
            }
        }
        let faults = std::mem::take(&mut self.faults);
        let problems: Vec<String> = faults
            .into_iter()
            .map(|(what, (count, mut places))| {
                if count > places.len() {
                    places.push("...".into());
                }
                format!("{}: {count} {what} ({})", self.path.display(), places.join(", "))
            })
            .collect();
        if n == 0 {
            let found = if problems.is_empty() { "no rows".into() } else { problems.join("; ") };
            let wanted = match self.texts {
                true => "texts".into(),
                false => "rows of an image and a caption".into(),
            };
            return Err(DataError::Empty { path: self.path.to_owned(), wanted, found });
        }
        if n > u32::MAX as usize - 1 || self.owners.len() > u32::MAX as usize - 1 {
            return Err(self.fail("more than 4 billion rows; split it"));
        }

        let mut starts = vec![0u32; n + 1];
        for &owner in &self.owners {
            starts[owner as usize + 1] += 1;
        }
        for i in 0..n {
            starts[i + 1] += starts[i];
        }
        if !self.owners.is_sorted() {
            let mut next = starts.clone();
            let mut order = vec![0u32; self.owners.len()];
            for (caption, &owner) in self.owners.iter().enumerate() {
                order[next[owner as usize] as usize] = caption as u32;
                next[owner as usize] += 1;
            }
            let mut sorted = Strings::default();
            order.iter().for_each(|&caption| sorted.push(self.captions.get(caption as usize)));
            self.captions = sorted;
        }
        let images = match rows {
            Some(rows) => Images::Rows(rows),
            None if self.texts => {
                Images::None(self.path.file_stem().unwrap_or_default().to_string_lossy().into())
            }
            None => {
                let beside = self.path.parent().filter(|p| !p.as_os_str().is_empty());
                let beside = beside.unwrap_or(Path::new("."));
                let given = self.options.images.as_deref();
                let root = given.unwrap_or(beside);
                let mut files = Files {
                    names: self.names,
                    root: std::path::absolute(root).map_err(DataError::io("find", root))?,
                    fenced: given.is_some(),
                    folder: "",
                    flat: false,
                };
                files.settle(self.path, known_set)?;
                Images::Files(files)
            }
        };
        Ok(Pairs { images, captions: self.captions, starts, problems })
    }
}

/// The extension of a name, in lower case, without what a URL has behind it.
fn ending(name: &str) -> Option<String> {
    let extension = Path::new(name).extension().and_then(OsStr::to_str)?;
    let end = extension.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(extension.len());
    (end > 0).then(|| extension[..end].to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::png;

    #[test]
    fn texts_alone_need_no_images_and_may_be_lines() {
        let dir = tempfile::tempdir().unwrap();
        let texts = |name: &str, table: &[u8], options: &PairOptions| {
            let path = dir.path().join(name);
            fs::write(&path, table).unwrap();
            let pairs = Pairs::open_texts(&path, options)?;
            let captions = |i| {
                let sample = pairs.read(i).unwrap();
                assert!(sample.image.is_empty());
                sample.captions.join("|")
            };
            Ok::<_, DataError>((
                (0..pairs.len()).map(captions).collect::<Vec<_>>(),
                pairs.problems(),
            ))
        };
        let plain = PairOptions::default();
        for (name, table) in [
            ("a.csv", "title\na cat\na dog\n"),
            ("b.csv", "filepath,title\nnowhere.jpg,a cat\nnowhere.jpg,a dog\n"),
            ("c.tsv", "url\tcaption\nx\ta cat\ny\ta dog\n"),
            ("d.jsonl", "{\"text\":\"a cat\"}\n{\"text\":[\"a dog\"]}\n"),
            ("e.txt", "\u{feff}a cat\n\n  a dog\n"),
            ("f.txt", "image,caption\n1.jpg,a cat\n1.jpg,a dog\n"),
            ("g.txt", "1.jpg#0\ta cat\n1.jpg#1\ta dog\n"),
        ] {
            let (found, problems) = texts(name, table.as_bytes(), &plain).unwrap();
            assert_eq!(
                (found, problems),
                (vec!["a cat".to_owned(), "a dog".into()], vec![]),
                "{name}"
            );
        }
        // A comma makes no table of a text.
        let (found, _) = texts("h.txt", b"a cat, asleep\na dog\n", &plain).unwrap();
        assert_eq!(found, ["a cat, asleep", "a dog"]);
        let named = PairOptions { caption_key: Some("caption".into()), ..plain.clone() };
        let (found, _) = texts("i.parquet", &golden(), &named).unwrap();
        let with_image = PairOptions { image_key: Some("image".into()), ..named };
        let pairs = Pairs::open(&dir.path().join("i.parquet"), &with_image).unwrap();
        let captions: Vec<String> =
            (0..pairs.len()).map(|i| pairs.read(i).unwrap().captions.join("|")).collect();
        assert_eq!(found, captions);
        let (_, problems) = texts("j.csv", b"title,x\na,1\n,2\nb\n", &plain).unwrap();
        assert_eq!(problems.len(), 2, "{problems:?}");

        let e = texts("k.csv", b"sentence\na\n", &plain).unwrap_err().to_string();
        assert!(e.contains("no column title, but sentence"), "{e}");
        let images = PairOptions { image_key: Some("url".into()), ..plain };
        let e = texts("l.csv", b"title\na\n", &images).unwrap_err().to_string();
        assert!(e.contains("image_key = url: only texts are read"), "{e}");
        let e = texts("m.txt", b"\n\n", &PairOptions::default()).unwrap_err().to_string();
        assert!(e.contains("texts"), "{e}");
    }

    /// A folder with images a.png to d.png, and a table beside them.
    struct World(tempfile::TempDir);

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            for name in ["a", "b", "c", "d"] {
                fs::write(dir.path().join(format!("{name}.png")), png(2, 2, [1; 3])).unwrap();
            }
            World(dir)
        }

        fn open_with(
            &self,
            name: &str,
            text: impl AsRef<[u8]>,
            options: &PairOptions,
        ) -> Result<Pairs, DataError> {
            let path = self.0.path().join(name);
            fs::write(&path, text).unwrap();
            Pairs::open(&path, options)
        }

        fn open(&self, name: &str, text: impl AsRef<[u8]>) -> Pairs {
            self.open_with(name, text, &PairOptions::default()).unwrap()
        }

        fn error(&self, name: &str, text: impl AsRef<[u8]>) -> String {
            self.open_with(name, text, &PairOptions::default()).err().unwrap().to_string()
        }
    }

    fn contents(pairs: &Pairs) -> Vec<(String, Vec<String>)> {
        let sample = |i| {
            pairs.read(i).map(|s: Sample| (pairs.name(i).unwrap_or(s.key), s.captions)).unwrap()
        };
        (0..pairs.len()).map(sample).collect()
    }

    fn rows(rows: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
        let row = |(name, captions): &(&str, &[&str])| {
            (name.to_string(), captions.iter().map(|c| c.to_string()).collect())
        };
        rows.iter().map(row).collect()
    }

    #[test]
    fn rows_of_an_image_are_one_sample_in_the_order_of_the_table() {
        let world = World::new();
        let pairs =
            world.open("t.tsv", "title\tfilepath\n1\tb.png\n2\ta.png\n3\tb.png\n4\ta.png\n");
        assert_eq!(contents(&pairs), rows(&[("b.png", &["1", "3"]), ("a.png", &["2", "4"])]));
        assert_eq!(pairs.key(0), "b");
        assert!(pairs.problems().is_empty());
    }

    #[test]
    fn quotes_marks_of_byte_order_and_carriage_returns_are_no_part_of_a_field() {
        let world = World::new();
        let text = "\u{feff}filepath,title,more\r\na.png,\"one, \"\"two\"\"\nthree\",x\r\nb.png,plain \"q\" ,y\r\n";
        let pairs = world.open("t.csv", text);
        let wanted = rows(&[("a.png", &["one, \"two\"\nthree"]), ("b.png", &["plain \"q\""])]);
        assert_eq!(contents(&pairs), wanted);
        let json = "\u{feff}{\"filepath\":\"a.png\",\"title\":\"x\"}\r\n\r\n";
        assert_eq!(contents(&world.open("t.jsonl", json)), rows(&[("a.png", &["x"])]));
    }

    #[test]
    fn a_csv_of_tabs_is_read_as_open_clip_does_and_other_columns_are_named() {
        let world = World::new();
        assert_eq!(world.open("t.csv", "filepath\ttitle\na.png\tx, y\n").len(), 1);
        let e = world.error("t.csv", "image,caption\na.png,x\n");
        assert!(e.contains("no column filepath, but image, caption"), "{e}");
        let e = world.error("t.jsonl", "{\"filepath\":\"a.png\",\"text\":\"x\"}");
        assert!(e.contains("no column title, but filepath, text"), "{e}");
    }

    #[test]
    fn a_quote_that_is_never_closed_is_an_error_and_swallows_no_rows() {
        let world = World::new();
        let e = world.error("t.tsv", "filepath\ttitle\na.png\tx\nb.png\t\"y\nc.png\tz\n");
        assert!(e.contains("line 3 opens a quote"), "{e}");
        // Only the last field can be open at the end of the table.
        let pairs = world.open("t.csv", "title,filepath\nx,b.png\n\"two\nlines\",a.png\n");
        assert_eq!(contents(&pairs), rows(&[("b.png", &["x"]), ("a.png", &["two\nlines"])]));
        let e = world.error("t.csv", "title,filepath\nx,b.png\n\"two\nlines,a.png\n");
        assert!(e.contains("line 3 opens a quote"), "{e}");
    }

    #[test]
    fn what_is_broken_is_counted_and_named_and_the_image_stays() {
        let world = World::new();
        let mut text = b"filepath,title\na.png,x\nb.png,\nc.png,\xff\n,z\nd.png\n".to_vec();
        text.extend(b"d.png,");
        text.extend(vec![b'x'; reading::MAX_TEXT + 1]);
        let pairs = world.open("t.csv", &text);
        let wanted = rows(&[("a.png", &["x"]), ("b.png", &[]), ("c.png", &[]), ("d.png", &[])]);
        assert_eq!(contents(&pairs), wanted);
        let problems = pairs.problems().join("\n");
        for part in [
            "3 captions that are empty, too long or no text (line 3, line 4, line 7)",
            "1 rows without an image (line 5)",
            "1 rows of another number of columns than the header (line 6)",
        ] {
            assert!(problems.contains(part), "{part}: {problems}");
        }
    }

    #[test]
    fn json_takes_lists_of_captions_and_tells_of_what_is_no_row() {
        let world = World::new();
        let text =
            r#"[{"filepath":"a.png","title":["x","y",3]}, 7, {"filepath":"b.png","title":null}]"#;
        let pairs = world.open("t.json", text);
        assert_eq!(contents(&pairs), rows(&[("a.png", &["x", "y"]), ("b.png", &[])]));
        assert!(pairs.problems().join(" ").contains("rows that are no JSON object (item 2)"));
        let e = world.error("t.json", &text[..40]);
        assert!(e.contains("t.json") && e.contains("line 1"), "{e}");
        let lines = "{\"filepath\":\"a.png\",\"title\":\"x\"}\n{broken\n";
        assert!(world.open("t.jsonl", lines).problems()[0].contains("(line 2)"));
    }

    #[test]
    fn an_image_listed_twice_in_no_split_or_not_at_all_is_told() {
        let world = World::new();
        let text = r#"{"images":[
            {"filename":"a.png","split":"test","sentences":[{"raw":"x"}]},
            {"filename":"a.png","split":"test","sentences":[{"raw":"y"}]},
            {"filename":"b.png","sentences":[{"raw":"z"}]},
            {"filename":"c.png","split":"train","sentences":[]}]}"#;
        let split = |name: &str| PairOptions { split: Some(name.into()), ..PairOptions::default() };
        let pairs = world.open_with("k.json", text, &split("test")).unwrap();
        assert_eq!(contents(&pairs), rows(&[("a.png", &["x", "y"])]));
        let problems = pairs.problems().join(" ");
        assert!(problems.contains("1 images listed again; their captions are joined (a.png)"));
        assert!(problems.contains("1 rows in no split (b.png)"), "{problems}");
        assert!(world.error("k.json", text).contains("test (2), train (1)"));
        let text = r#"{"images":[{"file_name":"a.png","id":1},{"file_name":"b.png","id":2}],
            "annotations":[{"image_id":1,"caption":"x"},{"image_id":9,"caption":"y"}]}"#;
        let pairs = world.open("c.json", text);
        assert_eq!(contents(&pairs), rows(&[("a.png", &["x"]), ("b.png", &[])]));
        let problems = pairs.problems().join(" ");
        assert!(problems.contains("1 captions of no listed image (image 9)"), "{problems}");
        assert!(problems.contains("1 rows without a caption (b.png)"), "{problems}");
    }

    #[test]
    fn a_column_of_splits_can_be_asked_for() {
        let world = World::new();
        let text = "filepath,title,split\na.png,x,train\nb.png,y,test\n";
        let split = |name: &str| PairOptions { split: Some(name.into()), ..PairOptions::default() };
        assert_eq!(world.open("t.csv", text).len(), 2);
        let pairs = world.open_with("t.csv", text, &split("test")).unwrap();
        assert_eq!(contents(&pairs), rows(&[("b.png", &["y"])]));
        let e = world.open_with("t.csv", text, &split("val")).err().unwrap().to_string();
        assert!(e.contains("no split is val; there are test (1), train (1)"), "{e}");
    }

    #[test]
    fn a_given_folder_is_a_fence_and_nothing_but_files_is_read() {
        let world = World::new();
        let (root, below) = (world.0.path(), world.0.path().join("below"));
        fs::create_dir(&below).unwrap();
        fs::copy(root.join("a.png"), below.join("e.png")).unwrap();
        let text = format!(
            "filepath,title\ne.png,1\n../a.png,2\n{},3\n{},4\n/dev/zero,5\nhttp://x/y.png,6\n",
            root.join("b.png").display(),
            below.join("e.png").display()
        );
        let fence = PairOptions { images: Some(below), ..PairOptions::default() };
        let pairs = world.open_with("t.csv", &text, &fence).unwrap();
        let read: Vec<bool> = (0..pairs.len()).map(|i| pairs.read(i).is_ok()).collect();
        assert_eq!(read, [true, false, false, true, false, false]);
        let e = pairs.read(1).unwrap_err().to_string();
        assert!(e.contains("outside of") && e.contains("../a"), "{e}");
        assert!(pairs.read(5).unwrap_err().to_string().contains("of this machine"));
        let open = world.open("below/t.csv", &text);
        let read: Vec<bool> = (0..open.len()).map(|i| open.read(i).is_ok()).collect();
        assert_eq!(read, [true, true, true, true, false, false]);
        assert!(open.read(4).unwrap_err().to_string().contains("no file"));
    }

    #[test]
    fn a_table_whose_images_are_all_elsewhere_says_where_it_looked() {
        let world = World::new();
        let e = world.error("t.csv", "filepath,title\nx/a.png,1\n");
        assert!(
            e.contains("none of its 1 images") && e.contains("x/a.png") && e.contains("--images"),
            "{e}"
        );
        let e = world.error("t.csv", "filepath,title\n");
        assert!(e.contains("no rows"), "{e}");
    }

    fn golden() -> Vec<u8> {
        fs::read("../../tests/golden/retrieval/emoji.parquet").unwrap()
    }

    fn keys() -> PairOptions {
        let (image, caption) = (Some("image".into()), Some("caption".into()));
        PairOptions { image_key: image, caption_key: caption, ..PairOptions::default() }
    }

    #[test]
    fn parquet_gives_each_row_its_own_image_in_any_order() {
        let world = World::new();
        let pairs = world.open_with("t.parquet", golden(), &keys()).unwrap();
        assert_eq!(pairs.len(), 96);
        let forward: Vec<Sample> = (0..96).map(|i| pairs.read(i).unwrap()).collect();
        for i in (0..96).rev() {
            let sample = pairs.read(i).unwrap();
            assert_eq!(sample, forward[i]);
            assert_eq!(sample.captions.len(), 1 + i % 7);
            assert_eq!(crate::dimensions(&sample.image).unwrap(), (48, 48));
        }
        assert_eq!(pairs.key(41), "t/41");
        let text = PairOptions { image_key: Some("image.path".into()), ..keys() };
        let e = world.open_with("t.parquet", golden(), &text).err().unwrap().to_string();
        assert!(e.contains("none of its 96 images"), "paths are taken as paths: {e}");
        let e = world.open_with("t.parquet", golden(), &PairOptions::default()).err().unwrap();
        assert!(e.to_string().contains("no column filepath, but image.bytes, image.path"), "{e}");
    }

    #[test]
    fn parquet_pages_that_carry_a_checksum_are_held_to_it() {
        let (world, whole) = (World::new(), crate::testing::golden("retrieval/checksums.parquet"));
        let wanted = rows(&[("a.png", &["a red square"]), ("b.png", &["a blue circle"])]);
        assert_eq!(contents(&world.open("t.parquet", &whole)), wanted);
        let mut damaged = whole;
        let at = damaged.windows(4).position(|bytes| bytes == b"blue").unwrap();
        damaged[at] ^= 1;
        let e = world.error("t.parquet", damaged);
        assert!(e.contains("t.parquet") && e.contains("CRC"), "{e}");
    }

    #[test]
    fn damaged_parquet_is_an_error_or_a_broken_sample_and_never_a_panic() {
        let (world, whole) = (World::new(), golden());
        let mut refused = 0;
        for at in (0..whole.len()).step_by(601) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            match world.open_with("t.parquet", &damaged, &keys()) {
                Ok(pairs) => (0..pairs.len()).for_each(|i| drop(pairs.read(i))),
                Err(_) => refused += 1,
            }
            refused += usize::from(world.open_with("t.parquet", &whole[..at], &keys()).is_err());
        }
        assert!(refused > whole.len() / 601, "{refused}");
    }
}
