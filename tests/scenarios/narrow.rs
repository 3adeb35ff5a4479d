//! IPv6 paths whose MTU is below that of the first link, forged messages about such a path; and the clamp of
//! TCP's segment size, with which neither matters.

use std::time::Duration;

use anyhow::{Result, ensure};
use vpnd_tests::capture::Capture;
use vpnd_tests::link::port;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, INNER_B6, PORT};
use vpnd_tests::traffic::{ping, tcp};
use vpnd_tests::{Host, Lab, Routed, Vpnd, Wire, eventually, nft};

use crate::tunnel::{SOON, Tunnel};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("narrow::a forged message about the path", Cost::Works, forged),
        Scenario::new("narrow::a smaller link behind the first", Cost::Works, smaller_link),
        Scenario::new("narrow::a SYN behind an extension header", Cost::Works, extended_syn),
    ]
}

/// Neither end takes IP fragments, as firewalls do: the datagrams have to fit whole.
fn smaller_link(lab: &Lab) -> Result<String> {
    const SMALLER: u16 = 1400;
    const BYTES: u64 = 4 << 20;
    let path = Routed::new(lab)?;
    // Both its ends, for veth drops what is longer than the receiving end's MTU. B so knows of it, A does not.
    port(&path.router, "b").mtu(SMALLER)?;
    port(&path.b, "eth0").mtu(SMALLER)?;
    for end in [&path.a, &path.b] {
        nft::drop_arriving(end, "exthdr frag exists")?;
    }
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&path.b, &b.speaking_vpnd(&[]))?;
    let _a =
        Vpnd::start(&path.a, &a.speaking_vpnd(&[]).towards("[2001:db8:b::1]:51820").keepalive(5))?;
    ping::until_answered(&path.a, INNER_B4, SOON)?;
    tcp::transfer(&path.a, &path.b, INNER_B4, BYTES)?;
    let full = ping::with_size(&path.a, INNER_B4, 5, Duration::from_millis(100), FULL)?;
    ensure!(full.answered == 5, "{full:?}");
    let route = path.a.run("ip -6 route get 2001:db8:b::1")?;
    ensure!(route.contains(&format!("mtu {SMALLER}")), "the router said nothing: {route}");
    Ok(format!("{BYTES} bytes of TCP and 5 of 5 full pings over a link of {SMALLER} bytes"))
}

fn extended_syn(lab: &Lab) -> Result<String> {
    let Tunnel { wire, a: _a, b: _b } = Tunnel::new(lab)?;
    // As a host behind A would, whose own link carries 1500.
    wire.a.run(&format!("ip -6 route add {INNER_B6}/128 dev tun0 advmss 1440"))?;
    let size = |test: &str| {
        format!("exthdr hbh exists tcp flags & syn == syn tcp option maxseg size {test}")
    };
    nft::count_arriving(&wire.b, &[size("1360"), size("> 1360")])?;
    tcp::connect_with_options(&wire.a, &wire.b, INNER_B6, SOON)?;
    let counts = nft::counts(&wire.b)?;
    ensure!(counts[0] > 0 && counts[1] == 0, "{counts:?} with 1360 and with more");
    Ok("1440 behind hop-by-hop options becomes 1360, and the connection stands".to_owned())
}

/// With ICMP and IP headers as large as the device's MTU.
const FULL: u16 = 1420 - 28;

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
