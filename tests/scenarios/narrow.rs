//! Messages that say of an IPv6 path that it carries less than it does.

use std::time::Duration;

use anyhow::{Result, ensure};
use vpnd_tests::capture::Capture;
use vpnd_tests::link::port;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{INNER_B4, PORT};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, Lab, Wire, eventually, nft};

use crate::tunnel::{SOON, Tunnel};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("narrow::a forged message about the path", Cost::Works, forged)]
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
