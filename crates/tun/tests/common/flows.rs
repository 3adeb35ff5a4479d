//! Random flows of packets, and changes to single packets.

use proptest::prelude::*;

use super::super_packet::with_options;
use super::{CWR, ECE, FIN, PSH, RST, SYN, Spec, URG, checksum};

/// A packet, and how it was altered after it was built.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) spec: Spec,
    pub(crate) twist: Twist,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Twist {
    None,
    BadChecksum,
    BadIpChecksum,
    NoChecksum,
    Fragment,
    IpOptions,
    Trailing,
    Truncated,
    Icmp,
    Garbage,
}

impl Sent {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut packet = self.spec.build();
        match self.twist {
            Twist::None => {}
            Twist::BadChecksum => *packet.last_mut().unwrap() ^= 0x40,
            Twist::BadIpChecksum if !self.spec.v6 => packet[10] ^= 1,
            Twist::BadIpChecksum => {}
            Twist::NoChecksum => {
                let at = self.spec.checksum_at();
                packet[at..at + 2].fill(0);
            }
            Twist::Fragment if !self.spec.v6 => self.patch_ipv4(&mut packet, 6, 0x20),
            Twist::Fragment => packet[6] = 44,
            Twist::IpOptions => packet = with_options(packet),
            Twist::Trailing => packet.push(0),
            Twist::Truncated => drop(packet.pop()),
            Twist::Icmp if !self.spec.v6 => self.patch_ipv4(&mut packet, 9, 1),
            Twist::Icmp => packet[6] = 58,
            Twist::Garbage => packet[0] = 0,
        }
        packet
    }

    fn patch_ipv4(&self, packet: &mut [u8], at: usize, byte: u8) {
        packet[at] = byte;
        packet[10..12].fill(0);
        let len = usize::from(packet[0] & 0xf) * 4;
        let checksum = checksum(&[&packet[..len]]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }

    pub(crate) fn is_opaque(&self) -> bool {
        use Twist::{Fragment, Icmp, IpOptions, Trailing, Truncated};
        matches!(self.twist, Fragment | Icmp | IpOptions | Trailing | Truncated)
    }

    pub(crate) fn is_damaged(&self) -> bool {
        match self.twist {
            Twist::BadChecksum => true,
            Twist::BadIpChecksum => !self.spec.v6,
            // Zero may happen to be the right checksum.
            Twist::NoChecksum => !self.spec.udp && self.bytes() != self.spec.build(),
            _ => false,
        }
    }

    pub(crate) fn stays_alone(&self) -> bool {
        let unusual = self.spec.flags & (CWR | URG | SYN | RST) != 0 && !self.spec.udp;
        let unchecked = self.twist == Twist::NoChecksum && self.spec.udp;
        unusual || unchecked || self.spec.payload.is_empty()
    }
}

/// Packets of `flows` flows between four pairs of hosts, interleaved, in fewer than `len` steps. A quarter of
/// the cases contain hardly any change.
pub(crate) fn packets_of(flows: usize, len: usize) -> impl Strategy<Value = Vec<Sent>> {
    let steps = |usual| prop::collection::vec((0..flows, change(usual), any::<u8>()), 0..len);
    let steps = prop_oneof![3 => steps(20), 1 => steps(2000)];
    (prop::collection::vec(flow(), flows), steps).prop_map(|(mut flows, steps)| {
        for (flow, port) in flows.iter_mut().zip(0..) {
            flow.next.flow.1 = port;
        }
        let send = |(flow, change, fill): (usize, _, _)| flows[flow].step(change, fill);
        let mut sent: Vec<_> = steps.into_iter().flat_map(send).collect();
        sent.extend(flows.into_iter().filter_map(|flow| flow.late));
        number(&mut sent);
        sent
    })
}

/// Writes each packet's position into its first byte of payload.
fn number(sent: &mut [Sent]) {
    for (packet, at) in sent.iter_mut().zip((0..=255).cycle()) {
        if let Some(first) = packet.spec.payload.first_mut() {
            *first = at;
        }
    }
}

/// The sender of one flow.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    /// Its next packet, without the payload.
    next: Spec,
    /// The step from one IPv4 identification to the next.
    id_step: u16,
    /// The number of bytes of payload in a full packet.
    size: usize,
    last: Option<Sent>,
    /// A packet that is sent after its successor.
    late: Option<Sent>,
}

/// What is different about the next packet of a flow.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Nothing,
    Length(usize),
    Sequence(i32),
    Id(u16),
    /// Flags of this packet only.
    Flags(u8),
    /// A new value of a header field, from this packet on.
    Field(u8),
    Twist(Twist),
    /// The last packet is sent once more.
    Again,
    /// The packet is sent after its successor.
    Late,
}

impl Flow {
    pub(crate) const fn new(next: Spec, id_step: u16, size: usize) -> Self {
        Self { next, id_step, size, last: None, late: None }
    }

    /// Sends the packets that result from `change`: none, one or two.
    pub(crate) fn step(&mut self, change: Change, fill: u8) -> Vec<Sent> {
        match change {
            Change::Again => self.last.clone().into_iter().collect(),
            Change::Late if self.late.is_none() => {
                self.late = Some(self.packet(Change::Nothing, fill));
                Vec::new()
            }
            _ => {
                self.last = Some(self.packet(change, fill));
                self.last.clone().into_iter().chain(self.late.take()).collect()
            }
        }
    }

    fn packet(&mut self, change: Change, fill: u8) -> Sent {
        let next = &mut self.next;
        let (mut flags, mut len, mut twist) = (0, self.size, Twist::None);
        match change {
            Change::Nothing | Change::Again | Change::Late => {}
            Change::Length(other) => len = other,
            Change::Sequence(by) => next.sequence = next.sequence.wrapping_add_signed(by),
            Change::Id(by) => next.id = next.id.wrapping_add(by),
            Change::Flags(bits) => flags = bits,
            Change::Field(which) => change_field(next, which),
            Change::Twist(t) => twist = t,
        }
        if twist == Twist::BadChecksum && len == 0 {
            twist = Twist::None;
        }
        let payload = (0..=255).cycle().skip(fill.into()).take(len).collect();
        let spec = Spec { payload, flags: next.flags | flags, ..next.clone() };
        next.sequence = next.sequence.wrapping_add(u32::try_from(len).unwrap());
        next.id = next.id.wrapping_add(self.id_step);
        Sent { spec, twist }
    }
}

fn change_field(spec: &mut Spec, which: u8) {
    match which {
        0 => spec.acknowledgment += 1,
        1 => spec.window += 1,
        2 => spec.ttl -= 1,
        3 => spec.tos ^= 2,
        4 => spec.dont_fragment ^= true,
        5 => spec.label ^= 1,
        6 => spec.urgent += 1,
        7 => spec.flags ^= ECE,
        8 => spec.tos ^= 1,
        _ if spec.udp => {}
        _ => match spec.options.last_mut() {
            Some(last) => *last ^= 1,
            None => spec.options = vec![1; 12],
        },
    }
}

fn flow() -> impl Strategy<Value = Flow> {
    let options = prop::collection::vec(any::<[u8; 4]>(), 0..=10).prop_map(|words| words.concat());
    let options = prop_oneof![Just(Vec::new()), options];
    let id_step = prop_oneof![6 => 0u16..2, 1 => Just(7)];
    let size = prop_oneof![3 => Just(100usize), 3 => 1usize..300, 1 => 1000usize..1461];
    (any::<(bool, bool, bool)>(), 0u8..2, 0u8..4, options, id_step, size).prop_map(
        |((v6, udp, dont_fragment), host, tos, options, id_step, size)| {
            let spec = Spec::new(v6, udp);
            let options = if udp { Vec::new() } else { options };
            Flow::new(Spec { flow: (host, 0), tos, dont_fragment, options, ..spec }, id_step, size)
        },
    )
}

/// Chooses `usual` and the twelve changes with these weights.
fn change(usual: u32) -> impl Strategy<Value = Change> {
    use Twist::*;
    let flags = prop::sample::select(vec![PSH, FIN, PSH | FIN, ECE, CWR, SYN, RST, URG]);
    let twist = prop::sample::select(vec![
        BadChecksum,
        BadIpChecksum,
        NoChecksum,
        Fragment,
        IpOptions,
        Trailing,
        Truncated,
        Icmp,
        Garbage,
    ]);
    prop_oneof![
        usual => Just(Change::Nothing),
        3 => prop_oneof![Just(0usize), 1usize..300].prop_map(Change::Length),
        1 => prop::sample::select(vec![-100, -1, 1, 100]).prop_map(Change::Sequence),
        1 => prop::sample::select(vec![0xffff, 1, 2, 1000]).prop_map(Change::Id),
        2 => flags.prop_map(Change::Flags),
        1 => (0u8..10).prop_map(Change::Field),
        2 => twist.prop_map(Change::Twist),
        1 => Just(Change::Again),
        1 => Just(Change::Late),
    ]
}
