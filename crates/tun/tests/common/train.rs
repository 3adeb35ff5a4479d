//! Random flows of packets, and what befalls single packets on the way.

use proptest::prelude::*;

use super::{CWR, ECE, FIN, PSH, RST, SYN, Spec, URG, checksum};

/// A packet, and what was done to it after it was built.
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
            Twist::IpOptions if !self.spec.v6 => {
                packet.splice(20..20, [1, 1, 1, 0]);
                packet[3] = packet[3].wrapping_add(4);
                self.patch_ipv4(&mut packet, 0, 0x46);
            }
            Twist::Fragment | Twist::IpOptions => packet[6] = 44,
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
            Twist::NoChecksum => !self.spec.udp,
            _ => false,
        }
    }

    pub(crate) fn stays_alone(&self) -> bool {
        let unusual = self.spec.flags & (CWR | URG | SYN | RST) != 0 && !self.spec.udp;
        let unchecked = self.twist == Twist::NoChecksum && self.spec.udp;
        unusual || unchecked || self.spec.payload.is_empty()
    }
}

/// What the next packet of a flow does differently.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Nothing,
    Length(usize),
    Sequence(i32),
    Id(u16),
    /// Flags of this packet only.
    Flags(u8),
    /// A header field, from now on.
    Field(u8),
    Twist(Twist),
}

fn change() -> impl Strategy<Value = Change> {
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
        20 => Just(Change::Nothing),
        3 => prop_oneof![Just(0usize), 1usize..300].prop_map(Change::Length),
        1 => prop::sample::select(vec![-100, -1, 1, 100]).prop_map(Change::Sequence),
        1 => prop::sample::select(vec![0xffff, 1, 2, 1000]).prop_map(Change::Id),
        2 => flags.prop_map(Change::Flags),
        1 => (0u8..9).prop_map(Change::Field),
        2 => twist.prop_map(Change::Twist),
    ]
}

/// Packets of up to six flows between four pairs of hosts, interleaved.
pub(crate) fn train(flows: usize, len: usize) -> impl Strategy<Value = Vec<Sent>> {
    let flow = (any::<(bool, bool)>(), 0u8..2, 0u16..2, prop_oneof![Just(100usize), 1usize..300]);
    let step = (0..flows, change(), any::<u8>());
    (prop::collection::vec(flow, flows), prop::collection::vec(step, 0..len)).prop_map(
        |(flows, steps)| {
            let mut states: Vec<_> = flows
                .iter()
                .zip(0u8..)
                .map(|(((v6, udp), host, id_step, size), port)| {
                    (Spec { flow: (*host, port), ..Spec::new(*v6, *udp) }, *id_step, *size)
                })
                .collect();
            let send = |(flow, change, fill): &(usize, Change, u8)| {
                let (spec, id_step, size) = &mut states[*flow];
                next(spec, *id_step, *size, *change, *fill)
            };
            steps.iter().map(send).collect()
        },
    )
}

/// The flow's next packet; `state` moves on.
pub(crate) fn next(state: &mut Spec, id_step: u16, size: usize, change: Change, fill: u8) -> Sent {
    let (mut flags, mut len, mut twist) = (0, size, Twist::None);
    match change {
        Change::Nothing => {}
        Change::Length(other) => len = other,
        Change::Sequence(by) => state.sequence = state.sequence.wrapping_add_signed(by),
        Change::Id(by) => state.id = state.id.wrapping_add(by),
        Change::Flags(bits) => flags = bits,
        Change::Field(which) => change_field(state, which),
        Change::Twist(t) => twist = t,
    }
    let mut spec = Spec { payload: vec![fill; len], ..state.clone() };
    spec.flags |= flags;
    if twist == Twist::BadChecksum && len == 0 {
        twist = Twist::None;
    }
    state.sequence = state.sequence.wrapping_add(u32::try_from(len).unwrap());
    state.id = state.id.wrapping_add(id_step);
    Sent { spec, twist }
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
        _ if !spec.udp && spec.options.is_empty() => spec.options = vec![1; 12],
        _ if !spec.udp => spec.options[11] ^= 1,
        _ => {}
    }
}
