//! Which vocabulary entries of a document can be above zero: an upper bound of every pooled logit from a product
//! in 8 bits, so that the product in f32 is left with a few hundred entries of thirty thousand.
//!
//! With ĥ and ŵ the rows rounded to 8 bits, h·w = ĥ·ŵ + ĥ·(w − ŵ) + (h − ĥ)·w, so by Cauchy and Schwarz
//! h·w ≤ ĥ·ŵ + ‖ĥ‖ ‖w − ŵ‖ + ‖h − ĥ‖ ‖w‖. Integer products are exact, the norms are known, and a little is added
//! for what f32 rounds on either side. An entry whose bound plus bias is not above zero is not active, whatever
//! the product in f32 would say; all others are computed in f32. So the vectors are exact.

use rayon::prelude::*;

use super::level::Level;

/// Vocabulary entries of a strip: four AVX-512 registers of 32-bit sums.
const STRIP: usize = 64;
/// Rows of a tile: with the strip 24 registers of sums.
#[cfg(target_arch = "x86_64")]
const TILE: usize = 6;

/// A row rounded to 8 bits, x ≈ scale · q, and what the rounding cost.
#[derive(Debug, Clone, Copy, Default)]
struct Rounded {
    scale: f32,
    /// ‖x‖
    norm: f32,
    /// ‖scale · q‖
    kept_norm: f32,
    /// ‖x − scale · q‖
    error: f32,
    /// Σ q
    sum: i32,
}

/// Rounds `x` to `q` (as long, −127 to 127).
#[inline(always)]
fn round(x: &[f32], q: &mut [i8]) -> Rounded {
    let max = x.iter().fold(0.0f32, |max, x| if x.abs() > max { x.abs() } else { max });
    let scale = if max > 0.0 { max / 127.0 } else { 1.0 };
    let inverse = 1.0 / scale;
    // Sixteen lanes, so that the compiler can vectorise the sums.
    let (mut norms, mut rounded, mut errors, mut sums) = ([0.0f32; 16], [0.0f32; 16], [0.0f32; 16], [0i32; 16]);
    for (x, q) in x.chunks(16).zip(q.chunks_mut(16)) {
        for (i, (&x, q)) in x.iter().zip(q).enumerate() {
            // 1.5 · 2²³: adding it rounds to an integer.
            let n = (x * inverse + 12_582_912.0) - 12_582_912.0;
            let value = n * scale;
            *q = n as i8;
            norms[i] += x * x;
            rounded[i] += value * value;
            errors[i] += (x - value) * (x - value);
            sums[i] += n as i32;
        }
    }
    // Upwards: the sums' own rounding is far below a part in ten thousand.
    let root = |lanes: [f32; 16]| (lanes.iter().map(|&x| f64::from(x)).sum::<f64>().sqrt() * 1.0001) as f32;
    Rounded { scale, norm: root(norms), kept_norm: root(rounded), error: root(errors), sum: sums.iter().sum() }
}

/// The decoder in 8 bits, made for one state of the parameters.
pub(super) struct Panels {
    /// `Parameters::version` of what it was made from.
    pub(super) version: u64,
    vocabulary: usize,
    /// Groups of four along the hidden size.
    quads: usize,
    /// Strip by strip `[quads, STRIP, 4]`, each value plus 128.
    values: Vec<u32>,
    /// Of each entry, padded to whole strips.
    scales: Vec<f32>,
    /// ‖w‖ / scale.
    norms: Vec<f32>,
    /// ‖w − ŵ‖ / scale.
    errors: Vec<f32>,
    finite: bool,
}

impl Panels {
    /// Rounds the decoder `[V, H]`.
    pub(super) fn new(level: Level, version: u64, decoder: &[f32], hidden: usize) -> Self {
        let vocabulary = decoder.len() / hidden;
        let quads = hidden.div_ceil(4);
        let padded = vocabulary.next_multiple_of(STRIP);
        let mut values = vec![0x8080_8080u32; padded * quads];
        let (mut scales, mut norms, mut errors) = (vec![1.0f32; padded], vec![0.0f32; padded], vec![0.0f32; padded]);
        values
            .par_chunks_mut(STRIP * quads)
            .zip(scales.par_chunks_mut(STRIP))
            .zip(norms.par_chunks_mut(STRIP))
            .zip(errors.par_chunks_mut(STRIP))
            .zip(decoder.par_chunks(STRIP * hidden))
            .for_each(|((((values, scales), norms), errors), decoder)| {
                let mut q = vec![0i8; quads * 4];
                level.run(
                    #[inline(always)]
                    || {
                        for (i, row) in decoder.chunks_exact(hidden).enumerate() {
                            let rounded = round(row, &mut q[..hidden]);
                            for (quad, q) in q.as_chunks::<4>().0.iter().enumerate() {
                                values[quad * STRIP + i] = u32::from_ne_bytes(q.map(|q| (i16::from(q) + 128) as u8));
                            }
                            scales[i] = rounded.scale;
                            norms[i] = rounded.norm / rounded.scale;
                            errors[i] = rounded.error / rounded.scale;
                        }
                    },
                );
            });
        let finite = norms.iter().chain(&scales).chain(&errors).all(|x| x.is_finite());
        Self { version, vocabulary, quads, values, scales, norms, errors, finite }
    }
}

/// Whether this machine and these instructions can screen at all.
pub(super) fn is_available(level: Level) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        level.is_avx512() && std::arch::is_x86_feature_detected!("avx512vnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = level;
        false
    }
}

/// What a row of the batch brings to its bound.
#[derive(Clone, Copy)]
struct RowBound {
    scale: f32,
    /// Times ‖w‖.
    error: f32,
    /// Times ‖w − ŵ‖.
    norm: f32,
    /// −128 Σ q: takes back what the decoder's 128 added.
    start: i32,
}

/// Upper bounds `[B, V]` of the pooled logits, bias included, of documents with the given rows of `[T, H]`.
/// `None` where a value is not finite.
pub(super) fn upper_bounds(
    level: Level,
    panels: &Panels,
    rows: &[f32],
    hidden: usize,
    documents: &[std::ops::Range<usize>],
    bias: &[f32],
) -> Option<Vec<f32>> {
    let count = documents.last()?.end;
    if !panels.finite || bias.iter().any(|b| !b.is_finite()) {
        return None;
    }
    let width = panels.quads * 4;
    let mut q = vec![0i8; count * width];
    // What f32 may round: in the product of H terms, in the bound itself, each relative to ‖h‖ ‖w‖.
    let slack = (hidden as f32 + 16.0) * f32::EPSILON;
    let bounds: Vec<RowBound> = q
        .par_chunks_mut(width)
        .zip(rows.par_chunks(hidden))
        .with_min_len(64)
        .map(|(q, row)| {
            let rounded = level.run(
                #[inline(always)]
                || round(row, &mut q[..hidden]),
            );
            RowBound {
                scale: rounded.scale,
                error: rounded.error + slack * rounded.norm,
                norm: rounded.kept_norm,
                start: -128 * rounded.sum,
            }
        })
        .collect();
    if bounds.iter().any(|b| !(b.scale.is_finite() && b.error.is_finite() && b.norm.is_finite())) {
        return None;
    }
    // Strip by strip `[strips, B, STRIP]`, then put in order.
    let mut maxima = vec![0.0f32; panels.scales.len() * documents.len()];
    maxima.par_chunks_mut(STRIP * documents.len()).enumerate().for_each(|(strip, maxima)| {
        let entries = strip * STRIP..(strip + 1) * STRIP;
        let values = &panels.values[strip * STRIP * panels.quads..(strip + 1) * STRIP * panels.quads];
        let (norms, errors) = (&panels.norms[entries.clone()], &panels.errors[entries.clone()]);
        for (document, out) in documents.iter().zip(maxima.as_chunks_mut::<STRIP>().0) {
            let q = &q[document.start * width..document.end * width];
            strip_maximum(values, q, &bounds[document.clone()], norms, errors, out);
            for (x, scale) in out.iter_mut().zip(&panels.scales[entries.clone()]) {
                *x *= scale;
            }
        }
    });
    let mut out = vec![0.0f32; documents.len() * panels.vocabulary];
    out.par_chunks_mut(panels.vocabulary).enumerate().for_each(|(document, out)| {
        for ((strip, out), bias) in out.chunks_mut(STRIP).enumerate().zip(bias.chunks(STRIP)) {
            let at = (strip * documents.len() + document) * STRIP;
            for ((out, x), bias) in out.iter_mut().zip(&maxima[at..]).zip(bias) {
                *out = x + bias;
            }
        }
    });
    Some(out)
}

/// max over rows of scale · ĥ·ŵ + error · ‖w‖ + norm · ‖w − ŵ‖, in units of each entry's scale.
#[cfg(target_arch = "x86_64")]
fn strip_maximum(values: &[u32], q: &[i8], rows: &[RowBound], norms: &[f32], errors: &[f32], out: &mut [f32; STRIP]) {
    let width = values.len() / STRIP * 4;
    assert!(norms.len() == STRIP && errors.len() == STRIP && q.len() == rows.len() * width);
    // SAFETY: `is_available` was asked before panels were made; lengths are checked above.
    unsafe {
        vnni::strip_maximum(values, q, rows, norms, errors, out);
    }
}

/// Never called: `is_available` says no.
#[cfg(not(target_arch = "x86_64"))]
fn strip_maximum(_: &[u32], _: &[i8], _: &[RowBound], _: &[f32], _: &[f32], out: &mut [f32; STRIP]) {
    out.fill(f32::INFINITY);
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use std::arch::x86_64::{
        __m512, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_max_ps, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_storeu_ps,
    };

    use super::{RowBound, STRIP, TILE};

    /// Registers of a strip.
    const WIDE: usize = STRIP / 16;

    /// # Safety
    /// The processor has AVX-512 with VNNI; `q` has `rows.len()` rows of a quarter of `values.len() / STRIP`
    /// groups of four; `norms` and `errors` have [`STRIP`] values.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) unsafe fn strip_maximum(
        values: &[u32],
        q: &[i8],
        rows: &[RowBound],
        norms: &[f32],
        errors: &[f32],
        out: &mut [f32; STRIP],
    ) {
        let quads = values.len() / STRIP;
        let mut best = [_mm512_set1_ps(f32::NEG_INFINITY); WIDE];
        let mut first = 0;
        while first < rows.len() {
            let count = (rows.len() - first).min(TILE);
            // SAFETY: as the caller promises; the rows from `first` on are there.
            unsafe {
                let q = q.as_ptr().add(first * quads * 4);
                let tile = &rows[first..first + count];
                match count {
                    1 => tile_maximum::<1>(values.as_ptr(), quads, q, tile, norms, errors, &mut best),
                    2 => tile_maximum::<2>(values.as_ptr(), quads, q, tile, norms, errors, &mut best),
                    3 => tile_maximum::<3>(values.as_ptr(), quads, q, tile, norms, errors, &mut best),
                    4 => tile_maximum::<4>(values.as_ptr(), quads, q, tile, norms, errors, &mut best),
                    5 => tile_maximum::<5>(values.as_ptr(), quads, q, tile, norms, errors, &mut best),
                    _ => tile_maximum::<TILE>(values.as_ptr(), quads, q, tile, norms, errors, &mut best),
                }
            }
            first += count;
        }
        for (i, best) in best.into_iter().enumerate() {
            // SAFETY: `out` has STRIP values.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(i * 16), best) };
        }
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    #[inline]
    unsafe fn tile_maximum<const ROWS: usize>(
        values: *const u32,
        quads: usize,
        q: *const i8,
        rows: &[RowBound],
        norms: &[f32],
        errors: &[f32],
        best: &mut [__m512; WIDE],
    ) {
        let mut sums = [[_mm512_set1_epi32(0); WIDE]; ROWS];
        for (sums, row) in sums.iter_mut().zip(rows) {
            sums.fill(_mm512_set1_epi32(row.start));
        }
        for quad in 0..quads {
            // SAFETY: quad < quads; a strip has `quads` times STRIP groups, a row `quads` groups.
            unsafe {
                let w: [_; WIDE] =
                    std::array::from_fn(|i| _mm512_loadu_si512(values.add(quad * STRIP + i * 16).cast()));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let h = q.add((i * quads + quad) * 4).cast::<i32>().read_unaligned();
                    let h = _mm512_set1_epi32(h);
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = _mm512_dpbusd_epi32(*sum, w, h);
                    }
                }
            }
        }
        for i in 0..WIDE {
            // SAFETY: both have STRIP values.
            let (norm, error) =
                unsafe { (_mm512_loadu_ps(norms.as_ptr().add(i * 16)), _mm512_loadu_ps(errors.as_ptr().add(i * 16))) };
            for (sums, row) in sums.iter().zip(rows) {
                let rounding =
                    _mm512_fmadd_ps(_mm512_set1_ps(row.norm), error, _mm512_mul_ps(norm, _mm512_set1_ps(row.error)));
                let bound = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[i]), _mm512_set1_ps(row.scale), rounding);
                best[i] = _mm512_max_ps(best[i], bound);
            }
        }
    }
}
