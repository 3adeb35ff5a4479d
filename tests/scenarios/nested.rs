//! A tunnel inside a tunnel: the inner one's datagrams are the outer one's packets.

use std::time::Duration;

use anyhow::{Result, ensure};
use vpnd_tests::capture::{Capture, Datagram};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, INNER_B6, PORT, Site};
use vpnd_tests::traffic::{ping, tcp, udp};
use vpnd_tests::{Host, Lab, Vpnd, nft};

use crate::tunnel::{SOON, Tunnel};

/// Where the inner tunnel's ends listen.
const INSIDE: u16 = 51821;
/// A's addresses in the inner tunnel.
const A: [&str; 2] = ["10.99.1.1", "2001:db8:98::1"];
/// B's addresses in the inner tunnel.
const B: [&str; 2] = ["10.99.1.2", "2001:db8:98::2"];

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("nested::TUN in TUN", Cost::Works, |lab| {
            // 1420 less IPv6, UDP and WireGuard: nothing is fragmented.
            nested(lab, "tun", INNER_B6, 1340, wireguard)
        }),
        Scenario::new("nested::TUN in TUN, as large as the outer one", Cost::Works, |lab| {
            nested(lab, "tun", INNER_B4, 1420, vpnd)
        }),
        Scenario::new("nested::TAP in TUN", Cost::Works, |lab| {
            nested(lab, "tap", INNER_B4, 1500, vpnd)
        }),
    ]
}

fn wireguard(site: Site) -> Site {
    site
}

fn vpnd(site: Site) -> Site {
    site.speaking_vpnd(&[])
}

/// Every length of UDP, full pings and TCP, in a tunnel with this MTU to an inner address of B.
fn nested(lab: &Lab, mode: &str, to: &str, mtu: u16, speaking: fn(Site) -> Site) -> Result<String> {
    let outer = Tunnel::new(lab)?;
    let (a, b) = (&outer.wire.a, &outer.wire.b);
    let cable = Capture::start(b, "eth0", 4)?;
    nft::count_arriving(b, &[format!("iifname tun0 udp sport {INSIDE}")])?;
    let ends = start(a, b, to, |site| inside(speaking(site), mode, mtu))?;
    for (address, headers) in B.into_iter().zip([28, 48]) {
        ping::until_answered(a, address, SOON)?;
        let pings = ping::with_size(a, address, 10, Duration::from_millis(20), mtu - headers)?;
        ensure!(pings.answered == 10, "{mtu} bytes to {address}: {pings:?}");
        let lengths: Vec<usize> = (0..=usize::from(mtu - headers)).collect();
        udp::one_of_each(a, b, address, &lengths)?;
    }
    tcp::transfer(a, b, B[0], 16 << 20)?;
    tcp::transfer(b, a, A[1], 16 << 20)?;
    for end in &ends {
        ensure!(end.status()?.is_up(), "{}", end.status()?);
    }
    let cable = cable.stop()?;
    let is_outer = |datagram: &Datagram| [datagram.from.port(), datagram.to.port()] == [PORT; 2];
    let outside = cable.count(is_outer);
    ensure!(outside == cable.datagrams.len(), "the inner tunnel's datagrams are on the cable");
    let inner = nft::counts(b)?.iter().sum::<u64>();
    ensure!(inner > 0, "none of the inner tunnel's datagrams came by the outer tunnel");
    Ok(format!(
        "every length to {mtu} bytes, TCP; {inner} inner datagrams to B within the outer tunnel"
    ))
}

/// Both ends of the inner tunnel; A initiates.
fn start(a: &Host, b: &Host, to: &str, change: impl Fn(Site) -> Site) -> Result<[Vpnd; 2]> {
    let (mut site_a, mut site_b) = site::pair()?;
    site_a.addresses = vec![format!("{}/30", A[0]), format!("{}/64", A[1])];
    site_b.addresses = vec![format!("{}/30", B[0]), format!("{}/64", B[1])];
    site_a.remote.allowed_ips = hosts(B);
    site_b.remote.allowed_ips = hosts(A);
    let to = if to.contains(':') { format!("[{to}]:{INSIDE}") } else { format!("{to}:{INSIDE}") };
    let site_b = Vpnd::start(b, &change(site_b))?;
    Ok([Vpnd::start(a, &change(site_a.towards(&to)))?, site_b])
}

fn hosts([v4, v6]: [&str; 2]) -> Vec<String> {
    vec![format!("{v4}/32"), format!("{v6}/128")]
}

fn inside(mut site: Site, mode: &str, mtu: u16) -> Site {
    site.interface.push(format!("mode = {mode:?}"));
    let (name, device) = (format!("{}-inside", site.name), format!("{mode}1"));
    Site { name, device, mtu, listen: Some(INSIDE), ..site }
}
