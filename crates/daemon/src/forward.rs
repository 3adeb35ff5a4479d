//! What else decides whether a frame crosses a bridge: where `br_netfilter` is loaded, the kernel takes IP packets
//! that a bridge forwards through the FORWARD chain of IP as well. A host that routes nothing, or one with
//! Docker, drops them there.

use std::fs;
use std::io::{self, Read, Write};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::{Config, Problem};

/// `NETLINK_NETFILTER`, and its requests for chains (`NFNL_SUBSYS_NFTABLES`, `NFT_MSG_NEWCHAIN`, `NFT_MSG_GETCHAIN`).
const NETLINK_NETFILTER: i32 = 12;
const NEW_CHAIN: u16 = 10 << 8 | 3;
const GET_CHAIN: u16 = 10 << 8 | 4;
/// Of a chain: its table, name, hook and policy (`nft_chain_attributes`); of a hook: its number.
const TABLE: u16 = 1;
const NAME: u16 = 3;
const HOOK: u16 = 4;
const POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
/// `NF_INET_FORWARD` and `NF_DROP`.
const FORWARD: u32 = 2;
const DROP: u32 = 0;
const HEADER: usize = 16;
/// The kernel answers at once; nobody waits for one that does not.
const PATIENCE: Duration = Duration::from_secs(1);

/// Warns of a bridge whose frames the host's packet filter drops.
pub(crate) fn problems(config: &Config) -> Vec<Problem> {
    let bridge = config.interface.bridge.as_ref().filter(|_| config.interface.netns.is_none());
    let Some(bridge) = bridge else { return Vec::new() };
    let called = FAMILIES.iter().filter(|family| family.is_called());
    called.filter_map(|family| family.problem(bridge)).collect()
}

/// One version of IP, and what of the packet filter concerns it.
struct Family {
    name: &'static str,
    sysctl: &'static str,
    /// Where the older packet filter lists its tables.
    older: &'static str,
    /// `NFPROTO_INET` and its own.
    numbers: [u8; 2],
    words: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        name: "IPv4",
        sysctl: "bridge-nf-call-iptables",
        older: "/proc/net/ip_tables_names",
        numbers: [1, 2],
        words: "iptables",
    },
    Family {
        name: "IPv6",
        sysctl: "bridge-nf-call-ip6tables",
        older: "/proc/net/ip6_tables_names",
        numbers: [1, 10],
        words: "ip6tables",
    },
];

impl Family {
    fn is_called(&self) -> bool {
        let path = format!("/proc/sys/net/bridge/{}", self.sysctl);
        fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
    }

    fn problem(&self, bridge: &str) -> Option<Problem> {
        let Self { name, sysctl, words, .. } = self;
        let problem = format!(
            "[interface] bridge: {name} packets that cross {bridge} also go through the host's FORWARD chain \
             (net.bridge.{sysctl} is 1), {}",
            self.verdict()?
        );
        let help = format!(
            "`sysctl -w net.bridge.{sysctl}=0` leaves bridges alone, `{words} -I FORWARD -m physdev \
             --physdev-is-bridged -j ACCEPT` lets them pass"
        );
        Some(Problem::warning(problem).help(help))
    }

    /// What becomes of packets there; none if nothing there drops all that it does not know.
    fn verdict(&self) -> Option<String> {
        let Ok(chains) = chains() else {
            return Some("which drops them if its policy is drop: look at it as root".to_owned());
        };
        let drops =
            |chain: &&Chain| self.numbers.contains(&chain.family) && chain.drops_forwarded();
        if let Some(Chain { table, name, .. }) = chains.iter().find(drops) {
            return Some(format!(
                "and chain {name} of table {table} drops what none of its rules accepts"
            ));
        }
        let older = fs::read_to_string(self.older).unwrap_or_default();
        let filters = older.lines().any(|table| table == "filter");
        let words = self.words;
        filters.then(|| format!("which drops them if `{words}-legacy -S FORWARD` says so"))
    }
}

/// A chain of nftables; the newer `iptables` makes such, too.
#[derive(Debug, Default, PartialEq, Eq)]
struct Chain {
    family: u8,
    table: String,
    name: String,
    hook: Option<u32>,
    policy: Option<u32>,
}

impl Chain {
    fn drops_forwarded(&self) -> bool {
        self.hook == Some(FORWARD) && self.policy == Some(DROP)
    }

    /// Reads a message behind its header: a family, three bytes more, and attributes.
    fn read(message: &[u8]) -> Option<Self> {
        let (family, attributes) = (*message.first()?, message.get(4..)?);
        let mut chain = Self { family, ..Self::default() };
        for (kind, value) in Attributes(attributes) {
            match kind {
                TABLE => chain.table = text(value),
                NAME => chain.name = text(value),
                HOOK => {
                    let mut of_hook = Attributes(value);
                    chain.hook =
                        of_hook.find(|(kind, _)| *kind == HOOK_NUMBER).and_then(|(_, n)| number(n));
                }
                POLICY => chain.policy = number(value),
                _ => {}
            }
        }
        Some(chain)
    }
}

/// All chains of this network namespace.
fn chains() -> io::Result<Vec<Chain>> {
    let protocol = Some(Protocol::from(NETLINK_NETFILTER));
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, protocol)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(&request())?;
    let (mut chains, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let len = socket.read(&mut buffer)?;
        for (kind, message) in Messages(&buffer[..len]) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(chains),
                libc::NLMSG_ERROR => return Err(io::Error::other("the kernel shows no chains")),
                _ if kind == NEW_CHAIN => chains.extend(Chain::read(message)),
                _ => {}
            }
        }
    }
}

/// A header (length, kind, flags, sequence, port) and a family, which stands for all.
fn request() -> Vec<u8> {
    const ALL: u16 = 0x301;
    let len: u32 = 20;
    [&len.to_ne_bytes()[..], &GET_CHAIN.to_ne_bytes(), &ALL.to_ne_bytes(), &[0; 12]].concat()
}

/// Netlink's messages: the kind of each, and what stands behind its header.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::try_from(u32::from_ne_bytes(*self.0.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*self.0.get(4..)?.first_chunk()?);
        let message = self.0.get(HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, message))
    }
}

/// Netlink's attributes: the kind of each without its flags, and its value.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        const FLAGS: u16 = 0xc000;
        let len = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(*self.0.get(2..)?.first_chunk()?) & !FLAGS;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_chain_as_the_kernel_tells_it() {
        let hook = attribute(HOOK_NUMBER, &2_u32.to_be_bytes());
        let message = [
            vec![2, 0, 0, 0],
            attribute(TABLE, b"filter\0"),
            attribute(NAME, b"FORWARD\0"),
            attribute(HOOK | 0x8000, &hook),
            attribute(POLICY, &[0; 4]),
        ]
        .concat();
        let chain = Chain::read(&message).unwrap();
        assert_eq!(
            (chain.family, chain.table.as_str(), chain.name.as_str()),
            (2, "filter", "FORWARD")
        );
        assert!(chain.drops_forwarded());
        assert!(!Chain { policy: Some(1), ..Chain::default() }.drops_forwarded());
        for cut in 0..message.len() {
            Chain::read(&message[..cut]);
        }
        assert_eq!(Messages(&[0xff; 40]).count(), 0);
        assert_eq!(Attributes(&[0; 8]).count(), 0, "a length that is none ends it");
    }
}
