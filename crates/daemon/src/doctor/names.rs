//! Looks up the names in `endpoint`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use super::finding::{Check, Finding};
use crate::config::{Config, Endpoint};
use crate::netns::Netns;

/// How long a name server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The addresses of all endpoints, in order, and the names that have none.
pub(super) fn resolve(config: &Config, outside: &Netns) -> (Vec<SocketAddr>, Vec<Finding>) {
    // All at once: a name server that is not there takes long for each.
    let asked = outside.within(|| {
        let all = config.peer.endpoints.iter();
        all.map(|endpoint| (endpoint, ask(endpoint.clone()))).collect::<Vec<_>>()
    });
    let (mut addresses, mut findings) = (Vec::new(), Vec::new());
    for (endpoint, answer) in asked.unwrap_or_default() {
        let late = || Err(format!("no answer within {} s", PATIENCE.as_secs()));
        match answer.recv_timeout(PATIENCE).unwrap_or_else(|_late| late()) {
            Ok(found) => addresses.extend(found),
            Err(error) => findings.push(unresolved(endpoint, &error)),
        }
    }
    (addresses, findings)
}

type Answer = Result<Vec<SocketAddr>, String>;

/// Asks on a thread of its own, which stays in the network namespace.
fn ask(Endpoint { host, port }: Endpoint) -> Receiver<Answer> {
    let (tell, told) = channel();
    let look_up = move || {
        let found = (host, port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        let found = match found {
            Ok(all) if all.is_empty() => Err("it has no address".to_owned()),
            found => found.map_err(|error| error.to_string()),
        };
        // Nobody listens any more if it has taken too long.
        let _late = tell.send(found);
    };
    // Without a thread there is no answer.
    let _started = thread::Builder::new().spawn(look_up);
    told
}

fn unresolved(endpoint: &Endpoint, error: &str) -> Finding {
    let host = &endpoint.host;
    Finding::new(Check::Name, format!("the endpoint's name {host} does not resolve: {error}")).advice(
        format!(
            "correct [peer] endpoint, or the name servers in /etc/resolv.conf; `getent ahosts {host}` shows when it works"
        ),
    )
}
