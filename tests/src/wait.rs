//! Waits for events, with a time limit.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The time between two polls: short, so that fractions of a second can be measured.
const PAUSE: Duration = Duration::from_millis(10);

/// Polls until there is a value, or `limit` has passed.
pub fn within<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if start.elapsed() >= limit {
            return None;
        }
        thread::sleep(PAUSE);
    }
}

/// Tries until it succeeds, or returns the last error when `limit` has passed.
///
/// # Errors
/// The error of the last attempt, with `what` as the goal.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= limit => {
                return Err(error).with_context(|| format!("{what}: not within {limit:?}"));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}
