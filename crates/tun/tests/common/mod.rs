//! Builds packets from a description with the simplest correct code. The tests compare the crate's results with
//! these packets.
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod devices;
pub(crate) mod flows;
pub(crate) mod gro;
pub(crate) mod namespace;
pub(crate) mod rules;
pub(crate) mod seeds;
pub(crate) mod super_packet;

/// One TCP or UDP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) v6: bool,
    pub(crate) udp: bool,
    /// The last byte of the source address, and the low byte of the source port.
    pub(crate) flow: (u8, u8),
    pub(crate) id: u16,
    pub(crate) dont_fragment: bool,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    pub(crate) label: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const URG: u8 = 0x20;
pub(crate) const ECE: u8 = 0x40;
pub(crate) const CWR: u8 = 0x80;

impl Spec {
    pub(crate) fn new(v6: bool, udp: bool) -> Self {
        Self {
            v6,
            udp,
            flow: (1, 1),
            id: 0xfffe,
            dont_fragment: true,
            ttl: 64,
            tos: 0,
            label: 0,
            sequence: 0xffff_fff0,
            acknowledgment: 7,
            flags: ACK,
            window: 500,
            urgent: 0,
            options: Vec::new(),
            payload: b"payload".to_vec(),
        }
    }

    /// The packet with all its checksums.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut l4 = if self.udp { self.udp_header() } else { self.tcp_header() };
        l4.extend(&self.payload);
        let mut packet = self.ip_header(l4.len());
        let at = if self.udp { 6 } else { 16 };
        let checksum = match checksum(&[&self.pseudo_header(l4.len()), &l4]) {
            0 if self.udp => 0xffff,
            checksum => checksum,
        };
        l4[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        packet.extend(l4);
        packet
    }

    /// The packet as a super-packet: its checksum field contains the pseudo header's sum, not inverted.
    pub(crate) fn build_super(&self) -> Vec<u8> {
        let mut packet = self.build();
        let at = self.checksum_at();
        let partial = !checksum(&[&self.pseudo_header(packet.len() - self.ip_len())]);
        packet[at..at + 2].copy_from_slice(&partial.to_be_bytes());
        packet
    }

    pub(crate) const fn ip_len(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    pub(crate) const fn checksum_at(&self) -> usize {
        self.ip_len() + if self.udp { 6 } else { 16 }
    }

    pub(crate) fn header_len(&self) -> usize {
        self.ip_len() + if self.udp { 8 } else { 20 + self.options.len() }
    }

    fn protocol(&self) -> u8 {
        if self.udp { 17 } else { 6 }
    }

    fn addresses(&self) -> Vec<u8> {
        let v6 = |last| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        let v4 = |last| [192, 0, 2, last];
        match self.v6 {
            true => [v6(self.flow.0), v6(200)].concat(),
            false => [v4(self.flow.0), v4(200)].concat(),
        }
    }

    fn pseudo_header(&self, len: usize) -> Vec<u8> {
        let mut header = self.addresses();
        header.extend([0, self.protocol()]);
        header.extend(be16(len));
        header
    }

    fn ip_header(&self, len: usize) -> Vec<u8> {
        let mut header = Vec::new();
        if self.v6 {
            header.extend([0x60 | self.tos >> 4, self.tos << 4]);
            header.extend(self.label.to_be_bytes());
            header.extend(be16(len));
            header.extend([self.protocol(), self.ttl]);
            header.extend(self.addresses());
            return header;
        }
        header.extend([0x45, self.tos]);
        header.extend(be16(len + 20));
        header.extend(self.id.to_be_bytes());
        header.extend([
            if self.dont_fragment { 0x40 } else { 0 },
            0,
            self.ttl,
            self.protocol(),
            0,
            0,
        ]);
        header.extend(self.addresses());
        let checksum = checksum(&[&header]);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    fn ports(&self) -> [u8; 4] {
        [0xc0, self.flow.1, 0, 9]
    }

    fn tcp_header(&self) -> Vec<u8> {
        let mut header = self.ports().to_vec();
        header.extend(self.sequence.to_be_bytes());
        header.extend(self.acknowledgment.to_be_bytes());
        header.push(u8::try_from((20 + self.options.len()) / 4).unwrap() << 4);
        header.push(self.flags);
        header.extend(self.window.to_be_bytes());
        header.extend([0, 0]);
        header.extend(self.urgent.to_be_bytes());
        header.extend(&self.options);
        header
    }

    fn udp_header(&self) -> Vec<u8> {
        let mut header = self.ports().to_vec();
        header.extend(be16(8 + self.payload.len()));
        header.extend([0, 0]);
        header
    }
}

/// RFC 1071, word by word, over parts that all have an even length except the last.
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let words = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

fn be16(len: usize) -> [u8; 2] {
    u16::try_from(len).unwrap().to_be_bytes()
}
