//! Requests to nftables, directly in netlink messages: neither a program nor a shell is needed.

pub(crate) mod expression;

use std::io::{self, Read, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// `NETLINK_NETFILTER`, and the number of nftables there (`NFNL_SUBSYS_NFTABLES`).
const NETLINK_NETFILTER: i32 = 12;
const SUBSYSTEM: u16 = 10;
/// The messages that begin and end a transaction (`NFNL_MSG_BATCH_BEGIN`, `…_END`).
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
const NEW_SET: u16 = SUBSYSTEM << 8 | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM << 8 | 12;
const DELETE_ELEMENTS: u16 = SUBSYSTEM << 8 | 14;
/// Attributes of a table: its name and flags (`nft_table_attributes`).
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
/// Attributes of a chain: its table, name, hook, policy and type (`nft_chain_attributes`); of a hook: its
/// number and priority.
const TABLE: u16 = 1;
const NAME: u16 = 3;
const HOOK: u16 = 4;
const POLICY: u16 = 5;
const TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
/// Attributes of a rule: its table, chain and expressions (`nft_rule_attributes`).
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const EXPRESSIONS: u16 = 4;
/// `NLM_F_CREATE`.
const CREATE: u16 = 0x400;
/// The flag of an attribute that contains attributes.
const NESTED: u16 = 0x8000;
/// `NF_DROP`.
const DROP: u32 = 0;
/// `NFPROTO_INET`: both versions of IP.
pub(crate) const INET: u8 = 1;
const HEADER: usize = 16;
/// How long to wait for an answer: the kernel answers at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// The points at which packets pass (`nf_inet_hooks`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Before the routing decision.
    Prerouting = 0,
    /// Packets to this host.
    Input = 1,
    /// Forwarded packets.
    Forward = 2,
    /// Packets that this host sends.
    Output = 3,
}

/// A chain of nftables; the nft variant of `iptables` makes such chains, too.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) family: u8,
    pub(crate) table: String,
    pub(crate) name: String,
    pub(crate) hook: Option<u32>,
    pub(crate) policy: Option<u32>,
}

impl Chain {
    /// Whether it drops packets at this hook that none of its rules accepts.
    pub(crate) fn drops(&self, hook: Hook) -> bool {
        self.hook == Some(hook as u32) && self.policy == Some(DROP)
    }

    /// Reads a message after its header: a family, three more bytes, and attributes.
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
pub(crate) fn chains() -> io::Result<Vec<Chain>> {
    let chains = dump(GET_CHAIN, 0, &[])?;
    Ok(chains.iter().filter_map(|message| Chain::read(message)).collect())
}

/// Whether a rule in this chain's table compares anything with this port.
pub(crate) fn names_port(chain: &Chain, port: u16) -> io::Result<bool> {
    let table = attribute(RULE_TABLE, &zero_ended(&chain.table));
    let rules = dump(GET_RULE, chain.family, &table)?;
    Ok(rules.iter().any(|rule| compares(rule, port)))
}

/// Searches for the port as two bytes of a packet, or in the legacy form of `iptables`: from any port, to this
/// one (`struct xt_udp`).
fn compares(rule: &[u8], port: u16) -> bool {
    let value = attribute(expression::VALUE, &port.to_be_bytes());
    let older = [0, u16::MAX, port, port].map(u16::to_ne_bytes).concat();
    // Without the padding of a value to four bytes.
    let parts = [&value[..6], &older];
    parts.iter().any(|part| rule.windows(part.len()).any(|bytes| bytes == *part))
}

/// All objects of one kind; each message without its header.
fn dump(kind: u16, family: u8, attributes: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    const ALL: u16 = 0x301;
    let mut socket = connect()?;
    socket.write_all(&message(kind, ALL, [family, 0, 0, 0], attributes))?;
    let (mut found, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let len = socket.read(&mut buffer)?;
        for (kind, message) in Messages(&buffer[..len]) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(found),
                libc::NLMSG_ERROR => return Err(refusal(message)),
                _ if matches!(kind, NEW_CHAIN | NEW_RULE) => found.push(message.to_vec()),
                _ => {}
            }
        }
    }
}

fn connect() -> io::Result<Socket> {
    let protocol = Some(Protocol::from(NETLINK_NETFILTER));
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, protocol)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Turns the kernel's error number, which is negative, into an error; 0 is no error.
fn refusal(message: &[u8]) -> io::Error {
    let code = message.first_chunk().map_or(-libc::EBADMSG, |code| i32::from_ne_bytes(*code));
    io::Error::from_raw_os_error(-code)
}

/// A table of vpnd, and the socket through which it was made.
#[derive(Debug)]
#[must_use = "a table that is a process's own goes with it"]
pub(crate) struct Table {
    name: String,
    socket: Mutex<Socket>,
}

impl Table {
    /// Replaces the ranges of a set of the table.
    ///
    /// # Errors
    ///
    /// The kernel's refusal; the set is then unchanged.
    pub(crate) fn replace(&self, set: &Set) -> io::Result<()> {
        let named = elements_of(&self.name, set.name);
        let messages = [
            changing(DELETE_ELEMENTS, 0, &named),
            changing(NEW_ELEMENTS, CREATE, &[named.clone(), set.elements()].concat()),
        ];
        // Deleting all elements of an empty set is no error; adding an empty list of elements is.
        let messages = if set.ranges.is_empty() { &messages[..1] } else { &messages[..] };
        self.commit(messages)
    }

    /// Whether it still exists: somebody may have flushed it.
    ///
    /// # Errors
    ///
    /// If the kernel does not report it.
    pub(crate) fn is_there(&self) -> io::Result<bool> {
        let named = attribute(TABLE_NAME, &zero_ended(&self.name));
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.write_all(&message(GET_TABLE, 0, [INET, 0, 0, 0], &named))?;
        let mut buffer = vec![0; 8 << 10];
        let len = socket.read(&mut buffer)?;
        match Messages(&buffer[..len]).next() {
            Some((NEW_TABLE, _)) => Ok(true),
            Some((_, message)) => match refusal(message) {
                error if error.kind() == io::ErrorKind::NotFound => Ok(false),
                error => Err(error),
            },
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Makes it again, with the current plan.
    ///
    /// # Errors
    ///
    /// The kernel's refusal.
    pub(crate) fn make_again(&self, plan: &Plan) -> io::Result<()> {
        self.commit(&plan.messages)
    }

    /// Deletes the table with everything in it.
    ///
    /// # Errors
    ///
    /// The kernel's refusal; a missing table is no error.
    pub(crate) fn delete(&self) -> io::Result<()> {
        absent_is_fine(self.commit(&[deleting(&self.name)]))
    }

    fn commit(&self, messages: &[Vec<u8>]) -> io::Result<()> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        commit(&mut socket, messages)
    }
}

/// Deletes the table with this name in the network namespace of this thread.
///
/// # Errors
///
/// The kernel's refusal; a missing table is no error.
pub(crate) fn delete(table: &str) -> io::Result<()> {
    absent_is_fine(commit(&mut connect()?, &[deleting(table)]))
}

fn deleting(table: &str) -> Vec<u8> {
    changing(DELETE_TABLE, 0, &attribute(TABLE_NAME, &zero_ended(table)))
}

fn absent_is_fine(deleted: io::Result<()>) -> io::Result<()> {
    deleted.or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })
}

/// A set of ranges of addresses of one version of IP, as numbers: sorted, and not adjacent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    /// The length of an address: 4 or 16.
    pub(crate) bytes: usize,
    /// The first and the last address of each range.
    pub(crate) ranges: Vec<(u128, u128)>,
}

impl Set {
    /// Ranges as the kernel represents them: one element at the beginning of a range, and one after its end.
    fn elements(&self) -> Vec<u8> {
        const END: u32 = 1;
        let element = |key: u128, flags: u32| {
            let key = &key.to_be_bytes()[size_of::<u128>() - self.bytes..];
            let key = attribute(1 | NESTED, &attribute(expression::VALUE, key));
            attribute(1 | NESTED, &[key, attribute(3, &flags.to_be_bytes())].concat())
        };
        let largest = u128::MAX >> (8 * (size_of::<u128>() - self.bytes));
        let both = |(first, last): &(u128, u128)| {
            let end = (*last < largest).then(|| element(*last + 1, END));
            [Some(element(*first, 0)), end].into_iter().flatten().flatten().collect::<Vec<u8>>()
        };
        attribute(3 | NESTED, &self.ranges.iter().flat_map(both).collect::<Vec<u8>>())
    }
}

/// A table, its chains and its rules, to be made in one transaction.
pub(crate) struct Plan {
    table: String,
    /// The number of sets so far.
    sets: u32,
    messages: Vec<Vec<u8>>,
}

impl Plan {
    /// A new table of this name for both versions of IP. It vanishes with the process, however that ends. Until
    /// then nobody else can change it, not even `nft flush ruleset` (`NFT_TABLE_F_OWNER`).
    pub(crate) fn owned(table: &str) -> Self {
        const OWNER: u32 = 2;
        const ALONE: u16 = 0x200;
        let named = attribute(TABLE_NAME, &zero_ended(table));
        let attributes = [named, attribute(TABLE_FLAGS, &OWNER.to_be_bytes())].concat();
        let mut plan = Self { table: table.to_owned(), sets: 0, messages: Vec::new() };
        plan.push(NEW_TABLE, CREATE | ALONE, &attributes);
        plan
    }

    /// Like [`Self::owned`], but the table stays until it is deleted. It replaces a table of the same name in
    /// one transaction, so no packet passes in between.
    pub(crate) fn lasting(table: &str) -> Self {
        let named = attribute(TABLE_NAME, &zero_ended(table));
        let mut plan = Self { table: table.to_owned(), sets: 0, messages: Vec::new() };
        // Created first, because only an existing table can be deleted.
        plan.push(NEW_TABLE, CREATE, &named);
        plan.push(DELETE_TABLE, 0, &named);
        plan.push(NEW_TABLE, CREATE, &named);
        plan
    }

    /// A chain at this hook; chains of a lower priority come first.
    pub(crate) fn chain(&mut self, name: &str, hook: Hook, priority: i32) {
        let hook = [
            attribute(HOOK_NUMBER, &(hook as u32).to_be_bytes()),
            attribute(HOOK_PRIORITY, &priority.to_be_bytes()),
        ];
        let attributes = [
            attribute(TABLE, &zero_ended(&self.table)),
            attribute(NAME, &zero_ended(name)),
            attribute(HOOK | NESTED, &hook.concat()),
            attribute(TYPE, b"filter\0"),
        ];
        self.push(NEW_CHAIN, CREATE, &attributes.concat());
    }

    /// A set of ranges of addresses.
    pub(crate) fn set(&mut self, set: &Set) {
        const INTERVALS: u32 = 4;
        // The type by which `nft` shows the elements: IPv4 or IPv6 addresses.
        let (kind, bytes): (u32, u32) = if set.bytes == 4 { (7, 4) } else { (8, 16) };
        self.sets += 1;
        let attributes = [
            attribute(1, &zero_ended(&self.table)),
            attribute(2, &zero_ended(set.name)),
            attribute(3, &INTERVALS.to_be_bytes()),
            attribute(4, &kind.to_be_bytes()),
            attribute(5, &bytes.to_be_bytes()),
            // The id by which messages of the same transaction name the set.
            attribute(10, &self.sets.to_be_bytes()),
        ];
        self.push(NEW_SET, CREATE, &attributes.concat());
        if !set.ranges.is_empty() {
            let elements = [elements_of(&self.table, set.name), set.elements()].concat();
            self.push(NEW_ELEMENTS, CREATE, &elements);
        }
    }

    /// Adds a rule at the end of a chain.
    pub(crate) fn rule(&mut self, chain: &str, expressions: &[Vec<u8>]) {
        const LAST: u16 = 0x800;
        let attributes = [
            attribute(RULE_TABLE, &zero_ended(&self.table)),
            attribute(RULE_CHAIN, &zero_ended(chain)),
            attribute(EXPRESSIONS | NESTED, &expressions.concat()),
        ];
        self.push(NEW_RULE, CREATE | LAST, &attributes.concat());
    }

    /// Makes the table with everything in it.
    ///
    /// # Errors
    ///
    /// The kernel's refusal; nothing is then made.
    pub(crate) fn make(&self) -> io::Result<Table> {
        let mut socket = connect()?;
        commit(&mut socket, &self.messages)?;
        Ok(Table { name: self.table.clone(), socket: Mutex::new(socket) })
    }

    fn push(&mut self, kind: u16, flags: u16, attributes: &[u8]) {
        self.messages.push(changing(kind, flags, attributes));
    }
}

/// A message that changes something for both versions of IP, and asks for an answer.
fn changing(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    const ACKNOWLEDGE: u16 = 4;
    message(kind, flags | ACKNOWLEDGE, [INET, 0, 0, 0], attributes)
}

/// Sends changes as one transaction, and waits for the answer to each.
fn commit(socket: &mut Socket, messages: &[Vec<u8>]) -> io::Result<()> {
    let part = |kind| message(kind, 0, [0, 0, 0, SUBSYSTEM.to_be_bytes()[1]], &[]);
    let all = [part(BATCH_BEGIN), messages.concat(), part(BATCH_END)].concat();
    socket.write_all(&all)?;
    let (mut left, mut buffer) = (messages.len(), vec![0; 64 << 10]);
    while left > 0 {
        let len = socket.read(&mut buffer)?;
        for (_, message) in Messages(&buffer[..len]) {
            match refusal(message) {
                error if error.raw_os_error() != Some(0) => return Err(error),
                _ => left = left.saturating_sub(1),
            }
        }
    }
    Ok(())
}

/// The attributes that name a set (`nft_set_elem_list_attributes`).
fn elements_of(table: &str, set: &str) -> Vec<u8> {
    [attribute(1, &zero_ended(table)), attribute(2, &zero_ended(set))].concat()
}

/// A message: a header (length, kind, flags, sequence, port), the four bytes that every netfilter message has,
/// and attributes.
fn message(kind: u16, flags: u16, start: [u8; 4], attributes: &[u8]) -> Vec<u8> {
    const REQUEST: u16 = 1;
    let len = u32::try_from(HEADER + start.len() + attributes.len()).unwrap_or(u32::MAX);
    let header = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &(flags | REQUEST).to_ne_bytes()];
    [&header.concat()[..], &[0; 8], &start, attributes].concat()
}

/// An attribute, padded to a multiple of four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn zero_ended(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// Netlink messages: the kind of each, and the bytes after its header.
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

/// Netlink attributes: the kind of each without its flags, and its value.
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

    #[test]
    fn a_port_in_the_words_of_either_packet_filter() {
        let newer = expression::is(&7_u16.to_be_bytes());
        let older = [&b"udp\0"[..], &[0, u16::MAX, 7, 7].map(u16::to_ne_bytes).concat()].concat();
        for rule in [newer, older] {
            assert!(compares(&rule, 7) && !compares(&rule, 8), "{rule:?}");
        }
        assert!(!compares(&expression::is(&7_u32.to_be_bytes()), 7));
    }

    #[test]
    fn a_chain_as_the_kernel_tells_it() {
        let hook = attribute(HOOK_NUMBER, &2_u32.to_be_bytes());
        let message = [
            vec![2, 0, 0, 0],
            attribute(TABLE, b"filter\0"),
            attribute(NAME, b"FORWARD\0"),
            attribute(HOOK | NESTED, &hook),
            attribute(POLICY, &[0; 4]),
        ]
        .concat();
        let chain = Chain::read(&message).unwrap();
        assert_eq!(
            (chain.family, chain.table.as_str(), chain.name.as_str()),
            (2, "filter", "FORWARD")
        );
        assert!(chain.drops(Hook::Forward) && !chain.drops(Hook::Input));
        assert!(!Chain { policy: Some(1), ..Chain::default() }.drops(Hook::Forward));
        for cut in 0..message.len() {
            Chain::read(&message[..cut]);
        }
        assert_eq!(Messages(&[0xff; 40]).count(), 0);
        assert_eq!(Attributes(&[0; 8]).count(), 0, "a length that is none ends it");
    }
}
