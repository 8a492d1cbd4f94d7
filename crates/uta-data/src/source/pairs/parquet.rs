//! Pair tables in Parquet, by the format's own levels and pages: captions are read when the table is opened, an image's
//! bytes when it is asked for, without decoding the pages before its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Type};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::ColumnDescriptor;

use super::reading::{Reading, SPLIT};
use crate::quietly::quietly;
use crate::{DataError, MAX_PIXELS};

/// Images in the rows of a Parquet file.
pub(super) struct Rows {
    path: PathBuf,
    metadata: Arc<ParquetMetaData>,
    column: usize,
    /// The rows that are samples.
    rows: Vec<u32>,
}

impl Rows {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The file and the row.
    pub(super) fn key(&self, i: usize) -> String {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        format!("{stem}/{}", self.rows[i])
    }

    /// The bytes of sample `i`'s image.
    pub(super) fn image(&self, i: usize) -> Result<Vec<u8>, String> {
        whole(|| self.read(i)).map_err(|e| e.to_string())
    }

    fn read(&self, i: usize) -> Result<Vec<u8>, ParquetError> {
        let broken = |reason: String| Err(ParquetError::General(reason));
        let mut row = self.rows[i] as usize;
        for group in 0..self.metadata.num_row_groups() {
            let rows = self.metadata.row_group(group).num_rows() as usize;
            if row >= rows {
                row -= rows;
                continue;
            }
            let mut reader = column(&self.path, &self.metadata, group, self.column)?;
            let skipped = reader.skip_records(row)?;
            let (mut levels, mut values) = (vec![], vec![]);
            let (read, ..) = reader.read_records(1, Some(&mut levels), None, &mut values)?;
            if skipped + read <= row {
                return broken(format!("its column ends after {} rows", skipped + read));
            }
            return match values.pop() {
                Some(image) if image.len() as u64 > 8 * MAX_PIXELS => {
                    broken(format!("{} bytes are too many for an image", image.len()))
                }
                Some(image) => Ok(image.data().to_vec()),
                None => broken("its image is null".into()),
            };
        }
        broken("the file has fewer rows than when it was opened".into())
    }
}

/// Reads the captions, and the images' paths; returns where the images are if they are in the file themselves.
pub(super) fn read(rows: &mut Reading) -> Result<Option<Rows>, DataError> {
    let path = rows.path;
    let fail = |e: ParquetError| DataError::Table { path: path.to_owned(), reason: e.to_string() };
    let file = File::open(path).map_err(DataError::io("read", path))?;
    let reader = whole(|| SerializedFileReader::new(file)).map_err(fail)?;
    let metadata = Arc::new(reader.metadata().clone());
    let columns = metadata.file_metadata().schema_descr().columns();
    // A column by its name or by its path; an image that is a group of `bytes` and `path` means its bytes.
    let find = |key: &str| {
        let whole = |c: &ColumnDescriptor| c.path().string() == key;
        let bytes = |c: &ColumnDescriptor| c.path().string() == format!("{key}.bytes");
        let below = |c: &ColumnDescriptor| c.path().parts().first().is_some_and(|part| part == key);
        let ways: [&dyn Fn(&ColumnDescriptor) -> bool; 3] = [&whole, &bytes, &below];
        ways.iter().find_map(|way| columns.iter().position(|c| way(c)))
    };
    let names = || columns.iter().map(|c| c.path().string());
    let mut asked = vec![];
    let key_of_captions = rows.options.caption_key();
    let caption = rows.caption_column(find);
    let image = if rows.texts { caption } else { find(rows.options.image_key()) };
    for (key, at) in [(rows.options.image_key(), image), (key_of_captions, caption)] {
        let key = if rows.texts { key_of_captions } else { key };
        let Some(at) = at else { return Err(rows.no_column(key, names())) };
        let (repeated, kind) = (columns[at].max_rep_level(), columns[at].physical_type());
        if kind != Type::BYTE_ARRAY || repeated > 1 {
            let reason = format!("column {key} is {kind} in {repeated} lists, not text or bytes");
            return Err(rows.fail(reason));
        }
        asked.push(at);
    }
    let (image, caption, split) = (asked[0], asked[1], find(SPLIT));
    if columns[image].max_rep_level() > 0 && !rows.texts {
        return Err(rows.fail(format!(
            "column {} is a list: an image a row is needed",
            columns[image].path()
        )));
    }
    let text = rows.texts
        || columns[image].converted_type() == ConvertedType::UTF8
        || columns[image].logical_type_ref() == Some(&LogicalType::String);
    let split = split.filter(|&c| {
        columns[c].physical_type() == Type::BYTE_ARRAY && columns[c].max_rep_level() == 0
    });

    let (mut row, mut taken) = (0u32, vec![]);
    for group in 0..metadata.num_row_groups() {
        let records = |at: usize| {
            whole(|| {
                let descriptor = &columns[at];
                let mut reader = column(path, &metadata, group, at)?;
                records(&mut reader, descriptor, metadata.row_group(group).num_rows() as usize)
            })
        };
        let captions = records(caption).map_err(fail)?;
        let splits = split.map(records).transpose().map_err(fail)?;
        let images = text.then(|| records(image)).transpose().map_err(fail)?;
        for (i, captions) in captions.iter().enumerate() {
            let (at, place) = (row, format!("row {row}"));
            row += 1;
            if !rows.takes(splits.as_ref().and_then(|splits| utf8(splits[i].first())), &place) {
                continue;
            }
            let captions = captions.iter().map(|caption| utf8(Some(caption)));
            match &images {
                Some(images) => rows.row(place, utf8(images[i].first()), captions),
                None => {
                    rows.captions(place, taken.len() as u32, captions);
                    taken.push(at);
                }
            }
        }
    }
    Ok((!text).then(|| Rows { path: path.to_owned(), metadata, column: image, rows: taken }))
}

/// The value of `read`; its panic, which a damaged file can bring about in the parquet crate, as an error.
fn whole<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    quietly(read).unwrap_or_else(|_| Err(ParquetError::General("the file is damaged".into())))
}

fn utf8(value: Option<&Option<ByteArray>>) -> Option<&str> {
    value?.as_ref()?.as_utf8().ok()
}

/// A column of a row group, from its start. The file is opened anew: readers in several threads must not share a place.
fn column(
    path: &Path,
    metadata: &ParquetMetaData,
    group: usize,
    column: usize,
) -> Result<ColumnReaderImpl<ByteArrayType>, ParquetError> {
    let group = metadata.row_group(group);
    let chunk = group.column(column);
    let file = Arc::new(File::open(path)?);
    let pages = SerializedPageReader::new(file, chunk, group.num_rows() as usize, None)?;
    Ok(ColumnReaderImpl::new(chunk.column_descr_ptr(), Box::new(pages)))
}

/// Every value of every record: one, or those of its list; `None` for nulls.
fn records(
    reader: &mut ColumnReaderImpl<ByteArrayType>,
    descriptor: &ColumnDescriptor,
    rows: usize,
) -> Result<Vec<Vec<Option<ByteArray>>>, ParquetError> {
    let (mut present, mut starts, mut values) = (vec![], vec![], vec![]);
    reader.read_records(rows, Some(&mut present), Some(&mut starts), &mut values)?;
    let (whole, listed) = (descriptor.max_def_level(), descriptor.max_rep_level() > 0);
    let levels = if whole > 0 { present.len() } else { values.len() };
    // How many there should be is the file's word alone.
    let (mut records, mut values) = (Vec::with_capacity(levels.min(rows)), values.into_iter());
    for i in 0..levels {
        if !listed || starts[i] == 0 {
            records.push(vec![]);
        }
        let record = records
            .last_mut()
            .ok_or_else(|| ParquetError::General("a list without a start".into()))?;
        match whole == 0 || present[i] == whole {
            true => record.push(values.next()),
            // Below the level of an element, the list itself is null or empty.
            false if listed && present[i] < whole - 1 => {}
            false => record.push(None),
        }
    }
    match records.len() == rows {
        true => Ok(records),
        false => Err(ParquetError::General(format!("{} of {rows} rows", records.len()))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use parquet::file::metadata::{ParquetMetaDataBuilder, ParquetMetaDataWriter};

    use super::*;
    use crate::PairOptions;
    use crate::source::pairs::Pairs;
    use crate::testing::golden;

    #[test]
    fn a_footer_that_promises_more_rows_than_there_are_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.parquet");
        let whole = golden("retrieval/emoji.parquet");
        fs::write(&path, &whole).unwrap();
        let metadata = {
            let file = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
            let mut metadata = ParquetMetaDataBuilder::new_from_metadata(file.metadata().clone());
            let groups = metadata
                .take_row_groups()
                .into_iter()
                .map(|group| group.into_builder().set_num_rows(1 << 40).build().unwrap());
            metadata.set_row_groups(groups.collect()).build()
        };
        // Before the footer's length and the mark after it.
        let (rest, length) = whole[..whole.len() - 4].split_last_chunk::<4>().unwrap();
        let mut file = rest[..rest.len() - u32::from_le_bytes(*length) as usize].to_vec();
        ParquetMetaDataWriter::new(&mut file, &metadata).finish().unwrap();
        fs::write(&path, &file).unwrap();
        let (image, caption) = (Some("image".into()), Some("caption".into()));
        let keys = PairOptions { image_key: image, caption_key: caption, ..Default::default() };
        let e = Pairs::open(&path, &keys).err().unwrap().to_string();
        assert!(e.contains(&format!("40 of {} rows", 1u64 << 40)), "{e}");

        let rows = Rows { path, metadata: Arc::new(metadata), column: 0, rows: vec![39, 40, 1000] };
        assert!(rows.image(0).is_ok());
        for i in [1, 2] {
            let e = rows.image(i).unwrap_err();
            assert!(e.contains("its column ends after 40 rows"), "{e}");
        }
    }
}
