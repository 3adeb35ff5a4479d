//! Formats spans of time for people.

use std::time::Duration;

/// Whole seconds, as `3h 12m 5s`.
pub(crate) fn span(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    humantime::format_duration(Duration::from_secs(whole)).to_string()
}
