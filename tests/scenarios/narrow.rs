//! Paths of IPv6 that carry less than their first link, and messages that only say so.

use std::time::Duration;

use anyhow::{Result, ensure};
use vpnd_tests::capture::Capture;
use vpnd_tests::link::{cable, port};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_B4, PORT, Site};
use vpnd_tests::traffic::{ping, tcp};
use vpnd_tests::{Host, Lab, Vpnd, Wire, eventually, nft};

use crate::tunnel::{SOON, Tunnel};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("narrow::a smaller link that fragments do not cross", Cost::Works, pieces),
        Scenario::new("narrow::a smaller link, to WireGuard", Cost::Works, fragments),
        Scenario::new("narrow::a forged message about the path", Cost::Works, forged),
    ]
}

/// Bytes that the link in the middle carries.
const NARROW: &str = "1400";
/// With ICMP and IP headers as large as the device's MTU.
const FULL: u16 = 1420 - 28;

/// Two hosts with two routers between them, and a smaller link between those. The routers say so to both.
struct Path {
    a: Host,
    b: Host,
}

impl Path {
    const A6: &str = "[2001:db8:1::1]:51820";
    const B6: &str = "[2001:db8:3::1]:51820";

    fn new(lab: &Lab) -> Result<Self> {
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        let (near, far) = (lab.host("near")?, lab.host("far")?);
        cable(port(&a, "eth0"), port(&near, "to-a"))?;
        cable(port(&near, "far"), port(&far, "near"))?;
        cable(port(&far, "to-b"), port(&b, "eth0"))?;
        for (host, device, address) in [
            (&a, "eth0", "2001:db8:1::1/64"),
            (&near, "to-a", "2001:db8:1::ff/64"),
            (&near, "far", "2001:db8:2::1/64"),
            (&far, "near", "2001:db8:2::2/64"),
            (&far, "to-b", "2001:db8:3::ff/64"),
            (&b, "eth0", "2001:db8:3::1/64"),
        ] {
            port(host, device).address(&[address])?;
        }
        for (router, device, net, gateway) in [
            (&near, "far", "2001:db8:3::/64", "2001:db8:2::2"),
            (&far, "near", "2001:db8:1::/64", "2001:db8:2::1"),
        ] {
            router.sysctl("ipv6/conf/all/forwarding", "1")?;
            router.run(&format!("ip link set {device} mtu {NARROW}"))?;
            router.run(&format!("ip -6 route add {net} via {gateway}"))?;
        }
        a.run("ip -6 route add default via 2001:db8:1::ff")?;
        b.run("ip -6 route add default via 2001:db8:3::ff")?;
        Ok(Self { a, b })
    }

    fn start(&self, site: impl Fn(Site) -> Site) -> Result<(Vpnd, Vpnd)> {
        let (a, b) = site::pair()?;
        let b = Vpnd::start(&self.b, &site(b.towards(Self::A6)))?;
        let a = Vpnd::start(&self.a, &site(a.towards(Self::B6)))?;
        ping::until_answered(&self.a, INNER_B4, SOON)?;
        Ok((a, b))
    }
}

/// Between two vpnd packets cross in pieces that fit, as soon as the first was refused.
fn pieces(lab: &Lab) -> Result<String> {
    let path = Path::new(lab)?;
    for host in [&path.a, &path.b] {
        nft::drop_arriving(host, "exthdr frag exists")?;
    }
    let _ends = path.start(|site| site.speaking_vpnd(&[]))?;
    crosses(&path, INNER_B4)
}

/// WireGuard takes no pieces: the kernel makes fragments that fit.
fn fragments(lab: &Lab) -> Result<String> {
    let path = Path::new(lab)?;
    let _ends = path.start(|site| site)?;
    crosses(&path, INNER_B4)
}

fn crosses(path: &Path, to: &str) -> Result<String> {
    let full = || {
        let pings = ping::with_size(&path.a, to, 5, Duration::from_millis(100), FULL)?;
        ensure!(pings.answered == 5, "of full size: {pings:?}");
        Ok(())
    };
    eventually("both ends know what the path carries", SOON, full)?;
    tcp::transfer(&path.a, &path.b, to, 8 << 20)?;
    tcp::transfer(&path.b, &path.a, INNER_A4, 8 << 20)?;
    full()?;
    Ok("pings of full size and 8 MiB of TCP each way".to_owned())
}

/// The kernel believes it, and vpnd asks the peer.
fn forged(lab: &Lab) -> Result<String> {
    let Tunnel { wire, a: _a, b: _b } =
        Tunnel::with(lab, |a, b| (a.speaking_vpnd(&[]).towards(Wire::B6), b.speaking_vpnd(&[])))?;
    let full = || ping::with_size(&wire.a, INNER_B4, 5, Duration::from_millis(20), FULL);
    full()?;
    Capture::start(&wire.b, "eth0", 0)?.send(&too_big(&wire)?)?;
    eventually("the kernel believes it", SOON, || {
        let route = wire.a.run("ip -6 route get 2001:db8::2")?;
        ensure!(route.contains("mtu 1280"), "{route}");
        Ok(())
    })?;
    eventually("whole datagrams again", SOON, || {
        nft::clear(&wire.b)?;
        nft::count_arriving(&wire.b, &[format!("udp dport {PORT} meta length > 1400")])?;
        let pings = full()?;
        ensure!(pings.answered == 5, "{pings:?}");
        let whole = nft::counts(&wire.b)?;
        ensure!(whole == [5], "{whole:?} of 5 datagrams were whole");
        Ok(())
    })?;
    Ok("the kernel was told of 1280 bytes, and datagrams of full size went on".to_owned())
}

/// To A, of a datagram that it might have sent to B: a link carries 1280 bytes.
fn too_big(wire: &Wire) -> Result<Vec<u8>> {
    let mac = |host: &Host| port(host, "eth0").mac().map(|mac| mac.to_vec());
    let own = |last| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    let ipv6 = |len: u16, next: u8, from: [u8; 16], to: [u8; 16]| {
        [&[0x60, 0, 0, 0][..], &len.to_be_bytes(), &[next, 64], &from, &to].concat()
    };
    let port = PORT.to_be_bytes();
    let quoted =
        [ipv6(1408, 17, own(1), own(2)), [port, port, 1408u16.to_be_bytes(), [0, 0]].concat()];
    let mut message = [&[2, 0, 0, 0, 0, 0, 5, 0][..], &quoted.concat(), &[0; 64]].concat();
    let len = u16::try_from(message.len())?;
    let pseudo = [&own(2)[..], &own(1), &u32::from(len).to_be_bytes(), &[0, 0, 0, 58]].concat();
    let words = pseudo.chunks(2).chain(message.chunks(2));
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16))?;
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let header = ipv6(len, 58, own(2), own(1));
    Ok([&mac(&wire.a)?[..], &mac(&wire.b)?, &[0x86, 0xdd], &header, &message].concat())
}
