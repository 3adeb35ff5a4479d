//! Changes the port or the interface of a socket while threads send and receive on it.
//!
//! `connect(2)` with the address family `AF_UNSPEC` makes the kernel forget the port, if `bind(2)` did not
//! specify one, and the interface (`__udp_disconnect`). Both can then be set again on the same descriptor,
//! without a privilege. All other options remain set, and threads that wait on the socket are not disturbed.

use std::io;
use std::sync::atomic::Ordering::Relaxed;

use nix::net::if_::if_nametoindex;
use socket2::SockAddr;

use super::Socket;
use super::sys::{self, IntOption};

const BOUND_INDEX: IntOption =
    IntOption { level: libc::SOL_SOCKET, name: libc::SO_BINDTOIFINDEX, label: "SO_BINDTOIFINDEX" };

impl Socket {
    /// Changes to another source port, if the kernel chooses the port, and returns it.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn change_port(&self) -> io::Result<Option<u16>> {
        if self.bound_to.port() != 0 {
            return Ok(None);
        }
        self.renew()?;
        Ok(Some(self.local_port()))
    }

    /// If another interface has the configured name now, binds to that interface. Returns whether it has.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn follow_device(&self) -> io::Result<bool> {
        let Some(device) = self.device() else { return Ok(false) };
        let bound = sys::get(&self.inner, BOUND_INDEX)?;
        // While no interface has the name, the socket stays bound to the deleted interface, and sends nothing.
        let Ok(index) = if_nametoindex(device.as_str()) else { return Ok(false) };
        if u32::try_from(bound) == Ok(index) {
            return Ok(false);
        }
        self.renew()?;
        Ok(true)
    }

    /// Gives every datagram from now on this mark (`SO_MARK`); 0 is none. This takes CAP_NET_ADMIN.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.inner.set_mark(mark)
    }

    pub(super) fn renew(&self) -> io::Result<()> {
        sys::disconnect(&self.inner)?;
        if let Some(device) = self.device() {
            self.inner.bind_device(Some(device.as_bytes()))?;
        }
        if self.bound_to.port() == 0 {
            match self.inner.bind(&SockAddr::from(self.bound_to)) {
                // A thread that sent in the meantime has already bound the socket.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                bound => bound?,
            }
            let local = self.inner.local_addr()?.as_socket();
            self.local_port.store(local.map_or(0, |local| local.port()), Relaxed);
        }
        Ok(())
    }
}
