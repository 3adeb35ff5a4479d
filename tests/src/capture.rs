//! Captures the traffic of a link as an eavesdropper would: every UDP datagram with its addresses, counted;
//! all bytes, searched for secrets; or every complete frame.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use socket2::Socket;

use crate::{Frame, Host, sys};

/// A virtio header, as the kernel puts it before each frame.
const VNET_LEN: usize = 10;
/// Destination, source and type.
const ETHERNET_LEN: usize = 14;
/// IP protocol number.
const UDP: u8 = 17;
/// A flag bit in the type of a super-packet.
const GSO_ECN: u8 = 0x80;
/// A super-packet of UDP datagrams.
const GSO_UDP_L4: u8 = 5;

/// A datagram on the cable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Its source.
    pub from: SocketAddr,
    /// Its destination.
    pub to: SocketAddr,
    /// Length of its payload.
    pub len: usize,
    /// Its first bytes, as many as the capture keeps.
    pub head: Vec<u8>,
}

impl Datagram {
    /// The WireGuard message type, if it has one.
    pub fn kind(&self) -> Option<u32> {
        self.head.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }
}

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
    socket: Arc<Socket>,
}

/// When the reading thread ends.
#[derive(Debug, Default)]
struct Stop {
    /// Once no frame is waiting to be read.
    drained: AtomicBool,
    /// Now: the remaining frames are not needed, and may never end.
    now: AtomicBool,
}

/// The captured traffic.
#[derive(Debug, Default)]
pub struct Seen {
    /// UDP datagrams, separately even if the kernel passed them together.
    pub datagrams: Vec<Datagram>,
    /// All other frames, cut like the datagrams.
    pub others: Vec<Vec<u8>>,
    /// In a capture of frames, all of them.
    pub frames: Vec<Frame>,
}

/// How much of a frame is kept.
#[derive(Debug, Clone, Copy)]
enum Keep {
    /// This much of a UDP datagram, or of the frame if it has none.
    Heads(usize),
    /// The whole frame.
    Whole,
}

impl Seen {
    /// Datagrams that match.
    pub fn count(&self, matching: impl Fn(&Datagram) -> bool) -> usize {
        self.datagrams.iter().filter(|datagram| matching(datagram)).count()
    }

    /// Whether `secret` appears in the kept part of any frame.
    pub fn contains(&self, secret: &[u8]) -> bool {
        let heads = self.datagrams.iter().map(|datagram| &datagram.head);
        heads.chain(&self.others).any(|kept| kept.windows(secret.len()).any(|part| part == secret))
    }
}

impl Capture {
    /// Starts on a device, keeping the first `keep` bytes of each datagram.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn start(host: &Host, device: &str, keep: usize) -> Result<Self> {
        Self::keeping(host, device, Keep::Heads(keep))
    }

    /// Starts on a device, keeping every frame whole, with the tags of virtual LANs.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn frames(host: &Host, device: &str) -> Result<Self> {
        Self::keeping(host, device, Keep::Whole)
    }

    fn keeping(host: &Host, device: &str, keep: Keep) -> Result<Self> {
        let socket = Arc::new(host.enter(|| open(device))?);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = Arc::new(Stop::default());
        let (ours, theirs) = (Arc::clone(&seen), Arc::clone(&stop));
        let reader = Arc::clone(&socket);
        let thread = thread::spawn(move || read(&reader, keep, &ours, &theirs));
        Ok(Self { seen, stop, thread: Some(thread), socket })
    }

    /// The number of matching datagrams so far.
    pub fn count(&self, matching: impl Fn(&Datagram) -> bool) -> usize {
        lock(&self.seen).count(matching)
    }

    /// The number of matching frames so far; zero unless complete frames are kept.
    pub fn count_frames(&self, matching: impl Fn(&Frame) -> bool) -> usize {
        lock(&self.seen).frames.iter().filter(|frame| matching(frame)).count()
    }

    /// Sends an Ethernet frame of any kind out of the device.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = self.socket.send(&[&[0; VNET_LEN], frame].concat());
        sent.map(drop).context("cannot send a frame")
    }

    /// Stops once no frame is waiting to be read, and returns everything.
    ///
    /// # Errors
    /// If the kernel lost some of it for want of room: the counts would be wrong.
    pub fn stop(mut self) -> Result<Seen> {
        self.stop.drained.store(true, Ordering::Relaxed);
        self.join()?;
        let missed = sys::packet_drops(&self.socket)?;
        anyhow::ensure!(missed == 0, "the capture missed {missed} frames");
        Ok(std::mem::take(&mut *lock(&self.seen)))
    }

    fn join(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().map_err(|_panic| anyhow!("the capture panicked"))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.now.store(true, Ordering::Relaxed);
        // A thread that panicked has failed its scenario already.
        let _ = self.join();
    }
}

fn open(device: &str) -> Result<Socket> {
    let index = nix::net::if_::if_nametoindex(device).with_context(|| format!("no {device}"))?;
    let socket = sys::packet_socket(index).context("cannot open a packet socket")?;
    sys::receive_buffer(&socket, 64 << 20)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    Ok(socket)
}

fn read(socket: &Socket, keep: Keep, seen: &Mutex<Seen>, stop: &Stop) {
    let mut buffer = vec![0; VNET_LEN + ETHERNET_LEN + 65_536];
    while !stop.now.load(Ordering::Relaxed) {
        match sys::receive_frame(socket, &mut buffer) {
            Ok((len, tag)) => match keep {
                Keep::Heads(keep) => record(&buffer[..len], keep, &mut lock(seen)),
                Keep::Whole => lock(seen).frames.extend(whole(&buffer[..len], tag)),
            },
            Err(_) if stop.drained.load(Ordering::Relaxed) => return,
            Err(_) => {}
        }
    }
}

/// The frame with its VLAN tag restored.
fn whole(bytes: &[u8], tag: Option<[u8; 4]>) -> Option<Frame> {
    let (addresses, rest) = bytes.get(VNET_LEN..)?.split_at_checked(12)?;
    Some(Frame::new([addresses, tag.as_ref().map_or(&[], |tag| &tag[..]), rest].concat()))
}

fn record(bytes: &[u8], keep: usize, seen: &mut Seen) {
    let Some((header, frame)) = bytes.split_at_checked(VNET_LEN) else { return };
    let Some((from, to, payload)) = udp(frame) else {
        seen.others.push(frame[..frame.len().min(keep)].to_vec());
        return;
    };
    let size = match header[1] & !GSO_ECN {
        GSO_UDP_L4 => usize::from(u16::from_ne_bytes([header[4], header[5]])).max(1),
        _ => payload.len().max(1),
    };
    // An empty datagram has no chunk, but counts as one.
    let empty = payload.is_empty().then_some(payload);
    for part in payload.chunks(size).chain(empty) {
        let head = part[..part.len().min(keep)].to_vec();
        seen.datagrams.push(Datagram { from, to, len: part.len(), head });
    }
}

/// Addresses and payload, if a frame holds one whole UDP packet.
fn udp(frame: &[u8]) -> Option<(SocketAddr, SocketAddr, &[u8])> {
    let packet = frame.get(ETHERNET_LEN..)?;
    let (from, to, segment) = match packet.first()? >> 4 {
        4 => ipv4(packet)?,
        6 => ipv6(packet)?,
        _ => return None,
    };
    let ports = segment.first_chunk::<4>()?;
    let from = SocketAddr::new(from, u16::from_be_bytes([ports[0], ports[1]]));
    let to = SocketAddr::new(to, u16::from_be_bytes([ports[2], ports[3]]));
    Some((from, to, segment.get(8..)?))
}

fn ipv4(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let header = packet.first_chunk::<20>()?;
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    if header[9] != UDP || fragment {
        return None;
    }
    let address = |at: usize| Some(IpAddr::from(*packet.get(at..)?.first_chunk::<4>()?));
    let end = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let start = usize::from(header[0] & 15) * 4;
    Some((address(12)?, address(16)?, packet.get(start..end)?))
}

fn ipv6(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let header = packet.first_chunk::<40>()?;
    if header[6] != UDP {
        return None;
    }
    let address = |at: usize| Some(IpAddr::from(*packet.get(at..)?.first_chunk::<16>()?));
    let end = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    Some((address(8)?, address(24)?, packet.get(40..end)?))
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
