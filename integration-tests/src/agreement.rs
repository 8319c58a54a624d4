//! How far a backend is from another one or from the golden values in what training sees: the loss, and each
//! parameter's gradient as a direction. For arithmetic that is not f32's on the CPU: bf16, and GPUs.

use nsparse_core::SparseVector;
use nsparse_core::model_dir::Activation;
use nsparse_encoder::{Backend, BertMlm, Dropout, TokenBatch};
use nsparse_trainer::losses::{CandidateSet, Scores, infonce};
use nsparse_trainer::regularisers::flops;

use crate::golden::{VOCABULARY, dense_gradient, documents, slice, special_ids, tiny_bert};
use crate::golden_losses::{self, sum};

/// What two backends make of one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Apart {
    /// |Δ loss| as a share of the loss, or of 1 if that is larger.
    pub loss: f64,
    /// The largest ‖Δ gradient‖ / ‖gradient‖ over parameters, and whose it is.
    pub gradient: (f64, String),
    /// The smallest cosine of a parameter's two gradients, and whose it is.
    pub cosine: (f64, String),
    /// The share of vocabulary entries that another position won; 0 where it was not asked.
    pub other_winners: f64,
}

/// The golden losses of document vectors; those that count active dimensions are left out, as rounding can change
/// the count.
const LOSSES: [&str; 11] = [
    "infonce_hardneg",
    "infonce_inbatch_t1",
    "infonce_inbatch_t0.05",
    "kl_t1",
    "kl_t2",
    "kl_t2_scaled",
    "kl_inbatch_t1",
    "marginmse",
    "flops",
    "flops_grouped",
    "l1",
];

/// The largest |Δ| of a golden loss, as a share of the loss or of 1 if that is larger, and its name.
pub fn golden_losses(backend: &dyn Backend) -> (f64, &'static str) {
    let model = tiny_bert();
    let batch = TokenBatch::new(&documents());
    let pooled = backend.forward(&model.parameters, &batch, None, false).expect("the forward succeeds").pooled;
    let special = special_ids();
    let weight = |(i, &v): (usize, &f32)| {
        if special.contains(&((i % VOCABULARY) as u32)) { 0.0 } else { Activation::Splade.apply(v) }
    };
    let vectors: Vec<f32> = pooled.iter().enumerate().map(weight).collect();
    let apart = LOSSES.map(|name| {
        let is_penalty = name.starts_with("flops") || name == "l1";
        let term = [(name, 1.0)];
        let (losses, penalties) = if is_penalty { (&[][..], &term[..]) } else { (&term[..], &[][..]) };
        let expected = golden_losses::value(name);
        ((sum(losses, penalties, &vectors).0 - expected).abs() / expected.abs().max(1.0), name)
    });
    apart.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).expect("there are losses")
}

/// `InfoNCE` with a FLOPS penalty on a batch whose even documents have a query each, their first tokens, and the
/// gradient of all parameters.
pub fn loss_and_gradient(
    backend: &dyn Backend,
    model: &BertMlm,
    batch: &TokenBatch,
    dropout: Option<Dropout>,
) -> (f64, Vec<f32>) {
    let vocabulary = model.config.vocab_size;
    let forward = backend.forward(&model.parameters, batch, dropout, true).expect("the forward succeeds");
    let activation = Activation::Splade;
    let vectors: Vec<f32> = forward.pooled.iter().map(|&v| activation.apply(v)).collect();
    let positives: Vec<usize> = (0..batch.documents()).step_by(2).collect();
    let queries: Vec<SparseVector> = positives
        .iter()
        .map(|&document| {
            let mut dense = vec![0.0; vocabulary];
            batch.document(document).iter().take(8).for_each(|&id| dense[id as usize] = 1.0);
            SparseVector::from_dense(&dense)
        })
        .collect();
    let queries: Vec<&SparseVector> = queries.iter().collect();
    let candidates: Vec<_> = positives
        .iter()
        .map(|&target| Some(CandidateSet { target, columns: (0..batch.documents()).collect() }))
        .collect();
    let ranking = infonce(&Scores::of(&queries, &vectors, vocabulary), &candidates, 1.0);
    let mut upstream = vec![0.0; vectors.len()];
    ranking.gradient.backward_documents(&queries, &mut upstream, vocabulary);
    let value = ranking.value + flops(&vectors, vocabulary, 0, 1e-3, &mut upstream) * 1e-3;
    upstream.iter_mut().zip(&forward.pooled).for_each(|(g, &v)| *g *= activation.derivative(v));
    let mut gradient = vec![0.0; model.parameters.len()];
    backend.backward(&model.parameters, batch, forward, &upstream, &mut gradient).expect("the backward succeeds");
    (value, gradient)
}

/// Loss and gradient of two backends on a batch, the gradient being the loss's.
pub fn compare(
    a: &dyn Backend,
    b: &dyn Backend,
    model: &BertMlm,
    batch: &TokenBatch,
    dropout: Option<Dropout>,
) -> Apart {
    let (first, second) = (loss_and_gradient(a, model, batch, dropout), loss_and_gradient(b, model, batch, dropout));
    let mut out = apart(model, &first.1, &second.1);
    out.loss = (first.0 - second.0).abs() / first.0.abs().max(1.0);
    out
}

/// As [`compare`], but for the gradients, which are those of one fixed sum of pooled logits. A loss's own gradient
/// jumps where rounding takes a logit over the activation's kink or lets another position win; with random weights,
/// whose documents are all alike, one such jump outweighs the rest. Entries that another position won get none.
pub fn compare_at_fixed_gradient(
    a: &dyn Backend,
    b: &dyn Backend,
    model: &BertMlm,
    batch: &TokenBatch,
    dropout: Option<Dropout>,
) -> Apart {
    let loss = compare(a, b, model, batch, dropout).loss;
    let forward =
        |backend: &dyn Backend| backend.forward(&model.parameters, batch, dropout, true).expect("the forward succeeds");
    let (first, second) = (forward(a), forward(b));
    let mut upstream = dense_gradient(first.pooled.len());
    let mut other_winners = 0;
    for (g, (x, y)) in upstream.iter_mut().zip(first.argmax.iter().zip(&second.argmax)) {
        if x != y {
            *g = 0.0;
            other_winners += 1;
        }
    }
    let gradient = |backend: &dyn Backend, forward| {
        let mut out = vec![0.0; model.parameters.len()];
        backend.backward(&model.parameters, batch, forward, &upstream, &mut out).expect("the backward succeeds");
        out
    };
    let mut out = apart(model, &gradient(a, first), &gradient(b, second));
    out.loss = loss;
    out.other_winners = f64::from(other_winners) / upstream.len() as f64;
    out
}

/// Two gradients, parameter by parameter. The key's bias is left out: softmax takes no notice of a constant a query,
/// so its gradient is rounding alone, and is only asked to be small.
fn apart(model: &BertMlm, first: &[f32], second: &[f32]) -> Apart {
    let whole = norm(first);
    assert!(whole > 0.0 && norm(second).is_finite(), "there is a gradient, and it is finite");
    let mut out = Apart { loss: 0.0, gradient: (0.0, String::new()), cosine: (1.0, String::new()), other_winners: 0.0 };
    for spec in model.parameters.specs() {
        let (x, y) = (slice(&model.parameters, &spec.name, first), slice(&model.parameters, &spec.name, second));
        if spec.name.ends_with("attention.self.key.bias") {
            assert!(norm(x) <= 1e-3 * whole && norm(y) <= 1e-2 * whole, "{}: {} and {}", spec.name, norm(x), norm(y));
            continue;
        }
        let difference: Vec<f32> = x.iter().zip(y).map(|(x, y)| x - y).collect();
        let dot: f64 = x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
        let (share, cosine) = (norm(&difference) / norm(x), dot / (norm(x) * norm(y)));
        if share > out.gradient.0 || share.is_nan() {
            out.gradient = (share, spec.name.clone());
        }
        if cosine < out.cosine.0 || cosine.is_nan() {
            out.cosine = (cosine, spec.name.clone());
        }
    }
    out
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}
