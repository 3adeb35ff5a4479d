//! The device's ioctls, each a safe function: the only code here that talks to the kernel raw.
#![allow(unsafe_code, reason = "ioctl takes an untyped pointer")]

use std::ffi::{CStr, c_int, c_short, c_uint};
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::layout::low16;
use crate::vnet::VNET_LEN;

/// Attaches `fd` to the device `name` (empty: the kernel picks one), creating it if need be.
/// Returns the device's name.
pub(crate) fn attach(fd: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<String> {
    let mut request = named(name)?;
    request.ifr_ifru.ifru_flags = short(flags);
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    unsafe { ioctl(fd, libc::TUNSETIFF, &raw mut request) }?;
    Ok(name_of(&request))
}

/// What `fd` is attached to, as `IFF_*` bits.
pub(crate) fn attached_flags(fd: BorrowedFd<'_>) -> io::Result<c_int> {
    let mut request = named("")?;
    // SAFETY: TUNGETIFF writes one ifreq.
    unsafe { ioctl(fd, libc::TUNGETIFF, &raw mut request) }?;
    // SAFETY: TUNGETIFF fills the flags in, and any bits are a valid short.
    Ok(c_int::from(unsafe { request.ifr_ifru.ifru_flags }))
}

/// The link's own flags, such as `IFF_UP`, asked for through any socket.
pub(crate) fn link_flags(socket: impl AsFd, name: &str) -> io::Result<c_int> {
    let mut request = named(name)?;
    // SAFETY: SIOCGIFFLAGS reads and writes one ifreq.
    unsafe { ioctl(socket.as_fd(), libc::SIOCGIFFLAGS, &raw mut request) }?;
    // SAFETY: SIOCGIFFLAGS fills the flags in, and any bits are a valid short.
    Ok(c_int::from(unsafe { request.ifr_ifru.ifru_flags }))
}

/// Asks for the [`VnetHeader`](crate::VnetHeader) as it is encoded here.
pub(crate) fn set_vnet_header(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut len = c_int::from(low16(VNET_LEN));
    let mut little_endian: c_int = 1;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    unsafe { ioctl(fd, libc::TUNSETVNETHDRSZ, &raw mut len) }?;
    // SAFETY: TUNSETVNETLE reads one int.
    unsafe { ioctl(fd, libc::TUNSETVNETLE, &raw mut little_endian) }
}

/// Says which super-packets reads may return.
pub(crate) fn set_offload(fd: BorrowedFd<'_>, features: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory.
    check(unsafe {
        libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(features))
    })
}

/// # Safety
///
/// `request` must read and write no more than one `T`.
unsafe fn ioctl<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: *mut T) -> io::Result<()> {
    // SAFETY: the caller vouches for the request; the pointer comes from a live value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A request about the interface `name`, which must leave room for the final zero.
fn named(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an ifreq is plain old data, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed() as _;
    }
    Ok(request)
}

fn name_of(request: &libc::ifreq) -> String {
    // SAFETY: the kernel ends the name with a zero inside the array.
    let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) };
    name.to_string_lossy().into_owned()
}

/// `IFF_*` bits as the short that an ifreq has for them, bit 15 included.
fn short(flags: c_int) -> c_short {
    let [a, b, ..] = flags.to_le_bytes();
    c_short::from_le_bytes([a, b])
}
