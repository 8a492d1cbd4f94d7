//! `uta data get emoji`: real pictures and words for small runs. Seven artists drew the same 1,613 concepts; five of
//! these styles train, two whole styles are held out and play the part of ImageNet-R and Sketch.
//!
//! ```text
//! npm packages (pinned, checked, cached) -> IconSet x 7 + emojibase -> join -> rasterise -> WebDataset shards
//! ```
//!
//! The folder, written beside and renamed, so that it is whole or not there:
//!
//! ```text
//! train/{style}-000000.tar      {hexcode}-{style}.png .txt .cls .json of every concept in a training style
//! held-out/{style}-000000.tar   the same for the held-out styles
//! extra/{style}-000000.tar      what else the training styles drew (skin tones, flags, ...): no .cls
//! classnames.txt templates.txt LICENSES.md dataset.json
//! ```

mod catalogue;
mod folder;
mod packages;
mod raster;
mod report;
mod styles;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::ProgressBar;
use serde::Deserialize;
use serde_json::json;

use self::catalogue::{Emoji, IconSet, Info, Picture};
use self::folder::{MadeFrom, Place, seal, write_file};
use self::packages::{Package, Store};
pub use self::report::{Contents, Licence, Report, StyleReport};
pub use self::styles::Split;
use self::styles::{EMOJIBASE, STYLES, Style};
use super::parallel::parallel_map;
pub use crate::error::PackageError;
use crate::source::shards::{Limit, ShardWriter};
use crate::{DataError, progress};

/// Raise it when the same packages would give other bytes: old sets are then made anew.
const FORMAT: u32 = 1;

/// A concept is a class when so many of the styles draw it.
const STYLES_OF_A_CLASS: usize = 5;

/// How to make the set.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder to make.
    pub out: PathBuf,
    /// Side of the pictures in pixels, 16 to 1024.
    pub size: u32,
    /// Where the npm packages are kept (30 MB).
    pub cache: PathBuf,
    /// Use the cache alone.
    pub offline: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            out: "data/emoji".into(),
            size: 64,
            cache: "data/cache/npm".into(),
            offline: false,
        }
    }
}

/// Makes the emoji set in `options.out`, or finds it there, whole and made from the same packages at the same size.
/// Progress goes to standard error.
///
/// # Errors
/// npm that is missing or fails, a package that is not the pinned one, a folder that holds something else, a disk that
/// is full or refuses. The folder is then as it was before.
pub fn get(options: &Options) -> Result<Report, DataError> {
    get_from(&STYLES, EMOJIBASE, OsStr::new("npm"), options)
}

/// [`get`] with everything that a test replaces.
fn get_from(
    styles: &[Style],
    emojibase: Package<'_>,
    npm: &OsStr,
    options: &Options,
) -> Result<Report, DataError> {
    let started = Instant::now();
    if !(16..=1024).contains(&options.size) {
        let value = options.size.to_string();
        return Err(DataError::Option {
            field: "size",
            value,
            reason: "16 to 1024 pixels are allowed".into(),
        });
    }
    let of_styles: Vec<Package<'_>> = styles.iter().map(|s| s.package).collect();
    let made_from = MadeFrom {
        format: FORMAT,
        size: options.size,
        packages: of_styles
            .iter()
            .chain([&emojibase])
            .map(|p| (p.spec(), p.sha256.to_owned()))
            .collect(),
    };

    let place = Place::lock(&options.out)?;
    let report = |reused, contents| {
        let (out, seconds) = (options.out.clone(), started.elapsed().as_secs_f64());
        Report { out, reused, seconds, contents }
    };
    if let Some(contents) = place.existing(&made_from)? {
        return Ok(report(true, contents));
    }

    let fetching = bar(styles.len() + 1, "packages", "fetching");
    let store = Store::open(&options.cache, options.offline, npm)?;
    let provide = |package: &Package<'_>| {
        fetching.set_message(package.spec());
        store.provide(package).inspect(|_| fetching.inc(1))
    };
    let archives = of_styles.iter().map(provide).collect::<Result<Vec<_>, _>>()?;
    let emojibase_archive = provide(&emojibase)?;
    fetching.finish_and_clear();

    let reading = bar(styles.len(), "sets", "reading");
    let sources: Vec<(&Style, PathBuf)> = styles.iter().zip(archives).collect();
    let sets = parallel_map(&sources, &reading, |(style, archive)| read_set(style, archive))?;
    let (emoji, words) = read_emojibase(&emojibase, &emojibase_archive)?;
    reading.finish_and_clear();

    let catalogue = catalogue::join(emoji, &sets, STYLES_OF_A_CLASS);
    let mut contents = Contents {
        size: options.size,
        concepts: catalogue.class_names.len(),
        styles: Vec::new(),
        words,
        bytes: 0,
    };
    place.replace(|folder| {
        let drawing = bar(catalogue.pictures.iter().map(Vec::len).sum(), "pictures", "drawing");
        for ((style, set), pictures) in styles.iter().zip(&sets).zip(&catalogue.pictures) {
            contents.styles.push(write_style(
                folder,
                style,
                set,
                pictures,
                &catalogue.emoji,
                options.size,
                &drawing,
            )?);
        }
        drawing.finish_and_clear();
        write_file(&folder.join("classnames.txt"), &lines(&catalogue.class_names))?;
        write_file(&folder.join("templates.txt"), &lines(&catalogue::TEMPLATES))?;
        write_file(&folder.join("LICENSES.md"), &report::licences(&contents))?;
        seal(folder, made_from, &mut contents)
    })?;
    Ok(report(false, contents))
}

fn read_set(style: &Style, archive: &Path) -> Result<IconSet, DataError> {
    let [icons, chars, info] =
        packages::read_members(archive, ["icons.json", "chars.json", "info.json"])?;
    IconSet::parse(style.name, &icons, &chars, &info).map_err(format_error(archive))
}

fn read_emojibase(
    package: &Package<'_>,
    archive: &Path,
) -> Result<(Vec<Emoji>, Licence), DataError> {
    #[derive(Deserialize)]
    struct About {
        author: String,
        license: String,
    }
    let members = ["en/data.json", "en/messages.json", "meta/groups.json", "package.json"];
    let [data, messages, groups, about] = packages::read_members(archive, members)?;
    let emoji =
        catalogue::parse_emojibase(&data, &messages, &groups).map_err(format_error(archive))?;
    let about: About = serde_json::from_slice(&about)
        .map_err(|e| format_error(archive)(format!("package.json: {e}")))?;
    let words = Licence {
        title: "emojibase".into(),
        package: package.spec(),
        author: about.author,
        link: "https://github.com/milesj/emojibase".into(),
        licence: about.license.clone(),
        spdx: about.license,
        text: "https://github.com/milesj/emojibase/blob/master/LICENSE".into(),
    };
    Ok((emoji, words))
}

fn format_error(archive: &Path) -> impl Fn(String) -> DataError {
    move |reason| PackageError::Format { archive: archive.to_owned(), reason }.into()
}

/// Draws one style and writes its shards.
fn write_style(
    folder: &Path,
    style: &Style,
    set: &IconSet,
    pictures: &[Picture<'_>],
    emoji: &[Emoji],
    size: u32,
    progress: &ProgressBar,
) -> Result<StyleReport, DataError> {
    progress.set_message(style.name);
    let class_of = |p: &Picture<'_>| p.emoji.and_then(|i| emoji[i].class);
    let (classes, rest): (Vec<_>, Vec<_>) = pictures.iter().partition(|p| class_of(p).is_some());
    // A held-out style stays unseen altogether.
    let rest = if style.split == Split::Train { rest } else { Vec::new() };
    progress.set_length(
        progress.length().unwrap_or(0) - (pictures.len() - classes.len() - rest.len()) as u64,
    );

    let draw = |p: &&Picture<'_>| {
        raster::rasterise(&p.icon, size).map_err(|reason| DataError::Sample {
            key: format!("{}:{}", style.name, p.name),
            reason,
        })
    };
    let spdx = &set.info.license.spdx;
    // The same drawing under another name would be counted and trained on twice.
    let mut seen = HashSet::new();

    let mut shards =
        ShardWriter::create(folder.join(style.split.folder()), style.name, Limit::default())?;
    for (picture, png) in classes.iter().zip(parallel_map(&classes, progress, draw)?) {
        let known = picture.emoji.map(|i| &emoji[i]);
        write_sample(&mut shards, style.name, spdx, picture, known, &png)?;
        seen.insert(png);
    }
    shards.finish()?;

    let mut extra = 0;
    if !rest.is_empty() {
        let mut shards = ShardWriter::create(folder.join("extra"), style.name, Limit::default())?;
        for (picture, png) in rest.iter().zip(parallel_map(&rest, progress, draw)?) {
            if !seen.contains(&png) {
                write_sample(
                    &mut shards,
                    style.name,
                    spdx,
                    picture,
                    picture.emoji.map(|i| &emoji[i]),
                    &png,
                )?;
                seen.insert(png);
                extra += 1;
            }
        }
        shards.finish()?;
    }

    let Info { name, author, license } = &set.info;
    let licence = Licence {
        title: name.clone(),
        package: style.package.spec(),
        author: author.name.clone(),
        link: author.url.clone(),
        licence: license.title.clone(),
        spdx: license.spdx.clone(),
        text: license.url.clone(),
    };
    Ok(StyleReport {
        style: style.name.into(),
        split: style.split,
        pictures: classes.len(),
        extra,
        licence,
    })
}

fn write_sample(
    shards: &mut ShardWriter,
    style: &str,
    spdx: &str,
    picture: &Picture<'_>,
    emoji: Option<&Emoji>,
    png: &[u8],
) -> Result<(), DataError> {
    let mut meta = json!({ "style": style, "license": spdx });
    let (key, captions, class) = match emoji {
        Some(e) => {
            meta["concept"] = json!(e.hexcode);
            meta["label"] = json!(e.label);
            meta["tags"] = json!(e.tags);
            meta["group"] = json!(e.group);
            meta["subgroup"] = json!(e.subgroup);
            (
                e.hexcode.to_ascii_lowercase(),
                catalogue::captions(&e.label, &e.tags, &e.subgroup),
                e.class,
            )
        }
        None => {
            // No emoji, but its artist's name for it is a description.
            let label = picture.name.replace('-', " ");
            meta["label"] = json!(label);
            (picture.name.to_owned(), catalogue::captions(&label, &[], ""), None)
        }
    };
    let (captions, class, meta) =
        (lines(&captions), class.map(|c| c.to_string()), meta.to_string());
    let mut members: Vec<(&str, &[u8])> = vec![("png", png), ("txt", captions.as_bytes())];
    members.extend(class.as_ref().map(|c| ("cls", c.as_bytes())));
    members.push(("json", meta.as_bytes()));
    shards.write(&format!("{key}-{style}"), &members)
}

fn lines(of: &[impl AsRef<str>]) -> String {
    of.iter().flat_map(|line| [line.as_ref(), "\n"]).collect()
}

fn bar(length: usize, unit: &str, what: &'static str) -> ProgressBar {
    progress::bar(length as u64, 0, unit).with_prefix(what)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;
    use std::fs::{self, File};
    use std::io;

    use serde_json::Value;

    use super::*;

    /// A synthetic world: seven styles of three emoji and one odd icon each, in an npm cache.
    struct World {
        dir: tempfile::TempDir,
        styles: Vec<Style>,
        emojibase: Package<'static>,
    }

    /// Writes a .tgz as npm would and pins it.
    fn package(cache: &Path, name: &'static str, files: &[(&str, Value)]) -> Package<'static> {
        let mut package = Package { name, version: "1.0.0", sha256: "" };
        let path = cache.join(package.file_name());
        let gzip = flate2::write::GzEncoder::new(
            File::create(&path).unwrap(),
            flate2::Compression::fast(),
        );
        let mut tar = tar::Builder::new(gzip);
        for (file, content) in files {
            let content = content.to_string();
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("package/{file}"), content.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap();
        package.sha256 = packages::sha256(&path).unwrap().leak();
        package
    }

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            let cache = dir.path().join("npm");
            fs::create_dir(&cache).unwrap();
            let names: [&'static str; 7] = STYLES.map(|s| s.name);
            let styles = names.iter().enumerate().map(|(i, name)| {
                let red = 30 * i;
                let shape = |d: &str| json!({ "body": format!("<path fill='rgb({red},9,99)' d='{d}'/>") });
                let icons = json!({ "width": 8, "height": 8, "icons": {
                    "axe": shape("M0 0h4v8h-4z"), "cat": shape("M0 0h8v4h-8z"), "dark-cat": shape("M0 0h8v2h-8z"),
                    "oddity": shape("M0 0h2v2h-2z"), "axe-again": shape("M0 0h4v8h-4z") } });
                let chars = json!({ "1fa93": "axe", "1f408": "cat", "1f408-1f3ff": "dark-cat" });
                let info = json!({ "name": name, "author": { "name": format!("artist {i}"), "url": "https://a.example" },
                    "license": { "title": "CC BY 4.0", "spdx": "CC-BY-4.0", "url": "https://l.example" } });
                let files = [("icons.json", icons), ("chars.json", chars), ("info.json", info)];
                Style { name, split: STYLES[i].split, package: package(&cache, name, &files) }
            });
            let styles = styles.collect();
            let emoji = json!([
                { "hexcode": "1FA93", "label": "axe", "tags": ["chop", "wood"], "order": 2, "group": 0, "subgroup": 0 },
                { "hexcode": "1F408", "label": "cat", "tags": ["pet"], "order": 1, "group": 0, "subgroup": 0,
                  "skins": [{ "hexcode": "1F408-1F3FF", "label": "cat: dark" }] },
            ]);
            let messages = json!({ "groups": [{ "key": "g", "message": "things" }],
                "subgroups": [{ "key": "s", "message": "all sorts" }] });
            let groups = json!({ "groups": { "0": "g" }, "subgroups": { "0": "s" } });
            let about = json!({ "author": "B", "license": "MIT" });
            let files = [
                ("en/data.json", emoji),
                ("en/messages.json", messages),
                ("meta/groups.json", groups),
                ("package.json", about),
            ];
            let emojibase = package(&cache, "emojibase-data", &files);
            World { dir, styles, emojibase }
        }

        fn out(&self) -> PathBuf {
            self.dir.path().join("emoji")
        }

        fn get(&self, size: u32) -> Result<Report, DataError> {
            let cache = self.dir.path().join("npm");
            let options = Options { out: self.out(), size, cache, offline: true };
            get_from(&self.styles, self.emojibase, OsStr::new("npm"), &options)
        }

        /// Every file of the set with its bytes.
        fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
            let mut files = BTreeMap::new();
            let mut folders = vec![self.out()];
            while let Some(at) = folders.pop() {
                for entry in fs::read_dir(at).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_dir() {
                        folders.push(path);
                    } else {
                        files.insert(
                            path.strip_prefix(self.out()).unwrap().to_owned(),
                            fs::read(&path).unwrap(),
                        );
                    }
                }
            }
            files
        }

        /// Members of one shard, as text where they are.
        fn shard(&self, path: &str) -> BTreeMap<String, Vec<u8>> {
            let mut tar = tar::Archive::new(File::open(self.out().join(path)).unwrap());
            let entry = |e: io::Result<tar::Entry<'_, File>>| {
                let mut e = e.unwrap();
                let mut bytes = Vec::new();
                io::Read::read_to_end(&mut e, &mut bytes).unwrap();
                (e.path().unwrap().to_str().unwrap().to_owned(), bytes)
            };
            tar.entries().unwrap().map(entry).collect()
        }
    }

    #[test]
    fn writes_classes_extras_and_held_out_styles_apart() {
        let world = World::new();
        let report = world.get(16).unwrap();
        assert_eq!((report.contents.concepts, report.reused), (2, false));
        assert_eq!(report.contents.pictures(Split::Train), 10);
        assert_eq!(report.contents.pictures(Split::HeldOut), 4);

        let read = |path: &str| fs::read_to_string(world.out().join(path)).unwrap();
        assert_eq!(read("classnames.txt"), "cat\naxe\n", "emoji order");
        assert!(read("templates.txt").lines().all(|t| t.contains("{}")));
        let licences = read("LICENSES.md");
        assert!(
            (0..7).all(|i| licences.contains(&format!("artist {i}")))
                && licences.contains("CC-BY-4.0")
        );

        let shard = world.shard("train/noto-000000.tar");
        let names: Vec<&str> = shard.keys().map(String::as_str).collect();
        let expected = ["cls", "json", "png", "txt"];
        let expected =
            ["1f408", "1fa93"].iter().flat_map(|h| expected.map(|e| format!("{h}-noto.{e}")));
        assert_eq!(names, expected.collect::<Vec<_>>());
        assert_eq!(shard["1fa93-noto.cls"], b"1");
        assert!(
            String::from_utf8_lossy(&shard["1fa93-noto.txt"])
                .lines()
                .any(|l| l == "axe: chop, wood")
        );
        let meta: Value = serde_json::from_slice(&shard["1fa93-noto.json"]).unwrap();
        assert_eq!((&meta["concept"], &meta["license"]), (&json!("1FA93"), &json!("CC-BY-4.0")));
        let picture = image::load_from_memory(&shard["1fa93-noto.png"]).unwrap().to_rgb8();
        assert_eq!((picture.get_pixel(2, 8).0, picture.get_pixel(12, 8).0), ([0, 9, 99], [255; 3]));

        let extra = world.shard("extra/noto-000000.tar");
        let pictures: Vec<&String> = extra.keys().filter(|k| k.ends_with(".png")).collect();
        assert_eq!(pictures, ["1f408-1f3ff-noto.png", "oddity-noto.png"], "no drawing comes twice");
        assert!(extra.keys().all(|k| !k.ends_with(".cls")));

        assert!(world.out().join("held-out/twemoji-000000.tar").exists());
        assert!(
            !world.out().join("extra/twemoji-000000.tar").exists(),
            "held-out styles stay unseen"
        );
    }

    #[test]
    fn a_second_get_reuses_a_whole_set_and_mends_a_broken_one() {
        let world = World::new();
        let first = world.get(16).unwrap();
        let files = world.files();
        // Nothing but the set itself is needed any more.
        fs::remove_dir_all(world.dir.path().join("npm")).unwrap();
        let second = world.get(16).unwrap();
        assert!(second.reused);
        assert_eq!(second.contents, first.contents);

        let again = World::new();
        again.get(16).unwrap();
        assert_eq!(again.files(), files, "the same packages give the same bytes");
        fs::write(again.out().join("train/noto-000000.tar"), "cut short").unwrap();
        assert!(!again.get(16).unwrap().reused);
        assert_eq!(again.files(), files);
        assert!(!again.get(32).unwrap().reused, "another size is another set");
        assert_ne!(again.files(), files);
    }

    #[test]
    fn a_failure_leaves_the_old_set_and_nothing_else() {
        let world = World::new();
        world.get(16).unwrap();
        let files = world.files();
        // What a killed process leaves.
        fs::create_dir(world.dir.path().join(".emoji.tmp")).unwrap();
        let noto = world.dir.path().join("npm").join(world.styles[0].package.file_name());
        let whole = fs::read(&noto).unwrap();
        fs::write(&noto, "damaged").unwrap();
        assert!(matches!(world.get(32), Err(DataError::Package(PackageError::Offline { .. }))));
        assert_eq!(world.files(), files);
        fs::write(&noto, whole).unwrap();
        world.get(32).unwrap();
        assert!(!world.dir.path().join(".emoji.tmp").exists());
        assert!(!world.dir.path().join(".emoji.old").exists());
    }

    #[test]
    fn an_svg_that_cannot_be_drawn_names_its_icon() {
        let mut world = World::new();
        let broken = json!({ "icons": { "axe": { "body": "<path d=" } } });
        let info = json!({ "name": "n", "author": { "name": "a", "url": "u" },
            "license": { "title": "t", "spdx": "s", "url": "u" } });
        let files = [
            ("icons.json", broken),
            ("chars.json", json!({ "1fa93": "axe" })),
            ("info.json", info),
        ];
        world.styles[2].package = package(&world.dir.path().join("npm"), "broken", &files);
        let error = world.get(16).unwrap_err().to_string();
        assert!(error.contains("fluent-emoji-flat:axe"), "{error}");
        assert!(!world.out().exists());
    }

    #[test]
    fn a_folder_of_something_else_is_left_alone() {
        let world = World::new();
        fs::create_dir(world.out()).unwrap();
        fs::write(world.out().join("thesis.tex"), "precious").unwrap();
        let error = world.get(16).unwrap_err().to_string();
        assert!(error.contains("holds other things"), "{error}");
        assert_eq!(world.files().len(), 1);
    }

    #[test]
    fn sizes_are_checked() {
        let world = World::new();
        assert!(world.get(15).unwrap_err().to_string().starts_with("size = 15"));
    }
}
