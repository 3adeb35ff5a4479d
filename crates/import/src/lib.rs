//! Reads configurations of other tunnels as vpnd's: wg-quick, systemd-networkd, NetworkManager, OpenWrt and OpenVPN
//! between two points. Writes WireGuard's configurations from vpnd's.
//!
//! Every key of a file stands in the table of its format ([`table`]), which says what becomes of it. The page
//! `docs/import.md` has the same tables. So each line has exactly one outcome, and a key that is in no table is
//! reported as unknown.
//!
//! Nothing is read or written here: the caller reads the files and implements [`Host`].

pub mod export;
mod format;
mod host;
mod ini;
mod line;
mod network_manager;
mod networkd;
mod openvpn;
mod openwrt;
pub mod page;
mod peers;
mod report;
mod shell;
mod table;
#[cfg(test)]
mod tests;
mod toml_text;
mod tunnel;
mod value;
mod wg_quick;
mod wireguard;

pub use format::Format;
pub use host::Host;
pub use line::Source;
pub use peers::PeerChoice;
pub use report::{Failure, ImportError, Imported, Outcome, Outcomes};
pub use shell::{shell_path, shell_word};
pub use table::{Kind, Verdict};
pub use tunnel::{Clamp, Command, Route, Tunnel};

use std::rc::Rc;

use zeroize::Zeroizing;

/// What the user has decided.
#[derive(Default)]
pub struct Choices {
    /// The format; recognised by the contents if absent.
    pub format: Option<Format>,
    /// The beginning of the public key of the peer to take.
    pub peer: Option<String>,
    /// The tunnel's name.
    pub name: Option<String>,
    /// A private key that is not in the file, in base64.
    pub private_key: Option<Zeroizing<String>>,
    /// Where the other end reaches this one, as a host or with a port, if it gets its configuration here too.
    pub endpoint: Option<String>,
    /// A preshared key that is not in the file, in base64.
    pub preshared_key: Option<Zeroizing<String>>,
}

/// The most words in all files: what becomes of one can depend on every other.
const MAX_WORDS: usize = 30_000;

/// Reads the files of one tunnel. For OpenVPN a second file is that of the other end.
///
/// # Errors
///
/// If the format is not recognised, or the files do not describe one tunnel between two points. The outcomes of the
/// lines that were read are kept.
pub fn import(
    sources: &[Source],
    choices: &Choices,
    host: &Rc<dyn Host>,
) -> Result<Imported, Box<Failure>> {
    let between = |c: char| c.is_whitespace() || matches!(c, ',' | ';');
    let words = sources.iter().flat_map(|source| source.text.split(between));
    if words.filter(|word| !word.is_empty()).nth(MAX_WORDS).is_some() {
        return Err(ImportError::Long.alone());
    }
    let format = match choices.format {
        Some(format) => format,
        None => Format::of(sources).ok_or_else(|| ImportError::Format.alone())?,
    };
    match format {
        Format::WgQuick => wg_quick::import(sources, choices, host),
        Format::Networkd => networkd::import(sources, choices, host),
        Format::NetworkManager => network_manager::import(sources, choices, host),
        Format::OpenWrt => openwrt::import(sources, choices, host),
        Format::OpenVpn => openvpn::import(sources, choices, host),
    }
}
