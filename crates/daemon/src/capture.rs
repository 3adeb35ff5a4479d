//! `vpnd capture NAME`: asks a running tunnel for its packets, and writes them to a file or prints a line about each.

mod line;
mod output;
mod packet;
mod pcapng;
mod records;
mod sources;

use std::fmt;
use std::io::{self, Write};
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{ArgGroup, Args};
use vpnd_tunnel::tap::{Counts, Kind, Lost};

use crate::ask::{self, Asked, socket};
use crate::control::{Ask, AskCapture, Begun};
use crate::exit::Exit;
use crate::interrupt::{Interrupt, Woken};
use crate::terminal::Printable;

use output::Output;
use records::Records;

/// Options of `capture`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").args(["inner", "outer", "both"]).required(true).multiple(true))]
pub(crate) struct CaptureOptions {
    /// The tunnel, or the path of its control socket
    name: String,
    /// Captures the packets inside the tunnel, unencrypted
    #[arg(long)]
    inner: bool,
    /// Captures the datagrams between this host and the peer, as they cross the internet
    #[arg(long)]
    outer: bool,
    /// Captures both
    #[arg(long)]
    both: bool,
    /// Writes the packets to this file in the format pcapng, or to standard output if it is `-`; without it, prints
    /// a line about each packet
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Adds the keys with which Wireshark decrypts the datagrams: to the file of `--write`, or to this file, which must
    /// be new. They include the private key
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    #[expect(clippy::option_option, reason = "the option may be absent, and so may its value")]
    keys: Option<Option<PathBuf>>,
    /// Ends after this number of packets [default: at Ctrl-C]
    #[arg(short, long)]
    count: Option<NonZeroU64>,
    /// Ends after this number of seconds
    #[arg(long, value_name = "N")]
    seconds: Option<NonZeroU64>,
    /// Keeps at most this many bytes of a packet
    #[arg(short, long, value_name = "BYTES", default_value = "65535")]
    snaplen: NonZeroUsize,
}

/// How long a daemon may take until it begins, and until it has sent its last packets.
const PATIENCE: Duration = Duration::from_secs(3);
/// No capture lasts longer than this.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl CaptureOptions {
    fn ask(&self) -> anyhow::Result<Ask> {
        let (inner, outer) = (self.inner || self.both, self.outer || self.both);
        if self.keys.is_some() && !outer {
            bail!("--keys needs --outer or --both: only datagrams are encrypted");
        }
        if self.keys == Some(None) && self.write.is_none() {
            bail!("--keys needs --write FILE to add the keys to, or --keys=FILE");
        }
        let keys = self.keys.is_some();
        let capture = AskCapture { inner, outer, keys, snaplen: self.snaplen.get() };
        Ok(Ask { capture: Some(capture), ..Ask::new("capture") })
    }
}

/// Captures until the count or the time is reached, Ctrl-C, or the tunnel ends.
pub(crate) fn run(options: &CaptureOptions) -> anyhow::Result<ExitCode> {
    let ask = options.ask()?;
    let (path, interrupt) = (socket(&options.name), Interrupt::new()?);
    let (answer, socket) = Asked::send(&path, &ask, PATIENCE)?.stream()?;
    let begun: Begun = serde_json::from_value(answer).map_err(|error| ask::shape(&path, error))?;
    begun.notes.iter().for_each(|note| tell(format_args!("note: {}", Printable(note))));
    let output = Output::new(options, &begun)?;
    let left = options.count.map(NonZeroU64::get);
    let mut capture = Capture { output, left, counts: Counts::default() };
    let until = Instant::now() + options.seconds.map_or(FOREVER, |n| Duration::from_secs(n.get()));
    capture
        .run(Records::of(socket), &interrupt, until)
        .with_context(|| format!("capturing from {}", path.display()))?;
    capture.output.finish(&capture.counts)?;
    tell(Summary(capture.counts));
    Ok(Exit::Success.into())
}

/// Standard output may be the capture. If nobody reads standard error, nobody misses this.
fn tell(text: impl fmt::Display) {
    let _unread = writeln!(io::stderr(), "vpnd: {text}");
}

/// A capture that runs.
struct Capture {
    output: Output,
    /// How many packets are still wanted, if their number is limited.
    left: Option<u64>,
    /// What the daemon has counted.
    counts: Counts,
}

impl Capture {
    fn run(
        &mut self,
        mut records: Records,
        interrupt: &Interrupt,
        mut until: Instant,
    ) -> anyhow::Result<()> {
        let mut is_ending = false;
        loop {
            let is_over = match interrupt.readable(records.as_fd(), until)? {
                Woken::Readable if !records.read()? => return Ok(()),
                Woken::Readable => !self.take(&mut records)?,
                Woken::Resized => false,
                // The daemon does not answer any more, or nobody wants to wait for it.
                Woken::Due | Woken::Ended if is_ending => return Ok(()),
                Woken::Due | Woken::Ended => true,
            };
            if is_over && !is_ending {
                // The daemon then sends what it has, and its last counts.
                records.end()?;
                (is_ending, until) = (true, Instant::now() + PATIENCE);
            }
        }
    }

    /// Takes all records that have arrived; returns whether more packets are wanted.
    fn take(&mut self, records: &mut Records) -> anyhow::Result<bool> {
        while let Some((header, kept)) = records.next()? {
            match header.kind {
                Kind::Counts => self.counts = Counts::decode(kept),
                Kind::Keys => self.output.keys(kept)?,
                Kind::Inner | Kind::Outer if self.left == Some(0) => {}
                Kind::Inner | Kind::Outer => {
                    self.output.packet(&header, kept)?;
                    self.left = self.left.map(|left| left - 1);
                }
            }
        }
        self.output.flush()?;
        Ok(self.left != Some(0))
    }
}

/// How many packets there were while the capture ran.
struct Summary(Counts);

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { inner, outer } = self.0;
        let sides = [("inner", inner), ("outer", outer)];
        let mut seen = sides.into_iter().filter(|(_, count)| count.seen > 0).peekable();
        if seen.peek().is_none() {
            return f.write_str("no packet has crossed the tunnel");
        }
        let side = |(side, Lost { seen, lost })| {
            format!("{side}: {seen} packets, of which the capture lacks {lost}")
        };
        f.write_str(&seen.map(side).collect::<Vec<_>>().join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: CaptureOptions,
    }

    fn ask(words: &str) -> anyhow::Result<AskCapture> {
        let line = ["vpnd", "a"].into_iter().chain(words.split_whitespace());
        Ok(Line::try_parse_from(line)?.options.ask()?.capture.unwrap())
    }

    #[test]
    fn what_is_asked_for() {
        let asked = ask("--inner").unwrap();
        assert!(asked.inner && !asked.outer && !asked.keys && asked.snaplen == 65_535);
        for both in ["--inner --outer", "--both -s 96 -c 3 --seconds 1 -w -"] {
            let asked = ask(both).unwrap();
            assert!(asked.inner && asked.outer, "{both}");
        }
        assert!(ask("--outer --keys -w f").unwrap().keys);
        assert!(ask("--both --keys=f").unwrap().keys);
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for (words, said) in [
            ("", "required"),
            ("--inner -s 0", "invalid value"),
            ("--inner --keys -w f", "--keys needs --outer or --both"),
            ("--outer --keys", "--keys needs --write FILE"),
        ] {
            let error = ask(words).err().unwrap().to_string();
            assert!(error.contains(said), "{words}: {error}");
        }
    }

    #[test]
    fn the_summary_counts_each_side() {
        let mut counts = Counts::default();
        assert_eq!(Summary(counts).to_string(), "no packet has crossed the tunnel");
        counts.outer = Lost { seen: 7, lost: 2 };
        assert_eq!(Summary(counts).to_string(), "outer: 7 packets, of which the capture lacks 2");
    }
}
