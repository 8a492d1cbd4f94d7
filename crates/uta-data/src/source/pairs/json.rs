//! JSON: objects a line, a list of objects, and the files of COCO and of Karpathy's splits.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};

use serde::de::{DeserializeSeed, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::python;
use super::reading::{Reading, SPLIT};
use crate::error::DataError;

/// Bytes of a JSON document, which is not read line by line.
const MAX_JSON: u64 = 4 << 30;

/// The fields that are read of COCO's caption files (`annotations` refer to `images` by id) and of Karpathy's (`sentences`
/// inside).
#[derive(Deserialize)]
struct Listing {
    images: Vec<Listed>,
    #[serde(default)]
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(default, deserialize_with = "id")]
    id: Option<String>,
    #[serde(default, alias = "file_name", deserialize_with = "text")]
    filename: Option<String>,
    #[serde(default, deserialize_with = "text")]
    filepath: Option<String>,
    #[serde(default, deserialize_with = "text")]
    split: Option<String>,
    sentences: Option<Vec<Sentence>>,
}

#[derive(Deserialize)]
struct Sentence {
    #[serde(default, deserialize_with = "text")]
    raw: Option<String>,
}

#[derive(Deserialize)]
struct Annotation {
    #[serde(default, deserialize_with = "id")]
    image_id: Option<String>,
    #[serde(default, deserialize_with = "text")]
    caption: Option<String>,
}

/// A text; `None` for any other value.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => Some(text),
        _ => None,
    })
}

/// The id that joins annotations and images: any value, as text. A number is the same whether it is written 1, 1.0 or "1".
fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Null => None,
        Value::String(text) => Some(text),
        Value::Number(number) => Some(match number.as_f64() {
            Some(x) if number.is_f64() && x.fract() == 0.0 && x.abs() < 1e15 => {
                (x as i64).to_string()
            }
            _ => number.to_string(),
        }),
        other => Some(other.to_string()),
    })
}

/// Hands the objects of a JSON list on one by one, `None` for what is none, until told to stop.
struct Each<F>(F);

impl<'de, F: FnMut(Option<Map<String, Value>>) -> bool> DeserializeSeed<'de> for Each<F> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(Option<Map<String, Value>>) -> bool> Visitor<'de> for Each<F> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while let Some(item) = list.next_element::<Value>()? {
            let row = if let Value::Object(row) = item { Some(row) } else { None };
            if !(self.0)(row) {
                break;
            }
        }
        Ok(())
    }
}

impl Reading<'_> {
    /// An object a line.
    pub(super) fn json_lines(&mut self) -> Result<(), DataError> {
        let file = File::open(self.path).map_err(DataError::io("read", self.path))?;
        let (mut reader, mut text, mut line) = (BufReader::new(file), vec![], 0);
        while reader.read_until(b'\n', &mut text).map_err(DataError::io("read", self.path))? > 0 {
            line += 1;
            let json = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text).trim_ascii();
            if !json.is_empty() {
                let read = serde_json::from_slice(json)
                    .or_else(|_| serde_json::from_slice(&python::to_json(json)));
                match read {
                    Ok(object) => self.object(format_args!("line {line}"), &object)?,
                    Err(_) => {
                        self.fault("rows that are no JSON object", format_args!("line {line}"))
                    }
                }
            }
            text.clear();
        }
        Ok(())
    }

    /// A row as a JSON object. The first one decides whether the keys are right.
    fn object(&mut self, place: impl Display, row: &Map<String, Value>) -> Result<(), DataError> {
        let image = self.options.image_key();
        let caption =
            self.caption_column(|key| row.get_key_value(key).map(|(key, _)| key.as_str()));
        let caption = caption.unwrap_or(self.options.caption_key());
        if self.names.len() == 0
            && let Some(key) = [image, caption]
                .into_iter()
                .skip(usize::from(self.texts))
                .find(|key| !row.contains_key(*key))
        {
            return Err(self.no_column(key, row.keys()));
        }
        let place = place.to_string();
        if !self.takes(row.get(SPLIT).and_then(Value::as_str), &place) {
            return Ok(());
        }
        let name = row.get(image).and_then(Value::as_str);
        match row.get(caption) {
            Some(Value::Array(list)) => self.row(place, name, list.iter().map(Value::as_str)),
            Some(one) => self.row(place, name, [one.as_str()]),
            None => self.row(place, name, []),
        }
        Ok(())
    }

    /// A list of objects, or the file of a known set; returns whether it was one.
    pub(super) fn json(&mut self, size: u64) -> Result<bool, DataError> {
        if size > MAX_JSON {
            return Err(self.fail(format!(
                "{size} bytes; a JSON document has at most {MAX_JSON}: use JSON lines"
            )));
        }
        let text = fs::read(self.path).map_err(DataError::io("read", self.path))?;
        let json = &*python::to_json(text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text));
        let path = self.path.to_owned();
        let broken = |e: serde_json::Error| DataError::Table { path, reason: e.to_string() };
        if json.trim_ascii_start().first() == Some(&b'[') {
            let mut failed = None;
            let mut item = 0;
            let each = |row: Option<Map<String, Value>>| {
                item += 1;
                match row {
                    Some(row) => failed = self.object(format_args!("item {item}"), &row).err(),
                    None => self.fault("rows that are no JSON object", format_args!("item {item}")),
                }
                failed.is_none()
            };
            let mut reader = serde_json::Deserializer::from_slice(json);
            let read = Each(each).deserialize(&mut reader).and_then(|()| reader.end());
            return match failed {
                Some(error) => Err(error),
                None => read.map_err(broken).map(|()| false),
            };
        }
        let listing: Listing = serde_json::from_slice(json).map_err(broken)?;
        self.listing(listing)?;
        Ok(true)
    }

    /// COCO's or Karpathy's file.
    fn listing(&mut self, listing: Listing) -> Result<(), DataError> {
        let mut by_id = HashMap::new();
        for (entry, at) in listing.images.iter().zip(1..) {
            let Some(file) = entry.filename.as_deref().filter(|name| !name.is_empty()) else {
                self.fault("images without a file name", format_args!("image {at}"));
                continue;
            };
            if !self.takes(entry.split.as_deref(), file) {
                continue;
            }
            let folder = entry.filepath.as_deref().unwrap_or_default();
            let name = if folder.is_empty() { file.into() } else { format!("{folder}/{file}") };
            let (image, new) = self.image(&name);
            if !new {
                self.fault("images listed again; their captions are joined", file);
            }
            if let Some(id) = &entry.id
                && by_id.insert(id, image).is_some_and(|other| other != image)
            {
                self.fault("images with the id of another, which loses its captions", file);
            }
            if let Some(sentences) = &entry.sentences {
                self.captions(file, image, sentences.iter().map(|s| s.raw.as_deref()));
            }
        }
        if self.options.split.is_none() && !self.splits.is_empty() {
            return Err(DataError::Splits {
                path: self.path.to_owned(),
                found: self.split_counts(),
            });
        }
        let mut captioned = vec![false; self.names.len()];
        for Annotation { image_id, caption } in &listing.annotations {
            let id = image_id.as_deref().unwrap_or("without an id");
            match image_id.as_ref().and_then(|id| by_id.get(id)) {
                Some(&image) => {
                    captioned[image as usize] = true;
                    self.captions(format_args!("image {id}"), image, [caption.as_deref()]);
                }
                None => self.fault("captions of no listed image", format_args!("image {id}")),
            }
        }
        if listing.images.iter().all(|entry| entry.sentences.is_none()) {
            let without: Vec<usize> = (0..captioned.len()).filter(|&i| !captioned[i]).collect();
            for i in without {
                let name = self.names.get(i).to_owned();
                self.fault("rows without a caption", name);
            }
        }
        Ok(())
    }
}
