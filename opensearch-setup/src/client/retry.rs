//! Pauses between tries.

use std::time::Duration;

use backon::ExponentialBuilder;

/// How often and how long a request that may be repeated is tried again: 429, 502, 503, 504 and broken
/// connections only, with exponential backoff and jitter.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// First pause.
    pub min_delay: Duration,
    /// Longest pause.
    pub max_delay: Duration,
    /// Tries after the first.
    pub retries: usize,
    /// No new pause begins once this much time was paused in all.
    pub deadline: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            min_delay: Duration::from_millis(200),
            max_delay: Duration::from_secs(10),
            retries: 8,
            deadline: Duration::from_mins(2),
        }
    }
}

impl RetryPolicy {
    /// The pauses, for `backon`.
    pub(crate) fn builder(&self) -> ExponentialBuilder {
        ExponentialBuilder::default()
            .with_min_delay(self.min_delay)
            .with_max_delay(self.max_delay)
            .with_max_times(self.retries)
            .with_total_delay(Some(self.deadline))
            .with_jitter()
    }
}
