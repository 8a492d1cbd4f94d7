//! CSV and TSV: records with delimiters and quotes below a header.

use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};

use super::ending;
use super::reading::{Reading, SPLIT};
use crate::error::DataError;
use crate::image::decode::is_image;

/// Advice about a quote that takes in more than its field.
const QUOTING: &str = "put the whole field in quotes and double those within (\"say \"\"hi\"\"\"), or take the quote out";

impl Reading<'_> {
    /// Text with delimiters and a header; the first delimiter that finds both columns is the table's, since open_clip
    /// reads tabs from files called .csv.
    pub(super) fn delimited(&mut self, delimiters: [u8; 3]) -> Result<(), DataError> {
        let (image, caption) = (self.options.image_key(), self.options.caption_key());
        let mut columns = vec![];
        let texts = self.texts;
        for delimiter in delimiters {
            let (reader, header) = self.reader(delimiter)?;
            let find = |name: &str| header.iter().position(|h| h.trim_ascii() == name.as_bytes());
            let caption = self.caption_column(find);
            let image = if texts { caption } else { find(image) };
            if let (Some(image), Some(caption)) = (image, caption) {
                let width = header.len();
                return self.records(reader, delimiter, width, [image, caption], find(SPLIT));
            }
            if columns.len() < header.len() {
                columns = header.iter().map(|h| String::from_utf8_lossy(h).into_owned()).collect();
            }
        }
        let has_image = texts || columns.iter().any(|c| c.trim() == image);
        let wanted = if has_image { caption } else { image };
        Err(self.no_column(wanted, columns.iter()))
    }

    /// A reader of the records, and the header.
    pub(super) fn reader(
        &self,
        delimiter: u8,
    ) -> Result<(csv::Reader<BufReader<File>>, csv::ByteRecord), DataError> {
        let file = File::open(self.path).map_err(DataError::io("read", self.path))?;
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .flexible(true)
            .from_reader(BufReader::with_capacity(1 << 16, file));
        let header = reader.byte_headers().map_err(|e| self.fail(e.to_string()))?.clone();
        match header.iter().any(|name| name.contains(&b'\n')) {
            true => {
                Err(self.fail(format!("line 1 opens a quote that is not closed in it; {QUOTING}")))
            }
            false => Ok((reader, header)),
        }
    }

    /// The records after the header, which has `width` columns.
    pub(super) fn records(
        &mut self,
        mut reader: csv::Reader<BufReader<File>>,
        delimiter: u8,
        width: usize,
        [image, caption]: [usize; 2],
        split: Option<usize>,
    ) -> Result<(), DataError> {
        let mut record = csv::ByteRecord::new();
        let mut open_quote = None;
        while reader.read_byte_record(&mut record).map_err(|e| self.fail(e.to_string()))? {
            let line = record.position().map_or(0, |at| at.line());
            // Whatever else has lines was closed before the field after it.
            let last = record.iter().next_back().unwrap_or_default();
            open_quote = last.contains(&b'\n').then_some(line);
            let place = format_args!("line {line}");
            if let Some((below, row)) = self.swallowed(&record, delimiter, width, image) {
                let below = line + below as u64;
                return Err(self.fail(format!(
                    "line {line} opens a quote that is still open at line {below}, a row of its own ({row}); {QUOTING}"
                )));
            }
            if record.len() != width {
                self.fault("rows of another number of columns than the header", place);
                continue;
            }
            let text = |column: usize| std::str::from_utf8(&record[column]).ok();
            if self.takes(split.and_then(text), place) {
                self.row(place, text(image), [text(caption)]);
            }
        }
        // A quote that is never closed takes in all rows after it.
        let mut file = reader.into_inner().into_inner();
        let mut end = vec![];
        let size = file.seek(SeekFrom::End(0)).map_err(DataError::io("read", self.path))?;
        file.seek(SeekFrom::Start(size.saturating_sub(64)))
            .and_then(|_| file.read_to_end(&mut end))
            .map_err(DataError::io("read", self.path))?;
        match open_quote {
            Some(line) if end.trim_ascii_end().last() != Some(&b'"') => {
                Err(self.fail(format!("line {line} opens a quote that is never closed; {QUOTING}")))
            }
            _ => Ok(()),
        }
    }

    /// The row that a field of `record` holds besides its own text, because its quote is closed by another's: how many lines
    /// below the record's start it is, and how it begins. Captions may have lines, but none with an image's name in the
    /// image's column.
    fn swallowed(
        &self,
        record: &csv::ByteRecord,
        delimiter: u8,
        width: usize,
        image: usize,
    ) -> Option<(usize, String)> {
        if self.texts {
            return None; // no column tells a row from a line of a text
        }
        let own = std::str::from_utf8(record.get(image)?).unwrap_or_default();
        let name = if self.names.len() > 0 { self.names.get(0) } else { own };
        let mut below = 0;
        for (column, field) in record.iter().enumerate() {
            let lines: Vec<&[u8]> = field.split(|&byte| byte == b'\n').collect();
            for (i, line) in lines.iter().enumerate().filter(|_| lines.len() > 1) {
                let line = String::from_utf8_lossy(line);
                let pieces: Vec<&str> = line.split(char::from(delimiter)).collect();
                let row = match i {
                    // The rest of the row that the field begins in, where the quote should have been closed.
                    0 => pieces.len() > 1 && column + pieces.len() == width && image > column,
                    _ => pieces.len() > 1 && image < pieces.len(),
                };
                let alike = || is_like(pieces[if i == 0 { image - column } else { image }], name);
                if row && (alike() || delimiter == b'\t' && i > 0 && pieces.len() == width) {
                    // The first line is the row's own: it is the next that is taken in.
                    let first =
                        if i == 0 { String::from_utf8_lossy(lines[1]) } else { line.clone() };
                    let shown: String = first.trim().chars().take(60).collect();
                    return Some((below + i.max(1), shown));
                }
            }
            below += lines.len() - 1;
        }
        None
    }
}

/// Whether a piece of text could be an image's name in a table that calls another image `name`.
fn is_like(piece: &str, name: &str) -> bool {
    let (piece, name) = (piece.trim(), name.trim());
    let spaced = |text: &str| text.contains(char::is_whitespace);
    if piece.is_empty() || spaced(piece) && !spaced(name) {
        return false;
    }
    match ending(name) {
        Some(of_name) => ending(piece).is_some_and(|e| e == of_name || is_image(&e)),
        None => true,
    }
}
