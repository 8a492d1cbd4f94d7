//! PyTorch's files are read as PyTorch reads them, and nothing that a file holds can make the readers run it, panic, hang
//! or take memory. `tests/golden/torch_files.py` made the files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tch::{Kind, Tensor};
use uta_model::safetensors_io::Checkpoint;
use uta_model::torch_file::{is_torch_file, read, save};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/torch_files")
}

/// The golden files: those to read, or those to refuse.
fn files(bad: bool) -> Vec<PathBuf> {
    let paths = fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "pt"))
        .filter(|path| stem(path).starts_with("bad_") == bad)
        .collect();
    paths.sort();
    assert!(paths.len() > 8);
    paths
}

fn stem(path: &Path) -> &str {
    path.file_stem().unwrap().to_str().unwrap()
}

/// The message about a file that is refused.
fn refusal(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.pt");
    fs::write(&path, bytes).unwrap();
    let message = read(&path).unwrap_err().to_string();
    assert!(message.starts_with(path.to_str().unwrap()), "{message}");
    assert!(!message.contains('\n'), "{message}");
    message
}

/// An archive of these entries, in which all of `packed` are compressed.
fn archive(entries: &[(&str, &[u8])], packed: bool) -> Vec<u8> {
    let method = if packed { CompressionMethod::Deflated } else { CompressionMethod::Stored };
    // As PyTorch aligns them.
    let options = SimpleFileOptions::default().compression_method(method).with_alignment(64);
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// A pickle of protocol 2 with these operations.
fn pickle(parts: &[&[u8]]) -> Vec<u8> {
    [b"\x80\x02", parts.concat().as_slice(), b"."].concat()
}

/// `{"w": tensor}` of 32-bit floats, eight of them under key 0; the sizes and strides as operations.
fn one_tensor(length: &[u8], offset: &[u8], size: &[u8], stride: &[u8]) -> Vec<u8> {
    pickle(&[
        b"}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n",
        b"X\x01\0\0\x000X\x03\0\0\0cpu",
        length,
        b"tQ",
        offset,
        size,
        stride,
        b"\x89}tRs",
    ])
}

fn with_storage(pickle: &[u8]) -> Vec<u8> {
    archive(&[("a/data.pkl", pickle), ("a/data/0", &[0; 32])], false)
}

/// An integer of 64 bits, as an operation.
fn long(value: i64) -> Vec<u8> {
    [b"\x8a\x08".as_slice(), &value.to_le_bytes()].concat()
}

#[test]
fn every_kind_of_file_gives_pytorchs_tensors() {
    let expected = Checkpoint::open(&golden().join("expected.safetensors")).unwrap().tensors;
    for path in files(false) {
        let found = Checkpoint::read(&path).unwrap_or_else(|e| panic!("{e}")).tensors;
        let prefix = format!("{}/", stem(&path));
        let expected: BTreeMap<&str, &Tensor> = expected
            .iter()
            .filter_map(|(key, tensor)| Some((key.strip_prefix(&prefix)?, tensor)))
            .collect();
        assert!(!expected.is_empty());
        let names: BTreeSet<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(names, expected.keys().copied().collect(), "{prefix}");
        for (name, tensor) in expected {
            assert_eq!(found[name].kind(), tensor.kind(), "{prefix}{name}");
            assert_eq!(&found[name], tensor, "{prefix}{name}");
        }
    }
}

/// `archive` as `torch.save` ends it, with a zip64 end record that the file wouldn't need.
fn with_zip64_end(mut archive: Vec<u8>) -> Vec<u8> {
    let end = archive.split_off(archive.len() - 22);
    let word = |at: usize| u64::from(u32::from_le_bytes(end[at..at + 4].try_into().unwrap()));
    let entries = u64::from(u16::from_le_bytes(end[10..12].try_into().unwrap()));
    let at = archive.len() as u64;
    archive.extend(b"PK\x06\x06");
    archive.extend(44u64.to_le_bytes());
    archive.extend([30, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    archive.extend([entries, entries, word(12), word(16)].iter().flat_map(|n| n.to_le_bytes()));
    archive.extend(b"PK\x06\x07\0\0\0\0");
    archive.extend(at.to_le_bytes());
    archive.extend(1u32.to_le_bytes());
    archive.extend(end);
    archive
}

#[test]
fn a_file_is_read_however_long_its_name_is() {
    let dir = tempfile::tempdir().unwrap();
    let whole = one_tensor(b"K\x08", b"K\0", b"K\x02K\x04\x86", b"K\x04K\x01\x86");
    for letters in 1..=48 {
        let stem = "n".repeat(letters);
        let entries = [
            (format!("{stem}/data.pkl"), &whole[..]),
            (format!("{stem}/byteorder"), b"little"),
            (format!("{stem}/data/0"), &[0; 32]),
        ];
        let entries: Vec<(&str, &[u8])> = entries.iter().map(|(n, b)| (&n[..], *b)).collect();
        let path = dir.path().join(format!("{stem}.pt"));
        fs::write(&path, with_zip64_end(archive(&entries, false))).unwrap();
        assert_eq!(read(&path).unwrap_or_else(|e| panic!("{letters}: {e}"))["w"].size(), [2, 4]);
    }
}

#[test]
fn what_is_saved_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved.pt");
    let tensors = [
        ("a.weight", Tensor::from_slice(&[1f32, 2.5, -3.0, 4.0, 5.0, 6.0]).view([2, 3])),
        ("turned", Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).view([2, 2]).transpose(0, 1)),
        ("number", Tensor::from(2.5f32)),
        ("count", Tensor::from_slice(&[1i64, -2])),
        ("none", Tensor::zeros([300, 0], (Kind::Float, tch::Device::Cpu))),
    ];
    let tensors: Vec<(String, Tensor)> =
        tensors.into_iter().map(|(name, t)| (name.to_owned(), t)).collect();
    for kind in [None, Some(Kind::Half)] {
        save(&tensors, &path, kind).unwrap();
        let found = read(&path).unwrap();
        assert_eq!(found.len(), tensors.len());
        for (name, tensor) in &tensors {
            let wanted = kind.filter(|_| tensor.is_floating_point()).unwrap_or(tensor.kind());
            assert_eq!((found[name].kind(), found[name].size()), (wanted, tensor.size()));
            assert_eq!(found[name].to_kind(tensor.kind()), *tensor, "{name}");
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn views_of_one_storage_share_its_memory() {
    for name in ["zip_2", "legacy_2", "packed", "unaligned"] {
        let found = read(&golden().join(name).with_extension("pt")).unwrap();
        let (base, row) = (found["base"].data_ptr(), found["row"].data_ptr());
        assert_eq!(base, found["tied"].data_ptr(), "{name}");
        assert_eq!(base, found["transposed"].data_ptr(), "{name}");
        // The third row of six floats.
        assert_eq!(row as usize - base as usize, 2 * 6 * Kind::Float.elt_size_in_bytes(), "{name}");
        assert_eq!(base as usize % 4, 0, "{name}");
    }
}

#[test]
fn the_content_tells_a_pytorch_file_from_a_safetensors_file() {
    for path in [files(false), files(true)].concat() {
        assert!(is_torch_file(&path).unwrap(), "{}", path.display());
    }
    assert!(!is_torch_file(&golden().join("expected.safetensors")).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.bin");
    // Headers that are as long as the numbers with which the other formats begin.
    for head in [*b"PK\x03\x04\0\0\0\0", [0x80, 2, 0x8a, 0x0a, 0, 0, 0, 0]] {
        fs::write(&path, [&head[..], b"{\"__metadata__\":{}}"].concat()).unwrap();
        assert!(!is_torch_file(&path).unwrap());
    }
    fs::write(&path, "").unwrap();
    assert!(!is_torch_file(&path).unwrap());
    assert!(is_torch_file(dir.path()).unwrap_err().to_string().contains("is a directory"));
}

#[test]
fn a_file_that_names_a_function_or_an_unknown_class_is_refused_by_that_name() {
    let names = [
        ("bad_system", "posix.system"),
        ("bad_eval", "__builtin__.eval"),
        ("bad_nested", "posix.getcwd"),
        ("bad_class", "__main__.Other"),
        ("bad_getattr", "__builtin__.getattr"),
        ("bad_module", "torch.nn.modules.container.Sequential"),
    ];
    for path in files(true) {
        let (_, name) = names.iter().find(|(file, _)| stem(&path).starts_with(file)).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains(&format!("uses {name}, which is refused")), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
    // Other ways to name one: by text, by INST, and one that is only mentioned.
    for (pickle, name) in [
        (pickle(&[b"X\x05\0\0\0posixX\x06\0\0\0system\x93X\x04\0\0\0true\x85R"]), "posix.system"),
        (pickle(&[b"(X\x04\0\0\0trueios\nsystem\n"]), "os.system"),
        (pickle(&[b"}X\x01\0\0\0xcsubprocess\nPopen\ns"]), "subprocess.Popen"),
        (pickle(&[b"ctorch\nload\n)R"]), "torch.load"),
        (pickle(&[b"ca\x1b[2J\rb\nc\n"]), "a\\u{1b}[2J\\rb.c"),
    ] {
        let message = refusal(&archive(&[("a/data.pkl", &pickle)], false));
        assert!(message.contains(&format!("uses {name}, which is refused")), "{message}");
    }
}

#[test]
fn files_of_other_kinds_are_refused_in_a_line() {
    let dir = tempfile::tempdir().unwrap();
    for (path, words) in [
        (dir.path().to_owned(), "is a directory"),
        (PathBuf::from("/dev/zero"), "is no regular file"),
        (dir.path().join("none.pt"), "No such file"),
    ] {
        for message in
            [read(&path).unwrap_err().to_string(), Checkpoint::open(&path).unwrap_err().to_string()]
        {
            assert!(message.contains(words) && !message.contains('\n'), "{message}");
        }
    }

    let inner = fs::read(golden().join("zip_2.pt")).unwrap();
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    for (bytes, words) in [
        (vec![], "is empty"),
        (b"PK".to_vec(), "is no PyTorch file"),
        (b"{\"not\": \"weights\"}".to_vec(), "is no PyTorch file"),
        (b"\x80\x02}.".to_vec(), "is no PyTorch file"),
        (tar, "is a tar file of PyTorch before 0.1.10"),
        (archive(&[], false), "no NAME/data.pkl"),
        (archive(&[("model.pt", &inner)], false), "no NAME/data.pkl"),
        (archive(&[("a/data.pkl", &inner)], false), "is no pickle of a checkpoint"),
        (archive(&[("a/data.pkl", b"\x80\x02"), ("b/data.pkl", b"")], false), "more than one"),
        (archive(&[("a/data.pkl", b"")], false), "is cut short"),
        (archive(&[("a/data.pkl", b"\x80\x06N.")], false), "protocol 6"),
        (archive(&[("a/data.pkl", &pickle(&[b"N"]))], false), "no named tensors"),
        (archive(&[("a/data.pkl", &pickle(&[b"}X\x03\0\0\0netNs"]))], false), "its keys are net"),
        (
            archive(&[("a/byteorder", b"big"), ("a/data.pkl", b"\x80\x02N.")], false),
            "another machine",
        ),
    ] {
        let message = refusal(&bytes);
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn every_file_that_is_cut_short_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.pt");
    for whole in [files(false), vec![golden().join("expected.safetensors")]].concat() {
        let bytes = fs::read(&whole).unwrap();
        let torch = is_torch_file(&whole).unwrap();
        for part in 0..24 {
            fs::write(&path, &bytes[..bytes.len() * part / 24]).unwrap();
            let message = match torch {
                true => read(&path).unwrap_err().to_string(),
                false => Checkpoint::open(&path).unwrap_err().to_string(),
            };
            assert!(!message.contains('\n'), "{} {part}: {message}", whole.display());
        }
    }
}

#[test]
fn views_beyond_their_storage_are_refused() {
    let eight = || b"K\x08".to_vec();
    let whole = one_tensor(&eight(), b"K\0", b"K\x02K\x04\x86", b"K\x04K\x01\x86");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("whole.pt");
    fs::write(&path, with_storage(&whole)).unwrap();
    assert_eq!(read(&path).unwrap()["w"].size(), [2, 4]);

    let (most, huge) = (long(i64::MAX), long(1 << 60));
    let pair = |a: &[u8], b: &[u8]| [a, b, b"\x86"].concat();
    for (pickle, words) in [
        (
            one_tensor(&eight(), b"K\x01", b"K\x08\x85", b"K\x01\x85"),
            "shows what its storage hasn't",
        ),
        (one_tensor(&eight(), b"K\0", b"K\x02\x85", b"K\x08\x85"), "shows what its storage hasn't"),
        (one_tensor(&eight(), b"J\xff\xff\xff\xff", b"K\x02\x85", b"K\x01\x85"), "shows what"),
        (one_tensor(&eight(), &most, b"K\x02\x85", b"K\x01\x85"), "shows what"),
        (one_tensor(&eight(), b"K\0", b"K\x02\x85", b"J\xff\xff\xff\xff\x85"), "shows what"),
        (one_tensor(&eight(), b"K\0", &pair(&huge, &huge), &pair(b"K\0", b"K\0")), "shows what"),
        (one_tensor(&eight(), b"K\0", &pair(&huge, b"K\0"), &pair(&huge, &huge)), "shows what"),
        (one_tensor(&eight(), b"K\0", b"K\x02\x85", &pair(b"K\x01", b"K\x01")), "no tensor"),
        (
            one_tensor(&huge, b"K\0", &pair(b"K\x02", b"K\x04"), &pair(b"K\x04", b"K\x01")),
            "promises",
        ),
        (one_tensor(&most, b"K\0", b"K\x08\x85", b"K\x01\x85"), "shows what"),
        (one_tensor(b"K\x09", b"K\0", b"K\x09\x85", b"K\x01\x85"), "promises 36 bytes and has 32"),
        // Four bytes, shown as a pebibyte.
        (
            one_tensor(&eight(), b"K\0", &[&long(1 << 48)[..], b"\x85"].concat(), b"K\0\x85"),
            "far larger than the file",
        ),
    ] {
        let message = refusal(&with_storage(&pickle));
        assert!(message.contains(words), "{message} ({words})");
    }
    let missing = archive(&[("a/data.pkl", &whole)], false);
    assert!(refusal(&missing).contains("isn't in the file"));
}

/// A file of the old format with this value, and one storage of the floats 0 to 7 under key 0.
fn legacy(value: &[u8]) -> Vec<u8> {
    let floats: Vec<u8> = (0..8u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    let magic = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19";
    let storages = [&8u64.to_le_bytes()[..], &floats].concat();
    let head = [pickle(&[magic]), pickle(&[b"M\xe9\x03"]), pickle(&[b"}"])].concat();
    [&head[..], value, &pickle(&[b"]X\x01\0\0\x000a"]), &storages].concat()
}

#[test]
fn what_pytorch_no_longer_writes_is_read_too() {
    // Strings of Python 2, a part of a storage, the first function of tensors, pairs in a dictionary.
    let value = |part: &[u8]| {
        pickle(&[
            b"ccollections\nOrderedDict\n]]U\x01wactorch._utils\n_rebuild_tensor\n(",
            b"(U\x07storagectorch\nFloatStorage\nU\x010U\x06cuda:0K\x08",
            part,
            b"tQK\x01K\x02\x85K\x02\x85tRaa\x85R",
        ])
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.pt");
    for (part, expected) in [(&b"U\x011K\x03K\x05\x87"[..], [4f32, 6.0]), (b"N", [1.0, 3.0])] {
        fs::write(&path, legacy(&value(part))).unwrap();
        assert_eq!(Vec::<f32>::try_from(&read(&path).unwrap()["w"]).unwrap(), expected);
    }
    for (part, words) in [
        (&b"U\x011K\x03K\x06\x87"[..], "refers to what is no storage"),
        (b"U\x011K\x06K\x02\x87", "shows what its storage hasn't"),
        (b"U\x011J\xff\xff\xff\xffK\x05\x87", "refers to what is no storage"),
    ] {
        let message = refusal(&legacy(&value(part)));
        assert!(message.contains(words), "{message}");
    }
    // A storage of 2^60 elements, and one that nobody mentions.
    let whole = legacy(&value(b"N"));
    let mut huge = whole.clone();
    let at = huge.len() - 40;
    huge[at..at + 8].copy_from_slice(&(1u64 << 60).to_le_bytes());
    assert!(
        refusal(&huge).contains("is cut short: storage \"0\" has 1152921504606846976 elements")
    );
    assert!(refusal(&legacy(&pickle(&[b"}"]))).contains("mentions no storage \"0\""));
}

#[test]
fn bombs_are_refused_at_once() {
    let started = Instant::now();
    let peak = memory();
    let pkl = |pickle: Vec<u8>| archive(&[("a/data.pkl", &pickle)], true);
    // A list of two times the list before; a tuple in a tuple; nothing but values.
    let doubled = [b"]q\0".to_vec(), b"]q\x01(h\0h\0e\x30h\x01q\0".repeat(10_000)].concat();
    let deep = [b")".to_vec(), b"\x85".repeat(100_000)].concat();
    let many = b"N".repeat(30 << 20);
    // Each module holds the one before twice: 2^60 names.
    let module = b"c__torch__\nM\n)\x81}(X\x01\0\0\0ah\0X\x01\0\0\0bh\0ubq\0".repeat(60);
    let modules = [b"c__torch__\nM\n)\x81q\0".to_vec(), module].concat();
    let endless = b"c__torch__\nM\n)\x81q\0}X\x01\0\0\0ah\0sb".to_vec();
    // A text of 2^60 bytes, a number of 2^31.
    let text = [&b"\x8d"[..], &(1u64 << 60).to_le_bytes()].concat();
    let number = b"\x8b\xff\xff\xff\x7f".to_vec();
    for (operations, words) in [
        (doubled, "no named tensors"),
        (deep, "no named tensors"),
        (many, "unpack to"),
        (modules, "too many values"),
        (endless, "modules in modules without end"),
        (text, "is cut short"),
        (number, "is cut short"),
    ] {
        let message = refusal(&pkl(pickle(&[&operations])));
        assert!(message.contains(words), "{message} ({words})");
    }
    // A list of pairs, made into a dictionary again and again.
    let pairs = [&b"("[..], &b"(K\0K\0t".repeat(5_000), b"lq\x010"].concat();
    let pairs = [pairs, b"ccollections\nOrderedDict\nh\x01\x85R0".repeat(5_000)].concat();
    let stored = archive(&[("a/data.pkl", &pickle(&[&pairs]))], false);
    assert!(refusal(&stored).contains("too many values"));
    let stored = archive(&[("a/data.pkl", &pickle(&[&b"N".repeat(1 << 20)]))], false);
    assert!(refusal(&stored).contains("too many values"));

    // 64 MiB of zeros in 64 KiB.
    let small = one_tensor(b"K\x08", b"K\0", b"K\x02\x85", b"K\x01\x85");
    let zeros = archive(&[("a/data.pkl", &small), ("a/data/0", &vec![0; 64 << 20])], true);
    assert!(zeros.len() < 100_000);
    assert!(refusal(&zeros).contains("claims to unpack to 67108864 bytes"));
    assert!(memory() < peak + (256 << 20), "{} of {peak}", memory());
    assert!(started.elapsed() < Duration::from_secs(20));
}

/// In a process of its own, whose memory no other test changes.
#[test]
fn a_file_of_empty_entries_takes_no_more_memory_than_its_size() {
    const CHILD: &str = "UTA_READ_ALONE";
    if let Some(path) = std::env::var_os(CHILD) {
        // Forgets the former peak.
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = memory();
        println!("{} grown by {}", read(Path::new(&path)).unwrap_err(), memory() - before);
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("entries.pt");
    let small = one_tensor(b"K\x08", b"K\0", b"K\x02\x85", b"K\x01\x85");
    let names: Vec<String> = (0..150_000).map(|i| format!("a/data/{i}")).collect();
    let empty = names.iter().map(|name| (name.as_str(), &b""[..]));
    let entries: Vec<(&str, &[u8])> =
        [("a/data.pkl", &small[..])].into_iter().chain(empty).collect();
    fs::write(&path, archive(&entries, false)).unwrap();
    let length = fs::metadata(&path).unwrap().len() as usize;

    let test = "torch_files::a_file_of_empty_entries_takes_no_more_memory_than_its_size";
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let out = child.args(["--exact", test, "--nocapture"]).env(CHILD, &path).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let line = text.lines().find(|line| line.contains("grown by")).expect(&text);
    let grown: usize = line.rsplit(' ').next().unwrap().parse().unwrap();
    println!("{length} bytes: {line}");
    assert!(grown < length, "{length} bytes: {line}");
    assert!(line.contains("mostly directory"), "{line}");
    // As many as a large net and its optimiser have are read.
    let held =
        archive(&[&entries[..1], &[("a/data/0", &[0; 32])], &entries[2..3000]].concat(), false);
    fs::write(&path, held).unwrap();
    assert_eq!(read(&path).unwrap()["w"].size(), [2]);
}

#[test]
fn archives_that_contradict_themselves_are_refused() {
    let small = one_tensor(b"K\x08", b"K\0", b"K\x02\x85", b"K\x01\x85");
    let two =
        archive(&[("a/data.pkl", &small), ("a/data/0", &[1; 32]), ("a/data/1", &[2; 32])], false);
    let replaced = |from: &[u8], to: &[u8]| {
        let mut bytes = two.clone();
        for at in 0..bytes.len() - from.len() {
            if &two[at..at + from.len()] == from {
                bytes[at..at + to.len()].copy_from_slice(to);
            }
        }
        bytes
    };
    let message = refusal(&replaced(b"a/data/1", b"a/data/0"));
    assert!(message.contains("two entries of one name"), "{message}");

    // The sizes in the central directory, four bytes each, of the storage: 2^31 of them.
    let sizes = [32u32.to_le_bytes(), 32u32.to_le_bytes()].concat();
    let message = refusal(&replaced(&sizes, &[0, 0, 0, 0x80, 0, 0, 0, 0x80]));
    assert!(message.contains("zip file"), "{message}");

    let header = |entries: &str| {
        [&(entries.len() as u64).to_le_bytes()[..], entries.as_bytes(), &[0; 8]].concat()
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wrong.safetensors");
    for (entries, words) in [
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
            "\"a\" occurs twice",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
            "no safetensors file",
        ),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#, "no safetensors file"),
        (
            r#"{"a":{"dtype":"U8","shape":[2305843009213693951],"data_offsets":[0,2305843009213693951]}}"#,
            "promises",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}}"#,
            "overflow",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
            "impossible shape",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[0,4611686018427387904,4611686018427387904],"data_offsets":[0,0]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
            "",
        ),
        (r#"{"a\nb":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}"#, "a\\nb is of kind C64"),
        ("[", "no safetensors file"),
    ] {
        fs::write(&path, header(entries)).unwrap();
        let message = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(message.contains(words) && !message.contains('\n'), "{message} ({words})");
    }
}

/// The most memory that this process has used, in bytes.
fn memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
    kib.unwrap_or(0) << 10
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// A part of what has this length.
    fn part(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        start..start + self.below((length - start).min(64) + 1)
    }
}

/// Damages a file: bits, bytes, numbers, cuts, and pieces of itself or of another file.
fn damage(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        let part = random.part(bytes.len());
        match random.below(8) {
            0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            2 if !bytes.is_empty() => {
                // Operations of pickle, and bytes at the edge of a range.
                const BYTES: &[u8] = b"\x00\x01\x7f\x80\xff(.01229BCGJKMNQRTUX]abcdehijlqrstu}\x81\x85\x88\x8a\x8c\x93\x94\x95";
                bytes[at] = BYTES[random.below(BYTES.len())];
            }
            3 => {
                let value = match random.below(6) {
                    0 => 0,
                    1 => u64::MAX >> random.below(64),
                    2 => 1 << random.below(64),
                    3 => bytes.len() as u64,
                    4 => (bytes.len() as u64).wrapping_neg(),
                    _ => random.next(),
                };
                let width = [1, 2, 4, 8][random.below(4)];
                for (place, byte) in value.to_le_bytes().into_iter().take(width).enumerate() {
                    if let Some(old) = bytes.get_mut(at + place) {
                        *old = byte;
                    }
                }
            }
            4 => bytes.truncate(at),
            5 => drop(bytes.drain(part)),
            6 => {
                let piece = bytes[part].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let piece = other[random.part(other.len())].to_vec();
                let end = (at + piece.len() * random.below(2)).min(bytes.len());
                bytes.splice(at..end, piece);
            }
        }
    }
}

/// Operations that are right by themselves, in any order.
fn operations(random: &mut Random) -> Vec<u8> {
    const PARTS: [&[u8]; 38] = [
        b"(",
        b")",
        b"]",
        b"}",
        b"N",
        b"\x88",
        b"K\x02",
        b"K\0",
        b"M\0\x01",
        b"J\xff\xff\xff\xff",
        b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"X\x01\0\0\x000",
        b"X\x07\0\0\0storage",
        b"X\x05\0\0\0model",
        b"a",
        b"e",
        b"s",
        b"u",
        b"t",
        b"l",
        b"d",
        b"\x85",
        b"\x86",
        b"\x87",
        b"q\0",
        b"h\0",
        b"h\x01",
        b"q\x01",
        b"\x94",
        b"0",
        b"1",
        b"2",
        b"R",
        b"b",
        b"\x81",
        b"Q",
        b"\x90",
        b"\x93",
    ];
    const NAMES: [&[u8]; 8] = [
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_tensor_v3\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch._tensor\n_rebuild_from_type_v2\n",
        b"ctorch\nFloatStorage\n",
        b"ccollections\nOrderedDict\n",
        b"c__torch__\nM\n",
        b"cargparse\nNamespace\n",
    ];
    // Something whole to build on, now and then.
    let tensor = one_tensor(b"K\x08", b"K\0", b"K\x02K\x04\x86", b"K\x04K\x01\x86");
    let mut out = b"\x80\x02".to_vec();
    for _ in 0..random.below(60) {
        match random.below(8) {
            0 => out.extend(&tensor[2..tensor.len() - 1 - random.below(6)]),
            1 | 2 => out.extend(NAMES[random.below(NAMES.len())]),
            _ => out.extend(PARTS[random.below(PARTS.len())]),
        }
    }
    out.push(b'.');
    out
}

/// Another file, in one of four ways: bytes of a whole file are damaged; of an entry of an archive that is then packed
/// anew; of a safetensors header whose length is then set right; or a pickle is made of random operations.
fn damaged(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    let other = &seeds[random.below(seeds.len())];
    match random.below(5) {
        0 => return with_storage(&operations(random)),
        1 | 2 => {
            if let Ok(mut zip) = ZipArchive::new(Cursor::new(&bytes)) {
                let mut entries = Vec::new();
                for index in 0..zip.len() {
                    let mut entry = zip.by_index(index).unwrap();
                    let (name, mut bytes) = (entry.name().unwrap().into_owned(), Vec::new());
                    entry.read_to_end(&mut bytes).unwrap();
                    if name.ends_with(".pkl") || random.below(20) == 0 {
                        damage(random, &mut bytes, other);
                    }
                    entries.push((name, bytes));
                }
                let entries: Vec<(&str, &[u8])> =
                    entries.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
                return archive(&entries, random.below(4) == 0);
            }
            if bytes.get(8) == Some(&b'{') {
                let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
                let mut header = bytes[8..8 + length].to_vec();
                damage(random, &mut header, other);
                let prefix = (header.len() as u64).to_le_bytes();
                return [&prefix[..], &header, &bytes[8 + length..]].concat();
            }
            damage(random, &mut bytes, other);
        }
        _ => damage(random, &mut bytes, other),
    }
    bytes
}

/// `UTA_FUZZ` is the number of files to try; `UTA_FUZZ_SEED` begins another sequence.
#[test]
fn damaged_files_never_make_a_reader_panic_hang_or_take_memory() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let inputs: u64 = number("UTA_FUZZ").unwrap_or(2500);
    let mut random = Random(number("UTA_FUZZ_SEED").unwrap_or(0));
    let mut paths = [files(false), files(true)].concat();
    // As often as the others together: the same seeds damage both formats.
    paths.extend(vec![golden().join("expected.safetensors"); paths.len() / 3]);
    let seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged");
    let peak = memory();
    let (mut torch, mut read_whole, mut slowest) = (0, 0, Duration::ZERO);
    for input in 0..inputs {
        let bytes = damaged(&mut random, &seeds);
        fs::write(&path, &bytes).unwrap();
        let started = Instant::now();
        let is_torch = is_torch_file(&path).unwrap();
        torch += u64::from(is_torch);
        let found = match is_torch {
            true => read(&path),
            false => Checkpoint::open(&path).map(|checkpoint| checkpoint.tensors),
        };
        match found {
            Err(e) => assert!(!e.to_string().contains('\n'), "input {input}: {e}"),
            Ok(tensors) => {
                read_whole += 1;
                // Every element can be read.
                for tensor in tensors.values() {
                    let _ = tensor.to_kind(Kind::Double).sum(Kind::Double).double_value(&[]);
                }
            }
        }
        slowest = slowest.max(started.elapsed());
    }
    let grown = memory().saturating_sub(peak);
    println!(
        "{inputs} files, {torch} of them PyTorch's; {read_whole} could be read; {grown} bytes more; \
         {slowest:?} at most"
    );
    assert!(grown < 256 << 20, "{grown}");
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
}
