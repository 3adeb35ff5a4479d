//! Explicit congestion notification through the tunnel (RFC 6040): a datagram has the mark of the packet
//! inside, and a mark that is set on the path is copied to that packet.
//!
//! Some paths mark every datagram with "congestion experienced". Such marks are meaningless, and if vpnd
//! dropped every packet without ECN because of them, the tunnel would not work: [`Marks`] recognises these
//! paths.

use std::time::Duration;

use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::time::BootTime;
use vpnd_tun::Sum;
use vpnd_tun::wire::{put16, word16};

/// The two ECN bits of an IP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ecn {
    /// The transport does not support ECN.
    #[default]
    NotEct = 0,
    /// The transport supports ECN; the second of two code points with the same meaning.
    Ect1 = 1,
    /// The transport supports ECN.
    Ect0 = 2,
    /// Congestion experienced.
    Ce = 3,
}

impl Ecn {
    /// The mark in a TOS byte or traffic class.
    pub(crate) const fn of_tos(tos: u8) -> Self {
        match tos & 3 {
            1 => Self::Ect1,
            2 => Self::Ect0,
            3 => Self::Ce,
            _ => Self::NotEct,
        }
    }

    /// The mark of an IP packet; "not ECN-capable" for other contents.
    pub(crate) fn of_packet(packet: &[u8]) -> Self {
        match packet {
            [first, tos, ..] if first >> 4 == 4 => Self::of_tos(*tos),
            [first, class, ..] if first >> 4 == 6 => Self::of_tos(class >> 4),
            _ => Self::NotEct,
        }
    }

    /// The mark as bits of a TOS byte.
    pub(crate) const fn bits(self) -> u8 {
        self as u8
    }

    /// The new mark of a packet with this mark, after an outer header with the mark `outer` (RFC 6040 §4.2).
    /// `None`: the packet must be dropped, because a transport without ECN notices congestion only by losses.
    const fn emerging(self, outer: Self) -> Option<Self> {
        match (self, outer) {
            (Self::NotEct, Self::Ce) => None,
            (Self::Ect0 | Self::Ect1, Self::Ce) => Some(Self::Ce),
            (Self::Ect0, Self::Ect1) => Some(Self::Ect1),
            (inner, _) => Some(inner),
        }
    }
}

/// Copies the mark of the outer header to the IP packet inside. `believed` is false if congestion marks of
/// this path are meaningless.
///
/// # Errors
/// [`DropReason::Congestion`], if the packet's transport does not support ECN and the mark is believed.
pub(crate) fn decapsulate(outer: Ecn, believed: bool, packet: &mut [u8]) -> Result<(), DropReason> {
    if outer == Ecn::NotEct {
        return Ok(());
    }
    let inner = Ecn::of_packet(packet);
    let Some(emerging) = inner.emerging(outer) else {
        return if believed { Err(DropReason::Congestion) } else { Ok(()) };
    };
    if emerging != inner {
        remark(packet, emerging);
    }
    Ok(())
}

fn remark(packet: &mut [u8], ecn: Ecn) {
    if packet[0] >> 4 == 6 {
        packet[1] = packet[1] & !0x30 | ecn.bits() << 4;
        return;
    }
    let before = word16(packet, 0);
    packet[1] = packet[1] & !3 | ecn.bits();
    let after = word16(packet, 0);
    if let Some(field) = packet.get_mut(10..12) {
        let checksum = Sum::updated(word16(field, 0), before, after);
        put16(field, 0, checksum);
    }
}

/// Counts how many of the recently received datagrams had a mark for congestion.
///
/// A router marks only datagrams whose sender supports ECN, and only a few of them. If more than half of all
/// datagrams have the mark, something on the path marks all of them. From too few datagrams nothing can be
/// concluded, and then no packet is dropped.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// When `current` began to count.
    since: BootTime,
    current: Count,
    /// The count of the previous interval: both intervals together are five to ten seconds long.
    previous: Count,
    everything: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    datagrams: u64,
    marked: u64,
}

/// How a batch has changed the judgement of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The path marks everything.
    Everything,
    /// The path no longer marks more datagrams than other paths do.
    Sane,
}

impl Marks {
    /// Counts the datagrams of one batch, which have one mark. Only authentic datagrams that were not received
    /// before count.
    pub(crate) fn note(&mut self, outer: Ecn, datagrams: u64, now: BootTime) -> Option<Verdict> {
        self.age(now);
        self.current.datagrams += datagrams;
        self.current.marked += if outer == Ecn::Ce { datagrams } else { 0 };
        let (datagrams, marked) = self.sum();
        let everything = marked * 2 > datagrams;
        if datagrams < FEW || everything == self.everything {
            return None;
        }
        self.everything = everything;
        Some(if everything { Verdict::Everything } else { Verdict::Sane })
    }

    /// Whether a congestion mark of this path is believed.
    pub(crate) fn believed(&self) -> bool {
        let (datagrams, marked) = self.sum();
        datagrams >= FEW && marked * 2 <= datagrams
    }

    fn sum(&self) -> (u64, u64) {
        let (current, previous) = (self.current, self.previous);
        (current.datagrams + previous.datagrams, current.marked + previous.marked)
    }

    /// Forgets datagrams that were counted more than ten seconds ago.
    pub(crate) fn age(&mut self, now: BootTime) {
        let age = now.saturating_since(self.since);
        if age < HALF {
            return;
        }
        let current = std::mem::take(&mut self.current);
        self.previous = if age < HALF * 2 { current } else { Count::default() };
        self.since = now;
    }
}

const HALF: Duration = Duration::from_secs(5);
/// From fewer datagrams nothing is concluded: a tunnel that has just started has received a few unmarked ones.
const FEW: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect1, Ecn::Ect0, Ecn::Ce];

    /// RFC 6040, figure 4: a row for each inner mark, a column for each outer one.
    #[test]
    fn marks_emerge_as_the_table_has_them() {
        use Ecn::{Ce, Ect0, Ect1, NotEct};
        let table = [
            (NotEct, [Some(NotEct), Some(NotEct), Some(NotEct), None]),
            (Ect0, [Some(Ect0), Some(Ect0), Some(Ect1), Some(Ce)]),
            (Ect1, [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)]),
            (Ce, [Some(Ce), Some(Ce), Some(Ce), Some(Ce)]),
        ];
        for (inner, row) in table {
            for (outer, emerging) in [NotEct, Ect0, Ect1, Ce].into_iter().zip(row) {
                assert_eq!(inner.emerging(outer), emerging, "{inner:?} in {outer:?}");
            }
        }
    }

    fn v4(ecn: Ecn) -> Vec<u8> {
        let mut packet = vec![0x45, 0xb8 | ecn.bits(), 0, 20, 1, 2, 0x40, 0, 64, 17, 0, 0];
        packet.extend([192, 0, 2, 1, 198, 51, 100, 2]);
        let checksum = !sum(&packet);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    fn v6(ecn: Ecn) -> Vec<u8> {
        let mut packet = vec![0; 40];
        (packet[0], packet[1]) = (0x6b, 0x8f | ecn.bits() << 4);
        packet
    }

    fn sum(header: &[u8]) -> u16 {
        let words = header.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
        let sum: u32 = words.sum();
        u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
    }

    #[test]
    fn only_the_mark_changes_and_the_header_stays_sound() {
        for outer in ALL {
            for inner in ALL {
                for mut packet in [v4(inner), v6(inner)] {
                    let before = packet.clone();
                    assert_eq!(Ecn::of_packet(&packet), inner);
                    match inner.emerging(outer) {
                        Some(emerging) => {
                            assert_eq!(decapsulate(outer, true, &mut packet), Ok(()));
                            let expected =
                                if before[0] == 0x45 { v4(emerging) } else { v6(emerging) };
                            assert_eq!(packet, expected);
                            assert!(before[0] != 0x45 || sum(&packet) == 0xffff);
                        }
                        None => {
                            assert_eq!(
                                decapsulate(outer, true, &mut packet),
                                Err(DropReason::Congestion)
                            );
                            assert_eq!(decapsulate(outer, false, &mut packet), Ok(()));
                            assert_eq!(packet, before, "delivered as it is");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_packet_has_no_mark() {
        for bytes in [&[][..], &[0x45], &[0x12, 0xff], &[0xff; 9]] {
            assert_eq!(Ecn::of_packet(bytes), Ecn::NotEct);
            assert_eq!(decapsulate(Ecn::Ect1, true, &mut bytes.to_vec()), Ok(()));
        }
    }

    fn at(seconds: u64) -> BootTime {
        BootTime::from_nanos(0) + Duration::from_secs(100 + seconds)
    }

    #[test]
    fn a_path_that_marks_more_than_half_is_not_believed_until_it_marks_less() {
        let mut marks = Marks::default();
        assert_eq!(marks.note(Ecn::NotEct, 100, at(0)), None);
        assert_eq!(marks.note(Ecn::Ce, 100, at(1)), None);
        assert!(marks.believed(), "half is not more than half");
        assert_eq!(marks.note(Ecn::Ce, 1, at(2)), Some(Verdict::Everything));
        assert!(!marks.believed());
        assert_eq!(marks.note(Ecn::Ce, 50, at(7)), None);
        assert_eq!(marks.note(Ecn::Ect0, 500, at(8)), Some(Verdict::Sane));
        assert!(marks.believed());
    }

    #[test]
    fn what_was_ten_seconds_ago_does_not_count() {
        let mut marks = Marks::default();
        assert_eq!(marks.note(Ecn::NotEct, 1_000_000, at(0)), None);
        assert_eq!(marks.note(Ecn::Ce, 40, at(6)), None);
        assert_eq!(marks.note(Ecn::Ce, 40, at(11)), Some(Verdict::Everything));
        assert!(!marks.believed());
        // After an idle time, nothing is known about the path yet.
        assert_eq!(marks.note(Ecn::NotEct, 63, at(60)), None);
        assert!(!marks.believed());
        assert_eq!(marks.note(Ecn::NotEct, 1, at(60)), Some(Verdict::Sane));
        assert!(marks.believed());
    }

    #[test]
    fn few_datagrams_are_no_evidence() {
        let mut marks = Marks::default();
        for second in 0..100 {
            assert_eq!(marks.note(Ecn::Ce, 1, at(second)), None);
            assert!(!marks.believed());
        }
        assert_eq!(marks.note(Ecn::Ce, 64, at(100)), Some(Verdict::Everything));
    }
}
