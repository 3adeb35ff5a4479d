//! Ethernet through the tunnel: every mode, cipher and size, and two LANs that become one.

use std::time::Duration;

use anyhow::{Result, ensure};
use vpnd_tests::capture::Capture;
use vpnd_tests::link::{cable, port};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, INNER_B6, Site};
use vpnd_tests::traffic::{ping, tcp};
use vpnd_tests::{Host, Lab, Vpnd, Wire};

use crate::tunnel::{SOON, Tunnel, carries_everything};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    for mode in ["tun", "tap"] {
        for cipher in ["chacha20-poly1305", "aes-256-gcm"] {
            for (family, outside) in [("v4", Wire::B4), ("v6", Wire::B6)] {
                for mtu in [1420, 9000] {
                    let name = format!("tap::mode {mode}, {cipher}, over {family}, mtu {mtu}");
                    let body = move |lab: &Lab| carries(lab, mode, cipher, outside, mtu);
                    all.push(Scenario::new(name, Cost::Works, body));
                }
            }
        }
    }
    for path in [1500, 1280] {
        let name = format!("tap::two bridged LANs over a path of {path}");
        all.push(Scenario::new(name, Cost::Works, move |lab| bridged(lab, path)));
    }
    all
}

fn with(site: Site, mode: &str, cipher: &str, mtu: u16) -> Site {
    let cipher = format!("cipher = {cipher:?}");
    let mut site = Site { mtu, ..site.speaking_vpnd(&[&cipher]) };
    site.interface.push(format!("mode = {mode:?}"));
    site
}

fn carries(lab: &Lab, mode: &str, cipher: &str, outside: &str, mtu: u16) -> Result<String> {
    let Tunnel { wire, a, b } = Tunnel::with(lab, |a, b| {
        (with(a.towards(outside), mode, cipher, mtu), with(b, mode, cipher, mtu))
    })?;
    carries_everything(&wire, true)?;
    for (address, headers) in [(INNER_B4, 28), (INNER_B6, 48)] {
        let pings = ping::with_size(&wire.a, address, 3, Duration::from_millis(20), mtu - headers)?;
        ensure!(pings.answered == 3, "{mtu} bytes to {address}: {pings:?}");
    }
    for end in [&a, &b] {
        let status = end.status()?;
        ensure!(status.is_up() && status.peer_mtu() == Some(mtu.into()), "{status}");
    }
    Ok("pings up to the MTU and TCP, both ways, both families".to_owned())
}

/// Two LANs of 1500 bytes, each a bridge with one host and vpnd's device:
///
/// ```text
///   left [eth0] ── [lan] a (br0, tap0) ══ tunnel ══ b (br0, tap0) [lan] ── [eth0] right
/// ```
struct Lans {
    left: Host,
    right: Host,
    wire: Wire,
    vpnds: [Vpnd; 2],
}

impl Lans {
    fn new(lab: &Lab, path: u16) -> Result<Self> {
        let wire = Wire::new(lab)?;
        let (left, right) = (lab.host("left")?, lab.host("right")?);
        for (lan, router) in [(&left, &wire.a), (&right, &wire.b)] {
            router.run(&format!("ip link set eth0 mtu {path}"))?;
            cable(port(lan, "eth0"), port(router, "lan"))?;
            router.run("ip link add br0 type bridge")?;
            router.run("ip link set lan master br0")?;
            router.run("ip link set br0 up")?;
        }
        port(&left, "eth0").address(&["198.18.0.1/24", "2001:db8:18::1/64"])?;
        port(&right, "eth0").address(&["198.18.0.2/24", "2001:db8:18::2/64"])?;
        let (a, b) = site::pair()?;
        let bridged = |site: Site| {
            let mut site = with(site, "tap", "chacha20-poly1305", 1500);
            site.addresses.clear();
            site.interface.push("bridge = \"br0\"".to_owned());
            site
        };
        let b = Vpnd::start(&wire.b, &bridged(b))?;
        let a = Vpnd::start(&wire.a, &bridged(a.towards(Wire::B4)))?;
        ping::until_answered(&left, "198.18.0.2", SOON)?;
        Ok(Self { left, right, wire, vpnds: [a, b] })
    }
}

fn bridged(lab: &Lab, path: u16) -> Result<String> {
    let Lans { left, right, wire, vpnds } = Lans::new(lab, path)?;
    // ARP and neighbour discovery found each other; now frames of full size, never fragmented by hosts.
    for (address, headers) in [("198.18.0.2", 28), ("2001:db8:18::2", 48)] {
        ping::until_answered(&left, address, SOON)?;
        let pings = ping::with_size(&left, address, 10, Duration::from_millis(20), 1500 - headers)?;
        ensure!(pings.answered == 10, "1500 bytes to {address}: {pings:?}");
    }
    tcp::transfer(&left, &right, "198.18.0.2", 16 << 20)?;
    tcp::transfer(&right, &left, "2001:db8:18::1", 16 << 20)?;
    foreign_frames(&left, &right)?;
    for router in [&wire.a, &wire.b] {
        let bridge = router.run("ip -o link show br0")?;
        ensure!(bridge.contains("mtu 1500"), "joining changed the bridge: {bridge}");
    }
    for vpnd in &vpnds {
        ensure!(vpnd.status()?.is_up(), "{}", vpnd.status()?);
    }
    let crossed =
        "ARP, IPv6 neighbours, full frames with DF, TCP both ways, tags, non-IP, multicast";
    Ok(format!("{crossed}; br0 keeps its MTU"))
}

/// What no host here understands crosses all the same: tagged for a virtual LAN, not IP, to a group.
fn foreign_frames(left: &Host, right: &Host) -> Result<()> {
    const TO_ALL: [u8; 6] = [0xff; 6];
    const TO_A_GROUP: [u8; 6] = [0x01, 0x00, 0x5e, 0x7f, 0x00, 0x07];
    const FROM: [u8; 6] = [0x02, 0, 0, 0, 0, 0x77];
    let tagged = [0x81, 0x00, 0x00, 0x07, 0x88, 0xb5];
    let twice = [0x88, 0xa8, 0x00, 0x09, 0x81, 0x00, 0x00, 0x07, 0x88, 0xb5];
    let kinds: [(&[u8], &[u8; 6], &[u8]); 4] = [
        (&[0x88, 0xb5], &TO_ALL, b"neither IP nor tagged, to everybody......................."),
        (&[0x88, 0xb5], &TO_A_GROUP, b"to a group of those who listen............................"),
        (&tagged, &TO_ALL, b"in a virtual LAN of its own..............................."),
        (&twice, &TO_ALL, b"in a virtual LAN inside another..........................."),
    ];
    let (sender, receiver) = (Capture::start(left, "eth0", 0)?, Capture::start(right, "eth0", 96)?);
    for (kind, to, text) in kinds {
        sender.send(&[&to[..], &FROM, kind, text].concat())?;
    }
    std::thread::sleep(Duration::from_millis(200));
    let seen = receiver.stop()?;
    for (_, _, text) in kinds {
        ensure!(seen.contains(text), "{:?} did not arrive", String::from_utf8_lossy(text));
    }
    Ok(())
}
