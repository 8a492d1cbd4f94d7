//! Advice for a model that isn't there, or a file that is no checkpoint: what the file is instead, the nearest names, and where
//! a known one is published.

use std::ffi::OsStr;
use std::path::Path;

use crate::preset_names;

/// First bytes that tell what a file is, and what to do about it.
const BEGINNINGS: [(&[u8], &str); 24] = [
    (
        b"version https://git-lfs.github.com/spec",
        "is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository",
    ),
    (b"\x1f\x8b", "is packed by gzip: unpack it first"),
    (b"BZh", "is packed by bzip2: unpack it first"),
    (b"\xfd7zXZ\0", "is packed by xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is packed by zstd: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it first"),
    (b"Rar!", "is a RAR archive: unpack it first"),
    (b"\x89PNG", "is no checkpoint but a picture (PNG)"),
    (b"\xff\xd8\xff", "is no checkpoint but a picture (JPEG)"),
    (b"GIF8", "is no checkpoint but a picture (GIF)"),
    (b"BM", "is no checkpoint but a picture (BMP)"),
    (b"II*\0", "is no checkpoint but a picture (TIFF)"),
    (b"MM\0*", "is no checkpoint but a picture (TIFF)"),
    (b"RIFF", "is no checkpoint but a picture or a sound (RIFF)"),
    (b"%PDF", "is no checkpoint but a PDF"),
    (b"\x7fELF", "is no checkpoint but a program"),
    (b"PAR1", "is no checkpoint but a Parquet table"),
    (b"\x93NUMPY", "is an array of numpy; weights are read from safetensors and PyTorch files"),
    (b"GGUF", "is a GGUF file; weights are read from safetensors and PyTorch files"),
    (b"\x89HDF", "is an HDF5 file; weights are read from safetensors and PyTorch files"),
    (
        b"\x08\x07\x12\x07pytorch",
        "is an ONNX file; weights are read from safetensors and PyTorch files",
    ),
    (b"\x80\x02", "is a pickle, but none that torch.save wrote"),
    (b"\x80\x03", "is a pickle, but none that torch.save wrote"),
    (b"\x80\x04", "is a pickle, but none that torch.save wrote"),
];

/// The kind of a file that is no checkpoint, told by its first bytes ([`HEAD`](super::file::HEAD) are enough), in words that
/// follow its name; `None` when nothing tells.
pub(crate) fn what_else(head: &[u8]) -> Option<String> {
    if head.is_empty() {
        return Some("is empty".into());
    }
    if let Some((_, words)) = BEGINNINGS.iter().find(|(bytes, _)| head.starts_with(bytes)) {
        return Some((*words).into());
    }
    if head.len() >= 64 && head.iter().all(|byte| *byte == 0) {
        return Some(
            "is no checkpoint: begins with zeros, as a download that was cut short may".into(),
        );
    }
    let text = text(head)?;
    let start = text.trim_start_matches('\u{feff}').trim_start();
    let lower = start.get(..14).unwrap_or(start).to_ascii_lowercase();
    if lower.starts_with("<!doctype html") || lower.starts_with("<html") {
        let advice = "what was fetched is a page about it, or one that asks to sign in";
        return Some(format!("is no checkpoint but an HTML page: {advice}"));
    }
    if start.starts_with(['{', '[']) {
        return Some(
            "is no checkpoint but JSON; a configuration goes with --arch, or beside its weights"
                .into(),
        );
    }
    let line: String = start.lines().next().unwrap_or_default().chars().take(40).collect();
    Some(format!("is no checkpoint: begins like text ({line:?})"))
}

/// The first bytes as text, where they are some; a character may be cut at the end.
fn text(head: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&head[..e.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    let odd = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\x0c');
    (!text.trim().is_empty() && !text.chars().any(odd)).then_some(text)
}

/// Published files: how a lower-case name begins, how it ends, and where it is.
const PUBLISHED: [(&str, &str, &str); 17] = [
    ("vit-b-32.pt", "", OPENAI),
    ("vit-b-16.pt", "", OPENAI),
    ("vit-l-14.pt", "", OPENAI),
    ("vit-l-14-336px.pt", "", OPENAI),
    ("rn50", ".pt", "OpenAI publishes it, but it is a ResNet, and only ViTs are read"),
    ("rn101", ".pt", "OpenAI publishes it, but it is a ResNet, and only ViTs are read"),
    ("eva01_clip", "", "EVA-CLIP's are on huggingface.co: QuanSun/EVA-CLIP"),
    ("eva02_clip", "", "EVA-CLIP's are on huggingface.co: QuanSun/EVA-CLIP"),
    ("eva02_", "", "EVA-02's are on huggingface.co: Yuxin-CV/EVA-02"),
    ("eva_", "", "EVA's are on huggingface.co: BAAI/EVA"),
    ("uta_", ".pt", "the UTA authors' are on huggingface.co: jjjjh/UTA, folder checkpoints"),
    ("mae_", ".pth", "MAE's have their addresses in github.com/facebookresearch/mae, README.md"),
    ("mae_", ".pt", "MAE's have their addresses in github.com/facebookresearch/mae, README.md"),
    ("beitv2_", "", "BEiT v2's have their addresses in github.com/microsoft/unilm, beit2"),
    ("vit-", "", OPEN_CLIP),
    ("open_clip_", "", OPEN_CLIP),
    ("clip-vit-", "", OPEN_CLIP),
];

const OPENAI: &str =
    "OpenAI publishes it: the addresses are in github.com/openai/CLIP, clip/clip.py";
const OPEN_CLIP: &str = "open_clip's are on huggingface.co: laion, and the names that open_clip.list_pretrained() prints";

/// Names shown of what lies beside.
const SHOWN: usize = 3;

/// The least likeness, as strsim measures it, of a name that is suggested.
const ALIKE: f64 = 0.75;

/// Why there is no model at `path`, which isn't there, and what may have been meant; in words that follow it.
pub(crate) fn missing(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let said = path.to_string_lossy();
    if let Some((scheme, _)) = said.split_once(':').filter(|(scheme, rest)| {
        rest.starts_with("//") || matches!(*scheme, "hf-hub" | "local-dir" | "timm")
    }) {
        return format!("a model is a file or folder here, and no address ({scheme}:)");
    }
    let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut parts = vec!["there is no such file or folder".to_owned()];
    let lower = name.to_lowercase();
    if preset_names().contains(&lower) && path.components().count() == 1 {
        parts.push(format!(
            "{name} names a net, not its weights: give their file or folder, and --arch {name}"
        ));
        return parts.join("; ");
    }
    if !parent.is_dir() {
        // Two words with a slash between are how hubs name a repository.
        let hub = path.is_relative()
            && path.components().count() == 2
            && path.extension().is_none_or(|e| !is_weights(e));
        parts.push(if hub {
            format!(
                "if it is a repository of huggingface.co, fetch it first (`hf download {said} --local-dir DIR`) and give DIR"
            )
        } else {
            format!("nor a folder {}", parent.display())
        });
    }
    let near = nearest(parent, &lower);
    if !near.is_empty() {
        parts.push(format!("the nearest: {}", near.join(", ")));
    }
    let known =
        PUBLISHED.iter().find(|(start, end, _)| lower.starts_with(start) && lower.ends_with(end));
    if let Some((_, _, place)) = known {
        parts.push((*place).into());
    }
    parts.join("; ")
}

/// Whether a file of this ending may hold weights.
pub(crate) fn is_weights(extension: &OsStr) -> bool {
    ["safetensors", "pt", "pth", "bin", "ckpt"]
        .iter()
        .any(|known| extension.eq_ignore_ascii_case(known))
}

/// Folders and files of weights in `dir` whose names are like `name`, the nearest first.
fn nearest(dir: &Path, name: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().take(10_000);
    let mut found: Vec<(f64, String)> = entries
        .filter(|entry| {
            let path = entry.path();
            path.is_dir() || path.extension().is_some_and(is_weights)
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|other| !other.starts_with('.'))
        .map(|other| {
            (
                strsim::normalized_damerau_levenshtein(name, &other.to_lowercase())
                    .max(strsim::jaro_winkler(name, &other.to_lowercase())),
                other,
            )
        })
        .filter(|(alike, _)| *alike > ALIKE)
        .collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    found.truncate(SHOWN);
    found.into_iter().map(|(_, other)| other).collect()
}

/// Files in `dir` that may hold weights, by name.
pub(crate) fn weights_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().take(10_000);
    let mut found: Vec<String> = entries
        .filter(|entry| entry.path().is_file() && entry.path().extension().is_some_and(is_weights))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.') && name != "optimizer.safetensors")
        .collect();
    found.sort();
    found
}
