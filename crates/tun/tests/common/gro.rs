//! The kernel's own GRO, for comparison: a TUN device that passes written packets to NAPI, and a packet socket
//! behind it.
#![allow(unsafe_code, reason = "an ioctl, a mount and a packet socket")]

use std::ffi::c_int;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::mem::zeroed;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use vpnd_tun::{READ_BUFFER, VNET_LEN, VnetHeader};

use super::namespace::{check, index, named, set_up};

pub(crate) struct Gro {
    device: File,
    tap: Socket,
    /// The kernel merges UDP only for a socket that asked for it.
    _udp: Socket,
}

impl Gro {
    /// Sets everything up in the caller's network namespace. It must belong to the initial user namespace,
    /// because GRO's delay can be set only there.
    pub(crate) fn open() -> Self {
        let device = open_device(NAME);
        hold_back(NAME);
        set_up(NAME);
        Self { device, tap: tap(NAME), _udp: udp_receiver() }
    }

    /// The packets that the device receives when `packets` are written one by one, each behind its header.
    /// Packets that are not IP are missing, because the device rejects them.
    ///
    /// `None` if the kernel's clock ticked during the batch, because GRO then flushed the packets that it held.
    pub(crate) fn merge(&self, packets: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
        let tick = next_tick();
        let written = packets.iter().filter(|packet| self.write(packet)).count();
        let whole = tick == this_tick();
        next_tick();
        // At the next packet, GRO flushes all packets that it has held since the last tick.
        assert!(self.write(&MARKER));
        let merged = self.read(written + 1);
        whole.then_some(merged)
    }

    fn write(&self, packet: &[u8]) -> bool {
        let write = [&VnetHeader::PLAIN.encode(), packet].concat();
        match (&self.device).write(&write) {
            Ok(_) => true,
            Err(e) if e.kind() == ErrorKind::InvalidInput => false,
            Err(e) => panic!("{e}"),
        }
    }

    /// Reads until `count` packets have arrived, where merged packets and the marker count, too.
    fn read(&self, mut count: usize) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut buffer = vec![0; READ_BUFFER];
        let mut read = Vec::new();
        while count > 0 {
            match (&self.tap).read(&mut buffer) {
                Ok(len) => read.push(buffer[..len].to_vec()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    assert!(Instant::now() < deadline, "{count} packets are missing");
                    sleep(TICK / 10);
                    continue;
                }
                Err(e) => panic!("{e}"),
            }
            let merged = payloads(read.last().unwrap()).map_or(1, |payloads| payloads.len());
            count = count.checked_sub(merged).expect("no more packets than were written");
        }
        read.retain(|read| read[VNET_LEN..] != MARKER);
        read
    }
}

/// The payloads of all packets that were merged into `packet`, which was read or is to be written; `None` if it
/// is a single packet.
pub(crate) fn payloads(packet: &[u8]) -> Option<Vec<&[u8]>> {
    let (header, packet) = VnetHeader::decode(packet)?;
    if header.gso_type == 0 {
        return None;
    }
    let l4 = usize::from(header.csum_start);
    let len = match header.gso_type {
        5 => 8,
        _ => usize::from(packet[l4 + 12] >> 4) * 4,
    };
    Some(packet[l4 + len..].chunks(header.gso_size.into()).collect())
}

fn open_device(name: &str) -> File {
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let path = "/dev/net/tun";
    let device = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap();
    let mut request = named(name);
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_NAPI;
    request.ifr_ifru.ifru_flags = flags.try_into().unwrap();
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }).unwrap();
    device
}

/// Makes GRO hold packets until the clock ticks, although each poll of the device finds only one packet.
fn hold_back(name: &str) {
    mount_sysfs();
    for (setting, value) in [("napi_defer_hard_irqs", "1000"), ("gro_flush_timeout", "30000000")] {
        let path = format!("/sys/class/net/{name}/{setting}");
        fs::write(&path, value).unwrap_or_else(|e| panic!("{path}: {e}; it needs real root"));
    }
}

/// Mounts a sysfs that shows the devices of this network namespace, for this thread only.
fn mount_sysfs() {
    let private = libc::MS_REC | libc::MS_PRIVATE;
    let none = std::ptr::null();
    // SAFETY: unshare takes no memory, and mount reads strings that end with a zero.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS)).unwrap();
        check(libc::mount(none, c"/".as_ptr(), none, private, none.cast())).unwrap();
        let sysfs = c"sysfs".as_ptr();
        check(libc::mount(sysfs, c"/sys".as_ptr(), sysfs, 0, none.cast())).unwrap();
    }
}

/// A socket that receives the device's packets after GRO, behind their header.
fn tap(name: &str) -> Socket {
    let protocol = c_int::from(ETH_P_ALL.to_be());
    let tap = Socket::new(Domain::PACKET, Type::RAW, None).unwrap();
    for option in [PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING] {
        set_option(&tap, SOL_PACKET, option, 1);
    }
    set_option(&tap, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20);
    // SAFETY: an all-zero sockaddr_storage is valid, and is large and aligned enough for this.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, len| {
            let address = storage.cast::<libc::sockaddr_ll>();
            (*address).sll_family = libc::AF_PACKET.try_into().unwrap();
            (*address).sll_protocol = protocol.try_into().unwrap();
            (*address).sll_ifindex = index(name);
            *len = size_of::<libc::sockaddr_ll>().try_into().unwrap();
            Ok(())
        })
    }
    .unwrap();
    tap.bind(&address).unwrap();
    tap.set_nonblocking(true).unwrap();
    tap
}

fn udp_receiver() -> Socket {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    socket.set_only_v6(false).unwrap();
    set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1);
    socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, UDP_PORT, 0, 0).into()).unwrap();
    socket
}

fn set_option(socket: &Socket, level: c_int, option: c_int, value: c_int) {
    let len = size_of::<c_int>().try_into().unwrap();
    // SAFETY: each of these options is one int.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), len)
    })
    .unwrap();
}

/// Waits until the kernel's clock ticks.
fn next_tick() -> i64 {
    let now = this_tick();
    while this_tick() == now {
        sleep(TICK / 20);
    }
    this_tick()
}

/// The time at the last tick.
fn this_tick() -> i64 {
    // SAFETY: a timespec is plain old data, and clock_gettime fills one in.
    let now = unsafe {
        let mut now: libc::timespec = zeroed();
        check(libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now)).unwrap();
        now
    };
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

const NAME: &str = "gro";
/// The destination port of the tests' packets.
const UDP_PORT: u16 = 9;
/// The shortest possible tick.
const TICK: Duration = Duration::from_millis(1);
/// An IPv4 packet with an experimental protocol number.
const MARKER: [u8; 20] = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
const ETH_P_ALL: u16 = 3;
/// From linux/if_packet.h; libc lacks some of these.
const SOL_PACKET: c_int = 263;
const PACKET_VNET_HDR: c_int = 15;
const PACKET_IGNORE_OUTGOING: c_int = 23;
