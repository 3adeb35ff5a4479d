//! The file format pcapng, as far as a capture needs it (draft-ietf-opsawg-pcapng): little-endian, times in nanoseconds.

use std::io::{self, Write};

use vpnd_tunnel::tap::{Direction, Lost};

/// What the packets of an interface are (LINKTYPE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Ethernet frames.
    Ethernet = 1,
    /// IPv4 and IPv6 packets.
    Raw = 101,
}

/// A packet without its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    /// The interface's number, from 0.
    pub(super) interface: u32,
    /// Nanoseconds since 1970.
    pub(super) time: u64,
    /// Its length before it was cut.
    pub(super) len: u32,
    /// Its way.
    pub(super) direction: Direction,
}

/// Writes a file.
pub(super) struct Pcapng<W> {
    to: W,
    /// The time of the last packet.
    last: u64,
    /// The block that is being made.
    block: Vec<u8>,
}

impl<W: Write> Pcapng<W> {
    /// Begins a file that this program writes.
    ///
    /// # Errors
    /// As `write(2)`.
    pub(super) fn begin(to: W, application: &str) -> io::Result<Self> {
        let mut file = Self { to, last: 0, block: Vec::new() };
        // The mark of the byte order, version 1.0, and a length that is not known yet.
        file.words(&[0x1a2b_3c4d, 1, u32::MAX, u32::MAX]);
        file.option(APPLICATION, application.as_bytes());
        file.end(SECTION)?;
        Ok(file)
    }

    /// Adds an interface, whose number is that of the interfaces before.
    ///
    /// # Errors
    /// As `write(2)`.
    pub(super) fn interface(
        &mut self,
        link: Link,
        (name, description): (&str, &str),
        snaplen: u32,
    ) -> io::Result<()> {
        self.words(&[link as u32, snaplen]);
        self.option(NAME, name.as_bytes());
        self.option(DESCRIPTION, description.as_bytes());
        self.option(RESOLUTION, &[NANOSECONDS]);
        self.end(INTERFACE)
    }

    /// Adds a packet, of which these parts are kept.
    ///
    /// # Errors
    /// As `write(2)`.
    pub(super) fn packet(&mut self, packet: Packet, kept: &[&[u8]]) -> io::Result<()> {
        let Packet { interface, time, len, direction } = packet;
        self.last = time;
        let captured = kept.iter().map(|part| part.len()).sum();
        self.words(&[interface]);
        self.time(time);
        self.words(&[length(captured), len]);
        self.padded(kept);
        let way: u32 = match direction {
            Direction::Received => 1,
            Direction::Sent => 2,
        };
        self.option(FLAGS, &way.to_le_bytes());
        self.end(PACKET)
    }

    /// Adds lines of a key log of `WireGuard`, for the packets that follow.
    ///
    /// # Errors
    /// As `write(2)`.
    pub(super) fn keys(&mut self, lines: &[u8]) -> io::Result<()> {
        self.words(&[WIREGUARD_KEY_LOG, length(lines.len())]);
        self.padded(&[lines]);
        self.end(SECRETS)
    }

    /// Adds the number of packets of an interface, and of those that the capture lacks.
    ///
    /// # Errors
    /// As `write(2)`.
    pub(super) fn statistics(&mut self, interface: u32, count: Lost) -> io::Result<()> {
        self.words(&[interface]);
        self.time(self.last);
        self.option(RECEIVED, &count.seen.to_le_bytes());
        self.option(DROPPED, &count.lost.to_le_bytes());
        self.end(STATISTICS)
    }

    /// Hands on what was written.
    ///
    /// # Errors
    /// As `write(2)`.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    fn words(&mut self, words: &[u32]) {
        words.iter().for_each(|word| self.block.extend_from_slice(&word.to_le_bytes()));
    }

    /// The upper half comes first.
    fn time(&mut self, nanoseconds: u64) {
        for half in [nanoseconds >> 32, nanoseconds & u64::from(u32::MAX)] {
            self.words(&[u32::try_from(half).unwrap_or(u32::MAX)]);
        }
    }

    /// Parts of one value, which ends at a multiple of four bytes.
    fn padded(&mut self, parts: &[&[u8]]) {
        parts.iter().for_each(|part| self.block.extend_from_slice(part));
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
        let value = &value[..len.into()];
        self.words(&[u32::from(code) | u32::from(len) << 16]);
        self.padded(&[value]);
    }

    /// Ends the block, and its options if it has any. Secrets have none: they end with their bytes.
    fn end(&mut self, kind: u32) -> io::Result<()> {
        if kind != SECRETS {
            self.option(END_OF_OPTIONS, &[]);
        }
        let len = length(self.block.len() + AROUND).to_le_bytes();
        self.to.write_all(&kind.to_le_bytes())?;
        self.to.write_all(&len)?;
        self.to.write_all(&self.block)?;
        self.to.write_all(&len)?;
        self.block.clear();
        Ok(())
    }
}

/// No block is longer than 4 GiB.
fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// A block's type, and its length before and after the contents.
const AROUND: usize = 12;

/// Types of blocks.
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const SECRETS: u32 = 10;

/// Options: of all blocks, of a section, of an interface, of a packet, of statistics.
const END_OF_OPTIONS: u16 = 0;
const APPLICATION: u16 = 4;
const NAME: u16 = 2;
const DESCRIPTION: u16 = 3;
const RESOLUTION: u16 = 9;
const FLAGS: u16 = 2;
const RECEIVED: u16 = 4;
const DROPPED: u16 = 5;

/// The times of an interface are 10⁻⁹ seconds.
const NANOSECONDS: u8 = 9;
/// "WGKL", the type of secrets that are a key log of `WireGuard`.
const WIREGUARD_KEY_LOG: u32 = 0x5747_4b4c;

#[cfg(test)]
mod tests {
    use super::*;

    /// The blocks of a file: type, and contents. Each has its length at both ends.
    fn blocks(mut file: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
        let mut all = Vec::new();
        while !file.is_empty() {
            let len = word(&file[4..]) as usize;
            assert!(len.is_multiple_of(4) && word(&file[len - 4..]) as usize == len);
            all.push((word(file), file[8..len - 4].to_vec()));
            file = &file[len..];
        }
        all
    }

    #[test]
    fn a_file_has_its_blocks() {
        let mut bytes = Vec::new();
        let mut file = Pcapng::begin(&mut bytes, "vpnd").unwrap();
        file.interface(Link::Raw, ("tun0", "inner"), 96).unwrap();
        file.keys(b"KEY\n").unwrap();
        let packet =
            Packet { interface: 0, time: (7 << 32) + 9, len: 100, direction: Direction::Sent };
        file.packet(packet, &[b"ab", b"cde"]).unwrap();
        file.statistics(0, Lost { seen: 5, lost: 4 }).unwrap();
        let blocks = blocks(&bytes);
        let kinds: Vec<_> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [SECTION, INTERFACE, SECRETS, PACKET, STATISTICS]);
        assert_eq!(blocks[0].1[..8], [0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0]);
        assert_eq!(
            blocks[1].1[..16],
            [101, 0, 0, 0, 96, 0, 0, 0, 2, 0, 4, 0, b't', b'u', b'n', b'0']
        );
        assert_eq!(blocks[2].1, [b"LKGW", &[4, 0, 0, 0][..], b"KEY\n"].concat());
        let expected = [
            &[0, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 5, 0, 0, 0, 100, 0, 0, 0][..],
            b"abcde\0\0\0",
            &[2, 0, 4, 0, 2, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(blocks[3].1, expected.concat());
        assert_eq!(blocks[4].1[12..24], [4, 0, 8, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(blocks[4].1[24..36], [5, 0, 8, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    }
}
