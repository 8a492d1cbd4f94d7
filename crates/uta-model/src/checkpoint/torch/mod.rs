//! PyTorch files (`.pt`, `.pth`, `.bin`): the weights of a checkpoint, without running what is in it; and weights written as
//! `torch.save` writes them.
//!
//! Three containers are read: the zip file that `torch.save` writes since PyTorch 1.6, the stream of pickles before that,
//! and TorchScript's archive, as OpenAI ships CLIP, whose modules are taken for plain records and whose code is not
//! looked at. What a pickle may mention is listed in one place, `torch/globals.rs`; any other name is
//! refused. Python is not needed, and nothing here can call anything.
//!
//! A zip file's storages are mapped, like a safetensors file; those of older or compressed files are read once, into
//! their tensors. Only the weights are read, not the optimiser's state beside them.
//!
//! By hand, since `pytorch-reader` (0.22) lets unknown names pass, doesn't read TorchScript and copies every tensor, up to
//! 10 GiB for one that a few bytes describe.

mod globals;
mod pickle;
mod write;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::rc::Rc;

use tch::{Device, Kind, Tensor};
use torch_ext::first_line;
use zip::read::{ArchiveOffset, Config, ZipReadOptions};
use zip::{CompressionMethod, ZipArchive};

use self::globals::Element;
use self::pickle::{Id, Node, Nodes, Source, View};
pub use self::write::save;
use crate::ModelError;
use crate::checkpoint::file::OpenFile;

/// Why a file isn't read, in words that follow its name.
type Result<T> = std::result::Result<T, String>;

/// Keys under which training programs keep the weights among other things, in the order in which EVA's loader looks for them.
const WRAPPERS: [&str; 4] = ["model", "module", "state_dict", "model_state_dict"];

/// The deepest nesting of wrappers.
const MAX_WRAPPERS: usize = 3;

/// The deepest nesting of modules.
const MAX_DEPTH: usize = 100;

/// The first value of the old format, lowest byte first; `torch/serialization.py` has it.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// The version of the old format.
const PROTOCOL: i64 = 1001;

/// Bytes that may be read before the entries of a zip file are known: this, and a 32nd of the file. An entry takes eight times the
/// memory that it takes in the file's directory, and a file of empty entries is nothing but directory.
const DIRECTORY: u64 = 256 << 10;

/// The alignment of storages that are used where they lie: a multiple of every element's size.
const ALIGNED: u64 = 16;

/// Bytes that are copied at once: fewer than torch would share among its threads, which costs more than it gains here.
const CHUNK: u64 = 16 << 10;

/// Whether a file's first bytes are those of a PyTorch file; a `.bin` may as well be a safetensors file.
///
/// # Errors
/// When it can't be read, or is no file.
pub fn is_torch_file(path: &Path) -> std::result::Result<bool, ModelError> {
    Ok(is_torch(&OpenFile::open(path)?))
}

pub(super) fn is_torch(open: &OpenFile) -> bool {
    container(&open.head).is_some()
}

/// The containers.
#[derive(Debug, PartialEq)]
enum Format {
    Zip,
    Legacy,
    /// The tar file of PyTorch before 0.1.10.
    Tar,
}

fn container(head: &[u8]) -> Option<Format> {
    let zip = head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06");
    let legacy = matches!(head, [0x80, 2..=5, ..])
        && head.windows(MAGIC.len()).take(32).any(|bytes| bytes == MAGIC);
    match () {
        // A safetensors file's ninth byte; a zip file has its method there.
        _ if zip && head.get(8) != Some(&b'{') => Some(Format::Zip),
        _ if legacy => Some(Format::Legacy),
        _ if head.get(257..262) == Some(b"ustar") => Some(Format::Tar),
        _ => None,
    }
}

/// The weights of a PyTorch file, by name, on the CPU and in the kinds in which they are stored: a state dict, or the
/// parameters and buffers of a TorchScript module.
///
/// A state dict may lie under `model`, `module`, `state_dict` or `model_state_dict`, beside an optimiser's state, settings
/// and counters. Names are as they are stored. Tensors that share a storage share memory here.
/// Values that are no tensors are left out.
///
/// # Errors
/// When it can't be read, is no such file, is damaged, holds no weights, or mentions what could be a program: in one line
/// that names it. A file that claims more than it holds is refused before memory is taken for it.
pub fn read(path: &Path) -> std::result::Result<BTreeMap<String, Tensor>, ModelError> {
    read_open(OpenFile::open(path)?)
}

/// [`read`], of a file that is open already.
pub(super) fn read_open(
    mut open: OpenFile,
) -> std::result::Result<BTreeMap<String, Tensor>, ModelError> {
    open.seek(0)?;
    let OpenFile { path, file, length, head } = open;
    let path = path.as_path();
    let read = || -> Result<BTreeMap<String, Tensor>> {
        let mut nodes = Nodes::new(length);
        let (root, mut storages) = match container(&head) {
            Some(Format::Zip) => open_zip(path, file, length, &mut nodes)?,
            Some(Format::Legacy) => open_legacy(file, length, &mut nodes)?,
            Some(Format::Tar) => {
                return Err("is a tar file of PyTorch before 0.1.10, which is not read: load and \
                            save it with a newer one"
                    .into());
            }
            None if length == 0 => return Err("is empty".into()),
            None => return Err("is no PyTorch file".into()),
        };
        let mut most = allowance(length);
        let mut tensors = BTreeMap::new();
        for (name, view) in weights(&mut nodes, root, length)? {
            let Node::Tensor(view) = nodes.get(view) else { continue };
            let tensor =
                storages.tensor(&nodes, view, &mut most).map_err(|e| format!("{name:?} {e}"))?;
            tensors.insert(name, tensor);
        }
        Ok(tensors)
    };
    read().map_err(|message| ModelError::format(path, message))
}

/// Bytes that the contents of a file of `length` bytes may come to when compressed data are unpacked, and when every
/// tensor has its own copy of what it shares. Trained weights don't compress to half; a bomb does to a thousandth.
fn allowance(length: u64) -> u64 {
    length.saturating_mul(4).saturating_add(1 << 20)
}

/// The tensors of the value at `root`, by name.
fn weights(nodes: &mut Nodes, root: Id, length: u64) -> Result<BTreeMap<String, Id>> {
    let mut found = BTreeMap::new();
    // Names of modules in modules grow; a few shared modules could give any number of names.
    let mut letters = allowance(length);
    let mut add = |name: &str, tensor: Id| {
        letters = letters.checked_sub(name.len() as u64).ok_or("has too long names")?;
        match found.insert(name.to_owned(), tensor) {
            None => Ok(()),
            Some(_) => Err(format!("holds {name:?} twice")),
        }
    };
    if let Node::Bag { script: true, .. } = nodes.get(root) {
        walk(nodes, root, &mut String::new(), MAX_DEPTH, &mut add)?;
    } else if let Some(dict) = state_dict(nodes, root, MAX_WRAPPERS) {
        for &(key, value) in nodes.dict(dict).unwrap_or_default() {
            if matches!(nodes.get(value), Node::Tensor(_)) {
                add(nodes.text(key).ok_or("holds a tensor whose name is no text")?, value)?;
            }
        }
    } else if let Some(entries) = nodes.dict(root) {
        let names = entries.iter().filter_map(|&(key, _)| nodes.text(key));
        let names: Vec<String> = names.take(10).map(|name| format!("{name:.60}")).collect();
        return Err(format!("holds no state dict: its keys are {}", names.join(", ")));
    }
    if found.is_empty() {
        return Err("holds no named tensors".into());
    }
    Ok(found)
}

/// The dictionary of tensors that `id` is, or that lies in it under a wrapper's name.
fn state_dict(nodes: &Nodes, id: Id, depth: usize) -> Option<Id> {
    let entries = nodes.dict(id)?;
    let wrapped = WRAPPERS.iter().filter(|_| depth > 0).find_map(|wrapper| {
        let entry = entries.iter().rev().find(|(key, _)| nodes.text(*key) == Some(wrapper));
        state_dict(nodes, entry?.1, depth - 1)
    });
    let holds = || entries.iter().any(|&(_, value)| matches!(nodes.get(value), Node::Tensor(_)));
    wrapped.or_else(|| holds().then_some(id))
}

/// Adds the tensors of a TorchScript module and of those in it, by the path of their attributes.
fn walk(
    nodes: &mut Nodes,
    module: Id,
    path: &mut String,
    depth: usize,
    add: &mut impl FnMut(&str, Id) -> Result<()>,
) -> Result<()> {
    let Node::Bag { script: true, attributes: Some(attributes) } = *nodes.get(module) else {
        return Ok(());
    };
    let depth = depth.checked_sub(1).ok_or("holds modules in modules without end")?;
    let count = nodes.dict(attributes).map_or(0, <[_]>::len);
    // A module that occurs twice is walked twice.
    nodes.spend(1 + count)?;
    for place in 0..count {
        let Some(&(key, value)) = nodes.dict(attributes).and_then(|entries| entries.get(place))
        else {
            break;
        };
        let Some(name) = nodes.text(key) else { continue };
        let before = path.len();
        let wanted = matches!(nodes.get(value), Node::Tensor(_) | Node::Bag { script: true, .. });
        if !wanted {
            continue;
        }
        if before + name.len() > 4096 {
            return Err("has too long names".into());
        }
        if before > 0 {
            path.push('.');
        }
        path.push_str(name);
        match nodes.get(value) {
            Node::Tensor(_) => add(path, value)?,
            _ => walk(nodes, value, path, depth, add)?,
        }
        path.truncate(before);
    }
    Ok(())
}

/// The bytes behind the tensors.
struct Storages {
    container: Container,
    /// Those in use by key: bytes, and where they begin in their tensor's memory.
    used: HashMap<String, (Tensor, u64)>,
    /// Bytes that may still be unpacked.
    unpack: u64,
}

enum Container {
    Zip {
        archive: ZipArchive<BufReader<Rationed>>,
        /// The prefix of the names of its entries.
        prefix: String,
        length: u64,
        /// All of the file.
        mapped: Tensor,
    },
    /// The old stream, and where the bytes of each storage lie.
    Legacy { file: File, places: HashMap<String, (u64, u64)> },
}

/// A file with a budget of bytes that may still be read.
struct Rationed {
    file: File,
    left: Rc<Cell<u64>>,
}

impl Read for Rationed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        let left = self.left.get().checked_sub(read as u64);
        self.left.set(left.ok_or_else(|| io::Error::other("it is mostly directory"))?);
        Ok(read)
    }
}

impl Seek for Rationed {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// Opens a zip file and reads its pickle.
fn open_zip(path: &Path, file: File, length: u64, nodes: &mut Nodes) -> Result<(Id, Storages)> {
    let left = Rc::new(Cell::new(DIRECTORY + length / 32));
    // The crate's own guess of where the archive begins is wrong for one length of its name: a zip64 end record before the
    // ordinary one looks like a directory entry.
    let known = Config { archive_offset: ArchiveOffset::Known(0) };
    let reader = BufReader::new(Rationed { file, left: left.clone() });
    let mut archive = ZipArchive::with_config(known, reader)
        .map_err(|e| format!("is no whole zip file, as PyTorch's are: {e}"))?;
    left.set(u64::MAX);
    let broken = |e: zip::result::ZipError| format!("is a damaged zip file: {e}");
    if archive.has_duplicate_names() {
        return Err("is a zip file with two entries of one name".into());
    }
    if archive.has_overlapping_files().map_err(broken)? {
        return Err("is a zip file whose entries overlap".into());
    }
    let mut prefixes = Vec::new();
    for name in archive.file_names_raw() {
        let name = std::str::from_utf8(name).unwrap_or_default();
        match name.strip_suffix("/data.pkl") {
            Some(folder) if !folder.contains('/') => prefixes.push(format!("{folder}/")),
            _ => {}
        }
    }
    let prefix = match (prefixes.pop(), prefixes.pop()) {
        (Some(prefix), None) => prefix,
        (None, _) => {
            return Err("is a zip file, but none of PyTorch's: it has no NAME/data.pkl".into());
        }
        (Some(_), Some(_)) => return Err("is a zip file with more than one data.pkl".into()),
    };
    let text = path.to_str().ok_or("has a path that is not UTF-8")?;
    let size = i64::try_from(length).map_err(|_| "is too long")?;
    let mapped = Tensor::f_from_file(text, false, size, (Kind::Uint8, Device::Cpu))
        .map_err(|e| format!("can't be mapped: {}", first_line(&e)))?;
    let container = Container::Zip { archive, prefix, length, mapped };
    let mut storages = Storages { container, used: HashMap::new(), unpack: allowance(length) };

    if let Some(order) = storages.entry("byteorder")? {
        let mut text = Vec::new();
        storages.stream(&order, |reader| reader.take(16).read_to_end(&mut text))?;
        if text != b"little" {
            return Err("is in the byte order of another machine (not little-endian)".into());
        }
    }
    let pickle = storages.entry("data.pkl")?.ok_or("has no data.pkl")?;
    let root = storages.stream(&pickle, |reader| {
        Ok(nodes.load(&mut Source { inner: BufReader::new(reader), left: pickle.size }))
    })??;
    Ok((root, storages))
}

/// Reads the pickles of the old format and finds its storages.
fn open_legacy(file: File, length: u64, nodes: &mut Nodes) -> Result<(Id, Storages)> {
    let seekable = file.try_clone().map_err(unreadable)?;
    let mut source = Source { inner: BufReader::new(file), left: length };
    let magic = nodes.load(&mut source)?;
    if !matches!(nodes.get(magic), Node::Long(bytes) if **bytes == MAGIC) {
        return Err("is no PyTorch file".into());
    }
    let protocol = nodes.load(&mut source)?;
    if !matches!(nodes.get(protocol), Node::Int(PROTOCOL)) {
        return Err("is a PyTorch file of an unknown version".into());
    }
    // Facts on the machine that wrote it, which don't matter: storages are always little-endian.
    nodes.load(&mut source)?;
    let root = nodes.load(&mut source)?;
    let keys = nodes.load(&mut source)?;

    let mut elements: HashMap<&str, &Element> = HashMap::new();
    for node in nodes.all() {
        let Node::Storage(storage) = node else { continue };
        let key = nodes.text(storage.key).unwrap_or_default();
        let element = elements.entry(key).or_insert(storage.element);
        if *element != storage.element {
            return Err(format!("holds storage {key:?} in two kinds"));
        }
    }
    let mut places = HashMap::new();
    for &key in nodes.items(keys).ok_or("has no list of its storages")? {
        let key = nodes.text(key).unwrap_or_default();
        let element = elements.get(key).ok_or_else(|| format!("mentions no storage {key:?}"))?;
        let count = u64::from_le_bytes(source.array()?);
        let size = count.checked_mul(element.size).filter(|&size| size <= source.left);
        let Some(size) = size else {
            return Err(format!(
                "is cut short: storage {key:?} has {count} elements of {} bytes, and {} bytes are \
                 left",
                element.size, source.left
            ));
        };
        if places.insert(key.to_owned(), (length - source.left, size)).is_some() {
            return Err(format!("holds storage {key:?} twice"));
        }
        source.left -= size;
        let step = i64::try_from(size).map_err(|_| "is too long")?;
        source.inner.seek_relative(step).map_err(unreadable)?;
    }
    let container = Container::Legacy { file: seekable, places };
    Ok((root, Storages { container, used: HashMap::new(), unpack: allowance(length) }))
}

/// An entry of a zip file.
struct Entry {
    index: usize,
    start: u64,
    size: u64,
    /// Whether it is stored as it is, not compressed.
    stored: bool,
}

impl Storages {
    /// The entry of that name, if there is one.
    fn entry(&mut self, name: &str) -> Result<Option<Entry>> {
        let Container::Zip { archive, prefix, length, .. } = &mut self.container else {
            return Ok(None);
        };
        let Some(index) = archive.index_for_name(&format!("{prefix}{name}")) else {
            return Ok(None);
        };
        let wrong = |what: String| format!("is a damaged zip file: {name} {what}");
        let entry = archive.by_index_raw(index).map_err(|e| wrong(e.to_string()))?;
        let size = entry.size();
        let packed = entry.compressed_size();
        let stored = match entry.compression() {
            CompressionMethod::Stored => true,
            CompressionMethod::Deflated => false,
            other => return Err(wrong(format!("is packed by {other}, which is not read"))),
        };
        if entry.encrypted() {
            return Err(wrong("is encrypted".into()));
        }
        let start = entry.data_start().ok_or_else(|| wrong("has no place".into()))?;
        if start.checked_add(packed).is_none_or(|end| end > *length) || stored && size != packed {
            return Err(wrong(format!("claims {size} bytes, more than the file has")));
        }
        if !stored {
            let left = self.unpack.checked_sub(size);
            self.unpack =
                left.ok_or_else(|| wrong(format!("claims to unpack to {size} bytes, too many")))?;
        }
        Ok(Some(Entry { index, start, size, stored }))
    }

    /// Lets `read` have the bytes of an entry.
    fn stream<T>(
        &mut self,
        entry: &Entry,
        read: impl FnOnce(&mut dyn Read) -> io::Result<T>,
    ) -> Result<T> {
        let Container::Zip { archive, .. } = &mut self.container else {
            return Err("is no zip file".into());
        };
        let broken = |e: &dyn std::fmt::Display| format!("is a damaged zip file: {e}");
        // torch can leave the checksums of what it stores out.
        let options = ZipReadOptions::new().ignore_crc32(entry.stored);
        let mut packed =
            archive.by_index_with_options(entry.index, options).map_err(|e| broken(&e))?;
        let mut within = Read::by_ref(&mut packed).take(entry.size);
        let value = read(&mut within).map_err(unreadable)?;
        // The checksum is compared where an entry ends, and one that is packed may end later than it says.
        io::copy(&mut within, &mut io::sink()).map_err(|e| broken(&e))?;
        match packed.read(&mut [0]).map_err(|e| broken(&e))? {
            0 => Ok(value),
            _ => Err(broken(&"an entry is longer than it says")),
        }
    }

    /// The bytes of a storage, and where they begin in their tensor's memory: a multiple of any element's size.
    fn bytes(&mut self, key: &str) -> Result<(Tensor, u64)> {
        if let Some((bytes, start)) = self.used.get(key) {
            return Ok((bytes.shallow_clone(), *start));
        }
        let missing = || format!("lies in storage {key:?}, which isn't in the file");
        let (bytes, start) = match &mut self.container {
            Container::Legacy { file, places } => {
                let (start, size) = *places.get(key).ok_or_else(missing)?;
                file.seek(SeekFrom::Start(start)).map_err(unreadable)?;
                (copy(file, size)?, 0)
            }
            Container::Zip { .. } => {
                let entry = self.entry(&format!("data/{key}"))?.ok_or_else(missing)?;
                match &self.container {
                    Container::Zip { mapped, .. }
                        if entry.stored && entry.start.is_multiple_of(ALIGNED) =>
                    {
                        // Both are within the file's length, which is an i64.
                        let part = mapped.f_narrow(0, entry.start as i64, entry.size as i64);
                        (part.map_err(|e| first_line(&e))?, entry.start)
                    }
                    _ => (self.stream(&entry, |reader| Ok(copy(reader, entry.size)))??, 0),
                }
            }
        };
        self.used.insert(key.to_owned(), (bytes.shallow_clone(), start));
        Ok((bytes, start))
    }

    /// A view of a storage; `most` bytes may yet be shown.
    fn tensor(&mut self, nodes: &Nodes, view: &View, most: &mut u64) -> Result<Tensor> {
        let Node::Storage(storage) = nodes.get(view.storage) else {
            return Err("has no storage".into());
        };
        let kind = view.element.kind.ok_or_else(|| {
            let names = view.element.storage;
            format!("is of {names}, a kind that is not read here")
        })?;
        let beyond = || {
            format!(
                "shows what its storage hasn't: {:?} elements, {:?} apart, from {} on",
                view.size, view.stride, view.offset
            )
        };
        let shape = reach(&view.size, &view.stride).ok_or_else(beyond)?;
        let count = shape.count;
        let bytes = count.checked_mul(view.element.size);
        *most = bytes
            .and_then(|bytes| most.checked_sub(bytes))
            .ok_or("is, or they all are, far larger than the file")?;
        if count == 0 {
            return Tensor::f_zeros(&view.size, (kind, Device::Cpu)).map_err(|e| first_line(&e));
        }

        // In bytes of the storage: where it begins, what it was said to have.
        let part = storage.start.checked_mul(storage.element.size);
        let has = storage.length.checked_mul(storage.element.size);
        let (Some(part), Some(has)) = (part, has) else { return Err(beyond()) };
        let offset = u64::try_from(view.offset).map_err(|_| beyond())?;
        let end = offset.checked_add(shape.last + 1);
        let end = end.and_then(|end| end.checked_mul(view.element.size));
        if end.is_none_or(|end| end > has) {
            return Err(beyond());
        }
        let key = nodes.text(storage.key).unwrap_or_default();
        let (bytes, start) = self.bytes(key)?;
        let length = bytes.numel() as u64;
        if part.checked_add(has).is_none_or(|end| end > length) {
            return Err(format!(
                "lies in storage {key:?}, which promises {has} bytes and has {length}"
            ));
        }
        // All sums are below the storage's length from here on.
        let size = view.element.size;
        if part % size != 0 {
            return Err(beyond());
        }
        let typed = bytes
            .f_narrow(0, 0, (length / size * size) as i64)
            .and_then(|bytes| bytes.f_view_dtype(kind));
        let first = (start + part) / size + offset;
        typed
            .and_then(|typed| typed.f_as_strided(&view.size, &view.stride, first as i64))
            .map_err(|e| first_line(&e))
    }
}

/// The extent of a view, in elements.
struct Reach {
    count: u64,
    /// The last that is shown, from the first.
    last: u64,
}

/// `None` for sizes or strides that make no view: negative ones, or beyond what an i64 counts.
fn reach(size: &[i64], stride: &[i64]) -> Option<Reach> {
    let mut reach = Reach { count: 1, last: 0 };
    // Of the dimensions that aren't empty: torch computes with them too.
    let mut nonzero = 1i64;
    for (&size, &stride) in size.iter().zip(stride) {
        if size < 0 || stride < 0 {
            return None;
        }
        nonzero = nonzero.checked_mul(size.max(1))?;
        reach.count = reach.count.checked_mul(size as u64)?;
        let along = (size as u64).saturating_sub(1).checked_mul(stride as u64)?;
        reach.last = reach.last.checked_add(along).filter(|&last| last < i64::MAX as u64)?;
    }
    Some(reach)
}

/// The next `size` bytes, in a tensor's memory. It grows no faster than they come.
fn copy(reader: &mut (impl Read + ?Sized), size: u64) -> Result<Tensor> {
    let length = i64::try_from(size).map_err(|_| "is too long")?;
    let tensor =
        Tensor::f_empty([length], (Kind::Uint8, Device::Cpu)).map_err(|e| first_line(&e))?;
    let mut chunk = vec![0; CHUNK.min(size) as usize];
    let mut at = 0;
    while at < size {
        let count = CHUNK.min(size - at);
        let chunk = &mut chunk[..count as usize];
        reader.read_exact(chunk).map_err(unreadable)?;
        tensor
            .f_narrow(0, at as i64, count as i64)
            .and_then(|mut part| part.f_copy_(&Tensor::f_from_slice(&*chunk)?))
            .map_err(|e| first_line(&e))?;
        at += count;
    }
    Ok(tensor)
}

fn unreadable(e: io::Error) -> String {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => "is cut short".into(),
        _ => format!("can't be read: {e}"),
    }
}
