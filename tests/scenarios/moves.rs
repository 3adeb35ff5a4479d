//! What changes under a running tunnel: addresses, routes, links and the NAT on the path. How soon traffic flows again is
//! measured for vpnd and for wireguard-go, on equal hosts.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use vpnd_tests::link::port;
use vpnd_tests::peer::{Kind, Peer};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_B4, PORT, Site};
use vpnd_tests::traffic::echo::Echo;
use vpnd_tests::traffic::ping;
use vpnd_tests::traffic::stream::{Pace, Stream, Tally};
use vpnd_tests::vpnd::{Launch, Service};
use vpnd_tests::{Host, Lab, Routed, Vpnd, nft};

use crate::reach::replace_file;
use crate::socket::{B4, Uplinks};
use crate::tunnel::SOON;

/// The limit for an address or a route that is left.
const FOLLOWED_WITHIN: Duration = Duration::from_millis(1500);
/// A generous limit for the others.
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// The limit for a route that moves: the kernel's own choice of the source moves with it. It would take a second to find the
/// new gateway from the old address.
const AT_ONCE: Duration = Duration::from_millis(700);
/// `dead_after` and the 5 s between two tries, and as much again for a busy machine.
const AROUND_A_NAT_WITHIN: Duration = Duration::from_secs(16);
/// `dead_after` and at most 2 s until the next handshake, which comes from another port, and more for a busy machine.
const OFF_A_DEAD_MAPPING_WITHIN: Duration = Duration::from_secs(8);
/// The time that is waited for a program to which no limit applies.
const PATIENCE: Duration = Duration::from_secs(40);
const LONG_PATIENCE: Duration = Duration::from_secs(120);
/// The time that the network is gone.
const GONE: Duration = Duration::from_secs(5);
/// The router's second address on B's side, and the route's two gateways.
const NAT4: &str = "198.51.100.253";
const GATEWAYS: [&str; 2] = ["198.51.100.254", "192.0.2.254"];
/// A flow that the kernel tracks without translating it.
const TRACKED: &str = "table ip tracks {\nchain lab {\ntype filter hook forward priority filter\nct state new accept\n}\n}\n";

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        compared("the source address goes", Cost::Alone, FOLLOWED_WITHIN, address_goes),
        compared("the default route moves, the address stays", Cost::Alone, AT_ONCE, route_moves),
        compared("an IPv6 privacy address rotates", Cost::Works, BACK_WITHIN, privacy),
        compared("the network goes for 5 s", Cost::Waits, BACK_WITHIN, goes_and_comes),
        compared("a NAT that comes late", Cost::Waits, AROUND_A_NAT_WITHIN, nat_comes_late),
        compared(
            "a NAT whose mapping is dead",
            Cost::Waits,
            OFF_A_DEAD_MAPPING_WITHIN,
            mapping_dies,
        ),
        Scenario::new("moves::a route that flaps", Cost::Waits, flapping_route),
        Scenario::new("moves::64 addresses for a name", Cost::Waits, many_addresses),
    ]
}

/// What carries the tunnel, at both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    /// vpnd with a keepalive of 1 s, and dead after 3 s.
    Watching,
    /// vpnd with its defaults.
    Default,
    /// wireguard-go with a persistent keepalive of 1 s.
    WireguardGo,
}

impl Program {
    const ALL: [Self; 3] = [Self::Watching, Self::Default, Self::WireguardGo];

    fn name(self) -> &'static str {
        match self {
            Self::Watching => "vpnd",
            Self::Default => "vpnd with its defaults",
            Self::WireguardGo => "wireguard-go",
        }
    }

    fn configure(self, site: Site) -> Site {
        match self {
            Self::Watching => site.keepalive(1).speaking_vpnd(&["dead_after = \"3s\""]),
            Self::Default => site.speaking_vpnd(&[]),
            Self::WireguardGo => site.keepalive(1),
        }
    }

    fn start(self, host: &Host, site: Site) -> Result<End> {
        let site = self.configure(site);
        Ok(match self {
            Self::Watching | Self::Default => End::Vpnd(Vpnd::start(host, &site)?),
            Self::WireguardGo => End::Peer(Peer::start_quiet(Kind::WireguardGo, host, &site)?),
        })
    }
}

/// A program that runs until this is dropped.
enum End {
    Vpnd(#[expect(dead_code, reason = "it runs until it is dropped")] Vpnd),
    Peer(#[expect(dead_code, reason = "it runs until it is dropped")] Peer),
}

/// A tunnel from A to B, with traffic.
struct Carried {
    echo: Echo,
    _ends: [End; 2],
}

impl Carried {
    /// A, with any port, knows where B is.
    fn start(program: Program, [a, b]: [&Host; 2], endpoint: &str) -> Result<Self> {
        let (site_a, site_b) = site::pair()?;
        let far = program.start(b, site_b)?;
        let near = program.start(a, Site { listen: None, ..site_a.towards(endpoint) })?;
        Ok(Self { echo: Echo::start(a, b, INNER_B4)?, _ends: [near, far] })
    }

    fn up(program: Program, hosts: [&Host; 2], endpoint: &str) -> Result<Self> {
        let carried = Self::start(program, hosts, endpoint)?;
        carried.echo.flows(Instant::now(), SOON).context("no traffic at first")?;
        // Also data before which nothing was staged.
        carried.echo.longest_silence(Duration::from_millis(500));
        Ok(carried)
    }

    /// How soon traffic flows again after what has just happened.
    fn flows(&self) -> Option<Duration> {
        self.echo.flows(Instant::now(), patience())
    }
}

fn patience() -> Duration {
    if vpnd_tests::long() { LONG_PATIENCE } else { PATIENCE }
}

type Event = fn(&Lab, Program) -> Result<Option<Duration>>;

/// Measures all programs at once, each on hosts of its own. Only vpnd that watches its peer has a limit.
fn compared(name: &str, cost: Cost, limit: Duration, event: Event) -> Scenario {
    Scenario::new(format!("moves::{name}"), cost, move |lab| {
        let measured = thread::scope(|scope| {
            let begun = Program::ALL.map(|program| scope.spawn(move || alone(lab, program, event)));
            begun
                .map(|one| one.join().map_err(|_panic| anyhow!("a measurement panicked")).flatten())
        });
        let mut told = Vec::new();
        for (program, took) in Program::ALL.into_iter().zip(measured) {
            let took = took.with_context(|| program.name())?;
            let bounded = program == Program::Watching;
            ensure!(!bounded || took.is_some_and(|took| took <= limit), "vpnd: {took:?}");
            told.push(format!("{} {}", program.name(), in_words(took)));
        }
        Ok(format!("traffic flows after: {}", told.join(", ")))
    })
}

/// In a laboratory of its own, with its logs if it fails.
fn alone(lab: &Lab, program: Program, event: Event) -> Result<Option<Duration>> {
    let own = Lab::within(lab.path(), program.name())?;
    event(&own, program).map_err(|error| error.context(own.log_tails()))
}

fn in_words(took: Option<Duration>) -> String {
    took.map_or_else(
        || format!("not in {:?}", patience()),
        |took| format!("{:.2} s", took.as_secs_f64()),
    )
}

/// The router takes nothing from an address by another uplink than that address's.
pub(crate) fn strict(net: &Uplinks) -> Result<()> {
    for key in ["all", "one", "two"] {
        net.router.sysctl(&format!("ipv4/conf/{key}/rp_filter"), "1")?;
    }
    Ok(())
}

/// With the address goes its route, and the other uplink's takes over.
fn address_goes(lab: &Lab, program: Program) -> Result<Option<Duration>> {
    let net = Uplinks::new(lab)?;
    strict(&net)?;
    net.a.run("ip route add default via 198.51.100.254 metric 100")?;
    let tunnel = Carried::up(program, [&net.a, &net.b], &format!("{B4}:{PORT}"))?;
    port(&net.a, "one").remove_address("192.0.2.1/24")?;
    Ok(tunnel.flows())
}

/// The old address stays. If anything left by the new route with it as its source, the kernel would ask the new gateway for
/// its hardware address from there, in vain, and ask again after a second.
fn route_moves(lab: &Lab, program: Program) -> Result<Option<Duration>> {
    let net = Uplinks::new(lab)?;
    strict(&net)?;
    let tunnel = Carried::up(program, [&net.a, &net.b], &format!("{B4}:{PORT}"))?;
    net.a.run("ip route replace default via 198.51.100.254")?;
    Ok(tunnel.flows())
}

/// The new address is there before the old one goes, as the kernel does it.
fn privacy(lab: &Lab, program: Program) -> Result<Option<Duration>> {
    let net = Routed::new(lab)?;
    let tunnel = Carried::up(program, [&net.a, &net.b], &format!("[2001:db8:b::1]:{PORT}"))?;
    let device = port(&net.a, "eth0");
    device.address(&["2001:db8:a::7e3c:1b5a:90d2:4f61/64"])?;
    device.remove_address("2001:db8:a::1/64")?;
    Ok(tunnel.flows())
}

/// Programs try to send all the time; it is measured from the return of the route.
fn goes_and_comes(lab: &Lab, program: Program) -> Result<Option<Duration>> {
    let net = Routed::new(lab)?;
    let tunnel = Carried::up(program, [&net.a, &net.b], Routed::B4)?;
    let device = port(&net.a, "eth0");
    device.down()?;
    let silence = tunnel.echo.longest_silence(GONE);
    ensure!(silence > GONE / 2, "the network was not gone: {silence:?}");
    device.up()?;
    net.a.run(&format!("ip route add default via {}", Routed::ROUTER_A4))?;
    Ok(tunnel.flows())
}

/// B has no way back to A's own address, so that A has to be translated.
fn behind_the_router(lab: &Lab) -> Result<Routed> {
    let net = Routed::new(lab)?;
    net.b.run("ip route del default")?;
    net.router.run_with_input("nft -f -", TRACKED)?;
    Ok(net)
}

/// The tries before there is a NAT have made an entry without translation, which each further try keeps alive.
fn nat_comes_late(lab: &Lab, program: Program) -> Result<Option<Duration>> {
    let net = behind_the_router(lab)?;
    let tunnel = Carried::start(program, [&net.a, &net.b], Routed::B4)?;
    tunnel.echo.longest_silence(2 * GONE);
    translate(&net.router, Routed::ROUTER_B4)?;
    Ok(tunnel.flows())
}

/// The address of the NAT changes under a standing tunnel, and the entry with the old one lives on.
fn mapping_dies(lab: &Lab, program: Program) -> Result<Option<Duration>> {
    let net = behind_the_router(lab)?;
    let outside = port(&net.router, "b");
    outside.address(&[&format!("{NAT4}/24")])?;
    translate(&net.router, NAT4)?;
    let tunnel = Carried::up(program, [&net.a, &net.b], Routed::B4)?;
    outside.remove_address(&format!("{NAT4}/24"))?;
    net.router.run("nft delete table ip nat")?;
    translate(&net.router, Routed::ROUTER_B4)?;
    // Whoever has the old address now is no longer this router.
    net.b.run("ip neigh flush dev eth0")?;
    Ok(tunnel.flows())
}

/// New flows leave for B's side from this address.
fn translate(router: &Host, address: &str) -> Result<()> {
    let rule = format!("oifname b snat to {address}");
    let hook = "type nat hook postrouting priority srcnat";
    let table = format!("table ip nat {{\nchain lab {{\n{hook}\n{rule}\n}}\n}}\n");
    router.run_with_input("nft -f -", &table).map(drop)
}

/// What a tunnel may cost while something around it misbehaves.
struct Spent {
    lines: usize,
    busy: Duration,
}

/// The lines in the log of vpnd so far, and its processor time.
fn cost(vpnd: &Vpnd) -> Result<Spent> {
    let process = vpnd.as_process();
    Ok(Spent { lines: process.log().lines().count(), busy: process.processor_time()? })
}

/// Since then; with these limits.
fn ensure_modest(vpnd: &Vpnd, before: &Spent, lines: usize, busy: Duration) -> Result<Spent> {
    let now = cost(vpnd)?;
    let since = Spent { lines: now.lines - before.lines, busy: now.busy - before.busy };
    ensure!(since.lines <= lines, "{} lines:\n{}", since.lines, vpnd.as_process().log());
    ensure!(since.busy <= busy, "{:?} of a processor", since.busy);
    Ok(since)
}

/// The log is what users have, without debug messages.
fn as_users_have_it(host: &Host, site: &Site) -> Result<Vpnd> {
    Vpnd::start_as(
        &Launch { service: Service { log_level: "info", ..Service::TESTED }, ..Launch::to_test()? },
        host,
        site,
    )
}

/// Changes in all, and the time between two.
const FLAPS: usize = 100;
const FLAP_EVERY: Duration = Duration::from_millis(100);
const PACE: Pace = Pace { per_second: 200, payload: 200 };

/// What arrived each way while the route flapped, and what came of it.
struct Flapped {
    took: Duration,
    there: Tally,
    back: Tally,
    /// Until traffic flowed afterwards, if it did.
    calm: Option<Duration>,
}

/// The default route moves ten times a second, and what is sent from the address of the other uplink goes nowhere.
fn flap(net: &Uplinks) -> Result<Flapped> {
    let there = Stream::start(&net.a, &net.b, INNER_B4, PACE)?;
    let back = Stream::start(&net.b, &net.a, INNER_A4, PACE)?;
    let start = Instant::now();
    for (n, gateway) in (1..).zip(GATEWAYS.into_iter().cycle().take(FLAPS)) {
        net.a.run(&format!("ip route replace default via {gateway}"))?;
        thread::sleep((FLAP_EVERY * n).saturating_sub(start.elapsed()));
    }
    let took = start.elapsed();
    let (there, back) = (there.stop()?, back.stop()?);
    let echo = Echo::start(&net.a, &net.b, INNER_B4)?;
    let calm = echo.flows(Instant::now(), PATIENCE);
    Ok(Flapped { took, there, back, calm })
}

fn flapping_route(lab: &Lab) -> Result<String> {
    let (seen, [of_a, of_b]) = flapping_vpnd(lab)?;
    let other = Lab::within(lab.path(), Program::WireguardGo.name())?;
    let net = Uplinks::new(&other)?;
    strict(&net)?;
    let carried = Carried::up(Program::WireguardGo, [&net.a, &net.b], &format!("{B4}:{PORT}"))?;
    let beside = flap(&net)?;
    drop(carried);
    Ok(format!(
        "{FLAPS} changes in {:.1} s, 200 packets/s each way: vpnd lost {} of {} there and {} of {} back, then {} until \
         traffic; log lines {} and {}, processor {:?} and {:?}; wireguard-go lost {} and {}, then {}",
        seen.took.as_secs_f64(),
        seen.there.lost(),
        seen.there.sent,
        seen.back.lost(),
        seen.back.sent,
        in_words(seen.calm),
        of_a.lines,
        of_b.lines,
        of_a.busy,
        of_b.busy,
        beside.there.lost(),
        beside.back.lost(),
        in_words(beside.calm),
    ))
}

fn flapping_vpnd(lab: &Lab) -> Result<(Flapped, [Spent; 2])> {
    let net = Uplinks::new(lab)?;
    strict(&net)?;
    let (a, b) = site::pair()?;
    let ends = [a.towards(&format!("{B4}:{PORT}")), b];
    let [a, b] = ends.map(|site| Program::Watching.configure(site));
    let (b, a) = (as_users_have_it(&net.b, &b)?, as_users_have_it(&net.a, &a)?);
    ping::until_answered(&net.a, INNER_B4, SOON)?;
    let before = [cost(&a)?, cost(&b)?];
    let seen = flap(&net)?;
    for tally in [&seen.there, &seen.back] {
        ensure!(tally.received >= tally.sent * 9 / 10, "too much is lost: {tally:?}");
    }
    let calm = seen.calm.context("no traffic afterwards")?;
    ensure!(calm <= BACK_WITHIN, "traffic only {calm:?} afterwards");
    let of_a = ensure_modest(&a, &before[0], 30, seen.took / 3)?;
    let of_b = ensure_modest(&b, &before[1], 30, seen.took / 3)?;
    Ok((seen, [of_a, of_b]))
}

/// The name of B, with this many addresses.
const NAME: &str = "b.vpn.example";
const ADDRESSES: u8 = 64;
/// The place of the address that works, at first.
const PLACE: u8 = 4;

/// 64 addresses of which one works; then 64 of which the working one is not among those that are used, then none of them.
fn many_addresses(lab: &Lab) -> Result<String> {
    let net = Uplinks::new(lab)?;
    nft::drop_arriving(&net.router, &format!("ip daddr 203.0.113.0/24 ip daddr != {B4}"))?;
    let (a, b) = site::pair()?;
    let [mut a, b] =
        [a.towards(&format!("{NAME}:{PORT}")), b].map(|site| Program::Watching.configure(site));
    a.remote.lines.push("resolve_every = \"10s\"".to_owned());
    name_is(&net.a, Some(PLACE))?;
    let _b = as_users_have_it(&net.b, &b)?;
    let start = Instant::now();
    let a = as_users_have_it(&net.a, &a)?;
    let before = cost(&a)?;
    let echo = Echo::start(&net.a, &net.b, INNER_B4)?;
    let connected = echo.flows(start, SOON).context("not one of the addresses is reached")?;
    let mut silences = Vec::new();
    for place in [Some(ADDRESSES), None] {
        name_is(&net.a, place)?;
        silences.push(echo.longest_silence(Duration::from_secs(12)));
    }
    let worst = silences.into_iter().max().unwrap_or_default();
    ensure!(worst < BACK_WITHIN, "silence of {worst:?}:\n{}", a.as_process().log());
    let spent = ensure_modest(&a, &before, 30, start.elapsed() / 5)?;
    let status = a.status()?;
    ensure!(status.is_up() && status.endpoint() == Some(&format!("{B4}:{PORT}")), "{status}");
    Ok(format!(
        "connected after {:.2} s; longest silence {} ms while the name changes twice; {} log lines and {:?} of a \
         processor in {:.0} s",
        connected.as_secs_f64(),
        worst.as_millis(),
        spent.lines,
        spent.busy,
        start.elapsed().as_secs_f64()
    ))
}

/// The name has 64 addresses, in this order. The one that works is at this place, or not there.
fn name_is(host: &Host, place: Option<u8>) -> Result<()> {
    let address =
        |n| if Some(n) == place { B4.to_owned() } else { format!("203.0.113.{}", 100 + n) };
    let lines = (1..=ADDRESSES).map(|n| format!("{} {NAME}\n", address(n)));
    replace_file(host, "/etc/hosts", &lines.collect::<String>())
}
