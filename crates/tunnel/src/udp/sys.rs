//! The system calls that `socket2` lacks. Apart from tests, this is the only unsafe code of this crate.

use std::ffi::c_int;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::ptr;

use socket2::{MsgHdr, SockAddr, SockAddrStorage, Socket};

use super::{MAX_RUNS, RECEIVE_BUFFER, cmsg};

/// A socket option whose value is an `int`.
#[derive(Clone, Copy, Debug)]
pub(super) struct IntOption {
    pub(super) level: c_int,
    pub(super) name: c_int,
    /// Its name in the manual page, for messages.
    pub(super) label: &'static str,
}

pub(super) fn set(socket: &Socket, option: IntOption, value: c_int) -> io::Result<()> {
    const LEN: libc::socklen_t = c_int::BITS / u8::BITS;
    // SAFETY: the descriptor is open, and the pointer and length are those of one `int` that lives
    // through the call; the kernel only reads it.
    let result = unsafe {
        let value = (&raw const value).cast();
        libc::setsockopt(socket.as_raw_fd(), option.level, option.name, value, LEN)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub(super) fn get(socket: &impl AsRawFd, option: IntOption) -> io::Result<c_int> {
    let (mut value, mut len) = (0, c_int::BITS / u8::BITS);
    // SAFETY: the descriptor is open, and the pointers are to one `int` and its length, both of which
    // live through the call.
    let result = unsafe {
        let place = (&raw mut value).cast();
        libc::getsockopt(socket.as_raw_fd(), option.level, option.name, place, &raw mut len)
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// The network namespace of a socket (`SO_NETNS_COOKIE`, Linux 5.14).
pub(super) fn namespace(socket: &impl AsRawFd) -> io::Result<u64> {
    const SO_NETNS_COOKIE: c_int = 71;
    let (mut cookie, mut len) = (0_u64, u64::BITS / u8::BITS);
    // SAFETY: the descriptor is open, and the pointers are to eight bytes and their number, both of which live through the
    // call.
    let result = unsafe {
        let place = (&raw mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, place, &raw mut len)
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Resets the port and the interface that were chosen for a socket, as `connect(2)` does for `AF_UNSPEC`.
pub(super) fn disconnect(socket: &Socket) -> io::Result<()> {
    /// The size of `sockaddr`, which is enough for the family.
    const LEN: libc::socklen_t = 16;
    const _: () = assert!(size_of::<libc::sockaddr>() == LEN as usize);
    // SAFETY: plain old data of the kernel's, for which zeroes are valid; family 0 is `AF_UNSPEC`.
    let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and the pointer and length are those of an address that lives through
    // the call; the kernel only reads it.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, LEN) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One message to send.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    pub(super) to: SockAddr,
    pub(super) contents: &'a [u8],
    pub(super) control: cmsg::Encoder,
}

/// Messages that are sent in one call.
#[derive(Debug)]
pub(super) struct Outbox<'a> {
    messages: [Option<Outgoing<'a>>; MAX_RUNS],
    len: usize,
}

impl Default for Outbox<'_> {
    fn default() -> Self {
        Self { messages: [const { None }; MAX_RUNS], len: 0 }
    }
}

impl<'a> Outbox<'a> {
    /// Appends a message; the caller must not append more than [`MAX_RUNS`].
    pub(super) fn push(&mut self, message: Outgoing<'a>) {
        self.messages[self.len] = Some(message);
        self.len += 1;
    }
}

pub(super) fn send_message(socket: &Socket, message: &Outgoing<'_>) -> io::Result<()> {
    let slices = [IoSlice::new(message.contents)];
    let control = message.control.bytes();
    let header = MsgHdr::new().with_addr(&message.to).with_buffers(&slices).with_control(control);
    socket.sendmsg(&header, 0).map(drop)
}

/// Sends as many messages as the kernel accepts in one `sendmmsg`, and returns their total length in bytes. An
/// error is returned only if it concerns the first message.
pub(super) fn send_messages(socket: &Socket, outbox: &Outbox<'_>) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); MAX_RUNS];
    // SAFETY: both are plain old data of the kernel's, for which zeroes are valid.
    let mut headers: [libc::mmsghdr; MAX_RUNS] = unsafe { std::mem::zeroed() };
    let messages = || outbox.messages.iter().flatten();
    for (message, (slice, header)) in messages().zip(slices.iter_mut().zip(&mut headers)) {
        *slice = IoSlice::new(message.contents);
        let control = message.control.bytes();
        let header = &mut header.msg_hdr;
        header.msg_name = message.to.as_ptr().cast_mut().cast();
        header.msg_namelen = message.to.len();
        header.msg_iov = (&raw mut *slice).cast();
        header.msg_iovlen = 1;
        header.msg_control = control.as_ptr().cast_mut().cast();
        header.msg_controllen = control.len() as _;
    }
    let count = libc::c_uint::try_from(outbox.len).unwrap_or(libc::c_uint::MAX);
    // SAFETY: the first `count` headers point to addresses, slices (an `IoSlice` is an `iovec`) and
    // control messages that live through the call, and the kernel only reads them.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, 0) };
    let sent = usize::try_from(sent).map_err(|_negative| io::Error::last_os_error())?;
    Ok(messages().take(sent).map(|message| message.contents.len()).sum())
}

/// Room for the metadata of the messages of one receive.
pub(super) struct Inbox<const N: usize> {
    headers: [libc::mmsghdr; N],
    senders: [SockAddrStorage; N],
    controls: [cmsg::Buffer; N],
}

impl<const N: usize> Inbox<N> {
    /// Receives up to `N` messages, each into [`RECEIVE_BUFFER`] bytes of `buffer`, without waiting.
    pub(super) fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<(Self, usize)> {
        let mut inbox = Self {
            // SAFETY: plain old data of the kernel's, for which zeroes are valid.
            headers: unsafe { std::mem::zeroed() },
            senders: std::array::from_fn(|_| SockAddrStorage::zeroed()),
            controls: [const { cmsg::Buffer::EMPTY }; N],
        };
        let count = inbox.fill(socket, buffer)?;
        Ok((inbox, count))
    }

    fn fill(&mut self, socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
        let mut slices = [const { None }; N];
        let mut count = 0;
        let places = self.headers.iter_mut().zip(&mut self.senders).zip(&mut self.controls);
        let fragments = buffer.chunks_exact_mut(RECEIVE_BUFFER).zip(&mut slices);
        for (((header, sender), control), (fragment, slice)) in places.zip(fragments) {
            let header = &mut header.msg_hdr;
            header.msg_name = (&raw mut *sender).cast();
            header.msg_namelen = sender.size_of();
            header.msg_iov = (&raw mut *slice.insert(IoSliceMut::new(fragment))).cast();
            header.msg_iovlen = 1;
            let room = control.bytes_mut();
            header.msg_controllen = room.len() as _;
            header.msg_control = room.as_mut_ptr().cast();
            count += 1;
        }
        let (headers, now) = (self.headers.as_mut_ptr(), libc::MSG_DONTWAIT as _);
        // SAFETY: the first `count` headers point to an address, a slice (an `IoSliceMut` is an `iovec`)
        // and control messages of the lengths they state, all borrowed exclusively through the call; the
        // kernel writes initialised bytes only.
        let got =
            unsafe { libc::recvmmsg(socket.as_raw_fd(), headers, count, now, ptr::null_mut()) };
        usize::try_from(got).map_err(|_negative| io::Error::last_os_error())
    }

    /// The received messages, followed by empty elements.
    pub(super) fn messages(self) -> impl Iterator<Item = Incoming> {
        let each = self.headers.into_iter().zip(self.senders).zip(self.controls);
        each.map(|((header, sender), control)| Incoming {
            // SAFETY: the kernel has written the address and its length; if nothing was received, all bytes are
            // zero.
            from: unsafe { SockAddr::new(sender, header.msg_hdr.msg_namelen) }.as_socket(),
            len: header.msg_len as usize,
            control,
            control_len: header.msg_hdr.msg_controllen as _,
        })
    }
}

/// What the kernel reports about a message in addition to its bytes.
pub(super) struct Incoming {
    pub(super) from: Option<SocketAddr>,
    pub(super) len: usize,
    pub(super) control: cmsg::Buffer,
    pub(super) control_len: usize,
}
