//! Text as it was meant: what ftfy 6.3.1's `fix_text` does, which open_clip runs on every caption, and HTML's escapes.
//!
//! Text whose UTF-8 was read as another encoding is found by sequences that nobody writes, encoded back, and read again;
//! quotes are made straight, ligatures and full-width forms plain; control characters go, and what is left is composed.
//! The signs, the byte patterns and the encodings are ftfy's own, in `assets/mojibake.tsv`. The crate that ports ftfy
//! (plsfix) unescapes where ftfy doesn't, differs on 30 of the tests' 729 lines, and brings a hundred crates.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

use htmlize::unescape as unescape_names;
use regex::Regex;
use regex::bytes::Regex as Bytes;
use unicode_normalization::char::decompose_compatible;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// See `assets/README.md`.
const TABLES: &str = include_str!("../../assets/mojibake.tsv");

/// Repairs settle within a few rounds; ftfy itself would go on for ever.
const MOST_ROUNDS: usize = 32;

/// ftfy's `fix_text`. Plain ASCII without escapes and control characters is borrowed at once, and other text that needs
/// nothing after one look.
pub(crate) fn fix_text(text: &str) -> Cow<'_, str> {
    if is_plain(text) {
        return Cow::Borrowed(text);
    }
    let mut fixed = String::new();
    let mut unescaping = true;
    // Lines are judged apart, and a literal `<` says that this is HTML and its escapes are meant, from there on.
    for line in text.split_inclusive('\n') {
        unescaping &= !line.contains('<');
        let line = fix_line(line, unescaping);
        if line.len() == text.len() && matches!(line, Cow::Borrowed(_)) {
            return Cow::Borrowed(text);
        }
        fixed.push_str(&line);
    }
    Cow::Owned(fixed)
}

fn is_plain(text: &str) -> bool {
    text.bytes().all(|c| matches!(c, b'\t' | b'\n' | b' '..=b'~') && c != b'&')
}

fn fix_line(line: &str, unescaping: bool) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(line);
    for _ in 0..MOST_ROUNDS {
        let Some(fixed) = fix_once(&text, unescaping) else { break };
        text = Cow::Owned(fixed);
    }
    text
}

/// One round; none when it changes nothing.
fn fix_once(line: &str, unescaping: bool) -> Option<String> {
    let mut text = Cow::Borrowed(line);
    if unescaping && text.contains('&') {
        replace(&mut text, unescape_whole);
    }
    if !text.is_ascii() {
        replace(&mut text, fix_encoding);
    }
    if text.chars().any(is_odd) {
        replace(&mut text, plain_characters);
    }
    if is_nfc_quick(text.chars()) != IsNormalized::Yes {
        replace(&mut text, |text| text.nfc().collect());
    }
    (text != line).then(|| text.into_owned())
}

fn replace(text: &mut Cow<'_, str>, by: impl FnOnce(&str) -> String) {
    *text = Cow::Owned(by(text));
}

/// Whether [`plain_characters`] has something to do with it.
fn is_odd(c: char) -> bool {
    match c {
        '\t' | '\n' | '\u{c}' | ' '..='~' => false,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' => true,
        'Ĳ' | 'ĳ' | 'ŉ' | 'Ǆ'..='ǌ' | 'Ǳ'..='ǳ' | '\u{2bc}' => true,
        '\u{2018}'..='\u{201f}' | '\u{2028}' | '\u{2029}' | '\u{206a}'..='\u{206f}' => true,
        '\u{3000}' | 'ﬀ'..='ﬆ' | '\u{feff}' | '\u{ff01}'..='\u{fffc}' => true,
        _ => false,
    }
}

/// C1 controls as Windows meant them, ligatures and widths, quotes, line breaks, terminal escapes, controls.
fn plain_characters(text: &str) -> String {
    static TERMINAL: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\x1b\[[\d;]*[a-zA-Z]").expect("a pattern"));
    let text = text.replace("\r\n", "\n");
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{80}'..='\u{9f}' => match tables().windows_1252().decode(c as u8) {
                // What the later steps make of the quotes among them.
                '\u{2018}' | '\u{2019}' => plain.push('\''),
                '\u{201c}' | '\u{201d}' => plain.push('"'),
                c => plain.push(c),
            },
            '\r' | '\u{2028}' | '\u{2029}' => plain.push('\n'),
            '\u{2bc}' | '\u{2018}'..='\u{201b}' => plain.push('\''),
            '\u{201c}'..='\u{201f}' => plain.push('"'),
            // Its compatible form would lose the long s.
            'ﬅ' => plain.push_str("ſt"),
            'ŉ' => plain.push_str("'n"),
            'Ĳ' | 'ĳ' | 'Ǆ'..='ǌ' | 'Ǳ'..='ǳ' | 'ﬀ'..='ﬆ' | '\u{3000}' | '！'..='￮' => {
                decompose_compatible(c, |d| plain.push(d));
            }
            c => plain.push(c),
        }
    }
    if plain.contains('\u{1b}') {
        plain = TERMINAL.replace_all(&plain, "").into_owned();
    }
    plain.retain(|c| !is_control(c));
    plain
}

/// Whether ftfy takes a control out; the others are white space, signs of wrong decoding, or shape their neighbours.
fn is_control(c: char) -> bool {
    matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}')
        || matches!(c, '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}')
}

/// Encodes and reads again until nothing looks wrong, or nothing helps.
fn fix_encoding(text: &str) -> String {
    let mut text = text.to_owned();
    for _ in 0..MOST_ROUNDS {
        match fix_encoding_once(&text) {
            Some(fixed) if fixed != text => text = fixed,
            _ => break,
        }
    }
    text
}

fn fix_encoding_once(text: &str) -> Option<String> {
    let tables = tables();
    if text.is_ascii() || !tables.bad.is_match(text) {
        return None;
    }
    let mut latin_1 = None;
    for encoding in &tables.encodings {
        let Some(mut bytes) = encoding.encode(text) else { continue };
        if encoding.name == "latin-1" {
            latin_1 = Some(bytes.clone());
        }
        // In MacRoman these would be an en dash before a space.
        if encoding.name != "macroman" && tables.altered.is_match(&bytes) {
            bytes = restore_a0(&bytes);
        }
        if encoding.is_sloppy() {
            let lost = tables.lossy.replace_all(&bytes, "\u{fffd}".as_bytes());
            bytes = lost.into_owned();
        }
        let read = if bytes.iter().any(|b| matches!(b, 0xed | 0xc0)) {
            utf8_variant(&bytes)
        } else {
            String::from_utf8(bytes).ok()
        };
        if read.is_some() {
            return read;
        }
    }
    if let Some(fixed) = fix_embedded(text)
        && fixed != text
    {
        return Some(fixed);
    }
    // Latin-1 that was meant as Windows-1252, when that has a character for every byte.
    if let Some(bytes) = latin_1 {
        let windows = tables.windows_1252();
        let defined = |b: &u8| !matches!(b, 0x81 | 0x8d | 0x8f | 0x90 | 0x9d);
        if bytes.iter().all(defined) {
            // Here the real one, where byte 1A is itself.
            let meant = |&b: &u8| if b < 0x80 { char::from(b) } else { windows.decode(b) };
            let fixed: String = bytes.iter().map(meant).collect();
            if fixed != text {
                return Some(fixed);
            }
        }
    }
    let is_c1 = |c: char| matches!(c, '\u{80}'..='\u{9f}');
    text.contains(is_c1).then(|| {
        let windows = tables.windows_1252();
        text.chars().map(|c| if is_c1(c) { windows.decode(c as u8) } else { c }).collect()
    })
}

/// Repairs the parts that look like UTF-8 read wrongly, where the text as a whole is no encoding's.
fn fix_embedded(text: &str) -> Option<String> {
    let tables = tables();
    let (mut fixed, mut copied, mut from) = (String::new(), 0, 0);
    while let Some(found) = tables.looks_utf8.find_at(text, from) {
        // A lead after a continuation is more likely to be one of those.
        let before = text[..found.start()].chars().next_back();
        if before.is_some_and(|c| tables.continuation.is_match(c.encode_utf8(&mut [0; 4]))) {
            from = found.start() + found.as_str().chars().next().map_or(1, char::len_utf8);
            continue;
        }
        let part = found.as_str();
        if part.len() < text.len() && tables.bad.is_match(part) {
            fixed.push_str(&text[copied..found.start()]);
            fixed.push_str(&fix_encoding(part));
            copied = found.end();
        }
        from = found.end();
    }
    (copied > 0).then(|| fixed + &text[copied..])
}

/// Puts back the byte A0 that something took for a space. A whole word `à` keeps a space besides, unless it is one of the
/// Portuguese words that begin so.
fn restore_a0(bytes: &[u8]) -> Vec<u8> {
    let mut words = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, after)) = rest.split_first() {
        words.push(first);
        rest = after;
        if let (0xc3, Some(tail)) = (first, after.strip_prefix(b" ")) {
            let joined: [&[u8]; 5] = [b" ", b"quele", b"quela", b"quilo", b"s "];
            if !joined.iter().any(|start| tail.starts_with(start)) {
                words.extend([0xa0, b' ']);
                rest = tail;
            }
        }
    }
    let restored = tables().altered.replace_all(&words, |found: &regex::bytes::Captures<'_>| {
        found[0].iter().map(|&b| if b == b' ' { 0xa0 } else { b }).collect::<Vec<u8>>()
    });
    restored.into_owned()
}

/// UTF-8, or Java's: a zero in two bytes, and surrogate halves in three bytes each.
fn utf8_variant(bytes: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(bytes.len());
    let (mut rest, mut plain) = (bytes, 0);
    while plain < rest.len() {
        let special = match rest[plain..] {
            [0xc0, 0x80, ..] => Some(('\0', 2)),
            [
                0xed,
                b @ 0xa0..=0xaf,
                c @ 0x80..=0xbf,
                0xed,
                e @ 0xb0..=0xbf,
                f @ 0x80..=0xbf,
                ..,
            ] => {
                let [b, c, e, f] = [b, c, e, f].map(u32::from);
                let pair = (b & 15) << 16 | (c & 63) << 10 | (e & 15) << 6 | (f & 63);
                char::from_u32(pair + 0x10000).map(|c| (c, 6))
            }
            _ => None,
        };
        match special {
            Some((c, length)) => {
                text.push_str(str::from_utf8(&rest[..plain]).ok()?);
                text.push(c);
                rest = &rest[plain + length..];
                plain = 0;
            }
            None => plain += 1,
        }
    }
    text.push_str(str::from_utf8(rest).ok()?);
    Some(text)
}

/// ftfy's patterns, ready for use.
struct Tables {
    /// Sequences that show wrongly read text.
    bad: Regex,
    /// Runs of characters that stand for the bytes of UTF-8.
    looks_utf8: Regex,
    /// A character that stands for a byte within UTF-8, and for hardly anything else.
    continuation: Regex,
    altered: Bytes,
    lossy: Bytes,
    /// In the order in which they are tried.
    encodings: Vec<Encoding>,
}

impl Tables {
    fn windows_1252(&self) -> &Encoding {
        &self.encodings[1]
    }
}

struct Encoding {
    name: &'static str,
    /// Characters of the bytes 80 to FF.
    upper: Vec<char>,
    bytes: HashMap<char, u8>,
}

impl Encoding {
    /// Bytes without a meaning stand for themselves, and byte 1A for the replacement character.
    fn is_sloppy(&self) -> bool {
        self.name.starts_with("sloppy")
    }

    fn decode(&self, byte: u8) -> char {
        match byte {
            0x1a if self.is_sloppy() => '\u{fffd}',
            0..0x80 => char::from(byte),
            _ => self.upper[usize::from(byte - 0x80)],
        }
    }

    fn encode(&self, text: &str) -> Option<Vec<u8>> {
        let byte = |c: char| match c {
            '\u{1a}' if self.is_sloppy() => None,
            '\u{fffd}' if self.is_sloppy() => Some(0x1a),
            '\0'..='\x7f' => Some(c as u8),
            c => self.bytes.get(&c).copied(),
        };
        text.chars().map(byte).collect()
    }
}

fn tables() -> &'static Tables {
    static TABLES_READ: LazyLock<Tables> = LazyLock::new(|| {
        let mut patterns = HashMap::<&str, Vec<&str>>::new();
        let mut encodings = vec![];
        for line in TABLES.lines() {
            let (name, value) = line.split_once('\t').expect("a name and a value");
            match name {
                "bad" | "altered" | "lossy" => patterns.entry(name).or_default().push(value),
                _ if name.starts_with("utf8") => patterns.entry(name).or_default().push(value),
                _ => {
                    let upper: Vec<char> = value
                        .split(' ')
                        .filter_map(|code| char::from_u32(u32::from_str_radix(code, 16).ok()?))
                        .collect();
                    let bytes = upper.iter().copied().zip(0x80..=0xff).collect();
                    encodings.push(Encoding { name, upper, bytes });
                }
            }
        }
        let regex = |pattern: &str| Regex::new(pattern).expect("a pattern of ftfy's");
        let bytes = |name| Bytes::new(&format!("(?s-u){}", patterns[name][0])).expect("bytes");
        let class = |name| patterns[name][0];
        let [two, three, four, next] =
            ["utf8_first_of_2", "utf8_first_of_3", "utf8_first_of_4", "utf8_continuation"]
                .map(class);
        Tables {
            bad: regex(&patterns["bad"].join("|")),
            looks_utf8: regex(&format!("(?:{two}{next}|{three}{next}{{2}}|{four}{next}{{3}})+")),
            continuation: regex(class("utf8_continuation_strict")),
            altered: bytes("altered"),
            lossy: bytes("lossy"),
            encodings,
        }
    });
    &TABLES_READ
}

/// Python's `html.unescape`: every escape that HTML 5 knows, with or without its semicolon.
pub(crate) fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = match number(rest) {
            Some((value, length)) => {
                out.extend(value);
                length
            }
            None => {
                let length = name_length(rest);
                out.push_str(&unescape_names(&rest[..length]));
                length
            }
        };
        rest = &rest[taken..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The length of `&name;` at the start: what may belong to a name, at most 32 characters, and the semicolon.
fn name_length(text: &str) -> usize {
    let within = |&(i, c): &(usize, char)| {
        i == 0 || !matches!(c, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#' | ';')
    };
    let name = text.char_indices().take(33).take_while(within).last();
    let end = name.map_or(0, |(i, c)| i + c.len_utf8());
    end + usize::from(text[end..].starts_with(';'))
}

/// The character of `&#123;` or `&#x1f;` at the start, none where HTML forbids it, and the escape's length.
fn number(text: &str) -> Option<(Option<char>, usize)> {
    let digits = text.strip_prefix("&#")?;
    let (radix, digits) = match digits.strip_prefix(['x', 'X']) {
        Some(digits) => (16, digits),
        None => (10, digits),
    };
    let length = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    let after = &digits[length..];
    let fold = |n: u32, c: char| {
        n.saturating_mul(radix).saturating_add(c.to_digit(radix).unwrap_or_default())
    };
    let code = digits[..length].chars().fold(0, fold);
    let taken = text.len() - after.len() + usize::from(after.starts_with(';'));
    let value = match code {
        0 => Some('\u{fffd}'),
        0x80..=0x9f => Some(tables().windows_1252().decode(code as u8)),
        0x1..=0x8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef => None,
        _ if code & 0xfffe == 0xfffe && code <= 0x10_ffff => None,
        _ => Some(char::from_u32(code).unwrap_or('\u{fffd}')),
    };
    (length > 0).then_some((value, taken))
}

/// ftfy's `unescape_html`: only whole escapes with their semicolon, and names of lower case in capitals too.
fn unescape_whole(text: &str) -> String {
    static ESCAPE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new("&#?[0-9A-Za-z]{1,24};").expect("a pattern"));
    let whole = |escape: &str| {
        let value = unescape(escape).into_owned();
        // A rest of the name, or all of it, would still have the semicolon.
        (!value.contains(';') || escape == "&semi;").then_some(value)
    };
    let value = |found: &regex::Captures<'_>| {
        let escape = &found[0];
        whole(escape).or_else(|| {
            let capitals = escape != escape.to_ascii_lowercase()
                && escape == escape.to_ascii_uppercase()
                && unescape(escape) == escape;
            whole(&escape.to_ascii_lowercase()).filter(|_| capitals).map(|c| c.to_uppercase())
        })
    };
    ESCAPE
        .replace_all(text, |found: &regex::Captures<'_>| {
            value(found).unwrap_or_else(|| found[0].to_owned())
        })
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_read_in_a_wrong_encoding_is_repaired_and_other_text_is_left_alone() {
        for (broken, meant) in [
            ("âœ” No problems", "✔ No problems"),
            ("schÃƒÂ¶n", "schön"),
            ("voilÃ  le travail, Ã la carte", "voilà le travail, à la carte"),
            ("РїСЂРёРІРµС‚", "привет"),
            ("â€œ like this â€\u{fffd}", "\" like this \u{fffd}"),
            ("naïve, and naÃ¯ve", "naïve, and naïve"),
            ("\u{ed}\u{a0}\u{bd}\u{ed}\u{b8}\u{80}", "😀"),
            ("10 °C, 5 £, ÅÄÖ, Ângela", "10 °C, 5 £, ÅÄÖ, Ângela"),
            ("\u{1b}[36mblue\u{1b}[0m\r\nﬅop ﬁsh ｗｉｄｅ", "blue\nſtop fish wide"),
            ("q\u{92}t\u{1a};", "q't;"),
        ] {
            assert_eq!(fix_text(broken), meant, "{broken:?}");
            assert_eq!(fix_text(meant), meant);
        }
        assert!(matches!(fix_text("Ångström 猫"), Cow::Borrowed(_)));
    }

    #[test]
    fn escapes_are_undone_as_python_does_and_not_within_html() {
        for (escaped, meant) in [
            ("&eacute;&amp;&copy2023 &notit;", "é&©2023 ¬it;"),
            (
                "&#39;&#x27; &#128; &#0; &#1;x &#xD800;&#9999999999;",
                "'' € \u{fffd} x \u{fffd}\u{fffd}",
            ),
            ("&; & &&#; &#x; &unknown;", "&; & &&#; &#x; &unknown;"),
            ("&amp;amp;", "&amp;"),
        ] {
            assert_eq!(unescape(escaped), meant);
        }
        assert_eq!(fix_text("P&EACUTE;REZ &amp x &ampx;"), "PÉREZ &amp x &ampx;");
        assert_eq!(fix_text("&amp;\n<b>&amp;\n&amp;"), "&\n<b>&amp;\n&amp;");
    }

    /// The table holds what the code expects.
    #[test]
    fn the_tables_are_whole() {
        let tables = tables();
        let names: Vec<&str> = tables.encodings.iter().map(|encoding| encoding.name).collect();
        assert_eq!((names.len(), names[0], names[1]), (10, "latin-1", "sloppy-windows-1252"));
        assert!(tables.encodings.iter().all(|encoding| encoding.upper.len() == 128));
    }
}
