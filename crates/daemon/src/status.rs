//! The state of a tunnel, in the schema of `vpnd status --json`, which is stable: fields are added, never
//! changed or removed.

mod hint;
mod recent;
pub(crate) mod size;
mod state;
pub(crate) mod text;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vpnd_device::Bypass;
use vpnd_plane::{self as plane, Loop, Trouble};
use vpnd_protocol::activity;
use vpnd_protocol::peer::{PeerStatus, Quality};
use vpnd_protocol::session::Role;
use vpnd_protocol::terms::Protocol;
use vpnd_protocol::timers::Timer;
use vpnd_tunnel::counters::Counters;

use hint::hint;

pub(crate) use crate::sandbox::Confined;
pub(crate) use hint::Fault;
pub(crate) use recent::{Lost, Recent};
pub(crate) use size::PathMtu;
pub(crate) use state::{State, explanation, summary};

/// The version of the schema.
pub(crate) const SCHEMA: u32 = 3;

/// One tunnel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) schema: u32,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) uptime_s: f64,
    pub(crate) state: State,
    /// For how long it has been in this state.
    #[serde(default)]
    pub(crate) state_changed_s: f64,
    /// Why it is `degraded`.
    #[serde(default)]
    pub(crate) reasons: Vec<String>,
    /// Whether it was asked to stop and is shutting down.
    pub(crate) stopping: bool,
    pub(crate) device: Device,
    pub(crate) peer: Peer,
    /// Whether the peer is alive, and since when.
    pub(crate) alive: bool,
    pub(crate) alive_changed_s: f64,
    /// After this time of silence the peer counts as dead.
    pub(crate) dead_after_s: f64,
    pub(crate) session: Option<Session>,
    pub(crate) last_handshake_s: Option<f64>,
    pub(crate) last_received_s: Option<f64>,
    pub(crate) attempt: Option<u32>,
    pub(crate) unconfirmed_answers: u32,
    pub(crate) path: Option<Path>,
    /// The quality of the path in the last minutes, over all sessions.
    #[serde(default)]
    pub(crate) recent: Recent,
    /// How large packets on the path may be.
    #[serde(default)]
    pub(crate) path_mtu: Option<PathMtu>,
    /// The path marks every packet for congestion, so its marks are ignored.
    pub(crate) ecn_ignored: bool,
    pub(crate) traffic: Traffic,
    pub(crate) drops: BTreeMap<String, u64>,
    pub(crate) next: Option<Next>,
    /// The route that would lead the tunnel's own datagrams into the tunnel.
    pub(crate) leads_back: Option<LeadsBack>,
    pub(crate) hint: Option<String>,
    /// Addresses, rules and routes that the device should have but does not have.
    pub(crate) missing: Vec<Missing>,
    /// Routes of others through which packets bypass a kill switch.
    pub(crate) bypassed: Vec<Bypassed>,
    /// The rights that the main thread has given up.
    #[serde(default)]
    pub(crate) sandbox: Option<Confined>,
    /// The capture that runs.
    #[serde(default)]
    pub(crate) capture: Option<Capture>,
    /// Whether root may record the keys of sessions.
    #[serde(default)]
    pub(crate) key_log_allowed: bool,
}

/// What is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Capture {
    pub(crate) inner: bool,
    pub(crate) outer: bool,
    /// Whether the keys of handshakes are recorded too.
    pub(crate) keys: bool,
}

/// One of our routes, and the route that takes its packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bypassed {
    pub(crate) what: String,
    pub(crate) by: String,
    /// Whether it takes only some of them.
    pub(crate) part: bool,
    /// Whether `by` leads into the tunnel, and `what` is a network to which this host is connected.
    pub(crate) into_tunnel: bool,
}

/// One missing address, rule or route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Missing {
    pub(crate) what: String,
    pub(crate) why: String,
}

/// The device and the port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) mode: String,
    pub(crate) mtu: u16,
    /// The number of queues to read from.
    pub(crate) queues: usize,
    pub(crate) listen_port: u16,
    pub(crate) public_key: String,
}

/// The other end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) public_key: String,
    pub(crate) protocol: String,
    pub(crate) preshared_key: bool,
    pub(crate) endpoint: Option<String>,
    pub(crate) handshakes: u64,
    /// The peer's release, if it announces one.
    pub(crate) release: Option<String>,
    pub(crate) mtu: Option<u16>,
}

/// The quality of the path, as the peers measure it on the current session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Path {
    pub(crate) round_trip_ms: f64,
    /// Datagrams sent to the peer, and how many of them have not arrived.
    pub(crate) tx_sent: u64,
    pub(crate) tx_lost: u64,
    /// Datagrams sent by the peer, and how many of them have not arrived.
    pub(crate) rx_sent: u64,
    pub(crate) rx_lost: u64,
}

impl From<Quality> for Path {
    fn from(quality: Quality) -> Self {
        Self {
            round_trip_ms: quality.round_trip.as_secs_f64() * 1000.0,
            tx_sent: quality.outward.sent,
            tx_lost: quality.outward.missing(),
            rx_sent: quality.inward.sent,
            rx_lost: quality.inward.missing(),
        }
    }
}

/// The session that seals packets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) role: String,
    pub(crate) age_s: f64,
    /// The protocol of the session.
    pub(crate) protocol: Option<String>,
}

/// Counters of the packets through the tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Traffic {
    pub(crate) rx_bytes: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) rx_packets: u64,
    pub(crate) tx_packets: u64,
    pub(crate) too_big: u64,
}

/// The next timer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Next {
    pub(crate) timer: String,
    pub(crate) in_s: f64,
}

/// A route that leads the tunnel's datagrams into the tunnel: the route, and its device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeadsBack {
    /// The peer's address that is not used because of it.
    pub(crate) endpoint: Option<String>,
    pub(crate) route: Option<String>,
    pub(crate) device: Option<String>,
    /// Whether it leads there through another tunnel.
    pub(crate) through_others: bool,
}

impl LeadsBack {
    fn of(trouble: &Trouble) -> Option<Self> {
        let (endpoint, route) = match trouble {
            Trouble::Loop(Loop { to, route }) => (Some(to.to_string()), Some(route)),
            Trouble::Back(route) | Trouble::Nested(route) => (None, route.as_ref()),
            _ => return None,
        };
        Some(Self {
            endpoint,
            route: route.map(ToString::to_string),
            device: route.map(|route| route.device.clone()),
            through_others: matches!(trouble, Trouble::Nested(_)),
        })
    }
}

/// Properties that do not change while a tunnel runs.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) name: String,
    pub(crate) device: Device,
    pub(crate) protocol: String,
    pub(crate) preshared_key: bool,
    /// The endpoints as written in the configuration.
    pub(crate) endpoints: Vec<String>,
    /// After this time of silence the peer counts as dead.
    pub(crate) dead_after: Duration,
    pub(crate) sandbox: Confined,
}

impl Status {
    /// The status of a running tunnel.
    pub(crate) fn new(
        about: &About,
        uptime: Duration,
        (state, age): (plane::State, Duration),
        peer: &PeerStatus,
        drops: &Counters,
        fault: Option<Fault<'_>>,
    ) -> Self {
        let [own, remote] = peer.keys;
        let unresolved = peer.endpoint.is_none() && !about.endpoints.is_empty();
        let drops = drops.iter().map(|(reason, count)| (reason.name().to_owned(), count));
        Self {
            schema: SCHEMA,
            name: about.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: uptime.as_secs_f64(),
            state: State(Some(state.kind)),
            state_changed_s: age.as_secs_f64(),
            reasons: state::names(state.reasons),
            stopping: false,
            device: Device { public_key: own.to_string(), ..about.device.clone() },
            peer: Peer::new(about, peer),
            alive: peer.alive.0,
            alive_changed_s: peer.alive.1.as_secs_f64(),
            dead_after_s: about.dead_after.as_secs_f64(),
            session: peer.session.map(|(role, age)| Session::new(role, age, peer.protocol)),
            last_handshake_s: peer.last_handshake.map(|age| age.as_secs_f64()),
            last_received_s: peer.last_received.map(|age| age.as_secs_f64()),
            attempt: peer.attempt,
            unconfirmed_answers: peer.unconfirmed_answers,
            path: peer.quality.map(Path::from),
            recent: peer.recent.into(),
            path_mtu: None,
            ecn_ignored: false,
            traffic: Traffic::from(peer.traffic),
            drops: drops.collect(),
            next: peer.next.map(|(wait, timer)| Next {
                timer: timer_name(timer).to_owned(),
                in_s: wait.as_secs_f64(),
            }),
            leads_back: fault.and_then(|fault| LeadsBack::of(fault.trouble)),
            hint: hint(&state, fault, &remote.to_string())
                .or_else(|| unresolved.then(|| hint::unresolved(&about.endpoints))),
            missing: Vec::new(),
            bypassed: Vec::new(),
            sandbox: Some(about.sandbox.clone()),
            capture: None,
            key_log_allowed: false,
        }
    }
}

impl Status {
    /// The same status with this value.
    pub(crate) fn with_ecn_ignored(self, ecn_ignored: bool) -> Self {
        Self { ecn_ignored, ..self }
    }

    /// The same status with the size of packets on the path.
    pub(crate) fn with_path_mtu(self, path_mtu: Option<PathMtu>) -> Self {
        Self { path_mtu, ..self }
    }

    /// The same status with what is captured, and whether keys may be.
    pub(crate) fn with_capture(self, capture: Option<Capture>, key_log_allowed: bool) -> Self {
        Self { capture, key_log_allowed, ..self }
    }

    /// The same status with missing addresses, rules and routes.
    pub(crate) fn lacking(mut self, missing: &[vpnd_device::Missing]) -> Self {
        let one =
            |one: &vpnd_device::Missing| Missing { what: one.what.clone(), why: one.why.clone() };
        self.missing = missing.iter().map(one).collect();
        self
    }

    /// The same status with routes that bypass the kill switch.
    pub(crate) fn bypassed_by(mut self, bypassed: &[Bypass]) -> Self {
        let one = |Bypass { what, by, is_part, into_tunnel, .. }: &Bypass| Bypassed {
            what: what.clone(),
            by: by.clone(),
            part: *is_part,
            into_tunnel: *into_tunnel,
        };
        self.bypassed = bypassed.iter().map(one).collect();
        self
    }
}

impl Peer {
    fn new(about: &About, peer: &PeerStatus) -> Self {
        let greeting = peer.greeting.as_ref();
        Self {
            public_key: peer.keys[1].to_string(),
            protocol: about.protocol.clone(),
            preshared_key: about.preshared_key,
            endpoint: peer.endpoint.map(|endpoint| endpoint.to_string()),
            handshakes: peer.handshakes,
            release: greeting.map(|greeting| greeting.release.clone()),
            mtu: greeting.map(|greeting| greeting.mtu),
        }
    }
}

impl From<activity::Traffic> for Traffic {
    fn from(traffic: activity::Traffic) -> Self {
        Self {
            rx_bytes: traffic.bytes_received,
            tx_bytes: traffic.bytes_sent,
            rx_packets: traffic.packets_received,
            tx_packets: traffic.packets_sent,
            too_big: traffic.too_big,
        }
    }
}

impl Session {
    fn new(role: Role, age: Duration, protocol: Option<Protocol>) -> Self {
        let role = match role {
            Role::Initiator => "initiator",
            Role::Responder => "responder",
        };
        let protocol = protocol.map(|protocol| protocol.to_string());
        Self { role: role.to_owned(), age_s: age.as_secs_f64(), protocol }
    }
}

const fn timer_name(timer: Timer) -> &'static str {
    match timer {
        Timer::Initiate => "initiate",
        Timer::Upgrade => "upgrade",
        Timer::Floor => "floor",
        Timer::Roam => "roam",
        Timer::NoAnswer => "no_answer",
        Timer::KeepaliveOwed => "keepalive_owed",
        Timer::PersistentKeepalive => "persistent_keepalive",
        Timer::Silence => "silence",
        Timer::Probe => "probe",
        Timer::KeyExpiry => "key_expiry",
        Timer::PathMtu => "path_mtu",
        Timer::Poll => "poll",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;
    use vpnd_crypto::PublicKey;
    use vpnd_plane::{Kind, Reasons};
    use vpnd_protocol::activity;
    use vpnd_protocol::drop_reason::DropReason;
    use vpnd_protocol::peer::{self, BothDirections, Greeting, Loss, RoundTrip};
    use vpnd_protocol::time::BootTime;

    /// A tunnel that has run for three hours and twelve minutes.
    pub(crate) fn sample() -> Status {
        let counters = Counters::default();
        counters.count(DropReason::Replayed, 2);
        let mut status = Status::new(
            &about(),
            Duration::from_secs(11_520),
            state(Kind::Up),
            &up(),
            &counters,
            None,
        );
        status.pid = 17;
        status.version = "0.1.0".into();
        status
    }

    fn about() -> About {
        About {
            name: "site-a".into(),
            device: Device {
                name: "vpn-site-a".into(),
                mode: "tun".into(),
                mtu: 1420,
                queues: 4,
                listen_port: 51820,
                public_key: "ours".into(),
            },
            protocol: "wireguard".into(),
            preshared_key: true,
            endpoints: vec!["b.example.net:51820".into()],
            dead_after: Duration::from_secs(60),
            sandbox: Confined {
                system_calls: "errno".into(),
                files: crate::sandbox::Files::Restricted,
                memory_locked: true,
            },
        }
    }

    fn state(kind: Kind) -> (plane::State, Duration) {
        let (reasons, since) = (Reasons::default(), BootTime::default());
        (plane::State { kind, reasons, since }, Duration::from_secs(9000))
    }

    fn up() -> PeerStatus {
        PeerStatus {
            alive: (true, Duration::from_secs(9000)),
            endpoint: Some("198.51.100.7:51820".parse().unwrap()),
            session: Some((Role::Initiator, Duration::from_secs(71))),
            handshakes: 97,
            last_handshake: Some(Duration::from_secs(71)),
            last_received: Some(Duration::from_millis(2500)),
            attempt: None,
            unconfirmed_answers: 0,
            traffic: activity::Traffic {
                bytes_received: 1 << 30,
                bytes_sent: 1536,
                packets_received: 800_000,
                packets_sent: 12,
                too_big: 0,
            },
            protocol: Some(Protocol::WireGuard),
            keys: [[1; 32], [2; 32]].map(PublicKey::from_bytes),
            greeting: Some(Greeting {
                release: "vpnd 0.1.0".into(),
                features: 0,
                mtu: 1420,
                mac: None,
            }),
            quality: Some(Quality {
                round_trip: Duration::from_micros(12_500),
                outward: Loss { sent: 200, arrived: 199 },
                inward: Loss { sent: 100, arrived: 100 },
            }),
            recent: peer::Recent {
                round_trip: Some(RoundTrip {
                    smoothed: Duration::from_millis(12),
                    jitter: Duration::from_micros(500),
                }),
                minute: BothDirections {
                    outward: Some(Loss { sent: 70, arrived: 69 }),
                    inward: Some(Loss { sent: 60, arrived: 60 }),
                },
                ten_minutes: BothDirections {
                    outward: Some(Loss { sent: 500, arrived: 498 }),
                    inward: None,
                },
            },
            path_size: None,
            next: Some((Duration::from_secs(3), Timer::PersistentKeepalive)),
        }
    }

    #[test]
    fn the_schema_stands() {
        let shown = serde_json::to_value(sample()).unwrap();
        let expected = json!({
            "schema": 3,
            "name": "site-a",
            "version": "0.1.0",
            "pid": 17,
            "uptime_s": 11520.0,
            "state": "up",
            "state_changed_s": 9000.0,
            "reasons": [],
            "stopping": false,
            "device": {
                "name": "vpn-site-a",
                "mode": "tun",
                "mtu": 1420,
                "queues": 4,
                "listen_port": 51820,
                "public_key": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
            },
            "peer": {
                "public_key": "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
                "protocol": "wireguard",
                "preshared_key": true,
                "endpoint": "198.51.100.7:51820",
                "handshakes": 97,
                "release": "vpnd 0.1.0",
                "mtu": 1420,
            },
            "alive": true,
            "alive_changed_s": 9000.0,
            "dead_after_s": 60.0,
            "session": { "role": "initiator", "age_s": 71.0, "protocol": "wireguard" },
            "last_handshake_s": 71.0,
            "last_received_s": 2.5,
            "attempt": null,
            "unconfirmed_answers": 0,
            "path": {
                "round_trip_ms": 12.5,
                "tx_sent": 200,
                "tx_lost": 1,
                "rx_sent": 100,
                "rx_lost": 0,
            },
            "recent": {
                "round_trip_ms": 12.0,
                "jitter_ms": 0.5,
                "minute": { "tx_sent": 70, "tx_lost": 1, "rx_sent": 60, "rx_lost": 0 },
                "ten_minutes": { "tx_sent": 500, "tx_lost": 2, "rx_sent": null, "rx_lost": null },
            },
            "path_mtu": null,
            "ecn_ignored": false,
            "traffic": {
                "rx_bytes": 1 << 30,
                "tx_bytes": 1536,
                "rx_packets": 800_000,
                "tx_packets": 12,
                "too_big": 0,
            },
            "drops": shown["drops"],
            "next": { "timer": "persistent_keepalive", "in_s": 3.0 },
            "leads_back": null,
            "hint": null,
            "missing": [],
            "bypassed": [],
            "sandbox": { "system_calls": "errno", "files": "restricted", "memory_locked": true },
            "capture": null, "key_log_allowed": false,
        });
        assert_eq!(shown, expected);
        let drops = shown["drops"].as_object().unwrap();
        assert_eq!(drops.len(), DropReason::ALL.len());
        assert_eq!((&drops["replayed"], &drops["forged"]), (&json!(2), &json!(0)));
    }

    #[test]
    fn a_later_release_may_say_more() {
        let mut shown = serde_json::to_value(sample()).unwrap();
        shown["state"] = "asleep".into();
        shown["rtt_ms"] = 14.into();
        let status: Status = serde_json::from_value(shown).unwrap();
        assert_eq!(status, Status { state: State(None), ..sample() });
    }

    #[test]
    fn a_name_that_does_not_resolve_is_said() {
        let peer = PeerStatus { endpoint: None, ..up() };
        let (state, uptime) = (state(Kind::Connecting), Duration::from_secs(1));
        let status = Status::new(&about(), uptime, state, &peer, &Counters::default(), None);
        assert_eq!(status.state, State(Some(Kind::Connecting)));
        assert!(status.hint.unwrap().contains("b.example.net:51820 does not resolve"));
    }
}
