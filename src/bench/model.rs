//! Networks with random weights, as dense or as sparse as they are asked for.

use nsparse_core::TokenId;
use nsparse_encoder::{BertConfig, BertMlm, Device, TokenBatch, create};

use crate::bench::args::{Active, ShapeArgs};

/// The decoder's bias: one value a vocabulary entry.
const BIAS: &str = "cls.predictions.bias";

/// The config of a shape for documents of at most so many tokens.
pub(crate) fn config(shape: &ShapeArgs, tokens: usize) -> anyhow::Result<BertConfig> {
    let config: BertConfig = serde_json::from_value(serde_json::json!({
        "model_type": "bert", "vocab_size": shape.vocab, "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "intermediate_size": 4 * shape.hidden, "hidden_act": "gelu",
        "max_position_embeddings": tokens.max(512), "type_vocab_size": 2, "layer_norm_eps": 1e-12,
    }))?;
    config.validate()?;
    Ok(config)
}

/// Random weights whose bias lets about as many entries be above zero over these documents.
pub(crate) fn random(
    config: &BertConfig,
    seed: u64,
    active: Active,
    windows: &[&[TokenId]],
    device: Device,
) -> anyhow::Result<BertMlm> {
    let mut model = BertMlm::random(config.clone(), seed);
    let batch = TokenBatch::new(windows);
    let mut logits = create(config, device)?.forward(&model.parameters, &batch, None, false)?.pooled;
    let threshold = match active {
        Active::All => logits.iter().copied().fold(f32::INFINITY, f32::min) - 1.0,
        Active::Mean(n) => {
            let place = (n * windows.len()).min(logits.len() - 1);
            *logits.select_nth_unstable_by(place, |a, b| b.total_cmp(a)).1
        }
    };
    model.parameters.get_mut(BIAS)?.fill(-threshold);
    Ok(model)
}

/// Whether this backend finds the entries above zero by a screen in place of the whole product with the vocabulary:
/// entries below zero then differ from those of a full forward.
pub(crate) fn head_is_screened(model: &BertMlm, windows: &[&[TokenId]], device: Device) -> anyhow::Result<bool> {
    let backend = create(&model.config, device)?;
    let batch = TokenBatch::new(windows);
    let full = backend.forward(&model.parameters, &batch, None, false)?.pooled;
    let positive = backend.forward_positive(&model.parameters, &batch, None, false)?.pooled;
    Ok(full.iter().zip(&positive).any(|(a, b)| a.to_bits() != b.to_bits()))
}
