//! Steers the weight of the sparsity penalty to a density, in place of a guessed λ.
//!
//! Weight and density are both taken as logarithms, so that the loop behaves alike ten times too high and ten times
//! too low. With e the logarithm of smoothed density over target, each step moves `ln λ` towards `I + K·e`, where
//! `I` grows by `k·e`: integral control with a proportional part. The move is limited in size, four times less
//! downwards than upwards, for a collapse to zero cannot be undone and density can; while it is limited, or `λ` stands
//! at an end of its range, `I` is set so that it does not wind up.
//!
//! The batches measure the density at every step, but with dropout and on documents that belong to queries. So now
//! and then some documents drawn from the whole corpus are encoded without dropout; the smoothed ratio of the two
//! is taken into the error.

use serde::{Deserialize, Serialize};

/// Range of `ln λ`: from 1e-9 to 1e4.
const LOG_RANGE: (f64, f64) = (-20.723, 9.210);
/// Proportional part K: 10 % off moves the weight by about 15 %.
const PROPORTIONAL: f64 = 1.5;
/// Share of the proportional part that I takes up within the response time, if the error stays.
const INTEGRAL: f64 = 0.8;
/// The measurement is never taken as less than this share of the target: an empty batch has a logarithm too.
const FLOOR: f64 = 0.01;
/// Share of a new ratio of corpus to batch in the smoothed one, once there were ten; before, all count alike. A probe of
/// a few documents is some tenths off, so that many have to be taken together.
const RATIO_SHARE: f64 = 0.1;

/// What is remembered from step to step. Single floats, so that a checkpoint in JSON holds them exactly.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerState {
    /// `ln λ`.
    pub log_weight: f32,
    /// The integral I.
    pub integral: f32,
    /// `ln` of the batches' smoothed density; `None` before the first.
    pub batch: Option<f32>,
    /// Smoothed `ln` of the corpus's density over the batch's; `None` before the first probe.
    pub ratio: Option<f32>,
    /// Probes so far.
    #[serde(default)]
    pub probes: u32,
}

/// The control loop of one penalty.
#[derive(Debug, Clone, PartialEq)]
pub struct Controller {
    target: f64,
    response: f64,
    state: ControllerState,
}

impl Controller {
    /// A loop that aims at `target` (above 0), begins with `start` (above 0), and answers within about `response`
    /// steps (at least 1): a tenfold error of the weight takes so many steps to be walked up.
    pub fn new(target: f64, start: f64, response: usize) -> Self {
        let log_weight = start.ln() as f32;
        let state = ControllerState { log_weight, integral: log_weight, batch: None, ratio: None, probes: 0 };
        Self { target, response: response.max(1) as f64, state }
    }

    /// The weight λ of the next step.
    pub fn weight(&self) -> f64 {
        f64::from(self.state.log_weight).exp()
    }

    /// The density aimed at.
    pub fn target(&self) -> f64 {
        self.target
    }

    /// The density as the loop sees it, in the target's unit; `None` before the first step.
    pub fn measured(&self) -> Option<f64> {
        self.state.batch.map(|batch| (f64::from(batch) + f64::from(self.state.ratio.unwrap_or(0.0))).exp())
    }

    /// Takes the density of a step's documents and of documents drawn from the corpus, where they were encoded, and
    /// moves the weight. `is_weak`: the weight is so small that a smaller one would change nothing; then it is not
    /// lowered further, so that it is soon back when it is needed.
    pub fn observe(&mut self, batch: f64, corpus: Option<f64>, is_weak: bool) {
        let log = |density: f64| density.max(FLOOR * self.target).ln();
        let (measured, s) = (log(batch), &mut self.state);
        if let Some(corpus) = corpus {
            let ratio = log(corpus) - measured;
            s.probes = s.probes.saturating_add(1);
            let share = (1.0 / f64::from(s.probes)).max(RATIO_SHARE);
            s.ratio = Some(s.ratio.map_or(ratio, |old| f64::from(old) + share * (ratio - f64::from(old))) as f32);
        }
        let share = (2.0 / (0.5 * self.response + 1.0)).min(1.0);
        s.batch = Some(s.batch.map_or(measured, |old| f64::from(old) + share * (measured - f64::from(old))) as f32);

        let error = f64::from(s.batch.unwrap_or(0.0)) + f64::from(s.ratio.unwrap_or(0.0)) - self.target.ln();
        let (up, down) = (std::f64::consts::LN_10 / self.response, 4.0 * std::f64::consts::LN_10 / self.response);
        let now = f64::from(s.log_weight);
        let integral = f64::from(s.integral) + INTEGRAL * PROPORTIONAL * error / self.response;
        let wanted = integral + PROPORTIONAL * error;
        let down = if is_weak { 0.0 } else { down };
        let next = wanted.clamp(now - down, now + up).clamp(LOG_RANGE.0, LOG_RANGE.1);
        s.integral = if (next - wanted).abs() > 1e-12 { next - PROPORTIONAL * error } else { integral } as f32;
        s.log_weight = next as f32;
    }

    /// The density is about to change by other means than the weight: by this logarithm, which need not be observed
    /// before it counts.
    pub fn expect(&mut self, gain: f64) {
        self.state.batch = self.state.batch.map(|batch| (f64::from(batch) + gain) as f32);
    }

    /// What a checkpoint stores.
    pub fn state(&self) -> ControllerState {
        self.state
    }

    /// Puts a stored state back.
    pub fn restore(&mut self, state: ControllerState) {
        self.state = state;
    }
}

/// Response steps of a stage where the recipe gives none: a twentieth of it, from 4 to 400.
pub fn default_response(steps: usize) -> usize {
    (steps / 20).clamp(4, 400)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    /// A density that follows `capacity · λ^-slope` with a lag, and never leaves `[0, 5000]`.
    struct Plant {
        log_density: f64,
        log_capacity: f64,
        slope: f64,
        lag: f64,
    }

    impl Plant {
        fn step(&mut self, weight: f64) -> f64 {
            let rest = self.log_capacity - self.slope * weight.ln();
            self.log_density += (rest - self.log_density) / self.lag;
            self.log_density.exp().min(5000.0)
        }
    }

    /// Runs the loop; gives the density at each step.
    fn run(plant: &mut Plant, controller: &mut Controller, steps: usize, from: usize) -> Vec<f64> {
        (from..from + steps)
            .map(|t| {
                let density = plant.step(controller.weight());
                // The batch reads a fifth too much, and wobbles by a tenth; a probe reads what is there.
                let wobble = 1.0 + 0.1 * (t as f64 * 1.7).sin();
                controller.observe(1.2 * density * wobble, t.is_multiple_of(10).then_some(density), false);
                density
            })
            .collect()
    }

    #[test]
    fn the_target_is_reached_from_far_off_on_both_sides() {
        for slope in [0.3, 1.0] {
            for lag in [4.0, 20.0] {
                for (start, density) in [(1e-3, 1500.0), (1e-1, 1500.0), (1e-5, 1500.0), (1e-1, 15.0), (1e-5, 15.0)] {
                    let capacity = 150.0f64.ln() + slope * 1e-3f64.ln();
                    let mut plant = Plant { log_density: f64::ln(density), log_capacity: capacity, slope, lag };
                    let mut controller = Controller::new(150.0, start, 20);
                    let all = run(&mut plant, &mut controller, 400, 0);
                    let end = all[380..].iter().sum::<f64>() / 20.0;
                    let what = format!("slope {slope}, lag {lag}, from {start} and {density}: {end}");
                    assert!((end / 150.0).ln().abs() < 0.1, "{what}");
                    let least = all.iter().copied().fold(f64::INFINITY, f64::min);
                    assert!(least > 1.0, "never near zero: {what}, least {least}");
                }
            }
        }
    }

    #[test]
    fn an_end_of_the_range_does_not_wind_up() {
        // Nothing that the weight does makes the density large enough, for long.
        let mut controller = Controller::new(100.0, 1e-3, 10);
        for _ in 0..2000 {
            controller.observe(1.0, None, false);
        }
        assert!(controller.weight() < 1.1e-9);
        // Then the density is too high: the weight goes up with the first steps, tenfold in ten.
        for _ in 0..30 {
            controller.observe(1000.0, None, false);
        }
        assert!(controller.weight() > 1e-8, "{}", controller.weight());
        assert!(controller.measured().unwrap() > 500.0);
    }

    #[test]
    fn a_weight_that_does_nothing_is_not_lowered_further() {
        let mut controller = Controller::new(100.0, 1e-3, 10);
        for _ in 0..50 {
            controller.observe(20.0, None, true);
        }
        assert!((controller.weight() / 1e-3 - 1.0).abs() < 1e-6, "{}", controller.weight());
        // What is done about it otherwise counts at once.
        let before = controller.measured().unwrap();
        controller.expect(0.5);
        assert!((controller.measured().unwrap() / before - 0.5f64.exp()).abs() < 1e-4);
        // It is raised all the same.
        for _ in 0..50 {
            controller.observe(1000.0, None, true);
        }
        assert!(controller.weight() > 1.0, "{}", controller.weight());
    }

    #[test]
    fn a_stored_state_goes_on_exactly() {
        let plant = || Plant { log_density: 7.0, log_capacity: 0.0, slope: 0.7, lag: 5.0 };
        let (mut whole, mut straight) = (plant(), Controller::new(150.0, 1e-3, 8));
        let all = run(&mut whole, &mut straight, 60, 0);
        let (mut parted, mut first) = (plant(), Controller::new(150.0, 1e-3, 8));
        run(&mut parted, &mut first, 23, 0);
        let text = serde_json::to_string(&first.state()).unwrap();
        let mut second = Controller::new(150.0, 1e-3, 8);
        second.restore(serde_json::from_str(&text).unwrap());
        let rest = run(&mut parted, &mut second, 37, 23);
        assert_eq!(rest, all[23..]);
        assert_eq!(second, straight);
    }
}
