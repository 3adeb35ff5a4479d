//! Merges consecutive packets of a flow into super-packets, but only packets that the kernel's GRO would merge.
//!
//! A packet joins only the latest item of its flow, so the order within a flow cannot change. Payloads are not
//! copied: an item is a list of ranges of the receive buffer.

use std::io::IoSlice;
use std::ops::Range;

use crate::flow::{Class, Flow, Hosts, Segment, classify};
use crate::layout::Transport;
use crate::split::{SplitError, split};
use crate::vnet::{GSO_UDP_L4, NEEDS_CSUM, VNET_LEN, VnetHeader};
use crate::wire::{MAX_PACKET, low16, put16};

/// Gathers the packets of one received batch, and passes them on in as few writes as possible.
#[derive(Debug)]
pub struct Coalescer {
    limits: Limits,
    /// The items in the order in which they are written.
    items: Vec<Item>,
    /// The payloads that joined an item; each refers to the item's next payload.
    joined: Vec<Joined>,
    /// For each flow, the item that may still grow.
    open: Vec<Open>,
}

/// Restricts which packets may be merged.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Whether TCP is merged.
    pub tcp: bool,
    /// Whether UDP is merged.
    pub udp: bool,
    /// The number of bytes before the IP header: zero on a TUN device.
    pub prefix: usize,
}

impl Limits {
    /// Stops merging packets of the kind of `header`, because the device refused it.
    pub const fn forbid(&mut self, header: VnetHeader) {
        if header.gso_type == GSO_UDP_L4 {
            self.udp = false;
        } else {
            self.tcp = false;
        }
    }
}

/// Undoes one write of [`Coalescer::flush`] that the device refused: passes its packets to `write` one by one.
/// It allocates memory, which is acceptable because it is rarely needed.
///
/// # Errors
///
/// If `slices` is not such a write.
pub fn unmerge(
    slices: &[IoSlice<'_>],
    prefix: usize,
    mut write: impl FnMut(&[IoSlice<'_>]),
) -> Result<(), SplitError> {
    let whole: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
    let (header, packet) = VnetHeader::decode(&whole).ok_or(SplitError::Headers)?;
    let mut segments = split(header, packet, prefix)?;
    let plain = VnetHeader::PLAIN.encode();
    let mut single = Vec::new();
    while let Some(len) = segments.next_len() {
        single.resize(len, 0);
        segments.write_next(&mut single);
        write(&[IoSlice::new(&plain), IoSlice::new(&single)]);
    }
    Ok(())
}

impl Coalescer {
    /// Makes an empty coalescer, and allocates all the memory for a batch of up to 1024 packets.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            items: Vec::with_capacity(BATCH),
            joined: Vec::with_capacity(BATCH),
            open: Vec::with_capacity(MAX_OPEN),
        }
    }

    /// The limits, which the caller may change at any time.
    pub const fn limits_mut(&mut self) -> &mut Limits {
        &mut self.limits
    }

    /// Adds one packet, a range of `buffer`; pass the same buffer to [`flush`](Self::flush).
    ///
    /// # Panics
    ///
    /// If the range lies outside the buffer.
    pub fn push(&mut self, buffer: &[u8], packet: Range<usize>) {
        match classify(&buffer[packet.clone()], self.limits.prefix) {
            Class::Mergeable(flow, segment) if self.merges(segment.layout.transport) => {
                self.place(buffer, packet, flow, segment);
            }
            Class::Mergeable(flow, _) | Class::Alone(flow) => {
                self.open.retain(|open| open.flow != flow);
                self.items.push(Item::alone(packet));
            }
            Class::Opaque(hosts) => self.push_opaque(packet, &hosts),
            Class::Foreign => self.items.push(Item::alone(packet)),
        }
    }

    /// Passes every item to `write` as a header and slices of `buffer`, with the number of its packets, and
    /// removes all items.
    ///
    /// # Panics
    ///
    /// If `buffer` is not the buffer that the packets were pushed from.
    pub fn flush(&mut self, buffer: &mut [u8], mut write: impl FnMut(&[IoSlice<'_>], usize)) {
        for item in &mut self.items {
            item.finish(buffer);
        }
        let mut slices = [IoSlice::new(&[]); 1 + MAX_TCP];
        for item in &self.items {
            let len = item.gather(&self.joined, buffer, &mut slices);
            write(&slices[..len], item.count);
        }
        self.items.clear();
        self.joined.clear();
        self.open.clear();
    }

    const fn merges(&self, transport: Transport) -> bool {
        match transport {
            Transport::Tcp => self.limits.tcp,
            Transport::Udp => self.limits.udp,
        }
    }

    /// Adds a packet that may belong to any flow between these hosts. No later packet of these flows may be
    /// merged with an earlier one.
    fn push_opaque(&mut self, packet: Range<usize>, hosts: &Hosts) {
        self.open.retain(|open| open.flow.hosts != *hosts);
        self.items.push(Item::alone(packet));
    }

    /// Makes the next item the latest of this flow.
    fn open_flow(&mut self, flow: Flow) {
        if self.open.len() == MAX_OPEN {
            self.open.remove(0);
        }
        self.open.push(Open { flow, item: self.items.len() });
    }

    /// Joins the packet to its flow's latest item, or makes it the latest.
    fn place(&mut self, buffer: &[u8], packet: Range<usize>, flow: Flow, segment: Segment) {
        let Some(at) = self.open.iter().rposition(|open| open.flow == flow) else {
            if segment.ending == 0 {
                self.open_flow(flow);
            }
            return self.items.push(Item::first(packet, segment));
        };
        let item = &mut self.items[self.open[at].item];
        if item.takes(buffer, &packet, &segment) {
            item.join(&mut self.joined, packet, &segment);
            if item.is_full() {
                self.open.swap_remove(at);
            }
            return;
        }
        if segment.ending != 0 {
            self.open.swap_remove(at);
        } else {
            self.open[at].item = self.items.len();
        }
        self.items.push(Item::first(packet, segment));
    }
}

#[derive(Debug)]
struct Open {
    flow: Flow,
    item: usize,
}

#[derive(Debug)]
struct Joined {
    payload: Range<usize>,
    next: usize,
}

/// One write: an unchanged packet, or a super-packet under construction.
#[derive(Debug)]
struct Item {
    first: Range<usize>,
    /// The first packet's headers; `None` if no packet may join.
    segment: Option<Segment>,
    count: usize,
    /// The number of payload bytes of all packets.
    len: usize,
    /// The step from one IPv4 identification to the next: 0 or 1, known from the second packet on.
    id_step: u16,
    /// Whether the first packet's checksum was verified; a packet that is not merged needs no check.
    verified: bool,
    /// FIN and PSH of the packet that ended the super-packet.
    ending: u8,
    /// Whether the latest packet was shorter than the first.
    short: bool,
    head: usize,
    tail: usize,
    header: [u8; VNET_LEN],
}

impl Item {
    fn alone(packet: Range<usize>) -> Self {
        Self {
            first: packet,
            segment: None,
            count: 1,
            len: 0,
            id_step: 0,
            verified: false,
            ending: 0,
            short: false,
            head: NONE,
            tail: NONE,
            header: [0; VNET_LEN],
        }
    }

    fn first(packet: Range<usize>, segment: Segment) -> Self {
        Self { segment: Some(segment), len: segment.len, ..Self::alone(packet) }
    }

    /// Whether `packet` continues this item by the rules of the kernel's GRO. Cheap conditions come first.
    /// Checksums are verified last, and only for packets that meet all other conditions.
    fn takes(&mut self, buffer: &[u8], packet: &Range<usize>, next: &Segment) -> bool {
        let Some(first) = self.segment else { return false };
        next.constant == first.constant
            && self.continues(&first, next)
            && self.has_room(&first, next)
            && same_options(&first, &buffer[self.first.clone()], &buffer[packet.clone()])
            && self.is_intact(buffer, &first)
            && next.layout.is_intact(&buffer[packet.clone()])
    }

    /// Whether sequence number and identification are consecutive.
    fn continues(&self, first: &Segment, next: &Segment) -> bool {
        let step = next.id.wrapping_sub(first.id);
        let numbered = match self.count {
            1 => step == 1 || step == 0 && first.may_repeat_id(),
            count => step == self.id_step.wrapping_mul(low16(count)),
        };
        let offset = next.sequence.wrapping_sub(first.sequence) as usize;
        numbered && (first.layout.transport == Transport::Udp || offset == self.len)
    }

    /// Whether the packet is no longer than the first one, and the super-packet stays within the length of an
    /// IP packet.
    fn has_room(&self, first: &Segment, next: &Segment) -> bool {
        let headers = first.layout.payload - first.layout.ip;
        next.len <= first.len && headers + self.len + next.len <= MAX_PACKET
    }

    fn is_intact(&mut self, buffer: &[u8], first: &Segment) -> bool {
        self.verified = self.verified || first.layout.is_intact(&buffer[self.first.clone()]);
        self.verified
    }

    fn join(&mut self, joined: &mut Vec<Joined>, packet: Range<usize>, next: &Segment) {
        let Some(first) = self.segment else { return };
        if self.count == 1 {
            self.id_step = next.id.wrapping_sub(first.id);
            self.head = joined.len();
        } else {
            joined[self.tail].next = joined.len();
        }
        self.tail = joined.len();
        let payload = packet.start + next.layout.payload..packet.end;
        joined.push(Joined { payload, next: NONE });
        self.count += 1;
        self.len += next.len;
        self.ending = next.ending;
        self.short = next.len < first.len;
    }

    /// Whether no further packet may join.
    const fn is_full(&self) -> bool {
        let Some(first) = &self.segment else { return true };
        let most = match first.layout.transport {
            Transport::Tcp => MAX_TCP,
            Transport::Udp => MAX_UDP,
        };
        self.ending != 0 || self.short || self.count == most
    }

    /// Turns the first packet's headers into those of the super-packet.
    fn finish(&mut self, buffer: &mut [u8]) {
        let Some(Segment { layout, len, .. }) = self.segment else { return };
        if self.count == 1 {
            return;
        }
        let frame = &mut buffer[self.first.clone()];
        let total = layout.payload + self.len;
        layout.set_lengths(frame, total);
        if layout.transport == Transport::Tcp {
            frame[layout.l4 + 13] |= self.ending;
        }
        let partial = layout.pseudo_header(frame, total).partial();
        put16(frame, layout.checksum_at(), partial);
        self.header = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: layout.gso_type(),
            hdr_len: low16(layout.payload),
            gso_size: low16(len),
            csum_start: low16(layout.l4),
            csum_offset: layout.transport.checksum_offset(),
        }
        .encode();
    }

    /// Fills in the slices of this item and returns how many there are.
    fn gather<'a>(
        &'a self,
        joined: &[Joined],
        buffer: &'a [u8],
        slices: &mut [IoSlice<'a>],
    ) -> usize {
        slices[0] = IoSlice::new(&self.header);
        slices[1] = IoSlice::new(&buffer[self.first.clone()]);
        let mut len = 2;
        let mut at = self.head;
        while let Some(Joined { payload, next }) = joined.get(at) {
            slices[len] = IoSlice::new(&buffer[payload.clone()]);
            len += 1;
            at = *next;
        }
        len
    }
}

/// Whether everything before the IP header, and the TCP options, are equal.
fn same_options(first: &Segment, a: &[u8], b: &[u8]) -> bool {
    let layout = &first.layout;
    let options = match layout.transport {
        Transport::Tcp => layout.l4 + 20..layout.payload,
        Transport::Udp => 0..0,
    };
    a[..layout.ip] == b[..layout.ip] && a[options.clone()] == b[options]
}

/// More items than one flush usually has: 16 GRO batches of 128.
const BATCH: usize = 2048;
/// The number of flows that may grow at the same time. A further flow closes the oldest one, which never
/// reorders packets.
const MAX_OPEN: usize = 64;
/// The number of segments of a UDP super-packet; older kernels refuse more.
const MAX_UDP: usize = 64;
/// The number of segments of a TCP super-packet. This limit is ours; with an ordinary MSS, the maximum length
/// of a packet is reached first.
const MAX_TCP: usize = 128;
/// Marks the end of a list of joined payloads.
const NONE: usize = usize::MAX;
