//! Routing rules that lead a default route's packets into the tunnel, except for the tunnel's own datagrams.
//! This is the method of wg-quick(8), with additions for hosts that check the reverse path or change marks.
//!
//! ```text
//! 31999  everything                    lookup local
//! 32000  iif lo, UDP from our port     goto 32007
//! 32000  with our mark                 goto 32007
//! 32001  everything                    lookup main, but not for a default route
//! 32002  UDP and TCP to a port, ICMP … lookup TABLE
//! 32003  iif lo, to the peer           goto 32007
//! 32004  without our mark              lookup TABLE
//! 32005  everything                    lookup main, but not for a default route      kill switch
//! 32006  without our mark              blackhole                                     kill switch
//! 32007  everything                    nop
//! 32007  UDP from our port             nop
//! ```
//!
//! The first rule is for hosts on which the kernel's rule for `local` does not come first, as the kernel's
//! documentation of VRFs advises.
//!
//! The source port identifies our own datagrams as well as the mark does. Both are needed: other programs may
//! change the mark of an outgoing datagram, and one lookup has no mark. With `rp_filter = 1` the kernel looks
//! up the route back to the sender of each received datagram. `iif lo` matches packets that this host sends,
//! and also that lookup; a host of the LAN that uses the same port gains nothing. The last rule contains the
//! port without `iif lo`, because only then does the kernel parse the ports of received packets
//! (`fib_rule_requires_fldissect`).
//!
//! Packet filters look up the route back to the sender, too (`fib saddr . iif`, or iptables' `rpfilter`), but
//! without mark or ports. Such a lookup for the peer's address bypasses the table. Packets to the peer's
//! address do not bypass it: they have a destination port, so 32002 matches them first, while the lookup has no
//! port.
//!
//! A packet that is led to `main` here has first passed all rules of other programs with a higher priority
//! number than these.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use nix::unistd::geteuid;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{
    RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange, RuleUidRange,
};
use rtnetlink::packet_route::{AddressFamily, IpProtocol};
use rtnetlink::{Handle, IpVersion};

use crate::error::{Error, Step, errno};
use crate::mark::{self, Mark};
use crate::{GUARD_PROTOCOL, Own, PROTOCOL, address, is_our_protocol, table};

/// Before the kernel's own rule for `main` (32766), and after the numbers that administrators usually choose.
const PRIORITY: u32 = 31999;
/// The number of priorities that the rules of a table have.
const STEP: u32 = 9;
/// The maximum number of the peer's addresses per family that have rules.
const MOST_PEERS: usize = 8;

/// The place of each rule of a table, counted from the table's first priority.
#[derive(Clone, Copy)]
enum Place {
    Local,
    Own,
    Specific,
    Packets,
    Peers,
    Unmarked,
    GuardSpecific,
    GuardDrops,
    End,
}

/// All rules of one family for one table, in the order in which they are added: exceptions first. The rules of
/// a kill switch are included if the family is `guarded`.
pub(crate) fn all(own: &Own, table: u32, family: AddressFamily, guarded: bool) -> Vec<RuleMessage> {
    let set = Set { first: PRIORITY + (table - table::FIRST) * STEP, table, family };
    let local = vec![RuleAttribute::Table(table::LOCAL)];
    let mut rules = vec![
        set.rule(RuleAction::ToTable, Place::Local, local),
        set.rule(RuleAction::Nop, Place::End, Vec::new()),
    ];
    if own.port != 0 {
        rules.push(set.end(own));
        rules.extend(askers().into_iter().map(|uid| set.own_port(own, uid)));
    }
    rules.push(set.own_mark(own));
    rules.push(set.rule(RuleAction::ToTable, Place::Specific, specific()));
    rules.extend(set.peers(own));
    if guarded {
        rules.extend(set.guards(own));
    }
    let mut unmarked = set.lookup(Place::Unmarked, own.mark.attributes());
    unmarked.header.flags = RuleFlags::Invert;
    rules.push(unmarked);
    rules
}

/// The rules of one family for one table.
#[derive(Clone, Copy)]
struct Set {
    first: u32,
    table: u32,
    family: AddressFamily,
}

impl Set {
    fn own_port(self, own: &Own, uid: u32) -> RuleMessage {
        let asked_by = RuleAttribute::UidRange(RuleUidRange { start: uid, end: uid });
        self.passes(Place::Own, [&[from_here(), asked_by], &from_port(own.port)[..]].concat())
    }

    fn own_mark(self, own: &Own) -> RuleMessage {
        self.passes(Place::Own, own.mark.attributes())
    }

    /// The rule with the port. It is in addition to the last rule, which always exists: when a rule with fewer
    /// attributes is deleted, the kernel could delete a rule with more attributes instead.
    fn end(self, own: &Own) -> RuleMessage {
        self.rule(RuleAction::Nop, Place::End, from_port(own.port))
    }

    /// The blackhole for packets when the table is empty and the rules above are gone. It has another protocol,
    /// so that a flush by protocol never removes both. Packets with a more specific route in `main` still take
    /// that route.
    fn guards(self, own: &Own) -> [RuleMessage; 2] {
        let specific = self.rule(RuleAction::ToTable, Place::GuardSpecific, specific());
        let drops = self.rule(RuleAction::Blackhole, Place::GuardDrops, own.mark.attributes());
        let mut guards = [specific, drops];
        guards[1].header.flags = RuleFlags::Invert;
        guards.map(|mut rule| {
            let protocol = RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL));
            let guard = RuleAttribute::Protocol(RouteProtocol::Other(GUARD_PROTOCOL));
            rule.attributes.retain(|attribute| *attribute != protocol);
            rule.attributes.push(guard);
            rule
        })
    }

    /// Excludes a packet filter's lookup of the peer's address from the table, but no packet.
    fn peers(self, own: &Own) -> Vec<RuleMessage> {
        let mut peers: Vec<_> = own.peers.iter().map(|peer| peer.to_canonical()).collect();
        peers.retain(|peer| address::family_of(*peer) == self.family);
        peers.sort_unstable();
        peers.dedup();
        peers.truncate(MOST_PEERS);
        if peers.is_empty() {
            return Vec::new();
        }
        let packets = PORTS.iter().map(|protocol| to_any_port(*protocol).to_vec());
        let packets =
            packets.chain(OTHERS.iter().map(|protocol| vec![RuleAttribute::IpProtocol(*protocol)]));
        let packets = packets.map(|attributes| self.lookup(Place::Packets, attributes));
        packets.chain(peers.iter().map(|peer| self.peer(*peer))).collect()
    }

    /// For lookups of packet filters, the kernel uses the user ID of root.
    fn peer(self, peer: IpAddr) -> RuleMessage {
        let root = RuleAttribute::UidRange(RuleUidRange { start: 0, end: 0 });
        let attributes = vec![from_here(), RuleAttribute::Destination(peer), root];
        let mut rule = self.passes(Place::Peers, attributes);
        rule.header.dst_len = if peer.is_ipv4() { 32 } else { 128 };
        rule
    }

    fn passes(self, place: Place, mut attributes: Vec<RuleAttribute>) -> RuleMessage {
        attributes.push(RuleAttribute::Goto(self.first + Place::End as u32));
        self.rule(RuleAction::Goto, place, attributes)
    }

    fn lookup(self, place: Place, mut attributes: Vec<RuleAttribute>) -> RuleMessage {
        attributes.push(RuleAttribute::Table(self.table));
        self.rule(RuleAction::ToTable, place, attributes)
    }

    fn rule(self, action: RuleAction, place: Place, attributes: Vec<RuleAttribute>) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.family = self.family;
        rule.header.action = action;
        rule.attributes = vec![
            RuleAttribute::Priority(self.first + place as u32),
            RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
        ];
        rule.attributes.extend(attributes);
        rule
    }
}

/// The protocols that have ports.
const PORTS: [IpProtocol; 3] = [IpProtocol::Tcp, IpProtocol::Udp, IpProtocol::Sctp];
const ICMPV6: IpProtocol = IpProtocol::Other(libc::IPPROTO_ICMPV6);
/// The other protocols between hosts: ICMP and tunnel protocols.
const OTHERS: [IpProtocol; 7] = [
    IpProtocol::Icmp,
    ICMPV6,
    IpProtocol::Ipip,
    IpProtocol::Ipv6,
    IpProtocol::Gre,
    IpProtocol::Esp,
    IpProtocol::Ah,
];

/// The user who sends our datagrams, as the owner of the socket, and root, whose ID the kernel uses for reverse
/// path lookups. While vpnd is not running, other users may use the port without bypassing the tunnel.
fn askers() -> Vec<u32> {
    let mut askers = vec![0, geteuid().as_raw()];
    askers.dedup();
    askers
}

fn specific() -> Vec<RuleAttribute> {
    vec![RuleAttribute::Table(table::MAIN), RuleAttribute::SuppressPrefixLen(0)]
}

fn from_here() -> RuleAttribute {
    RuleAttribute::Iifname("lo".to_owned())
}

fn from_port(port: u16) -> Vec<RuleAttribute> {
    let port = RulePortRange { start: port, end: port };
    vec![RuleAttribute::IpProtocol(IpProtocol::Udp), RuleAttribute::SourcePortRange(port)]
}

/// The kernel accepts no port range that includes the first or the last port.
fn to_any_port(protocol: IpProtocol) -> [RuleAttribute; 2] {
    let ports = RulePortRange { start: 1, end: u16::MAX - 1 };
    [RuleAttribute::IpProtocol(protocol), RuleAttribute::DestinationPortRange(ports)]
}

/// Adds a rule; returns whether it was new.
pub(crate) async fn add(handle: &Handle, rule: &RuleMessage) -> Result<bool, rtnetlink::Error> {
    let mut request = handle.rule().add();
    *request.message_mut() = rule.clone();
    match request.execute().await {
        Ok(()) => Ok(true),
        Err(error) if errno(&error) == libc::EEXIST => Ok(false),
        Err(error) => Err(error),
    }
}

/// All rules of both families, of vpnd and of others. A kernel without one of the families returns none for it.
pub(crate) async fn dump(handle: &Handle) -> Vec<RuleMessage> {
    let mut rules = Vec::new();
    for family in [IpVersion::V4, IpVersion::V6] {
        let mut some = Box::pin(handle.rule().get(family).execute());
        while let Ok(Some(rule)) = some.try_next().await {
            rules.push(rule);
        }
    }
    rules
}

/// A mark that other programs' rules treat like no mark. All tunnels of vpnd may use the same mark: then no
/// tunnel's own datagrams are led into another tunnel, so two tunnels never carry each other.
pub(crate) async fn free_mark(handle: &Handle) -> Mark {
    let rules = dump(handle).await;
    mark::choose(rules.iter().filter(|rule| !is_ours(rule)).filter_map(Mark::of))
}

/// The table of a rule; 0 if it has none.
pub(crate) fn table(rule: &RuleMessage) -> u32 {
    let said = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    said.unwrap_or_else(|| rule.header.table.into())
}

/// The priority of a rule; 0 comes first.
pub(crate) fn priority(rule: &RuleMessage) -> u32 {
    let said = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    said.unwrap_or(0)
}

/// The rule as text for the log.
pub(crate) fn text(rule: &RuleMessage) -> String {
    let family = if rule.header.family == AddressFamily::Inet6 { "IPv6 rule" } else { "rule" };
    format!("{family} {}", priority(rule))
}

/// Whether the rule's protocol is vpnd's, of this or another tunnel.
pub(crate) fn is_ours(rule: &RuleMessage) -> bool {
    rule.attributes.iter().any(|attribute| match attribute {
        RuleAttribute::Protocol(protocol) => is_our_protocol(*protocol),
        _ => false,
    })
}

/// Whether it drops the packets it matches.
pub(crate) fn drops(rule: &RuleMessage) -> bool {
    rule.header.action == RuleAction::Blackhole
}

pub(crate) fn refused(rule: &RuleMessage, device: &str, error: &rtnetlink::Error) -> Error {
    Error::refused(Step::Rule(priority(rule)), device, error)
}
