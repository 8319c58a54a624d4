//! `AdamW` (arXiv 1711.05101, as torch computes it) over the flat parameter buffer, fused with clipping by the
//! global norm, and the schedule of its rate.
//!
//! Work is split into fixed pieces, each computed alone and summed in order, so that the result does not depend
//! on how many threads there are.

use std::ops::Range;

use nsparse_encoder::ParamSpec;
use rayon::prelude::*;

use crate::query_side::table::is_query;
use crate::sections::{Decay, OptimizerSection};

/// Values of one piece of work.
const PIECE: usize = 1 << 16;

#[derive(Debug, Clone)]
struct Piece {
    range: Range<usize>,
    decay: f64,
    rate: f64,
}

/// The optimizer with its two moments.
#[derive(Debug, Clone)]
pub struct AdamW {
    settings: OptimizerSection,
    pieces: Vec<Piece>,
    first: Vec<f32>,
    second: Vec<f32>,
    steps: u64,
}

impl AdamW {
    /// Moments at 0. `rate` gives each parameter its peak learning rate; a rate of 0 freezes it.
    pub fn new(specs: &[ParamSpec], settings: &OptimizerSection, rate: impl Fn(&ParamSpec) -> f64) -> Self {
        let mut pieces = Vec::new();
        let mut len = 0;
        for spec in specs {
            // A query table would decay to nothing for tokens that are seldom asked.
            let decays = (settings.decay_all || spec.decays()) && !is_query(spec);
            let decay = if decays { settings.weight_decay } else { 0.0 };
            let end = spec.offset + spec.len();
            let mut start = spec.offset;
            while start < end {
                let next = (start + PIECE).min(end);
                pieces.push(Piece { range: start..next, decay, rate: rate(spec) });
                start = next;
            }
            len = end;
        }
        Self { settings: settings.clone(), pieces, first: vec![0.0; len], second: vec![0.0; len], steps: 0 }
    }

    /// One step: p ← p·(1 − lr·wd), then p ← p − lr·m̂/(√v̂ + ε), the gradient clipped by its global norm.
    /// `factor` scales every parameter's peak rate. Returns the norm before clipping; if it is not finite,
    /// nothing is changed.
    pub fn step(&mut self, parameters: &mut [f32], gradient: &[f32], factor: f64) -> f64 {
        debug_assert_eq!((parameters.len(), gradient.len()), (self.first.len(), self.first.len()));
        let norm = self.norm(gradient);
        if !norm.is_finite() {
            return norm;
        }
        let s = &self.settings;
        let clip = s.max_grad_norm.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0)) as f32;
        self.steps += 1;
        let correction1 = 1.0 - s.beta1.powf(self.steps as f64);
        let correction2 = (1.0 - s.beta2.powf(self.steps as f64)).sqrt() as f32;
        let (beta1, beta2, epsilon) = (s.beta1 as f32, s.beta2 as f32, s.epsilon as f32);
        let (rest1, rest2) = ((1.0 - s.beta1) as f32, (1.0 - s.beta2) as f32);

        let mut work = Vec::with_capacity(self.pieces.len());
        let (mut p, mut m, mut v, mut g) = (parameters, &mut self.first[..], &mut self.second[..], gradient);
        for piece in &self.pieces {
            let n = piece.range.len();
            let (p0, p1) = p.split_at_mut(n);
            let (m0, m1) = m.split_at_mut(n);
            let (v0, v1) = v.split_at_mut(n);
            let (g0, g1) = g.split_at(n);
            work.push((piece, p0, m0, v0, g0));
            (p, m, v, g) = (p1, m1, v1, g1);
        }
        work.into_par_iter().for_each(|(piece, p, m, v, g)| {
            let rate = piece.rate * factor;
            let keep = (1.0 - rate * piece.decay) as f32;
            let size = (rate / correction1) as f32;
            for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
                let g = g * clip;
                *m = beta1 * *m + rest1 * g;
                *v = beta2 * *v + rest2 * g * g;
                *p = *p * keep - size * *m / (v.sqrt() / correction2 + epsilon);
            }
        });
        norm
    }

    /// Euclidean norm of a gradient, summed in double piece by piece.
    pub fn norm(&self, gradient: &[f32]) -> f64 {
        let sums: Vec<f64> = self
            .pieces
            .par_iter()
            .map(|p| gradient[p.range.clone()].iter().map(|&g| f64::from(g) * f64::from(g)).sum())
            .collect();
        sums.iter().sum::<f64>().sqrt()
    }

    /// First moment, second moment, steps done: what a checkpoint stores.
    pub fn state(&self) -> (&[f32], &[f32], u64) {
        (&self.first, &self.second, self.steps)
    }

    /// Puts a stored state back. `None` if its size is another one.
    pub fn restore(&mut self, first: Vec<f32>, second: Vec<f32>, steps: u64) -> Option<()> {
        if first.len() != self.first.len() || second.len() != self.second.len() {
            return None;
        }
        (self.first, self.second, self.steps) = (first, second, steps);
        Some(())
    }
}

/// Factor of the peak rate at a 0-based step: a straight rise over `warmup` steps, then straight down to 0 at
/// `total`, or constant. The first step of a warmup has factor 0, as in HF's `get_linear_schedule_with_warmup`.
pub fn rate_factor(step: usize, warmup: usize, total: usize, decay: Decay) -> f64 {
    if step < warmup {
        return step as f64 / warmup as f64;
    }
    match decay {
        Decay::Constant => 1.0,
        Decay::Linear => total.saturating_sub(step) as f64 / total.saturating_sub(warmup).max(1) as f64,
    }
}

/// Quadratic ramp of a penalty's weight at a 0-based step: `λ·min(1, (t+1)/T)²`; `T` 0 gives λ.
pub fn quadratic_ramp(lambda: f64, step: usize, ramp_steps: usize) -> f64 {
    let share = if ramp_steps == 0 { 1.0 } else { ((step + 1) as f64 / ramp_steps as f64).min(1.0) };
    lambda * share * share
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs(sizes: &[(&str, usize)]) -> Vec<ParamSpec> {
        let mut offset = 0;
        sizes
            .iter()
            .map(|&(name, len)| {
                let spec = ParamSpec { name: name.to_owned(), shape: vec![len], offset };
                offset += len;
                spec
            })
            .collect()
    }

    #[test]
    fn first_step_moves_by_the_rate() {
        // With fresh moments m̂/√v̂ is the gradient's sign.
        let specs = specs(&[("a.bias", 2), ("a.weight", 2)]);
        let settings = OptimizerSection { max_grad_norm: None, weight_decay: 0.5, ..OptimizerSection::default() };
        let mut adam = AdamW::new(&specs, &settings, |s| if s.name == "a.bias" { 0.1 } else { 0.01 });
        let mut p = [1.0f32, 1.0, 1.0, 1.0];
        let norm = adam.step(&mut p, &[3.0, -4.0, 0.0, 12.0], 1.0);
        assert!((norm - 13.0).abs() < 1e-12);
        for (value, expected) in p.iter().zip([0.9, 1.1, 0.995, 0.985]) {
            assert!((value - expected).abs() < 1e-6, "{value} against {expected}");
        }
    }

    #[test]
    fn restored_state_goes_on_bit_for_bit() {
        let specs = specs(&[("x", PIECE + 7)]);
        let gradient: Vec<f32> = (0..PIECE + 7).map(|i| ((i * 37 % 101) as f32 - 50.0) / 17.0).collect();
        let settings = OptimizerSection::default();
        let mut a = AdamW::new(&specs, &settings, |_| 1e-2);
        let mut p = vec![0.5f32; PIECE + 7];
        a.step(&mut p, &gradient, 1.0);
        let mut b = AdamW::new(&specs, &settings, |_| 1e-2);
        let (first, second, steps) = a.state();
        b.restore(first.to_vec(), second.to_vec(), steps).expect("same size");
        assert_eq!(b.restore(vec![], vec![], 0), None);
        let mut q = p.clone();
        for _ in 0..3 {
            a.step(&mut p, &gradient, 0.5);
            b.step(&mut q, &gradient, 0.5);
        }
        assert_eq!(p, q);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let mut adam = AdamW::new(&specs(&[("x", 2)]), &OptimizerSection::default(), |_| 1.0);
        let mut p = [1.0f32, 2.0];
        assert!(adam.step(&mut p, &[f32::NAN, 0.0], 1.0).is_nan());
        assert_eq!((p, adam.steps), ([1.0, 2.0], 0));
    }

    #[test]
    fn schedules() {
        let factors: Vec<f64> = (0..6).map(|t| rate_factor(t, 2, 6, Decay::Linear)).collect();
        assert_eq!(factors, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
        let single = [
            rate_factor(5, 2, 6, Decay::Constant),
            rate_factor(0, 0, 0, Decay::Linear),
            quadratic_ramp(0.08, 0, 4),
            quadratic_ramp(0.08, 9, 4),
            quadratic_ramp(0.08, 0, 0),
        ];
        for (got, want) in single.iter().zip([1.0, 0.0, 0.005, 0.08, 0.08]) {
            assert!((got - want).abs() < 1e-15, "{single:?}");
        }
    }
}
