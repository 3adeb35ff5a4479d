//! Handles requests from the WireGuard socket.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vpnd_protocol::peer::PeerStatus;
use vpnd_tunnel::clock;

use super::Shell;
use crate::config::Config;
use crate::uapi::{Asked, Changes, InForce, Refused, Set, Shown, judge};

impl Shell {
    /// Answers a request; the client may have left.
    pub(super) fn answer_wireguard(&mut self, asked: Asked) {
        match asked {
            Asked::Get(reply) => drop(reply.send(self.shown())),
            Asked::Set(set, reply) => drop(reply.send(self.set(*set))),
        }
    }

    fn shown(&mut self) -> Shown {
        let peer = self.plane.status(clock::now());
        let hold = &self.around.hold;
        Shown {
            listen_port: self.engine.local_port(),
            fwmark: self.around.egress.mark,
            peer: Some(peer.keys[1]),
            preshared: hold.preshared.copy(),
            endpoint: self.known_endpoint(&peer).map(|at| self.diagnostics.zones.show(at)),
            handshake: peer.last_handshake.map(since_1970),
            sent: peer.traffic.bytes_sent,
            received: peer.traffic.bytes_received,
            keepalive: hold.keepalive.map_or(0, |interval| interval.as_secs()),
            allowed_ips: self.around.running.peer.allowed_ips.clone(),
        }
    }

    /// The address in use, or else the one that will be tried first.
    fn known_endpoint(&self, peer: &PeerStatus) -> Option<SocketAddr> {
        peer.endpoint.or_else(|| self.plane.addresses().1.first().copied())
    }

    /// Carries out a request, or nothing of it.
    fn set(&mut self, set: Set) -> Result<(), Refused> {
        let peer = self.plane.status(clock::now());
        let now = InForce {
            own: peer.keys[0],
            peer: peer.keys[1],
            listen_port: self.engine.local_port(),
            fwmark: self.around.egress.mark,
            mark_may_change: may_change_mark(&self.around.running),
            preshared: &self.around.hold.preshared,
            keepalive: self.around.hold.keepalive,
            endpoint: self.known_endpoint(&peer),
            allowed_ips: &self.around.running.peer.allowed_ips,
        };
        let Changes { preshared, endpoint, keepalive, fwmark } = judge(set, &now)?;
        // This comes first, because it is the only change that the kernel may refuse.
        fwmark.map_or(Ok(()), |mark| self.set_mark(mark))?;
        keepalive.into_iter().for_each(|interval| self.set_keepalive(interval));
        endpoint.into_iter().for_each(|to| self.go_to(to));
        preshared.into_iter().for_each(|key| self.set_preshared(&key));
        Ok(())
    }

    fn set_mark(&mut self, mark: u32) -> Result<(), Refused> {
        self.engine.set_mark(mark).map_err(|error| Refused {
            errno: error.raw_os_error().unwrap_or(libc::EIO),
            about: "fwmark",
            why: format!("the mark cannot be changed to {mark:#x}: {error}"),
        })?;
        tracing::info!("the mark is {mark:#x} now, as asked on the WireGuard socket");
        self.around.egress.mark = mark;
        self.around.loops.set_mark(mark);
        self.plane.socket_changed();
        Ok(())
    }

    fn set_keepalive(&mut self, interval: Option<Duration>) {
        let shown = match interval {
            Some(interval) => format!("{}s apart", interval.as_secs()),
            None => "off".to_owned(),
        };
        tracing::info!("keepalives are {shown} now, as asked on the WireGuard socket");
        self.around.hold.keepalive = interval;
        let watch = self.around.running.watches_with(interval);
        self.plane.set_keepalive(clock::now(), interval, watch);
    }

    fn go_to(&mut self, to: SocketAddr) {
        self.diagnostics.zones.learn(to);
        let shown = self.diagnostics.zones.show(to);
        tracing::info!("the peer is at {shown} now, as asked on the WireGuard socket");
        self.around.hold.endpoint = Some(to);
        self.plane.go_to(clock::now(), to);
    }

    fn set_preshared(&mut self, key: &vpnd_crypto::PresharedKey) {
        tracing::info!("another preshared key, as asked on the WireGuard socket");
        self.around.hold.keep(key);
        self.around.about.preshared_key = key.as_bytes().iter().any(|byte| *byte != 0);
        self.plane.set_preshared(clock::now(), key);
    }
}

/// Rules, a kill switch or a table of ours would contain the old mark.
fn may_change_mark(config: &Config) -> bool {
    !config.leads_everywhere() && !config.has_kill_switch() && !config.service.firewall
}

fn since_1970(age: Duration) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(age)
}
