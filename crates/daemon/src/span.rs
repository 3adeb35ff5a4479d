//! Formats spans of time for people.

use std::time::Duration;

/// Whole seconds, as `3h 12m 5s`.
pub(crate) fn span(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    humantime::format_duration(Duration::from_secs(whole)).to_string()
}

/// Parses a span of a command line: `250ms`, `2s`, `1m 30s`; a number alone is seconds, as for ping(8).
///
/// # Errors
///
/// If it is neither.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|number| Duration::try_from_secs_f64(number).ok());
    let wrong = |error| format!("{error}; write \"30s\", \"250ms\", or a number of seconds");
    seconds.map_or_else(|| humantime::parse_duration(text).map_err(wrong), Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_with_a_unit_or_without() {
        assert_eq!(parse("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("2"), Ok(Duration::from_secs(2)));
        assert_eq!(parse("1m 30s"), Ok(Duration::from_secs(90)));
        for wrong in ["", "-1", "NaN", "1e99", "soon"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
