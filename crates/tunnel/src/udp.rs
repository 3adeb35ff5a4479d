//! The UDP socket: one descriptor for both families, and one file per kernel feature.
//!
//! `bind` opens the socket, and `change` gives it other settings later. `gso` and `gro` move whole batches; `pktinfo` handles the local address, `tos` the
//! outer TOS byte, and `hops` the outer hop limit. `egress` contains the settings that decide on routes. `cmsg`
//! encodes and decodes control messages, and `sys` contains the system calls.

mod bind;
mod change;
mod cmsg;
mod egress;
mod gro;
mod gso;
mod hops;
mod pktinfo;
mod refusal;
mod renew;
mod route;
mod sys;
mod tos;

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::{NonZeroU8, NonZeroU16};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use socket2::SockAddr;
use vpnd_protocol::limits::MAX_DATAGRAM;

pub use bind::{BindError, Gso, Listen, Options};
pub use egress::Egress;
pub use refusal::Refusal;
pub use route::{largest_payload, packet_around, payload_within, source_towards};

use gso::Oversize;

/// The length of the largest batch.
pub const MAX_BATCH: usize = MAX_DATAGRAM as usize;

/// The number of batches that one call can send.
pub const MAX_RUNS: usize = 32;

/// The length of the longest batch that can be received.
pub const RECEIVE_BUFFER: usize = 65_535;
/// The number of batches that one call can receive.
pub const MAX_RECEIVED: usize = 16;

/// A non-blocking UDP socket that sends and receives batches.
#[derive(Debug)]
pub struct Socket {
    inner: socket2::Socket,
    /// Whether it is an `AF_INET6` socket for both families, which needs IPv4 addresses in v4-mapped form.
    dual_stack: bool,
    local_port: AtomicU16,
    /// The address that the socket was bound to; port 0 lets the kernel choose.
    bound_to: SocketAddr,
    /// The name of the interface that the socket is bound to.
    device: Mutex<Option<String>>,
    segmentation: gso::Segmentation,
    /// Held while the kernel is set to make fragments.
    fragmenting: Mutex<()>,
}

/// One batch to send: datagrams of equal size to one destination; the last one may be shorter.
#[derive(Clone, Copy, Debug)]
pub struct Transmit<'a> {
    /// The destination; a link-local address includes its scope.
    pub destination: SocketAddr,
    /// The local address to send from; the kernel chooses if absent.
    pub source: Option<IpAddr>,
    /// The outer TOS byte or traffic class: DSCP and ECN.
    pub tos: u8,
    /// The outer TTL or hop limit; the host's own if absent.
    pub hops: Option<NonZeroU8>,
    /// The datagrams, back to back.
    pub contents: &'a [u8],
    /// The size of every datagram except the last; absent if `contents` is one datagram.
    pub segment_size: Option<NonZeroU16>,
    /// Each datagram is sent by itself.
    pub singly: bool,
}

/// The result of sending a [`Transmit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// The number of bytes that were sent or skipped: less than all if the socket became full during the send.
    pub len: usize,
    /// The number of datagrams that were not sent because they are too big.
    pub skipped: usize,
    /// Whether a datagram was larger than the first link's MTU: it was fragmented, or not sent.
    pub too_big: bool,
    /// Whether the wanted source address is no longer ours: then the kernel chose another one.
    pub source_lost: bool,
}

/// One received batch: datagrams of `stride` bytes from one source; the last one may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The source; never in v4-mapped form.
    pub from: SocketAddr,
    /// The local address that the batch was sent to, which is the source for the answer.
    pub local: Option<IpAddr>,
    /// The outer TOS byte or traffic class of every datagram of the batch.
    pub tos: u8,
    /// The number of bytes received.
    pub len: usize,
    /// The size of every datagram except the last; never zero.
    pub stride: usize,
}

impl Received {
    /// An empty slot.
    pub const NOTHING: Self = Self {
        from: SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
        local: None,
        tos: 0,
        len: 0,
        stride: 1,
    };

    fn read(raw: &sys::Incoming) -> Self {
        let from = raw.from.map_or(Self::NOTHING.from, unmapped);
        let mut received = Self { from, len: raw.len, stride: raw.len.max(1), ..Self::NOTHING };
        for message in raw.control.messages(raw.control_len) {
            pktinfo::decode(&message, &mut received);
            tos::decode(&message, &mut received);
            gro::decode(&message, &mut received);
        }
        received
    }
}

impl Socket {
    /// Opens and binds a socket.
    ///
    /// # Errors
    ///
    /// If the address is in use or is not ours, the mark or interface cannot be set, or the kernel lacks an
    /// option that the data path needs.
    pub fn bind(listen: Listen, options: &Options) -> Result<Self, BindError> {
        bind::bind(listen, options).map(|bound| Self::new(bound, options))
    }

    /// Continues with the socket of an earlier process, if it is bound where `listen` says.
    ///
    /// # Errors
    ///
    /// If it is bound to another address, or as [`Socket::bind`].
    pub fn inherit(socket: OwnedFd, listen: Listen, options: &Options) -> Result<Self, BindError> {
        bind::inherit(socket, listen, options).map(|bound| Self::new(bound, options))
    }

    fn new(bound: bind::Bound, options: &Options) -> Self {
        Self {
            inner: bound.socket,
            dual_stack: bound.dual_stack,
            local_port: AtomicU16::new(bound.local_port),
            bound_to: bound.at,
            device: Mutex::new(options.egress.device.clone()),
            fragmenting: Mutex::new(()),
            segmentation: gso::Segmentation::new(options.gso),
        }
    }

    /// The port that the socket is bound to.
    pub fn local_port(&self) -> u16 {
        self.local_port.load(Relaxed)
    }

    /// The maximum number of datagrams in a [`Transmit`] that can be sent in one call.
    pub fn max_segments(&self) -> usize {
        self.segmentation.max_segments()
    }

    /// Whether the kernel refuses to segment what is sent to `to` from this address of ours.
    pub fn sends_singly(&self, to: SocketAddr, source: Option<IpAddr>) -> bool {
        self.segmentation.is_refused(to.ip(), source)
    }

    /// Sends a batch: in one call with segmentation offload, or one datagram at a time if the kernel refuses
    /// that.
    ///
    /// # Errors
    ///
    /// Like `sendmsg(2)`, and only if nothing at all was sent. After `WouldBlock`, poll until there is room.
    pub fn send(&self, transmit: &Transmit<'_>) -> io::Result<Sent> {
        self.send_or(transmit, Oversize::Fragment)
    }

    /// Like [`Socket::send`], but over IPv6, datagrams that are larger than the first link's MTU are not sent.
    ///
    /// # Errors
    ///
    /// Like [`Socket::send`].
    pub fn send_whole(&self, transmit: &Transmit<'_>) -> io::Result<Sent> {
        self.send_or(transmit, Oversize::Skip)
    }

    fn send_or(&self, transmit: &Transmit<'_>, oversize: Oversize) -> io::Result<Sent> {
        match gso::send(self, transmit, oversize) {
            Err(error) if transmit.source.is_some() && pktinfo::source_may_be_lost(&error) => {
                let anywhere = Transmit { source: None, ..*transmit };
                gso::send(self, &anywhere, oversize).map(|sent| Sent { source_lost: true, ..sent })
            }
            result => result,
        }
    }

    /// Over IPv6, sends packets that are larger than this in fragments of this size; `None` means the first
    /// link's MTU.
    ///
    /// # Errors
    ///
    /// If the kernel rejects the size, because it is less than 1280 or this is an IPv4 socket.
    pub fn fragment_at(&self, mtu: Option<u16>) -> io::Result<()> {
        sys::set(&self.inner, bind::FRAGMENTS, mtu.unwrap_or(0).into())
    }

    /// Sets the DF bit of IPv4 datagrams, or clears it. While it is clear, routers fragment what is too large for them.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn set_dont_fragment(&self, set: bool) -> io::Result<()> {
        let (option, value) = if set { bind::WHOLE } else { bind::IN_PARTS };
        sys::set(&self.inner, option, value)
    }

    /// Makes the kernel fragment over IPv6 until the returned guard is dropped.
    fn fragmenting(&self) -> io::Result<Fragmenting<'_>> {
        let alone = self.fragmenting.lock().unwrap_or_else(PoisonError::into_inner);
        let (option, value) = bind::FRAGMENTING;
        sys::set(&self.inner, option, value)?;
        Ok(Fragmenting { socket: &self.inner, _alone: alone })
    }

    /// Sends several batches in as few calls as possible, and returns how much was sent. It ends early if the
    /// kernel accepts only a part of a batch, or has no room for more.
    ///
    /// # Errors
    ///
    /// Like [`Socket::send`], and only if nothing at all was sent.
    pub fn send_all<'a>(
        &self,
        transmits: impl IntoIterator<Item = Transmit<'a>>,
    ) -> io::Result<Sent> {
        let mut transmits = transmits.into_iter();
        let (Some(first), second) = (transmits.next(), transmits.next()) else {
            return Ok(Sent::default());
        };
        if second.is_none() && gso::takes_whole(self, &first) {
            return self.send(&first);
        }
        let mut outbox = sys::Outbox::default();
        let all = [Some(first), second].into_iter().flatten().chain(transmits);
        for part in all.flat_map(|transmit| gso::parts(self, transmit)).take(MAX_RUNS) {
            outbox.push(self.message(&part, gso::segment_size(&part)));
        }
        // A batch that the kernel refuses is sent again below, separately, and that send records the refusal.
        match sys::send_messages(&self.inner, &outbox) {
            Ok(len @ 1..) => Ok(Sent { len, ..Sent::default() }),
            _ => self.send(&first),
        }
    }

    /// Receives the batches that have arrived, and returns their number: at most one for each
    /// [`RECEIVE_BUFFER`] bytes of `buffer`, and for each element of `received`. Each batch is at the beginning
    /// of its part of `buffer`.
    ///
    /// # Errors
    ///
    /// Like `recvmmsg(2)`; `WouldBlock` means that no more batches have arrived.
    pub fn receive(&self, buffer: &mut [u8], received: &mut [Received]) -> io::Result<usize> {
        match received {
            [one] => self.receive_up_to::<1>(buffer, std::slice::from_mut(one)),
            several => self.receive_up_to::<MAX_RECEIVED>(buffer, several),
        }
    }

    fn receive_up_to<const N: usize>(
        &self,
        buffer: &mut [u8],
        received: &mut [Received],
    ) -> io::Result<usize> {
        let most = buffer.len().min(received.len() * RECEIVE_BUFFER);
        let (inbox, count) = sys::Inbox::<N>::receive(&self.inner, &mut buffer[..most])?;
        for (incoming, received) in inbox.messages().take(count).zip(received) {
            *received = Received::read(&incoming);
        }
        Ok(count)
    }

    /// Calls `sendmsg` once. The kernel sends the contents whole, or cuts them into datagrams of
    /// `segment_size`.
    fn send_once(
        &self,
        transmit: &Transmit<'_>,
        segment_size: Option<NonZeroU16>,
    ) -> io::Result<()> {
        sys::send_message(&self.inner, &self.message(transmit, segment_size))
    }

    fn message<'a>(
        &self,
        transmit: &Transmit<'a>,
        segment_size: Option<NonZeroU16>,
    ) -> sys::Outgoing<'a> {
        let v4 = transmit.destination.ip().is_ipv4();
        let mut control = cmsg::Encoder::default();
        if let Some(source) = transmit.source {
            pktinfo::encode(&mut control, source);
        }
        if transmit.tos != 0 {
            tos::encode(&mut control, v4, transmit.tos);
        }
        if let Some(hops) = transmit.hops {
            hops::encode(&mut control, v4, hops);
        }
        if let Some(size) = segment_size {
            gso::encode(&mut control, size);
        }
        let to = self.address(transmit.destination);
        sys::Outgoing { to, contents: transmit.contents, control }
    }

    fn address(&self, to: SocketAddr) -> SockAddr {
        match to {
            SocketAddr::V4(v4) if self.dual_stack => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            other => other.into(),
        }
    }
}

/// Makes the kernel fragment. Sends of other threads still work in the meantime.
struct Fragmenting<'a> {
    socket: &'a socket2::Socket,
    _alone: MutexGuard<'a, ()>,
}

impl Drop for Fragmenting<'_> {
    fn drop(&mut self) {
        let (option, value) = bind::HEARING;
        // The kernel has accepted this value before, so it accepts it again.
        let _taken = sys::set(self.socket, option, value);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

/// Converts an IPv4-mapped IPv6 address (`::ffff:192.0.2.1`) to IPv4; returns other addresses unchanged.
pub fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
pub(crate) mod tests;
