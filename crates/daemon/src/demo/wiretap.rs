//! The wiretap: reads every frame that crosses one end of the wire.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, anyhow};
use vpnd_tun::wire::UDP;
use vpnd_tun::{READ_BUFFER, VnetHeader};

use super::netns::Namespace;
use super::packet::PacketSocket;
use super::tell::size;

/// Reads frames until it is stopped or dropped.
#[derive(Debug)]
pub(super) struct Wiretap {
    socket: Arc<PacketSocket>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<Seen>>>,
}

impl Wiretap {
    /// Starts to read at a device, and counts how often `secret` appears in its frames.
    ///
    /// # Errors
    ///
    /// If a packet socket cannot be opened.
    pub(super) fn start(
        namespace: &Namespace,
        device: &str,
        secret: &'static [u8],
    ) -> anyhow::Result<Self> {
        let socket = namespace.enter(|| PacketSocket::open(device))?;
        let socket = Arc::new(socket.with_context(|| format!("cannot listen on {device}"))?);
        let stop = Arc::new(AtomicBool::new(false));
        let (ours, told) = (Arc::clone(&socket), Arc::clone(&stop));
        let thread = Some(thread::spawn(move || listen(&ours, secret, &told)));
        Ok(Self { socket, stop, thread })
    }

    /// Stops the wiretap after it has read all waiting frames.
    ///
    /// # Errors
    ///
    /// If the wiretap could not read.
    pub(super) fn stop(mut self) -> anyhow::Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a wiretap stops once")?;
        let seen = thread.join().map_err(|_panic| anyhow!("the wiretap panicked"))?;
        let mut seen = seen.context("the wiretap cannot read")?;
        seen.missed = self.socket.missed().context("the wiretap cannot say what it missed")?;
        Ok(seen)
    }
}

impl Drop for Wiretap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What the wiretap has seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The number of times that the secret was readable.
    pub(super) sightings: usize,
    /// The first datagram of transport data that is more than a keepalive.
    pub(super) sample: Option<Vec<u8>>,
    /// The number of frames that did not fit into the buffer.
    pub(super) missed: u32,
    bytes: u64,
    frames: u64,
    /// The number of UDP datagrams by type, which is in their first four bytes.
    datagrams: BTreeMap<u32, u64>,
}

impl Seen {
    /// The amount of data.
    pub(super) fn volume(&self) -> String {
        match self.missed {
            0 => size(self.bytes),
            missed => format!("{} and {missed} frames that it missed", size(self.bytes)),
        }
    }

    /// The number of frames of each kind, as far as kinds can be distinguished without keys.
    pub(super) fn kinds(&self) -> String {
        let known = self.datagrams.iter().map(|(kind, n)| format!("{} {n}", name(*kind)));
        let udp: u64 = self.datagrams.values().sum();
        known.chain([format!("other frames {}", self.frames - udp)]).collect::<Vec<_>>().join(", ")
    }

    /// Records one frame or super-packet, which follows its virtio header.
    fn record(&mut self, read: &[u8], secret: &[u8]) {
        let Some((header, frame)) = VnetHeader::decode(read) else { return };
        self.bytes += frame.len() as u64;
        self.sightings += frame.windows(secret.len()).filter(|part| *part == secret).count();
        match udp_payload(frame) {
            Some(payload) if header.gso_type & !GSO_ECN == GSO_UDP_L4 => {
                payload.chunks(usize::from(header.gso_size).max(1)).for_each(|d| self.datagram(d));
            }
            Some(payload) => self.datagram(payload),
            None => self.frames += 1,
        }
    }

    fn datagram(&mut self, datagram: &[u8]) {
        self.frames += 1;
        let kind = datagram.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        *self.datagrams.entry(kind).or_default() += 1;
        if kind == TRANSPORT_DATA && datagram.len() > KEEPALIVE_LEN && self.sample.is_none() {
            self.sample = Some(datagram.to_vec());
        }
    }
}

/// Formats bytes like `hexdump -C`.
pub(super) fn hexdump(bytes: &[u8]) -> Vec<String> {
    let line = |(n, row): (usize, &[u8])| {
        let hex: String = row.iter().map(|byte| format!(" {byte:02x}")).collect();
        let graphic = |byte: &u8| if byte.is_ascii_graphic() { char::from(*byte) } else { '.' };
        let text: String = row.iter().map(graphic).collect();
        format!("{:04x} {hex:<48}  {text}", n * 16)
    };
    bytes.chunks(16).enumerate().map(line).collect()
}

fn listen(socket: &PacketSocket, secret: &[u8], stop: &AtomicBool) -> io::Result<Seen> {
    let (mut seen, mut buffer) = (Seen::default(), vec![0; READ_BUFFER]);
    loop {
        match socket.read(&mut buffer).map_err(|error| (error.kind(), error)) {
            Ok(len) => seen.record(&buffer[..len], secret),
            Err((ErrorKind::WouldBlock, _)) if stop.load(Ordering::Relaxed) => return Ok(seen),
            Err((ErrorKind::WouldBlock | ErrorKind::Interrupted, _)) => {}
            Err((_, error)) => return Err(error),
        }
    }
}

/// The payload of an Ethernet frame, if it is UDP over IPv4.
fn udp_payload(frame: &[u8]) -> Option<&[u8]> {
    let packet = frame.strip_prefix(frame.get(..12)?)?.strip_prefix(&ETHERTYPE_IPV4)?;
    let header = usize::from(packet.first()? & 15) * 4;
    (packet.get(9) == Some(&UDP)).then_some(packet.get(header + 8..)?)
}

fn name(kind: u32) -> String {
    match kind {
        1 => "handshake initiation".into(),
        2 => "handshake response".into(),
        3 => "cookie reply".into(),
        TRANSPORT_DATA => "transport data".into(),
        other => format!("datagrams of type {other}"),
    }
}

const ETHERTYPE_IPV4: [u8; 2] = [8, 0];
/// A super-packet of UDP datagrams (linux/virtio_net.h).
const GSO_UDP_L4: u8 = 5;
/// A flag bit in addition to the kind of super-packet.
const GSO_ECN: u8 = 0x80;
const TRANSPORT_DATA: u32 = 4;
/// The length of a datagram with header and tag, but without payload.
const KEEPALIVE_LEN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame that follows its virtio header.
    fn udp(gso_size: u16, payload: &[u8]) -> Vec<u8> {
        let gso_type = if gso_size == 0 { 0 } else { GSO_UDP_L4 };
        let header = VnetHeader { gso_type, gso_size, ..VnetHeader::PLAIN };
        let mut frame = header.encode().to_vec();
        frame.extend([2; 12].iter().chain(&ETHERTYPE_IPV4));
        frame.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, UDP, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        frame.extend([0; 8].iter().chain(payload));
        frame
    }

    #[test]
    fn a_super_packet_counts_as_its_datagrams() {
        let mut seen = Seen::default();
        let data = [[4, 0, 0, 0, 7, 7, 7, 7]; 10].concat();
        seen.record(&udp(0, &data), b"secret");
        seen.record(&udp(32, &data), b"secret");
        assert_eq!((seen.datagrams[&4], seen.frames), (4, 4));
        assert_eq!(seen.sample.as_deref(), Some(&data[..]));
        seen.record(&udp(0, &[1, 0, 0, 0]), b"secret");
        seen.record(&udp(0, b""), b"secret");
        assert_eq!(
            seen.kinds(),
            "datagrams of type 0 1, handshake initiation 1, transport data 4, other frames 0"
        );
    }

    #[test]
    fn secrets_are_found_wherever_they_stand() {
        let mut seen = Seen::default();
        seen.record(&udp(0, b"a secret, a secret"), b"secret");
        seen.record(&[[0; 10].as_slice(), b"secret"].concat(), b"secret");
        seen.record(&[0; 9], b"secret");
        assert_eq!((seen.sightings, seen.frames), (3, 2));
    }

    #[test]
    fn a_dump_of_bytes() {
        let lines = hexdump(b"0123456789abcdefg\n");
        assert_eq!(
            lines[0],
            "0000  30 31 32 33 34 35 36 37 38 39 61 62 63 64 65 66  0123456789abcdef"
        );
        assert_eq!(lines[1], format!("0010  67 0a{:42}  g.", ""));
    }
}
