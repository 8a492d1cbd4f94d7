//! CLIP's byte-pair tokeniser, with the cleaning of captions that goes before it.

use std::borrow::Cow;
use std::io::{BufReader, Read};
use std::sync::LazyLock;

use flate2::bufread::GzDecoder;
use instant_clip_tokenizer::{Token, Tokenizer as BytePairs};
use regex::Regex;

use crate::DataError;
use crate::text::repair::{fix_text, unescape};

/// CLIP's merges (see `assets/README.md`).
const MERGES: &[u8] = include_bytes!("../../assets/bpe_simple_vocab_16e6.txt.gz");

/// 256 bytes, 256 bytes that end a word, and the two marks: a vocabulary without merges.
const SMALLEST: usize = 514;

/// Bytes of the longest token, eight emoji.
const LONGEST: usize = 32;

/// A contraction that Python's pattern, which folds case, takes for `'s`, and that `instant-clip-tokenizer`'s doesn't.
const LONG_S: &str = "'\u{17f}";

/// The id of an apostrophe with which a word doesn't end: bytes are numbered from `!` on. No merge begins with it and goes
/// on with a long s.
const APOSTROPHE: u16 = b'\'' as u16 - b'!' as u16;

/// Texts to rows of token ids.
pub struct Tokenizer {
    pairs: BytePairs,
    context_length: usize,
}

impl Tokenizer {
    /// CLIP's full vocabulary: 256 bytes, 256 bytes that end a word, 48,894 merges, and the two marks.
    pub const VOCAB_SIZE: usize = 49_408;

    /// A tokeniser of `vocab_size` ids (CLIP: 49,408; fewer keep the first merges) and rows of `context_length` (CLIP: 77).
    ///
    /// # Errors
    /// A vocabulary or context out of range.
    pub fn new(vocab_size: usize, context_length: usize) -> Result<Tokenizer, DataError> {
        if !(SMALLEST..=Self::VOCAB_SIZE).contains(&vocab_size) {
            return Err(DataError::Option {
                field: "vocab_size",
                value: vocab_size.to_string(),
                reason: format!("must be from {SMALLEST} to {}", Self::VOCAB_SIZE),
            });
        }
        if context_length < 3 {
            return Err(DataError::Option {
                field: "context_length",
                value: context_length.to_string(),
                reason: "must be 3 or more".into(),
            });
        }
        let merges = BufReader::new(GzDecoder::new(MERGES));
        let pairs = BytePairs::with_vocabulary(merges, vocab_size as u16)
            .expect("the embedded merges are whole");
        Ok(Tokenizer { pairs, context_length })
    }

    /// The same tokeniser as Hugging Face's `CLIPTokenizer` reads it: names of files and what is in them. It pads with the end
    /// mark where this one pads with 0, which changes no embedding.
    pub fn hugging_face(&self) -> [(&'static str, String); 4] {
        const START: &str = "<|startoftext|>";
        const END: &str = "<|endoftext|>";
        let mut merges = String::new();
        GzDecoder::new(MERGES).read_to_string(&mut merges).expect("the embedded merges are whole");
        let size = usize::from(self.pairs.end_of_text().to_u16()) + 1;
        let merges: Vec<&str> = merges.lines().skip(1).take(size - SMALLEST).collect();

        // A byte is written as itself where it prints, else as a letter from 256 on; those come last.
        let prints = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let printing = (0..=u8::MAX).filter(prints).map(char::from);
        let bytes = printing.chain((0x100..).filter_map(char::from_u32)).take(256);
        let bytes: Vec<String> = bytes.map(String::from).collect();
        let ending = bytes.iter().map(|byte| format!("{byte}</w>"));
        let merged = merges.iter().map(|pair| pair.replace(' ', ""));
        let marks = [START, END].map(String::from);
        let tokens = bytes.iter().cloned().chain(ending).chain(merged).chain(marks);
        let vocabulary: serde_json::Map<_, _> =
            tokens.enumerate().map(|(id, token)| (token, id.into())).collect();

        let marks = serde_json::json!({
            "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END,
        });
        let mut config = serde_json::json!({
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.context_length,
            "do_lower_case": true,
            "errors": "replace",
            "add_prefix_space": false,
        });
        for (key, mark) in marks.as_object().into_iter().flatten() {
            config[key] = mark.clone();
        }
        [
            ("vocab.json", serde_json::Value::from(vocabulary).to_string() + "\n"),
            (
                "merges.txt",
                merges.iter().fold("#version: 0.2\n".into(), |all, pair| all + pair + "\n"),
            ),
            ("tokenizer_config.json", format!("{config:#}\n")),
            ("special_tokens_map.json", format!("{marks:#}\n")),
        ]
    }

    /// `[context_length]`: SOT, the ids of `text`, EOT, zeros; a long text is cut and still ends with EOT (open_clip's rule).
    pub fn encode(&self, text: &str) -> Vec<i64> {
        self.row(self.tokens(text))
    }

    /// As [`encode`](Tokenizer::encode), for a text that must fit as a whole: OpenAI's rule, unless truncation is asked for.
    ///
    /// # Errors
    /// [`DataError::TooLong`] for more than `context_length - 2` ids.
    pub fn encode_whole(&self, text: &str) -> Result<Vec<i64>, DataError> {
        let tokens = self.tokens(text);
        if tokens.len() >= self.context_length {
            return Err(DataError::TooLong {
                text: text.chars().take(40).collect(),
                context_length: self.context_length,
            });
        }
        Ok(self.row(tokens))
    }

    /// SOT and the ids of `text`, of a long one enough to fill a row.
    fn tokens(&self, text: &str) -> Vec<Token> {
        let mut tokens = vec![self.pairs.start_of_text()];
        let text = clean(text);
        let text = start(&text, 2 * LONGEST * self.context_length);
        let mut from = 0;
        for (at, word) in text.match_indices(LONG_S) {
            // An apostrophe after another sign is of that sign's word.
            if text[..at].chars().next_back().is_some_and(is_sign) {
                continue;
            }
            self.pairs.encode(&text[from..at], &mut tokens);
            tokens.extend(Token::from_u16(APOSTROPHE, &self.pairs));
            self.pairs.encode(&word[1..], &mut tokens);
            from = at + word.len();
        }
        self.pairs.encode(&text[from..], &mut tokens);
        tokens
    }

    fn row(&self, mut tokens: Vec<Token>) -> Vec<i64> {
        tokens.truncate(self.context_length - 1);
        tokens.push(self.pairs.end_of_text());
        let mut row: Vec<i64> = tokens.into_iter().map(|t| i64::from(t.to_u16())).collect();
        row.resize(self.context_length, 0);
        row
    }

    /// `[B, context_length]`, row by row.
    pub fn encode_batch<S: AsRef<str>>(&self, texts: &[S]) -> Vec<i64> {
        texts.iter().flat_map(|text| self.encode(text.as_ref())).collect()
    }
}

/// A text as open_clip cleans it before it splits it. White space and case are the byte pairs' own matter.
fn clean(text: &str) -> Cow<'_, str> {
    // Captions of the web were often escaped twice.
    match fix_text(text) {
        Cow::Borrowed(text) => twice(text),
        Cow::Owned(text) => Cow::Owned(twice(&text).into_owned()),
    }
}

/// Whether a character is no letter, number or white space.
fn is_sign(c: char) -> bool {
    static OTHERS: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"[\s\p{L}\p{N}]").expect("a pattern that is tested"));
    !OTHERS.is_match(c.encode_utf8(&mut [0; 4]))
}

fn twice(text: &str) -> Cow<'_, str> {
    match unescape(text) {
        // Python's pattern folds case, and so takes this combining iota for neither a letter nor a sign.
        Cow::Borrowed(text) if text.contains('\u{345}') => Cow::Owned(text.replace('\u{345}', " ")),
        Cow::Borrowed(text) => Cow::Borrowed(text),
        Cow::Owned(text) => Cow::Owned(unescape(&text).replace('\u{345}', " ")),
    }
}

/// The start of a text with so many bytes that are no white space: merging takes the square of a word's length, and nobody
/// needs the tokens of a megabyte.
fn start(text: &str, bytes: usize) -> &str {
    if text.len() <= bytes {
        return text;
    }
    let mut black = 0;
    let end = text.char_indices().find(|(_, c)| {
        black += if c.is_whitespace() { 0 } else { c.len_utf8() };
        black > bytes
    });
    end.map_or(text, |(i, _)| &text[..i])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Computed with open_clip's tokeniser.
    #[test]
    fn tokens_are_clips() {
        let tokenizer = Tokenizer::new(Tokenizer::VOCAB_SIZE, 77).unwrap();
        for (text, ids) in [
            ("a diagram", &[49406, 320, 22697, 49407][..]),
            ("a photo of a cat", &[49406, 320, 1125, 539, 320, 2368, 49407]),
            (
                "a photo of the small tench.",
                &[49406, 320, 1125, 539, 518, 2442, 1149, 634, 269, 49407],
            ),
            (
                "itap of a great white shark.",
                &[49406, 529, 2728, 539, 320, 830, 1579, 7980, 269, 49407],
            ),
            ("2023", &[49406, 273, 271, 273, 274, 49407]),
        ] {
            let row = tokenizer.encode(text);
            assert_eq!(&row[..ids.len()], ids, "{text}");
            assert!(row[ids.len()..].iter().all(|&t| t == 0) && row.len() == 77);
        }
    }

    /// From open_clip 3.3.0.
    #[test]
    fn a_long_s_after_an_apostrophe_is_a_contraction_as_in_python() {
        let tokenizer = Tokenizer::new(Tokenizer::VOCAB_SIZE, 77).unwrap();
        for (text, ids) in [
            ("it'ſ", &[585, 6, 129, 379][..]),
            ("a 'ſb", &[320, 6, 129, 379, 321]),
            ("1'ſ", &[272, 6, 129, 379]),
            ("'s'ſ", &[568, 6, 129, 379]),
            ("a'ſ'ſ b", &[320, 6, 129, 379, 6, 129, 379, 321]),
            ("’ſ'", &[6, 129, 379, 262]),
            ("!'ſ", &[13222, 129, 379]),
            ("''ſ", &[8445, 129, 379]),
            ("\u{301}'ſ", &[136, 223, 262, 129, 379]),
        ] {
            let row = tokenizer.encode(text);
            let expected = [&[49406], ids, &[49407]].concat();
            assert_eq!(row[..expected.len()], expected, "{text}");
        }
    }

    #[test]
    fn a_long_text_is_cut_and_still_ends_and_a_small_vocabulary_marks_the_end_highest() {
        let tokenizer = Tokenizer::new(2000, 8).unwrap();
        let row = tokenizer.encode("an incomprehensibly long description of nothing in particular");
        assert_eq!((row[0], row[7]), (1998, 1999));
        assert!(row.iter().all(|&t| (0..2000).contains(&t)));
        assert!(Tokenizer::new(100, 8).is_err() && Tokenizer::new(2000, 2).is_err());
    }

    /// As in openai/clip-vit-base-patch32 on huggingface.co; transformers reads them to the same ids
    /// (`tests/golden/exports.py`).
    #[test]
    fn hugging_faces_files_hold_every_token_by_its_id() {
        for size in [Tokenizer::VOCAB_SIZE, 2000, SMALLEST] {
            let tokenizer = Tokenizer::new(size, 77).unwrap();
            let [(_, vocabulary), (_, merges), (_, config), (_, marks)] = tokenizer.hugging_face();
            let ids: std::collections::HashMap<String, usize> =
                serde_json::from_str(&vocabulary).unwrap();
            assert_eq!((ids.len(), ids.values().max()), (size, Some(&(size - 1))));
            assert_eq!((ids["!"], ids["~"], ids["\u{a1}"], ids["\u{100}"]), (0, 93, 94, 188));
            assert_eq!((ids["a</w>"], ids["<|endoftext|>"]), (320, size - 1));
            assert_eq!(merges.lines().count(), 1 + size - SMALLEST);
            if size == Tokenizer::VOCAB_SIZE {
                assert_eq!((ids["cat</w>"], ids["diagram</w>"]), (2368, 22697));
                assert!(merges.starts_with("#version: 0.2\ni n\nt h\n"));
            }
            let config: serde_json::Value = serde_json::from_str(&config).unwrap();
            assert_eq!(config["model_max_length"], 77);
            assert!(marks.contains("\"pad_token\": \"<|endoftext|>\""));
        }
    }

    #[test]
    fn a_text_that_must_fit_is_refused_when_it_does_not() {
        let tokenizer = Tokenizer::new(Tokenizer::VOCAB_SIZE, 77).unwrap();
        let fits = "word ".repeat(75);
        assert_eq!(tokenizer.encode_whole(&fits).unwrap(), tokenizer.encode(&fits));
        for long in ["word ".repeat(76), "!".repeat(100_000), " x".repeat(100_000)] {
            let e = tokenizer.encode_whole(&long).unwrap_err().to_string();
            assert!(e.contains("77") && e.len() < 200, "{e}");
        }
    }

    #[test]
    fn a_megabyte_without_a_space_takes_no_longer_than_a_page() {
        let tokenizer = Tokenizer::new(Tokenizer::VOCAB_SIZE, 77).unwrap();
        let word: String =
            (0..1 << 20).map(|i: u32| char::from(b'a' + (i.wrapping_mul(i) % 23) as u8)).collect();
        let begun = std::time::Instant::now();
        let row = tokenizer.encode(&word);
        assert!(begun.elapsed().as_secs() < 5);
        assert_eq!(row, tokenizer.encode(&word[..3000]));
    }
}
