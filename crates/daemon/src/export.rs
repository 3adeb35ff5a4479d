//! `export`: prints an end of a WireGuard tunnel as other programs read it; the other end's, or with `--own` this one's.

mod ends;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{ArgGroup, Args};
use ipnet::IpNet;
use thiserror::Error;
use vpnd_import::export::{self, End};
use zeroize::Zeroizing;

use crate::check;
use crate::config::{self, Protocol};
use crate::exit::Exit;
use crate::keys;
use crate::terminal::{self, PrintableLines};

/// Options of `export`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("as").required(true))]
pub(crate) struct ExportOptions {
    /// The tunnel's configuration, or the tunnel's name for /etc/vpnd/NAME.toml
    #[arg(value_name = "FILE|NAME")]
    pub(crate) file: PathBuf,
    /// As the file of wg-quick
    #[arg(long, group = "as")]
    pub(crate) wg_quick: bool,
    /// As the .netdev and .network of systemd-networkd
    #[arg(long, group = "as")]
    pub(crate) networkd: bool,
    /// As a request to the socket of a WireGuard implementation
    #[arg(long, group = "as")]
    pub(crate) uapi: bool,
    /// As a QR code of the file of wg-quick, for a phone
    #[arg(long, group = "as")]
    pub(crate) qr: bool,
    /// A file with the other end's private key, which this end does not have
    #[arg(long, value_name = "FILE")]
    pub(crate) peer_key: Option<PathBuf>,
    /// Where the other end reaches this one
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) endpoint: Option<String>,
    /// An address of the other end inside the tunnel; may be repeated
    #[arg(long, value_name = "ADDRESS/LENGTH")]
    pub(crate) address: Vec<IpNet>,
    /// A network behind this end, which the other one is to route here; may be repeated
    #[arg(long, value_name = "NET")]
    pub(crate) network: Vec<IpNet>,
    /// This end instead of the other, for a way back to WireGuard's programs
    #[arg(long, conflicts_with_all = ["peer_key", "endpoint", "address", "network"])]
    pub(crate) own: bool,
}

/// Why nothing was printed.
#[derive(Debug, Error)]
pub(crate) enum ExportError {
    /// The ends speak more than WireGuard.
    #[error(
        "protocol = \"vpnd\": no other program speaks it. `vpnd pair` writes both ends; for WireGuard set protocol = \"wireguard\" at both ends first"
    )]
    Protocol,
    /// The private key is not that of the peer.
    #[error("{} is the private key of {found}, and [peer] public_key is {wanted}: give the other end's key", path.display())]
    OtherKey { path: PathBuf, found: String, wanted: String },
    /// `--endpoint` is not one.
    #[error(
        "`{0}` is no HOST or HOST:PORT, or the port is missing and [interface] listen has none"
    )]
    Endpoint(String),
    /// A QR code has at most 2953 bytes.
    #[error("the configuration is too long for a QR code: use --wg-quick")]
    Long,
}

impl ExportError {
    /// The exit code for this error.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Protocol | Self::Long => Exit::Failure,
            Self::OtherKey { .. } | Self::Endpoint(_) => Exit::Usage,
        }
    }
}

/// Prints an end on standard output, and on standard error what cannot be said there.
pub(crate) fn run(options: &ExportOptions) -> anyhow::Result<ExitCode> {
    let loaded = config::load(&check::file(&options.file))?;
    if loaded.config.peer.protocol != Protocol::WireGuard {
        return Err(ExportError::Protocol.into());
    }
    let (end, mut notes) = if options.own {
        ends::own(&loaded.config, &loaded.keys)
    } else {
        let key = options
            .peer_key
            .as_ref()
            .map(|path| peer_key(path, &loaded.config.peer))
            .transpose()?;
        ends::other(&loaded.config, &loaded.keys, key, options)?
    };
    let text = text(&end, options, &mut notes)?;
    for note in notes {
        let note = PrintableLines(note);
        writeln!(io::stderr(), "note: {note}").context("cannot write to standard error")?;
    }
    terminal::print(PrintableLines(text.as_str()))?;
    Ok(Exit::Success.into())
}

fn peer_key(path: &Path, peer: &config::Peer) -> anyhow::Result<Zeroizing<String>> {
    let key = keys::read_secret(path, keys::credentials_directory().as_deref())?;
    if key.public() != peer.public_key {
        let (found, wanted) = (key.public().to_string(), peer.public_key.to_string());
        return Err(ExportError::OtherKey { path: path.to_owned(), found, wanted }.into());
    }
    Ok(key.to_base64())
}

const HAS_KEYS: &str =
    "this contains keys: give it only to a file that nobody else may read, which `umask 077` makes";

fn text(
    end: &End,
    options: &ExportOptions,
    notes: &mut Vec<String>,
) -> Result<Zeroizing<String>, ExportError> {
    notes.extend(end.has_keys().then(|| HAS_KEYS.to_owned()));
    if options.networkd {
        let (netdev, network) = end.networkd();
        let place = format!("/etc/systemd/network/{}", end.device);
        notes.push(
            "systemd-networkd reads the .netdev with mode 0640, group systemd-network".to_owned(),
        );
        return Ok(Zeroizing::new(format!(
            "# {place}.netdev\n{}\n# {place}.network\n{}",
            netdev.as_str(),
            network.as_str()
        )));
    }
    if options.uapi {
        notes.push(
            "addresses, MTU, routes and name servers are not settings of this socket: set them with `ip`".to_owned(),
        );
        return Ok(end.uapi());
    }
    if !options.qr {
        return Ok(end.wg_quick());
    }
    notes.push(match &end.private_key {
        Some(_) => "this code contains a private key: whoever sees it has it".to_owned(),
        None => format!(
            "this code contains no private key, so that an app will not take it as it is: make one with \
             `vpnd genkey -o phone.key`, put the public key that it prints into [peer] public_key in place of {}, and \
             give --peer-key phone.key",
            end.public_key
        ),
    });
    export::qr(&end.wg_quick()).ok_or(ExportError::Long)
}

#[cfg(test)]
mod tests;
