//! Random numbers for new weights: a pure function of seed, name and index, so that a new head does not depend
//! on which other tensors are new.

use crate::dropout::{GOLDEN, mix};

/// `n` values of a normal distribution (Box–Muller over a `SplitMix64` stream keyed by seed and name).
pub(crate) fn normal(seed: u64, name: &str, n: usize, deviation: f64) -> Vec<f32> {
    // FNV-1a of the name.
    let hash = name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3));
    let key = mix(mix(seed ^ GOLDEN).wrapping_add(hash));
    // Uniform in (0, 1]: 53 bits, never 0, so that its logarithm is finite.
    let uniform =
        |i: u64| ((mix(key.wrapping_add((i + 1).wrapping_mul(GOLDEN))) >> 11) + 1) as f64 / 9_007_199_254_740_992.0;
    (0..n as u64)
        .map(|i| {
            let radius = (-2.0 * uniform(2 * i).ln()).sqrt();
            (deviation * radius * (std::f64::consts::TAU * uniform(2 * i + 1)).cos()) as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::normal;

    #[test]
    fn values_are_normal_and_keyed_by_seed_and_name() {
        let n = 100_000;
        let values = normal(1, "a", n, 0.02);
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
        let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n as f64;
        // Five standard deviations of the mean; the deviation's own is 0.02 / √(2n).
        assert!(mean.abs() < 5.0 * 0.02 / (n as f64).sqrt(), "{mean}");
        assert!((variance.sqrt() - 0.02).abs() < 5.0 * 0.02 / (2.0 * n as f64).sqrt(), "{variance}");
        let within_one = values.iter().filter(|v| v.abs() < 0.02).count() as f64 / n as f64;
        assert!((within_one - 0.6827).abs() < 0.008, "{within_one}");
        assert_eq!(values, normal(1, "a", n, 0.02));
        assert_ne!(values[..10], normal(2, "a", 10, 0.02)[..]);
        assert_ne!(values[..10], normal(1, "b", 10, 0.02)[..]);
    }
}
