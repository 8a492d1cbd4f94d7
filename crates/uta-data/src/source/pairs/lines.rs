//! Plain text: an image's name and its caption a line, as Flickr's captions come.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use super::ending;
use super::options::PairOptions;
use super::reading::{Reading, SPLIT};
use crate::error::DataError;
use crate::image::decode::is_image;
use crate::text::without_mark;

/// Usual names of the image column of a `.txt`, where none is given.
const NAME_COLUMNS: [&str; 5] = ["image", "image_name", "filename", "file_name", "filepath"];

const CAPTION_COLUMNS: [&str; 4] = ["caption", "comment", "title", "text"];

/// How the lines of a `.txt` are made up.
struct Lines {
    /// The delimiter.
    mark: char,
    width: usize,
    image: usize,
    caption: usize,
    split: Option<usize>,
}

impl Lines {
    /// The name, the caption and the split in a line; the caption is all that follows the other columns.
    fn row<'a>(&self, line: &'a str) -> Option<(&'a str, &'a str, Option<&'a str>)> {
        let Lines { mark, width, image, caption, split } = *self;
        // A name may hold commas, too, and ends where an image's name does.
        let (name, rest) = if image == 0 { named(line, mark)? } else { ("", line) };
        let before = usize::from(image == 0);
        let columns: Vec<&str> = rest.splitn(width - before, mark).map(str::trim).collect();
        let column = |at: usize| columns.get(at - before).copied();
        let name = if image == 0 { name } else { column(image)? };
        (columns.len() + before == width).then_some(())?;
        Some((name, column(caption)?, split.filter(|&at| at >= before).and_then(column)))
    }
}

/// The image's name that a line begins with, and what follows it. `NAME.jpg#0` is the first caption of NAME.jpg.
fn named(line: &str, mark: char) -> Option<(&str, &str)> {
    line.match_indices(mark).find_map(|(at, _)| {
        let name = line[..at].trim().trim_matches('"');
        let name = match name.rsplit_once('#') {
            Some((name, number)) if number.parse::<u32>().is_ok() => name,
            _ => name,
        };
        is_image(&ending(name)?).then_some((name, &line[at + mark.len_utf8()..]))
    })
}

/// The text in quotes, with those within undone; none where the text is not one field of a CSV in quotes.
fn unquoted(text: &str) -> Option<String> {
    let within = text.strip_prefix('"')?.strip_suffix('"')?;
    (!within.replace("\"\"", "").contains('"')).then(|| within.replace("\"\"", "\""))
}

/// Whether a line names a column of images and one of captions.
fn is_header(line: &str) -> bool {
    [',', '\t', '|'].into_iter().any(|mark| {
        let names: Vec<&str> = line.split(mark).map(|name| name.trim().trim_matches('"')).collect();
        let has = |known: &[&str]| {
            names.iter().any(|name| known.iter().any(|known| name.eq_ignore_ascii_case(known)))
        };
        has(&NAME_COLUMNS) && has(&CAPTION_COLUMNS)
    })
}

impl Reading<'_> {
    /// Lines of an image's name and, last, its caption, usually below a header. CLIP_benchmark's (`datasets/flickr.py`) are
    /// `NAME.jpg,CAPTION` without quotes, though captions hold commas; Flickr's own are a CSV. It is one where each caption
    /// with a comma is in quotes.
    pub(super) fn lines(&mut self) -> Result<(), DataError> {
        let mut first = String::new();
        self.each_line(|_, line| {
            first = line.unwrap_or_default().to_owned();
            false
        })?;
        let given = [&self.options.image_key, &self.options.caption_key];
        let headless = [',', '\t', '|'].into_iter().find(|&mark| named(&first, mark).is_some());
        let table = match headless {
            Some(_) if given.iter().any(|key| key.is_some()) => {
                let reason = "has no header, so that no column has a name: leave --image-key and --caption-key out";
                return Err(self.fail(reason));
            }
            Some(mark) => Lines { mark, width: 2, image: 0, caption: 1, split: None },
            None if self.texts && !is_header(&first) => return self.plain_lines(),
            None => self.header(&first)?,
        };
        if table.caption + 1 != table.width {
            let (reader, header) = self.reader(table.mark as u8)?;
            let columns = [table.image, table.caption];
            return self.records(reader, table.mark as u8, header.len(), columns, table.split);
        }
        let (mut quoted, mut bare) = (0, 0);
        self.each_line(|_, line| {
            if let Some((_, caption, _)) = line.and_then(|line| table.row(line)) {
                quoted += usize::from(unquoted(caption).is_some());
                bare += usize::from(unquoted(caption).is_none() && caption.contains(table.mark));
            }
            true
        })?;
        let csv = quoted > 0 && bare == 0;
        let path = self.path;
        Reading::each_line_of(path, |number, line| {
            let place = format_args!("line {number}");
            match line {
                Some(line) if line.is_empty() || number == 1 && headless.is_none() => {}
                Some(line) => match table.row(line) {
                    Some((name, caption, split)) => {
                        if self.takes(split, place) {
                            let undone = unquoted(caption).filter(|_| csv);
                            self.row(place, Some(name), [undone.as_deref().or(Some(caption))]);
                        }
                    }
                    None => self.fault("lines that are not NAME,CAPTION", place),
                },
                None => self.fault("lines that are no text", place),
            }
            true
        })
    }

    /// A text a line.
    fn plain_lines(&mut self) -> Result<(), DataError> {
        Reading::each_line_of(self.path, |number, line| {
            let place = format_args!("line {number}");
            match line {
                Some("") => {}
                Some(text) => self.row(place, None, [Some(text)]),
                None => self.fault("lines that are no text", place),
            }
            true
        })
    }

    /// Columns of the lines below, by the first line.
    fn header(&self, first: &str) -> Result<Lines, DataError> {
        let columns = |mark: char| first.split(mark).count();
        let mark = [',', '\t', '|'].into_iter().rev().max_by_key(|&mark| columns(mark));
        let mark = mark.unwrap_or(',');
        let names: Vec<&str> =
            first.split(mark).map(|name| name.trim().trim_matches('"').trim()).collect();
        let find = |key: &Option<String>, known: &[&str]| match key {
            Some(key) => names.iter().position(|name| name == key),
            None => known
                .iter()
                .find_map(|known| names.iter().position(|name| name.eq_ignore_ascii_case(known))),
        };
        let PairOptions { image_key, caption_key, .. } = self.options;
        let (image, caption) =
            (find(image_key, &NAME_COLUMNS), find(caption_key, &CAPTION_COLUMNS));
        let width = names.len();
        let (image, caption) = match (image, caption) {
            (Some(image), Some(caption)) => (image, caption),
            // Two columns that are called something else.
            _ if width == 2 && image_key.is_none() && caption_key.is_none() => (0, 1),
            (None, _) => {
                let wanted = image_key.as_deref().unwrap_or(NAME_COLUMNS[0]);
                return Err(self.no_column(wanted, names.iter()));
            }
            (_, None) => {
                let wanted = caption_key.as_deref().unwrap_or(CAPTION_COLUMNS[0]);
                return Err(self.no_column(wanted, names.iter()));
            }
        };
        let split = names.iter().position(|&name| name == SPLIT);
        Ok(Lines { mark, width, image, caption, split })
    }

    /// Calls `each` with the number and the text of every line, trimmed, until it says false; `None` for what is no UTF-8.
    fn each_line(&self, each: impl FnMut(usize, Option<&str>) -> bool) -> Result<(), DataError> {
        Reading::each_line_of(self.path, each)
    }

    fn each_line_of(
        path: &Path,
        mut each: impl FnMut(usize, Option<&str>) -> bool,
    ) -> Result<(), DataError> {
        let file = File::open(path).map_err(DataError::io("read", path))?;
        let (mut reader, mut bytes, mut number) = (BufReader::new(file), vec![], 0);
        while reader.read_until(b'\n', &mut bytes).map_err(DataError::io("read", path))? > 0 {
            number += 1;
            let text = std::str::from_utf8(&bytes).ok();
            let text = text.map(|text| if number == 1 { without_mark(text) } else { text });
            if !each(number, text.map(str::trim)) {
                break;
            }
            bytes.clear();
        }
        Ok(())
    }
}
