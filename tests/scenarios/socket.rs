//! Hosts with two uplinks: which one the tunnel uses, and with which source address and mark.

use anyhow::{Context, Result, ensure};
use vpnd_tests::link::{cable, port};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, PORT, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, Lab, Vpnd, nft, vpnd};

use crate::tunnel::SOON;

/// B, behind the router.
pub(crate) const B4: &str = "203.0.113.1";
/// A's address on its second uplink.
pub(crate) const SECOND4: &str = "198.51.100.1";
/// Echo requests.
const PINGS: u32 = 5;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("socket::nothing said, the first uplink", Cost::Works, nothing_said),
        Scenario::new("socket::source chooses the second uplink", Cost::Works, source),
        Scenario::new("socket::a source that goes", Cost::Works, source_gone),
        Scenario::new("socket::bind_device chooses the second uplink", Cost::Works, device),
        Scenario::new("socket::fwmark chooses the second uplink", Cost::Works, mark),
        Scenario::new("socket::data bears its dscp", Cost::Works, dscp),
        Scenario::new("socket::what cannot be had is said", Cost::Works, refused),
    ]
}

/// A has two cables to a router, behind which is B:
///
/// ```text
///   a [one] 192.0.2.1 ──── 192.0.2.254 [one] router [b] 203.0.113.254 ── 203.0.113.1 [eth0] b
///   a [two] 198.51.100.1 ─ 198.51.100.254 [two]
/// ```
pub(crate) struct Uplinks {
    pub(crate) a: Host,
    pub(crate) router: Host,
    pub(crate) b: Host,
}

impl Uplinks {
    /// The default route is the first uplink's; table 100 has the second's.
    pub(crate) fn new(lab: &Lab) -> Result<Self> {
        let net = Self { a: lab.host("a")?, router: lab.host("router")?, b: lab.host("b")? };
        net.connect(port(&net.a, "one"), "one", ["192.0.2.1/24", "192.0.2.254/24"])?;
        net.connect(port(&net.a, "two"), "two", ["198.51.100.1/24", "198.51.100.254/24"])?;
        net.connect(port(&net.b, "eth0"), "b", ["203.0.113.1/24", "203.0.113.254/24"])?;
        net.router.sysctl("ipv4/ip_forward", "1")?;
        net.a.run("ip route add default via 192.0.2.254")?;
        net.a.run("ip route add default via 198.51.100.254 table 100")?;
        net.b.run("ip route add default via 203.0.113.254")?;
        Ok(net)
    }

    fn connect(
        &self,
        end: vpnd_tests::link::Port<'_>,
        device: &str,
        [own, gateway]: [&str; 2],
    ) -> Result<()> {
        let at_router = port(&self.router, device);
        cable(end, at_router)?;
        end.address(&[own])?;
        at_router.address(&[gateway])
    }

    /// Starts both, A with these lines in `[socket]`.
    fn start(&self, lines: &[&str]) -> Result<(Vpnd, Vpnd)> {
        let (a, b) = site::pair()?;
        let b = Vpnd::start(&self.b, &b)?;
        let a = Vpnd::start(&self.a, &told(a, lines).towards(&format!("{B4}:{PORT}")))?;
        ping::until_answered(&self.a, INNER_B4, SOON)?;
        Ok((a, b))
    }

    /// How many of the tunnel's datagrams arrive at the router by each uplink while A pings B.
    fn taken(&self) -> Result<[u64; 2]> {
        let arriving = |uplink: &str| format!("iifname {uplink} udp dport {PORT}");
        self.seen(&self.router, [arriving("one"), arriving("two")])
    }

    /// What of these two kinds arrives at a host while A pings B.
    fn seen(&self, at: &Host, kinds: [String; 2]) -> Result<[u64; 2]> {
        nft::clear(at)?;
        nft::count_arriving(at, &kinds)?;
        ping::series(&self.a, INNER_B4, PINGS, std::time::Duration::from_millis(50))?;
        let counts = nft::counts(at)?;
        nft::clear(at)?;
        counts.try_into().ok().context("nft counts something else")
    }

    /// All of A's datagrams take the second uplink.
    fn ensure_second(&self) -> Result<()> {
        let [one, two] = self.taken()?;
        ensure!(one == 0 && two >= PINGS.into(), "{one} by the first uplink, {two} by the second");
        Ok(())
    }
}

pub(crate) fn told(mut site: Site, lines: &[&str]) -> Site {
    site.service.push("[socket]".to_owned());
    site.service.extend(lines.iter().map(ToString::to_string));
    site
}

fn nothing_said(lab: &Lab) -> Result<String> {
    let net = Uplinks::new(lab)?;
    let _ends = net.start(&[])?;
    let [one, two] = net.taken()?;
    ensure!(one >= PINGS.into() && two == 0, "{one} by the first uplink, {two} by the second");
    Ok(format!("{one} datagrams by the first uplink, {two} by the second"))
}

fn source(lab: &Lab) -> Result<String> {
    let net = Uplinks::new(lab)?;
    net.a.run(&format!("ip rule add from {SECOND4} lookup 100"))?;
    let (_a, b) = net.start(&[&format!("source = {SECOND4:?}")])?;
    net.ensure_second()?;
    let seen = b.status()?;
    let expected = format!("{SECOND4}:{PORT}");
    ensure!(seen.endpoint() == Some(&expected), "B sees A elsewhere: {seen}");
    Ok(format!("B sees A at {expected}, every datagram by the second uplink"))
}

/// Losing it does not stop the tunnel.
fn source_gone(lab: &Lab) -> Result<String> {
    let net = Uplinks::new(lab)?;
    net.a.run(&format!("ip rule add from {SECOND4} lookup 100"))?;
    let (a, b) = net.start(&[&format!("source = {SECOND4:?}")])?;
    let second = port(&net.a, "two");
    second.remove_address(&format!("{SECOND4}/24"))?;
    ping::until_answered(&net.a, INNER_B4, SOON)?;
    let first = format!("192.0.2.1:{PORT}");
    b.wait_for("B follows", SOON, |status| status.endpoint() == Some(&first))?;
    ensure!(a.status()?.is_up(), "{}", a.status()?);
    Ok(format!("with the address gone B follows to {first}"))
}

fn device(lab: &Lab) -> Result<String> {
    let net = Uplinks::new(lab)?;
    net.a.run("ip route add default via 198.51.100.254 metric 100")?;
    let _ends = net.start(&["bind_device = \"two\""])?;
    net.ensure_second()?;
    Ok("every datagram by the second uplink, whose route comes second".to_owned())
}

fn mark(lab: &Lab) -> Result<String> {
    let net = Uplinks::new(lab)?;
    net.a.run("ip rule add fwmark 0xca6c lookup 100")?;
    let _ends = net.start(&["fwmark = \"0xca6c\""])?;
    net.ensure_second()?;
    Ok("every datagram by the second uplink, by the rule for the mark".to_owned())
}

fn dscp(lab: &Lab) -> Result<String> {
    let net = Uplinks::new(lab)?;
    // In place before the handshake, which bears none.
    let kinds = ["af41", "cs0"].map(|name| format!("udp dport {PORT} ip dscp {name}"));
    nft::count_arriving(&net.b, &kinds)?;
    let _ends = net.start(&["dscp = \"af41\""])?;
    let from_the_start = nft::counts(&net.b)?;
    ensure!(from_the_start[1] >= 1, "no handshake without a mark: {from_the_start:?}");
    let [marked, plain] = net.seen(&net.b, kinds)?;
    ensure!(marked >= PINGS.into() && plain == 0, "{marked} of data are marked, {plain} not");
    Ok(format!("{marked} datagrams of data marked af41; the handshake bears none"))
}

fn refused(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    let (a, _b) = site::pair()?;
    let file = vpnd::write_files(&host, &told(a, &["bind_device = \"eth9\""]))?;
    let file = file.to_str().context("a path of our own making")?;
    let (code, said) = vpnd::run(&host, &["--config", file])?;
    let words = "cannot bind the UDP socket to `eth9` (SO_BINDTODEVICE)";
    ensure!(code == 1 && said.contains(words), "{code}, {said}");
    Ok("it names what was tried, on what, and what to do".to_owned())
}
