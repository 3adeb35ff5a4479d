//! Waits for room in the socket, for datagrams of the control plane that were kept because the socket was full.
//! While data flows the data threads send them; otherwise this module waits.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use tokio::io::Interest;
use tokio::time::sleep;
use vpnd_tunnel::engine::Engine;

use crate::watch::watch_for;

/// If no descriptor is left to wait with, retry after this time.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Waits until there is room, if any datagram was kept; otherwise forever.
pub(super) async fn room(engine: &Engine) {
    if !engine.keeps_any() {
        return std::future::pending().await;
    }
    if let Err(error) = room_in(engine.socket_fd()).await {
        tracing::debug!("cannot wait for room in the socket: {error}");
        sleep(RETRY_AFTER).await;
    }
}

/// The socket is watched only while a datagram was kept, because it reports room after each batch that the data
/// path has sent.
async fn room_in(socket: BorrowedFd<'_>) -> io::Result<()> {
    watch_for(socket, Interest::WRITABLE)?.writable().await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

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
}
