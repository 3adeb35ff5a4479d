//! The settings that affect the route of datagrams: the mark that routing rules and packet filters match, the
//! interface, and the source address.

use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, SockAddr, Socket, Type};

use super::bind::BindError;

/// The settings of a socket that affect its routes. Sockets that query the routing table use the same settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Egress {
    /// The mark of every datagram (`SO_MARK`); 0 is none.
    pub mark: u32,
    /// The name of the interface by which all datagrams leave and arrive (`SO_BINDTODEVICE`).
    pub device: Option<String>,
}

impl Egress {
    /// Applies the settings to a socket. The socket is bound to the interface that has the name now.
    pub(super) fn set(&self, socket: &Socket) -> Result<(), BindError> {
        if self.mark != 0 {
            let refused = |source| BindError::Mark { mark: self.mark, source };
            socket.set_mark(self.mark).map_err(refused)?;
        }
        let Some(device) = &self.device else { return Ok(()) };
        let refused = |source| BindError::device(device.clone(), source);
        socket.bind_device(Some(device.as_bytes())).map_err(refused)
    }

    /// Applies the settings to a socket that may have had others.
    pub(super) fn renew(&self, socket: &Socket) -> Result<(), BindError> {
        if self.mark == 0 && socket.mark().is_ok_and(|mark| mark != 0) {
            socket.set_mark(0).map_err(|source| BindError::Mark { mark: 0, source })?;
        }
        if self.device.is_none() && socket.device().is_ok_and(|device| device.is_some()) {
            let refused = |source| BindError::device(String::new(), source);
            socket.bind_device(None).map_err(refused)?;
        }
        self.set(socket)
    }

    /// A separate socket for a query to the kernel, bound to any port of `address`.
    pub(super) fn throwaway(&self, address: IpAddr) -> Result<Socket, BindError> {
        let at = SocketAddr::new(address, 0);
        let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None);
        let socket = socket.map_err(BindError::Open)?;
        self.set(&socket)?;
        let refused = |source| BindError::sending_from(address, source);
        socket.bind(&SockAddr::from(at)).map_err(refused)?;
        Ok(socket)
    }

    /// Checks that datagrams can leave from `address`.
    ///
    /// # Errors
    ///
    /// If the address is not one of ours, or the settings cannot be applied.
    pub fn check_source(&self, address: IpAddr) -> Result<(), BindError> {
        self.throwaway(address).map(drop)
    }
}
