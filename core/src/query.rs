//! Query vectors: the distinct tokens of a text, each with its idf. Trainer, offline index and client use
//! this code; a test holds the cluster to it.

use crate::idf::SILENT;
use crate::vector::{MAX_QUERY_TOKENS, SparseVector};
use crate::{Error, IdfTable, Result, TextTokenizer, TokenId};

/// Most word pieces of a query that are read: ML Commons cuts at 512 tokens, `[CLS]` and `[SEP]` included.
pub const MAX_QUERY_PIECES: usize = 510;

/// Tokenizer and idf table: the whole query side of a doc-only model.
#[derive(Debug, Clone)]
pub struct QueryEncoder {
    tokenizer: TextTokenizer,
    idf: IdfTable,
    weightless: Vec<bool>,
}

impl QueryEncoder {
    /// Puts the two together.
    ///
    /// # Errors
    /// If the table has another size than the vocabulary.
    pub fn new(tokenizer: TextTokenizer, idf: IdfTable) -> Result<Self> {
        let size = tokenizer.vocabulary().len();
        if idf.weights().len() != size {
            return Err(Error::invalid_with_hint(
                format!("The idf table has {} entries, the tokenizer's vocabulary {size}", idf.weights().len()),
                "idf.json and tokenizer.json must come from the same vocabulary",
            ));
        }
        let mut weightless = vec![false; size];
        for id in tokenizer.weightless() {
            weightless[id as usize] = true;
        }
        Ok(Self { tokenizer, idf, weightless })
    }

    /// Distinct tokens with their idf: no special tokens, no `[unusedN]`, no token with a dot, how often a
    /// token stands in the text does not matter; tokens with [`SILENT`] are left out. At most [`MAX_QUERY_PIECES`]
    /// pieces are read.
    ///
    /// # Errors
    /// If the tokenizer refuses the text, or there are more than [`MAX_QUERY_TOKENS`] distinct tokens.
    pub fn encode(&self, text: &str) -> Result<SparseVector> {
        let mut ids = self.tokenizer.pieces(text)?;
        ids.truncate(MAX_QUERY_PIECES);
        self.encode_ids(&ids)
    }

    /// As [`QueryEncoder::encode`], from word pieces.
    ///
    /// # Errors
    /// If there are more than [`MAX_QUERY_TOKENS`] distinct tokens.
    pub fn encode_ids(&self, ids: &[TokenId]) -> Result<SparseVector> {
        let pairs = ids
            .iter()
            .filter(|&&id| !self.weightless[id as usize] && self.idf.weight(id) > SILENT)
            .map(|&id| (id, self.idf.weight(id)))
            .collect();
        let vector = SparseVector::from_pairs(pairs);
        if vector.len() > MAX_QUERY_TOKENS {
            return Err(Error::invalid(format!(
                "A query has {} distinct tokens; the engine takes at most {MAX_QUERY_TOKENS}",
                vector.len()
            )));
        }
        Ok(vector)
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// The idf table.
    pub fn idf(&self) -> &IdfTable {
        &self.idf
    }
}
