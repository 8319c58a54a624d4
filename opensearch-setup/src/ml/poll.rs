//! Waiting for a state: ask, pause, ask again, until it is there or the deadline has passed.

use std::time::{Duration, Instant};

use nsparse_core::Cancel;

use crate::error::{Error, Result};

/// How often and how long a state is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Poll {
    /// Pause between two questions.
    pub interval: Duration,
    /// No question is asked later than this after the first.
    pub deadline: Duration,
}

impl Default for Poll {
    /// Twice a second, for ten minutes: a large encoder is unpacked and loaded on every node.
    fn default() -> Self {
        Self { interval: Duration::from_millis(500), deadline: Duration::from_mins(10) }
    }
}

/// What one question found.
pub(crate) enum Seen<T> {
    /// What was waited for.
    Done(T),
    /// Not yet; the state, for the message.
    NotYet(String),
}

impl Poll {
    /// Asks until `ask` says [`Seen::Done`].
    ///
    /// # Errors
    /// What `ask` reports, [`Error::Deadline`], or that the user stopped it.
    pub(crate) fn until<T>(&self, what: &str, cancel: &Cancel, mut ask: impl FnMut() -> Result<Seen<T>>) -> Result<T> {
        let started = Instant::now();
        loop {
            cancel.check()?;
            match ask()? {
                Seen::Done(value) => return Ok(value),
                Seen::NotYet(last) => {
                    if started.elapsed() + self.interval > self.deadline {
                        return Err(Error::Deadline { what: what.to_owned(), last, after: started.elapsed() });
                    }
                }
            }
            std::thread::sleep(self.interval);
        }
    }
}
