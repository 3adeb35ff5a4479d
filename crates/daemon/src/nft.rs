//! Requests to nftables as netlink messages, so neither a program nor a shell is needed.

pub(crate) mod expression;

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};
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
/// Attributes of a chain: its table, name, hook, policy and type (`nft_chain_attributes`). Attributes of a
/// hook: its number and priority.
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
/// `NFPROTO_INET`: both IP versions.
pub(crate) const INET: u8 = 1;
const HEADER: usize = 16;
/// The maximum number of ranges in one message: 36 KB of the 64 KB that an attribute can have.
const RANGES_AT_ONCE: usize = 500;
/// How long to wait for an answer. The kernel usually answers at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// The hooks that packets pass (`nf_inet_hooks`).
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
    /// Whether the chain drops packets at this hook by default, if no rule accepts them.
    pub(crate) fn drops(&self, hook: Hook) -> bool {
        self.hook == Some(hook as u32) && self.policy == Some(DROP)
    }

    /// Parses a message after its header: a family, three more bytes, and attributes.
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

/// Whether a rule in this chain's table compares a value with this port.
pub(crate) fn names_port(chain: &Chain, port: u16) -> io::Result<bool> {
    let table = attribute(RULE_TABLE, &zero_ended(&chain.table))?;
    let rules = dump(GET_RULE, chain.family, &table)?;
    Ok(rules.iter().any(|rule| compares(rule, port)))
}

/// Searches for the port as two bytes of a packet, or in the legacy form of `iptables`: from any port to this
/// port (`struct xt_udp`).
fn compares(rule: &[u8], port: u16) -> bool {
    let Ok(value) = attribute(expression::VALUE, &port.to_be_bytes()) else { return false };
    let older = [0, u16::MAX, port, port].map(u16::to_ne_bytes).concat();
    // Only the value, without its padding to four bytes.
    let parts = [&value[..6], &older];
    parts.iter().any(|part| rule.windows(part.len()).any(|bytes| bytes == *part))
}

/// All objects of one kind, each as a message without its header.
fn dump(kind: u16, family: u8, attributes: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    const ALL: u16 = 0x301;
    let mut socket = connect()?;
    socket.write_all(&message(kind, ALL, [family, 0, 0, 0], attributes)?)?;
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

/// Converts the kernel's error number, which is negative, to an error; 0 means no error.
fn refusal(message: &[u8]) -> io::Error {
    let code = message.first_chunk().map_or(-libc::EBADMSG, |code| i32::from_ne_bytes(*code));
    io::Error::from_raw_os_error(-code)
}

/// A connection to nftables in the network namespace in which it was opened. A table that is a process's own and was made
/// through it exists as long as the connection and every table that was made through it.
#[derive(Debug)]
pub(crate) struct Connection(Arc<Mutex<Socket>>);

impl Connection {
    /// Opens a connection in the network namespace of this thread.
    ///
    /// # Errors
    ///
    /// If the kernel has no nftables.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(connect()?))))
    }

    /// Makes the table with all its parts.
    ///
    /// # Errors
    ///
    /// The kernel's error; then nothing was made.
    pub(crate) fn make(&self, plan: &Plan) -> io::Result<Table> {
        let table = Table { name: plan.table.clone(), socket: Arc::clone(&self.0) };
        table.commit(&plan.messages)?;
        Ok(table)
    }
}

/// A table of vpnd, and the socket through which it was made.
#[derive(Debug)]
#[must_use = "a table that is a process's own goes with it"]
pub(crate) struct Table {
    name: String,
    socket: Arc<Mutex<Socket>>,
}

impl Table {
    /// Replaces the ranges of a set of the table.
    ///
    /// # Errors
    ///
    /// The kernel's error; then the set is unchanged.
    pub(crate) fn replace(&self, set: &Set) -> io::Result<()> {
        let named = elements_of(&self.name, set.name)?;
        // Deleting all elements of an empty set is not an error.
        let mut messages = vec![changing(DELETE_ELEMENTS, 0, &named)?];
        messages.extend(set.additions(&self.name)?);
        self.commit(&messages)
    }

    /// Whether the table still exists: somebody may have flushed it.
    ///
    /// # Errors
    ///
    /// If the kernel does not report that.
    pub(crate) fn is_there(&self) -> io::Result<bool> {
        let named = attribute(TABLE_NAME, &zero_ended(&self.name))?;
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        discard_answers(&socket);
        socket.write_all(&message(GET_TABLE, 0, [INET, 0, 0, 0], &named)?)?;
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

    /// Makes the table again, with the current plan.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub(crate) fn make_again(&self, plan: &Plan) -> io::Result<()> {
        self.commit(&plan.messages)
    }

    /// Gives the table, which exists, the content of another plan in one transaction.
    ///
    /// # Errors
    ///
    /// The kernel's error; then the table is unchanged.
    pub(crate) fn make_anew(&self, plan: &Plan) -> io::Result<()> {
        let deleting = deleting(&self.name)?;
        let messages: Vec<_> =
            [deleting].into_iter().chain(plan.messages.iter().cloned()).collect();
        self.commit(&messages)
    }

    /// Deletes the table with everything in it.
    ///
    /// # Errors
    ///
    /// The kernel's error; a missing table is not an error.
    pub(crate) fn delete(&self) -> io::Result<()> {
        was_there(self.commit(&[deleting(&self.name)?])).map(drop)
    }

    fn commit(&self, messages: &[Vec<u8>]) -> io::Result<()> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        commit(&mut socket, messages)
    }
}

/// Deletes the table with this name in the network namespace of this thread; returns whether it existed.
///
/// # Errors
///
/// The kernel's error.
pub(crate) fn delete(table: &str) -> io::Result<bool> {
    let deleting = deleting(table)?;
    was_there(connect().and_then(|mut socket| commit(&mut socket, &[deleting])))
}

fn deleting(table: &str) -> Encoded {
    changing(DELETE_TABLE, 0, &attribute(TABLE_NAME, &zero_ended(table))?)
}

fn was_there(deleted: io::Result<()>) -> io::Result<bool> {
    match deleted {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            // A kernel without nftables has no tables.
            Some(libc::ENOENT | libc::EPROTONOSUPPORT | libc::EOPNOTSUPP) => Ok(false),
            _ => Err(error),
        },
    }
}

/// A set of address ranges of one IP version, as numbers. The ranges are sorted and not adjacent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    /// The length of an address: 4 or 16.
    pub(crate) bytes: usize,
    /// The first and the last address of each range.
    pub(crate) ranges: Vec<(u128, u128)>,
}

impl Set {
    /// The messages that add the ranges. Many ranges need several messages, because an attribute's length has
    /// only 16 bits.
    fn additions(&self, table: &str) -> io::Result<Vec<Vec<u8>>> {
        let named = elements_of(table, self.name)?;
        let addition = |ranges: &[(u128, u128)]| {
            changing(NEW_ELEMENTS, CREATE, &[&named[..], &self.elements(ranges)?].concat())
        };
        self.ranges.chunks(RANGES_AT_ONCE).map(addition).collect()
    }

    /// The ranges in the kernel's form: one element at the beginning of a range, and one after its end.
    fn elements(&self, ranges: &[(u128, u128)]) -> Encoded {
        const END: u32 = 1;
        let element = |key: u128, flags: u32| {
            let key = &key.to_be_bytes()[size_of::<u128>() - self.bytes..];
            let key = attribute(1 | NESTED, &attribute(expression::VALUE, key)?);
            attribute(1 | NESTED, &joined([key, attribute(3, &flags.to_be_bytes())])?)
        };
        let largest = u128::MAX >> (8 * (size_of::<u128>() - self.bytes));
        let both = |(first, last): &(u128, u128)| {
            let end = (*last < largest).then(|| element(*last + 1, END));
            [Some(element(*first, 0)), end].into_iter().flatten()
        };
        attribute(3 | NESTED, &joined(ranges.iter().flat_map(both))?)
    }
}

/// A table with its chains and rules, which is made in one transaction.
pub(crate) struct Plan {
    table: String,
    /// The number of sets so far.
    sets: u32,
    messages: Vec<Vec<u8>>,
}

impl Plan {
    /// A new table of this name for both IP versions. The kernel removes it when the process ends in any way.
    /// Until then no other program can change it, not even `nft flush ruleset` (`NFT_TABLE_F_OWNER`).
    ///
    /// # Errors
    ///
    /// If a part does not fit into a message; this also applies to all other parts of a plan.
    pub(crate) fn owned(table: &str) -> io::Result<Self> {
        const OWNER: u32 = 2;
        const ALONE: u16 = 0x200;
        let named = attribute(TABLE_NAME, &zero_ended(table));
        let mut plan = Self { table: table.to_owned(), sets: 0, messages: Vec::new() };
        let flags = attribute(TABLE_FLAGS, &OWNER.to_be_bytes());
        plan.push(NEW_TABLE, CREATE | ALONE, [named, flags])?;
        Ok(plan)
    }

    /// Like [`Self::owned`], but the table exists until it is deleted. It replaces a table of the same name in
    /// one transaction, so no packet passes in between.
    pub(crate) fn lasting(table: &str) -> io::Result<Self> {
        let mut plan = Self { table: table.to_owned(), sets: 0, messages: Vec::new() };
        // The table is created first, because only an existing table can be deleted.
        for (kind, flags) in [(NEW_TABLE, CREATE), (DELETE_TABLE, 0), (NEW_TABLE, CREATE)] {
            plan.push(kind, flags, [attribute(TABLE_NAME, &zero_ended(table))])?;
        }
        Ok(plan)
    }

    /// Adds a chain at this hook; chains with a lower priority number come first.
    pub(crate) fn chain(&mut self, name: &str, hook: Hook, priority: i32) -> io::Result<()> {
        let hook = joined([
            attribute(HOOK_NUMBER, &(hook as u32).to_be_bytes()),
            attribute(HOOK_PRIORITY, &priority.to_be_bytes()),
        ])?;
        let attributes = [
            attribute(TABLE, &zero_ended(&self.table)),
            attribute(NAME, &zero_ended(name)),
            attribute(HOOK | NESTED, &hook),
            attribute(TYPE, b"filter\0"),
        ];
        self.push(NEW_CHAIN, CREATE, attributes)
    }

    /// Adds a set of address ranges.
    pub(crate) fn set(&mut self, set: &Set) -> io::Result<()> {
        const INTERVALS: u32 = 4;
        // The type of the elements for `nft`: IPv4 or IPv6 addresses.
        let (kind, bytes): (u32, u32) = if set.bytes == 4 { (7, 4) } else { (8, 16) };
        self.sets += 1;
        let attributes = [
            attribute(1, &zero_ended(&self.table)),
            attribute(2, &zero_ended(set.name)),
            attribute(3, &INTERVALS.to_be_bytes()),
            attribute(4, &kind.to_be_bytes()),
            attribute(5, &bytes.to_be_bytes()),
            // The id by which messages of the same transaction refer to the set.
            attribute(10, &self.sets.to_be_bytes()),
        ];
        self.push(NEW_SET, CREATE, attributes)?;
        self.messages.extend(set.additions(&self.table)?);
        Ok(())
    }

    /// Adds a rule at the end of a chain.
    pub(crate) fn rule(
        &mut self,
        chain: &str,
        expressions: impl IntoIterator<Item = Encoded>,
    ) -> io::Result<()> {
        const LAST: u16 = 0x800;
        let attributes = [
            attribute(RULE_TABLE, &zero_ended(&self.table)),
            attribute(RULE_CHAIN, &zero_ended(chain)),
            attribute(EXPRESSIONS | NESTED, &joined(expressions)?),
        ];
        self.push(NEW_RULE, CREATE | LAST, attributes)
    }

    /// Makes the table with all its parts.
    ///
    /// # Errors
    ///
    /// The kernel's error; then nothing was made.
    pub(crate) fn make(&self) -> io::Result<Table> {
        Connection::open()?.make(self)
    }

    fn push(
        &mut self,
        kind: u16,
        flags: u16,
        attributes: impl IntoIterator<Item = Encoded>,
    ) -> io::Result<()> {
        self.messages.push(changing(kind, flags, &joined(attributes)?)?);
        Ok(())
    }
}

/// A message that changes an object for both IP versions, and asks for an answer.
fn changing(kind: u16, flags: u16, attributes: &[u8]) -> Encoded {
    const ACKNOWLEDGE: u16 = 4;
    message(kind, flags | ACKNOWLEDGE, [INET, 0, 0, 0], attributes)
}

/// Discards unread answers to an earlier request. The kernel answers each message of a transaction, but vpnd
/// stops reading at the first error. When a request has been sent, the kernel has already queued all its
/// answers.
fn discard_answers(socket: &Socket) {
    const MOST: usize = 10_000;
    let mut buffer = [MaybeUninit::uninit(); 1];
    for _ in 0..MOST {
        match socket.recv_with_flags(&mut buffer, libc::MSG_DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // This includes an error about lost answers, because it does not concern the next request.
            _ => {}
        }
    }
}

/// Sends changes as one transaction, and waits for the answer to each.
fn commit(socket: &mut Socket, messages: &[Vec<u8>]) -> io::Result<()> {
    let part = |kind| message(kind, 0, [0, 0, 0, SUBSYSTEM.to_be_bytes()[1]], &[]);
    let all = [part(BATCH_BEGIN)?, messages.concat(), part(BATCH_END)?].concat();
    discard_answers(socket);
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

/// The attributes that identify a set (`nft_set_elem_list_attributes`).
fn elements_of(table: &str, set: &str) -> Encoded {
    joined([attribute(1, &zero_ended(table)), attribute(2, &zero_ended(set))])
}

/// An encoded part of a message, or an error if it does not fit.
pub(crate) type Encoded = io::Result<Vec<u8>>;

/// A message: a header (length, kind, flags, sequence, port), the four bytes that every netfilter message has,
/// and attributes.
fn message(kind: u16, flags: u16, start: [u8; 4], attributes: &[u8]) -> Encoded {
    const REQUEST: u16 = 1;
    let len = u32::try_from(HEADER + start.len() + attributes.len()).map_err(|_| does_not_fit())?;
    let header = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &(flags | REQUEST).to_ne_bytes()];
    Ok([&header.concat()[..], &[0; 8], &start, attributes].concat())
}

/// Encodes an attribute, padded to a multiple of four bytes. A value that is too long is an error: with a wrong
/// length, the kernel would parse the rest of the value as attributes.
fn attribute(kind: u16, value: &[u8]) -> Encoded {
    let len = u16::try_from(4 + value.len()).map_err(|_| does_not_fit())?;
    let mut bytes = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(bytes)
}

fn does_not_fit() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it does not fit into a netlink message")
}

fn joined(parts: impl IntoIterator<Item = Encoded>) -> Encoded {
    Ok(parts.into_iter().collect::<io::Result<Vec<_>>>()?.concat())
}

fn zero_ended(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// An iterator over netlink messages: the kind of each message, and the bytes after its header.
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

/// An iterator over netlink attributes: the kind of each attribute without its flags, and its value.
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
        let newer = expression::is(&7_u16.to_be_bytes()).unwrap();
        let older = [&b"udp\0"[..], &[0, u16::MAX, 7, 7].map(u16::to_ne_bytes).concat()].concat();
        for rule in [newer, older] {
            assert!(compares(&rule, 7) && !compares(&rule, 8), "{rule:?}");
        }
        assert!(!compares(&expression::is(&7_u32.to_be_bytes()).unwrap(), 7));
    }

    #[test]
    fn a_chain_as_the_kernel_tells_it() {
        let hook = attribute(HOOK_NUMBER, &2_u32.to_be_bytes()).unwrap();
        let message = joined([
            Ok(vec![2, 0, 0, 0]),
            attribute(TABLE, b"filter\0"),
            attribute(NAME, b"FORWARD\0"),
            attribute(HOOK | NESTED, &hook),
            attribute(POLICY, &[0; 4]),
        ])
        .unwrap();
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

    /// The keys of a message that adds elements, each with its flags.
    fn keys(message: &[u8]) -> Vec<(u128, u32)> {
        let len = u32::from_ne_bytes(*message.first_chunk().unwrap());
        assert_eq!(usize::try_from(len).unwrap(), message.len());
        let (_, elements) =
            Attributes(&message[HEADER + 4..]).find(|(kind, _)| *kind == 3).unwrap();
        let of = |element| {
            let mut parts = Attributes(element);
            let ((_, key), (_, flags)) = (parts.next().unwrap(), parts.next().unwrap());
            let (_, key) = Attributes(key).next().unwrap();
            (u128::from_be_bytes(key.try_into().unwrap()), number(flags).unwrap())
        };
        Attributes(elements).map(|(_, element)| of(element)).collect()
    }

    #[test]
    fn many_ranges_are_several_messages() {
        let base = 0x2001_0db8_u128 << 96;
        let range =
            |n: u128| (base + ((2 * n) << 64), base + ((2 * n) << 64) + u128::from(u64::MAX));
        let mut ranges: Vec<_> = (0..1023).map(range).collect();
        ranges.push((u128::MAX - 1, u128::MAX));
        let set = Set { name: "specific6", bytes: 16, ranges };
        let messages = set.additions("vpnd_killswitch-a").unwrap();
        assert_eq!(messages.len(), 3);
        assert!(messages.iter().all(|message| message.len() <= usize::from(u16::MAX)));
        let keys: Vec<_> = messages.iter().flat_map(|message| keys(message)).collect();
        let read = keys.iter().enumerate().filter(|(_, (_, flags))| *flags == 0);
        let end = |n: usize| keys.get(n + 1).map_or(u128::MAX, |(end, _)| end - 1);
        let read: Vec<_> = read.map(|(n, (first, _))| (*first, end(n))).collect();
        assert_eq!(read, set.ranges);
    }

    /// Runs `work` in a separate network namespace; does nothing without root.
    fn in_namespace(work: impl FnOnce() + Send + 'static) {
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        let alone = move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work();
        };
        std::thread::spawn(alone).join().unwrap();
    }

    /// The networks of a set, as `nft` shows them.
    fn listed(set: &str) -> Vec<String> {
        let command = ["list", "set", "inet", "vpnd_killswitch-a", set];
        let output = std::process::Command::new("nft").args(command).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (_, elements) = text.split_once("elements = {").unwrap_or(("", "}"));
        let (elements, _) = elements.split_once('}').unwrap();
        let elements = elements.split(',').map(|element| element.trim().to_owned());
        elements.filter(|element| !element.is_empty()).collect()
    }

    /// Every second network of 64 bits in 2001:db8::/32, from number `from`.
    fn every_other(from: u16) -> (Set, Vec<String>) {
        let (mut ranges, mut shown) = (Vec::new(), Vec::new());
        for n in (from..from + 2000).step_by(2) {
            let first = (0x2001_0db8_u128 << 96) + (u128::from(n) << 64);
            ranges.push((first, first + u128::from(u64::MAX)));
            shown.push(format!("{}/64", std::net::Ipv6Addr::from(first)));
        }
        (Set { name: "specific6", bytes: 16, ranges }, shown)
    }

    #[test]
    fn the_kernel_takes_a_thousand_ranges() {
        in_namespace(|| {
            let (set, shown) = every_other(1);
            let mut plan = Plan::lasting("vpnd_killswitch-a").unwrap();
            plan.set(&set).unwrap();
            let table = plan.make().unwrap();
            assert_eq!(listed("specific6"), shown);
            let (set, shown) = every_other(800);
            table.replace(&set).unwrap();
            assert_eq!(listed("specific6"), shown);
            table.replace(&Set { ranges: Vec::new(), ..set }).unwrap();
            assert_eq!(listed("specific6"), [""; 0]);
        });
    }

    #[test]
    fn answers_to_a_refused_transaction_are_not_the_next_ones() {
        in_namespace(|| {
            let mut plan = Plan::lasting("vpnd_killswitch-a").unwrap();
            let (set, _) = every_other(1);
            plan.set(&set).unwrap();
            let table = plan.make().unwrap();
            let missing = Set { name: "missing", ..every_other(1).0 };
            for _ in 0..3 {
                assert_eq!(table.replace(&missing).unwrap_err().kind(), io::ErrorKind::NotFound);
                assert!(table.is_there().unwrap());
                table.replace(&missing).unwrap_err();
                table.replace(&set).unwrap();
            }
            table.delete().unwrap();
            assert!(!table.is_there().unwrap());
            assert!(!delete("vpnd_killswitch-a").unwrap());
        });
    }

    #[test]
    fn a_value_that_does_not_fit_is_an_error() {
        let most = usize::from(u16::MAX) - 4;
        assert_eq!(attribute(1, &vec![0; most]).unwrap().len(), 1 << 16);
        assert_eq!(
            attribute(1, &vec![0; most + 1]).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        let many = Set { name: "specific6", bytes: 16, ranges: vec![(0, 0); 911] };
        assert!(many.elements(&many.ranges).is_err());
    }
}
