//! Tunnels that are led into themselves: by a route over the peer's address, by roaming, and by each other.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_B4, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, Lab, Vpnd, Wire, eventually};

use crate::tunnel::{SOON, Tunnel};

/// The peer of the second of two tunnels.
const SECOND: &str = "10.99.1.2";
/// Of what was one packet, no more become.
const FEW: u64 = 200;
/// And no more time is spent on them.
const SHORT: Duration = Duration::from_millis(300);

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    for (name, mode, outside) in
        [("IPv4", "tun", Wire::B4), ("IPv6", "tun", Wire::B6), ("TAP", "tap", Wire::B4)]
    {
        let name = format!("loops::a route over the peer's address, {name}");
        all.push(Scenario::new(name, Cost::Works, move |lab| route_over(lab, mode, outside)));
    }
    all.push(Scenario::new("loops::two tunnels over each other", Cost::Works, two_tunnels));
    all.push(Scenario::new("loops::the peer is not followed inside", Cost::Works, roaming));
    all
}

/// What a tunnel has sent, and the time that it took.
struct Spent {
    packets: u64,
    time: Duration,
}

impl Spent {
    fn of(vpnd: &Vpnd) -> Result<Self> {
        let packets = vpnd.status()?.packets_sent();
        Ok(Self { packets, time: vpnd.as_process().processor_time()? })
    }

    fn since(vpnd: &Vpnd, before: &Self) -> Result<Self> {
        let now = Self::of(vpnd)?;
        Ok(Self { packets: now.packets - before.packets, time: now.time - before.time })
    }

    fn is_little(&self) -> Result<()> {
        let Self { packets, time } = self;
        ensure!(*packets < FEW && *time < SHORT, "{packets} packets and {time:?}");
        Ok(())
    }
}

fn route_over(lab: &Lab, mode: &str, outside: &str) -> Result<String> {
    let tunnel = Tunnel::with(lab, |mut a, mut b| {
        for site in [&mut a, &mut b] {
            site.interface.push(format!("mode = {mode:?}"));
            site.device = format!("{mode}0");
        }
        if mode == "tap" {
            (a, b) = (a.speaking_vpnd(&[]), b.speaking_vpnd(&[]));
        }
        (a.towards(outside), b)
    })?;
    let (host, a) = (&tunnel.wire.a, &tunnel.a);
    let device = format!("{mode}0");
    let peer = outside.trim_start_matches('[').split([']', ':']).next().unwrap_or_default();
    let peer = if outside.starts_with('[') { "2001:db8::2" } else { peer };
    if mode == "tap" {
        // B itself would not answer for an address of another device.
        host.run(&format!("ip neigh replace {peer} lladdr 02:00:00:00:00:09 dev {device}"))?;
    }
    let before = Spent::of(a)?;
    let started = Instant::now();
    host.run(&format!("ip route add {peer} dev {device}"))?;
    let status = a.wait_for("the loop is named", SOON, |status| {
        status.leads_back().is_some_and(|route| route.contains(&device))
    })?;
    let named = started.elapsed();
    ensure!(status.to_string().contains("lead into itself"), "no hint: {status}");
    a.wait_for_log("the tunnel would lead into itself", SOON)?;
    let lost = host.run(&format!("ping -n -c 5 -i 0.1 -W 1 {INNER_B4}"));
    ensure!(lost.is_err(), "answered through a loop");
    let spent = Spent::since(a, &before)?;
    spent.is_little()?;
    ensure!(a.status()?.drops().contains_key("own_datagram"), "{}", a.status()?);
    host.run(&format!("ip route del {peer} dev {device}"))?;
    let removed = Instant::now();
    ping::until_answered(host, INNER_B4, Duration::from_secs(5))?;
    let again = removed.elapsed();
    a.wait_for("the loop is over", SOON, |status| status.leads_back().is_none())?;
    Ok(format!(
        "named after {named:.1?}; {} packets for 5 pings; again after {again:.1?}",
        spent.packets
    ))
}

/// Both tunnels of A go to B, and each has a route over the address of the other's peer.
fn two_tunnels(lab: &Lab) -> Result<String> {
    let tunnel = Tunnel::new(lab)?;
    let Wire { a, b } = &tunnel.wire;
    // B has another address for the second, so that each can be routed by itself.
    b.run("ip address add 192.0.2.3/24 dev eth0")?;
    let second = second_tunnel(a, b)?;
    ping::until_answered(a, SECOND, SOON)?;
    let before = [Spent::of(&tunnel.a)?, Spent::of(&second[0])?];
    a.run("ip route add 192.0.2.2 dev tun1")?;
    a.run("ip route add 192.0.2.3 dev tun0")?;
    for to in [INNER_B4, SECOND] {
        let lost = a.run(&format!("ping -n -c 3 -i 0.1 -W 1 {to}"));
        ensure!(lost.is_err(), "{to} is answered through a loop");
    }
    let mut words = String::new();
    for (vpnd, before) in [&tunnel.a, &second[0]].into_iter().zip(&before) {
        vpnd.wait_for_log("tunnels of this host lead into each other", SOON)?;
        let status = vpnd.status()?;
        ensure!(status.leads_back().is_some(), "{status}");
        let spent = Spent::since(vpnd, before)?;
        spent.is_little()?;
        words += &format!("{} packets, {:?}; ", spent.packets, spent.time);
    }
    a.run("ip route del 192.0.2.2 dev tun1")?;
    a.run("ip route del 192.0.2.3 dev tun0")?;
    let removed = Instant::now();
    for to in [INNER_B4, SECOND] {
        ping::until_answered(a, to, Duration::from_secs(5))?;
    }
    Ok(format!("six pings: {words}again after {:.1?}", removed.elapsed()))
}

fn second_tunnel(a: &Host, b: &Host) -> Result<[Vpnd; 2]> {
    let (site_a, site_b) = site::pair()?;
    let inside = |site: Site, own: &str, other: &str| {
        let mut site = Site {
            name: format!("{}-second", site.name),
            device: "tun1".to_owned(),
            addresses: vec![format!("{own}/30")],
            listen: Some(51821),
            ..site
        };
        site.remote.allowed_ips = vec![format!("{other}/32")];
        site
    };
    let site_b = Vpnd::start(b, &inside(site_b, SECOND, "10.99.1.1"))?;
    let site_a = inside(site_a, "10.99.1.1", SECOND).towards("192.0.2.3:51821");
    Ok([Vpnd::start(a, &site_a)?, site_b])
}

/// B's datagrams reach A through the tunnel for a while: from an inner address, where an answer would come back from.
fn roaming(lab: &Lab) -> Result<String> {
    let tunnel = Tunnel::new(lab)?;
    let Wire { a, b } = &tunnel.wire;
    let before = Spent::of(&tunnel.a)?;
    // What B sends to A's address outside takes the tunnel, once: B drops it, for it is its own. So its source is changed
    // on the cable, where A believes it.
    b.run_with_input(
        "nft -f -",
        &format!(
            "table ip move {{ chain out {{ type filter hook postrouting priority 300; \
             oifname eth0 udp sport 51820 ip saddr set {INNER_B4}; }}; }}"
        ),
    )?;
    for key in ["all", "eth0", "tun0"] {
        a.sysctl(&format!("ipv4/conf/{key}/rp_filter"), "0")?;
    }
    b.run(&format!("ping -n -c 5 -i 0.1 -W 1 {INNER_A4}")).ok();
    tunnel.a.wait_for_log("the tunnel would lead into itself", SOON)?;
    Spent::since(&tunnel.a, &before)?.is_little()?;
    eventually("A stays with B's address on the cable", SOON, || {
        let status = tunnel.a.status()?;
        ensure!(status.endpoint() == Some(Wire::B4), "{status}");
        Ok(())
    })?;
    b.run("nft delete table ip move")?;
    ping::until_answered(a, INNER_B4, Duration::from_secs(5))?;
    let spent = Spent::since(&tunnel.a, &before)?;
    Ok(format!("{} packets; still at {}", spent.packets, Wire::B4))
}
