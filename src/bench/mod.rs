//! Measurements of this machine with this program: training steps, encoding, searching, and the products alone.

pub(crate) mod args;
pub(crate) mod encode;
pub(crate) mod model;
pub(crate) mod product;
pub(crate) mod queries;
pub(crate) mod search;
pub(crate) mod train;

use std::time::{Duration, Instant};

use nsparse_core::{Cancel, Progress};
use nsparse_encoder::cpu::Level;
use nsparse_encoder::work::{self, Work};
use serde::Serialize;

use crate::bench::args::RoundArgs;
use crate::failure::usage;

/// How long one shape of product is measured.
const PRODUCT_BUDGET: Duration = Duration::from_millis(100);

/// What was measured with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Machine {
    /// Version of this program.
    version: &'static str,
    /// The device of the network, `cpu` where there is none.
    pub(crate) device: String,
    /// Vector instructions of the fused loops on the CPU.
    vector_instructions: String,
    /// Threads on the CPU.
    pub(crate) threads: usize,
}

impl Machine {
    pub(crate) fn new(device: impl std::fmt::Display) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            device: device.to_string(),
            vector_instructions: Level::best().to_string(),
            threads: rayon::current_num_threads(),
        }
    }
}

/// Seconds of equal rounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Timing {
    /// Timed rounds, after the warm-up.
    rounds: usize,
    /// The middle round; of an even number the mean of both in the middle.
    pub(crate) median_seconds: f64,
    pub(crate) min_seconds: f64,
    pub(crate) max_seconds: f64,
    /// All rounds in the order they were made.
    seconds: Vec<f64>,
}

impl Timing {
    fn new(seconds: Vec<f64>) -> Self {
        let mut sorted = seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        Self {
            rounds: n,
            median_seconds: f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2]),
            min_seconds: sorted[0],
            max_seconds: sorted[n - 1],
            seconds,
        }
    }
}

/// Times equal rounds after a warm-up; `round` gets its number, warm-up included.
pub(crate) fn rounds(
    args: &RoundArgs,
    progress: &dyn Progress,
    cancel: &Cancel,
    mut round: impl FnMut(usize) -> anyhow::Result<()>,
) -> anyhow::Result<Timing> {
    if args.rounds == 0 {
        return Err(usage("No round is to be timed", "give --rounds 1 or more"));
    }
    let task = progress.start("Measuring", (args.warmup + args.rounds) as u64);
    let mut seconds = Vec::with_capacity(args.rounds);
    for number in 0..args.warmup + args.rounds {
        cancel.check()?;
        let started = Instant::now();
        round(number)?;
        let took = started.elapsed().as_secs_f64();
        if number >= args.warmup {
            seconds.push(took);
        }
        task.advance(1);
        task.message(&format!("{took:.3} s"));
    }
    Ok(Timing::new(seconds))
}

/// Uses that many threads from now on; all cores without a number.
pub(crate) fn use_threads(threads: Option<usize>) -> anyhow::Result<()> {
    if threads == Some(0) {
        return Err(usage("No thread is to work", "give --threads 1 or more"));
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build_global()?;
    Ok(())
}

/// What products cost, and what the machine does when it does nothing else.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Rates {
    /// Operations of the f32 products of one round, as executed.
    flops: f64,
    /// Operations of the network as it is defined: every product once, in the forward and in the backward.
    network_flops: f64,
    /// Executed operations a second, in 10⁹, over the median round.
    pub(crate) gflops_per_second: f64,
    /// The same products alone, in 10⁹ a second; only on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_gflops_per_second: Option<f64>,
    /// The former over the latter: the share of the time in which products have to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) share_of_rate: Option<f64>,
    /// Whether a screen in low precision took the place of the head's product with the vocabulary, which then is
    /// not among the executed ones.
    pub(crate) head_is_screened: bool,
}

impl Rates {
    /// Measures the executed products alone, unless they ran on another device.
    pub(crate) fn measure(
        executed: &[Work],
        network_flops: f64,
        head_is_screened: bool,
        median_seconds: f64,
        is_cpu: bool,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> anyhow::Result<Self> {
        let flops = work::total_flops(executed);
        let gflops = flops / median_seconds / 1e9;
        let rate = if is_cpu {
            Some(flops / work::seconds_alone(executed, PRODUCT_BUDGET, progress, cancel)? / 1e9)
        } else {
            None
        };
        Ok(Self {
            flops,
            network_flops,
            gflops_per_second: gflops,
            rate_gflops_per_second: rate,
            share_of_rate: rate.map(|r| gflops / r),
            head_is_screened,
        })
    }

    /// One or two lines for people.
    pub(crate) fn show(&self) -> String {
        let mut out = format!("{:.1} GFLOP of products: {:.1} GFLOP/s", self.flops / 1e9, self.gflops_per_second);
        if let (Some(rate), Some(share)) = (self.rate_gflops_per_second, self.share_of_rate) {
            let share = share * 100.0;
            out = format!("{out}, {share:.0} % of the {rate:.1} GFLOP/s that they reach alone");
        }
        if self.head_is_screened {
            let flops = self.network_flops / 1e9;
            out += "\nscreened head: its product with the vocabulary is not among them; ";
            out = format!("{out}the whole network has {flops:.1} GFLOP");
        }
        out
    }
}

/// Seconds as people read them: three digits.
pub(crate) fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

/// The median with its spread.
pub(crate) fn spread(timing: &Timing) -> String {
    format!(
        "median {} ({} to {} over {} rounds)",
        time(timing.median_seconds),
        time(timing.min_seconds),
        time(timing.max_seconds),
        timing.rounds
    )
}

/// Bytes as people read them; nothing where the system does not tell.
pub(crate) fn memory(bytes: Option<u64>) -> String {
    bytes.map_or_else(String::new, |b| format!("peak memory {:.0} MB", b as f64 / 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let of = |seconds: &[f64]| {
            let timing = Timing::new(seconds.to_vec());
            [timing.median_seconds, timing.min_seconds, timing.max_seconds].map(|s| (s * 1e3).round() as i64)
        };
        assert_eq!(of(&[3.0, 1.0, 2.0]), [2000, 1000, 3000]);
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]), [2500, 1000, 4000]);
        assert_eq!(of(&[0.5]), [500, 500, 500]);
    }
}
