//! What every form of the graph is made of, checked: a model that would only fail in a cluster fails here.

use nsparse_core::TokenId;
use nsparse_encoder::{BertConfig, Parameters, parameter_shapes};

use crate::{Error, Result};

/// One parameter: its name, its shape, its values.
pub(crate) type Part<'a> = (String, Vec<usize>, &'a [f32]);

/// All parameters that the network has, in the order of their names.
///
/// # Errors
/// If one is missing, has another shape than the config says, or a value that is not finite.
pub(crate) fn parameters<'a>(config: &BertConfig, parameters: &'a Parameters) -> Result<Vec<Part<'a>>> {
    config.validate()?;
    parameter_shapes(config)
        .into_iter()
        .map(|(name, shape)| {
            let values = parameters.get(&name)?;
            let found = parameters.spec(&name).map(|s| s.shape.clone()).unwrap_or_default();
            if found != shape {
                return Err(Error::export(
                    format!("Parameter `{name}` has shape {found:?}, but config.json asks for {shape:?}"),
                    "config.json and model.safetensors must come from the same model",
                ));
            }
            if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                return Err(Error::export(
                    format!("Parameter `{name}` has the value {} at index {at}: the model is broken", values[at]),
                    "export an earlier checkpoint, or train again with a lower learning rate",
                ));
            }
            Ok((name, shape, values))
        })
        .collect()
}

/// One factor a vocabulary entry: 0 where the weight of every document is to be 0, else 1.
///
/// # Errors
/// If an id is not in the vocabulary.
pub(crate) fn keep(config: &BertConfig, zeroed: &[TokenId]) -> Result<Vec<f32>> {
    let mut keep = vec![1.0; config.vocab_size];
    for &id in zeroed {
        *keep.get_mut(id as usize).ok_or_else(|| {
            Error::export(
                format!("Token id {id} is to be zeroed, but the model has {} entries", config.vocab_size),
                "tokenizer.json and config.json must have the same vocabulary size",
            )
        })? = 0.0;
    }
    Ok(keep)
}
