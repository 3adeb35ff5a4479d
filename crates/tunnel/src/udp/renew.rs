//! Another port, or the interface anew, for a socket that threads send and receive on.
//!
//! `connect(2)` to no family at all (`AF_UNSPEC`) is how the kernel takes back what it chose: the port that
//! was not named in `bind(2)`, and the interface (`__udp_disconnect`). Both can then be had anew on the same
//! descriptor, and without a privilege: the other options stay, and nobody who waits on it notices.

use std::io;
use std::sync::atomic::Ordering::Relaxed;

use nix::net::if_::if_nametoindex;
use socket2::SockAddr;

use super::Socket;
use super::sys::{self, IntOption};

const BOUND_INDEX: IntOption =
    IntOption { level: libc::SOL_SOCKET, name: libc::SO_BINDTOIFINDEX, label: "SO_BINDTOIFINDEX" };

impl Socket {
    /// Sends from another port from now on, where the port is the kernel's to choose; says which.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn change_port(&self) -> io::Result<Option<u16>> {
        if self.bound_to.port() != 0 {
            return Ok(None);
        }
        self.renew()?;
        Ok(Some(self.local_port()))
    }

    /// Binds to the interface that has the name now, where it is another than before; says whether it is.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn follow_device(&self) -> io::Result<bool> {
        let Some(device) = &self.device else { return Ok(false) };
        let bound = sys::get(&self.inner, BOUND_INDEX)?;
        // While there is none of the name, the socket stays bound to the one that is gone, and sends nothing.
        let Ok(index) = if_nametoindex(device.as_str()) else { return Ok(false) };
        if u32::try_from(bound) == Ok(index) {
            return Ok(false);
        }
        self.renew()?;
        Ok(true)
    }

    fn renew(&self) -> io::Result<()> {
        sys::disconnect(&self.inner)?;
        if let Some(device) = &self.device {
            self.inner.bind_device(Some(device.as_bytes()))?;
        }
        if self.bound_to.port() == 0 {
            match self.inner.bind(&SockAddr::from(self.bound_to)) {
                // A thread that sent in between has bound it already.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                bound => bound?,
            }
            let local = self.inner.local_addr()?.as_socket();
            self.local_port.store(local.map_or(0, |local| local.port()), Relaxed);
        }
        Ok(())
    }
}
