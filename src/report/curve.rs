//! Curves as a page or a terminal can show them: fewer points, a smooth line, round numbers at the axes.

/// A point: step and value.
pub(crate) type Point = (f64, f64);

/// At most about `most` points that look the same: of each stretch the least and the greatest value stay, so that no
/// spike is lost. Points whose value is not finite are left out.
pub(crate) fn thin(points: &[Point], most: usize) -> Vec<Point> {
    let finite: Vec<Point> = points.iter().copied().filter(|p| p.1.is_finite()).collect();
    let stretches = (most / 2).max(1);
    if finite.len() <= most {
        return finite;
    }
    let mut out = Vec::with_capacity(most + 2);
    out.push(finite[0]);
    for i in 0..stretches {
        let part = &finite[i * finite.len() / stretches..(i + 1) * finite.len() / stretches];
        let by_value = |a: &&Point, b: &&Point| a.1.total_cmp(&b.1);
        let (Some(&low), Some(&high)) = (part.iter().min_by(by_value), part.iter().max_by(by_value)) else { continue };
        let (first, second) = if low.0 <= high.0 { (low, high) } else { (high, low) };
        out.push(first);
        if second.0 > first.0 {
            out.push(second);
        }
    }
    out.push(finite[finite.len() - 1]);
    out.dedup_by(|b, a| a.0 >= b.0);
    out
}

/// The same curve without its noise: the mean over a window of a twentieth of the points, that step in the middle.
pub(crate) fn smooth(points: &[Point]) -> Vec<Point> {
    let finite: Vec<Point> = points.iter().copied().filter(|p| p.1.is_finite()).collect();
    let reach = finite.len() / 40;
    let mut sums = vec![0.0];
    for p in &finite {
        sums.push(sums[sums.len() - 1] + p.1);
    }
    let mean = |i: usize| {
        // As far to the left as to the right, so that the ends are not drawn towards the middle.
        let reach = reach.min(i).min(finite.len() - 1 - i);
        (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1) as f64
    };
    (0..finite.len()).map(|i| (finite[i].0, mean(i))).collect()
}

/// An axis: where it begins and ends, whether by logarithms, and the values that are written at it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Axis {
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) logarithmic: bool,
    pub(crate) ticks: Vec<f64>,
}

/// How many times the least value the greatest is before an axis goes by logarithms.
const LOGARITHMIC_FROM: f64 = 50.0;

impl Axis {
    /// An axis for some values with about so many ticks.
    pub(crate) fn of(values: impl Iterator<Item = f64> + Clone, ticks: usize) -> Self {
        let finite = values.filter(|v| v.is_finite());
        let low = finite.clone().fold(f64::INFINITY, f64::min);
        let high = finite.clone().fold(f64::NEG_INFINITY, f64::max);
        if low > high {
            return Self { low: 0.0, high: 1.0, logarithmic: false, ticks: vec![0.0, 1.0] };
        }
        // A few zeros at the beginning of a ramp do not keep a curve from being shown by its logarithms.
        let least = finite.clone().filter(|v| *v > 0.0).fold(f64::INFINITY, f64::min);
        let (all, positive) = finite.fold((0usize, 0usize), |(n, p), v| (n + 1, p + usize::from(v > 0.0)));
        if low >= 0.0 && high / least > LOGARITHMIC_FROM && positive * 10 >= all * 9 {
            return Self::logarithmic(least, high, ticks);
        }
        Self::linear(low, high, ticks)
    }

    /// An axis from zero, where that is near, or from `low` to `high`, without logarithms.
    pub(crate) fn linear(low: f64, high: f64, ticks: usize) -> Self {
        let low = if low >= 0.0 && low < 0.6 * high { 0.0 } else { low };
        let span = if high > low { high - low } else { high.abs().max(1.0) * 0.1 };
        let step = round_step(span / ticks.max(1) as f64);
        let first = (low / step).floor() as i64;
        let last = (high / step).ceil().max(first as f64 + 1.0) as i64;
        let ticks: Vec<f64> = (first..=last).map(|i| i as f64 * step).collect();
        Self { low: ticks[0], high: ticks[ticks.len() - 1], logarithmic: false, ticks }
    }

    fn logarithmic(low: f64, high: f64, ticks: usize) -> Self {
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let every = (last - first).div_euclid(ticks.max(1) as i32).max(1);
        let ticks = (first..=last).filter(|e| (e - first) % every == 0).map(|e| 10f64.powi(e)).collect();
        Self { low: 10f64.powi(first), high: 10f64.powi(last), logarithmic: true, ticks }
    }

    /// Where a value lies: 0 at the beginning, 1 at the end; values beyond stand at the ends.
    pub(crate) fn place(&self, value: f64) -> f64 {
        let place = if self.logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        place.clamp(0.0, 1.0)
    }
}

/// The next larger of 1, 2, 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= step * 0.999_999).unwrap_or(10.0);
    factor * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_of_points_become_few_and_keep_their_spikes() {
        let mut points: Vec<Point> = (0..10_000).map(|i| (f64::from(i), (f64::from(i) / 500.0).sin())).collect();
        points[7777].1 = 50.0;
        points[123].1 = -40.0;
        points[5].1 = f64::NAN;
        let thinned = thin(&points, 400);
        assert!(thinned.len() <= 404, "{}", thinned.len());
        assert!(thinned.contains(&(7777.0, 50.0)) && thinned.contains(&(123.0, -40.0)));
        assert!(thinned.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!((thinned[0], thinned[thinned.len() - 1].0), ((0.0, 0.0), 9999.0));
        assert_eq!(thin(&points[10..20], 400), &points[10..20]);
        assert!(thin(&[], 400).is_empty());
    }

    #[test]
    fn a_smooth_line_keeps_what_is_smooth() {
        let line: Vec<Point> = (0..200).map(|i| (f64::from(i), 3.0 * f64::from(i) + 1.0)).collect();
        for (a, b) in smooth(&line).iter().zip(&line) {
            assert!((a.1 - b.1).abs() < 1e-9);
        }
        let noise: Vec<Point> = (0..200).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        assert!(smooth(&noise)[20..180].iter().all(|p| (p.1 - 0.5).abs() < 0.1));
        assert_eq!(smooth(&[(1.0, 2.0)]), [(1.0, 2.0)]);
        assert!(smooth(&[]).is_empty());
    }

    #[test]
    fn axes_have_round_ends() {
        let of = |values: &[f64]| Axis::of(values.iter().copied(), 4);
        assert_eq!(of(&[2.0, 97.0]).ticks, [0.0, 50.0, 100.0]);
        assert_eq!(of(&[0.82, 0.84]).ticks.len(), 5);
        assert_eq!(of(&[0.0, 0.0]).ticks[..1], [0.0]);
        assert_eq!(of(&[]).ticks, [0.0, 1.0]);
        assert!(of(&[7.0, 7.0]).place(7.0).abs() < 1e-12);
        let log = of(&[0.0, 3.0, 10.0, 20.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0, 3456.0]);
        assert!(log.logarithmic && log.ticks == [1.0, 10.0, 100.0, 1000.0, 10_000.0], "{log:?}");
        assert!((log.place(100.0) - 0.5).abs() < 1e-12 && log.place(0.0).abs() < 1e-12);
        assert!(!of(&[-1.0, 500.0]).logarithmic);
    }
}
