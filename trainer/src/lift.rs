//! Raising the density where a penalty's weight can do no more: it presses, and does not pull.
//!
//! A uniform rise of the decoder's bias makes those entries active that were nearest to it. How far to raise it is
//! read from the pooled logits of a few documents, so no rate has to be guessed: with density d, target t and these
//! documents' own density p, the rise is the one at which they would have p·t/d, and half of that way is gone.

/// A density below this share of its target calls for a rise,
const BELOW: f64 = 0.95;
/// once the penalty pulls less than this much as hard as all other terms.
const WEAK: f64 = 0.05;
/// Share of the logarithm of target over density that one rise makes good.
const GAIN: f64 = 0.5;

/// What a rise does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lift {
    /// What is added to the bias, above 0.
    pub rise: f32,
    /// Logarithm of the density after it over the one before, on the documents that it was read from.
    pub gain: f64,
}

/// Whether a density that lies `over_target` (as a ratio) wants a rise, the norms of the penalties' slopes and of
/// all others' being `slopes`.
pub fn is_wanted(over_target: f64, slopes: Option<(f64, f64)>) -> bool {
    over_target < BELOW && is_weak(slopes)
}

/// Whether the penalty hardly pulls: a smaller weight would change nothing.
pub fn is_weak(slopes: Option<(f64, f64)>) -> bool {
    let (penalty, others) = slopes.unwrap_or_default();
    penalty <= WEAK * others
}

/// The rise for logits `[N, V]` of documents whose density is `over_target` as the loop sees it. An entry counts
/// with its token's `shares`, or as 1; `zeroed` entries never do. `None` if nothing is active yet, or nothing more
/// can be.
pub fn lift(logits: &[f32], zeroed: &[bool], shares: Option<&[f32]>, over_target: f64) -> Option<Lift> {
    let share = |j: usize| shares.map_or(1.0, |s| f64::from(s[j]));
    let mut active = 0.0;
    let mut rest: Vec<(f32, f64)> = Vec::new();
    for row in logits.chunks_exact(zeroed.len()) {
        for (j, &v) in row.iter().enumerate().filter(|(j, _)| !zeroed[*j]) {
            if v > 0.0 {
                active += share(j);
            } else if share(j) > 0.0 && v.is_finite() {
                rest.push((v, share(j)));
            }
        }
    }
    if active <= 0.0 {
        return None;
    }
    let wanted = active * over_target.max(f64::MIN_POSITIVE).powf(-GAIN);
    rest.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut sum = active;
    let last = rest.iter().find(|(_, share)| {
        sum += share;
        sum >= wanted
    })?;
    // A little more than the last one lacks, so that it is above 0.
    let rise = (-last.0).max(f32::MIN_POSITIVE) * 1.0001;
    Some(Lift { rise, gain: (sum / active).ln() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn a_rise_makes_half_of_the_way() {
        // 20 documents of 100 entries, 10 active in each; the target is 4 times as many, the half of that way twice.
        let logits: Vec<f32> = (0..2000).map(|i| 10.0 - ((i * 37) % 100) as f32 - 0.25).collect();
        let count = |rise: f32, zeroed: &[bool]| {
            logits.iter().enumerate().filter(|(i, v)| !zeroed[i % 100] && **v + rise > 0.0).count()
        };
        let none = vec![false; 100];
        assert_eq!(count(0.0, &none), 200);
        let found = lift(&logits, &none, None, 0.25).unwrap();
        let after = count(found.rise, &none);
        // All 20 documents have the same logits here, so 20 entries pass at once.
        assert!((400..=420).contains(&after), "{after}");
        assert!((found.gain - 2f64.ln()).abs() < 1e-9, "{found:?}");
        // Entries that never carry weight do not count, nor do tokens of no query where matches are counted.
        let zeroed: Vec<bool> = (0..100).map(|j| j % 2 == 0).collect();
        let half = lift(&logits, &zeroed, None, 0.25).unwrap();
        let (before, after) = (count(0.0, &zeroed), count(half.rise, &zeroed));
        assert!((2 * before..=2 * before + 20).contains(&after), "{before} to {after}");
        let shares: Vec<f32> = zeroed.iter().map(|&z| if z { 0.0 } else { 0.3 }).collect();
        assert_eq!(lift(&logits, &none, Some(&shares), 0.25).unwrap().rise.to_bits(), half.rise.to_bits());
        // Nothing to go by, and nothing left.
        assert_eq!(lift(&[-1.0; 100], &none, None, 0.5), None);
        assert_eq!(lift(&[1.0; 100], &none, None, 0.5), None);
    }

    #[test]
    fn the_weight_goes_first() {
        assert!(is_wanted(0.7, Some((0.01, 1.0))) && is_wanted(0.7, None));
        assert!(!is_wanted(0.7, Some((0.2, 1.0))), "the penalty still presses");
        assert!(!is_wanted(0.97, None) && !is_wanted(1.5, Some((0.0, 1.0))));
    }
}
