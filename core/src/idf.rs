//! The idf table: how much a query token weighs.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::vector::MAX_WEIGHT;
use crate::{Cancel, Error, Progress, Result, TextTokenizer, TokenId, Weight, files};

/// The weight in `idf.json` of a token that is left out of queries. It cannot be missing there, because ML Commons
/// gives a missing token the weight 1, and it cannot be 0, because the engine takes weights above 0 only.
pub const SILENT: Weight = Weight::MIN_POSITIVE;

/// How document frequencies become weights. N: documents, df: documents that contain the token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IdfFormula {
    /// `ln(1 + (N − df + 0.5) / (df + 0.5))`: BM25's, as Lucene computes it.
    #[default]
    Bm25,
    /// `ln((N + 1) / (df + 1)) + 1`: never below 1 for a token in every document.
    Smooth,
}

impl IdfFormula {
    /// The weight of a token; positive for every `df <= n`.
    pub fn weight(self, n: u64, df: u64) -> f64 {
        let (n, df) = (n as f64, df as f64);
        match self {
            Self::Bm25 => (1.0 + (n - df + 0.5) / (df + 0.5)).ln(),
            Self::Smooth => ((n + 1.0) / (df + 1.0)).ln() + 1.0,
        }
    }

    /// The formula as it is written in the metadata.
    pub fn text(self) -> &'static str {
        match self {
            Self::Bm25 => "ln(1 + (N - df + 0.5) / (df + 0.5))",
            Self::Smooth => "ln((N + 1) / (df + 1)) + 1",
        }
    }
}

/// Where a table comes from; stands beside `idf.json` as `idf.meta.json`, because ML Commons reads every
/// entry of `idf.json` itself as a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IdfMetadata {
    /// The formula's name.
    pub formula: IdfFormula,
    /// The formula, written out.
    pub formula_text: String,
    /// Documents counted (N).
    pub documents: u64,
    /// Tokens with at least one document.
    pub tokens_seen: u64,
    /// sha256 over the documents' templated texts, in order.
    pub corpus_sha256: String,
    /// The document template's pattern.
    pub template: String,
}

/// One weight a vocabulary entry; 0 for special tokens, in `(0, 64]` for all others. Tokens with [`SILENT`] are left
/// out of queries.
#[derive(Debug, Clone, PartialEq)]
pub struct IdfTable {
    weights: Vec<Weight>,
}

impl IdfTable {
    /// From one weight a token id. Weights are used as they are; the caller has checked them.
    pub fn from_weights(weights: Vec<Weight>) -> Self {
        Self { weights }
    }

    /// Counts documents (untruncated, templated texts) and applies the formula. Tokens that no document
    /// shows get the value of df = 0; everything is kept within `(0, 64]`.
    ///
    /// # Errors
    /// If the tokenizer refuses a text, there is no document, or the user stops it.
    pub fn build<'a>(
        texts: impl Iterator<Item = &'a str>,
        tokenizer: &TextTokenizer,
        formula: IdfFormula,
        template: &str,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<(Self, IdfMetadata)> {
        use sha2::Digest as _;
        let size = tokenizer.vocabulary().len();
        let mut df = vec![0u64; size];
        let mut n = 0u64;
        let mut hasher = sha2::Sha256::new();
        let task = progress.start("Counting documents", texts.size_hint().1.unwrap_or(0) as u64);
        for text in texts {
            cancel.check()?;
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
            let mut ids = tokenizer.pieces(text)?;
            ids.sort_unstable();
            ids.dedup();
            for id in ids {
                df[id as usize] += 1;
            }
            n += 1;
            task.advance(1);
        }
        if n == 0 {
            return Err(Error::invalid("The corpus has no document: there is nothing to count for the idf table"));
        }
        let special = &tokenizer.special().all;
        let weights = df
            .iter()
            .enumerate()
            .map(|(id, &df)| {
                if special.binary_search(&(id as TokenId)).is_ok() {
                    0.0
                } else {
                    (formula.weight(n, df) as Weight).clamp(Weight::MIN_POSITIVE, MAX_WEIGHT)
                }
            })
            .collect();
        let metadata = IdfMetadata {
            formula,
            formula_text: formula.text().to_owned(),
            documents: n,
            tokens_seen: df.iter().filter(|&&d| d > 0).count() as u64,
            corpus_sha256: files::hex(&hasher.finalize()),
            template: template.to_owned(),
        };
        Ok((Self { weights }, metadata))
    }

    /// Reads `idf.json` (token string to weight). Every vocabulary string but the special ones must be there.
    ///
    /// # Errors
    /// If it cannot be read, names a token that the vocabulary does not have, misses one, or holds a weight
    /// outside `(0, 64]`.
    pub fn load(path: &Path, tokenizer: &TextTokenizer) -> Result<Self> {
        let map: BTreeMap<String, f64> = files::read_json(path)?;
        Self::from_map(&map, tokenizer).map_err(|e| Error::file(path, e.to_string()))
    }

    /// As [`IdfTable::load`], from the parsed map.
    ///
    /// # Errors
    /// As [`IdfTable::load`].
    pub fn from_map(map: &BTreeMap<String, f64>, tokenizer: &TextTokenizer) -> Result<Self> {
        let special = &tokenizer.special().all;
        let mut weights = vec![0.0; tokenizer.vocabulary().len()];
        for (token, &value) in map {
            let Some(id) = tokenizer.id(token) else {
                return Err(Error::invalid_with_hint(
                    format!("The idf table has the token `{token}`, which the tokenizer's vocabulary does not have"),
                    "idf.json and tokenizer.json must come from the same vocabulary",
                ));
            };
            if special.binary_search(&id).is_ok() {
                continue;
            }
            if !(value > 0.0 && value <= f64::from(MAX_WEIGHT)) {
                return Err(Error::invalid(format!("The idf of token `{token}` is {value}; it must lie in (0, 64]")));
            }
            weights[id as usize] = value as Weight;
        }
        let missing: Vec<&str> = (0..weights.len())
            .filter(|&id| weights[id] == 0.0 && special.binary_search(&(id as TokenId)).is_err())
            .map(|id| tokenizer.vocabulary()[id].as_str())
            .collect();
        if let Some(first) = missing.first() {
            return Err(Error::invalid_with_hint(
                format!("The idf table misses {} vocabulary tokens, the first is `{first}`", missing.len()),
                "make it again with `nsparse idf` and this model's tokenizer",
            ));
        }
        Ok(Self { weights })
    }

    /// Token string to weight, without the special tokens; what `idf.json` holds. A weight of 0 stands there as
    /// [`SILENT`].
    pub fn to_map(&self, tokenizer: &TextTokenizer) -> BTreeMap<String, Weight> {
        let special = &tokenizer.special().all;
        self.weights
            .iter()
            .enumerate()
            .filter(|(id, _)| special.binary_search(&(*id as TokenId)).is_err())
            .map(|(id, &w)| (tokenizer.vocabulary()[id].clone(), w.max(SILENT)))
            .collect()
    }

    /// Writes `idf.json`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path, tokenizer: &TextTokenizer) -> Result<()> {
        files::write_json(path, &self.to_map(tokenizer))
    }

    /// The weight of one token; 0 for special tokens.
    pub fn weight(&self, id: TokenId) -> Weight {
        self.weights[id as usize]
    }

    /// All weights by token id.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }
}
