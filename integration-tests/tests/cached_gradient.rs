//! Cached gradients (arXiv 2101.06983) against the gradient of the batch in one piece, parameter by parameter, with
//! dropout, with the activations kept and made again.

use nsparse_core::model_dir::Activation;
use nsparse_encoder::{BertConfig, BertMlm, Device, create};
use nsparse_trainer::TrainConfig;
use nsparse_trainer::contrastive::Contrastive;
use nsparse_trainer::network::Network;
use nsparse_trainer::stage::Stage;
use nsparse_trainer::synthetic::RandomData;

const VOCABULARY: usize = 30_522;

/// all-MiniLM-L6-v2's shape.
fn minilm() -> BertConfig {
    serde_json::from_value(serde_json::json!({
        "model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": 384, "num_hidden_layers": 6,
        "num_attention_heads": 12, "intermediate_size": 1536, "hidden_act": "gelu",
        "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12
    }))
    .expect("a config")
}

/// The first step's loss and gradient: 8 queries, 16 documents of 40 tokens, `micro_batch` of them at once.
fn first_step(model: &BertMlm, micro_batch: usize, is_checkpointing: bool) -> (f64, Vec<f32>) {
    let data = RandomData { queries: 8, tokens: 40, vocabulary: VOCABULARY, seed: 5 }.generate().expect("data");
    let mut recipe = TrainConfig::default();
    recipe.train.batch_queries = 8;
    recipe.train.negatives = 1;
    recipe.train.micro_batch = micro_batch;
    recipe.train.dropout = 0.1;
    recipe.train.losses.infonce.weight = 1.0;
    recipe.train.losses.flops.weight = Some(1e-3);
    let mut backend = create(&model.config, Device::Cpu).expect("a backend");
    backend.checkpoint_activations(is_checkpointing).expect("the CPU can");
    let network = Network::with_backend(backend, VOCABULARY, Activation::Splade, &[0, 1, 2, 3, 4], VOCABULARY);
    let zeroed = network.zeroed.clone();
    let mut stage = Contrastive::new(&recipe, &data, &zeroed).expect("a stage");
    let mut gradient = vec![0.0f32; model.parameters.len()];
    let outcome = stage.accumulate(&network, &model.parameters, 0, &mut gradient).expect("a step");
    (outcome.loss, gradient)
}

#[test]
fn a_cached_gradient_is_the_gradient() {
    let mut model = BertMlm::random(minilm(), 3);
    // A few hundred entries above zero, as in a trained model.
    model.parameters.get_mut("cls.predictions.bias").expect("a bias").fill(-0.9);
    let (loss, whole) = first_step(&model, 0, false);
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    for (micro_batch, is_checkpointing) in [(5, false), (1, false), (16, true), (6, true)] {
        let (own_loss, parts) = first_step(&model, micro_batch, is_checkpointing);
        assert!((own_loss - loss).abs() <= 1e-6 * loss.abs(), "{own_loss} against {loss}");
        let mut compared = 0;
        for spec in model.parameters.specs() {
            let range = spec.offset..spec.offset + spec.len();
            let size = norm(&mut whole[range.clone()].iter().copied());
            let difference = norm(&mut whole[range.clone()].iter().zip(&parts[range]).map(|(a, b)| a - b));
            // The key's bias shifts all scores of a query alike: its gradient is rounding.
            if spec.name.ends_with("key.bias") {
                continue;
            }
            assert!(size > 0.0, "{} has no gradient", spec.name);
            assert!(difference <= 1e-5 * size, "{}: {difference:e} of {size:e} in parts of {micro_batch}", spec.name);
            compared += 1;
        }
        assert!(compared > 90, "only {compared} parameters were compared");
    }
}
