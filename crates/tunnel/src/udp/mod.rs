//! The UDP socket: one descriptor for both families, one file per kernel feature.
//!
//! `bind` opens it, `gso` and `gro` move whole batches, `pktinfo` keeps the local address, `tos` the
//! outer TOS byte; `cmsg` is how the last four speak to the kernel and `sys` the calls themselves.

mod bind;
mod cmsg;
mod gro;
mod gso;
mod pktinfo;
mod sys;
mod tos;

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU16;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::SockAddr;

pub use bind::{BindError, Listen};

/// What a batch may measure: with headers it stays under the kernel's `gso_max_size` of 64 KiB, beyond
/// which the train would be split in software before it reaches the device.
pub const MAX_BATCH: usize = 65_000;

/// The longest thing one receive can return.
pub const RECEIVE_BUFFER: usize = 65_535;

/// A non-blocking UDP socket that sends and receives batches.
#[derive(Debug)]
pub struct Socket {
    inner: socket2::Socket,
    /// An `AF_INET6` socket takes IPv4 addresses in their v4-mapped form only.
    dual_stack: bool,
    local_port: u16,
    gso: gso::Gso,
}

/// One batch to send: datagrams of one size, the last one possibly shorter, to one destination.
#[derive(Clone, Copy, Debug)]
pub struct Transmit<'a> {
    /// Where to; a link-local address carries its scope.
    pub destination: SocketAddr,
    /// The local address to send from; the kernel chooses if absent.
    pub source: Option<IpAddr>,
    /// The outer TOS byte or traffic class: DSCP and ECN.
    pub tos: u8,
    /// The datagrams, back to back.
    pub contents: &'a [u8],
    /// The size of each datagram but the last; absent if `contents` is one datagram.
    pub segment_size: Option<NonZeroU16>,
}

/// What became of a [`Transmit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// How many bytes of the contents are done with: less than all if the socket filled up on the way.
    pub len: usize,
    /// Datagrams that were not sent at all, being too big even by themselves.
    pub skipped: usize,
    /// A datagram was larger than what the way out carries whole: fragmented, or not sent at all.
    pub too_big: bool,
    /// The wanted source address is no longer ours; the kernel chose another.
    pub source_lost: bool,
}

/// One batch received: datagrams of `stride` bytes, the last one possibly shorter, from one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Where from; never in v4-mapped form.
    pub from: SocketAddr,
    /// The local address it was sent to, to answer from.
    pub local: Option<IpAddr>,
    /// The outer TOS byte or traffic class of every datagram of the batch.
    pub tos: u8,
    /// Bytes received.
    pub len: usize,
    /// The size of each datagram but the last; never zero.
    pub stride: usize,
}

impl Socket {
    /// Opens and binds a socket, with `buffer` bytes of room in each direction. Without `offload`
    /// each datagram is sent and received by itself.
    ///
    /// # Errors
    ///
    /// If the address is taken, not ours, or the kernel lacks an option the data path cannot do without.
    pub fn bind(listen: Listen, buffer: usize, offload: bool) -> Result<Self, BindError> {
        let bound = bind::bind(listen, buffer, offload)?;
        Ok(Self {
            inner: bound.socket,
            dual_stack: bound.dual_stack,
            local_port: bound.local_port,
            gso: if offload { gso::Gso::probe() } else { gso::Gso::off() },
        })
    }

    /// The port it is bound to.
    pub fn local_port(&self) -> u16 {
        self.local_port
    }

    /// How many datagrams one [`Transmit`] may hold and still leave in one go.
    pub fn max_segments(&self) -> usize {
        self.gso.max_segments()
    }

    /// Sends a batch: with segmentation offload in one call, or one by one where the kernel refuses that.
    ///
    /// # Errors
    ///
    /// As `sendmsg(2)`, and only if nothing at all was sent; `WouldBlock` means poll for room.
    pub fn send(&self, transmit: &Transmit<'_>) -> io::Result<Sent> {
        match gso::send(self, transmit) {
            Err(error) if transmit.source.is_some() && pktinfo::source_may_be_lost(&error) => {
                let anywhere = Transmit { source: None, ..*transmit };
                gso::send(self, &anywhere).map(|sent| Sent { source_lost: true, ..sent })
            }
            result => result,
        }
    }

    /// Receives one batch into `buffer`, which should hold [`RECEIVE_BUFFER`] bytes.
    ///
    /// # Errors
    ///
    /// As `recvmsg(2)`; `WouldBlock` means there is nothing more.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut control = cmsg::Buffer::default();
        let raw = sys::receive_message(&self.inner, buffer, &mut control)?;
        let mut received = Received {
            from: unmapped(raw.from),
            local: None,
            tos: 0,
            len: raw.len,
            stride: raw.len.max(1),
        };
        for message in control.messages(raw.control_len) {
            pktinfo::decode(&message, &mut received);
            tos::decode(&message, &mut received);
            gro::decode(&message, &mut received);
        }
        Ok(received)
    }

    /// One `sendmsg`: `contents` whole, or cut by the kernel into datagrams of `segment_size`.
    fn send_once(
        &self,
        transmit: &Transmit<'_>,
        contents: &[u8],
        segment_size: Option<NonZeroU16>,
    ) -> io::Result<()> {
        let v4 = transmit.destination.ip().is_ipv4();
        let mut control = cmsg::Encoder::default();
        if let Some(source) = transmit.source {
            pktinfo::encode(&mut control, source);
        }
        if transmit.tos != 0 {
            tos::encode(&mut control, v4, transmit.tos);
        }
        if let Some(size) = segment_size {
            gso::encode(&mut control, size);
        }
        sys::send_message(&self.inner, &self.address(transmit.destination), contents, &control)
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

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

fn unmapped(from: SocketAddr) -> SocketAddr {
    match from.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), from.port()),
        IpAddr::V6(_) => from,
    }
}

#[cfg(test)]
pub(crate) mod tests;
