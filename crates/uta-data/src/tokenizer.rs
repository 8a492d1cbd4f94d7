//! CLIP's byte-pair tokeniser.

use crate::DataError;

/// Texts to rows of token ids.
pub struct Tokenizer {}

impl Tokenizer {
    /// CLIP's full vocabulary: 256 bytes, 256 bytes that end a word, 48,894 merges, and the two marks.
    pub const VOCAB_SIZE: usize = 49_408;

    /// A tokeniser of `vocab_size` ids (CLIP: 49,408; fewer keep the first merges) and rows of `context_length` (CLIP: 77).
    ///
    /// # Errors
    /// A vocabulary or context out of range.
    pub fn new(vocab_size: usize, context_length: usize) -> Result<Tokenizer, DataError> {
        let _ = (vocab_size, context_length);
        todo!()
    }

    /// `[context_length]`: SOT, the ids of `text`, EOT, zeros; a long text is cut and still ends with EOT.
    pub fn encode(&self, text: &str) -> Vec<i64> {
        let _ = text;
        todo!()
    }

    /// `[B, context_length]`, row by row.
    pub fn encode_batch<S: AsRef<str>>(&self, texts: &[S]) -> Vec<i64> {
        texts.iter().flat_map(|text| self.encode(text.as_ref())).collect()
    }

    /// Length of a row.
    pub fn context_length(&self) -> usize {
        todo!()
    }

    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        todo!()
    }
}
