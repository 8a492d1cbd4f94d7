//! Texts: CLIP's tokens, and the repair of garbled characters before them.

pub(crate) mod repair;
pub(crate) mod tokenizer;

/// A text without the mark of byte order that editors on Windows begin it with.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}
