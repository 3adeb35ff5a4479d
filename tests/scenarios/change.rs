//! Keys and profiles that change while a tunnel runs, at one end and then at the other: numbered
//! streams and a TCP connection cross without a loss.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{INNER_A6, INNER_B4, INNER_B6, Site};
use vpnd_tests::traffic::stream::{Pace, Stream};
use vpnd_tests::traffic::tcp::Trickle;
use vpnd_tests::{Key, KeyPair, Lab, Vpnd, Wire};

use crate::tunnel::{SOON, Tunnel};

const PACE: Pace = Pace { per_second: 1000, payload: 600 };
/// An end that cannot adapt is called back at its second try, five seconds after the first.
const CHANGED: Duration = Duration::from_secs(30);

/// What an end changes its profile to, and what the other end must accept beside its own.
const CHANGES: [(&str, &[&str], &str); 3] = [
    ("cipher", &["cipher = \"aes-256-gcm\""], "cipher=aes-256-gcm"),
    ("post_quantum", &["post_quantum = false"], "post_quantum=false"),
    ("protocol", &[], "protocol=wireguard"),
];

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    for (word, lines, accepted) in CHANGES {
        for (side, a_changes) in [("A", true), ("B", false)] {
            let name = format!("change::{word}, by {side}, and back");
            let body = move |lab: &Lab| profile(lab, lines, accepted, a_changes);
            all.push(Scenario::new(name, Cost::Waits, body));
        }
    }
    all.extend([
        Scenario::new("change::preshared key", Cost::Waits, preshared),
        Scenario::new("change::both identities", Cost::Waits, identities),
        Scenario::new("change::what takes a restart is refused by name", Cost::Works, refused),
    ]);
    all
}

/// Two vpnd with these settings, and everything that must survive.
pub(crate) struct Flow {
    tunnel: Tunnel,
    there: Stream,
    back: Stream,
    trickle: Trickle,
}

impl Flow {
    pub(crate) fn start(lab: &Lab, a: &Site, b: &Site) -> Result<Self> {
        let tunnel = Tunnel::with(lab, |_, _| (a.clone().towards(Wire::B4), b.clone()))?;
        let Wire { a, b } = &tunnel.wire;
        let there = Stream::start(a, b, INNER_B4, PACE)?;
        let back = Stream::start(b, a, INNER_A6, PACE)?;
        let trickle = Trickle::start(a, b, INNER_B6)?;
        thread::sleep(Duration::from_secs(1));
        Ok(Self { tunnel, there, back, trickle })
    }

    pub(crate) fn wire(&self) -> &Wire {
        &self.tunnel.wire
    }

    pub(crate) fn ends(&self) -> [&Vpnd; 2] {
        [&self.tunnel.a, &self.tunnel.b]
    }

    /// Both ends have a session that came after what `act` does.
    pub(crate) fn after(&self, act: impl FnOnce() -> Result<()>) -> Result<()> {
        let handshakes = |end: &Vpnd| Ok::<_, anyhow::Error>(end.status()?.handshakes());
        let before = [handshakes(self.ends()[0])?, handshakes(self.ends()[1])?];
        act()?;
        for (end, before) in self.ends().into_iter().zip(before) {
            end.wait_for("a new session", CHANGED, |status| status.handshakes() > before)?;
        }
        Ok(())
    }

    pub(crate) fn ensure_whole(self) -> Result<String> {
        let (there, back) = (self.there.stop()?, self.back.stop()?);
        there.ensure_perfect()?;
        back.ensure_perfect()?;
        let bytes = self.trickle.finish()?;
        ensure!(bytes > 100_000, "the connection carried only {bytes} bytes");
        let sent = there.sent + back.sent;
        Ok(format!("0 of {sent} datagrams lost, and one TCP connection throughout"))
    }
}

fn pair() -> Result<(Site, Site)> {
    vpnd_tests::site::pair()
}

fn profile(lab: &Lab, lines: &[&str], accepted: &str, a_changes: bool) -> Result<String> {
    let (a, b) = pair()?;
    let a = a.towards(Wire::B4);
    let also = format!("also_accept = [{accepted:?}]");
    let own = |site: &Site| site.clone().speaking_vpnd(&[]);
    let both = |site: &Site| site.clone().speaking_vpnd(&[&also]);
    let other = |site: &Site| match accepted {
        "protocol=wireguard" => site.clone(),
        _ => site.clone().speaking_vpnd(lines),
    };
    let (first, second) = if a_changes { (own(&a), both(&b)) } else { (both(&a), own(&b)) };
    let flow = Flow::start(lab, &first, &second)?;
    let (end, site) = if a_changes { (&flow.tunnel.a, &a) } else { (&flow.tunnel.b, &b) };
    flow.after(|| end.reload(&other(site)))?;
    thread::sleep(Duration::from_secs(2));
    flow.after(|| end.reload(&own(site)))?;
    thread::sleep(Duration::from_secs(2));
    flow.ensure_whole()
}

fn preshared(lab: &Lab) -> Result<String> {
    let (old, new) = (Key::preshared()?, Key::preshared()?);
    let (a, b) = pair()?;
    let with = |site: &Site, key: &Key, next: Option<&Key>| {
        let mut site = site.clone().speaking_vpnd(&[]).with_preshared(key);
        site.remote.next_preshared = next.cloned();
        site
    };
    let a = a.towards(Wire::B4);
    let flow = Flow::start(lab, &with(&a, &old, Some(&new)), &with(&b, &old, Some(&new)))?;
    let Tunnel { a: at_a, b: at_b, .. } = &flow.tunnel;
    flow.after(|| at_b.reload(&with(&b, &new, Some(&old))))?;
    flow.after(|| at_a.reload(&with(&a, &new, Some(&old))))?;
    flow.after(|| at_a.reload(&with(&a, &new, None)))?;
    flow.after(|| at_b.reload(&with(&b, &new, None)))?;
    flow.ensure_whole()
}

fn identities(lab: &Lab) -> Result<String> {
    let (mut a, mut b) = pair()?;
    let (new_a, new_b) = (KeyPair::generate()?, KeyPair::generate()?);
    (a.remote.next_public, b.remote.next_public) =
        (Some(new_b.public.clone()), Some(new_a.public.clone()));
    (a.next_keys, b.next_keys) = (Some(new_a), Some(new_b));
    let (a, b) = (a.towards(Wire::B4).speaking_vpnd(&[]), b.speaking_vpnd(&[]));
    let flow = Flow::start(lab, &a, &b)?;
    let [at_a, at_b] = flow.ends();
    flow.after(|| at_a.rotate(false))?;
    flow.after(|| at_b.rotate(false))?;
    at_a.rotate(true)?;
    at_b.rotate(true)?;
    thread::sleep(Duration::from_secs(2));
    for end in [at_a, at_b] {
        ensure!(end.status()?.is_up(), "{}", end.status()?);
    }
    flow.ensure_whole()
}

fn refused(lab: &Lab) -> Result<String> {
    let (a, b) = pair()?;
    let a = a.towards(Wire::B4).speaking_vpnd(&[]);
    let tunnel = Tunnel::with(lab, |_, _| (a.clone(), b.speaking_vpnd(&[])))?;
    let mut other = a;
    other.interface.push("queues = 2".to_owned());
    let said = tunnel.a.reload(&other).err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(said.contains("`[interface] queues` differs and takes a restart"), "it says {said:?}");
    tunnel.a.wait_for("the tunnel is as it was", SOON, |status| status.is_up())?;
    Ok("the key is named, and nothing changed".to_owned())
}
