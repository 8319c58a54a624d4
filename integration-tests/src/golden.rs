//! The golden values of `golden/` and the checks that any [`Backend`] has to pass on them.
//!
//! Tolerances are those of `golden/README.md`. A check panics with what differs and returns the largest
//! deviation it saw as a share of its tolerance.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nsparse_core::model_dir::Activation;
use nsparse_encoder::{Backend, BertMlm, Dropout, Forward, Parameters, TokenBatch};

/// Vocabulary of the golden networks.
pub const VOCABULARY: usize = 211;

/// The golden folder, or a file in it. Where the tests were built elsewhere, the folder of the repository whose root
/// they are called in.
pub fn path(name: &str) -> PathBuf {
    let built = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../integration-tests/golden"));
    if built.is_dir() { built.join(name) } else { Path::new("integration-tests/golden").join(name) }
}

/// One stored tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Floats.
    F32(Vec<f32>),
    /// Integers.
    I64(Vec<i64>),
}

/// A safetensors file, read without the crate that writes ours.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenFile(BTreeMap<String, (Vec<usize>, Values)>);

impl GoldenFile {
    /// Reads a file of the golden folder.
    pub fn read(name: &str) -> Self {
        let bytes = std::fs::read(path(name)).unwrap_or_else(|e| panic!("golden file {name}: {e}"));
        let header = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let body = &bytes[8 + header..];
        let header: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(&bytes[8..8 + header]).expect("a safetensors header is JSON");
        let number = |v: &serde_json::Value| v.as_u64().expect("sizes are whole numbers") as usize;
        let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__").map(|(name, entry)| {
            let shape = entry["shape"].as_array().expect("a shape").iter().map(number).collect();
            let raw = &body[number(&entry["data_offsets"][0])..number(&entry["data_offsets"][1])];
            let values = match entry["dtype"].as_str() {
                Some("F32") => Values::F32(
                    raw.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect(),
                ),
                Some("I64") => Values::I64(
                    raw.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes"))).collect(),
                ),
                other => panic!("golden tensor {name} has type {other:?}"),
            };
            (name, (shape, values))
        });
        Self(tensors.collect())
    }

    /// Names and shapes.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.0.iter().map(|(name, (shape, _))| (name.as_str(), shape.as_slice()))
    }

    /// A tensor of floats.
    pub fn f32(&self, name: &str) -> &[f32] {
        match self.0.get(name) {
            Some((_, Values::F32(values))) => values,
            other => panic!("golden tensor {name} is {}", if other.is_some() { "of integers" } else { "missing" }),
        }
    }

    /// A tensor of integers.
    pub fn i64(&self, name: &str) -> &[i64] {
        match self.0.get(name) {
            Some((_, Values::I64(values))) => values,
            other => panic!("golden tensor {name} is {}", if other.is_some() { "of floats" } else { "missing" }),
        }
    }
}

/// The six documents without padding (lengths 12, 33, 64, 1, 7, 20).
pub fn documents() -> Vec<Vec<u32>> {
    let inputs = GoldenFile::read("inputs.safetensors");
    let rows = inputs.i64("input_ids").chunks_exact(64).zip(inputs.i64("attention_mask").chunks_exact(64));
    rows.map(|(ids, mask)| ids.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id as u32).collect()).collect()
}

/// Special ids, zeroed in the vectors unless a name says `raw`.
pub fn special_ids() -> Vec<u32> {
    GoldenFile::read("inputs.safetensors").i64("special_ids").iter().map(|&id| id as u32).collect()
}

/// The tiny BERT.
pub fn tiny_bert() -> BertMlm {
    let model = BertMlm::load(&path("tiny-bert"), 0).expect("the tiny BERT loads");
    assert!(!model.head_is_new, "the tiny BERT has its head");
    model
}

/// Every golden loss on the tiny BERT with what its document vectors are: activation, special ids zeroed or not.
pub const LOSSES: [(&str, Activation, bool); 16] = [
    ("infonce_hardneg", Activation::Splade, true),
    ("infonce_inbatch_t1", Activation::Splade, true),
    ("infonce_inbatch_t0.05", Activation::Splade, true),
    ("kl_t1", Activation::Splade, true),
    ("kl_t2", Activation::Splade, true),
    ("kl_t2_scaled", Activation::Splade, true),
    ("kl_inbatch_t1", Activation::Splade, true),
    ("marginmse", Activation::Splade, true),
    ("flops", Activation::Splade, true),
    ("flops_grouped", Activation::Splade, true),
    ("flops_l0mask", Activation::Splade, true),
    ("flops_grouped_l0mask", Activation::Splade, true),
    ("l1", Activation::Splade, true),
    ("anti_zero", Activation::Splade, true),
    ("combined", Activation::Splade, true),
    ("combined_l0_raw", Activation::L0, false),
];

/// The largest |a − b|; both have one length.
pub fn max_difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "tensors of different sizes");
    a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).abs()).fold(0.0, nan_max)
}

/// The largest |a|.
pub fn max_abs(a: &[f32]) -> f64 {
    a.iter().map(|v| f64::from(v.abs())).fold(0.0, nan_max)
}

/// A maximum that does not lose NaN.
fn nan_max(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// Fails where a deviation is above its tolerance (or NaN); gives the deviation as a share of it.
fn within(what: &str, deviation: f64, tolerance: f64) -> f64 {
    assert!(deviation <= tolerance, "{what}: deviates by {deviation:.3e}, tolerance {tolerance:.3e}");
    deviation / tolerance
}

/// Forward of documents, each with its place among `all` as its dropout key.
fn forward(
    backend: &dyn Backend,
    model: &BertMlm,
    places: &[usize],
    dropout: Option<Dropout>,
    keep: bool,
) -> (TokenBatch, Forward) {
    let all = documents();
    let chosen: Vec<&[u32]> = places.iter().map(|&i| all[i].as_slice()).collect();
    let mut batch = TokenBatch::new(&chosen);
    batch.document_keys = places.iter().map(|&i| i as u64).collect();
    let forward = backend.forward(&model.parameters, &batch, dropout, keep).expect("the forward succeeds");
    (batch, forward)
}

/// Pooled logits (2e-5), argmax (exact) and both activations (1e-5), however the documents are batched.
pub fn check_forward(backend: &dyn Backend) -> f64 {
    let model = tiny_bert();
    let expected = GoldenFile::read("tiny-bert/outputs.safetensors");
    let special = special_ids();
    let (pooled, argmax) = (expected.f32("pooled.neginf"), expected.i64("pooled.neginf.argmax"));
    let mut worst = 0.0f64;
    let batchings: [&[&[usize]]; 4] = [
        &[&[0, 1, 2, 3, 4, 5]],
        &[&[0], &[1], &[2], &[3], &[4], &[5]],
        &[&[5, 0, 3], &[2, 4, 1]],
        &[&[4, 4, 1], &[0, 3, 2, 5]],
    ];
    for places in batchings.into_iter().flatten() {
        for keep in [false, true] {
            let (_, got) = forward(backend, &model, places, None, keep);
            assert_eq!(got.state.is_some(), keep, "a state is kept when it was asked for");
            for (row, &document) in places.iter().enumerate() {
                let of = |values: &[f32]| values[document * VOCABULARY..(document + 1) * VOCABULARY].to_vec();
                let row_pooled = &got.pooled[row * VOCABULARY..(row + 1) * VOCABULARY];
                let what = format!("document {document} in batch {places:?}");
                worst = worst.max(within(&format!("{what}, pooled"), max_difference(row_pooled, &of(pooled)), 2e-5));
                for j in 0..VOCABULARY {
                    let (at, want) = (got.argmax[row * VOCABULARY + j], argmax[document * VOCABULARY + j]);
                    assert_eq!(i64::from(at), want, "{what}, argmax of entry {j}");
                }
                for (name, activation) in [("splade", Activation::Splade), ("l0", Activation::L0)] {
                    let mut weights: Vec<f32> = row_pooled.iter().map(|&v| activation.apply(v)).collect();
                    let raw = expected.f32(&format!("sparse.{name}.raw"));
                    worst = worst.max(within(&format!("{what}, {name} raw"), max_difference(&weights, &of(raw)), 1e-5));
                    for &id in &special {
                        weights[id as usize] = 0.0;
                    }
                    let zeroed = expected.f32(&format!("sparse.{name}"));
                    worst = worst.max(within(&format!("{what}, {name}"), max_difference(&weights, &of(zeroed)), 1e-5));
                }
            }
        }
    }
    worst
}

/// dL/d pooled of a golden loss: its gradient at the vectors, through activation and zeroing.
pub fn pooled_gradient(loss: &GoldenFile, pooled: &[f32], activation: Activation, zeroed: &[u32]) -> Vec<f32> {
    let gradient = loss.f32("rep.docs").iter().zip(pooled).enumerate();
    gradient
        .map(|(i, (g, &v))| {
            let silent = zeroed.contains(&((i % VOCABULARY) as u32));
            if silent { 0.0 } else { g * activation.derivative(v) }
        })
        .collect()
}

/// The gradient of every parameter for every golden loss: all documents at once, and accumulated over three
/// micro-batches. Per tensor |Δ| ≤ 3e-5 · max|tensor| + 1e-6 · max over the file (1e-4 for τ = 0.05).
pub fn check_gradients(backend: &dyn Backend) -> f64 {
    let model = tiny_bert();
    let special = special_ids();
    let mut worst = 0.0f64;
    for (name, activation, zero) in LOSSES {
        let loss = GoldenFile::read(&format!("losses/grad_{name}.safetensors"));
        let zeroed = if zero { special.as_slice() } else { &[] };
        let scale = if name.ends_with("_t0.05") { 1e-4 } else { 3e-5 };
        let specs = model.parameters.specs();
        let largest = specs.iter().map(|s| max_abs(loss.f32(&s.name))).fold(0.0, f64::max);
        assert!(largest > 0.0, "{name}: a golden gradient is not zero everywhere");
        let micro_batchings: [&[&[usize]]; 2] = [&[&[0, 1, 2, 3, 4, 5]], &[&[3, 0], &[5, 1, 4], &[2]]];
        for micro_batches in micro_batchings {
            let mut gradient = vec![0.0f32; model.parameters.len()];
            for places in micro_batches {
                let (batch, got) = forward(backend, &model, places, None, true);
                let mut pooled = vec![0.0f32; 6 * VOCABULARY];
                for (row, &document) in got.pooled.chunks_exact(VOCABULARY).zip(places.iter()) {
                    pooled[document * VOCABULARY..(document + 1) * VOCABULARY].copy_from_slice(row);
                }
                let all = pooled_gradient(&loss, &pooled, activation, zeroed);
                let own: Vec<f32> =
                    places.iter().flat_map(|&d| all[d * VOCABULARY..(d + 1) * VOCABULARY].iter().copied()).collect();
                backend.backward(&model.parameters, &batch, got, &own, &mut gradient).expect("the backward succeeds");
            }
            for spec in specs {
                let want = loss.f32(&spec.name);
                let got = &gradient[spec.offset..spec.offset + spec.len()];
                let what = format!("{name}, {} micro-batches, {}", micro_batches.len(), spec.name);
                let tolerance = scale * max_abs(want) + 1e-6 * largest;
                worst = worst.max(within(&what, max_difference(got, want), tolerance));
            }
        }
    }
    worst
}

/// Rates as BERT is trained with, and higher ones for the attention so that a wrong index shows.
pub const DROPOUT: Dropout = Dropout { hidden: 0.1, attention: 0.2, seed: 42, step: 7 };

/// A gradient at the pooled logits that reaches every entry: a fixed pattern without zeros.
pub(crate) fn dense_gradient(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 0.9995).collect()
}

/// With a gradient in every pooled entry and dropout on, every parameter gets one: finite, and not 0 except
/// where the network never reads it.
pub fn check_every_parameter_gets_its_gradient(backend: &dyn Backend) {
    let model = tiny_bert();
    let places = [0, 1, 2, 3, 4, 5];
    let (batch, got) = forward(backend, &model, &places, Some(DROPOUT), true);
    let mut gradient = vec![0.0f32; model.parameters.len()];
    let upstream = dense_gradient(got.pooled.len());
    backend.backward(&model.parameters, &batch, got, &upstream, &mut gradient).expect("the backward succeeds");
    for spec in model.parameters.specs() {
        let values = &gradient[spec.offset..spec.offset + spec.len()];
        assert!(values.iter().all(|v| v.is_finite()), "{}: a gradient is not finite", spec.name);
        let largest = max_abs(values);
        if spec.name.ends_with("attention.self.key.bias") {
            // Without dropout exactly 0; dropout after the softmax makes no difference to that.
            assert!(largest < 1e-4, "{}: {largest}, but softmax ignores a constant per query", spec.name);
            continue;
        }
        let zeros = values.iter().filter(|v| **v == 0.0).count();
        // Token type 1 is never read; document 2 fills all 64 positions; the decoder reaches every word.
        let unread = if spec.name.ends_with("token_type_embeddings.weight") { spec.len() / 2 } else { 0 };
        assert_eq!(zeros, unread, "{}: values with a gradient of exactly 0", spec.name);
    }
}

/// Dropout follows its key alone: the same in any batch, another at another step, nothing at rate 0.
pub fn check_dropout(backend: &dyn Backend) {
    let model = tiny_bert();
    let all = forward(backend, &model, &[0, 1, 2, 3, 4, 5], Some(DROPOUT), false).1.pooled;
    let again = forward(backend, &model, &[0, 1, 2, 3, 4, 5], Some(DROPOUT), true).1.pooled;
    assert_eq!(all, again, "the same step gives the same masks, bit for bit");
    let (_, some) = forward(backend, &model, &[5, 2], Some(DROPOUT), false);
    for (row, document) in some.pooled.chunks_exact(VOCABULARY).zip([5, 2]) {
        let expected = &all[document * VOCABULARY..(document + 1) * VOCABULARY];
        within("a document's masks in another batch", max_difference(row, expected), 2e-5);
    }
    let next = forward(backend, &model, &[0, 1, 2, 3, 4, 5], Some(Dropout { step: 8, ..DROPOUT }), false).1.pooled;
    assert!(max_difference(&all, &next) > 0.1, "another step gives other masks");
    let plain = forward(backend, &model, &[0, 1, 2, 3, 4, 5], None, false).1.pooled;
    assert!(max_difference(&all, &plain) > 0.1, "dropout changes the pooled logits");
    let zero = Dropout { hidden: 0.0, attention: 0.0, ..DROPOUT };
    let none = forward(backend, &model, &[0, 1, 2, 3, 4, 5], Some(zero), false).1.pooled;
    assert_eq!(none, plain, "a rate of 0 is no dropout");
}

/// The slope of Σ c·pooled along a random direction in parameter space, by central differences and by the
/// backward, with dropout on: guards the gradient through the masks, which the golden files do not have.
pub fn check_slope_with_dropout(backend: &dyn Backend) {
    let mut model = tiny_bert();
    let places = [0, 1, 3, 4];
    let (batch, got) = forward(backend, &model, &places, Some(DROPOUT), true);
    let coefficients = dense_gradient(got.pooled.len());
    let mut gradient = vec![0.0f32; model.parameters.len()];
    backend.backward(&model.parameters, &batch, got, &coefficients, &mut gradient).expect("the backward succeeds");
    // The direction is the gradient itself, to length 1: the slope is its norm, well above rounding.
    let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    let start = model.parameters.data().to_vec();
    let step = 2e-3;
    let mut value = |sign: f64| {
        for ((p, s), g) in model.parameters.data_mut().iter_mut().zip(&start).zip(&gradient) {
            *p = (f64::from(*s) + sign * step * f64::from(*g) / norm) as f32;
        }
        let (_, got) = forward(backend, &model, &places, Some(DROPOUT), false);
        got.pooled.iter().zip(&coefficients).map(|(v, c)| f64::from(*v) * f64::from(*c)).sum::<f64>()
    };
    let slope = (value(1.0) - value(-1.0)) / (2.0 * step);
    within("slope along the gradient, relative", (slope / norm - 1.0).abs(), 1e-2);
}

/// Two backends on one model: pooled logits and the gradient of every parameter, with and without dropout.
/// Per tensor |Δ| ≤ 3e-5 · max|tensor| + 1e-6 · max over all. Entries whose two best positions are closer
/// than float32 can tell get no gradient, as either may win.
pub fn check_agreement(a: &dyn Backend, b: &dyn Backend, model: &BertMlm, batch: &TokenBatch) -> f64 {
    let mut worst = 0.0f64;
    for dropout in [None, Some(DROPOUT)] {
        let run = |backend: &dyn Backend| {
            backend.forward(&model.parameters, batch, dropout, true).expect("the forward succeeds")
        };
        let (first, second) = (run(a), run(b));
        let scale = max_abs(&first.pooled).max(1.0);
        worst = worst.max(within("pooled", max_difference(&first.pooled, &second.pooled), 2e-5 * scale));
        let mut upstream = dense_gradient(first.pooled.len());
        let mut unequal = 0;
        for (g, (x, y)) in upstream.iter_mut().zip(first.argmax.iter().zip(&second.argmax)) {
            if x != y {
                *g = 0.0;
                unequal += 1;
            }
        }
        assert!(unequal * 1000 <= upstream.len(), "argmax differs in {unequal} of {} entries", upstream.len());
        let gradient = |backend: &dyn Backend, forward: Forward| {
            let mut out = vec![0.0f32; model.parameters.len()];
            backend.backward(&model.parameters, batch, forward, &upstream, &mut out).expect("the backward succeeds");
            out
        };
        let (first, second) = (gradient(a, first), gradient(b, second));
        let largest = max_abs(&first);
        for spec in model.parameters.specs() {
            let (x, y) = (slice(&model.parameters, &spec.name, &first), slice(&model.parameters, &spec.name, &second));
            let tolerance = 3e-5 * max_abs(x) + 1e-6 * largest;
            worst = worst.max(within(&format!("gradient of {}", spec.name), max_difference(x, y), tolerance));
        }
    }
    worst
}

/// A parameter's part of a buffer laid out like the parameters.
pub fn slice<'a>(parameters: &Parameters, name: &str, buffer: &'a [f32]) -> &'a [f32] {
    let spec = parameters.spec(name).unwrap_or_else(|| panic!("no parameter {name}"));
    &buffer[spec.offset..spec.offset + spec.len()]
}
