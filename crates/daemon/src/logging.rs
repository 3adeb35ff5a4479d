//! Log lines, on standard error: that is where systemd's journal and a terminal both read. What
//! the network can cause is limited here, so that nobody outside fills a disk.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::debug_fn;
use vpnd_protocol::time::BootTime;

use crate::config::LogFormat;
use crate::terminal::{Printable, escape_json};

/// Begins to log; a second call changes nothing.
pub(crate) fn init(level: LevelFilter, format: LogFormat) {
    let lines = || tracing_subscriber::fmt().with_max_level(level).with_target(false);
    let text = lines().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let text = text.fmt_fields(fields());
    // It fails only if logging has begun already.
    let _already = match format {
        LogFormat::Json => {
            lines().with_writer(|| JsonLines(io::stderr())).json().flatten_event(true).try_init()
        }
        LogFormat::Auto if to_journal() => text.without_time().try_init(),
        LogFormat::Auto | LogFormat::Text => text.try_init(),
    };
}

/// The message and what else an event has, each fit for a terminal: names, paths and answers in them are others'.
fn fields() -> impl for<'writer> FormatFields<'writer> {
    let fields = debug_fn(|to, field, value| match field.name() {
        "message" => write!(to, "{}", Printable(format_args!("{value:?}"))),
        name => write!(to, "{name}={}", Printable(format_args!("{value:?}"))),
    });
    fields.delimited(" ")
}

/// Lines of JSON, in which only C0 is escaped so far.
struct JsonLines<W>(W);

impl<W: Write> Write for JsonLines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let line_escaped = escape_json(&String::from_utf8_lossy(line));
        self.0.write_all(line_escaped.as_bytes()).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
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
    use std::sync::{Arc, Mutex};

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

    /// What a subscriber writes, for a test to read.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().map_err(|_| io::Error::other("poisoned"))?.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn say() {
        tracing::info!(name = %"a\u{202e}b", "cannot read {}", "x\x1b[2J\ny\u{9b}");
    }

    #[test]
    fn what_others_wrote_is_shown_and_not_obeyed() {
        let (text, json) = (Written::default(), Written::default());
        let to = text.clone();
        let lines = tracing_subscriber::fmt().without_time().with_ansi(false).fmt_fields(fields());
        tracing::subscriber::with_default(lines.with_writer(move || to.clone()).finish(), say);
        let expected = r"cannot read x\u{1b}[2J\ny\u{9b} name=a\u{202e}b";
        assert!(text.text().trim_end().ends_with(expected), "{}", text.text());
        assert_eq!(text.text().lines().count(), 1);

        let to = json.clone();
        let lines = tracing_subscriber::fmt().json().flatten_event(true);
        let lines = lines.with_writer(move || JsonLines(to.clone())).finish();
        tracing::subscriber::with_default(lines, say);
        assert!(!json.text().trim_end().contains(crate::terminal::is_unfit), "{}", json.text());
        let read: serde_json::Value = serde_json::from_str(&json.text()).unwrap();
        assert_eq!(read["message"], "cannot read x\x1b[2J\ny\u{9b}");
    }

    #[test]
    fn what_was_not_said_is_counted() {
        assert_eq!(Suppressed(0).to_string(), "");
        assert_eq!(Suppressed(7).to_string(), " (and 7 more like it before)");
    }
}
