//! Two paths between the sites and a tunnel over each: each tunnel uses only its own path, even when the
//! other path is gone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vpnd_tests::link::port;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, PORT, Site};
use vpnd_tests::traffic::{ping, tcp};
use vpnd_tests::{Lab, Vpnd, nft};

use crate::socket::{B4, SECOND4, Uplinks, told};
use crate::tunnel::SOON;

/// Echo requests.
const PINGS: u32 = 10;
/// B's address inside each tunnel.
const INSIDE: [&str; 2] = ["10.99.1.2", "10.99.2.2"];

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("uplinks::a tunnel by each, and one uplink dies", Cost::Works, each)]
}

/// The first tunnel is sent by its source and a rule, the second by its device.
struct Both {
    net: Uplinks,
    _ends: [[Vpnd; 2]; 2],
}

impl Both {
    /// The default route is the first uplink's, and each tunnel takes the other than it would by that alone: the
    /// first is `source` on the second uplink, and the second tunnel is bound to the first uplink.
    fn new(lab: &Lab) -> Result<Self> {
        let net = Uplinks::new(lab)?;
        net.a.run(&format!("ip rule add from {SECOND4} lookup 100"))?;
        let by_source = start(&net, 0, &format!("source = {SECOND4:?}"))?;
        let by_device = start(&net, 1, "bind_device = \"one\"")?;
        Ok(Self { net, _ends: [by_source, by_device] })
    }

    /// How many datagrams of each tunnel come to the router by each uplink while A pings B in both.
    fn taken(&self) -> Result<[[u64; 2]; 2]> {
        let kind = |uplink, tunnel| format!("iifname {uplink} udp dport {}", listens(tunnel));
        let kinds = [0, 1].map(|tunnel| ["two", "one"].map(|uplink| kind(uplink, tunnel)));
        nft::count_arriving(&self.net.router, &kinds.concat())?;
        for address in INSIDE {
            ping::series(&self.net.a, address, PINGS, Duration::from_millis(20))?;
        }
        let counts = nft::counts(&self.net.router)?;
        nft::clear(&self.net.router)?;
        let [a, b, c, d] = counts.try_into().ok().context("nft counts something else")?;
        Ok([[a, b], [c, d]])
    }
}

/// The number of a tunnel's port at B.
fn listens(tunnel: u16) -> u16 {
    PORT + tunnel
}

fn start(net: &Uplinks, tunnel: u16, line: &str) -> Result<[Vpnd; 2]> {
    let (a, b) = site::pair()?;
    let [a, b] = [(a, 1), (b, 2)].map(|(site, last)| numbered(site, tunnel, last));
    let b = Vpnd::start(&net.b, &b)?;
    let a = told(a, &[line]).towards(&format!("{B4}:{}", listens(tunnel)));
    let a = Vpnd::start(&net.a, &a)?;
    ping::until_answered(&net.a, INSIDE[usize::from(tunnel)], SOON)?;
    Ok([a, b])
}

/// One of several tunnels between two hosts: with its own name, device, network and port.
pub(crate) fn numbered(mut site: Site, tunnel: u16, last: u8) -> Site {
    let network = tunnel + 1;
    site.addresses = vec![format!("10.99.{network}.{last}/30")];
    site.remote.allowed_ips = vec![format!("10.99.{network}.0/30")];
    let (name, device) = (format!("{}-{network}", site.name), format!("tun{tunnel}"));
    Site { name, device, listen: Some(listens(tunnel)), ..site }
}

fn each(lab: &Lab) -> Result<String> {
    let both = Both::new(lab)?;
    let enough = u64::from(PINGS);
    let [source, device] = both.taken()?;
    ensure!(source[0] >= enough && source[1] == 0, "by source [two, one]: {source:?}");
    ensure!(device[0] == 0 && device[1] >= enough, "by device [two, one]: {device:?}");
    let net = &both.net;
    port(&net.router, "two").down()?;
    let lost = ping::series(&net.a, INSIDE[0], 3, Duration::from_millis(50))?;
    ensure!(lost.answered == 0, "by an uplink that is dead: {lost:?}");
    let pings = ping::series(&net.a, INSIDE[1], PINGS, Duration::from_millis(20))?;
    ensure!(pings.answered == PINGS, "the other tunnel: {pings:?}");
    tcp::transfer(&net.a, &net.b, INSIDE[1], 4 << 20)?;
    port(&net.router, "two").up()?;
    ping::until_answered(&net.a, INSIDE[0], SOON)?;
    let [source, _] = both.taken()?;
    ensure!(source[0] >= enough && source[1] == 0, "by source, after: {source:?}");
    let first = format!("by source {} and 0", source[0]);
    Ok(format!(
        "{first}, by device 0 and {}; one dies and comes back, the other carries on",
        device[1]
    ))
}
