//! What turns queries into vectors: the model's table, or with a siamese model its network.

use nsparse_core::model_dir::ModelDir;
use nsparse_core::{Cancel, NoProgress, QueryEncoder, SparseVector, TextTokenizer};
use nsparse_encoder::{Device, SparseEncoder};

/// A model's query side.
pub(crate) enum Queries {
    /// Tokenizer and table.
    Table(Box<QueryEncoder>),
    /// The document encoder.
    Network(Box<SparseEncoder>),
}

impl Queries {
    /// A model directory's query side; `device` computes a siamese model's queries.
    ///
    /// # Errors
    /// If a file is missing or broken.
    pub(crate) fn open(model: &ModelDir, device: Device) -> anyhow::Result<Self> {
        Ok(if model.is_siamese()? {
            Self::Network(Box::new(SparseEncoder::load(model.folder(), device)?))
        } else {
            Self::Table(Box::new(model.query_encoder()?))
        })
    }

    /// The tokenizer.
    pub(crate) fn tokenizer(&self) -> &TextTokenizer {
        match self {
            Self::Table(encoder) => encoder.tokenizer(),
            Self::Network(encoder) => encoder.tokenizer(),
        }
    }

    /// One vector a query, in the order given.
    ///
    /// # Errors
    /// If the tokenizer refuses a text, or the network fails.
    pub(crate) fn encode<T: AsRef<str> + Sync>(&self, texts: &[T]) -> anyhow::Result<Vec<SparseVector>> {
        Ok(match self {
            Self::Table(encoder) => texts.iter().map(|t| encoder.encode(t.as_ref())).collect::<Result<_, _>>()?,
            Self::Network(encoder) => encoder.encode_reporting(texts, &NoProgress, &Cancel::default())?,
        })
    }
}
