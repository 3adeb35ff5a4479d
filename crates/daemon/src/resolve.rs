//! Resolves the configured endpoints to the addresses at which the peer may be. If DNS fails at boot, that only
//! delays the tunnel: a failed lookup is repeated, and the last addresses that were found stay in use. The
//! control plane decides when to repeat a successful lookup.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use vpnd_plane::Failure;
use vpnd_tunnel::udp::unmapped;

use crate::config::Endpoint;
use crate::worker::Worker;

/// A lookup that takes longer is reported as failed; its result is still used when it arrives.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause before a failed lookup is repeated. It doubles with each failure …
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// … up to this time.
const LAST_RETRY: Duration = Duration::from_secs(30);
/// The shortest time between two lookups of a name, regardless of the reason.
const LOOKUPS_APART: Duration = Duration::from_secs(1);
/// The number of addresses of one name that are used.
const MAX_ADDRESSES: usize = 8;

/// Looks up the endpoints for as long as this value exists.
pub(crate) struct Resolver {
    lookups: mpsc::Receiver<Lookup>,
    nudge: watch::Sender<()>,
    change: watch::Sender<()>,
    known: Arc<Mutex<Known>>,
}

/// The endpoints, and the addresses that were found for each.
struct Known {
    names: Vec<String>,
    found: Vec<Vec<SocketAddr>>,
}

/// The same addresses, and where others read them.
struct Collected {
    found: Vec<Vec<SocketAddr>>,
    known: Arc<Mutex<Known>>,
}

impl Collected {
    fn replace(&mut self, place: usize, addresses: Vec<SocketAddr>) {
        replace(&mut self.found[place], addresses);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.found.clone_from(&self.found);
    }
}

/// The result of lookups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// The addresses of all endpoints, in the order of the configuration.
    Addresses(Vec<SocketAddr>),
    /// The endpoints that cannot be looked up at the moment, in that order.
    Failed(Vec<Failure>),
}

/// Events that shorten the pause before the next lookup.
#[derive(Clone)]
struct Nudges {
    nudged: watch::Receiver<()>,
    changed: watch::Receiver<()>,
}

/// Starts looking up `endpoints`. Each name is looked up by a thread of its own, which `lookups` starts. What a `former`
/// resolver knows of the same names is used until they are looked up.
///
/// # Errors
///
/// If the kernel cannot start a thread.
pub(crate) async fn spawn(
    endpoints: Vec<Endpoint>,
    lookups: &Worker,
    former: Option<&Resolver>,
) -> io::Result<Resolver> {
    let threads = lookups;
    let (send, lookups) = mpsc::channel(1);
    let ((nudge, nudged), (change, changed)) = (watch::channel(()), watch::channel(()));
    let known = former.map(|former| former.known()).unwrap_or_default();
    let found = |endpoint: &Endpoint| match literal(endpoint) {
        Some(address) => vec![address],
        None => known.get(&endpoint.to_string()).cloned().unwrap_or_default(),
    };
    let found: Vec<_> = endpoints.iter().map(found).collect();
    let names = endpoints.iter().map(ToString::to_string).collect();
    let known = Arc::new(Mutex::new(Known { names, found: found.clone() }));
    let named = endpoints.into_iter().enumerate().filter(|(_, e)| literal(e).is_none());
    let mut names = Vec::new();
    for (place, endpoint) in named {
        names.push(Name { endpoint, place, thread: threads.another("names").await? });
    }
    let collected = Collected { found, known: Arc::clone(&known) };
    tokio::spawn(collect(collected, names, Nudges { nudged, changed }, send));
    Ok(Resolver { lookups, nudge, change, known })
}

impl Resolver {
    /// Returns all addresses whenever they change, and all failures after each failed lookup and when a failure
    /// is over. Literal addresses come at once. Waits forever if there is nothing to look up.
    pub(crate) async fn changed(&mut self) -> Lookup {
        match self.lookups.recv().await {
            Some(lookup) => lookup,
            None => std::future::pending().await,
        }
    }

    /// The addresses that were found so far, by endpoint.
    fn known(&self) -> BTreeMap<String, Vec<SocketAddr>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.names.iter().cloned().zip(known.found.iter().cloned()).collect()
    }

    /// Asks for a lookup now.
    pub(crate) fn nudge(&self) {
        self.nudge.send_replace(());
    }

    /// Reports that routes, addresses or links have changed: a failed lookup may now succeed.
    pub(crate) fn network_changed(&self) {
        self.change.send_replace(());
    }
}

/// The result of one endpoint, which is given by its position in the configuration.
type Answer = (usize, Result<Vec<SocketAddr>, Failure>);

/// Combines the results of all lookups, and passes changes on.
async fn collect(found: Collected, names: Vec<Name>, nudges: Nudges, send: mpsc::Sender<Lookup>) {
    let (answer, mut answers) = mpsc::channel(1);
    for name in names {
        tokio::spawn(name.follow(nudges.clone(), answer.clone()));
    }
    drop(answer);
    follow_answers(found, &mut answers, send).await;
}

async fn follow_answers(
    mut found: Collected,
    answers: &mut mpsc::Receiver<Answer>,
    send: mpsc::Sender<Lookup>,
) {
    let (mut sent, mut failed) = (Vec::new(), BTreeMap::new());
    loop {
        let all = in_order(&found.found);
        if all != sent && send.send(Lookup::Addresses(all.clone())).await.is_err() {
            return;
        }
        sent = all;
        let Some((place, answer)) = next(answers, &send).await else { return };
        let failures_changed = match answer {
            Ok(addresses) => {
                found.replace(place, addresses);
                failed.remove(&place).is_some()
            }
            Err(failure) => {
                failed.insert(place, failure);
                true
            }
        };
        let failures = || Lookup::Failed(failed.values().cloned().collect());
        if failures_changed && send.send(failures()).await.is_err() {
            return;
        }
    }
}

/// The next result; `None` when there are no more, or the receiver is gone.
async fn next(answers: &mut mpsc::Receiver<Answer>, send: &mpsc::Sender<Lookup>) -> Option<Answer> {
    tokio::select! {
        answer = answers.recv() => answer,
        () = send.closed() => None,
    }
}

fn literal(endpoint: &Endpoint) -> Option<SocketAddr> {
    let address: IpAddr = endpoint.host.parse().ok()?;
    Some(SocketAddr::new(address, endpoint.port))
}

/// Keeps the known order if the addresses are the same: many servers rotate their answers.
fn replace(known: &mut Vec<SocketAddr>, addresses: Vec<SocketAddr>) {
    let as_set = |list: &[SocketAddr]| list.iter().copied().collect::<HashSet<_>>();
    if as_set(known) != as_set(&addresses) {
        *known = addresses;
    }
}

/// Each address once, at its first position.
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
    /// Looks up the name for as long as the receiver exists: on request, and repeatedly until it succeeds. If a
    /// lookup fails, the previous addresses stay.
    async fn follow(self, mut nudges: Nudges, answer: mpsc::Sender<Answer>) {
        let mut retry = FIRST_RETRY;
        loop {
            nudges.forget();
            let result = self.lookup(retry, &answer).await;
            let found = result.is_ok();
            let wait = if found { Duration::MAX } else { retry };
            if let Err(error) = &result {
                self.log_failure(error, wait);
            }
            retry = if found { FIRST_RETRY } else { (retry * 2).min(LAST_RETRY) };
            let result = result.map_err(|error| self.failure(&error));
            if answer.send((self.place, result)).await.is_err() || !nudges.wait(wait, found).await {
                return;
            }
        }
    }

    /// Waits for the result, however long that takes. A name server that is slow is reported in the meantime.
    async fn lookup(
        &self,
        retry: Duration,
        answer: &mpsc::Sender<Answer>,
    ) -> io::Result<Vec<SocketAddr>> {
        let Endpoint { host, port } = self.endpoint.clone();
        let query = move || (host, port).to_socket_addrs().map(usable);
        let mut lookup = pin!(self.thread.run(query));
        let addresses = match timeout(LOOKUP_TIMEOUT, &mut lookup).await {
            Ok(result) => result??,
            Err(late) => {
                let error = io::Error::from(late);
                self.log_failure(&error, retry);
                // If nobody listens any more, the caller finds out.
                let _gone = answer.send((self.place, Err(self.failure(&error)))).await;
                lookup.await??
            }
        };
        if addresses.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        tracing::debug!(endpoint = %self.endpoint, ?addresses, "resolved");
        Ok(addresses)
    }

    fn failure(&self, error: &io::Error) -> Failure {
        Failure { endpoint: self.endpoint.to_string(), error: error.to_string() }
    }

    /// The first failure in a row is a warning, the others are debug messages.
    fn log_failure(&self, error: &io::Error, again: Duration) {
        let (endpoint, seconds) = (&self.endpoint, again.as_secs());
        if again == FIRST_RETRY {
            tracing::warn!("cannot resolve {endpoint}: {error}; trying until it works");
        } else {
            tracing::debug!("cannot resolve {endpoint}: {error}; again in {seconds} s");
        }
    }
}

impl Nudges {
    /// Discards the events so far.
    fn forget(&mut self) {
        self.nudged.borrow_and_update();
        self.changed.borrow_and_update();
    }

    /// Waits until the next lookup, at most for `wait`; returns whether the resolver still exists. A change of
    /// the network shortens the pause only if the name was not `found`.
    async fn wait(&mut self, wait: Duration, found: bool) -> bool {
        if found {
            return rest(&mut self.nudged, LOOKUPS_APART, wait).await;
        }
        tokio::select! {
            listened = rest(&mut self.nudged, LOOKUPS_APART, wait) => listened,
            listened = rest(&mut self.changed, LOOKUPS_APART, wait) => listened,
        }
    }
}

/// The usable addresses of an answer, in a limited number. The families alternate, beginning with that of the
/// first address, so that a family that does not work costs little time (RFC 8305). Addresses to which no
/// datagram can be sent are left out.
fn usable(answer: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    // A hosts file may contain an IPv4 address in IPv6 notation.
    let sendable = |at: &SocketAddr| !at.ip().is_unspecified() && !at.ip().is_multicast();
    let all: Vec<_> = answer.map(unmapped).filter(sendable).collect();
    let first_is_v4 = all.first().is_some_and(SocketAddr::is_ipv4);
    let (first, other): (Vec<_>, Vec<_>) = all.iter().partition(|at| at.is_ipv4() == first_is_v4);
    let mut in_turn = Vec::new();
    for place in 0..first.len().max(other.len()) {
        in_turn.extend(first.get(place).into_iter().chain(other.get(place)));
    }
    in_turn.truncate(MAX_ADDRESSES);
    in_turn
}

/// Waits for `wait`, or only for `apart` if a lookup is requested. Returns whether the sender of requests still
/// exists.
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

    fn lookups() -> Worker {
        Worker::start("lookups", || Ok(())).unwrap()
    }

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
        let mut resolver = spawn(endpoints(&all), &lookups(), None).await.unwrap();
        assert_eq!(soon(resolver.changed()).await, Lookup::Addresses(addresses(&all[..2])));
    }

    #[tokio::test]
    async fn a_name_keeps_its_place() {
        let mut resolver =
            spawn(endpoints(&["localhost:9", "192.0.2.7:1"]), &lookups(), None).await.unwrap();
        assert_eq!(soon(resolver.changed()).await, Lookup::Addresses(addresses(&["192.0.2.7:1"])));
        let Lookup::Addresses(both) = soon(resolver.changed()).await else { panic!("it fails") };
        assert!(both[0].ip().is_loopback() && both[0].port() == 9, "{both:?}");
        assert_eq!(both.last(), addresses(&["192.0.2.7:1"]).first());
    }

    #[tokio::test]
    async fn failures_are_kept_until_they_are_over() {
        let (answer, mut answers) = mpsc::channel(1);
        let (send, mut lookups) = mpsc::channel(8);
        let known = Known { names: Vec::new(), found: Vec::new() };
        let found = Collected { found: vec![Vec::new()], known: Arc::new(Mutex::new(known)) };
        let failure = Failure { endpoint: "b.example.net:1".into(), error: "no".into() };
        let task = tokio::spawn(async move { follow_answers(found, &mut answers, send).await });
        answer.send((0, Err(failure.clone()))).await.unwrap();
        answer.send((0, Ok(addresses(&["192.0.2.7:1"])))).await.unwrap();
        drop(answer);
        task.await.unwrap();
        assert_eq!(lookups.recv().await, Some(Lookup::Failed(vec![failure])));
        assert_eq!(lookups.recv().await, Some(Lookup::Failed(Vec::new())));
        let found = Lookup::Addresses(addresses(&["192.0.2.7:1"]));
        assert_eq!(lookups.recv().await, Some(found));
    }

    #[tokio::test]
    async fn nothing_to_look_up_stays_silent() {
        let mut resolver = spawn(Vec::new(), &lookups(), None).await.unwrap();
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

    #[tokio::test]
    async fn an_ipv4_address_in_ipv6_spelling_is_found_as_what_it_is() {
        let endpoint = Endpoint { host: "::ffff:127.0.0.1".into(), port: 9 };
        let name = Name { endpoint, place: 0, thread: lookups() };
        let (answer, _answers) = mpsc::channel(1);
        let found = name.lookup(FIRST_RETRY, &answer).await;
        assert_eq!(found.unwrap(), addresses(&["127.0.0.1:9"]));
    }

    #[test]
    fn the_families_take_turns_and_an_answer_is_cut() {
        let answer = ["[2001:db8::1]:1", "[2001:db8::2]:1", "[::]:1", "192.0.2.1:1", "224.0.0.1:1"];
        let found = usable(addresses(&answer).into_iter());
        assert_eq!(found, addresses(&["[2001:db8::1]:1", "192.0.2.1:1", "[2001:db8::2]:1"]));
        let many = (1..=64).map(|last| SocketAddr::from(([192, 0, 2, last], 1)));
        assert_eq!(usable(many).len(), MAX_ADDRESSES);
        assert_eq!(usable(std::iter::empty()), []);
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
