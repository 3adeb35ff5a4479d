//! The device's ioctls, each as a safe function. No other module makes raw system calls.
#![allow(unsafe_code, reason = "ioctl takes an untyped pointer")]

use std::ffi::{CStr, c_int, c_short, c_uint};
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::vnet::VNET_LEN;
use crate::wire::low16;

/// Attaches `fd` to the device `name` (empty: the kernel chooses one), creating it if necessary. Returns the
/// device's name.
pub(crate) fn attach(fd: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<String> {
    let mut request = named(name)?;
    request.ifr_ifru.ifru_flags = short(flags);
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    unsafe { ioctl(fd, libc::TUNSETIFF, &raw mut request) }?;
    Ok(name_of(&request))
}

/// The name of the device that `fd` is attached to, and its `IFF_*` flags.
pub(crate) fn attached(fd: BorrowedFd<'_>) -> io::Result<(String, c_int)> {
    let mut request = named("")?;
    // SAFETY: TUNGETIFF writes one ifreq.
    unsafe { ioctl(fd, libc::TUNGETIFF, &raw mut request) }?;
    // SAFETY: TUNGETIFF fills the flags in, and any bits are a valid short.
    Ok((name_of(&request), c_int::from(unsafe { request.ifr_ifru.ifru_flags })))
}

/// Renames the interface `from`, which must be down, through any socket. The kernel replaces `%d` in the name
/// with a number.
pub(crate) fn rename(socket: impl AsFd, from: &str, to: &str) -> io::Result<()> {
    let mut request = named(from)?;
    request.ifr_ifru.ifru_newname = named(to)?.ifr_name;
    // SAFETY: SIOCSIFNAME reads one ifreq.
    unsafe { ioctl(socket.as_fd(), socket_request(libc::SIOCSIFNAME), &raw mut request) }
}

/// A request to a socket as `ioctl` takes it. The C libraries have different types for both.
#[allow(clippy::cast_possible_truncation, reason = "these requests have 16 bits")]
#[allow(clippy::unnecessary_cast, reason = "musl's type is another one")]
const fn socket_request(request: libc::c_ulong) -> libc::Ioctl {
    request as libc::Ioctl
}

/// Removes the two eBPF programs that another process may have set on the device: one selects the queue of a
/// packet, the other truncates or drops packets.
pub(crate) fn clear_programs(fd: BorrowedFd<'_>) -> io::Result<()> {
    for request in [libc::TUNSETSTEERINGEBPF, libc::TUNSETFILTEREBPF] {
        let mut none: c_int = -1;
        // SAFETY: both requests read one int.
        unsafe { ioctl(fd, request, &raw mut none) }?;
    }
    Ok(())
}

/// Removes the two filters that a TAP device may have: the list of addresses whose frames it delivers, and the
/// filter program that every descriptor gets that attaches with packet information.
pub(crate) fn clear_filters(fd: BorrowedFd<'_>) -> io::Result<()> {
    // The two numbers of `struct tun_filter`: its flags, and the number of addresses that follow. With no
    // address, all frames pass.
    let mut all = [0_u16; 2];
    // SAFETY: TUNSETTXFILTER reads both numbers, and then as many addresses as the second one, which is zero.
    unsafe { ioctl(fd, libc::TUNSETTXFILTER, &raw mut all) }?;
    // SAFETY: TUNDETACHFILTER reads nothing.
    unsafe { by_value(fd, libc::TUNDETACHFILTER, 0) }
}

/// Detaches the queue `fd`: the device no longer delivers packets to it, but it can still be written to.
pub(crate) fn detach_queue(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut request = named("")?;
    request.ifr_ifru.ifru_flags = short(libc::IFF_DETACH_QUEUE);
    // SAFETY: TUNSETQUEUE reads one ifreq.
    unsafe { ioctl(fd, libc::TUNSETQUEUE, &raw mut request) }
}

/// The link's own flags, such as `IFF_UP`, read through any socket.
pub(crate) fn link_flags(socket: impl AsFd, name: &str) -> io::Result<c_int> {
    let mut request = named(name)?;
    // SAFETY: SIOCGIFFLAGS reads and writes one ifreq.
    unsafe { ioctl(socket.as_fd(), socket_request(libc::SIOCGIFFLAGS), &raw mut request) }?;
    // SAFETY: SIOCGIFFLAGS fills the flags in, and any bits are a valid short.
    Ok(c_int::from(unsafe { request.ifr_ifru.ifru_flags }))
}

/// Sets the [`VnetHeader`](crate::VnetHeader) to its default length of ten bytes. Sets its byte order to
/// little-endian, or to the default, which is the processor's own.
pub(crate) fn set_vnet_header(fd: BorrowedFd<'_>, little_endian: bool) -> io::Result<()> {
    let mut len = c_int::from(low16(VNET_LEN));
    let mut little_endian = c_int::from(little_endian);
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    unsafe { ioctl(fd, libc::TUNSETVNETHDRSZ, &raw mut len) }?;
    // SAFETY: TUNSETVNETLE reads one int.
    unsafe { ioctl(fd, libc::TUNSETVNETLE, &raw mut little_endian) }
}

/// Sets which super-packets a read may return.
pub(crate) fn set_offload(fd: BorrowedFd<'_>, features: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory.
    unsafe { by_value(fd, libc::TUNSETOFFLOAD, features) }
}

/// Sets whether the device continues to exist when the last attached descriptor is closed.
pub(crate) fn set_persistent(fd: BorrowedFd<'_>, persistent: bool) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value and touches no memory.
    unsafe { by_value(fd, libc::TUNSETPERSIST, persistent.into()) }
}

/// The network namespace of the device.
pub(crate) fn namespace(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// `TUNGETDEVNETNS` (`if_tun.h`): `_IO('T', 227)`.
    const TUNGETDEVNETNS: c_uint = 0x54e3;
    // SAFETY: TUNGETDEVNETNS takes no argument and returns a new descriptor.
    let opened = unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETDEVNETNS as _) };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(opened) })
}

/// Lets the user with this id attach without a capability.
pub(crate) fn set_owner(fd: BorrowedFd<'_>, uid: u32) -> io::Result<()> {
    // SAFETY: TUNSETOWNER takes its argument by value and touches no memory.
    unsafe { by_value(fd, libc::TUNSETOWNER, uid) }
}

/// Lets the members of the group with this id attach without a capability.
pub(crate) fn set_group(fd: BorrowedFd<'_>, gid: u32) -> io::Result<()> {
    // SAFETY: TUNSETGROUP takes its argument by value and touches no memory.
    unsafe { by_value(fd, libc::TUNSETGROUP, gid) }
}

/// Sets whether a cable seems to be plugged in.
pub(crate) fn set_carrier(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let mut on = c_int::from(on);
    // SAFETY: TUNSETCARRIER reads one int.
    unsafe { ioctl(fd, libc::TUNSETCARRIER, &raw mut on) }
}

/// The effective user of the calling thread.
pub(crate) fn effective_user() -> u32 {
    // SAFETY: the call has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// Random bytes for names that nobody can guess.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: getrandom writes as many bytes as the array has.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // getrandom answers short requests either completely or not at all.
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(bytes) }
}

/// The driver of the interface `name` and its bus, read through any socket.
pub(crate) fn driver(socket: impl AsFd, name: &str) -> io::Result<(String, String)> {
    // SAFETY: a DriverInfo is plain old data, for which all zeros is a value.
    let mut info: DriverInfo = unsafe { zeroed() };
    info.command = ETHTOOL_GDRVINFO;
    let mut request = named(name)?;
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: SIOCETHTOOL reads one ifreq, and this command reads and writes the one DriverInfo
    // that it points to, which outlives the call.
    unsafe { ioctl(socket.as_fd(), socket_request(libc::SIOCETHTOOL), &raw mut request) }?;
    Ok((text(&info.driver), text(&info.bus)))
}

/// `struct ethtool_drvinfo` of linux/ethtool.h.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    rest: [u8; 64],
}

const ETHTOOL_GDRVINFO: u32 = 3;

/// The bytes before the first zero byte.
fn text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// # Safety
///
/// `request` must take its argument by value.
unsafe fn by_value(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: u32) -> io::Result<()> {
    // SAFETY: the caller vouches for the request.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, libc::c_ulong::from(argument)) })
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

/// A request about the interface `name`, which must be short enough for a final zero byte.
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
    // SAFETY: the kernel terminates the name with a zero inside the array.
    let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) };
    name.to_string_lossy().into_owned()
}

/// The low 16 `IFF_*` bits as the short in an ifreq, including bit 15.
fn short(flags: c_int) -> c_short {
    let [a, b, ..] = flags.to_le_bytes();
    c_short::from_le_bytes([a, b])
}
