//! Data specs to sources: the door of this folder.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::DataError;
use crate::source::Source;
use crate::source::folder::{Folder, subfolders};
use crate::source::pairs::{PairOptions, Pairs};
use crate::source::sample::Captions;
use crate::source::several::join;
use crate::source::shards::Shards;
use crate::source::spec::{expand, is_table, shards};
use crate::storage::tars;

/// Opens a data spec: a folder of `.tar`, a `.tar`, a pattern of them (`*`, `?`, `{000..099}`, `{a,b}`), a folder of
/// images, a folder of class folders, or pair tables (`.csv`, `.tsv`, `.jsonl`, `.json`, `.parquet`, `.txt`; patterns
/// too). With the feature `remote` also URLs of shards (`s3://`, `gs://`, `az://`, `abfs://`, `http://`, `https://`), with
/// braces or, where the store lists them, of their folder, ended by `/`.
///
/// # Errors
/// When nothing is there, saying what was looked for and what was found.
pub fn open(spec: &str) -> Result<Arc<dyn Source>, DataError> {
    open_with(&[spec.to_owned()], &PairOptions::default())
}

/// Opens several specs as one source, in their order.
///
/// # Errors
/// As [`open`]; when there are no specs; when two of them name their classes differently.
pub fn open_all(specs: &[String]) -> Result<Arc<dyn Source>, DataError> {
    open_with(specs, &PairOptions::default())
}

/// As [`open_all`], with options for the pair tables among them.
///
/// # Errors
/// As [`open_all`].
pub fn open_with(specs: &[String], options: &PairOptions) -> Result<Arc<dyn Source>, DataError> {
    let sets: Vec<Set> = specs.iter().map(|spec| Set::from(spec.as_str())).collect();
    open_sets(&sets, options)
}

/// A set to train on among others: in a recipe its spec, or `{ data = SPEC, weight = 2.0, pairs = { ... } }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// The spec, as [`open`] takes it.
    pub data: String,
    /// How often each of its samples comes in an epoch, above 0.
    pub weight: f64,
    /// How its tables of pairs are read, where they are no ones like the others.
    pub pairs: Option<PairOptions>,
}

impl From<&str> for Set {
    fn from(spec: &str) -> Set {
        Set { data: spec.to_owned(), weight: 1.0, pairs: None }
    }
}

/// [`Set`] as a table.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetTable {
    data: String,
    #[serde(default = "one")]
    weight: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pairs: Option<PairOptions>,
}

fn one() -> f64 {
    1.0
}

impl<'de> Deserialize<'de> for Set {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Set, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Set;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, or { data = path, weight = number, pairs = { ... } }")
            }

            fn visit_str<E>(self, spec: &str) -> Result<Set, E> {
                Ok(Set::from(spec))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Set, A::Error> {
                let table = SetTable::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Set { data: table.data, weight: table.weight, pairs: table.pairs })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Serialize for Set {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Set { data, weight, pairs } = self.clone();
        if weight == 1.0 && pairs.is_none() {
            return serializer.serialize_str(&data);
        }
        SetTable { data, weight, pairs }.serialize(serializer)
    }
}

/// Opens several sets as one source, in their order. `options` are for those without their own.
///
/// # Errors
/// As [`open_all`]; when a weight is none.
pub fn open_sets(sets: &[Set], options: &PairOptions) -> Result<Arc<dyn Source>, DataError> {
    open_with_reader(sets, options, Pairs::open)
}

/// As [`open_sets`], for who reads captions alone: a table of pairs needs no images then, and a `.txt` may hold a text a line.
///
/// # Errors
/// As [`open_sets`]; options that speak of images.
pub fn open_texts(sets: &[Set], options: &PairOptions) -> Result<Arc<dyn Source>, DataError> {
    open_with_reader(sets, options, Pairs::open_texts)
}

fn open_with_reader(
    sets: &[Set],
    options: &PairOptions,
    table: impl Fn(&Path, &PairOptions) -> Result<Pairs, DataError>,
) -> Result<Arc<dyn Source>, DataError> {
    let mut sources = vec![];
    for Set { data, weight, pairs } in sets {
        // Far above any use, and far below what a count of samples holds.
        if !(*weight > 0.0 && *weight <= 1e6) {
            let reason = format!("of {data}: must be above 0, and at most a million");
            return Err(DataError::Option { field: "weight", value: weight.to_string(), reason });
        }
        let paths = expand(data)?;
        if paths.iter().all(|path| path.is_file() && is_table(path)) {
            for path in paths {
                let pairs = table(&path, pairs.as_ref().unwrap_or(options))?;
                sources.push((data, *weight, Arc::new(pairs) as Arc<dyn Source>));
            }
        } else {
            let pairs = pairs.as_ref().unwrap_or(options);
            sources.push((data, *weight, pictures(data, paths, pairs.captions())?));
        }
    }
    join(sources)
}

/// Shards or a folder.
fn pictures(
    spec: &str,
    paths: Vec<PathBuf>,
    captions: Captions,
) -> Result<Arc<dyn Source>, DataError> {
    if let [dir] = paths.as_slice()
        && dir.is_dir()
    {
        let (tars, folders) = (tars(dir)?.len(), subfolders(dir)?);
        if tars == 0 {
            return Ok(Arc::new(Folder::with_captions(dir, captions)?));
        }
        // ImageNet's archives lie beside what was unpacked from them.
        if let Some(first) = folders.first() {
            tracing::warn!(
                "{spec}: its {tars} .tar are read, and not its folders; name one for that, as {}",
                dir.join(first).display()
            );
        }
    }
    Ok(Arc::new(Shards::open(shards(spec, paths)?, captions)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;
    use crate::Part;
    use crate::source::shards::{Limit, ShardWriter};
    use crate::testing::png;

    #[test]
    fn nothing_to_read_says_what_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        let e = open(root).err().unwrap().to_string();
        assert!(e.contains("looked for images") && e.contains(root), "{e}");
        let e = open(&format!("{root}/x-*.tar")).err().unwrap().to_string();
        assert!(e.contains("nothing matches"), "{e}");
        let e = open(&format!("{root}/none")).err().unwrap().to_string();
        assert!(e.contains("there is no") && e.contains(&format!("({root} exists)")), "{e}");
        if cfg!(not(feature = "remote")) {
            let e = open("s3://bucket/{000..099}.tar").err().unwrap().to_string();
            assert!(e.contains("cargo build --release -p uta --features remote"), "{e}");
            let e = open("hf://datasets/a/b").err().unwrap().to_string();
            assert!(e.contains("hf:// is no kind of address") && e.contains("hf download"), "{e}");
            assert!(!e.contains("--features"), "{e}");
        }
        let e = open("pipe:aws s3 cp s3://bucket/0.tar -").err().unwrap().to_string();
        assert!(e.contains("no commands are run"), "{e}");
        fs::create_dir(dir.path().join("train")).unwrap();
        fs::write(dir.path().join("train/a.tar"), b"").unwrap();
        let e = open(root).err().unwrap().to_string();
        assert!(e.contains("1 shards in folders below") && e.contains("train"), "{e}");
        fs::remove_dir_all(dir.path().join("train")).unwrap();
        fs::write(dir.path().join("empty.tar"), [0u8; 1024]).unwrap();
        let e = open(&format!("{root}/empty.tar")).err().unwrap().to_string();
        assert!(e.contains("no samples"), "{e}");
    }

    #[test]
    fn several_shards_read_as_one_source_and_a_vanished_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer =
            ShardWriter::create(dir.path(), "s", Limit { samples: 2, bytes: 1 << 30 }).unwrap();
        for i in 0..5u8 {
            writer
                .write(
                    &format!("k{i}"),
                    &[("png", &png(2, 2, [i; 3])), ("cls", b"3\n"), ("json", b"{\"a\":1}")],
                )
                .unwrap();
        }
        let shards = writer.finish().unwrap();
        let source = open_all(&[
            format!("{}/s-000000.tar", dir.path().display()),
            format!("{}/s-{{000001..000002}}.tar", dir.path().display()),
        ])
        .unwrap();
        assert_eq!(source.len(), 5);
        let sample = source.read(4).unwrap();
        assert_eq!(
            (sample.key.as_str(), sample.class, sample.meta.as_slice()),
            ("k4", Some(3), &b"{\"a\":1}"[..])
        );
        fs::remove_file(&shards[1]).unwrap();
        let e = source.read(2).unwrap_err().to_string();
        assert!(e.contains("s-000001.tar"), "{e}");
        assert!(source.read(0).is_ok());
    }

    #[test]
    fn sets_are_written_as_paths_or_as_tables_with_weights_and_read_as_such() {
        let written = r#"["a.tar",{"data":"b.tsv","weight":2.5,"pairs":{"image_key":"url"}}]"#;
        let sets: Vec<Set> = serde_json::from_str(written).unwrap();
        assert_eq!(sets[0], Set::from("a.tar"));
        assert_eq!((sets[1].data.as_str(), sets[1].weight), ("b.tsv", 2.5));
        assert_eq!(serde_json::to_string(&sets).unwrap(), written);
        let e = serde_json::from_str::<Set>(r#"{"data":"a","wieght":1}"#).unwrap_err().to_string();
        assert!(e.contains("`wieght`") && e.contains("`weight`"), "{e}");

        let dir = tempfile::tempdir().unwrap();
        let mut specs = vec![];
        for (name, samples) in [("a", 4), ("b", 3)] {
            let mut writer = ShardWriter::create(dir.path(), name, Limit::default()).unwrap();
            for i in 0..samples {
                writer.write(&format!("{name}{i}"), &[("png", &png(2, 2, [0; 3]))]).unwrap();
            }
            specs.push(writer.finish().unwrap().remove(0).display().to_string());
        }
        let set = |spec: &String, weight| Set { weight, ..Set::from(spec.as_str()) };
        let sets = [set(&specs[0], 0.5), set(&specs[1], 2.0)];
        let source = open_sets(&sets, &PairOptions::default()).unwrap();
        assert_eq!((source.len(), source.epoch()), (7, 8));
        assert_eq!(source.parts()[1], Part { samples: 3, weight: 2.0, shards: vec![3] });
        let alone = open_sets(&sets[1..], &PairOptions::default()).unwrap();
        assert_eq!((alone.len(), alone.epoch()), (3, 6));
        let e = open_sets(&[set(&specs[0], 0.0)], &PairOptions::default()).err().unwrap();
        assert!(e.to_string().contains("weight = 0: of"), "{e}");
        let e = open(&specs.join("::")).err().unwrap().to_string();
        assert!(e.contains("not joined by ::"), "{e}");
    }

    #[test]
    fn sets_that_name_their_classes_differently_are_not_mixed() {
        let dir = tempfile::tempdir().unwrap();
        let set = |name: &str, class: &str| {
            let folder = dir.path().join(name).join(class);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("x.png"), png(2, 2, [0; 3])).unwrap();
            dir.path().join(name).display().to_string()
        };
        let (a, b, c) = (set("a", "cat"), set("b", "cat"), set("c", "dog"));
        let both = open_all(&[a.clone(), b]).unwrap();
        assert_eq!((both.len(), both.class_names().unwrap().len()), (2, 1));
        let e = open_all(&[a, c]).err().unwrap().to_string();
        assert!(e.contains("name their classes differently"), "{e}");
        assert!(open_all(&[]).is_err());
    }
}
