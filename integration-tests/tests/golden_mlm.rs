//! The head at masked positions, both backends, against `BertForMaskedLM`'s own loss, log-probabilities and
//! gradients; with dropout, against each other and finite differences.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use nsparse_encoder::cpu::Level;
use nsparse_encoder::{
    Backend, BertMlm, CandleBackend, CpuBackend, Dropout, Parameters, PositionForward, TokenBatch, TokenPositions,
};
use nsparse_integration_tests::golden::{DROPOUT, GoldenFile, documents, max_abs, max_difference, tiny_bert};

/// The crate's kernels with each set of instructions and with activations made again; the plain backend with exact
/// lengths, with padding, and with activations made again.
fn backends() -> Vec<(String, Box<dyn Backend>)> {
    let config = tiny_bert().config;
    let mut out: Vec<(String, Box<dyn Backend>)> = Vec::new();
    for level in Level::all() {
        out.push((format!("cpu, {level}"), Box::new(CpuBackend::new(&config).with_level(level))));
    }
    let mut again = CpuBackend::new(&config);
    again.checkpoint_activations(true).unwrap();
    out.push(("cpu, activations again".to_owned(), Box::new(again)));
    out.push(("plain".to_owned(), Box::new(CandleBackend::cpu(&config))));
    out.push(("plain, padded".to_owned(), Box::new(CandleBackend::cpu(&config).with_blocks(10_000, 0))));
    let mut again = CandleBackend::cpu(&config);
    again.checkpoint_activations(true).unwrap();
    out.push(("plain, activations again".to_owned(), Box::new(again)));
    out
}

/// Some of the six documents with their masked positions; keys are their places among all.
fn masked(places: &[usize]) -> (TokenBatch, TokenPositions) {
    let inputs = GoldenFile::read("mlm/inputs.safetensors");
    let (ids, labels) = (inputs.i64("input_ids"), inputs.i64("labels"));
    let all = documents();
    let mut batch = TokenBatch { offsets: vec![0], ..TokenBatch::default() };
    let mut positions = TokenPositions::default();
    for &place in places {
        for i in 0..all[place].len() {
            let label = labels[place * 64 + i];
            if label != -100 {
                positions.rows.push(batch.ids.len());
                positions.labels.push(label as u32);
            }
            batch.ids.push(ids[place * 64 + i] as u32);
        }
        batch.offsets.push(batch.ids.len());
        batch.document_keys.push(place as u64);
    }
    (batch, positions)
}

fn forward(
    backend: &dyn Backend,
    model: &BertMlm,
    (batch, positions): &(TokenBatch, TokenPositions),
    dropout: Option<Dropout>,
) -> PositionForward {
    backend.forward_positions(&model.parameters, batch, positions, dropout, true).unwrap()
}

/// The gradient of the mean cross entropy over `count` positions, added to a buffer.
fn backward(
    backend: &dyn Backend,
    model: &BertMlm,
    masked: &(TokenBatch, TokenPositions),
    forward: PositionForward,
    count: usize,
    gradient: &mut [f32],
) {
    let slopes = vec![-1.0 / count as f32; masked.1.rows.len()];
    backend.backward_positions(&model.parameters, &masked.0, forward, &slopes, gradient).unwrap();
}

const ALL: [usize; 6] = [0, 1, 2, 3, 4, 5];

#[test]
fn log_probabilities_and_loss_match() {
    let model = tiny_bert();
    let expected = GoldenFile::read("mlm/expected.safetensors");
    for (name, backend) in &backends() {
        let got = forward(backend.as_ref(), &model, &masked(&ALL), None);
        let deviation = max_difference(&got.log_probabilities, expected.f32("log_probabilities"));
        assert!(deviation <= 2e-5, "{name}: {deviation}");
        let best: Vec<i64> = got.best.iter().map(|&entry| i64::from(entry)).collect();
        assert_eq!(best, expected.i64("best"), "{name}");
        let loss = -got.log_probabilities.iter().map(|&l| f64::from(l)).sum::<f64>() / got.best.len() as f64;
        let want = f64::from(expected.f32("loss")[0]);
        assert!((loss - want).abs() <= 1e-5 * want, "{name}: {loss} for {want}");
    }
}

/// All documents at once, and in micro-batches of another order. Per tensor |Δ| ≤ 3e-5 · max|tensor| + 1e-6 · max
/// over the file, as for every golden gradient.
#[test]
fn gradients_match() {
    let model = tiny_bert();
    let expected = GoldenFile::read("mlm/expected.safetensors");
    let count = expected.f32("log_probabilities").len();
    let largest = model.parameters.specs().iter().map(|s| max_abs(expected.f32(&s.name))).fold(0.0, f64::max);
    let micro_batchings: [&[&[usize]]; 2] = [&[&ALL], &[&[3, 0], &[5, 1, 4], &[2]]];
    for (name, backend) in &backends() {
        for micro_batches in micro_batchings {
            let mut gradient = vec![0.0f32; model.parameters.len()];
            for places in micro_batches {
                let masked = masked(places);
                let got = forward(backend.as_ref(), &model, &masked, None);
                backward(backend.as_ref(), &model, &masked, got, count, &mut gradient);
            }
            for spec in model.parameters.specs() {
                let want = expected.f32(&spec.name);
                let deviation = max_difference(&gradient[spec.offset..spec.offset + spec.len()], want);
                let tolerance = 3e-5 * max_abs(want) + 1e-6 * largest;
                assert!(deviation <= tolerance, "{name}, {}: {deviation:.3e} of {tolerance:.3e}", spec.name);
            }
        }
    }
}

#[test]
fn dropout_follows_its_key_in_both() {
    let model = tiny_bert();
    let all = masked(&ALL);
    let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
    for (name, backend) in &backends() {
        let got = forward(backend.as_ref(), &model, &all, Some(DROPOUT));
        let said = got.log_probabilities.clone();
        assert_eq!(said, forward(backend.as_ref(), &model, &all, Some(DROPOUT)).log_probabilities, "{name}");
        let plain = forward(backend.as_ref(), &model, &all, None).log_probabilities;
        assert!(max_difference(&said, &plain) > 0.1, "{name}: dropout changes what is said");
        let mut gradient = vec![0.0f32; model.parameters.len()];
        backward(backend.as_ref(), &model, &all, got, all.1.rows.len(), &mut gradient);
        let (values, slopes) = first.get_or_insert_with(|| (said.clone(), gradient.clone()));
        assert!(max_difference(&said, values) <= 2e-5, "{name}");
        assert!(max_difference(&gradient, slopes) <= 3e-5 * max_abs(slopes), "{name}");
    }
}

/// The slope along the gradient itself by central differences, with dropout on.
#[test]
fn the_gradient_is_the_slope_of_the_loss() {
    for (name, backend) in &backends() {
        let mut model = tiny_bert();
        let all = masked(&ALL);
        let count = all.1.rows.len();
        let mut gradient = vec![0.0f32; model.parameters.len()];
        let got = forward(backend.as_ref(), &model, &all, Some(DROPOUT));
        backward(backend.as_ref(), &model, &all, got, count, &mut gradient);
        let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let start = model.parameters.data().to_vec();
        let step = 1e-3;
        let mut loss = |sign: f64| {
            for ((p, s), g) in model.parameters.data_mut().iter_mut().zip(&start).zip(&gradient) {
                *p = (f64::from(*s) + sign * step * f64::from(*g) / norm) as f32;
            }
            let said = forward(backend.as_ref(), &model, &all, Some(DROPOUT)).log_probabilities;
            -said.iter().map(|&l| f64::from(l)).sum::<f64>() / count as f64
        };
        let slope = (loss(1.0) - loss(-1.0)) / (2.0 * step);
        assert!((slope - norm).abs() <= 2e-3 * norm, "{name}: slope {slope}, norm of the gradient {norm}");
    }
}

/// The log-probabilities are the softmax of the logits that the sparse head pools: a document of one token shows
/// them.
#[test]
fn the_pooled_head_says_the_same() {
    let model = tiny_bert();
    let single = documents()[3].clone();
    let batch = TokenBatch::new(&[single]);
    for (name, backend) in &backends() {
        let pooled = backend.forward(&model.parameters, &batch, None, false).unwrap().pooled;
        let log_sum = pooled.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
        for label in [0u32, 7, 210] {
            let positions = TokenPositions { rows: vec![0], labels: vec![label] };
            let got = backend.forward_positions(&model.parameters, &batch, &positions, None, false).unwrap();
            assert!(got.state.is_none());
            let want = f64::from(pooled[label as usize]) - log_sum;
            assert!((f64::from(got.log_probabilities[0]) - want).abs() < 1e-5, "{name}, {label}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_well() {
    let model = tiny_bert();
    let (batch, good) = masked(&[0, 3]);
    for (name, backend) in &backends() {
        let run = |positions: &TokenPositions, keep| {
            backend.forward_positions(&model.parameters, &batch, positions, None, keep)
        };
        let bad = |rows: &[usize], labels: &[u32]| {
            let positions = TokenPositions { rows: rows.to_vec(), labels: labels.to_vec() };
            run(&positions, true).err().unwrap_or_else(|| panic!("{name}: {rows:?} {labels:?}")).to_string()
        };
        assert!(bad(&[1], &[]).contains("labels"));
        assert!(bad(&[2, 1], &[5, 5]).contains("ascend"));
        assert!(bad(&[1, 1], &[5, 5]).contains("ascend"));
        assert!(bad(&[batch.tokens()], &[5]).contains("within the batch"));
        assert!(bad(&[1], &[211]).contains("no entry"));

        let mut gradient = vec![0.0f32; model.parameters.len()];
        let nothing = run(&TokenPositions::default(), true).unwrap();
        assert!(nothing.log_probabilities.is_empty());
        backend.backward_positions(&model.parameters, &batch, nothing, &[], &mut gradient).unwrap();
        assert!(gradient.iter().all(|g| *g == 0.0));

        let back = |forward, slopes: &[f32], parameters: &Parameters, batch: &TokenBatch| {
            let mut gradient = vec![0.0f32; parameters.len()];
            backend.backward_positions(parameters, batch, forward, slopes, &mut gradient)
        };
        let slopes = vec![0.5; good.rows.len()];
        assert!(back(run(&good, false).unwrap(), &slopes, &model.parameters, &batch).is_err(), "{name}: no state");
        assert!(back(run(&good, true).unwrap(), &slopes[1..], &model.parameters, &batch).is_err());
        let (other, _) = masked(&[3, 0]);
        assert!(back(run(&good, true).unwrap(), &slopes, &model.parameters, &other).is_err(), "{name}: other batch");
    }
}
