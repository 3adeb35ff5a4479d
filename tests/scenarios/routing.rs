//! A routing daemon across the tunnel: OSPF by multicast, BFD, and the daemon's reaction to the carrier when
//! the peer dies.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vpnd_tests::bird::Bird;
use vpnd_tests::link::{cable, port};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, Lab, Vpnd, Wire, eventually};

/// Behind B.
const FAR: &str = "198.18.2.2";
const FAR_NET: &str = "198.18.2.0/24";
const FAR6: &str = "2001:db8:18:2::2";
const FAR_NET6: &str = "2001:db8:18:2::/64";
/// Enough for hellos of a second, and a flood of link states.
const ADJACENT: Duration = Duration::from_secs(40);
/// A router tells of its links only so often (`MinLSInterval`, RFC 2328 appendix B): what befalls one just
/// after another is told late.
const SETTLED: Duration = Duration::from_secs(6);
/// Hello 1, dead 10, and what is slow.
const WITHDRAWN: Duration = Duration::from_secs(20);

pub(crate) fn scenarios() -> Vec<Scenario> {
    let waits =
        |name: &str, body: fn(&Lab) -> Result<String>| Scenario::new(name, Cost::Waits, body);
    vec![
        waits("routing::OSPF, and the carrier follows the peer", |lab| ospf(lab, "peer", false)),
        waits("routing::OSPF, and the carrier is always on", |lab| ospf(lab, "always", false)),
        waits("routing::OSPF with BFD", |lab| ospf(lab, "always", true)),
    ]
}

/// Two sites whose routers speak OSPF:
///
/// ```text
///   a (tun0) ══ tunnel ══ (tun0) b [lan] ── [eth0] far
/// ```
struct Sites {
    wire: Wire,
    _far: Host,
    _a: Vpnd,
    b: Vpnd,
    birds: [Bird; 2],
}

impl Sites {
    fn new(lab: &Lab, carrier: &str, bfd: bool) -> Result<Self> {
        let wire = Wire::new(lab)?;
        let far = far(lab, &wire.b)?;
        let (a, b) = site::pair()?;
        let b = Vpnd::start(&wire.b, &routed(b, "fe80::2/64", carrier))?;
        let a = Vpnd::start(&wire.a, &routed(a.towards(Wire::B4), "fe80::1/64", carrier))?;
        let start = |host, id, lan| Bird::start(host, &config(id, lan, bfd));
        let birds = [start(&wire.a, "10.99.0.1", "")?, start(&wire.b, "10.99.0.2", STUB)?];
        Ok(Self { wire, _far: far, _a: a, b, birds })
    }

    /// Both adjacencies stand, and both networks behind B are reached from A.
    fn adjacent(&self) -> Result<()> {
        for (protocol, net) in [("net4", FAR_NET), ("net6", FAR_NET6)] {
            eventually(&format!("A learns {net}"), ADJACENT, || {
                ensure!(has_route(&self.wire.a, net)?, "{}", self.tell(protocol)?);
                Ok(())
            })?;
        }
        ping::until_answered(&self.wire.a, FAR, Duration::from_secs(5))?;
        ping::until_answered(&self.wire.a, FAR6, Duration::from_secs(5))
    }

    fn tell(&self, protocol: &str) -> Result<String> {
        self.birds[0].ask(&format!("show ospf neighbors {protocol}"))
    }
}

/// A network behind B, with one host in it.
fn far(lab: &Lab, b: &Host) -> Result<Host> {
    let far = lab.host("far")?;
    cable(port(&far, "eth0"), port(b, "lan"))?;
    port(&far, "eth0").address(&["198.18.2.2/24", "2001:db8:18:2::2/64"])?;
    port(b, "lan").address(&["198.18.2.1/24", "2001:db8:18:2::1/64"])?;
    far.run("ip route add default via 198.18.2.1")?;
    far.run("ip -6 route add default via 2001:db8:18:2::1")?;
    b.sysctl("ipv4/ip_forward", "1")?;
    b.sysctl("ipv6/conf/all/forwarding", "1")?;
    Ok(far)
}

/// What OSPF needs of a tunnel: a link-local address for its version 3, and that the other end's
/// packets are let in.
fn routed(mut site: Site, link_local: &str, carrier: &str) -> Site {
    site.addresses.push(link_local.to_owned());
    site.remote.allowed_ips.extend([FAR_NET, FAR_NET6, "fe80::/64"].map(str::to_owned));
    site.interface.push(format!("carrier = {carrier:?}"));
    let mut site = site.keepalive(1).speaking_vpnd(&["dead_after = \"3s\""]);
    if site.remote.endpoint.is_none() {
        site = site.towards(Wire::A4);
    }
    site
}

const STUB: &str = "interface \"lan\" { stub; };";

fn config(id: &str, lan: &str, bfd: bool) -> String {
    let bfd = if bfd { "bfd yes;" } else { "" };
    let area =
        format!("area 0 {{ interface \"tun0\" {{ type ptp; hello 1; dead 10; {bfd} }}; {lan} }};");
    format!(
        "router id {id};
         protocol device {{ }}
         protocol bfd {{ }}
         protocol kernel {{ ipv4 {{ export all; }}; }}
         protocol kernel {{ ipv6 {{ export all; }}; }}
         protocol ospf v2 net4 {{ ipv4 {{ }}; {area} }}
         protocol ospf v3 net6 {{ ipv6 {{ }}; {area} }}\n"
    )
}

fn has_route(host: &Host, net: &str) -> Result<bool> {
    let family = if net.contains(':') { "-6" } else { "-4" };
    Ok(!host.run(&format!("ip {family} route show {net}"))?.trim().is_empty())
}

fn ospf(lab: &Lab, carrier: &str, bfd: bool) -> Result<String> {
    let start = Instant::now();
    let mut sites = Sites::new(lab, carrier, bfd)?;
    sites.adjacent()?;
    let up = start.elapsed();
    if bfd {
        session_up(&sites.birds[0])?;
    }
    std::thread::sleep(SETTLED);
    sites.b.process().kill()?;
    let start = Instant::now();
    let gone = withdrawn(&sites, FAR_NET, start)?;
    let gone6 = withdrawn(&sites, FAR_NET6, start)?;
    let Sites { wire, _far, _a, b, birds } = sites;
    let start = Instant::now();
    let sites = Sites { b: b.restart()?, wire, _far, _a, birds };
    sites.adjacent()?;
    let back = start.elapsed();
    let seconds = [up, gone, gone6, back].map(|span| format!("{:.1}", span.as_secs_f64()));
    let [up, gone, gone6, back] = seconds;
    Ok(format!(
        "both adjacencies and both networks after {up} s; the peer killed: withdrawn after {gone} s \
         (IPv4) and {gone6} s (IPv6); restarted: back after {back} s"
    ))
}

fn withdrawn(sites: &Sites, net: &str, start: Instant) -> Result<Duration> {
    eventually(&format!("{net} is withdrawn"), WITHDRAWN, || {
        ensure!(!has_route(&sites.wire.a, net)?, "it is there");
        Ok(())
    })?;
    Ok(start.elapsed())
}

/// With BFD's own times.
fn session_up(bird: &Bird) -> Result<()> {
    eventually("BFD has its sessions", ADJACENT, || {
        let sessions = bird.ask("show bfd sessions")?;
        let up = sessions.lines().filter(|line| line.contains(" Up ")).count();
        (up == 2).then_some(()).with_context(|| format!("{sessions}{}", bird.log()))
    })
}
