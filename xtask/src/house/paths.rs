//! The paths that a Rust file mentions: those of `use`, and those that begin with `crate`, `super` or `self`.
//!
//! Enough of the language to tell code from comments, strings and tests; a parser crate would more than double what `cargo
//! xtask` compiles before it can fetch libtorch.

/// A path in a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Import {
    /// Counted from 1.
    pub line: usize,
    /// As it is written, less braces: `["super", "chart", "Chart"]`.
    pub path: Vec<String>,
    /// The name that a `use` gives it in this file; none for a path within code, and for `*` and `_`.
    pub name: Option<String>,
}

/// A word, `::`, or one other character, and its line.
type Token<'a> = (usize, &'a str);

/// The paths of a file, but for those in tests.
pub fn imports(text: &str) -> Vec<Import> {
    let tokens = without_tests(tokens(text));
    let mut found = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        let (line, token) = tokens[i];
        match token {
            "use" => {
                i += 1;
                tree(&tokens, &mut i, &[], &mut found);
            }
            "crate" | "super" | "self" if tokens.get(i + 1).is_some_and(|next| next.1 == "::") => {
                let mut path = vec![token.to_owned()];
                i += 1;
                while let Some([(_, "::"), (_, word)]) = tokens.get(i..i + 2)
                    && is_word(word)
                {
                    path.push((*word).to_owned());
                    i += 2;
                }
                found.push(Import { line, path, name: None });
            }
            _ => i += 1,
        }
    }
    found
}

/// Reads a tree of `use` from token `i` on, which then stands behind it.
fn tree(tokens: &[Token<'_>], i: &mut usize, before: &[String], found: &mut Vec<Import>) {
    let mut path = before.to_vec();
    while let Some(&(line, token)) = tokens.get(*i) {
        *i += 1;
        match token {
            "::" => {}
            "{" => {
                while tokens.get(*i).is_some_and(|token| token.1 != "}") {
                    tree(tokens, i, &path, found);
                    if tokens.get(*i).is_some_and(|token| token.1 == ",") {
                        *i += 1;
                    }
                }
                *i += 1;
                return;
            }
            "*" => {
                found.push(Import { line, path, name: None });
                return;
            }
            word if is_word(word) => {
                // `{self}` stands for the path before the braces.
                if word != "self" || before.is_empty() {
                    path.push(word.to_owned());
                }
                let next = tokens.get(*i).map(|token| token.1);
                if next == Some("::") {
                    continue;
                }
                let mut name = path.last().cloned();
                if next == Some("as") {
                    name = tokens.get(*i + 1).map(|token| token.1.to_owned());
                    *i += 2;
                }
                found.push(Import { line, path, name: name.filter(|name| name != "_") });
                return;
            }
            // `use<'a>` in a type, or what is no Rust.
            _ => return,
        }
    }
}

/// Drops what stands behind `#[cfg(test)]`: an item, up to its semicolon or closing brace.
fn without_tests(tokens: Vec<Token<'_>>) -> Vec<Token<'_>> {
    const TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::with_capacity(tokens.len());
    let mut i = 0;
    while i < tokens.len() {
        let here = tokens[i..].iter().map(|token| token.1);
        if !here.take(TEST.len()).eq(TEST) {
            kept.push(tokens[i]);
            i += 1;
            continue;
        }
        let mut depth = 0;
        while let Some(&(_, token)) = tokens.get(i) {
            i += 1;
            match token {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                _ => {}
            }
            if depth == 0 && matches!(token, ";" | "}") {
                break;
            }
        }
    }
    kept
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The words and signs of the code, without comments and strings.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let (mut i, mut line) = (0, 1);
    while i < bytes.len() {
        let rest = &text[i..];
        let first = rest.chars().next().unwrap_or_default();
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = string(rest) {
            length
        } else if first == '\'' {
            character(rest)
        } else if first.is_alphanumeric() || first == '_' {
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            found.push((line, &rest[..word]));
            word
        } else if first.is_whitespace() {
            first.len_utf8()
        } else {
            let length = if rest.starts_with("::") { 2 } else { first.len_utf8() };
            found.push((line, &rest[..length]));
            length
        };
        line += rest[..length].matches('\n').count();
        i += length;
    }
    found
}

/// Length of the comment at the start, others inside of it included.
fn block_comment(rest: &str) -> usize {
    let (mut i, mut depth) = (2, 1);
    while depth > 0 && i < rest.len() {
        match &rest.as_bytes()[i..] {
            [b'/', b'*', ..] => (i, depth) = (i + 2, depth + 1),
            [b'*', b'/', ..] => (i, depth) = (i + 2, depth - 1),
            _ => i += 1,
        }
    }
    i.min(rest.len())
}

/// Length of the string at the start, plain or raw, with its prefix; `None` where there is none.
fn string(rest: &str) -> Option<usize> {
    let quoted = rest.trim_start_matches(['b', 'c']);
    let raw = quoted.strip_prefix('r').map(|raw| (raw, raw.trim_start_matches('#')));
    if let Some((raw, body)) = raw.filter(|(_, body)| body.starts_with('"')) {
        let end = format!("\"{}", "#".repeat(raw.len() - body.len()));
        let length = body[1..].find(&end).map_or(body.len(), |at| 1 + at + end.len());
        return Some(rest.len() - body.len() + length);
    }
    if rest.len() - quoted.len() > 1 || !quoted.starts_with('"') {
        return None;
    }
    let mut escaped = false;
    for (at, c) in quoted.char_indices().skip(1) {
        match c {
            '"' if !escaped => return Some(rest.len() - quoted.len() + at + 1),
            _ => escaped = c == '\\' && !escaped,
        }
    }
    Some(rest.len())
}

/// Length of the character at the start, or 1 for the mark of a lifetime.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((after, _))) => {
            let end = rest.get(after + 1..).and_then(|rest| rest.find('\''));
            end.map_or(rest.len(), |end| after + 1 + end + 1)
        }
        (_, Some((at, '\''))) => at + 1,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        imports(text).into_iter().map(|import| import.path.join("::")).collect()
    }

    #[test]
    fn trees_of_use_become_paths() {
        let text = "pub(crate) use crate::{a::{self, B as C}, d::*};\nuse e::f;";
        assert_eq!(paths(text), ["crate::a", "crate::a::B", "crate::d", "e::f"]);
        let names: Vec<_> = imports(text).into_iter().map(|import| import.name).collect();
        assert_eq!(names, [Some("a".into()), Some("C".into()), None, Some("f".into())]);
    }

    #[test]
    fn paths_in_code_are_found_with_their_lines() {
        let text = "fn f<'a>(c: char) -> &'a str {\n    if c == '\\'' || c == '\"' { crate::a::b() }\n    \"\\\" crate::x\"\n}\n\
                    impl super::Trait for X {}";
        let found: Vec<_> =
            imports(text).into_iter().map(|i| (i.line, i.path.join("::"))).collect();
        assert_eq!(found, [(2, "crate::a::b".into()), (5, "super::Trait".into())]);
    }

    #[test]
    fn text_that_is_no_code_and_tests_hold_no_paths() {
        assert_eq!(
            paths("// crate::a\n/* crate::b /* */ crate::c */ r##\"crate::d\"# \"## b\"crate::e\""),
            [""; 0]
        );
        assert_eq!(
            paths("#[cfg(test)]\nmod tests {\n  use crate::a;\n  fn f() {}\n}\nuse crate::b;"),
            ["crate::b"]
        );
        assert_eq!(paths("#[cfg(test)]\nuse crate::a;\nuse crate::b;"), ["crate::b"]);
        // Broken off, as an editor may leave it.
        for text in [
            "use crate::{a",
            "use crate::",
            "\"open",
            "/* open",
            "'",
            "r#\"open",
            "#[cfg(test)] mod x {",
        ] {
            let _ = imports(text);
        }
    }
}
