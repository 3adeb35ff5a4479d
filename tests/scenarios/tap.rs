//! Ethernet through the tunnel: every mode, cipher and size, and two LANs that become one.

use std::time::Duration;

use anyhow::{Result, ensure};
use vpnd_tests::capture::Capture;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{INNER_B4, INNER_B6, Site};
use vpnd_tests::traffic::{ping, tcp, udp};
use vpnd_tests::{Host, Lab, Wire};

use crate::lans::{LEFT6, Lans, RIGHT4, RIGHT6};
use crate::tunnel::{Tunnel, carries_everything};

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

fn bridged(lab: &Lab, path: u16) -> Result<String> {
    let lans = Lans::new(lab, path)?;
    let (left, right) = (&lans.left, &lans.right);
    // Frames of full size, never fragmented by hosts.
    for (address, headers) in [(RIGHT4, 28), (RIGHT6, 48)] {
        let pings = ping::with_size(left, address, 10, Duration::from_millis(20), 1500 - headers)?;
        ensure!(pings.answered == 10, "1500 bytes to {address}: {pings:?}");
        let largest = usize::from(1500 - headers);
        let lengths: Vec<_> = (0..=largest).rev().step_by(7).chain([0, 1]).collect();
        udp::one_of_each(left, right, address, &lengths)?;
    }
    tcp::transfer(left, right, RIGHT4, 16 << 20)?;
    tcp::transfer(right, left, LEFT6, 16 << 20)?;
    foreign_frames(left, right)?;
    lans.ensure_whole(1500)?;
    let crossed = "pings and UDP up to 1500 bytes with DF, TCP both ways, tags, non-IP, multicast";
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
