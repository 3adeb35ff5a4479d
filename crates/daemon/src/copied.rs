//! Notices that this virtual machine was copied, or set back to a snapshot.
//!
//! A hypervisor changes the machine's generation ID then, and the kernel sends a uevent with `NEW_VMGENID=1`
//! (`drivers/virt/vmgenid.c`, since Linux 6.9). Two copies would use the same session keys with the same counters.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::watch::watch_for;

/// The kernel's multicast group of uevents.
const GROUP: u32 = 1;
/// A uevent has at most 2 KiB of variables (`UEVENT_BUFFER_SIZE`) behind its device's path.
const LONGEST: usize = 8192;

/// Receives the kernel's uevents. Only a process with `CAP_NET_ADMIN` can send a false one.
pub(crate) struct Copied {
    socket: OwnedFd,
    ready: AsyncFd<OwnedFd>,
}

impl Copied {
    /// # Errors
    /// If the kernel has no uevents for this network namespace, or the process has no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
        Ok(Self { ready: watch_for(socket.as_fd(), Interest::READABLE)?, socket })
    }

    /// Waits until there are uevents to read.
    ///
    /// # Errors
    /// If the descriptor cannot be watched.
    pub(crate) async fn heard(copied: &Option<Self>) -> io::Result<()> {
        match copied {
            Some(uevents) => {
                uevents.ready.readable().await?.clear_ready();
                Ok(())
            }
            None => std::future::pending().await,
        }
    }

    /// Whether the machine was copied since the last call. Does not wait.
    pub(crate) fn has_happened(&self) -> bool {
        let (mut uevent, mut found) = ([0; LONGEST], false);
        loop {
            match recv(self.socket.as_raw_fd(), &mut uevent, MsgFlags::empty()) {
                Ok(len) => found |= is_copy(&uevent[..len]),
                // Some were lost: one of a copy would have been alone.
                Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(_none_left) => return found,
            }
        }
    }
}

/// Whether a uevent reports a new generation ID.
fn is_copy(uevent: &[u8]) -> bool {
    uevent.split(|byte| *byte == 0).any(|variable| variable == b"NEW_VMGENID=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_generation_is_recognized() {
        let uevent =
            b"change@/devices/LNXSYSTM:00/VMGENCTR:00\0ACTION=change\0NEW_VMGENID=1\0SEQNUM=7\0";
        assert!(is_copy(uevent));
        for other in
            [&b"change@/devices/VMGENCTR:00\0ACTION=change\0"[..], b"", b"X=NEW_VMGENID=1\0"]
        {
            assert!(!is_copy(other));
        }
    }
}
