//! What must never happen, watched all the time.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use vpnd_protocol::message::{self, Index, Message};
use vpnd_protocol::session::{Contents, REJECT_AFTER_TIME};
use vpnd_protocol::table::Table;

use crate::end::Side;
use crate::network::Captured;

/// A numbered packet that one side's device offered.
pub(crate) struct Packet {
    pub(crate) from: Side,
    len: usize,
    pub(crate) offered: Duration,
    pub(crate) delivered: Option<Duration>,
}

#[derive(Default)]
pub(crate) struct Oracle {
    pub(crate) packets: Vec<Packet>,
    /// Every (sender, session, counter) that was ever sealed.
    nonces: HashSet<(Side, Index, u64)>,
    /// When the owner of an index first published its key.
    births: HashMap<(Side, Index), Duration>,
    /// Sessions that may carry nothing but their upgrade.
    bootstraps: HashSet<(Side, Index)>,
    /// Bytes that came from an address and reached an end, and bytes that went there.
    account: HashMap<SocketAddr, (usize, usize)>,
}

impl Oracle {
    /// A new packet of `from`, of this length or of any.
    pub(crate) fn offer(&mut self, from: Side, now: Duration, len: Option<u16>) -> Vec<u8> {
        let number = self.packets.len();
        let len = len.map_or(40 + number * 37 % 500, usize::from);
        self.packets.push(Packet { from, len, offered: now, delivered: None });
        packet(from, number, len)
    }

    pub(crate) fn published(&mut self, side: Side, table: &Table, now: Duration) {
        let mut seen = HashSet::new();
        for key in table.open.iter().flatten() {
            assert!(seen.insert(key.index()), "{side:?} opens two sessions by one index");
            self.births.entry((side, key.index())).or_insert(now);
            if key.contents() == Contents::Bootstrap {
                self.bootstraps.insert((side, key.index()));
            }
        }
    }

    /// Bytes from there have reached an end.
    pub(crate) fn came(&mut self, from: SocketAddr, bytes: usize) {
        self.account.entry(from).or_default().0 += bytes;
    }

    /// How many bytes came from there, and how many went there.
    pub(crate) fn account(&self, at: SocketAddr) -> (usize, usize) {
        self.account.get(&at).copied().unwrap_or_default()
    }

    /// Nobody at such an address was sent more than three times what came from it.
    pub(crate) fn spares(&self, strangers: impl Fn(SocketAddr) -> bool) {
        for (at, (came, went)) in self.account.iter().filter(|(at, _)| strangers(**at)) {
            assert!(*went <= 3 * came, "{came} bytes came from {at}, and {went} went there");
        }
    }

    pub(crate) fn sent(&mut self, sent: &Captured) {
        self.account.entry(sent.datagram.to).or_default().1 += sent.datagram.bytes.len();
        let Ok(Message::Data { receiver, counter }) = message::parse(&sent.datagram.bytes) else {
            return;
        };
        let fresh = self.nonces.insert((sent.by, receiver, counter));
        assert!(fresh, "{:?} reused nonce {counter} of {receiver:?} at {:?}", sent.by, sent.at);
        let named = |(side, index): &(Side, Index)| *index == receiver && side.faces(sent.by);
        let birth = self.births.iter().find(|(key, _)| named(key)).map(|(_, birth)| *birth);
        let age = sent.at - birth.expect("publish, then transmit");
        assert!(age < REJECT_AFTER_TIME, "{:?} sealed under a key of {age:?}", sent.by);
    }

    /// `by` sealed a packet for this session of the other side.
    pub(crate) fn sealed(&self, by: Side, receiver: Index) {
        let named = |(side, index): &(Side, Index)| *index == receiver && side.faces(by);
        let bootstrap = self.bootstraps.iter().any(named);
        assert!(!bootstrap, "{by:?} sent data on a session that is not upgraded");
    }

    pub(crate) fn opened(&self, side: Side, by: Index, now: Duration) {
        let age = now - self.births[&(side, by)];
        assert!(age < REJECT_AFTER_TIME, "{side:?} opened under a key of {age:?}");
    }

    pub(crate) fn delivered(&mut self, to: Side, bytes: &[u8], now: Duration) {
        let number = usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
        let known = self.packets.get_mut(number).expect("nobody offered this packet");
        assert!(known.from.faces(to), "a packet came back to who sent it");
        assert_eq!(bytes, packet(known.from, number, known.len), "a packet changed on the way");
        let before = known.delivered.replace(now);
        assert_eq!(before, None, "packet {number} was delivered twice, again at {now:?}");
    }

    /// Packets of `from` offered in this time, and how many of them arrived.
    pub(crate) fn tally(&self, from: Side, since: Duration, until: Duration) -> (usize, usize) {
        let offered = || {
            let mine = self.packets.iter().filter(move |packet| packet.from == from);
            mine.filter(move |packet| (since..until).contains(&packet.offered))
        };
        (offered().count(), offered().filter(|packet| packet.delivered.is_some()).count())
    }

    /// When the first packet of `from` offered since then arrived.
    pub(crate) fn first_delivery(&self, from: Side, since: Duration) -> Option<Duration> {
        let mine = self.packets.iter().filter(|p| p.from == from && p.offered >= since);
        mine.filter_map(|packet| packet.delivered).min()
    }
}

/// An IPv4 packet that says its number; lengths vary, so that padding does, but are none of those that
/// the upgrade's messages have, sealed.
fn packet(from: Side, number: usize, len: usize) -> Vec<u8> {
    let mut packet = vec![0xa5; len];
    packet[..20].fill(0);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&be16(len));
    packet[4..6].copy_from_slice(&be16(number));
    packet[12..16].copy_from_slice(&[10, 99, 0, from as u8 + 1]);
    packet
}

fn be16(n: usize) -> [u8; 2] {
    u16::try_from(n).expect("so many packets no scenario offers").to_be_bytes()
}
