//! Where each parameter of the network lies in the flat buffers of parameters and gradient.

use std::ops::Range;

use crate::{BertConfig, Error, Parameters, Result};

/// A linear layer y = x Wᵀ + b: W is `[out, inner]`.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    pub(super) weight: Range<usize>,
    pub(super) bias: Range<usize>,
    pub(super) out: usize,
    pub(super) inner: usize,
}

/// A `LayerNorm`: scale and shift, `[H]` each.
#[derive(Debug, Clone)]
pub(super) struct Norm {
    pub(super) weight: Range<usize>,
    pub(super) bias: Range<usize>,
}

/// The parameters of one encoder layer.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    /// Query, key and value.
    pub(super) projections: [Linear; 3],
    pub(super) attention_output: Linear,
    pub(super) attention_norm: Norm,
    pub(super) intermediate: Linear,
    pub(super) output: Linear,
    pub(super) output_norm: Norm,
}

/// All parameters of the network.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// `[V, H]`, the decoder's weight too.
    pub(super) words: Range<usize>,
    /// `[positions, H]`.
    pub(super) positions: Range<usize>,
    /// `[types, H]`; documents use row 0 only.
    pub(super) token_types: Range<usize>,
    pub(super) embedding_norm: Norm,
    pub(super) layers: Vec<Layer>,
    pub(super) transform: Linear,
    pub(super) transform_norm: Norm,
    /// `[V]`.
    pub(super) decoder_bias: Range<usize>,
}

impl Places {
    /// Finds every parameter by its name and checks its shape.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub(super) fn new(config: &BertConfig, parameters: &Parameters) -> Result<Self> {
        let (hidden, wide, vocabulary) = (config.hidden_size, config.intermediate_size, config.vocab_size);
        let find = |name: &str, shape: &[usize]| -> Result<Range<usize>> {
            let spec = parameters.spec(name).ok_or_else(|| Error::Model(format!("no parameter is called `{name}`")))?;
            if spec.shape != shape {
                return Err(Error::Model(format!("`{name}` has shape {:?}; the config says {shape:?}", spec.shape)));
            }
            Ok(spec.offset..spec.offset + spec.len())
        };
        let linear = |name: &str, out: usize, inner: usize| -> Result<Linear> {
            Ok(Linear {
                weight: find(&format!("{name}.weight"), &[out, inner])?,
                bias: find(&format!("{name}.bias"), &[out])?,
                out,
                inner,
            })
        };
        let norm = |name: &str| -> Result<Norm> {
            Ok(Norm {
                weight: find(&format!("{name}.weight"), &[hidden])?,
                bias: find(&format!("{name}.bias"), &[hidden])?,
            })
        };
        let layer = |number: usize| -> Result<Layer> {
            let at = |part: &str| format!("bert.encoder.layer.{number}.{part}");
            Ok(Layer {
                projections: [
                    linear(&at("attention.self.query"), hidden, hidden)?,
                    linear(&at("attention.self.key"), hidden, hidden)?,
                    linear(&at("attention.self.value"), hidden, hidden)?,
                ],
                attention_output: linear(&at("attention.output.dense"), hidden, hidden)?,
                attention_norm: norm(&at("attention.output.LayerNorm"))?,
                intermediate: linear(&at("intermediate.dense"), wide, hidden)?,
                output: linear(&at("output.dense"), hidden, wide)?,
                output_norm: norm(&at("output.LayerNorm"))?,
            })
        };
        Ok(Self {
            words: find("bert.embeddings.word_embeddings.weight", &[vocabulary, hidden])?,
            positions: find("bert.embeddings.position_embeddings.weight", &[config.max_position_embeddings, hidden])?,
            token_types: find("bert.embeddings.token_type_embeddings.weight", &[config.type_vocab_size, hidden])?,
            embedding_norm: norm("bert.embeddings.LayerNorm")?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            transform: linear("cls.predictions.transform.dense", hidden, hidden)?,
            transform_norm: norm("cls.predictions.transform.LayerNorm")?,
            decoder_bias: find("cls.predictions.bias", &[vocabulary])?,
        })
    }
}
