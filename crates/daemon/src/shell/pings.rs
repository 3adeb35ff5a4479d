//! PINGs to the peer that a client of the control socket waits for.

use tokio::sync::oneshot;
use vpnd_protocol::peer::{Echo, NotAsked};
use vpnd_tunnel::clock;

use super::Shell;
use crate::config::Protocol;
use crate::control::Ping;

/// Who waits for the answer to a PING, by the number of the PING.
#[derive(Default)]
pub(super) struct Pings(Vec<(u32, Reply)>);

type Reply = oneshot::Sender<Result<Ping, String>>;

impl Pings {
    fn wait(&mut self, sequence: u32, reply: Reply) {
        // Clients leave when no answer comes.
        self.0.retain(|(_, reply)| !reply.is_closed());
        self.0.push((sequence, reply));
    }

    fn take(&mut self, sequence: u32) -> Option<Reply> {
        let at = self.0.iter().position(|(waiting, _)| *waiting == sequence)?;
        Some(self.0.swap_remove(at).1)
    }
}

impl Shell {
    /// Sends a PING to the peer. The client may have left.
    pub(super) fn ping(&mut self, reply: Reply) {
        let asked = match self.around.running.peer.protocol {
            Protocol::WireGuard => Err(NotAsked::WireGuard),
            Protocol::Vpnd => self.plane.ping(clock::now()),
        };
        let answer = match asked {
            Ok(sequence) => return self.pings.wait(sequence, reply),
            Err(NotAsked::NoSession) => Ok(Ping {
                not_asked: Some("there is no session; a handshake is initiated".to_owned()),
                ..Ping::UNANSWERED
            }),
            Err(NotAsked::WireGuard) => Err(NO_PING.to_owned()),
        };
        drop(reply.send(answer));
    }

    /// Reports the peer's answer.
    pub(super) fn echoed(&mut self, Echo { sequence, round_trip }: Echo) {
        let Some(reply) = self.pings.take(sequence) else { return };
        let endpoint = self.plane.addresses().0.map(|at| self.diagnostics.zones.show(at));
        let round_trip_ms = Some(round_trip.as_secs_f64() * 1000.0);
        drop(reply.send(Ok(Ping { round_trip_ms, endpoint, ..Ping::UNANSWERED })));
    }
}

const NO_PING: &str = "this tunnel speaks WireGuard's protocol, in which a peer answers no ping; ask a host behind it \
                       by its inner address: `ping ADDRESS`, or speak protocol = \"vpnd\" at both ends";
