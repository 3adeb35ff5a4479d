//! Where the packets go: to a file in the format pcapng, or as lines to the terminal; and the keys, to the same file or
//! to one of their own.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use vpnd_tun::Mode;
use vpnd_tunnel::tap::{Counts, Header, Kind};

use super::CaptureOptions;
use super::line::line;
use super::packet::headers;
use super::pcapng::{Link, Packet, Pcapng};
use super::sources::Sources;
use crate::control::Begun;

/// Takes the packets.
pub(super) struct Output {
    form: Form,
    sources: Sources,
    /// What the device carries.
    mode: Mode,
    /// The file of the key log, if it has its own.
    key_log: Option<File>,
}

enum Form {
    Lines(io::Stdout),
    File { file: Pcapng<Box<dyn Write>>, sides: Sides },
}

/// The numbers of the interfaces in the file.
struct Sides {
    inner: Option<u32>,
    outer: Option<u32>,
}

impl Output {
    /// Opens the files of a capture that has begun.
    ///
    /// # Errors
    /// As `open(2)`; if a file that keys go to exists.
    pub(super) fn new(options: &CaptureOptions, begun: &Begun) -> anyhow::Result<Self> {
        let mode = if begun.ethernet { Mode::Tap } else { Mode::Tun };
        let key_log = options.keys.iter().flatten().next();
        let key_log = key_log.map(|path| create(path, true)).transpose()?;
        let form = match &options.write {
            None => Form::Lines(io::stdout()),
            Some(path) => {
                let with_keys = options.keys == Some(None);
                let to: Box<dyn Write> = match path.as_os_str() == "-" {
                    true => Box::new(BufWriter::new(io::stdout())),
                    false => Box::new(BufWriter::new(create(path, with_keys)?)),
                };
                begin(to, options, begun).context("cannot write the capture")?
            }
        };
        let sources = Sources::new(begun.peer.zip(begun.source));
        Ok(Self { form, sources, mode, key_log })
    }

    /// Takes a packet.
    ///
    /// # Errors
    /// As `write(2)`.
    pub(super) fn packet(&mut self, header: &Header, kept: &[u8]) -> io::Result<()> {
        let header = &self.complete(header);
        match &mut self.form {
            Form::Lines(out) => writeln!(out, "{}", line(header, kept, self.mode)),
            Form::File { file, sides } => sides.write(file, header, kept),
        }
    }

    /// The header with all addresses that are known.
    fn complete(&mut self, header: &Header) -> Header {
        let Header { kind, direction, datagram, .. } = *header;
        match kind {
            Kind::Outer => {
                Header { datagram: self.sources.complete(direction, datagram), ..*header }
            }
            _ => *header,
        }
    }

    /// Takes lines of a key log.
    ///
    /// # Errors
    /// As `write(2)`.
    pub(super) fn keys(&mut self, lines: &[u8]) -> io::Result<()> {
        match (&mut self.key_log, &mut self.form) {
            (Some(log), _) => log.write_all(lines),
            (None, Form::File { file, .. }) => file.keys(lines),
            (None, Form::Lines(_)) => Ok(()),
        }
    }

    /// Hands on what was taken.
    ///
    /// # Errors
    /// As `write(2)`.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match &mut self.form {
            Form::Lines(out) => out.flush(),
            Form::File { file, .. } => file.flush(),
        }
    }

    /// Adds how many packets there were.
    ///
    /// # Errors
    /// As `write(2)`.
    pub(super) fn finish(&mut self, counts: &Counts) -> io::Result<()> {
        if let Form::File { file, sides } = &mut self.form {
            for (side, count) in [(sides.inner, counts.inner), (sides.outer, counts.outer)] {
                side.map_or(Ok(()), |side| file.statistics(side, count))?;
            }
        }
        self.flush()
    }
}

impl Sides {
    fn write<W: Write>(
        &self,
        file: &mut Pcapng<W>,
        header: &Header,
        kept: &[u8],
    ) -> io::Result<()> {
        let Header { kind, direction, time, len, .. } = *header;
        let (side, front) = match kind {
            Kind::Outer => (self.outer, headers(&header.datagram, len as usize, kept)),
            _ => (self.inner, Vec::new()),
        };
        // Nothing comes of a side that was not asked for.
        let Some(interface) = side else { return Ok(()) };
        let whole = u32::try_from(front.len()).unwrap_or_default().saturating_add(len);
        file.packet(Packet { interface, time, len: whole, direction }, &[&front, kept])
    }
}

fn begin(to: Box<dyn Write>, options: &CaptureOptions, begun: &Begun) -> io::Result<Form> {
    let mut file = Pcapng::begin(to, concat!("vpnd ", env!("CARGO_PKG_VERSION")))?;
    let snaplen = u32::try_from(options.snaplen.get()).unwrap_or(u32::MAX);
    let (mut numbers, device) = (0.., begun.device.as_str());
    let inner = (options.inner || options.both).then(|| numbers.next()).flatten();
    let outer = (options.outer || options.both).then(|| numbers.next()).flatten();
    if inner.is_some() {
        let link = if begun.ethernet { Link::Ethernet } else { Link::Raw };
        file.interface(link, (device, "inside the tunnel"), snaplen)?;
    }
    if outer.is_some() {
        let name = format!("{device} (outer)");
        file.interface(Link::Raw, (&name, "datagrams to and from the peer"), snaplen)?;
    }
    file.flush()?;
    Ok(Form::File { file, sides: Sides { inner, outer } })
}

/// A file that only its owner may read. One for keys must be new, so that it is nobody else's.
fn create(path: &Path, with_keys: bool) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    let options = match with_keys {
        true => options.create_new(true),
        false => options.create(true).truncate(true),
    };
    let opened = options.open(path).and_then(|file| {
        if file.metadata()?.is_file() {
            file.set_permissions(Permissions::from_mode(0o600))?;
        }
        Ok(file)
    });
    opened.with_context(|| match with_keys {
        true => {
            format!("cannot create {}, which must be new because it contains keys", path.display())
        }
        false => format!("cannot write to {}", path.display()),
    })
}
