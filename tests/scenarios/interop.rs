//! vpnd and independent implementations: each as initiator and as responder, with and without a preshared
//! key.

use anyhow::{Result, ensure};
use vpnd_tests::capture::{Capture, Datagram, Seen};
use vpnd_tests::peer::{Kind, Peer};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::{Key, Lab, Vpnd, Wire, site};

use crate::tunnel::carries_everything;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let roles = [(true, "vpnd initiates"), (false, "vpnd responds")];
    let secrets = [(false, "no psk"), (true, "psk")];
    let mut all = Vec::new();
    for kind in Kind::ALL {
        for (initiates, role) in roles {
            for (preshared, secret) in secrets {
                let name = format!("interop::{kind}, {role}, {secret}");
                let body = move |lab: &Lab| both_ways(lab, kind, initiates, preshared);
                all.push(Scenario::new(name, Cost::Works, body));
            }
        }
    }
    all
}

/// A is vpnd, B the peer.
fn both_ways(lab: &Lab, kind: Kind, initiates: bool, preshared: bool) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (mut a, mut b) = site::pair()?;
    if preshared {
        let key = Key::preshared()?;
        (a, b) = (a.with_preshared(&key), b.with_preshared(&key));
    }
    if initiates {
        a = a.towards(Wire::B4);
    } else {
        b = b.towards(Wire::A4);
    }
    let capture = Capture::start(&wire.b, "eth0", 4)?;
    let peer = Peer::start(kind, &wire.b, &b)?;
    let vpnd = Vpnd::start(&wire.a, &a)?;
    carries_everything(&wire, initiates)?;
    let status = vpnd.status()?;
    ensure!(status.is_up() && status.handshakes() == 1, "vpnd says {status}");
    let initiator = if initiates { Wire::A4 } else { Wire::B4 };
    let told = peer.handshakes();
    Ok(format!("{}; the peer's log has {told} handshake", messages(&capture.stop()?, initiator)?))
}

fn messages(seen: &Seen, initiator: &str) -> Result<String> {
    let initiations = seen.count(|datagram| datagram.kind() == Some(1));
    let theirs = |datagram: &Datagram| datagram.from.to_string() == initiator;
    let expected = seen.count(|datagram| datagram.kind() == Some(1) && theirs(datagram));
    ensure!(expected == initiations && expected > 0, "{initiator} did not initiate alone");
    let data = seen.count(|datagram| datagram.kind() == Some(4));
    let strange = seen.count(|datagram| !is_wireguard(datagram));
    ensure!(strange == 0, "{strange} datagrams on the cable are none of WireGuard's");
    Ok(format!("{initiations} initiation, {data} data messages"))
}

/// Whether it has a type and a length that WireGuard has. What vpnd sends as transport data is whole blocks
/// of 16, or fills the device's MTU; boringtun does not pad.
fn is_wireguard(datagram: &Datagram) -> bool {
    const OVERHEAD: usize = 32;
    const MTU: usize = 1420;
    match datagram.kind() {
        Some(1) => datagram.len == 148,
        Some(2) => datagram.len == 92,
        Some(4) => {
            let padded = |len: usize| len.is_multiple_of(16) || len == MTU;
            let vpnds = datagram.from.to_string() == Wire::A4;
            datagram.len.checked_sub(OVERHEAD).is_some_and(|len| !vpnds || padded(len))
        }
        _ => false,
    }
}
