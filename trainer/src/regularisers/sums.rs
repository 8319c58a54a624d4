//! Penalties on sums of weights: L1, and the term that keeps a batch from becoming all zero.

/// L1: mean over documents of `Σ_j w_ij`.
pub fn l1(weights: &[f32], vocab: usize, weight: f64, gradient: &mut [f32]) -> f64 {
    let n = (weights.len() / vocab).max(1) as f64;
    let slope = (weight / n) as f32;
    for (g, &w) in gradient.iter_mut().zip(weights) {
        if w > 0.0 {
            *g += slope;
        }
    }
    weights.iter().map(|&w| f64::from(w)).sum::<f64>() / n
}

/// Value of the anti-zero term, with the slope of each query weight above 0.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct AntiZero {
    /// `1/(Σ q)² + 1/(Σ d)²`.
    pub value: f64,
    /// `−2/(Σ q)³`, the same for every entry; for query weights that are learned.
    pub query_slope: f64,
}

/// Anti-zero, as naver/splade takes it: `1/(Σ q)² + 1/(Σ d)²`, the sums over all weights of all queries and of all
/// documents of the batch. It grows without bound as a batch becomes zero. A side whose sum is 0 already counts
/// nothing, since no weight there has a slope to climb back on. Adds `weight · gradient`.
pub fn anti_zero(query_sum: f64, weights: &[f32], weight: f64, gradient: &mut [f32]) -> AntiZero {
    let term = |sum: f64| if sum > 0.0 { (sum.powi(-2), -2.0 * sum.powi(-3)) } else { (0.0, 0.0) };
    let (of_documents, slope) = term(weights.iter().map(|&w| f64::from(w)).sum());
    let slope = (weight * slope) as f32;
    for (g, &w) in gradient.iter_mut().zip(weights) {
        if w > 0.0 {
            *g += slope;
        }
    }
    let (of_queries, query_slope) = term(query_sum);
    AntiZero { value: of_queries + of_documents, query_slope }
}
