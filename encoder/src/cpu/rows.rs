//! Fused loops over the rows of `[T, width]` matrices: bias, GELU, dropout, residual and `LayerNorm`, forward
//! and backward. Rows go to the threads in blocks; sums over rows are added up block by block in their order,
//! so that the result does not depend on the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::level::Level;
use super::math;
use super::tokens::{NO_MASKS, RowMasks, drop_elements};
use super::weights::Norm;
use super::workspace::{Normed, ensure};

/// Rows of a block.
const BLOCK: usize = 32;

/// Writes the bias into every row: a product is then added to it.
pub(super) fn fill_with_bias(x: &mut [f32], bias: &[f32]) {
    x.par_chunks_mut(bias.len() * BLOCK).for_each(|rows| {
        for row in rows.chunks_exact_mut(bias.len()) {
            row.copy_from_slice(bias);
        }
    });
}

/// u ← x + bias in place, and y = GELU(u).
pub(super) fn bias_gelu(level: Level, x: &mut [f32], bias: &[f32], y: &mut [f32]) {
    let width = bias.len();
    x.par_chunks_mut(width * BLOCK).zip(y.par_chunks_mut(width * BLOCK)).for_each(|(x, y)| {
        level.run(
            #[inline(always)]
            || {
                for (x, y) in x.chunks_exact_mut(width).zip(y.chunks_exact_mut(width)) {
                    for ((x, y), bias) in x.iter_mut().zip(y).zip(bias) {
                        let u = *x + bias;
                        *x = u;
                        *y = math::gelu(u);
                    }
                }
            },
        );
    });
}

/// Given u (before the GELU) and dL/dy, makes u the GELU's value and the gradient that of u; adds the
/// gradient's column sums, those of the bias, to `bias_gradient`.
pub(super) fn gelu_backward(
    level: Level,
    u: &mut [f32],
    gradient: &mut [f32],
    bias_gradient: &mut [f32],
    partials: &mut Vec<f32>,
) {
    let width = bias_gradient.len();
    let blocks = u.len().div_ceil(width * BLOCK);
    let partials = ensure(partials, blocks * width);
    u.par_chunks_mut(width * BLOCK)
        .zip(gradient.par_chunks_mut(width * BLOCK))
        .zip(partials.par_chunks_mut(width))
        .for_each(|((u, gradient), sums)| {
            level.run(
                #[inline(always)]
                || {
                    sums.fill(0.0);
                    for (u, gradient) in u.chunks_exact_mut(width).zip(gradient.chunks_exact_mut(width)) {
                        for ((u, gradient), sum) in u.iter_mut().zip(gradient).zip(sums.iter_mut()) {
                            let (value, slope) = math::gelu_with_slope(*u);
                            *u = value;
                            *gradient *= slope;
                            *sum += *gradient;
                        }
                    }
                },
            );
        });
    add_blocks(partials, bias_gradient);
}

/// Adds the column sums of x to `sums`.
pub(super) fn add_column_sums(level: Level, x: &[f32], sums: &mut [f32], partials: &mut Vec<f32>) {
    let width = sums.len();
    let blocks = x.len().div_ceil(width * BLOCK);
    let partials = ensure(partials, blocks * width);
    x.par_chunks(width * BLOCK).zip(partials.par_chunks_mut(width)).for_each(|(x, partial)| {
        level.run(
            #[inline(always)]
            || {
                partial.fill(0.0);
                for row in x.chunks_exact(width) {
                    math::add(partial, row);
                }
            },
        );
    });
    add_blocks(partials, sums);
}

/// Adds the partial sums of all blocks, in their order.
fn add_blocks(partials: &[f32], sums: &mut [f32]) {
    for partial in partials.chunks_exact(sums.len()) {
        math::add(sums, partial);
    }
}

/// Scale and shift of a `LayerNorm`, `[H]` each, and what is added to the variance.
#[derive(Clone, Copy)]
pub(super) struct NormWeights<'a> {
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) epsilon: f32,
}

/// What is done to x before it is normalised: z = (x + bias) · mask + residual.
#[derive(Clone, Copy)]
pub(super) struct Before<'a> {
    pub(super) bias: Option<&'a [f32]>,
    pub(super) masks: &'a RowMasks<'a>,
    pub(super) residual: Option<&'a [f32]>,
}

/// Nothing.
pub(super) static NOTHING: Before<'static> = Before { bias: None, masks: &NO_MASKS, residual: None };

/// `LayerNorm` in place over `normed.rows` as they come out of a product: they become (z − mean)/σ, and
/// y = that · weight + bias, · `after`.
pub(super) fn norm(
    level: Level,
    normed: &mut Normed,
    rows: usize,
    before: Before,
    weights: NormWeights,
    after: &RowMasks,
    y: &mut [f32],
) {
    let width = weights.weight.len();
    let deviations = ensure(&mut normed.inverse_deviation, rows);
    normed.rows[..rows * width]
        .par_chunks_mut(width * BLOCK)
        .zip(y[..rows * width].par_chunks_mut(width * BLOCK))
        .zip(deviations.par_chunks_mut(BLOCK))
        .enumerate()
        .for_each(|(block, ((x, y), deviations))| {
            level.run(
                #[inline(always)]
                || {
                    let lines = x.chunks_exact_mut(width).zip(y.chunks_exact_mut(width)).zip(deviations);
                    for (i, ((x, y), deviation)) in lines.enumerate() {
                        let row = block * BLOCK + i;
                        if let Some(bias) = before.bias {
                            math::add(x, bias);
                        }
                        drop_elements(x, before.masks.row(row, width));
                        if let Some(residual) = before.residual {
                            math::add(x, &residual[row * width..(row + 1) * width]);
                        }
                        let mean = math::sum(x, |x| x) / width as f32;
                        let variance = math::sum(x, |x| (x - mean) * (x - mean)) / width as f32;
                        *deviation = 1.0 / (variance + weights.epsilon).sqrt();
                        for (((x, y), weight), bias) in
                            x.iter_mut().zip(y.iter_mut()).zip(weights.weight).zip(weights.bias)
                        {
                            *x = (*x - mean) * *deviation;
                            *y = *x * weight + bias;
                        }
                        drop_elements(y, after.row(row, width));
                    }
                },
            );
        });
}

/// The output y of a `LayerNorm` again, from its normalised rows.
pub(super) fn norm_output(level: Level, normed: &Normed, weights: NormWeights, after: &RowMasks, y: &mut [f32]) {
    let width = weights.weight.len();
    let x = &normed.rows[..y.len()];
    y.par_chunks_mut(width * BLOCK).zip(x.par_chunks(width * BLOCK)).enumerate().for_each(|(block, (y, x))| {
        level.run(
            #[inline(always)]
            || {
                for (i, (y, x)) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
                    for (((y, x), weight), bias) in y.iter_mut().zip(x).zip(weights.weight).zip(weights.bias) {
                        *y = x * weight + bias;
                    }
                    drop_elements(y, after.row(block * BLOCK + i, width));
                }
            },
        );
    });
}

/// What leads through a `LayerNorm` on the way back.
pub(super) struct NormBackward<'a> {
    pub(super) normed: &'a Normed,
    /// Its scale, `[H]`.
    pub(super) weight: &'a [f32],
    /// Dropout of its input's branch.
    pub(super) before: &'a RowMasks<'a>,
    /// Dropout of its output.
    pub(super) after: &'a RowMasks<'a>,
}

/// Where the gradients of parameters around a `LayerNorm` lie in the flat buffer, `[H]` each.
pub(super) struct NormPlaces<'a> {
    pub(super) norm: &'a Norm,
    /// The bias that was added before it.
    pub(super) bias_before: Option<&'a Range<usize>>,
}

/// Turns dL/dy into dL/dz (that of the residual) in place, and writes dL/dx = dL/dz · mask to `branch`; adds
/// to the parameters' gradients in `sums`.
///
/// With g = dL/dy · weight and n the normalised row: dL/dz = (g − mean(g) − n · mean(g n)) / σ.
pub(super) fn norm_backward(
    level: Level,
    way: &NormBackward,
    gradient: &mut [f32],
    branch: Option<&mut [f32]>,
    places: &NormPlaces,
    sums: &mut [f32],
    partials: &mut Vec<f32>,
) {
    let NormBackward { normed, weight, before, after } = way;
    let width = weight.len();
    let blocks = gradient.len().div_ceil(width * BLOCK);
    let partials = ensure(partials, blocks * width * 3);
    // Without a branch of its own every block gets an empty one.
    let mut branches: Vec<&mut [f32]> = match branch {
        Some(branch) => branch.chunks_mut(width * BLOCK).collect(),
        None => (0..blocks).map(|_| <&mut [f32]>::default()).collect(),
    };
    gradient
        .par_chunks_mut(width * BLOCK)
        .zip(branches.par_iter_mut())
        .zip(normed.rows.par_chunks(width * BLOCK))
        .zip(partials.par_chunks_mut(width * 3))
        .enumerate()
        .for_each(|(block, (((gradient, branch), normed_rows), partial))| {
            level.run(
                #[inline(always)]
                || {
                    partial.fill(0.0);
                    let (weight_sums, rest) = partial.split_at_mut(width);
                    let (bias_sums, before_sums) = rest.split_at_mut(width);
                    for (i, (g, n)) in gradient.chunks_exact_mut(width).zip(normed_rows.chunks_exact(width)).enumerate()
                    {
                        let row = block * BLOCK + i;
                        drop_elements(g, after.row(row, width));
                        for ((((g, n), weight), weight_sum), bias_sum) in
                            g.iter_mut().zip(n).zip(*weight).zip(weight_sums.iter_mut()).zip(bias_sums.iter_mut())
                        {
                            *weight_sum += *g * n;
                            *bias_sum += *g;
                            *g *= weight;
                        }
                        let mean = math::sum(g, |g| g) / width as f32;
                        let slope = math::dot(g, n) / width as f32;
                        let deviation = normed.inverse_deviation[row];
                        for (g, n) in g.iter_mut().zip(n) {
                            *g = (*g - mean - n * slope) * deviation;
                        }
                        if let Some(out) = branch.get_mut(i * width..(i + 1) * width) {
                            out.copy_from_slice(g);
                            drop_elements(out, before.row(row, width));
                            math::add(before_sums, out);
                        }
                    }
                },
            );
        });
    for partial in partials.chunks_exact(width * 3) {
        math::add(&mut sums[places.norm.weight.clone()], &partial[..width]);
        math::add(&mut sums[places.norm.bias.clone()], &partial[width..2 * width]);
        if let Some(bias) = places.bias_before {
            math::add(&mut sums[bias.clone()], &partial[2 * width..]);
        }
    }
}
