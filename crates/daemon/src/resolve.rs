//! Where the peer may be: the configured endpoints as addresses, names looked up again and again,
//! for ever. DNS that fails at boot, or a peer whose address changed, is only a matter of time.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::config::Endpoint;
use crate::worker::Worker;

/// One lookup takes no longer.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// A failed lookup is repeated after this, then after twice as long, …
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// … up to this.
const LAST_RETRY: Duration = Duration::from_secs(30);
/// An answer is asked for again after this.
const REFRESH: Duration = Duration::from_secs(5 * 60);
/// However often it is nudged, a name is looked up no sooner than this after the last time.
const NUDGE_APART: Duration = Duration::from_secs(10);

/// Looks the endpoints up for as long as it lives.
pub(crate) struct Resolver {
    addresses: mpsc::Receiver<Vec<SocketAddr>>,
    nudge: watch::Sender<()>,
}

/// Begins to look `endpoints` up. Each name is looked up by a thread of its own: call this after the
/// privileges are gone.
///
/// # Errors
///
/// If the kernel gives no thread.
pub(crate) fn spawn(endpoints: Vec<Endpoint>) -> io::Result<Resolver> {
    let (send, addresses) = mpsc::channel(1);
    let (nudge, nudged) = watch::channel(());
    let found = endpoints.iter().map(|e| literal(e).into_iter().collect()).collect();
    let named = endpoints.into_iter().enumerate().filter(|(_, e)| literal(e).is_none());
    let name = |(place, endpoint)| {
        let thread = Worker::start("names")?;
        Ok(Name { endpoint, place, thread })
    };
    let names = named.map(name).collect::<io::Result<_>>()?;
    tokio::spawn(collect(found, names, nudged, send));
    Ok(Resolver { addresses, nudge })
}

impl Resolver {
    /// All addresses, in the order of the configuration, whenever there are others than before.
    /// Literal ones come at once. Never resolves when there is nothing to look up.
    pub(crate) async fn changed(&mut self) -> Vec<SocketAddr> {
        match self.addresses.recv().await {
            Some(addresses) => addresses,
            None => std::future::pending().await,
        }
    }

    /// The tunnel does not work: the peer may have another address by now.
    pub(crate) fn nudge(&self) {
        self.nudge.send_replace(());
    }
}

/// What one endpoint, by its place in the configuration, came to.
type Answer = (usize, Vec<SocketAddr>);

/// Puts together what the lookups find, and passes it on when it is new.
async fn collect(
    mut found: Vec<Vec<SocketAddr>>,
    names: Vec<Name>,
    nudged: watch::Receiver<()>,
    send: mpsc::Sender<Vec<SocketAddr>>,
) {
    let (answer, mut answers) = mpsc::channel(1);
    for name in names {
        tokio::spawn(name.follow(nudged.clone(), answer.clone()));
    }
    drop(answer);
    let mut sent = Vec::new();
    loop {
        let all = in_order(&found);
        if all != sent && send.send(all.clone()).await.is_err() {
            return;
        }
        sent = all;
        let Some((place, addresses)) = next(&mut answers, &send).await else { return };
        replace(&mut found[place], addresses);
    }
}

/// The next answer; none when there are no more or nobody wants them.
async fn next(
    answers: &mut mpsc::Receiver<Answer>,
    send: &mpsc::Sender<Vec<SocketAddr>>,
) -> Option<Answer> {
    tokio::select! {
        answer = answers.recv() => answer,
        () = send.closed() => None,
    }
}

fn literal(endpoint: &Endpoint) -> Option<SocketAddr> {
    let address: IpAddr = endpoint.host.parse().ok()?;
    Some(SocketAddr::new(address, endpoint.port))
}

/// A server that rotates its answers says nothing new: the order we have stays.
fn replace(known: &mut Vec<SocketAddr>, addresses: Vec<SocketAddr>) {
    let as_set = |list: &[SocketAddr]| list.iter().copied().collect::<HashSet<_>>();
    if as_set(known) != as_set(&addresses) {
        *known = addresses;
    }
}

/// Each address once, where it is first named.
fn in_order(found: &[Vec<SocketAddr>]) -> Vec<SocketAddr> {
    let mut seen = HashSet::new();
    found.iter().flatten().copied().filter(|address| seen.insert(*address)).collect()
}

/// An endpoint that is a name.
struct Name {
    endpoint: Endpoint,
    place: usize,
    thread: Worker,
}

impl Name {
    /// Looks it up for as long as somebody listens. What was found stays while lookups fail.
    async fn follow(self, mut nudged: watch::Receiver<()>, answer: mpsc::Sender<Answer>) {
        let mut retry = FIRST_RETRY;
        loop {
            nudged.borrow_and_update();
            let wait = match self.lookup().await {
                Ok(addresses) => {
                    tracing::debug!(endpoint = %self.endpoint, ?addresses, "resolved");
                    retry = FIRST_RETRY;
                    if answer.send((self.place, addresses)).await.is_err() {
                        return;
                    }
                    REFRESH
                }
                Err(error) => {
                    let wait = retry;
                    self.complain(&error, wait);
                    retry = (retry * 2).min(LAST_RETRY);
                    wait
                }
            };
            if !rest(&mut nudged, NUDGE_APART, wait).await {
                return;
            }
        }
    }

    async fn lookup(&self) -> io::Result<Vec<SocketAddr>> {
        let Endpoint { host, port } = self.endpoint.clone();
        let query = move || (host, port).to_socket_addrs().map(Vec::from_iter);
        let addresses = timeout(LOOKUP_TIMEOUT, self.thread.run(query)).await???;
        if addresses.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(addresses) }
    }

    /// The first failure of a row is worth a line; each of the others only to who looks for it.
    fn complain(&self, error: &io::Error, again: Duration) {
        let (endpoint, seconds) = (&self.endpoint, again.as_secs());
        if again == FIRST_RETRY {
            tracing::warn!("cannot resolve {endpoint}: {error}; trying until it works");
        } else {
            tracing::debug!("cannot resolve {endpoint}: {error}; again in {seconds} s");
        }
    }
}

/// Waits for `wait`, or less when nudged, but then at least for `apart`; says whether anybody is
/// left who could nudge.
async fn rest(nudged: &mut watch::Receiver<()>, apart: Duration, wait: Duration) -> bool {
    let nudge = async {
        sleep(apart).await;
        nudged.changed().await.is_ok()
    };
    timeout(wait, nudge).await.unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn endpoints(texts: &[&str]) -> Vec<Endpoint> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    async fn soon<T>(future: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(60), future).await.expect("nothing came")
    }

    #[tokio::test]
    async fn literal_addresses_come_at_once_and_in_order() {
        let all = ["[2001:db8::2]:51820", "192.0.2.7:1", "192.0.2.7:1"];
        let mut resolver = spawn(endpoints(&all)).unwrap();
        assert_eq!(soon(resolver.changed()).await, addresses(&all[..2]));
    }

    #[tokio::test]
    async fn a_name_keeps_its_place() {
        let mut resolver = spawn(endpoints(&["localhost:9", "192.0.2.7:1"])).unwrap();
        assert_eq!(soon(resolver.changed()).await, addresses(&["192.0.2.7:1"]));
        let both = soon(resolver.changed()).await;
        assert!(both[0].ip().is_loopback() && both[0].port() == 9, "{both:?}");
        assert_eq!(both.last(), addresses(&["192.0.2.7:1"]).first());
    }

    #[tokio::test]
    async fn nothing_to_look_up_stays_silent() {
        let mut resolver = spawn(Vec::new()).unwrap();
        let changed = timeout(Duration::from_millis(50), resolver.changed());
        assert!(changed.await.is_err());
    }

    #[tokio::test]
    async fn a_nudge_shortens_the_wait_but_only_so_far() {
        let (apart, wait) = (Duration::from_millis(20), Duration::from_millis(500));
        let (nudge, mut nudged) = watch::channel(());
        let begin = Instant::now();
        nudge.send_replace(());
        assert!(rest(&mut nudged, apart, Duration::MAX).await);
        assert!(begin.elapsed() >= apart);
        assert!(rest(&mut nudged, apart, wait).await);
        assert!(begin.elapsed() >= wait, "one nudge counts once");
        drop(nudge);
        assert!(!rest(&mut nudged, apart, Duration::MAX).await);
    }

    #[test]
    fn rotated_answers_change_nothing() {
        let mut known = addresses(&["192.0.2.1:1", "192.0.2.2:1"]);
        replace(&mut known, addresses(&["192.0.2.2:1", "192.0.2.1:1"]));
        assert_eq!(known, addresses(&["192.0.2.1:1", "192.0.2.2:1"]));
        replace(&mut known, addresses(&["192.0.2.2:1"]));
        assert_eq!(known, addresses(&["192.0.2.2:1"]));
    }
}
