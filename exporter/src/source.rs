//! The document side of a model directory, checked: what an export writes and what onnxruntime is given.

use std::path::Path;

use nsparse_core::model_dir::{Activation, ModelDir};
use nsparse_core::{DocumentTemplate, Segments, TextTokenizer, TokenId};
use nsparse_encoder::BertMlm;

use crate::package::MAX_DOCUMENT_TOKENS;
use crate::{Error, Onnx, Result, TorchScript};

/// A trained model with all that tells how texts become its vectors.
pub(crate) struct DocumentSide {
    pub(crate) model: BertMlm,
    pub(crate) tokenizer: TextTokenizer,
    /// Ids whose weight is 0 in every document, ascending.
    pub(crate) zeroed: Vec<TokenId>,
    pub(crate) activation: Activation,
    pub(crate) max_tokens: usize,
    /// How a longer text is read; the graphs read one window, whoever calls them has to know.
    pub(crate) segments: Option<Segments>,
    pub(crate) template: DocumentTemplate,
}

impl DocumentSide {
    /// Reads a model directory whose window is at most `most` tokens wide.
    ///
    /// # Errors
    /// If a file is missing or broken, the head is untrained, the window is wider than `most` or than the network
    /// has positions, or the parts do not fit together.
    pub(crate) fn load(folder: &Path, most: usize) -> Result<Self> {
        let dir = ModelDir::open(folder)?;
        let facts = dir.facts()?;
        let tokenizer = dir.tokenizer()?;
        // The seed would make a head where there is none; such a model is refused.
        let model = BertMlm::load(folder, 0)?;
        if model.head_is_new {
            return Err(Error::export(
                format!(
                    "`{}` is an encoder without a trained head: its document vectors mean nothing",
                    folder.display()
                ),
                "train it first: `nsparse train CONFIG --set model.path=FOLDER`",
            ));
        }
        let (strings, rows) = (tokenizer.vocabulary().len(), model.config.vocab_size);
        if strings > rows {
            return Err(Error::export(
                format!("tokenizer.json has {strings} entries, but the model only {rows} (vocab_size in config.json)"),
                "tokenizer.json must be the one that the model was trained with",
            ));
        }
        let positions = model.config.max_position_embeddings;
        let most = most.min(positions);
        if !(3..=most).contains(&facts.max_tokens) {
            return Err(Error::export(
                format!("max_tokens in nsparse.json is {}; it must lie between 3 and {most}", facts.max_tokens),
                format!(
                    "the model has {positions} positions, and ML Commons reads {MAX_DOCUMENT_TOKENS} tokens at most"
                ),
            ));
        }
        facts.segments.map_or(Ok(()), |segments| segments.validate(facts.max_tokens))?;
        let mut zeroed = dir.zeroed_ids()?;
        // Rows beyond the vocabulary (padded embedding tables) have no string to be indexed under.
        zeroed.extend(strings as TokenId..rows as TokenId);
        zeroed.sort_unstable();
        zeroed.dedup();
        Ok(Self {
            model,
            tokenizer,
            zeroed,
            activation: facts.activation,
            max_tokens: facts.max_tokens,
            segments: facts.segments,
            template: facts.template,
        })
    }

    /// The graph for libtorch.
    pub(crate) fn torchscript(&self) -> TorchScript<'_> {
        TorchScript {
            config: &self.model.config,
            parameters: &self.model.parameters,
            zeroed: &self.zeroed,
            activation: self.activation,
        }
    }

    /// The graph for onnxruntime.
    pub(crate) fn onnx(&self) -> Onnx<'_> {
        Onnx {
            config: &self.model.config,
            parameters: &self.model.parameters,
            zeroed: &self.zeroed,
            activation: self.activation,
        }
    }
}
