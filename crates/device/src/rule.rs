//! Rules of routing, with which a default route leads into the tunnel and the tunnel's own datagrams do
//! not: what wg-quick(8) does, and one more for hosts that check where packets arrive.
//!
//! ```text
//! 32000  iif lo, UDP from our port   goto 32005      IPv4 alone
//! 32001  everything                  lookup main, but not for a default route
//! 32002  without our mark            lookup TABLE
//! 32003  everything                  lookup main, but not for a default route      kill switch
//! 32004  without our mark            blackhole                                     kill switch
//! 32005  UDP from our port           nop             IPv4 alone
//! ```
//!
//! The first is for `rp_filter = 1`: the kernel looks for the way back of each datagram that arrives, and
//! that question bears no mark. It would be led into the tunnel, and the datagram dropped. The port tells
//! them as well, with no sysctl and no packet filter. `iif lo` is what this host sends, and that question: a
//! LAN's host that uses the same port gains nothing. The last says the port without it, for only then does the
//! kernel look into what arrives (`fib_rule_requires_fldissect`).

use futures_util::TryStreamExt;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{
    RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange,
};
use rtnetlink::packet_route::{AddressFamily, IpProtocol};
use rtnetlink::{Handle, IpVersion};

use crate::error::{Error, Step, errno};
use crate::{GUARD_PROTOCOL, Own, PROTOCOL, is_our_protocol, table};

/// Before the kernel's own rule for `main` (32766), behind what an administrator numbers.
const PRIORITY: u32 = 32000;
/// Rules a table has.
const STEP: u32 = 6;

/// All rules of one family for one table, in the order that they are added in: what passes by first. Those of a
/// kill switch are among them if it is `guarded`.
pub(crate) fn all(own: Own, table: u32, family: AddressFamily, guarded: bool) -> Vec<RuleMessage> {
    let first = PRIORITY + (table - table::FIRST) * STEP;
    let mut rules = Vec::new();
    if family == AddressFamily::Inet && own.port != 0 {
        let from_port = RulePortRange { start: own.port, end: own.port };
        let own_port =
            [RuleAttribute::IpProtocol(IpProtocol::Udp), RuleAttribute::SourcePortRange(from_port)];
        let mut passes = rule(family, RuleAction::Goto, first, own_port.clone());
        passes.attributes.push(RuleAttribute::Goto(first + 5));
        passes.attributes.push(RuleAttribute::Iifname("lo".to_owned()));
        rules.push(rule(family, RuleAction::Nop, first + 5, own_port));
        rules.push(passes);
    }
    let specific = [RuleAttribute::Table(table::MAIN), RuleAttribute::SuppressPrefixLen(0)];
    rules.push(rule(family, RuleAction::ToTable, first + 1, specific.clone()));
    if guarded {
        rules.extend(guards(own.mark, first, family, specific));
    }
    let unmarked = [RuleAttribute::Table(table), RuleAttribute::FwMark(own.mark)];
    let mut unmarked = rule(family, RuleAction::ToTable, first + 2, unmarked);
    unmarked.header.flags = RuleFlags::Invert;
    rules.push(unmarked);
    rules
}

/// What still drops when the table is empty and the rules above are gone. Another protocol than theirs, so that a
/// flush by protocol never takes both; and what is more specific in `main` still goes there.
fn guards(
    mark: u32,
    first: u32,
    family: AddressFamily,
    specific: [RuleAttribute; 2],
) -> [RuleMessage; 2] {
    let own_protocol = |mut rule: RuleMessage| {
        let protocol = RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL));
        let guard = RuleAttribute::Protocol(RouteProtocol::Other(GUARD_PROTOCOL));
        rule.attributes.retain(|attribute| *attribute != protocol);
        rule.attributes.push(guard);
        rule
    };
    let specific = rule(family, RuleAction::ToTable, first + 3, specific);
    let mut drops = rule(family, RuleAction::Blackhole, first + 4, [RuleAttribute::FwMark(mark)]);
    drops.header.flags = RuleFlags::Invert;
    [specific, drops].map(own_protocol)
}

fn rule<const N: usize>(
    family: AddressFamily,
    action: RuleAction,
    priority: u32,
    attributes: [RuleAttribute; N],
) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = action;
    rule.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    rule.attributes.extend(attributes);
    rule
}

/// Adds one; says whether it was not there yet.
pub(crate) async fn add(handle: &Handle, rule: &RuleMessage) -> Result<bool, rtnetlink::Error> {
    let mut request = handle.rule().add();
    *request.message_mut() = rule.clone();
    match request.execute().await {
        Ok(()) => Ok(true),
        Err(error) if errno(&error) == libc::EEXIST => Ok(false),
        Err(error) => Err(error),
    }
}

/// Every rule of both families, ours and others'. A kernel without one of them has none of it.
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

/// The first number from 51820 on that no rule but vpnd's looks for as a mark. All tunnels of vpnd may bear
/// the same: then none of them is led into another, and two of them never into each other.
pub(crate) async fn free_mark(handle: &Handle) -> u32 {
    let rules = dump(handle).await;
    let foreign = rules.iter().filter(|rule| !is_ours(rule));
    let taken: Vec<_> = foreign.filter_map(mark).collect();
    (table::FIRST..).find(|number| !taken.contains(number)).unwrap_or(table::FIRST)
}

/// The table that a rule leads to; 0 is none.
pub(crate) fn table(rule: &RuleMessage) -> u32 {
    let said = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    said.unwrap_or_else(|| rule.header.table.into())
}

/// Where it stands in the order; 0 is first.
pub(crate) fn priority(rule: &RuleMessage) -> u32 {
    let said = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    said.unwrap_or(0)
}

/// Whether it bears one of vpnd's numbers, this tunnel's or another's.
pub(crate) fn is_ours(rule: &RuleMessage) -> bool {
    rule.attributes.iter().any(|attribute| match attribute {
        RuleAttribute::Protocol(protocol) => is_our_protocol(*protocol),
        _ => false,
    })
}

/// Whether it drops what it matches.
pub(crate) fn drops(rule: &RuleMessage) -> bool {
    rule.header.action == RuleAction::Blackhole
}

pub(crate) fn refused(rule: &RuleMessage, device: &str, error: &rtnetlink::Error) -> Error {
    Error::refused(Step::Rule(priority(rule)), device, error)
}

fn mark(rule: &RuleMessage) -> Option<u32> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::FwMark(mark) => Some(*mark),
        _ => None,
    })
}
