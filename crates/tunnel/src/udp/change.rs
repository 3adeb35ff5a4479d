//! Gives an open socket other settings while threads send and receive on it. If the kernel refuses one, the settings
//! are as before.

use std::io;
use std::sync::PoisonError;

use nix::net::if_::if_nametoindex;

use super::bind::{BindError, make_room, set};
use super::{Egress, Gso, Socket, gro};

impl Socket {
    /// Changes the mark and the interface. Without a fixed port, the port changes when the socket leaves an
    /// interface.
    ///
    /// # Errors
    ///
    /// If there is no such interface, or the kernel refuses the mark.
    pub fn set_egress(&self, egress: &Egress) -> Result<(), BindError> {
        let socket = &self.inner;
        let refused = |source| BindError::Mark { mark: egress.mark, source };
        let former = socket.mark().map_err(refused)?;
        if former != egress.mark {
            socket.set_mark(egress.mark).map_err(refused)?;
        }
        self.set_device(egress.device.as_deref()).inspect_err(|_| {
            // The kernel has accepted this value before, so it accepts it again.
            let _taken = socket.set_mark(former);
        })
    }

    /// Changes the sizes of the buffers.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn set_buffers(&self, receive: usize, send: usize) -> Result<(), BindError> {
        make_room(&self.inner, (receive, send))
    }

    /// Sends and receives whole batches from now on, or single datagrams.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn set_gso(&self, gso: Gso) -> Result<(), BindError> {
        set(&self.inner, gro::OPTION, (gso != Gso::Off).into())?;
        self.segmentation.want(gso);
        Ok(())
    }

    /// The name of the interface that the socket is bound to.
    pub(super) fn device(&self) -> Option<String> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Binds to another interface. A socket that is bound to one cannot be bound to another without a privilege, so
    /// it is released first.
    fn set_device(&self, wanted: Option<&str>) -> Result<(), BindError> {
        let former = self.device();
        if former.as_deref() == wanted {
            return Ok(());
        }
        if let Some(device) = wanted.filter(|device| if_nametoindex(*device).is_err()) {
            return Err(BindError::NoDevice { device: device.to_owned() });
        }
        self.note_device(wanted.map(str::to_owned));
        let bound = match (&former, wanted) {
            (None, Some(device)) => self.inner.bind_device(Some(device.as_bytes())),
            _ => self.renew(),
        };
        bound.map_err(|error| self.device_refused(former, wanted, error))
    }

    /// Binds to the former interface again.
    fn device_refused(
        &self,
        former: Option<String>,
        wanted: Option<&str>,
        error: io::Error,
    ) -> BindError {
        self.note_device(former);
        if let Err(error) = self.renew() {
            tracing::warn!("the socket cannot be bound to its former interface again: {error}");
        }
        BindError::device(wanted.unwrap_or_default().to_owned(), error)
    }

    fn note_device(&self, device: Option<String>) {
        *self.device.lock().unwrap_or_else(PoisonError::into_inner) = device;
    }
}
