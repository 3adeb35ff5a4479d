//! Sends what is captured to the client that has asked for it, until the client leaves.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use vpnd_tunnel::tap::{Records, Tap, Wanted};

/// How often the records are sent.
const EVERY: Duration = Duration::from_millis(50);
/// A client that does not read for this long has left. A pager that waits for its user may take some time.
const READS_WITHIN: Duration = Duration::from_secs(60);

/// A capture that runs, and ends when this is dropped.
pub(crate) struct Feed {
    tap: Tap,
    records: Records,
    _ended: oneshot::Sender<()>,
}

/// Resolves, with an error, when the client has left.
pub(crate) type Ended = oneshot::Receiver<()>;

impl Feed {
    /// Captures from now on. The caller stops the capture when it has ended.
    pub(crate) fn start(tap: &Tap, wanted: Wanted, snap: usize) -> (Self, Ended) {
        let (end, ended) = oneshot::channel();
        tap.start(wanted, snap);
        (Self { tap: tap.clone(), records: Records::new(), _ended: end }, ended)
    }

    /// Sends records until the client says that it wants no more, and then those that are left.
    pub(super) async fn serve(mut self, client: UnixStream) -> io::Result<()> {
        let (mut from, mut to) = client.into_split();
        let mut more = [0];
        loop {
            let is_over = tokio::select! {
                _said = from.read(&mut more) => true,
                () = sleep(EVERY) => false,
            };
            timeout(READS_WITHIN, self.pass_on(&mut to)).await??;
            if is_over {
                return to.shutdown().await;
            }
        }
    }

    async fn pass_on(&mut self, to: &mut OwnedWriteHalf) -> io::Result<()> {
        let counts = self.tap.drain(&mut self.records).ok_or(io::ErrorKind::BrokenPipe)?;
        to.write_all(self.records.bytes()).await?;
        to.write_all(&counts.record()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpnd_tunnel::tap::{Counts, Header, Kind};

    const INNER: Wanted = Wanted { inner: true, outer: false };

    #[tokio::test]
    async fn the_client_gets_the_rest_when_it_asks_for_the_end() {
        let tap = Tap::default();
        let (feed, ended) = Feed::start(&tap, INNER, 100);
        let (mut client, served) = UnixStream::pair().unwrap();
        let serving = tokio::spawn(feed.serve(served));
        let mut first = [0; Counts::LEN];
        client.read_exact(&mut first).await.unwrap();
        tap.keys("lines");
        client.shutdown().await.unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        let header = Header::decode(rest.first_chunk().unwrap()).unwrap();
        assert_eq!((header.kind, header.kept), (Kind::Keys, 5));
        assert!(rest[Header::LEN..].starts_with(b"lines"));
        assert_eq!(rest.len() % Counts::LEN, (Header::LEN + 5) % Counts::LEN, "and the counts");
        serving.await.unwrap().unwrap();
        assert!(ended.await.is_err());
    }

    #[tokio::test]
    async fn it_ends_with_its_client_and_with_the_capture() {
        let tap = Tap::default();
        let (feed, ended) = Feed::start(&tap, INNER, 100);
        let (client, served) = UnixStream::pair().unwrap();
        drop(client);
        assert!(feed.serve(served).await.is_err());
        assert!(ended.await.is_err());
        let (feed, _ended) = Feed::start(&tap, INNER, 100);
        let (_client, served) = UnixStream::pair().unwrap();
        tap.stop();
        assert!(feed.serve(served).await.is_err());
    }
}
