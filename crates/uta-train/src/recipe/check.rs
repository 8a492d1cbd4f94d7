//! Values of a recipe that can't be used, in words.

/// A recipe that can't be run: where, which key, and what is allowed.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: {message}")]
pub struct RecipeError {
    /// The file, or what was being read.
    pub origin: String,
    /// Key, value, and what is allowed.
    pub message: String,
}

/// Images in a step, at most: thirty times what the largest runs take.
pub const MAX_IMAGES: usize = 1 << 20;
/// Threads of a kind, at most.
pub const MAX_THREADS: usize = 1024;
/// Batches decoded ahead, at most.
pub(super) const MAX_PREFETCH: usize = 1024;
/// Steps, or samples, of a run, at most: their products with a batch are counted too.
pub(super) const MAX_STEPS: u64 = 1 << 40;

pub(crate) fn require(
    key: &str,
    value: impl std::fmt::Display,
    ok: bool,
    allowed: &str,
) -> Result<(), String> {
    if ok { Ok(()) } else { Err(format!("{key} = {value}: must be {allowed}")) }
}

pub(crate) fn within<T: std::fmt::Display + PartialOrd>(
    key: &str,
    value: T,
    least: T,
    most: T,
) -> Result<(), String> {
    let allowed = format!("from {least} to {most}");
    require(key, &value, (&least..=&most).contains(&&value), &allowed)
}

pub(crate) fn in_range(key: &str, value: f64, lo: f64, hi: f64) -> Result<(), String> {
    let allowed = match hi {
        f64::MAX => format!("{lo} or more"),
        _ => format!("from {lo} to {hi}"),
    };
    require(key, value, (lo..=hi).contains(&value), &allowed)
}

/// serde's names of types, and people's.
const TYPES: [(&str, &[&str]); 6] = [
    ("a whole number, 0 or more", &["u8", "u16", "u32", "u64", "usize"]),
    ("a whole number", &["i8", "i16", "i32", "i64", "isize"]),
    ("a number", &["f32", "f64"]),
    ("true or false", &["a boolean"]),
    ("a list", &["a sequence"]),
    ("two numbers, [a, b]", &["a tuple of size 2"]),
];

/// serde's words on one line, with the nearest known key where an unknown one was given.
pub(super) fn brief(error: &toml::de::Error) -> String {
    let mut message = error.message().trim().replace('\n', " ");
    if let Some((before, expected)) = message.split_once(", expected ") {
        let known = TYPES.iter().find(|(_, types)| types.contains(&expected));
        let section = expected.starts_with("struct ").then_some("a table of keys");
        if let Some(words) = known.map(|(words, _)| *words).or(section) {
            message = format!("{before}, expected {words}");
        }
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    if let (true, Some(unknown)) = (message.starts_with("unknown "), quoted.next()) {
        let nearest = quoted
            .map(|known| (strsim::jaro_winkler(unknown, known), known))
            .filter(|&(likeness, _)| likeness > 0.7)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((_, known)) = nearest {
            return format!("{message}; did you mean `{known}`?");
        }
    }
    message
}
