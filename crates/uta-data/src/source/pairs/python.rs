//! JSON as Python's `json` writes it: with `NaN`, `Infinity` and `-Infinity`, and with halves of surrogate pairs in texts.

use std::borrow::Cow;

/// `text` with `null` for numbers that JSON lacks, and the replacement character for halves of surrogate pairs. What is in
/// texts otherwise, and all that is JSON, stays as it is.
pub(super) fn to_json(text: &[u8]) -> Cow<'_, [u8]> {
    let mut changed: Vec<u8> = vec![];
    // Of `text`, what `changed` holds.
    let (mut taken, mut at, mut in_text) = (0, 0, false);
    while at < text.len() {
        let rest = &text[at..];
        let (length, instead): (usize, &[u8]) = if in_text {
            let Some(next) = memchr::memchr2(b'"', b'\\', rest) else { break };
            at += next;
            let rest = &text[at..];
            in_text = rest[0] != b'"';
            match (in_text, surrogate(rest)) {
                (true, Some(Surrogate::Pair)) => (12, &rest[..12]),
                (true, Some(Surrogate::Half)) => (6, br"\ufffd"),
                (true, None) => (2, &rest[..rest.len().min(2)]),
                (false, _) => (1, b"\""),
            }
        } else {
            let Some(next) = memchr::memchr3(b'"', b'N', b'I', rest) else { break };
            at += next;
            let rest = &text[at..];
            in_text = rest[0] == b'"';
            let name: &[u8] = if rest[0] == b'N' { b"NaN" } else { b"Infinity" };
            if in_text || !rest.starts_with(name) {
                (1, &rest[..1])
            } else if rest[0] == b'I' && at > taken && text[at - 1] == b'-' {
                at -= 1;
                (1 + name.len(), b"null")
            } else {
                (name.len(), b"null")
            }
        };
        let end = (at + length).min(text.len());
        if &text[at..end] != instead {
            changed.extend_from_slice(&text[taken..at]);
            changed.extend_from_slice(instead);
            taken = end;
        }
        at = end;
    }
    if taken == 0 {
        return Cow::Borrowed(text);
    }
    changed.extend_from_slice(&text[taken..]);
    Cow::Owned(changed)
}

/// A UTF-16 surrogate, as an escape writes it.
enum Surrogate {
    /// With the other half behind it.
    Pair,
    Half,
}

/// The surrogate's escape that `text` begins with, if any.
fn surrogate(text: &[u8]) -> Option<Surrogate> {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix(br"\u")?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    match unit(0)? {
        0xd800..0xdc00 if unit(6).is_some_and(|unit| (0xdc00..0xe000).contains(&unit)) => {
            Some(Surrogate::Pair)
        }
        0xd800..0xe000 => Some(Surrogate::Half),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_lacks_become_null_and_texts_stay() {
        for (python, json) in [
            ("[NaN]", "[null]"),
            (
                r#"{"a":NaN,"b": -Infinity , "c":[Infinity,1]}"#,
                r#"{"a":null,"b": null , "c":[null,1]}"#,
            ),
            (r#"{"NaN":"a NaN, \"Infinity\" -Infinity\\"}"#, ""),
            (r#"["\\",NaN,"\\\"",NaN]"#, r#"["\\",null,"\\\"",null]"#),
            (
                r#"["\ud83d\ude00 half \ud83d, \ude00 \u00e9"]"#,
                r#"["\ud83d\ude00 half \ufffd, \ufffd \u00e9"]"#,
            ),
            (r#"["\ud83d\ud83d\ude00"]"#, r#"["\ufffd\ud83d\ude00"]"#),
            (r#"["\\ud83d"]"#, ""),
            (r#"["cut \ud8"#, ""),
            (r#"["cut \"#, ""),
            ("[Nan, N, I, Infinit", ""),
            (r#"{"a":1,"b":[true,null,"x"]}"#, ""),
        ] {
            let json = if json.is_empty() { python } else { json };
            let made = to_json(python.as_bytes());
            assert_eq!(String::from_utf8_lossy(&made), json, "{python}");
        }
    }
}
