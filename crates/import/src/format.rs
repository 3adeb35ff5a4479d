//! The formats, and how they are recognised.

use crate::line::Source;

/// The format of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `/etc/wireguard/NAME.conf`.
    WgQuick,
    /// `NAME.netdev` and `NAME.network` of systemd-networkd.
    Networkd,
    /// A keyfile of NetworkManager, `NAME.nmconnection`.
    NetworkManager,
    /// `/etc/config/network` of OpenWrt.
    OpenWrt,
    /// OpenVPN between two points.
    OpenVpn,
}

impl Format {
    /// Every format, and its name on the command line.
    pub const WORDS: [(&'static str, Self); 5] = [
        ("wg-quick", Self::WgQuick),
        ("networkd", Self::Networkd),
        ("networkmanager", Self::NetworkManager),
        ("openwrt", Self::OpenWrt),
        ("openvpn", Self::OpenVpn),
    ];

    /// The name on the command line.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, known)| *known == self).map_or("", |(word, _)| word)
    }

    /// The name in sentences.
    pub fn title(self) -> &'static str {
        match self {
            Self::WgQuick => "wg-quick",
            Self::Networkd => "systemd-networkd",
            Self::NetworkManager => "NetworkManager",
            Self::OpenWrt => "OpenWrt",
            Self::OpenVpn => "OpenVPN",
        }
    }

    /// Recognises the format by the first line that is typical of one.
    pub fn of(sources: &[Source]) -> Option<Self> {
        sources.iter().find_map(|source| source.text.lines().find_map(Self::of_line))
    }

    fn of_line(line: &str) -> Option<Self> {
        let line = line.trim();
        let word = line.split_whitespace().next()?;
        if let Some(section) = line.strip_prefix('[') {
            return Self::of_section(section.split(']').next()?.trim());
        }
        match word {
            "config" | "package" => Some(Self::OpenWrt),
            _ if word.starts_with(['#', ';']) => None,
            _ if line.contains('=') => None,
            _ => {
                let word = word.trim_start_matches("--").trim_matches(['<', '>']);
                crate::openvpn::is_option(word).then_some(Self::OpenVpn)
            }
        }
    }

    fn of_section(section: &str) -> Option<Self> {
        let is = |known: &str| section.eq_ignore_ascii_case(known);
        if ["Interface", "Peer"].into_iter().any(is) {
            return Some(Self::WgQuick);
        }
        match section {
            "NetDev" | "WireGuard" | "WireGuardPeer" | "Network" | "Match" | "Link" | "Route"
            | "Address" => Some(Self::Networkd),
            "connection" | "wireguard" | "ipv4" | "ipv6" | "vpn" => Some(Self::NetworkManager),
            _ if section.starts_with("wireguard-peer.") => Some(Self::NetworkManager),
            _ => None,
        }
    }
}
