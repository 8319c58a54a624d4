//! FLOPS and its relatives: the square of each token's mean weight, summed over the vocabulary.

use super::active;

/// Which documents a FLOPS penalty looks at, and how much each token counts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mask<'a> {
    /// Documents with at most so many active dimensions are left out; 0: none is. This is the l0 mask of
    /// arXiv 2504.14839: the comparison is strict, the mask has no slope, and means still divide by all
    /// documents.
    pub spare_below: usize,
    /// One factor `f_j` a token, taken inside the square: `Σ_j (f_j · mean_j)²`. Without it all are 1.
    pub factors: Option<&'a [f32]>,
}

/// FLOPS (arXiv 2004.05665), as sentence-transformers takes it: `Σ_j (mean over documents of w_ij)²`. Documents
/// with at most `spare_below` active dimensions are left out (the l0 mask of arXiv 2504.14839); the mean
/// still divides by all. Adds `weight · gradient`, returns the bare value.
pub fn flops(weights: &[f32], vocab: usize, spare_below: usize, weight: f64, gradient: &mut [f32]) -> f64 {
    masked_flops(weights, vocab, 1, Mask { spare_below, factors: None }, weight, gradient)
}

/// FLOPS by slots, as OpenSearch's tuning sample takes it: documents stand query-major with `slots` a query,
/// `Σ_s Σ_j (mean over queries of w_(b,s),j)²`. About `slots` times [`flops`].
pub fn flops_grouped(
    weights: &[f32],
    vocab: usize,
    slots: usize,
    spare_below: usize,
    weight: f64,
    gradient: &mut [f32],
) -> f64 {
    masked_flops(weights, vocab, slots, Mask { spare_below, factors: None }, weight, gradient)
}

/// Both forms with a mask and a factor for each token; one slot is the ungrouped form. Gradient of a weight above
/// 0: `2 · f_j² · mean_j / documents of the slot`.
pub fn masked_flops(
    weights: &[f32],
    vocab: usize,
    slots: usize,
    mask: Mask<'_>,
    weight: f64,
    gradient: &mut [f32],
) -> f64 {
    let n = weights.len() / vocab;
    let groups: Vec<Vec<usize>> = (0..slots).map(|slot| (slot..n).step_by(slots).collect()).collect();
    flops_of_groups(weights, vocab, &groups, mask, weight, gradient)
}

/// As [`masked_flops`], the groups given as rows; a row may stand in several groups or in none.
pub fn flops_of_groups(
    weights: &[f32],
    vocab: usize,
    groups: &[Vec<usize>],
    mask: Mask<'_>,
    weight: f64,
    gradient: &mut [f32],
) -> f64 {
    groups.iter().map(|rows| flops_of_rows(weights, vocab, rows, mask, weight, gradient)).sum()
}

fn flops_of_rows(
    weights: &[f32],
    vocab: usize,
    rows: &[usize],
    mask: Mask<'_>,
    weight: f64,
    gradient: &mut [f32],
) -> f64 {
    if rows.is_empty() {
        return 0.0;
    }
    let divisor = rows.len() as f64;
    let counted: Vec<usize> = rows
        .iter()
        .copied()
        .filter(|&r| mask.spare_below == 0 || active(&weights[r * vocab..(r + 1) * vocab]) > mask.spare_below)
        .collect();
    let mut means = vec![0.0f64; vocab];
    for &row in &counted {
        for (mean, &w) in means.iter_mut().zip(&weights[row * vocab..(row + 1) * vocab]) {
            *mean += f64::from(w);
        }
    }
    // mean · f² is what the slope needs, mean² · f² the value.
    let mut value = 0.0;
    for (j, mean) in means.iter_mut().enumerate() {
        *mean /= divisor;
        let factor = mask.factors.map_or(1.0, |f| f64::from(f[j]));
        value += (factor * *mean).powi(2);
        *mean *= factor * factor;
    }
    for &row in &counted {
        let range = row * vocab..(row + 1) * vocab;
        for ((g, &w), mean) in gradient[range.clone()].iter_mut().zip(&weights[range]).zip(&means) {
            if w > 0.0 {
                *g += (weight * 2.0 * mean / divisor) as f32;
            }
        }
    }
    value
}
