//! Two vpnd with `protocol = "vpnd"`: every matching profile, every mismatch, packets larger than the path's
//! MTU, and the announcement of an end that stops.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, ensure};
use vpnd_tests::capture::Capture;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, INNER_B6, Site};
use vpnd_tests::traffic::{ping, tcp};
use vpnd_tests::{Key, Lab, Vpnd, Wire};

use crate::tunnel::{SOON, Tunnel, carries_everything};

/// Three tries, five seconds apart, and a busy machine.
const EXPLAINED: Duration = Duration::from_secs(30);

/// What one end's configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Profile {
    cipher: &'static str,
    post_quantum: bool,
    preshared: bool,
}

impl Profile {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for cipher in ["chacha20-poly1305", "aes-256-gcm"] {
            for post_quantum in [false, true] {
                all.extend([false, true].map(|preshared| Self { cipher, post_quantum, preshared }));
            }
        }
        all
    }

    fn of(self, site: Site, key: &Key) -> Site {
        let cipher = format!("cipher = {:?}", self.cipher);
        let post_quantum = format!("post_quantum = {}", self.post_quantum);
        let site = site.speaking_vpnd(&[&cipher, &post_quantum]);
        if self.preshared { site.with_preshared(key) } else { site }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kem = if self.post_quantum { "post-quantum" } else { "classical" };
        let psk = if self.preshared { "psk" } else { "no psk" };
        write!(f, "{}, {kem}, {psk}", self.cipher)
    }
}

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    for profile in Profile::all() {
        for (family, outside) in [("v4", Wire::B4), ("v6", Wire::B6)] {
            let name = format!("profile::{profile}, over {family}");
            all.push(Scenario::new(name, Cost::Works, move |lab| fits(lab, profile, outside)));
        }
    }
    let profiles = Profile::all();
    for (number, &ours) in profiles.iter().enumerate() {
        for &theirs in &profiles[number + 1..] {
            let name = format!("profile::{ours} refuses {theirs}");
            all.push(Scenario::new(name, Cost::Waits, move |lab| misfit(lab, ours, theirs)));
        }
    }
    all.extend([
        Scenario::new("profile::vpnd with wireguard", Cost::Waits, other_protocol),
        Scenario::new("profile::an end that stops says so", Cost::Works, says_goodbye),
        Scenario::new("profile::mtu 1500 over 1500", Cost::Works, |lab| pieces(lab, 1500, 1500)),
        Scenario::new("profile::mtu 1500 over 1280", Cost::Works, |lab| pieces(lab, 1500, 1280)),
        Scenario::new("profile::mtu 9000 over 1500", Cost::Works, |lab| pieces(lab, 9000, 1500)),
        Scenario::new("profile::mtu 9000 over 1280", Cost::Works, |lab| pieces(lab, 9000, 1280)),
    ]);
    all
}

fn fits(lab: &Lab, profile: Profile, outside: &str) -> Result<String> {
    let key = Key::preshared()?;
    let Tunnel { wire, a, b } =
        Tunnel::with(lab, |a, b| (profile.of(a.towards(outside), &key), profile.of(b, &key)))?;
    carries_everything(&wire, true)?;
    for end in [&a, &b] {
        let status = end.status()?;
        ensure!(status.is_up() && status.handshakes() == 1, "it says {status}");
    }
    Ok("pings and TCP, both ways, both families".to_owned())
}

fn misfit(lab: &Lab, ours: Profile, theirs: Profile) -> Result<String> {
    let key = Key::preshared()?;
    refuse(lab, |a, b| (ours.of(a, &key), theirs.of(b, &key)))
}

fn other_protocol(lab: &Lab) -> Result<String> {
    refuse(lab, |a, b| (a.speaking_vpnd(&[]), b))
}

/// Ends that do not fit share no session, and each says what it can know of the reason.
fn refuse(lab: &Lab, misfit: impl FnOnce(Site, Site) -> (Site, Site)) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let (a, b) = misfit(a.towards(Wire::B4), b);
    let (b, a) = (Vpnd::start(&wire.b, &b)?, Vpnd::start(&wire.a, &a)?);
    let pings = ping::series(&wire.a, INNER_B4, 10, Duration::from_millis(50))?;
    ensure!(pings.answered == 0, "traffic passes: {pings:?}");
    a.wait_for_log("PSK differs", EXPLAINED)?;
    b.wait_for_log("never confirms", EXPLAINED)?;
    ensure!(!a.status()?.is_up() && !b.status()?.is_up(), "up all the same");
    Ok("no session, and both ends say what they can know".to_owned())
}

fn says_goodbye(lab: &Lab) -> Result<String> {
    let Tunnel { wire: _wire, a, mut b } =
        Tunnel::with(lab, |a, b| (a.towards(Wire::B4).speaking_vpnd(&[]), b.speaking_vpnd(&[])))?;
    b.process().terminate()?;
    a.wait_for_log("the peer announced that it is shutting down", SOON)?;
    ensure!(!a.status()?.is_up(), "still up: {}", a.status()?);
    Ok("the other end shows it at once".to_owned())
}

/// A device with packets larger than the path: all sizes cross, in both families.
fn pieces(lab: &Lab, mtu: u16, path: u16) -> Result<String> {
    let wire = Wire::new(lab)?;
    for host in [&wire.a, &wire.b] {
        host.run(&format!("ip link set eth0 mtu {path}"))?;
    }
    let (mut a, mut b) = site::pair()?;
    (a.mtu, b.mtu) = (mtu, mtu);
    let b = Vpnd::start(&wire.b, &b.speaking_vpnd(&[]))?;
    let a = Vpnd::start(&wire.a, &a.towards(Wire::B4).speaking_vpnd(&[]))?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    let capture = Capture::start(&wire.b, "eth0", 4)?;
    let sizes = (0..=24_u16).map(|step| 64 + (mtu - 64) / 24 * step);
    for size in sizes.clone() {
        for (address, headers) in [(INNER_B4, 28), (INNER_B6, 48)] {
            let pause = Duration::from_millis(10);
            let pings = ping::with_size(&wire.a, address, 3, pause, size.saturating_sub(headers))?;
            ensure!(pings.answered == 3, "{size} bytes to {address}: {pings:?}");
        }
    }
    tcp::transfer(&wire.a, &wire.b, INNER_B4, 8 << 20)?;
    tcp::transfer(&wire.b, &wire.a, site::INNER_A6, 8 << 20)?;
    let largest = usize::from(path) - 28;
    let too_large = capture.stop()?.count(|datagram| datagram.len > largest);
    ensure!(too_large == 0, "{too_large} datagrams were larger than the path");
    for end in [&a, &b] {
        ensure!(end.status()?.is_up(), "{}", end.status()?);
    }
    Ok(format!(
        "{} sizes up to {mtu} and 16 MiB of TCP, no datagram above {largest}",
        sizes.count()
    ))
}
