//! Dropout masks from a counter-based generator: a mask is a pure function of seed, step, layer, site,
//! document and element, so recomputation, other batchings, a resumed run and every backend see the same one.
//!
//! The generator is `SplitMix64`'s finaliser (Steele, Lea and Flood, OOPSLA 2014) applied to a hashed key plus
//! the element's index times the golden-ratio increment: element `i` is output `i` of a `SplitMix64` stream.

use crate::Dropout;

/// The weyl increment of `SplitMix64`: 2^64 divided by the golden ratio, odd.
pub(crate) const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Where in the network a mask is applied; each site has masks of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// After the `LayerNorm` of the embeddings (layer 0). Index: `position * H + column`.
    Embedding,
    /// On attention probabilities, after the softmax. Index: `(head * L + query) * L + key`.
    AttentionProbs,
    /// After the attention's output projection, before the residual is added. Index: `position * H + column`.
    AttentionOutput,
    /// After the feed-forward's second product, before the residual is added. Index: `position * H + column`.
    FeedForwardOutput,
}

/// The masks of one site of one layer for one document: hash the key once, then ask for elements.
#[derive(Debug, Clone, Copy)]
pub struct Mask {
    key: u64,
    /// An element is dropped if its 32 random bits are below this (`rate · 2^32`).
    threshold: u64,
    /// What a kept element is multiplied with: `1 / (1 - rate)`.
    scale: f32,
}

impl Mask {
    /// The mask of a site; the rate is the one that `dropout` has for that site.
    pub fn new(dropout: &Dropout, layer: u32, site: Site, document_key: u64) -> Self {
        let rate = match site {
            Site::AttentionProbs => dropout.attention,
            _ => dropout.hidden,
        };
        Self::with_rate(dropout, layer, site, document_key, rate)
    }

    /// The mask of a site with a rate of its own, in `[0, 1)`.
    pub fn with_rate(dropout: &Dropout, layer: u32, site: Site, document_key: u64, rate: f32) -> Self {
        debug_assert!((0.0..1.0).contains(&rate), "a dropout rate lies in [0, 1)");
        let place = (u64::from(layer) << 8) | site as u64;
        let mut key = mix(dropout.seed ^ GOLDEN);
        for part in [dropout.step, place, document_key] {
            key = mix(key.wrapping_add(GOLDEN) ^ mix(part.wrapping_add(GOLDEN)));
        }
        Self { key, threshold: (f64::from(rate) * 4_294_967_296.0) as u64, scale: 1.0 / (1.0 - rate) }
    }

    /// What to multiply element `index` with: 0 or `1 / (1 - rate)`.
    #[inline]
    pub fn at(&self, index: u64) -> f32 {
        let bits = mix(self.key.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN)));
        if (bits >> 32) < self.threshold { 0.0 } else { self.scale }
    }
}

/// What to multiply one element with: 0 or `1 / (1 - rate)`. Loops hoist the key with [`Mask`].
pub fn keep_scale(dropout: &Dropout, layer: u32, site: Site, document_key: u64, index: u64, rate: f32) -> f32 {
    Mask::with_rate(dropout, layer, site, document_key, rate).at(index)
}

/// The finaliser of `SplitMix64` (variant 13 of Stafford's mixers): a bijection of 64 bits.
#[inline]
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DROPOUT: Dropout = Dropout { hidden: 0.1, attention: 0.25, seed: 7, step: 3 };

    fn dropped(mask: &Mask, n: u64) -> usize {
        (0..n).filter(|&i| mask.at(i) == 0.0).count()
    }

    #[test]
    fn mixer_gives_splitmix64s_published_outputs() {
        // First outputs of SplitMix64 seeded with 1234567, as Rosetta Code and the Java source give them.
        let expected: [u64; 3] = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        for (i, want) in expected.into_iter().enumerate() {
            assert_eq!(mix(1_234_567u64.wrapping_add((i as u64 + 1).wrapping_mul(GOLDEN))), want);
        }
    }

    #[test]
    fn drops_at_the_rate_and_keeps_the_mean() {
        for rate in [0.05f32, 0.1, 0.5, 0.9] {
            let n = 200_000u64;
            let mask = Mask::with_rate(&DROPOUT, 2, Site::AttentionOutput, 11, rate);
            let share = dropped(&mask, n) as f64 / n as f64;
            // Five standard deviations of a binomial share.
            let bound = 5.0 * (f64::from(rate) * (1.0 - f64::from(rate)) / n as f64).sqrt();
            assert!((share - f64::from(rate)).abs() < bound, "rate {rate}: {share}");
            let mean = (0..n).map(|i| f64::from(mask.at(i))).sum::<f64>() / n as f64;
            assert!((mean - 1.0).abs() < bound / (1.0 - f64::from(rate)) + 1e-6, "rate {rate}: mean {mean}");
        }
        assert_eq!(dropped(&Mask::with_rate(&DROPOUT, 0, Site::Embedding, 0, 0.0), 10_000), 0);
    }

    #[test]
    fn each_part_of_the_key_gives_another_mask() {
        let base = Mask::with_rate(&DROPOUT, 1, Site::AttentionOutput, 5, 0.5);
        let others = [
            Mask::with_rate(&Dropout { seed: 8, ..DROPOUT }, 1, Site::AttentionOutput, 5, 0.5),
            Mask::with_rate(&Dropout { step: 4, ..DROPOUT }, 1, Site::AttentionOutput, 5, 0.5),
            Mask::with_rate(&DROPOUT, 2, Site::AttentionOutput, 5, 0.5),
            Mask::with_rate(&DROPOUT, 1, Site::FeedForwardOutput, 5, 0.5),
            Mask::with_rate(&DROPOUT, 1, Site::AttentionOutput, 6, 0.5),
        ];
        for other in &others {
            let n = 40_000u64;
            let agree = (0..n).filter(|&i| (base.at(i) == 0.0) == (other.at(i) == 0.0)).count() as f64 / n as f64;
            // Independent fair masks agree in half of the places: five standard deviations.
            assert!((agree - 0.5).abs() < 5.0 * 0.5 / (n as f64).sqrt(), "{agree}");
        }
    }

    #[test]
    fn rate_follows_the_site() {
        let of = |site| dropped(&Mask::new(&DROPOUT, 0, site, 1), 100_000) as f64 / 100_000.0;
        assert!((of(Site::AttentionProbs) - 0.25).abs() < 0.01);
        assert!((of(Site::Embedding) - 0.1).abs() < 0.01);
        let one = keep_scale(&DROPOUT, 0, Site::Embedding, 1, 17, 0.1);
        assert_eq!(one.to_bits(), Mask::new(&DROPOUT, 0, Site::Embedding, 1).at(17).to_bits());
    }
}
