//! Other users of the TUN driver: a former owner of a device, a program that holds a queue of it, and a user
//! without privileges that tries to get one.

use std::fs::File;
use std::io::{self, Read};
use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket,
};
use socket2::Socket;

use crate::Host;

/// A descriptor that is attached to a device.
#[derive(Debug)]
pub struct Tun(File);

impl Tun {
    /// Attaches to the device of this name in the host's namespace, or makes it.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn attach(host: &Host, name: &str, flags: i32) -> Result<Self> {
        host.enter(|| {
            let file = open()?;
            attach(&file, name, flags).with_context(|| format!("attaching to {name}"))?;
            Ok(Self(file))
        })
    }

    /// Makes a request whose argument is a number itself.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn set(&self, request: libc::Ioctl, value: u32) -> Result<()> {
        // SAFETY: the requests of this kind read no memory.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request, libc::c_ulong::from(value)) })
            .with_context(|| format!("request {request:x} of {value}"))
    }

    /// Makes a request that reads or writes one number, and returns that.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn number(&self, request: libc::Ioctl, mut value: i32) -> Result<i32> {
        // SAFETY: the requests of this kind read or write the one number, which lives.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request, &raw mut value) })
            .with_context(|| format!("request {request:x} of {value}"))?;
        Ok(value)
    }

    /// Lets a TAP device pass only frames to this address.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn give_only(&self, mac: [u8; 6]) -> Result<()> {
        // `struct tun_filter`: no flags, one address.
        let mut filter = [0; 10];
        filter[2..4].copy_from_slice(&1_u16.to_ne_bytes());
        filter[4..].copy_from_slice(&mac);
        // SAFETY: the request reads the two numbers and the one address, which live.
        let set = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETTXFILTER, &raw mut filter) };
        check(set).context("TUNSETTXFILTER")
    }

    /// Hides all frames from the program attached to a TAP device.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn give_nothing(&self) -> Result<()> {
        // One instruction: return 0, the number of bytes of each frame to keep.
        let mut code = [libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0 }];
        let program = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
        // SAFETY: the request reads the program and the instruction, which live.
        let set =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNATTACHFILTER, &raw const program) };
        check(set).context("TUNATTACHFILTER")
    }

    /// Disables its queue, so that it gets no packets.
    ///
    /// # Errors
    /// When the device has one queue.
    pub fn detach(&self) -> Result<()> {
        let mut request = request("", libc::IFF_DETACH_QUEUE)?;
        // SAFETY: TUNSETQUEUE reads one ifreq, which lives.
        let set = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETQUEUE, &raw mut request) };
        check(set).context("TUNSETQUEUE")
    }
}

/// A user without any privilege who attaches to every new device with several queues, as quickly as its
/// threads can.
#[derive(Debug)]
pub struct Intruder {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<usize>>>,
}

impl Intruder {
    /// One thread tries the expected name, the others every name that the kernel reports.
    ///
    /// # Errors
    /// When it cannot begin.
    pub fn start(host: &Host, expected: &'static str, mode: i32) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, begun) = channel();
        let listen = |names: Option<&'static str>| {
            let (host, stop, ready) = (host.clone(), Arc::clone(&stop), ready.clone());
            thread::spawn(move || host.enter(|| intrude(names, mode, &stop, &ready)))
        };
        let threads = [Some(expected), None, None, None].map(listen).into();
        for _ in &threads {
            begun
                .recv_timeout(Duration::from_secs(10))
                .context("an intruder that does not begin")?;
        }
        Ok(Self { stop, threads })
    }

    /// The number of queues it got, of any device.
    ///
    /// # Errors
    /// When a thread failed.
    pub fn stop(mut self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        let join = |thread: JoinHandle<_>| thread.join().map_err(|_| anyhow!("it panicked"))?;
        self.threads.drain(..).map(join).sum()
    }
}

impl Drop for Intruder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Tries one name, or every reported name; returns the number of queues it got, which it holds until the end.
fn intrude(name: Option<&str>, mode: i32, stop: &AtomicBool, ready: &Sender<()>) -> Result<usize> {
    let flags = mode | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE;
    // Opened as root: if the driver is open to other users, they open it themselves.
    let files = (0..DEVICES).map(|_| open()).collect::<Result<Vec<_>>>()?;
    let socket = link_socket()?;
    become_nobody_special()?;
    let _waiting = ready.send(());
    let mut held = 0;
    while !stop.load(Ordering::Relaxed) && held < files.len() {
        let heard = match name {
            Some(name) => Some(name.to_owned()),
            None => next_name(&socket),
        };
        let Some(name) = heard else { continue };
        for _ in 0..TRIES {
            if attach(&files[held], &name, flags).is_ok() {
                held += 1;
                break;
            }
        }
    }
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(1));
    }
    Ok(held)
}

/// The number of devices that each thread takes a queue of, so that all threads together cannot block every
/// name that vpnd tries.
const DEVICES: u32 = 2;
/// Some milliseconds' worth.
const TRIES: u32 = 60;

/// Receives a message for each interface that appears or changes.
fn link_socket() -> Result<Socket> {
    let (family, kind) = (AddressFamily::Netlink, SockType::Raw);
    let opened = socket(family, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    bind(opened.as_raw_fd(), &NetlinkAddr::new(0, RTMGRP_LINK))?;
    let socket = Socket::from(opened);
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    Ok(socket)
}

const RTMGRP_LINK: u32 = 1;

/// The name in the next message, if there is one soon.
fn next_name(mut socket: &Socket) -> Option<String> {
    let mut message = [0; 1 << 15];
    let len = socket.read(&mut message).ok()?;
    // A message begins with two headers of 16 bytes each, then come attributes.
    let mut rest = message.get(32..len)?;
    loop {
        let word = |at: usize| Some(u16::from_ne_bytes(*rest.get(at..)?.first_chunk()?));
        let (size, kind) = (usize::from(word(0)?), word(2)?);
        let value = rest.get(4..size)?;
        if kind == libc::IFLA_IFNAME {
            return Some(String::from_utf8_lossy(value.strip_suffix(&[0])?).into_owned());
        }
        rest = rest.get(size.next_multiple_of(4)..)?;
    }
}

/// To the kernel, users are a property of the thread, and with root its capabilities go.
fn become_nobody_special() -> Result<()> {
    const USER: libc::c_long = 12345;
    // SAFETY: the calls take numbers only, and concern the calling thread alone.
    let results = unsafe {
        [
            libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()),
            libc::syscall(libc::SYS_setresgid, USER, USER, USER),
            libc::syscall(libc::SYS_setresuid, USER, USER, USER),
        ]
    };
    if results == [0; 3] { Ok(()) } else { Err(io::Error::last_os_error().into()) }
}

fn open() -> Result<File> {
    let mut options = File::options();
    let options = options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    options.open("/dev/net/tun").context("opening /dev/net/tun")
}

fn attach(file: &File, name: &str, flags: i32) -> io::Result<()> {
    let mut request = request(name, flags)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// A request about the interface of this name, with these flags.
fn request(name: &str, flags: i32) -> io::Result<libc::ifreq> {
    // SAFETY: an ifreq is bytes and numbers, for which zero is good.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()).take(libc::IFNAMSIZ - 1) {
        *to = libc::c_char::try_from(from).map_err(io::Error::other)?;
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    Ok(request)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
