//! Datagrams of the control plane that found the socket full: a handshake that is lost costs five seconds. The data
//! path fills the socket, and empties it within a moment.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use tokio::io::Interest;
use vpnd_protocol::peer::Transmit;
use vpnd_tunnel::engine::Engine;

use crate::watch::watch_for;

/// The most that wait. A further one is lost, as on a busy network.
const MOST: usize = 64;

/// Datagrams that wait for room, in their order.
#[derive(Debug, Default)]
pub(super) struct Unsent(VecDeque<(Transmit, Vec<u8>)>);

/// There is room in the socket.
pub(super) struct Room;

impl Unsent {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts a datagram at the end; returns whether it is kept.
    pub(super) fn keep(&mut self, transmit: Transmit, datagram: Vec<u8>) -> bool {
        let kept = self.0.len() < MOST;
        if kept {
            self.0.push_back((transmit, datagram));
        }
        kept
    }

    /// The first datagram, which waits no more.
    pub(super) fn take(&mut self) -> Option<(Transmit, Vec<u8>)> {
        self.0.pop_front()
    }

    /// Puts one back that still finds no room.
    pub(super) fn put_back(&mut self, transmit: Transmit, datagram: Vec<u8>) {
        self.0.push_front((transmit, datagram));
    }

    /// Waits until there is room, if anything waits for it.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub(super) async fn room(&self, engine: &Engine) -> io::Result<Room> {
        if self.is_empty() {
            return std::future::pending().await;
        }
        room_in(engine.socket_fd()).await
    }
}

/// The socket is watched only while something waits: with each batch that the data path has sent it would report
/// room.
async fn room_in(socket: BorrowedFd<'_>) -> io::Result<Room> {
    let _ready = watch_for(socket, Interest::WRITABLE)?.writable().await?;
    Ok(Room)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_full_socket_is_waited_for() {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        sender.set_nonblocking(true).unwrap();
        while sender.send(&[0; 512]).is_ok() {}
        let wait = Duration::from_millis(50);
        assert!(timeout(wait, room_in(sender.as_fd())).await.is_err(), "there is no room");
        receiver.set_nonblocking(true).unwrap();
        while receiver.recv(&mut [0; 512]).is_ok() {}
        timeout(Duration::from_secs(30), room_in(sender.as_fd())).await.unwrap().unwrap();
    }

    #[test]
    fn they_leave_in_their_order_and_are_limited() {
        let mut unsent = Unsent::default();
        let transmit = Transmit { to: ([192, 0, 2, 1], 1).into(), from: None };
        let kept = (0..=MOST).filter(|n| unsent.keep(transmit, vec![u8::try_from(*n).unwrap()]));
        assert_eq!(kept.count(), MOST);
        let (first, bytes) = unsent.take().unwrap();
        unsent.put_back(first, bytes);
        let order: Vec<_> =
            std::iter::from_fn(|| unsent.take()).map(|(_, bytes)| bytes[0]).collect();
        assert!(order.is_sorted() && order.len() == MOST);
    }
}
