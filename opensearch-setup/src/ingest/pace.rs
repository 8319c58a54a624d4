//! How much may be on the way at once, and how large a batch should be. A pure function of the answers seen and of the
//! time it is told, so that a test can run hours of it in no time.
//!
//! Concurrency goes up by one a round while answers do not queue, and down to half when the cluster refuses: additive
//! increase, multiplicative decrease. Whether answers queue is told as TCP Vegas does: of `w` requests on the way about
//! `w · (1 − alone / now)` only wait, where `now` is seconds a byte, and `alone` what they are with so few on the way that
//! none waits. What the cluster does besides changes, so now and then only so few go out until that is known again, as in
//! BBR's probes. Batches grow while they are answered quickly and shrink when they are slow, too large, or refused one by
//! one.

use std::time::Duration;

use crate::client::RetryPolicy;

/// Requests on the way at the start, and in a probe.
const FEW: usize = 2;
/// A probe ends after so many answers to requests that were never among more than [`FEW`].
const PROBE_ANSWERS: u32 = 3;
/// The share of the newest answer in what answers take of late.
const RECENT: f64 = 0.25;
/// This long after one probe the next begins.
const PROBE_EVERY: Duration = Duration::from_mins(1);
/// Fewer waiting requests than this: one more may go out.
const QUEUE_LOW: f64 = 1.0;
/// More waiting requests than this: one fewer.
const QUEUE_HIGH: f64 = 2.5;
/// A batch that is answered within this may be larger, in seconds.
const QUICK: f64 = 1.0;
/// A batch that takes longer than this should be smaller, in seconds.
const SLOW: f64 = 5.0;

/// What the pace may not leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The smallest size of a batch that is aimed at.
    pub min_bytes: usize,
    /// The largest.
    pub max_bytes: usize,
    /// Most requests on the way.
    pub max_in_flight: usize,
    /// Most bytes on the way: the more requests, the smaller each.
    pub max_on_the_way: usize,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// All was taken, or refused for good.
    Taken,
    /// The cluster was too busy, for some of it or all.
    Busy {
        /// Whether some of it was taken.
        some_taken: bool,
    },
    /// No answer came: a broken connection, a dead node, a gateway's 502.
    Silent,
    /// No answer came in time.
    Late,
    /// The request was too large.
    TooLarge,
}

/// A request that came to its end.
#[derive(Debug, Clone, Copy)]
pub struct Sight {
    /// When it was sent.
    pub sent: Duration,
    /// When its answer came.
    pub answered: Duration,
    /// Its body's size.
    pub bytes: usize,
    /// Whether it was sent because it had the size or the number of documents that it should have. What was left over, or
    /// would not wait, says little: most of its time is not for its bytes.
    pub is_whole: bool,
    /// Whether as many were on the way as were allowed: only then is the number what holds the cluster back.
    pub is_full: bool,
    /// The most that were on the way at once while it was, itself included.
    pub among: usize,
    /// What became of it.
    pub seen: Seen,
}

/// The pace of one ingest. Times are counted from any one moment.
#[derive(Debug, Clone)]
pub struct Pace {
    limits: Limits,
    retry: RetryPolicy,
    window: f64,
    bytes: f64,
    /// Seconds a byte where few are on the way; infinite before the first answer.
    alone: f64,
    /// Seconds a byte of late: answers differ, and one that came quickly by chance says little.
    recent: Option<f64>,
    probe: Probe,
    /// Refusals in a row.
    failures: u32,
    /// When the window was last cut: what was sent before belongs to the same incident.
    cut_at: Option<Duration>,
    not_before: Duration,
    noise: u64,
}

/// How `alone` is found out.
#[derive(Debug, Clone, Copy)]
enum Probe {
    /// It is known since then.
    Done(Duration),
    /// Few go out until so many more answers have come; the sum of seconds a byte of those that came.
    Now { left: u32, sum: f64 },
}

impl Pace {
    /// Two requests of half the largest size to begin with.
    pub fn new(limits: Limits, retry: RetryPolicy, seed: u64) -> Self {
        let max = limits.max_bytes.max(1);
        let limits = Limits { min_bytes: limits.min_bytes.clamp(1, max), max_bytes: max, ..limits };
        Self {
            window: FEW.min(limits.max_in_flight.max(1)) as f64,
            bytes: (max as f64 / 2.0).max(limits.min_bytes as f64),
            limits,
            retry,
            alone: f64::INFINITY,
            recent: None,
            probe: Probe::Done(Duration::ZERO),
            failures: 0,
            cut_at: None,
            not_before: Duration::ZERO,
            noise: seed,
        }
    }

    /// Requests that may be on the way at once; at least 1.
    pub fn in_flight(&self) -> usize {
        let most = self.limits.max_in_flight.max(1);
        (self.window as usize).clamp(1, if matches!(self.probe, Probe::Now { .. }) { most.min(FEW) } else { most })
    }

    /// The size at which a batch should end.
    pub fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// Nothing should be sent before this time.
    pub fn not_before(&self) -> Duration {
        self.not_before
    }

    /// Learns from a request that came to its end.
    pub fn see(&mut self, sight: &Sight) {
        match sight.seen {
            Seen::Taken => self.taken(sight),
            Seen::TooLarge => {
                self.limits.max_bytes = (sight.bytes / 2).max(self.limits.min_bytes);
                self.bytes = self.bytes.min(self.limits.max_bytes as f64);
            }
            Seen::Busy { .. } | Seen::Silent | Seen::Late => self.refused(sight),
        }
    }

    fn taken(&mut self, sight: &Sight) {
        self.failures = 0;
        let seconds = sight.answered.saturating_sub(sight.sent).as_secs_f64().max(1e-4);
        if !sight.is_whole {
            return;
        }
        let now = seconds / sight.bytes as f64;
        let recent = self.recent.map_or(now, |recent| recent + RECENT * (now - recent));
        self.recent = Some(recent);
        self.probe(sight, now, recent);
        if matches!(self.probe, Probe::Done(_)) {
            let queue = self.window * (1.0 - self.alone / recent);
            if sight.is_full && queue < QUEUE_LOW {
                self.window += 1.0 / self.window;
            } else if queue > QUEUE_HIGH {
                self.window -= 1.0 / self.window;
            }
            self.window = self.window.clamp(1.0, self.limits.max_in_flight.max(1) as f64);
        }
        // Batches may end for their number of documents, far below the size they might have.
        let size = sight.bytes as f64;
        if seconds < QUICK && size > 0.5 * self.bytes {
            self.bytes *= 1.25;
        } else if seconds > SLOW {
            self.bytes = 0.8 * self.bytes.min(size);
        }
        let most = (self.limits.max_on_the_way as f64 / self.window).min(self.limits.max_bytes as f64);
        self.bytes = self.bytes.min(most).max(self.limits.min_bytes as f64);
    }

    /// Learns how long a byte takes where few requests are on the way; `recent` is what it takes now.
    fn probe(&mut self, sight: &Sight, now: f64, recent: f64) {
        self.alone = self.alone.min(recent);
        match &mut self.probe {
            Probe::Done(since) if sight.answered > *since + PROBE_EVERY => {
                self.probe = Probe::Now { left: PROBE_ANSWERS, sum: 0.0 };
            }
            Probe::Now { left, sum } if sight.among <= FEW => {
                (*left, *sum) = (*left - 1, *sum + now);
                if *left == 0 {
                    self.alone = *sum / f64::from(PROBE_ANSWERS);
                    self.recent = Some(self.alone);
                    self.probe = Probe::Done(sight.answered);
                }
            }
            Probe::Done(_) | Probe::Now { .. } => {}
        }
    }

    fn refused(&mut self, sight: &Sight) {
        // All that was on the way together is refused together: that is one incident.
        if self.cut_at.is_some_and(|cut| sight.sent < cut) {
            return;
        }
        self.cut_at = Some(sight.answered);
        let is_small = self.window < 2.0;
        self.window = (self.window / 2.0).max(1.0);
        // One at a time and still too much: then each is too much.
        if sight.seen == Seen::Late || is_small && matches!(sight.seen, Seen::Busy { some_taken: false }) {
            let size = if sight.is_whole { self.bytes.min(sight.bytes as f64) } else { self.bytes };
            self.bytes = (size / 2.0).max(self.limits.min_bytes as f64);
        }
        self.failures = if sight.seen == (Seen::Busy { some_taken: true }) { 1 } else { self.failures + 1 };
        self.not_before = sight.answered + self.pause();
    }

    /// Doubled from refusal to refusal, up to the longest; a quarter more or less, so that clients part.
    fn pause(&mut self) -> Duration {
        let doubled = self.retry.min_delay.as_secs_f64() * 2f64.powi(self.failures.saturating_sub(1).min(30) as i32);
        let longest = self.retry.max_delay.as_secs_f64();
        self.noise = self.noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = (self.noise >> 11) as f64 / (1u64 << 53) as f64;
        Duration::from_secs_f64(doubled.min(longest) * (0.75 + 0.5 * share))
    }
}
