//! Requests to nftables as netlink messages, so neither a program nor a shell is needed.

pub(crate) mod expression;
mod message;
mod plan;

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

pub(crate) use message::{Encoded, INET};
pub(crate) use plan::{Plan, Set};

use message::{Attributes, Messages, attribute, changing, message, number, text, zero_ended};
use plan::elements_of;

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
/// `NF_DROP`.
const DROP: u32 = 0;
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

    /// The connection of an earlier process, which has its tables.
    pub(crate) fn inherited(socket: OwnedFd) -> Self {
        Self(Arc::new(Mutex::new(socket.into())))
    }

    /// Makes the table with all its parts, in place of the one with its name that was made through this connection, if
    /// there is one: in one transaction, so that no packet passes in between.
    ///
    /// # Errors
    ///
    /// The kernel's error; then nothing has changed.
    pub(crate) fn take(&self, plan: &Plan) -> io::Result<Table> {
        let table = Table { name: plan.table.clone(), socket: Arc::clone(&self.0) };
        if table.is_there()? {
            table.make_anew(plan)?
        } else {
            table.make_again(plan)?
        }
        Ok(table)
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

    /// Another descriptor of the socket through which it was made, for the next process of the tunnel.
    ///
    /// # Errors
    ///
    /// If the process has no descriptor left.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(socket.try_clone()?.into())
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

/// Whether there is a table with this name in the network namespace of this thread.
///
/// # Errors
///
/// As [`Table::is_there`].
pub(crate) fn is_there(table: &str) -> io::Result<bool> {
    let Connection(socket) = Connection::open()?;
    Table { name: table.to_owned(), socket }.is_there()
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

#[cfg(test)]
mod tests {
    use super::message::{NESTED, joined};
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
}
