//! The CPU kernels: golden values of PyTorch, agreement with the plain backend on random shapes, and the same
//! bits from every run and every set of vector instructions.

use nsparse_encoder::cpu::{CpuBackend, Level};
use nsparse_encoder::{Backend, BertConfig, BertMlm, CandleBackend, Dropout, TokenBatch};
use nsparse_integration_tests::golden;
use proptest::prelude::*;

/// Every set of vector instructions, and activations made again.
fn golden_backends() -> Vec<CpuBackend> {
    let config = golden::tiny_bert().config;
    let mut out: Vec<CpuBackend> =
        Level::all().into_iter().map(|level| CpuBackend::new(&config).with_level(level)).collect();
    let mut checkpointing = CpuBackend::new(&config);
    checkpointing.checkpoint_activations(true).expect("the CPU can");
    out.push(checkpointing);
    out
}

#[test]
fn forward_matches() {
    for backend in &golden_backends() {
        golden::check_forward(backend);
    }
}

#[test]
fn last_hidden_states_match() {
    let model = golden::tiny_bert();
    let file = golden::GoldenFile::read("tiny-bert/outputs.safetensors");
    let expected = file.f32("last_hidden_state");
    let documents = golden::documents();
    for backend in &golden_backends() {
        let states = backend.hidden_states(&model.parameters, &TokenBatch::new(&documents)).expect("it succeeds");
        let mut rest = &states[..];
        for (document, ids) in documents.iter().enumerate() {
            let (own, after) = rest.split_at(ids.len() * 32);
            let start = document * 64 * 32;
            let deviation = golden::max_difference(own, &expected[start..start + own.len()]);
            assert!(deviation <= 2e-5, "document {document}: {deviation}");
            rest = after;
        }
        assert!(rest.is_empty());
    }
}

#[test]
fn gradients_match() {
    for backend in &golden_backends() {
        golden::check_gradients(backend);
    }
}

#[test]
fn every_parameter_gets_its_gradient() {
    for backend in &golden_backends() {
        golden::check_every_parameter_gets_its_gradient(backend);
    }
}

#[test]
fn dropout_follows_its_key() {
    for backend in &golden_backends() {
        golden::check_dropout(backend);
        golden::check_slope_with_dropout(backend);
    }
}

fn config(vocabulary: usize, heads: usize, head_size: usize, layers: usize, wide: usize) -> BertConfig {
    serde_json::from_value(serde_json::json!({
        "model_type": "bert", "vocab_size": vocabulary, "hidden_size": heads * head_size,
        "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": wide,
        "hidden_act": "gelu", "max_position_embeddings": 160, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "initializer_range": 0.1
    }))
    .expect("a config")
}

/// Documents of the given lengths with ids that repeat within and across documents.
fn batch(lengths: &[usize], vocabulary: usize) -> TokenBatch {
    let id = |document: usize, i: usize| ((document * 31 + i * i * 7 + i) % vocabulary) as u32;
    let documents: Vec<Vec<u32>> =
        lengths.iter().enumerate().map(|(d, &len)| (0..len).map(|i| id(d, i)).collect()).collect();
    let mut batch = TokenBatch::new(&documents);
    // Keys are not positions: a wrong one shows.
    batch.document_keys.iter_mut().for_each(|key| *key = *key * 17 + 5);
    batch
}

fn shapes() -> impl Strategy<Value = (BertConfig, Vec<usize>, u64)> {
    let network = (1usize..1200, 1usize..5, 1usize..20, 0usize..4, 1usize..100)
        .prop_map(|(vocabulary, heads, size, layers, wide)| config(vocabulary, heads, size + 3, layers, wide));
    (network, proptest::collection::vec(1usize..=160, 1..7), any::<u64>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_plain_backend((config, lengths, seed) in shapes()) {
        let model = BertMlm::random(config.clone(), seed);
        let batch = batch(&lengths, config.vocab_size);
        golden::check_agreement(&CandleBackend::cpu(&config), &CpuBackend::new(&config), &model, &batch);
    }
}

#[test]
fn agrees_with_the_plain_backend_at_the_extremes() {
    let config = config(700, 3, 13, 2, 50);
    let model = BertMlm::random(config.clone(), 3);
    for lengths in [vec![2], vec![1; 40], vec![160], vec![160; 8], vec![1, 160, 2, 159, 3, 33]] {
        let batch = batch(&lengths, config.vocab_size);
        golden::check_agreement(&CandleBackend::cpu(&config), &CpuBackend::new(&config), &model, &batch);
    }
}

/// Pooled logits, argmax and gradient with dropout, as bits.
fn bits(backend: &dyn Backend, model: &BertMlm, batch: &TokenBatch) -> (Vec<u32>, Vec<u16>, Vec<u32>) {
    let dropout = Some(Dropout { hidden: 0.1, attention: 0.1, seed: 1, step: 2 });
    let forward = backend.forward(&model.parameters, batch, dropout, true).expect("the forward succeeds");
    let of = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
    let (pooled, argmax) = (of(&forward.pooled), forward.argmax.clone());
    let upstream: Vec<f32> =
        (0..pooled.len()).map(|i| if i % 3 == 0 { 0.0 } else { (i % 101) as f32 * 0.02 - 1.0 }).collect();
    let mut gradient = vec![0.0; model.parameters.len()];
    backend.backward(&model.parameters, batch, forward, &upstream, &mut gradient).expect("the backward succeeds");
    (pooled, argmax, of(&gradient))
}

#[test]
fn same_bits_from_every_run_and_instruction_set() {
    let config = config(1500, 4, 24, 2, 300);
    let model = BertMlm::random(config.clone(), 4);
    let long = batch(&[150, 3, 77, 160, 91, 128], config.vocab_size);
    let short = batch(&[4, 9], config.vocab_size);
    let backend = CpuBackend::new(&config);
    let expected = bits(&backend, &model, &long);
    // Buffers that a smaller batch left behind change nothing.
    bits(&backend, &model, &short);
    assert!(bits(&backend, &model, &long) == expected, "a second run differs");
    for level in Level::all() {
        let backend = CpuBackend::new(&config).with_level(level);
        assert!(bits(&backend, &model, &long) == expected, "{level} differs");
    }
}

#[test]
fn forwards_may_overlap_and_be_dropped() {
    let config = config(300, 2, 16, 2, 64);
    let model = BertMlm::random(config.clone(), 5);
    let (first, second) = (batch(&[30, 12], config.vocab_size), batch(&[7, 90, 4], config.vocab_size));
    let backend = CpuBackend::new(&config);
    let gradient = |batch: &TokenBatch, forward| {
        let mut out = vec![0.0; model.parameters.len()];
        let upstream = vec![0.5; batch.documents() * config.vocab_size];
        backend.backward(&model.parameters, batch, forward, &upstream, &mut out).expect("the backward succeeds");
        out
    };
    let forward =
        |batch: &TokenBatch| backend.forward(&model.parameters, batch, None, true).expect("the forward succeeds");
    let expected = (gradient(&first, forward(&first)), gradient(&second, forward(&second)));
    let (a, b, unused) = (forward(&first), forward(&second), forward(&first));
    drop(unused);
    let c = forward(&second);
    assert_eq!(gradient(&second, b), expected.1);
    assert_eq!(gradient(&first, a), expected.0);
    assert_eq!(gradient(&second, c), expected.1);
}

#[test]
fn refuses_what_does_not_fit() {
    let config = config(300, 2, 16, 1, 64);
    let model = BertMlm::random(config.clone(), 6);
    let backend = CpuBackend::new(&config);
    let message = |ids: Vec<u32>| {
        let batch = TokenBatch::new(&[ids]);
        backend.forward(&model.parameters, &batch, None, false).err().expect("an error").to_string()
    };
    assert!(message(vec![1; 161]).contains("161 tokens"));
    assert!(message(vec![2, 300]).contains("token id 300"));
    let batch = batch(&[5], config.vocab_size);
    let kept_nothing = backend.forward(&model.parameters, &batch, None, false).expect("the forward succeeds");
    let mut gradient = vec![0.0; model.parameters.len()];
    let error = backend.backward(&model.parameters, &batch, kept_nothing, &vec![0.0; 300], &mut gradient);
    assert!(error.expect_err("nothing was kept").to_string().contains("keep nothing"));
    let kept = backend.forward(&model.parameters, &batch, None, true).expect("the forward succeeds");
    let longer = self::batch(&[6], config.vocab_size);
    let error = backend.backward(&model.parameters, &longer, kept, &vec![0.0; 300], &mut gradient);
    assert!(error.expect_err("another batch").to_string().contains("another batch"));
    let nothing = TokenBatch::new::<Vec<u32>>(&[]);
    let empty = backend.forward(&model.parameters, &nothing, None, true).expect("an empty batch is no error");
    assert!(empty.pooled.is_empty());
    backend.backward(&model.parameters, &nothing, empty, &[], &mut gradient).expect("nor is its backward");
}

/// A model whose logits lie around zero, so that some entries are above it: `shift` moves them all.
fn shifted(config: &BertConfig, seed: u64, shift: f32) -> BertMlm {
    let mut model = BertMlm::random(config.clone(), seed);
    model.parameters.get_mut("cls.predictions.bias").expect("a bias").iter_mut().enumerate().for_each(|(i, b)| {
        *b = shift + (i % 7) as f32 * 0.1;
    });
    model
}

/// The screened forward against the whole one: above zero and at own tokens the same bits, elsewhere not above
/// zero. Gives the share of entries that the screened one did not have to compute.
fn check_screen(level: Level, model: &BertMlm, batch: &TokenBatch) -> f64 {
    let backend = CpuBackend::new(&model.config).with_level(level);
    let whole = backend.forward(&model.parameters, batch, None, false).expect("the forward succeeds");
    let screened = backend.forward_positive(&model.parameters, batch, None, false).expect("the forward succeeds");
    assert_eq!(whole.pooled.len(), screened.pooled.len());
    let vocabulary = model.config.vocab_size;
    let mut spared = 0;
    for (place, (&want, &got)) in whole.pooled.iter().zip(&screened.pooled).enumerate() {
        let entry = (place % vocabulary) as u32;
        if want > 0.0 || batch.document(place / vocabulary).contains(&entry) {
            assert_eq!(got.to_bits(), want.to_bits(), "entry {place}: {got} against {want}");
            assert_eq!(screened.argmax[place], whole.argmax[place], "entry {place}");
        } else {
            assert!(got <= 0.0, "entry {place}: {got} against {want}");
            assert!(got >= want, "entry {place} is no upper bound: {got} against {want}");
            spared += usize::from(got.to_bits() != want.to_bits());
        }
    }
    spared as f64 / whole.pooled.len() as f64
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_screened_head_gives_the_same_bits((config, lengths, seed) in shapes(), shift in -12f32..2.0) {
        let model = shifted(&config, seed, shift);
        let batch = batch(&lengths, config.vocab_size);
        for level in Level::all() {
            check_screen(level, &model, &batch);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_screen_spares_most_of_the_head_where_the_machine_has_one() {
    let config = config(6000, 4, 32, 1, 128);
    let model = shifted(&config, 8, -6.0);
    let spared = check_screen(Level::best(), &model, &batch(&[120, 45, 160, 33], config.vocab_size));
    if Level::best().to_string() == "avx512" && std::arch::is_x86_feature_detected!("avx512vnni") {
        assert!(spared > 0.8, "{spared} of the entries were spared");
    } else {
        assert!(spared.to_bits() == 0, "{spared} of the entries were spared without AVX-512 VNNI");
    }
}

#[test]
fn a_screen_gives_way_to_numbers_that_are_not_finite() {
    let config = config(300, 2, 16, 1, 64);
    for name in ["cls.predictions.bias", "cls.predictions.transform.LayerNorm.bias"] {
        let mut model = shifted(&config, 9, -4.0);
        model.parameters.get_mut(name).expect("a parameter")[3] = f32::NAN;
        let batch = batch(&[30, 20], config.vocab_size);
        let forward = CpuBackend::new(&config).forward_positive(&model.parameters, &batch, None, false);
        assert!(forward.expect("the forward succeeds").pooled.iter().any(|x| x.is_nan()), "{name} vanished");
    }
}

#[test]
fn a_screen_follows_the_parameters() {
    let config = config(900, 3, 16, 1, 64);
    let mut model = shifted(&config, 10, -5.0);
    let batch = batch(&[60, 31], config.vocab_size);
    let backend = CpuBackend::new(&config);
    backend.forward_positive(&model.parameters, &batch, None, false).expect("the forward succeeds");
    let embedding = "bert.embeddings.word_embeddings.weight";
    model.parameters.get_mut(embedding).expect("a table").iter_mut().for_each(|x| *x *= -3.0);
    let whole = backend.forward(&model.parameters, &batch, None, false).expect("the forward succeeds");
    let screened = backend.forward_positive(&model.parameters, &batch, None, false).expect("the forward succeeds");
    let positive = |pooled: &[f32]| pooled.iter().map(|x| x.max(0.0).to_bits()).collect::<Vec<_>>();
    assert!(positive(&screened.pooled) == positive(&whole.pooled), "the screen kept the old decoder");
}

#[test]
fn recomputed_activations_give_the_same_bits() {
    let config = config(1500, 4, 24, 3, 300);
    let model = BertMlm::random(config.clone(), 11);
    for lengths in [vec![150, 3, 77, 160, 91], vec![1], vec![2, 5]] {
        let batch = batch(&lengths, config.vocab_size);
        let mut backend = CpuBackend::new(&config);
        let expected = bits(&backend, &model, &batch);
        backend.checkpoint_activations(true).expect("the CPU can");
        assert!(bits(&backend, &model, &batch) == expected, "{lengths:?}");
    }
}
