//! Log lines, on standard error: that is where systemd's journal and a terminal both read. What
//! the network can cause is limited here, so that nobody outside fills a disk.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IsTerminal};
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use vpnd_protocol::time::BootTime;

use crate::config::LogFormat;

/// Begins to log; a second call changes nothing.
pub(crate) fn init(level: LevelFilter, format: LogFormat) {
    let lines = tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr);
    let lines = lines.with_target(false).with_ansi(io::stderr().is_terminal());
    // It fails only if logging has begun already.
    let _already = match format {
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
        LogFormat::Auto if to_journal() => lines.without_time().try_init(),
        LogFormat::Auto | LogFormat::Text => lines.try_init(),
    };
}

/// Whether the journal reads what we write, and notes the time itself.
fn to_journal() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some() && !io::stderr().is_terminal()
}

/// After a line, the next of its class comes this much later at the earliest.
const APART: Duration = Duration::from_secs(10);

/// Says of each class of lines the first at once, and after it at most one in ten seconds.
/// Classes are a closed set: nobody outside adds one.
#[derive(Debug)]
pub(crate) struct RateLimit<Class>(BTreeMap<Class, Spell>);

/// The time since the last line of a class.
#[derive(Debug)]
struct Spell {
    since: BootTime,
    suppressed: u64,
}

impl<Class: Ord> RateLimit<Class> {
    /// Whether a line of this class is due, and how many were not said since its last.
    pub(crate) fn allow(&mut self, class: Class, now: BootTime) -> Option<Suppressed> {
        if let Some(spell) = self.0.get_mut(&class)
            && now.saturating_since(spell.since) < APART
        {
            spell.suppressed += 1;
            return None;
        }
        let last = self.0.insert(class, Spell { since: now, suppressed: 0 });
        Some(Suppressed(last.map_or(0, |spell| spell.suppressed)))
    }
}

impl<Class> Default for RateLimit<Class> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// Lines that were not said; shown, it ends the line that is, and is empty when there were none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Suppressed(u64);

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " (and {count} more like it before)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_at_once_then_one_in_ten_seconds() {
        let mut limit = RateLimit::default();
        let at = |seconds| BootTime::default() + Duration::from_secs(seconds);
        assert_eq!(limit.allow("a", at(0)), Some(Suppressed(0)));
        assert_eq!(limit.allow("a", at(0)), None);
        assert_eq!(limit.allow("b", at(1)), Some(Suppressed(0)), "classes do not mix");
        assert_eq!(limit.allow("a", at(9)), None);
        assert_eq!(limit.allow("a", at(10)), Some(Suppressed(2)));
        assert_eq!(limit.allow("a", at(19)), None);
        assert_eq!(limit.allow("a", at(100)), Some(Suppressed(1)));
    }

    #[test]
    fn what_was_not_said_is_counted() {
        assert_eq!(Suppressed(0).to_string(), "");
        assert_eq!(Suppressed(7).to_string(), " (and 7 more like it before)");
    }
}
