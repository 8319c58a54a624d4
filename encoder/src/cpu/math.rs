//! Element-wise functions and reductions that the compiler can vectorise: no branches, no libm calls, sums in
//! sixteen lanes of a fixed order.

/// Lanes of a reduction: one AVX-512 register of f32.
const LANES: usize = 16;

/// eˣ to about 1e-7 relative, for x clamped to where the result is a normal f32. The polynomial is Cephes'
/// `expf` (Moshier).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts: the first has few enough bits that its product with a small integer is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // 1.5 · 2²³: adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    y * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// The normal distribution's Φ(x), and e^(−x²/2): erf by Abramowitz and Stegun 7.1.26 (|ε| ≤ 1.5e-7).
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let mut p = 1.061_405_4;
    p = p * t - 1.453_152;
    p = p * t + 1.421_413_7;
    p = p * t - 0.284_496_74;
    p = p * t + 0.254_829_6;
    let e = exp(-(z * z));
    let half_tail = 0.5 * p * t * e;
    (if x < 0.0 { half_tail } else { 1.0 - half_tail }, e)
}

/// x Φ(x), the exact GELU.
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    x * normal(x).0
}

/// GELU and its derivative Φ(x) + x φ(x).
#[inline(always)]
pub(super) fn gelu_with_slope(x: f32) -> (f32, f32) {
    const FRAC_1_SQRT_TAU: f32 = 0.398_942_3;
    let (phi, e) = normal(x);
    (x * phi, phi + x * e * FRAC_1_SQRT_TAU)
}

/// Folds rows element by element in sixteen lanes, then the lanes pairwise; `identity` is neutral in `fold`.
#[inline(always)]
fn reduce<const N: usize>(
    rows: [&[f32]; N],
    identity: f32,
    term: impl Fn([f32; N]) -> f32,
    fold: impl Fn(f32, f32) -> f32,
) -> f32 {
    let len = rows[0].len();
    let mut lanes = [identity; LANES];
    let chunks = rows.map(|row| row[..len].as_chunks::<LANES>());
    for i in 0..len / LANES {
        let x = chunks.map(|(whole, _)| whole[i]);
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum = fold(*sum, term(x.map(|row| row[lane])));
        }
    }
    for i in 0..len % LANES {
        lanes[i] = fold(lanes[i], term(chunks.map(|(_, rest)| rest[i])));
    }
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            lanes[lane] = fold(lanes[lane], lanes[lane + width]);
        }
    }
    lanes[0]
}

/// Σ term(xᵢ).
#[inline(always)]
pub(super) fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    reduce([x], 0.0, |[x]| term(x), |a, b| a + b)
}

/// Σ xᵢ yᵢ.
#[inline(always)]
pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    reduce([x, y], 0.0, |[x, y]| x * y, |a, b| a + b)
}

/// max xᵢ.
#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
    reduce([x], f32::NEG_INFINITY, |[x]| x, |a, b| if b > a { b } else { a })
}

/// y += a x.
#[inline(always)]
pub(super) fn add_scaled(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// y += x.
#[inline(always)]
pub(super) fn add(y: &mut [f32], x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_and_saturates() {
        for i in -8600..=8700 {
            let x = i as f32 * 0.01;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) - want).abs() <= 3e-7 * want, "{x}");
        }
        assert!(exp(-1e4) < 1e-37);
        assert!(exp(1e4).is_finite());
    }

    #[test]
    fn gelu_agrees_with_values_of_another_library() {
        // x, value and derivative by the C library's erf and exp in double precision.
        for (x, value, slope) in [
            (-5.0, -0.000_001_433_3, -0.000_007_146_9),
            (-3.0, -0.004_049_7, -0.011_945_6),
            (-1.0, -0.158_655_3, -0.083_315_5),
            (-0.1, -0.046_017_2, 0.420_476_9),
            (0.0, 0.0, 0.5),
            (0.5, 0.345_731_2, 0.867_495_1),
            (2.0, 1.954_499_7, 1.085_231_8),
            (6.0, 6.0, 1.0),
        ] {
            let (got, got_slope) = gelu_with_slope(x);
            assert!((got - value).abs() < 1e-6, "{x}: {got}");
            assert!((got_slope - slope).abs() < 1e-6, "{x}: {got_slope}");
            assert_eq!(gelu(x).to_bits(), got.to_bits());
        }
    }

    #[test]
    fn reductions_cover_the_remainder() {
        for len in [1usize, 5, 16, 17, 40, 384] {
            let x: Vec<f32> = (0..len).map(|i| ((i * 7 + 3) % 11) as f32 - 5.0).collect();
            let y: Vec<f32> = (0..len).map(|i| ((i * 5 + 1) % 13) as f32).collect();
            // Small whole numbers: exact in any order.
            assert_eq!(sum(&x, |v| v * v).to_bits(), x.iter().map(|v| v * v).sum::<f32>().to_bits());
            assert_eq!(dot(&x, &y).to_bits(), x.iter().zip(&y).map(|(a, b)| a * b).sum::<f32>().to_bits());
            assert_eq!(max(&x).to_bits(), x.iter().copied().fold(f32::NEG_INFINITY, f32::max).to_bits());
        }
    }
}
