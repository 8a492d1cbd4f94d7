//! CLIP's byte-pair tokeniser, with the cleaning of captions that goes before it.

use std::borrow::Cow;
use std::io::BufReader;

use flate2::bufread::GzDecoder;
use instant_clip_tokenizer::Tokenizer as BytePairs;

use crate::DataError;
use crate::repair::{fix_text, unescape};

/// CLIP's merges (see `assets/README.md`).
const MERGES: &[u8] = include_bytes!("../assets/bpe_simple_vocab_16e6.txt.gz");

/// 256 bytes, 256 bytes that end a word, and the two marks: a vocabulary without merges.
const SMALLEST: usize = 514;

/// Texts to rows of token ids.
pub struct Tokenizer {
    pairs: BytePairs,
    vocab_size: usize,
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
        Ok(Tokenizer { pairs, vocab_size, context_length })
    }

    /// `[context_length]`: SOT, the ids of `text`, EOT, zeros; a long text is cut and still ends with EOT.
    pub fn encode(&self, text: &str) -> Vec<i64> {
        let mut tokens = vec![self.pairs.start_of_text()];
        self.pairs.encode(&clean(text), &mut tokens);
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

    /// Length of a row.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

/// What open_clip does to a text before it splits it. White space and case are the byte pairs' own matter.
fn clean(text: &str) -> Cow<'_, str> {
    // Captions of the web were often escaped twice.
    match fix_text(text) {
        Cow::Borrowed(text) => twice(text),
        Cow::Owned(text) => Cow::Owned(twice(&text).into_owned()),
    }
}

fn twice(text: &str) -> Cow<'_, str> {
    match unescape(text) {
        Cow::Borrowed(text) => Cow::Borrowed(text),
        Cow::Owned(text) => Cow::Owned(unescape(&text).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Facts 6.2, from open_clip.
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

    #[test]
    fn a_long_text_is_cut_and_still_ends_and_a_small_vocabulary_marks_the_end_highest() {
        let tokenizer = Tokenizer::new(2000, 8).unwrap();
        let row = tokenizer.encode("an incomprehensibly long description of nothing in particular");
        assert_eq!((row[0], row[7]), (1998, 1999));
        assert!(row.iter().all(|&t| (0..2000).contains(&t)));
        assert!(Tokenizer::new(100, 8).is_err() && Tokenizer::new(2000, 2).is_err());
    }
}
