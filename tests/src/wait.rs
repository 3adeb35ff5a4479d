//! Waiting for what should come, with a limit.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Between two looks: short, so that what is measured in fractions of a second can be.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks until there is something, or `limit` has passed.
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

/// Tries until it succeeds, and returns the last error when `limit` has passed.
///
/// # Errors
/// That of the last attempt, with `what` was waited for.
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
