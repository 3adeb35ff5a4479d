//! The harness's system calls: entering namespaces between fork and exec, packet sockets, and the cards of
//! virtual machines.

use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut, Read, Seek, Write};
use std::mem::zeroed;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::host::Namespaces;
use crate::within;

/// Makes the child enter `namespaces` and die with the thread that starts it.
pub(crate) fn enter_before_exec(command: &mut Command, namespaces: Arc<Namespaces>) {
    let enter = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // The process that starts it may have blocked signals for itself.
        SigSet::all().thread_unblock()?;
        setns(&namespaces.network, CloneFlags::CLONE_NEWNET)?;
        setns(&namespaces.mounts, CloneFlags::CLONE_NEWNS)?;
        Ok(())
    };
    // SAFETY: the closure makes four system calls and touches no memory but its own
    // descriptors: nothing in it allocates or takes a lock between fork and exec.
    unsafe { command.pre_exec(enter) };
}

/// Starts a child that dies with this process rather than with the calling thread.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    let (answer, child) = channel();
    let spawner = SPAWNER.lock().unwrap_or_else(PoisonError::into_inner);
    spawner.send((command, answer)).map_err(io::Error::other)?;
    child.recv().map_err(io::Error::other)?
}

/// Runs to the end with `input` on standard input.
pub(crate) fn output(command: &mut Command, input: &str) -> io::Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input may be gone already.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output()
}

/// Runs it to its end or to `limit`, when it is killed; its output may be of any length.
pub(crate) fn output_within(command: &mut Command, limit: Duration) -> io::Result<Output> {
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let mut child = command.spawn()?;
    let ended = within(limit, || child.try_wait().transpose());
    let Some(status) = ended else {
        child.kill()?;
        child.wait()?;
        return Err(io::Error::new(ErrorKind::TimedOut, format!("not done after {limit:?}")));
    };
    Ok(Output { status: status?, stdout: contents(&mut stdout)?, stderr: contents(&mut stderr)? })
}

/// A packet socket that receives every frame of one interface, each with a virtio header, so that
/// super-packets can be distinguished from datagrams.
pub(crate) fn packet_socket(interface: u32) -> io::Result<Socket> {
    let protocol = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?.to_be();
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
    socket.bind(&link_address(protocol, interface)?)?;
    Ok(socket)
}

/// Makes room for `bytes` in a socket's queue, whatever the system's limit.
pub(crate) fn receive_buffer(socket: &impl AsRawFd, bytes: i32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
}

/// Datagrams of equal size from one sender, back to back; the last one may be shorter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// All bytes.
    pub(crate) len: usize,
    /// The size of each datagram but the last; never zero.
    pub(crate) stride: usize,
    pub(crate) from: Option<SocketAddr>,
}

/// Lets a UDP socket receive runs of datagrams.
pub(crate) fn receive_runs(socket: &impl AsFd) -> io::Result<()> {
    Ok(setsockopt(socket, sockopt::UdpGroSegment, &true)?)
}

/// Receives one run.
pub(crate) fn receive_run(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Run> {
    let (mut control, mut parts) = (nix::cmsg_space!(i32), [IoSliceMut::new(buffer)]);
    let received = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::empty(),
    )?;
    let stride = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::UdpGroSegments(stride) => usize::try_from(stride).ok(),
        _ => None,
    });
    let from = received.address.and_then(|from| {
        let v4 = from.as_sockaddr_in().map(|v4| SocketAddrV4::from(*v4).into());
        v4.or_else(|| from.as_sockaddr_in6().map(|v6| SocketAddrV6::from(*v6).into()))
    });
    Ok(Run { len: received.bytes, stride: stride.unwrap_or(received.bytes).max(1), from })
}

/// Frames that were lost since the last call because a packet socket had no room.
pub(crate) fn packet_drops(socket: &Socket) -> io::Result<u32> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut len = libc::socklen_t::try_from(size_of_val(&stats)).map_err(io::Error::other)?;
    // SAFETY: both pointers are to live locals, and `len` is the size of the first.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut len,
        )
    };
    if done == 0 { Ok(stats.tp_drops) } else { Err(io::Error::last_os_error()) }
}

/// Reads a frame and its virtio header. The kernel removes the outermost VLAN tag from the frame: its four
/// bytes are returned beside the length.
pub(crate) fn receive_frame(
    socket: &Socket,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<[u8; 4]>)> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // Words, as a control message is aligned to them.
    let mut control = [0_u64; 16];
    // SAFETY: a msghdr is pointers and numbers, for which zero is good.
    let mut message: libc::msghdr = unsafe { zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message points to `part`, which is `buffer`, and to `control`, each of the length said.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let len = usize::try_from(len).map_err(|_negative| io::Error::last_os_error())?;
    // SAFETY: the kernel has just filled the control messages in, and `control` still lives.
    let tag = unsafe { tag_beside(&message) };
    Ok((len, tag))
}

/// The contents of `PACKET_AUXDATA`.
///
/// # Safety
/// The message must have been received, and its buffer for control messages live.
unsafe fn tag_beside(message: &libc::msghdr) -> Option<[u8; 4]> {
    // SAFETY: the caller's promise.
    let header = unsafe { libc::CMSG_FIRSTHDR(message).as_ref() }?;
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    // SAFETY: of this type the kernel writes one tpacket_auxdata, all numbers.
    let told = unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
    let [kind, tag] = [told.tp_vlan_tpid.to_be_bytes(), told.tp_vlan_tci.to_be_bytes()];
    (told.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then_some([kind[0], kind[1], tag[0], tag[1]])
}

/// Creates a TAP device of this name and attaches to it, non-blocking: each frame has a virtio header, and
/// super-packets of every kind are accepted.
pub(crate) fn open_tap(name: &str) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: an ifreq is bytes and numbers, for which zero is good.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()).take(libc::IFNAMSIZ - 1) {
        *to = libc::c_char::try_from(from).map_err(io::Error::other)?;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let offloads = offloads | libc::TUN_F_USO4 | libc::TUN_F_USO6;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if made != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory.
    let set = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) };
    if set == 0 { Ok(file) } else { Err(io::Error::last_os_error()) }
}

/// Never fragments the socket's packets: sending one that is too large is an error.
pub(crate) fn never_fragment(socket: &impl AsRawFd, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        return set_option(
            socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DO,
        );
    }
    set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
}

/// The largest packet that a connected socket may send unfragmented, as the kernel tells a program.
pub(crate) fn route_mtu(socket: &impl AsRawFd, ipv6: bool) -> io::Result<i32> {
    if ipv6 {
        return get_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU);
    }
    get_option(socket, libc::IPPROTO_IP, libc::IP_MTU)
}

fn contents(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

type Job = (Command, Sender<io::Result<Child>>);

/// The kernel's parent-death signal follows the thread, not the process, so this thread never ends.
static SPAWNER: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
    let (jobs, queue) = channel::<Job>();
    thread::spawn(move || {
        for (mut command, answer) in queue {
            let _ = answer.send(command.spawn());
        }
    });
    Mutex::new(jobs)
});

/// Adds an extension header to all packets of an IPv6 socket: hop-by-hop options that are only padding.
pub(crate) fn hop_by_hop(socket: &impl AsRawFd) -> io::Result<()> {
    const PAD_N: u8 = 1;
    set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_HOPOPTS, [0, 0, PAD_N, 4, 0, 0, 0, 0_u8])
}

fn set_option<T: Copy>(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: T,
) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the pointer is to a live local of `len` bytes.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn link_address(protocol: u16, interface: u32) -> io::Result<SockAddr> {
    let family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    let interface = i32::try_from(interface).map_err(io::Error::other)?;
    let size =
        libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    let fill = |storage: *mut socket2::SockAddrStorage, len: *mut libc::socklen_t| {
        let address = storage.cast::<libc::sockaddr_ll>();
        // SAFETY: `storage` is zeroed, aligned and larger than a sockaddr_ll, whose size is
        // what `len` says afterwards; both point to live memory of the caller.
        unsafe {
            (*address).sll_family = family;
            (*address).sll_protocol = protocol;
            (*address).sll_ifindex = interface;
            *len = size;
        }
        Ok(())
    };
    // SAFETY: `fill` writes a whole, valid address and its length.
    unsafe { SockAddr::try_init(fill).map(|((), address)| address) }
}

fn get_option(socket: &impl AsRawFd, level: libc::c_int, name: libc::c_int) -> io::Result<i32> {
    let mut value = 0_i32;
    let mut len = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the pointers are to live locals, and `len` is the length of `value`.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len)
    };
    if done == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
