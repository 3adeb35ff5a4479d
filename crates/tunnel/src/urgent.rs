//! Datagrams of the control plane that could not be sent because the socket was full. A constant stream of data
//! could keep the socket full for ever, and without handshakes and answers the tunnel ends. So the next thread
//! that sends, even a data thread, sends these datagrams first.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::udp::{Sent, Socket, Transmit};

/// The maximum number of waiting datagrams. A further one is lost, as on a busy network.
const MOST: usize = 64;

/// Datagrams that wait until the socket has room, in their order.
#[derive(Debug, Default)]
pub(crate) struct Urgent {
    /// Whether any datagram waits. Data threads read this flag for each batch.
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
    /// Whether any datagram waits.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.load(Relaxed)
    }

    /// Sends a datagram, or queues it behind the waiting ones; returns whether it was sent.
    ///
    /// # Errors
    /// Like [`Socket::send_whole`]; `WouldBlock` if too many datagrams wait.
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

    /// Sends the waiting datagrams, as far as the socket has room. A datagram that the kernel refuses is lost,
    /// and the error is passed to `failed`.
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

    /// Locks the queue. A thread that panicked while it held the lock was only sending, so the queue is intact.
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
        singly: false,
    })
}
