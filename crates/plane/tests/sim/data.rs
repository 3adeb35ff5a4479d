//! The two data lines of one end: what `vpnd-tunnel` does between device and socket, without
//! either.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use vpnd_protocol::activity::{Activity, Tally};
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::fragment::{self, Cut, Reassembly};
use vpnd_protocol::frame::{self, Frame};
use vpnd_protocol::inner::Inner;
use vpnd_protocol::message::{self, DATA_HEADER_LEN, Index, Message};
use vpnd_protocol::peer::Transmit;
use vpnd_protocol::receive_order::{Framed, ReceiveOrder};
use vpnd_protocol::session::{Contents, Generation, OVERHEAD, Opened, SealingKey, padded_len};
use vpnd_protocol::staging::Staging;
use vpnd_protocol::table::{Admitted, Arrival, Path, Table};
use vpnd_protocol::time::BootTime;
use vpnd_protocol::wake_flag::Wake;
use vpnd_tun::Mode;
use vpnd_tunnel::view::Policy;

const HANDSHAKE_QUEUE: usize = 512;
const FRAME_QUEUE: usize = 64;
/// The longest packet in fragments.
const LARGEST: usize = 9000;

pub(crate) struct Data {
    table: Arc<Table>,
    policy: Policy,
    activity: Arc<Activity>,
    staging: Staging,
    order: ReceiveOrder,
    fragments: Reassembly,
    /// Handshake messages for the control plane.
    pub(crate) handshakes: VecDeque<Admitted>,
    /// Control frames for the control plane.
    pub(crate) frames: VecDeque<Framed>,
    /// The control plane has to be woken.
    pub(crate) woken: bool,
    /// Sealed datagrams and where they go.
    pub(crate) sealed: Vec<(Transmit, Vec<u8>)>,
    /// Which sessions of the peer packets were sealed for.
    pub(crate) sealed_for: Vec<Index>,
    /// Which sessions datagrams opened on.
    pub(crate) opened: Vec<Index>,
    /// Packets for the device: numbered ones, and TCP's.
    pub(crate) delivered: Vec<Vec<u8>>,
    pub(crate) tcp: Vec<Vec<u8>>,
    pub(crate) drops: BTreeMap<DropReason, usize>,
}

/// A datagram that opened.
struct Slot {
    datagram: Vec<u8>,
    receiver: Index,
    counter: u64,
    opened: Opened,
}

impl Data {
    pub(crate) fn new(activity: Arc<Activity>, table: Table, policy: Policy) -> Self {
        Self {
            table: Arc::new(table),
            policy,
            activity,
            staging: Staging::default(),
            order: ReceiveOrder::default(),
            fragments: Reassembly::new(LARGEST),
            handshakes: VecDeque::new(),
            frames: VecDeque::new(),
            woken: false,
            sealed: Vec::new(),
            sealed_for: Vec::new(),
            opened: Vec::new(),
            delivered: Vec::new(),
            tcp: Vec::new(),
            drops: BTreeMap::new(),
        }
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// A new table; what waits for a key is sent first.
    pub(crate) fn publish(&mut self, table: Table, now: BootTime) {
        self.table = Arc::new(table);
        self.send_staged(now);
    }

    /// Another policy holds from the next batch on.
    pub(crate) fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// The device has packets: seals them, or stages them where there is no key.
    pub(crate) fn outbound(&mut self, packets: &[Vec<u8>], now: BootTime) {
        self.send_staged(now);
        if self.seal(packets, now) {
            return;
        }
        for packet in packets {
            let lost = self.staging.push(now, packet);
            self.count(DropReason::StagingDropped, lost);
        }
        self.wake(self.activity.want_handshake.raise());
    }

    /// The kernel takes the source address for none of ours.
    pub(crate) fn lose_source(&mut self) {
        self.wake(self.activity.source_lost.raise());
    }

    fn send_staged(&mut self, now: BootTime) {
        if !self.table.sends_at(now) {
            return;
        }
        let lost = self.staging.purge(now);
        self.count(DropReason::StagingDropped, lost);
        while let Some(packet) = self.staging.peek().map(<[u8]>::to_vec) {
            self.staging.pop();
            if !self.seal(&[packet], now) {
                self.count(DropReason::StagingDropped, 1);
                return;
            }
        }
    }

    fn seal(&mut self, packets: &[Vec<u8>], now: BootTime) -> bool {
        let table = Arc::clone(&self.table);
        let Some((key, path)) = &table.send else { return false };
        let plaintexts: Vec<_> =
            packets.iter().flat_map(|one| self.plaintexts(one, key, path)).collect();
        let Ok(counters) = key.reserve(plaintexts.len(), now) else { return false };
        self.wake(counters.wake());
        let mut tally = Tally { packets: packets.len() as u64, ..Tally::default() };
        for (plaintext, counter) in plaintexts.iter().zip(counters) {
            let mut datagram = vec![0; plaintext.len() + OVERHEAD];
            datagram[DATA_HEADER_LEN..][..plaintext.len()].copy_from_slice(plaintext);
            key.seal(counter, &mut datagram);
            tally.datagrams += 1;
            tally.bytes += datagram.len() as u64;
            if let Ok(Message::Data { receiver, .. }) = message::parse(&datagram) {
                self.sealed_for.push(receiver);
            }
            self.sealed.push((Transmit { to: path.to, from: path.source() }, datagram));
        }
        self.wake(self.activity.sent(now, tally));
        true
    }

    /// The packet, padded, or its fragments if the session carries them.
    fn plaintexts(&self, packet: &[u8], key: &SealingKey, path: &Path) -> Vec<Vec<u8>> {
        let mtu = usize::from(self.policy.mtu());
        assert!(packet.len() <= mtu, "the device took {} bytes, {mtu} pass", packet.len());
        let mut packet = packet.to_vec();
        let segments = self.policy.segments();
        segments.into_iter().for_each(|segments| segments.clamp(Mode::Tun, &mut packet));
        let (len, most) = (packet.len(), usize::from(path.max_datagram));
        if padded_len(len, mtu) + OVERHEAD <= most || !key.carries_frames() {
            packet.resize(padded_len(len, mtu), 0);
            return vec![packet];
        }
        let plan = fragment::plan(len, most).expect("a packet has eight fragments at most");
        let cut = |cut: Cut| {
            let mut plaintext = vec![0; cut.plaintext_len()];
            cut.write(&packet, &mut plaintext);
            plaintext
        };
        plan.cuts().map(cut).collect()
    }

    /// The socket has a batch: datagrams of one sender.
    pub(crate) fn inbound(&mut self, at: Arrival, batch: Vec<Vec<u8>>, now: BootTime) {
        let table = Arc::clone(&self.table);
        let mut slots = Vec::new();
        for datagram in batch {
            match self.open(&table, at, datagram, now) {
                Ok(slot) => slots.extend(slot),
                Err(reason) => self.count(reason, 1),
            }
        }
        self.accept(&table, at, &slots, now);
    }

    fn open(
        &mut self,
        table: &Table,
        at: Arrival,
        mut datagram: Vec<u8>,
        now: BootTime,
    ) -> Result<Option<Slot>, DropReason> {
        let parsed = at.parse(&datagram)?;
        let Message::Data { receiver, counter } = parsed else {
            return self.hand_over(table.admit(at, &datagram)?).map(|()| None);
        };
        let key = table.opening(receiver).ok_or(DropReason::UnknownIndex)?;
        let opened = key.open(counter, &mut datagram, now)?;
        self.opened.push(receiver);
        Ok(Some(Slot { datagram, receiver, counter, opened }))
    }

    fn hand_over(&mut self, admitted: Admitted) -> Result<(), DropReason> {
        if self.handshakes.len() == HANDSHAKE_QUEUE {
            return Err(DropReason::HandshakeQueueFull);
        }
        self.handshakes.push_back(admitted);
        self.woken = true;
        Ok(())
    }

    fn accept(&mut self, table: &Table, at: Arrival, slots: &[Slot], now: BootTime) {
        let activity = Arc::clone(&self.activity);
        let mut accepting = self.order.begin(table, &activity, at);
        let mut found = Vec::new();
        for run in slots.chunk_by(|a, b| a.receiver == b.receiver) {
            let Some(key) = table.opening(run[0].receiver) else { continue };
            let mut window = key.window();
            for Slot { datagram, opened, counter, .. } in run {
                match accepting.accept(key, &mut window, opened, datagram) {
                    Ok(Inner::Keepalive | Inner::Ethernet { .. }) => {}
                    Ok(Inner::Fragment { len, .. }) => {
                        let plaintext = &datagram[DATA_HEADER_LEN..][..len];
                        found.push((Some((key.generation(), *counter)), plaintext.to_vec()));
                    }
                    Ok(Inner::Packet { len, .. }) => {
                        assert_ne!(key.contents(), Contents::Bootstrap);
                        found.push((None, datagram[DATA_HEADER_LEN..][..len].to_vec()));
                    }
                    Ok(Inner::Control { len, .. }) if self.frames.len() < FRAME_QUEUE => {
                        self.frames.push_back(accepting.frame(key, datagram, len));
                        self.woken = true;
                    }
                    Ok(Inner::Control { .. }) => {
                        *self.drops.entry(DropReason::FrameQueueFull).or_default() += 1;
                    }
                    Err(reason) => *self.drops.entry(reason).or_default() += 1,
                }
            }
        }
        let wake = accepting.end(now);
        self.wake(wake);
        for (fragment, plaintext) in found {
            let packet = match fragment {
                Some((generation, counter)) => self.assemble(generation, counter, &plaintext, now),
                None => Some(plaintext),
            };
            packet.into_iter().for_each(|packet| self.deliver(packet));
        }
    }

    /// The packet that this was the last missing fragment of.
    fn assemble(
        &mut self,
        generation: Generation,
        counter: u64,
        plaintext: &[u8],
        now: BootTime,
    ) -> Option<Vec<u8>> {
        let Ok(Frame::Fragment(fragment)) = frame::parse(plaintext) else { return None };
        match self.fragments.insert_marked(generation, counter, (fragment, false), now) {
            Ok(whole) => whole.map(|(packet, _)| packet.to_vec()),
            Err(reason) => {
                *self.drops.entry(reason).or_default() += 1;
                None
            }
        }
    }

    fn deliver(&mut self, packet: Vec<u8>) {
        match (source(&packet), packet[9]) {
            (source, _) if !self.policy.filter().allows(source) => {
                *self.drops.entry(DropReason::SourceNotAllowed).or_default() += 1;
            }
            (_, TCP) => self.tcp.push(packet),
            _ => self.delivered.push(packet),
        }
    }

    fn wake(&mut self, wake: Wake) {
        self.woken |= wake.is_due();
    }

    fn count(&mut self, reason: DropReason, n: usize) {
        if n > 0 {
            *self.drops.entry(reason).or_default() += n;
        }
    }
}

/// TCP's number in the header of an IPv4 packet.
pub(crate) const TCP: u8 = 6;

fn source(packet: &[u8]) -> IpAddr {
    Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]).into()
}
