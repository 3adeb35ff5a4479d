//! Datagrams of the control plane that found the socket full. Data that is sent all the time would keep it full for ever,
//! and without handshakes and answers the tunnel ends: so whoever sends next sends these first, data threads too.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::udp::{Sent, Socket, Transmit};

/// The most that wait. A further one is lost, as on a busy network.
const MOST: usize = 64;

/// Datagrams that wait for room, in their order.
#[derive(Debug, Default)]
pub(crate) struct Urgent {
    /// Whether any wait: what a data thread looks at for each batch.
    waiting: AtomicBool,
    queue: Mutex<VecDeque<Datagram>>,
}

#[derive(Debug)]
struct Datagram {
    to: SocketAddr,
    from: Option<IpAddr>,
    contents: Vec<u8>,
}

impl Urgent {
    /// Whether any wait.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.load(Relaxed)
    }

    /// Sends a datagram, or keeps it behind those that wait; returns whether it has left.
    ///
    /// # Errors
    /// As [`Socket::send_whole`]; `WouldBlock` if too many wait.
    pub(crate) fn send(
        &self,
        socket: &Socket,
        to: SocketAddr,
        from: Option<IpAddr>,
        contents: &[u8],
    ) -> io::Result<bool> {
        let mut queue = self.lock();
        if queue.is_empty() {
            match send(socket, to, from, contents) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return sent.map(|_| true),
            }
        }
        if queue.len() == MOST {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        queue.push_back(Datagram { to, from, contents: contents.to_vec() });
        self.waiting.store(true, Relaxed);
        Ok(false)
    }

    /// Sends those that wait, as far as there is room. What the kernel refuses is handed to `failed`, and lost.
    pub(crate) fn flush(&self, socket: &Socket, mut failed: impl FnMut(&io::Error)) {
        let mut queue = self.lock();
        while let Some(Datagram { to, from, contents }) = queue.front() {
            match send(socket, *to, *from, contents) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => failed(&error),
                Ok(_) => {}
            }
            queue.pop_front();
        }
        self.waiting.store(false, Relaxed);
    }

    /// Whoever panicked had it locked for a send, which leaves it whole.
    fn lock(&self) -> MutexGuard<'_, VecDeque<Datagram>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send(
    socket: &Socket,
    to: SocketAddr,
    from: Option<IpAddr>,
    contents: &[u8],
) -> io::Result<Sent> {
    socket.send_whole(&Transmit {
        destination: to,
        source: from,
        tos: 0,
        hops: None,
        contents,
        segment_size: None,
    })
}
