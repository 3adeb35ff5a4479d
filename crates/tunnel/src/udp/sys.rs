//! The system calls `socket2` has no name for, and, tests aside, the only unsafe code of this room.

use std::ffi::c_int;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use socket2::{MaybeUninitSlice, MsgHdr, MsgHdrMut, SockAddr, Socket};

use super::cmsg;

/// A socket option whose value is an `int`.
#[derive(Clone, Copy, Debug)]
pub(super) struct IntOption {
    pub(super) level: c_int,
    pub(super) name: c_int,
    /// As the manual page calls it, for messages.
    pub(super) label: &'static str,
}

/// What `recvmsg` reported beside the bytes themselves.
pub(super) struct Raw {
    pub(super) from: SocketAddr,
    pub(super) len: usize,
    pub(super) control_len: usize,
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

pub(super) fn send_message(
    socket: &Socket,
    to: &SockAddr,
    contents: &[u8],
    control: &cmsg::Encoder,
) -> io::Result<()> {
    let slices = [IoSlice::new(contents)];
    let message = MsgHdr::new().with_addr(to).with_buffers(&slices).with_control(control.bytes());
    socket.sendmsg(&message, 0).map(drop)
}

pub(super) fn receive_message(
    socket: &Socket,
    buffer: &mut [u8],
    control: &mut cmsg::Buffer,
) -> io::Result<Raw> {
    let mut from = SockAddr::from(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)));
    let mut slices = [MaybeUninitSlice::new(writable(buffer))];
    let mut message = MsgHdrMut::new()
        .with_addr(&mut from)
        .with_buffers(&mut slices)
        .with_control(writable(control.bytes_mut()));
    let len = socket.recvmsg(&mut message, 0)?;
    let control_len = message.control_len();
    let from = from.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    Ok(Raw { from, len, control_len })
}

/// Initialised bytes in the form in which `socket2` takes room to write to.
fn writable(bytes: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    let bytes: *mut [u8] = bytes;
    // SAFETY: the layout is the same, the borrow is exclusive and lasts as long; what it is used for,
    // `recvmsg`, writes initialised bytes only.
    unsafe { &mut *(bytes as *mut [MaybeUninit<u8>]) }
}
