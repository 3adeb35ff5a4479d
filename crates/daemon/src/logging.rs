//! Log lines on standard error, which both systemd's journal and a terminal can read. Lines that the network
//! can cause are rate-limited here, so that no outsider can fill a disk. If the log cannot be written, the
//! tunnel still runs.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use clap::Args;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};
use vpnd_protocol::time::BootTime;

use crate::config::{LogFormat, Service};
use crate::log_output::Output;
use crate::terminal::{Printable, escape_json};

/// How much is logged, and how.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Logging {
    /// Logs more than the configuration says; twice, still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Logs less than the configuration says; twice, still less
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "verbose")]
    pub(crate) quiet: u8,
    /// How log lines look [default: as the configuration says]
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

impl Logging {
    /// The level and the format: those of the command line, or else of the configuration.
    fn of(&self, service: &Service) -> (LevelFilter, LogFormat) {
        let format = self.log_format.unwrap_or(service.log_format);
        (self.level(service.log_level), format)
    }

    /// `level`, adjusted by the number of `-v` and `-q`.
    pub(crate) fn level(&self, level: LevelFilter) -> LevelFilter {
        const STEPS: [LevelFilter; 6] = [
            LevelFilter::OFF,
            LevelFilter::ERROR,
            LevelFilter::WARN,
            LevelFilter::INFO,
            LevelFilter::DEBUG,
            LevelFilter::TRACE,
        ];
        let step = STEPS.iter().position(|known| *known == level).unwrap_or_default();
        let step = (step + usize::from(self.verbose)).saturating_sub(usize::from(self.quiet));
        STEPS[step.min(STEPS.len() - 1)]
    }
}

static OUTPUT: OnceLock<Output> = OnceLock::new();
static CHANGE: OnceLock<Change> = OnceLock::new();
/// Whether lines are JSON now.
static IS_JSON: AtomicBool = AtomicBool::new(false);

/// Changes level and format of a log that was started.
type Change = Box<dyn Fn(&Service) + Send + Sync>;

/// Makes lines of events.
type Lines = Box<dyn Layer<Registry> + Send + Sync>;

/// Starts logging as the configuration and the command line say; a second call changes nothing.
pub(crate) fn init(logging: Logging, service: &Service) {
    let (level, format) = logging.of(service);
    let Some(set) = begin(level, format) else { return };
    let change = move |service: &Service| {
        let (level, format) = logging.of(service);
        set(level, format);
    };
    let _once = CHANGE.set(Box::new(change));
}

/// Starts logging at a level and in a format that no configuration changes.
pub(crate) fn init_fixed(level: LevelFilter, format: LogFormat) {
    drop(begin(level, format));
}

/// Starts logging, and returns what sets another level and format; `None` if logging has already been started.
fn begin(level: LevelFilter, format: LogFormat) -> Option<impl Fn(LevelFilter, LogFormat)> {
    let (lines, lines_handle) = reload::Layer::new(lines(format));
    let (level, level_handle) = reload::Layer::new(level);
    tracing_subscriber::registry().with(lines).with(level).try_init().ok()?;
    Some(move |level, format| {
        // These fail only without a log.
        let _gone = lines_handle.reload(self::lines(format));
        let _gone = level_handle.reload(level);
    })
}

/// Logs as another configuration says from now on. The command line takes precedence still.
pub(crate) fn change(service: &Service) {
    if let Some(change) = CHANGE.get() {
        change(service);
    }
}

fn lines(format: LogFormat) -> Lines {
    IS_JSON.store(format == LogFormat::Json, Relaxed);
    let output = || OUTPUT.get_or_init(|| Output::new(stderr_fd(), lost));
    let lines = || {
        let lines = tracing_subscriber::fmt::layer().with_target(false);
        // tracing would report these errors with a macro that panics if it cannot write to standard error.
        lines.log_internal_errors(false)
    };
    let text = lines().with_writer(output).with_ansi(io::stderr().is_terminal());
    let text = text.fmt_fields(fields());
    match format {
        LogFormat::Json => {
            lines().json().flatten_event(true).with_writer(move || JsonLines(output())).boxed()
        }
        LogFormat::Auto if to_journal() => text.without_time().boxed(),
        LogFormat::Auto | LogFormat::Text => text.boxed(),
    }
}

/// The line about lines that were lost, in the format of the log.
fn lost(count: u64) -> String {
    match IS_JSON.load(Relaxed) {
        true => lost_json(count),
        false if to_journal() => lost_untimed(count),
        false => lost_text(count),
    }
}

/// Reports lost log lines, if the reader accepts the report within a second. Call this before the process ends.
pub(crate) fn finish() {
    if let Some(output) = OUTPUT.get() {
        output.finish();
    }
}

fn stderr_fd() -> BorrowedFd<'static> {
    static STDERR: OnceLock<io::Stderr> = OnceLock::new();
    STDERR.get_or_init(io::stderr).as_fd()
}

fn dropped(count: u64) -> String {
    let lines = if count == 1 { "line" } else { "lines" };
    format!("dropped {count} {lines} of the log that could not be written")
}

fn now() -> String {
    let mut now = String::new();
    // Writing to a string does not fail.
    let _written = SystemTime.format_time(&mut Writer::new(&mut now));
    now
}

fn lost_untimed(count: u64) -> String {
    format!(" WARN {}\n", dropped(count))
}

fn lost_text(count: u64) -> String {
    format!("{} {}", now(), lost_untimed(count))
}

fn lost_json(count: u64) -> String {
    let (now, lost) = (now(), dropped(count));
    format!("{{\"timestamp\":\"{now}\",\"level\":\"WARN\",\"message\":\"{lost}\"}}\n")
}

/// Formats the message and the fields of an event so that a terminal can show them safely: they contain names,
/// paths and answers from others.
fn fields() -> impl for<'writer> FormatFields<'writer> {
    let fields = debug_fn(|to, field, value| match field.name() {
        "message" => write!(to, "{}", Printable(format_args!("{value:?}"))),
        name => write!(to, "{name}={}", Printable(format_args!("{value:?}"))),
    });
    fields.delimited(" ")
}

/// A writer for lines of JSON in which only the C0 control characters have been escaped so far.
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

/// Whether the output goes to systemd's journal, which adds the time itself.
pub(crate) fn to_journal() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some() && !io::stderr().is_terminal()
}

/// The shortest time between two lines of one class.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Allows the first line of each class at once, and then at most one every ten seconds. The set of classes is
/// fixed: no outsider can add one.
#[derive(Debug)]
pub(crate) struct RateLimit<Class>(BTreeMap<Class, LastLine>);

/// The state of a class since its last line.
#[derive(Debug)]
struct LastLine {
    since: BootTime,
    suppressed: u64,
}

impl<Class: Ord> RateLimit<Class> {
    /// Whether a line of this class may be logged, with the number of lines suppressed since the last one.
    pub(crate) fn allow(&mut self, class: Class, now: BootTime) -> Option<Suppressed> {
        if let Some(spell) = self.0.get_mut(&class)
            && now.saturating_since(spell.since) < LINE_INTERVAL
        {
            spell.suppressed += 1;
            return None;
        }
        let last = self.0.insert(class, LastLine { since: now, suppressed: 0 });
        Some(Suppressed(last.map_or(0, |spell| spell.suppressed)))
    }
}

impl<Class> Default for RateLimit<Class> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// The number of suppressed lines, which is appended to the next line; a zero is not shown.
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

    /// Collects a subscriber's output for a test.
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
    fn lost_lines_are_reported_in_the_format_of_the_log() {
        assert_eq!(lost_untimed(1), " WARN dropped 1 line of the log that could not be written\n");
        assert!(
            lost_text(7)
                .ends_with("Z  WARN dropped 7 lines of the log that could not be written\n")
        );
        let json: serde_json::Value = serde_json::from_str(&lost_json(7)).unwrap();
        assert_eq!(json["level"], "WARN");
        assert_eq!(json["message"], dropped(7));
    }

    #[test]
    fn what_was_not_said_is_counted() {
        assert_eq!(Suppressed(0).to_string(), "");
        assert_eq!(Suppressed(7).to_string(), " (and 7 more like it before)");
    }

    #[test]
    fn verbosity_counts_from_the_configured_level() {
        let logging = |verbose, quiet| Logging { verbose, quiet, log_format: None };
        assert_eq!(logging(1, 0).level(LevelFilter::INFO), LevelFilter::DEBUG);
        assert_eq!(logging(9, 0).level(LevelFilter::INFO), LevelFilter::TRACE);
        assert_eq!(logging(0, 1).level(LevelFilter::INFO), LevelFilter::WARN);
        assert_eq!(logging(0, 9).level(LevelFilter::INFO), LevelFilter::OFF);
    }
}
