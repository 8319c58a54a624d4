//! How a penalty's weight rises at the start.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The form of the rise over T steps; from step T − 1 on the weight is whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ramp {
    /// `((t + 1) / T)²`, as SPLADE has it.
    #[default]
    Quadratic,
    /// `(t + 1) / T`.
    Linear,
    /// Whole from the first step on.
    None,
}

impl Ramp {
    /// The factor in `[0, 1]` at a 0-based step; 1 where `steps` is 0.
    pub fn factor(self, step: usize, steps: usize) -> f64 {
        if steps == 0 || step + 1 >= steps {
            return 1.0;
        }
        let done = (step + 1) as f64 / steps as f64;
        match self {
            Self::Quadratic => done * done,
            Self::Linear => done,
            Self::None => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ramps_end_at_1() {
        let factors = |ramp: Ramp, steps: usize| (0..5).map(|t| ramp.factor(t, steps)).collect::<Vec<_>>();
        assert_eq!(factors(Ramp::Quadratic, 4), [0.0625, 0.25, 0.5625, 1.0, 1.0]);
        assert_eq!(factors(Ramp::Linear, 4), [0.25, 0.5, 0.75, 1.0, 1.0]);
        assert_eq!(factors(Ramp::None, 4), [1.0; 5]);
        assert_eq!(factors(Ramp::Quadratic, 0), [1.0; 5]);
        // The golden optimizer curves' λ is the same.
        let golden = crate::optimizer::quadratic_ramp(0.05, 1, 4);
        assert!((0.05 * Ramp::Quadratic.factor(1, 4) - golden).abs() < 1e-15);
    }
}
