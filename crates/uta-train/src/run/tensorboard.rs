//! Scalars for TensorBoard: the writer's half of its event files.
//!
//! An event file is a sequence of TFRecords (length, checksum, payload, checksum), each payload one
//! `Event` message of `tensorflow/core/util/event.proto`. The four fields used here are encoded by
//! hand; a protobuf compiler for them would be the larger part.
//!
//! A process never writes to an earlier process's file: it starts its own, and when it resumes a
//! run it marks from which step on the older files no longer count.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Appends scalars to an event file of its own.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventWriter {
    /// Starts a new event file in `dir`, which is made if it is missing.
    pub fn create(dir: &Path) -> io::Result<Self> {
        let now = seconds_since_epoch();
        fs::create_dir_all(dir)?;
        // TensorBoard reads the files of a folder in the order of their names.
        let mut serial = 0;
        let (path, file) = loop {
            let process = std::process::id();
            let name = format!("events.out.tfevents.{:010}.{process}.{serial}", now as u64);
            let path = dir.join(name);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => break (path, file),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => serial += 1,
                Err(error) => return Err(error),
            }
        };
        let mut writer = Self { path, file: BufWriter::new(file) };
        let mut event = Message::default();
        event.double(Event::WALL_TIME, now);
        event.bytes(Event::FILE_VERSION, b"brain.Event:2");
        writer.record(&event.0)?;
        writer.flush()?;
        Ok(writer)
    }

    /// As [`create`](Self::create), for a run that goes on after `step`: what earlier files say of
    /// later steps, which a killed process logged but no checkpoint kept, is no longer shown.
    pub fn resume(dir: &Path, step: i64) -> io::Result<Self> {
        let mut writer = Self::create(dir)?;
        let mut session = Message::default();
        session.integer(SessionLog::STATUS, SessionLog::START);
        let mut event = Message::default();
        event.double(Event::WALL_TIME, seconds_since_epoch());
        event.integer(Event::STEP, step + 1);
        event.bytes(Event::SESSION_LOG, &session.0);
        writer.record(&event.0)?;
        writer.flush()?;
        Ok(writer)
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Logs `value` under `tag` (a slash groups tags) at `step`; `wall_time` in seconds since 1970.
    pub fn scalar(&mut self, tag: &str, step: i64, value: f32, wall_time: f64) -> io::Result<()> {
        let mut entry = Message::default();
        entry.bytes(Value::TAG, tag.as_bytes());
        entry.float(Value::SIMPLE_VALUE, value);
        let mut summary = Message::default();
        summary.bytes(Summary::VALUE, &entry.0);
        let mut event = Message::default();
        event.double(Event::WALL_TIME, wall_time);
        event.integer(Event::STEP, step);
        event.bytes(Event::SUMMARY, &summary.0);
        self.record(&event.0)
    }

    /// Hands everything logged so far to the system; dropping the writer does so too.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    /// Waits until the disk has everything logged so far.
    pub fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file.get_ref().sync_data()
    }

    fn record(&mut self, payload: &[u8]) -> io::Result<()> {
        let length = (payload.len() as u64).to_le_bytes();
        self.file.write_all(&length)?;
        self.file.write_all(&masked_crc(&length).to_le_bytes())?;
        self.file.write_all(payload)?;
        self.file.write_all(&masked_crc(payload).to_le_bytes())
    }
}

/// TFRecord's checksum: CRC-32C, rotated and shifted so that a checksum of checksums stays strong.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Field numbers of `tensorflow.Event`.
struct Event;
impl Event {
    const WALL_TIME: u64 = 1;
    const STEP: u64 = 2;
    const FILE_VERSION: u64 = 3;
    const SUMMARY: u64 = 5;
    const SESSION_LOG: u64 = 7;
}

/// Field numbers of `tensorflow.Summary`.
struct Summary;
impl Summary {
    const VALUE: u64 = 1;
}

/// Field numbers of `tensorflow.Summary.Value`.
struct Value;
impl Value {
    const TAG: u64 = 1;
    const SIMPLE_VALUE: u64 = 2;
}

/// Field numbers of `tensorflow.SessionLog`, and the value of its enumeration that is used.
struct SessionLog;
impl SessionLog {
    const STATUS: u64 = 1;
    const START: i64 = 1;
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// Base-128, least significant group first.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn integer(&mut self, field: u64, value: i64) {
        self.key(field, 0);
        self.varint(value as u64);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }
}

/// The time as events have it.
pub(super) fn seconds_since_epoch() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Splits a file into its payloads, checking both checksums of each.
    fn payloads(mut data: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !data.is_empty() {
            let length = u64::from_le_bytes(data[..8].try_into().unwrap()) as usize;
            let word = |at: usize| u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
            assert_eq!(word(8), masked_crc(&data[..8]));
            let payload = &data[12..12 + length];
            assert_eq!(word(12 + length), masked_crc(payload));
            found.push(payload.to_vec());
            data = &data[16 + length..];
        }
        found
    }

    #[test]
    fn the_checksum_is_that_of_tfrecords() {
        // The first record of every event file begins with these twelve bytes when its payload is
        // 24 bytes long: length, then the masked checksum TensorFlow writes for it.
        let length = 24u64.to_le_bytes();
        assert_eq!(masked_crc(&length).to_le_bytes(), [0xa3, 0x7f, 0x4b, 0x22]);
        // CRC-32C of the standard check string.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_scalar_is_one_event_of_known_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path()).unwrap();
        writer.scalar("loss", 300, -0.5, 2.0).unwrap();
        writer.flush().unwrap();
        let found = payloads(&fs::read(writer.path()).unwrap());
        assert_eq!(found.len(), 2);
        assert!(found[0].ends_with(b"brain.Event:2"));
        let mut expected = vec![0x09, 0, 0, 0, 0, 0, 0, 0, 0x40]; // wall_time = 2.0
        expected.extend([0x10, 0xac, 0x02]); // step = 300
        expected.extend([0x2a, 13, 0x0a, 11]); // summary { value {
        expected.extend(*b"\x0a\x04loss\x15\x00\x00\x00\xbf"); // tag, simple_value = -0.5 }}
        assert_eq!(found[1], expected);
    }

    #[test]
    fn every_start_has_its_own_file_and_leaves_the_others_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = EventWriter::create(dir.path()).unwrap();
        first.scalar("loss", 1, 1.0, 0.0).unwrap();
        first.flush().unwrap();
        let before = fs::read(first.path()).unwrap();
        let second = EventWriter::resume(dir.path(), 0).unwrap();
        assert_ne!(first.path(), second.path());
        assert_eq!(fs::read(first.path()).unwrap(), before);
        assert_eq!(payloads(&fs::read(second.path()).unwrap()).len(), 2);
    }
}
