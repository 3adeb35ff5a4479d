//! The output of the demonstration: numbered steps, lines of text, and on a terminal a progress that is updated
//! in place.

use std::cell::Cell;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::transfer::Limit;

/// Writes to standard output.
#[derive(Debug, Default)]
pub(super) struct Teller {
    steps: Cell<u32>,
}

impl Teller {
    /// Begins the next step.
    pub(super) fn step(&self, title: &str) -> anyhow::Result<()> {
        self.steps.set(self.steps.get() + 1);
        let gap = if self.steps.get() == 1 { "" } else { "\n" };
        say(format_args!("{gap}{}. {title}\n", self.steps.get()))
    }

    /// Writes one line of a step.
    pub(super) fn line(&self, text: fmt::Arguments<'_>) -> anyhow::Result<()> {
        say(format_args!("   {text}\n"))
    }

    /// Shows the progress of a transfer until it is done.
    pub(super) async fn watch<T>(
        &self,
        name: &str,
        limit: Limit,
        bytes: &AtomicU64,
        transfer: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let mut progress = Progress::new(name, limit);
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        tokio::pin!(transfer);
        loop {
            tokio::select! {
                done = &mut transfer => {
                    progress.end()?;
                    return done;
                }
                _ = tick.tick() => progress.show(bytes.load(Ordering::Relaxed))?,
            }
        }
    }
}

/// The progress of one transfer.
struct Progress<'a> {
    name: &'a str,
    limit: Limit,
    start: Instant,
    /// Whether the output is a terminal. There each report overwrites the previous one; elsewhere only a few
    /// lines are printed.
    terminal: bool,
    quarters: u8,
}

impl<'a> Progress<'a> {
    fn new(name: &'a str, limit: Limit) -> Self {
        let terminal = io::stdout().is_terminal();
        Self { name, limit, start: Instant::now(), terminal, quarters: 0 }
    }

    fn show(&mut self, bytes: u64) -> anyhow::Result<()> {
        let percent = self.percent(bytes);
        let text = format!("{:<9}  {percent:3} %  {}", self.name, size(bytes));
        if self.terminal {
            let bar = "#".repeat(usize::from(percent / 4));
            return say(format_args!("\r   {text:<28} [{bar:<25}]"));
        }
        if percent / 25 == self.quarters {
            return Ok(());
        }
        self.quarters = percent / 25;
        say(format_args!("   {text}\n"))
    }

    /// Clears the line, so that the result can be printed there.
    fn end(&self) -> anyhow::Result<()> {
        if self.terminal { say(format_args!("\r\x1b[K")) } else { Ok(()) }
    }

    /// The progress in percent: of the byte limit or of the time limit, whichever is higher.
    fn percent(&self, bytes: u64) -> u8 {
        let of_bytes = u128::from(bytes) * 100 / u128::from(self.limit.bytes);
        let of_time = self.start.elapsed().as_nanos() * 100 / self.limit.time.as_nanos();
        u8::try_from(of_bytes.max(of_time)).map_or(100, |percent| percent.min(100))
    }
}

/// Formats a rate in bits per second, with decimal units.
pub(super) fn rate(bytes_per_second: f64) -> String {
    let bits = bytes_per_second * 8.0;
    if bits >= 1e9 {
        format!("{:.2} Gbit/s", bits / 1e9)
    } else {
        format!("{:.0} Mbit/s", bits / 1e6)
    }
}

/// Formats a number of bytes, with binary units.
pub(super) fn size(bytes: u64) -> String {
    let kib = bytes as f64 / 1024.0;
    match bytes {
        0..0x10_0000 => format!("{kib:.0} KiB"),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", kib / 1024.0),
        _ => format!("{:.2} GiB", kib / 1024.0 / 1024.0),
    }
}

fn say(text: fmt::Arguments<'_>) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let said = out.write_fmt(text).and_then(|()| out.flush());
    said.context("cannot write to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_as_people_write_them() {
        assert_eq!(rate(1.25e9 / 8.0), "1.25 Gbit/s");
        assert_eq!(rate(12.5e6), "100 Mbit/s");
        assert_eq!(size(1 << 10), "1 KiB");
        assert_eq!(size(3 << 19), "1.5 MiB");
        assert_eq!(size(1 << 30), "1.00 GiB");
    }

    #[test]
    fn progress_follows_what_ends_first() {
        let limit = Limit { bytes: 1000, time: Duration::from_secs(3600) };
        assert_eq!(Progress::new("tunnel", limit).percent(250), 25);
        assert_eq!(Progress::new("tunnel", limit).percent(5000), 100);
        let limit = Limit { bytes: 1000, time: Duration::from_nanos(1) };
        assert_eq!(Progress::new("tunnel", limit).percent(0), 100);
    }
}
