//! The clients of a socket that answers requests: a limited number of them, of which root has a share of its own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::sleep;

/// Connections that are served at once, for root and as many for all other users; further ones wait.
pub(crate) const MAX_CONNECTIONS: usize = 8;
/// Connections that wait, for root and as many for all other users; a further one is closed.
const MAX_WAITING: usize = 16;
/// How long to wait until a descriptor may be free again.
const NO_DESCRIPTOR: Duration = Duration::from_secs(2);

/// Serves the clients of a socket.
pub(crate) trait Desk: Send + Sync + 'static {
    /// Serves one client, to the end of its connection, and for a limited time.
    fn serve(&self, client: UnixStream) -> impl Future<Output = io::Result<()>> + Send;
}

/// Accepts connections. Those of root have a separate queue, so other users cannot make root wait.
pub(crate) async fn serve<D: Desk>(listener: UnixListener, desk: Arc<D>) {
    let (root, others) = (queue(Arc::clone(&desk)), queue(desk));
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let is_root = client.peer_cred().is_ok_and(|from| from.uid() == 0);
                // If the queue is full, the connection is closed.
                let _full = if is_root { &root } else { &others }.try_send(client);
            }
            // No descriptor is free: try again when others have been closed.
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection to a local socket");
                sleep(NO_DESCRIPTOR).await;
            }
        }
    }
}

/// Starts to serve clients in the order of their connections.
fn queue<D: Desk>(desk: Arc<D>) -> mpsc::Sender<UnixStream> {
    let (send, mut clients) = mpsc::channel(MAX_WAITING);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tokio::spawn(async move {
        while let Some(client) = clients.recv().await {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let desk = Arc::clone(&desk);
            tokio::spawn(async move {
                let _left = desk.serve(client).await;
                drop(place);
            });
        }
    });
    send
}
