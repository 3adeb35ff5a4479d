//! Log lines, on standard error: that is where systemd's journal and a terminal both read.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;

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
