//! Network namespaces for tests, and the set-up that a link in a namespace needs.
#![allow(clippy::print_stdout, reason = "what a test of its own process said is passed on")]
#![allow(unsafe_code, reason = "namespaces and interface ioctls")]

use std::ffi::{c_int, c_short};
use std::fs::File;
use std::mem::zeroed;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::{env, fs, io};

use socket2::{Domain, Socket, Type};

/// Runs `body`, which is the whole test `name`, in a separate process with a new network namespace; without
/// root, in a new user namespace, too. Both namespaces disappear when the process ends.
pub(crate) fn in_namespace(name: &str, body: fn()) {
    if env::var_os(INSIDE).is_some() {
        return body();
    }
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", name, "--nocapture"]).env(INSIDE, "1");
    // SAFETY: between fork and exec, enter() makes system calls and writes three small files.
    unsafe { child.pre_exec(enter) };
    let output = child.output().expect("a network namespace; it needs root or user namespaces");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{complained}");
    print!("{said}");
}

/// Whether `in_namespace` needs no user namespace.
pub(crate) fn is_root() -> bool {
    // SAFETY: getuid has no preconditions and cannot fail.
    unsafe { libc::getuid() == 0 }
}

fn enter() -> io::Result<()> {
    if is_root() {
        return unshare(libc::CLONE_NEWNET);
    }
    // SAFETY: getuid and getgid have no preconditions and cannot fail.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

fn unshare(flags: c_int) -> io::Result<()> {
    // SAFETY: unshare takes no memory.
    check(unsafe { libc::unshare(flags) })
}

/// Writes a setting below `/proc/sys/net` of this namespace.
pub(crate) fn sysctl(name: &str, value: &str) {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value).unwrap_or_else(|e| panic!("{path}: {e}"));
}

/// Sets a link up.
pub(crate) fn set_up(link: &str) {
    let mut request = named(link);
    request.ifr_ifru.ifru_flags = c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap();
    interface_ioctl(libc::SIOCSIFFLAGS, &mut request);
}

/// Whether a link is up and has a carrier.
pub(crate) fn is_running(link: &str) -> bool {
    let mut request = named(link);
    interface_ioctl(libc::SIOCGIFFLAGS, &mut request);
    // SAFETY: the call filled the flags in.
    c_int::from(unsafe { request.ifr_ifru.ifru_flags }) & libc::IFF_RUNNING != 0
}

/// Runs `work` on a thread without capabilities.
pub(crate) fn without_capabilities(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let header = [CAPABILITY_VERSION, 0];
            let none = [0_u32; 6];
            // SAFETY: capset reads two words of header and, in version 3, six of data.
            let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
            work();
        });
    });
}

/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Sets the MTU of a link.
pub(crate) fn set_mtu(link: &str, mtu: c_int) {
    let mut request = named(link);
    request.ifr_ifru.ifru_mtu = mtu;
    interface_ioctl(libc::SIOCSIFMTU, &mut request);
}

/// Adds an address with a /24 network to a link.
pub(crate) fn add_ipv4(link: &str, address: Ipv4Addr) {
    for (request, address) in
        [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0))]
    {
        let mut argument = named(link);
        let [_, _, data @ ..] = &mut ifru_bytes(address);
        // SAFETY: an address of the Internet family fits a sockaddr and is valid in any bits.
        unsafe {
            argument.ifr_ifru.ifru_addr.sa_family = libc::AF_INET.try_into().unwrap();
            for (to, from) in argument.ifr_ifru.ifru_addr.sa_data.iter_mut().zip(data) {
                *to = from.cast_signed() as _;
            }
        }
        interface_ioctl(request, &mut argument);
    }
}

/// The bytes of a sockaddr_in: family, port, address, padding.
fn ifru_bytes(address: Ipv4Addr) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&address.octets());
    bytes
}

/// Adds an address with a /64 network to a link.
pub(crate) fn add_ipv6(link: &str, address: Ipv6Addr) {
    let mut argument = libc::in6_ifreq {
        ifr6_addr: libc::in6_addr { s6_addr: address.octets() },
        ifr6_prefixlen: 64,
        ifr6_ifindex: index(link),
    };
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
    // SAFETY: on an IPv6 socket SIOCSIFADDR reads one in6_ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR, &raw mut argument) })
        .unwrap();
}

/// A descriptor of the driver that is not attached to a device.
pub(crate) fn driver() -> File {
    File::options().read(true).write(true).open("/dev/net/tun").unwrap()
}

/// Tries to attach to a device, as any program may.
pub(crate) fn attach(driver: &File, name: &str, flags: c_int) -> io::Result<()> {
    let mut request = named(name);
    request.ifr_ifru.ifru_flags = c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    check(unsafe { libc::ioctl(driver.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// Makes a device outlive its descriptors.
pub(crate) fn persist(device: &impl AsRawFd) {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETPERSIST, 1) }).unwrap();
}

pub(crate) fn index(link: &str) -> c_int {
    let mut request = named(link);
    interface_ioctl(libc::SIOCGIFINDEX, &mut request);
    // SAFETY: the call filled the index in.
    unsafe { request.ifr_ifru.ifru_ifindex }
}

pub(crate) fn named(link: &str) -> libc::ifreq {
    // SAFETY: an ifreq is plain old data.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(link.bytes()) {
        *to = from.cast_signed() as _;
    }
    request
}

fn interface_ioctl(request: libc::Ioctl, argument: &mut libc::ifreq) {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    // SAFETY: interface requests read and write one ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), request, argument) }).unwrap();
}

pub(crate) fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const INSIDE: &str = "VPND_TEST_IN_NAMESPACE";
