//! Multicast groups joined on one LAN and sent to on the other, between bridges with IGMP and MLD snooping.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vpnd_tests::capture::{Capture, Seen};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::{Frame, Host, Lab, eventually};

use crate::lans::{Lans, Wiretap, ensure_seen};
use crate::tunnel::SOON;

/// The group that right joins, of each family.
const JOINED: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(239, 18, 0, 7)),
    IpAddr::V6(Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0x18, 7)),
];
/// The group that nobody joins.
const ALONE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(239, 18, 0, 8)),
    IpAddr::V6(Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0x18, 8)),
];
/// Of every stream.
const PORT: u16 = 5004;
/// Datagrams of a stream: no more than wait in a socket that nobody reads yet.
const STREAM: usize = 50;
/// Bytes of each.
const SIZE: usize = 1200;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("lan::multicast between bridges that snoop", Cost::Waits, streams)]
}

/// A's bridge asks who listens; right joins; then left sends to a group that right is in, and to one
/// that nobody is in.
fn streams(lab: &Lab) -> Result<String> {
    let lans = Lans::new(lab, 1500)?;
    for host in [&lans.left, &lans.right] {
        host.run("ip route add 239.0.0.0/8 dev eth0")?;
    }
    let right = Capture::frames(&lans.right, "eth0")?;
    let out_of_a = Capture::frames(&lans.wire.a, "tap0")?;
    let out_of_b = Capture::frames(&lans.wire.b, "tap0")?;
    let wiretap = Wiretap::new(&lans, &[])?;
    for router in [&lans.wire.a, &lans.wire.b] {
        router.run(
            "ip link set br0 type bridge mcast_snooping 1 mcast_query_response_interval 100",
        )?;
    }
    lans.wire.a.run("ip link set br0 type bridge mcast_igmp_version 3 mcast_mld_version 2")?;
    lans.wire.a.run("ip link set br0 type bridge mcast_querier 1")?;
    let receivers = [join(&lans.right, JOINED[0])?, join(&lans.right, JOINED[1])?];
    for group in JOINED {
        known(&lans.wire.a, group)?;
    }
    // Until so long after the first question a bridge takes nobody's silence for an answer.
    thread::sleep(Duration::from_millis(1500));
    for group in JOINED.into_iter().chain(ALONE) {
        send(&lans.left, group)?;
    }
    for receiver in receivers {
        let received = receive(&receiver)?;
        ensure!(received == STREAM, "{received} of {STREAM} datagrams were received");
    }
    asked_and_told(&right.stop()?, &out_of_a.stop()?)?;
    let seen = out_of_b.stop()?;
    for group in JOINED {
        let crossed = datagrams(&seen, group);
        ensure!(crossed == STREAM, "{crossed} of {STREAM} to {group} crossed");
    }
    for group in ALONE {
        let crossed = datagrams(&seen, group);
        ensure!(crossed == 0, "{crossed} to {group} crossed, and nobody listens there");
    }
    let heard = wiretap.heard()?;
    Ok(format!(
        "IGMP and MLD crossed, both ways; {STREAM} to each group joined, 0 to others; {heard}"
    ))
}

fn join(host: &Host, group: IpAddr) -> Result<UdpSocket> {
    host.enter(|| {
        let socket = UdpSocket::bind(SocketAddr::new(group, PORT))?;
        match group {
            IpAddr::V4(group) => socket.join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(group) => socket.join_multicast_v6(&group, eth0()?),
        }
        .with_context(|| format!("cannot join {group}"))?;
        Ok(socket)
    })
}

fn eth0() -> Result<u32> {
    nix::net::if_::if_nametoindex("eth0").context("no eth0")
}

/// Waits until a bridge knows that a group has a member beyond the tunnel.
fn known(router: &Host, group: IpAddr) -> Result<()> {
    eventually(&format!("a bridge knows of {group}"), SOON, || {
        let groups = router.run("bridge mdb show dev br0")?;
        ensure!(groups.contains(&format!("port tap0 grp {group} ")), "it knows {groups}");
        Ok(())
    })
}

fn send(host: &Host, group: IpAddr) -> Result<()> {
    host.enter(|| {
        let (any, to) = match group {
            IpAddr::V4(_) => ("0.0.0.0:0", SocketAddr::new(group, PORT)),
            IpAddr::V6(group) => ("[::]:0", SocketAddrV6::new(group, PORT, 0, eth0()?).into()),
        };
        let socket = UdpSocket::bind(any)?;
        for _ in 0..STREAM {
            socket.send_to(&[7; SIZE], to).with_context(|| format!("cannot send to {group}"))?;
            thread::sleep(Duration::from_micros(500));
        }
        Ok(())
    })
}

/// How many datagrams wait.
fn receive(socket: &UdpSocket) -> Result<usize> {
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut received = 0;
    loop {
        match socket.recv(&mut [0; 2000]) {
            Ok(SIZE) => received += 1,
            Ok(len) => anyhow::bail!("{len} bytes were received"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(received),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The question came to right, and what right reports came to A.
fn asked_and_told(right: &Seen, out_of_a: &Seen) -> Result<()> {
    ensure_seen(right, "IGMP query", |frame| frame.is_igmp(0x11))?;
    ensure_seen(right, "MLD query", |frame| frame.is_icmpv6(130))?;
    ensure_seen(out_of_a, "IGMPv3 report", |frame| frame.is_igmp(0x22))?;
    ensure_seen(out_of_a, "MLDv2 report", |frame| frame.is_icmpv6(143))
}

/// How many datagrams of a stream a capture has: many may come in one frame, as one super-packet.
fn datagrams(seen: &Seen, group: IpAddr) -> usize {
    let to_group = seen.frames.iter().filter(|frame| frame.destination() == Some(group));
    let payloads = to_group.filter_map(Frame::udp).filter(|(ports, _)| ports[1] == PORT);
    payloads.map(|(_, payload)| payload.len() / SIZE).sum()
}
