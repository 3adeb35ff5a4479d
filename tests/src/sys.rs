//! Where the harness talks to the kernel itself: entering namespaces between fork and exec, and
//! packet sockets.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::host::Namespaces;
use crate::within;

/// Makes the child enter `namespaces` and die with the thread that starts it.
pub(crate) fn enter_before_exec(command: &mut Command, namespaces: Arc<Namespaces>) {
    let enter = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // Whoever starts it may have blocked signals for itself.
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

/// Runs to the end, or to `limit`, when it is killed; what it prints may be of any length.
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

/// A packet socket that sees every frame of one interface, each behind a virtio header, so that
/// super-packets can be told from datagrams.
pub(crate) fn packet_socket(interface: u32) -> io::Result<Socket> {
    let protocol = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?.to_be();
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    socket.bind(&link_address(protocol, interface)?)?;
    Ok(socket)
}

/// Makes room for `bytes` in a socket's queue, whatever the system's limit.
pub(crate) fn receive_buffer(socket: &impl AsRawFd, bytes: i32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
}

/// Frames that a packet socket had no room for since the last call.
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

fn contents(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

type Job = (Command, Sender<io::Result<Child>>);

/// The kernel's parent-death signal follows the thread, not the process: this one never ends.
static SPAWNER: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
    let (jobs, queue) = channel::<Job>();
    thread::spawn(move || {
        for (mut command, answer) in queue {
            let _ = answer.send(command.spawn());
        }
    });
    Mutex::new(jobs)
});

fn set_option(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
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
