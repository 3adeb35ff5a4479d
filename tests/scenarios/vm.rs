//! Virtual machines on the LANs that a tunnel joins: a host with br0 and vnet0, guests in VLANs, and a
//! migration from site to site.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vpnd_tests::capture::{Capture, Seen};
use vpnd_tests::frame::{BROADCAST, Frame, IPV4};
use vpnd_tests::link::port;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::traffic::tcp::Trickle;
use vpnd_tests::traffic::{ping, tcp, udp};
use vpnd_tests::{Guest, Host, Lab};

use crate::lan::{address_of, dnsmasq, told, udhcpc};
use crate::lans::{Lans, RIGHT4, RIGHT6, Wiretap, count, ensure_seen};
use crate::tunnel::SOON;

/// A tag of 802.1Q: virtual LAN 7.
const SEVEN: [u8; 4] = [0x81, 0, 0, 7];
/// Virtual LAN 8.
const EIGHT: [u8; 4] = [0x81, 0, 0, 8];
/// A tag of 802.1ad around another: a provider's LAN 9.
const NINE: [u8; 4] = [0x88, 0xa8, 0, 9];
/// IP, ICMP and Ethernet.
const FULL: usize = 1500 + 14;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let vlan = |name: &str, tags: &'static [[u8; 4]]| {
        Scenario::new(name, Cost::Works, move |lab: &Lab| virtual_lan(lab, tags))
    };
    vec![
        Scenario::new("vm::a guest on br0 beside the tunnel", Cost::Works, guest),
        Scenario::new("vm::a guest moves to the other site", Cost::Works, migration),
        vlan("vlan::tagged frames of full size", &[SEVEN]),
        vlan("vlan::tags within tags", &[NINE, SEVEN]),
    ]
}

/// A's guest gets its address from right, and is reached from there.
fn guest(lab: &Lab) -> Result<String> {
    let lans = Lans::new(lab, 1500)?;
    let mut guest = Guest::new(lab, "guest", &["2001:db8:18::7/64"])?;
    guest.plug(&lans.wire.a, "vnet0")?;
    let system = &guest.system;
    let wiretap = Wiretap::new(&lans, &[system])?;
    let range = "--dhcp-range=198.18.0.100,198.18.0.109,2m";
    let _server = dnsmasq(&lans.right, &[range, "--dhcp-authoritative", "--no-ping"])?;
    let client = udhcpc(system)?;
    let address = address_of(&told(&client, "bound")?)?.to_string();
    for (to, headers) in [(RIGHT4, 28), (RIGHT6, 48)] {
        ping::until_answered(system, to, SOON)?;
        let pings = ping::with_size(system, to, 10, Duration::from_millis(20), 1500 - headers)?;
        ensure!(pings.answered == 10, "1500 bytes to {to}: {pings:?}");
    }
    let heard = wiretap.heard()?;
    let super_packets = Capture::frames(&lans.wire.a, "vnet0")?;
    let there = tcp::transfer(system, &lans.right, RIGHT6, 32 << 20)?;
    tcp::transfer(&lans.right, system, &address, 32 << 20)?;
    let largest = largest(&super_packets.stop()?)?;
    ensure!(largest > 2 * FULL, "vnet0 has no offloads: at most {largest} bytes at once");
    lans.ensure_whole(1500)?;
    let rate = there.megabits();
    let offloads = format!("TCP ({rate:.0} Mbit/s) by up to {largest} bytes at once");
    Ok(format!("{address} leased across; full pings with DF; {offloads}; {heard}"))
}

fn largest(seen: &Seen) -> Result<usize> {
    let lengths = seen.frames.iter().map(|frame| frame.bytes().len());
    lengths.max().context("no frame was captured")
}

/// A connection of the guest's lives on, and everybody finds it where it is now.
fn migration(lab: &Lab) -> Result<String> {
    let lans = Lans::new(lab, 1500)?;
    let address = "198.18.0.7";
    let mut guest = Guest::new(lab, "guest", &[&format!("{address}/24")])?;
    let (a, b) = (&lans.wire.a, &lans.wire.b);
    guest.plug(a, "vnet0")?;
    let mac = port(&guest.system, "eth0").mac()?;
    for host in [&lans.left, &lans.right] {
        ping::until_answered(host, address, SOON)?;
    }
    lans.learned(a, mac, "vnet0")?;
    lans.learned(b, mac, "tap0")?;
    let connection = Trickle::start(&lans.left, &guest.system, address)?;
    connection.advances(SOON)?;
    let start = Instant::now();
    guest.plug(b, "vnet0")?;
    guest.announce()?;
    lans.learned(b, mac, "vnet0")?;
    lans.learned(a, mac, "tap0")?;
    connection.advances(SOON)?;
    let gap = start.elapsed();
    for host in [&lans.left, &lans.right] {
        ping::until_answered(host, address, SOON)?;
    }
    let carried = connection.finish()?;
    Ok(format!("a connection moved with the guest ({gap:.1?}); {carried} bytes, none wrong"))
}

/// Two guests in one virtual LAN, one on each side, and one in another, with the same address.
fn virtual_lan(lab: &Lab, tags: &'static [[u8; 4]]) -> Result<String> {
    let lans = Lans::new(lab, 1500)?;
    let within = |name: &str, addresses: &[&str], tags: &[[u8; 4]]| -> Result<Guest> {
        Ok(Guest::new(lab, name, addresses)?.tagged(tags))
    };
    let mut near = within("near", &["198.18.7.1/24", "2001:db8:7::1/64"], tags)?;
    let mut far = within("far", &["198.18.7.2/24", "2001:db8:7::2/64"], tags)?;
    near.plug(&lans.wire.a, "vnet0")?;
    far.plug(&lans.wire.b, "vnet0")?;
    let wiretap = Wiretap::new(&lans, &[&near.system, &far.system])?;
    let flooded = Capture::frames(&lans.right, "eth0")?;
    let crossed = Capture::frames(&lans.wire.b, "tap0")?;
    full_size(&near.system, &far.system)?;
    let numbers: Vec<u16> = tags.iter().map(|tag| u16::from(tag[3])).collect();
    let flooded = flooded.stop()?;
    ensure_seen(&flooded, "tagged ARP request on right's LAN", |frame| {
        frame.is_to(BROADCAST) && frame.tags() == numbers && frame.arp().is_some()
    })?;
    let full = whole(&crossed.stop()?, &numbers);
    ensure!(full >= 10, "{full} tagged frames of full size");
    let heard = wiretap.heard()?;
    let super_packets = Capture::frames(&lans.wire.a, "tap0")?;
    tcp::transfer(&near.system, &far.system, "198.18.7.2", 16 << 20)?;
    tcp::transfer(&far.system, &near.system, "2001:db8:7::1", 16 << 20)?;
    let largest = largest(&super_packets.stop()?)?;
    ensure!(largest > 2 * FULL, "no offloads behind tags: at most {largest} bytes at once");
    apart(lab, &lans, &near.system)?;
    lans.ensure_whole(1500)?;
    let full = format!("{full} frames of {} bytes", FULL + 4 * tags.len());
    let tcp = format!("TCP both ways by up to {largest} bytes at once");
    Ok(format!("tags {numbers:?}; {full}; {tcp}; {heard}"))
}

/// Pings and UDP, 1500 bytes behind the tags.
fn full_size(near: &Host, far: &Host) -> Result<()> {
    for (address, headers) in [("198.18.7.2", 28), ("2001:db8:7::2", 48)] {
        ping::until_answered(near, address, SOON)?;
        let pings = ping::with_size(near, address, 10, Duration::from_millis(20), 1500 - headers)?;
        ensure!(pings.answered == 10, "1500 bytes to {address}: {pings:?}");
        let largest = usize::from(1500 - headers);
        let lengths: Vec<_> = (0..=largest).rev().step_by(50).collect();
        udp::one_of_each(near, far, address, &lengths)?;
    }
    Ok(())
}

/// Frames with these tags and 1500 bytes of IPv4 behind them.
fn whole(seen: &Seen, tags: &[u16]) -> usize {
    let size = FULL + 4 * tags.len();
    let is_whole =
        |frame: &Frame| frame.bytes().len() == size && frame.tags() == tags && frame.kind() == IPV4;
    count(seen, is_whole)
}

/// One in another virtual LAN is not reached, though it is on the same bridge.
fn apart(lab: &Lab, lans: &Lans, near: &Host) -> Result<()> {
    let mut other = Guest::new(lab, "other", &["198.18.7.3/24"])?.tagged(&[EIGHT]);
    other.plug(&lans.wire.b, "vnet1")?;
    let pings = ping::series(near, "198.18.7.3", 3, Duration::from_millis(100))?;
    ensure!(pings.answered == 0, "one of another virtual LAN answers: {pings:?}");
    Ok(())
}
