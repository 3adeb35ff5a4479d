//! Captures packets for a client of the control socket, one client at a time.

use std::net::{IpAddr, SocketAddr};

use vpnd_crypto::Algorithm;
use vpnd_tun::Mode;
use vpnd_tunnel::clock;
use vpnd_tunnel::tap::Wanted;
use vpnd_tunnel::udp::source_towards;

use super::Shell;
use super::captured::Running;
use crate::config::{Peer, Protocol};
use crate::control::{AskCapture, Begun, Feed};
use crate::status::{Capture, SCHEMA};

impl Shell {
    /// Begins a capture.
    ///
    /// # Errors
    /// If another one runs, or if it wants keys and may not have them.
    pub(super) fn capture(&mut self, wanted: AskCapture) -> Result<(Begun, Feed), String> {
        let AskCapture { inner, outer, keys, snaplen } = wanted;
        if self.capture.as_mut().is_some_and(Running::has_ended) {
            self.end_capture();
        }
        if self.capture.is_some() {
            return Err("a capture of this tunnel runs already; only one can run at a time".into());
        }
        if !(inner || outer) || snaplen == 0 {
            return Err("a capture of nothing".into());
        }
        if keys && !self.around.running.service.allow_key_log {
            return Err(KEYS_REFUSED.into());
        }
        let (feed, ended) = Feed::start(self.engine.tap(), Wanted { inner, outer }, snaplen);
        let what = Capture { inner, outer, keys };
        self.capture = Some(Running::new(what, ended));
        self.log_capture(what);
        if keys {
            self.plane.start_key_log(clock::now());
            // The static keys come before the peer's next initiation.
            self.tap_keys();
        }
        Ok((self.begun(keys), feed))
    }

    /// The client has left.
    pub(super) fn end_capture(&mut self) {
        self.engine.tap().stop();
        self.plane.stop_key_log();
        self.capture = None;
        tracing::info!("the capture has ended");
    }

    /// What is captured at present.
    pub(super) fn captured(&self) -> Option<Capture> {
        self.capture.as_ref().map(Running::what)
    }

    /// Captures a datagram of the control plane that is about to be sent, behind the keys of its handshake.
    pub(super) fn tap_datagram(&mut self, to: SocketAddr, from: Option<IpAddr>) {
        if !self.engine.tap().wanted().any() {
            return;
        }
        self.tap_keys();
        let from = from.or_else(|| source_towards(to, &self.around.egress).ok());
        self.engine.capture(to, from, &self.datagram);
    }

    fn tap_keys(&mut self) {
        while let Some(lines) = self.plane.poll_key_log() {
            self.engine.tap().keys(&lines);
        }
    }

    fn log_capture(&self, Capture { keys, .. }: Capture) {
        if keys {
            tracing::warn!(
                "root captures this tunnel's packets together with its private key, its preshared key and the keys of \
                 each handshake: whoever gets that capture can decrypt the sessions from now on and speak for this end. \
                 [service] allow_key_log permits this"
            );
        } else {
            tracing::info!("root captures this tunnel's packets");
        }
    }

    fn begun(&self, keys: bool) -> Begun {
        let (config, peer) = (&self.around.running, self.plane.addresses().0);
        let source = peer.and_then(|peer| source_towards(peer, &self.around.egress).ok());
        Begun {
            schema: SCHEMA,
            device: self.around.about.device.name.clone(),
            ethernet: config.interface.mode == Mode::Tap,
            peer: peer.map(|peer| peer.ip()),
            source,
            notes: if keys { notes(&config.peer) } else { Vec::new() },
        }
    }
}

/// What Wireshark, which knows WireGuard alone, cannot decrypt.
fn notes(peer: &Peer) -> Vec<String> {
    if peer.protocol == Protocol::WireGuard {
        return Vec::new();
    }
    let post_quantum = peer.post_quantum.then_some("post_quantum");
    let cipher = (peer.cipher != Algorithm::ChaCha20Poly1305).then_some("cipher");
    let because: Vec<_> = [post_quantum, cipher].into_iter().flatten().collect();
    if because.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "the keys decrypt the handshakes alone, because data is not WireGuard's here ([peer] {}); capture with --inner \
         what the datagrams contain",
        because.join(", ")
    )]
}

const KEYS_REFUSED: &str = "the keys of this tunnel may not be recorded; [service] allow_key_log = true and a restart \
                            permit it to root";
