//! Tests of the laboratory itself, with independent peers.

use std::time::Duration;

use anyhow::Result;
use vpnd_tests::capture::Capture;
use vpnd_tests::link::{Switch, port};
use vpnd_tests::peer::{Kind, Peer};
use vpnd_tests::relay::{Direction, Faults, Relay};
use vpnd_tests::site::{self, INNER_A4, INNER_B4, INNER_B6, PORT};
use vpnd_tests::traffic::stream::{Pace, Stream};
use vpnd_tests::traffic::{iperf, ping, tcp};
use vpnd_tests::{Lab, Routed, Wire, nft};

const SHORT: Duration = Duration::from_millis(10);

#[test]
fn peers_reach_each_other_through_their_tunnels() -> Result<()> {
    let kinds = Kind::ALL;
    for (a, b) in [(kinds[0], kinds[1]), (kinds[1], kinds[2]), (kinds[2], kinds[0])] {
        let lab = Lab::new("peers")?;
        let wire = Wire::new(&lab)?;
        let (site_a, site_b) = site::pair()?;
        let eavesdropper = Capture::start(&wire.b, "eth0", 2000)?;
        let peer_b = Peer::start(b, &wire.b, &site_b)?;
        let peer_a = Peer::start(a, &wire.a, &site_a.towards(Wire::B4))?;
        ping::until_answered(&wire.a, INNER_B4, Duration::from_secs(10))?;
        ping::until_answered(&wire.a, INNER_B6, Duration::from_secs(5))?;
        let sent = tcp::transfer(&wire.b, &wire.a, INNER_A4, 1 << 20)?;
        assert_eq!(sent.bytes, 1 << 20);
        assert_eq!((peer_a.handshakes(), peer_b.handshakes()), (1, 1), "{}", lab.log_tails());
        assert_eq!(peer_b.endpoint()?, Wire::A4);
        let seen = eavesdropper.stop()?;
        assert!(seen.count(|datagram| datagram.kind() == Some(4)) > 700);
        assert!(seen.count(|datagram| datagram.kind() == Some(1) && datagram.len == 148) > 0);
    }
    Ok(())
}

#[test]
fn a_stream_over_a_cable_is_perfect_and_captured_whole() -> Result<()> {
    let lab = Lab::new("stream")?;
    let wire = Wire::new(&lab)?;
    let capture = Capture::start(&wire.b, "eth0", 16)?;
    let pace = Pace { per_second: 2000, payload: 333 };
    let stream = Stream::start(&wire.a, &wire.b, "2001:db8::2", pace)?;
    std::thread::sleep(Duration::from_secs(1));
    let tally = stream.stop()?;
    tally.ensure_perfect()?;
    assert!(tally.sent > 1500, "{tally:?}");
    let seen = capture.stop()?;
    assert_eq!(seen.count(|datagram| datagram.len == 333), usize::try_from(tally.sent)?);
    Ok(())
}

#[test]
fn the_filter_loses_its_share() -> Result<()> {
    let lab = Lab::new("loss")?;
    let wire = Wire::new(&lab)?;
    nft::drop_arriving(&wire.b, "icmp type echo-request numgen random mod 100 < 30")?;
    let pings = ping::series(&wire.a, "192.0.2.2", 400, SHORT)?;
    assert!((230..330).contains(&pings.answered), "{pings:?}");
    assert_eq!(u64::from(pings.sent - pings.answered), nft::dropped(&wire.b)?);
    nft::clear(&wire.b)?;
    ping::once(&wire.a, "192.0.2.2")
}

#[test]
fn a_black_hole_swallows_the_large_only() -> Result<()> {
    let lab = Lab::new("hole")?;
    let wire = Wire::new(&lab)?;
    port(&wire.a, "eth0").no_offload()?;
    nft::black_hole(&wire.b, 1380)?;
    let pings = |bytes| ping::with_size(&wire.a, "192.0.2.2", 1, SHORT, bytes);
    assert_eq!(pings(1352)?.answered, 1);
    assert_eq!(pings(1353)?.answered, 0);
    Ok(())
}

#[test]
fn address_translation_forgets() -> Result<()> {
    let lab = Lab::new("nat")?;
    let net = Routed::new(&lab)?;
    nft::masquerade(&net.router, "b", 1)?;
    let inside = net.a.enter(|| Ok(std::net::UdpSocket::bind(Routed::A4)?))?;
    let outside = net.b.enter(|| Ok(std::net::UdpSocket::bind(Routed::B4)?))?;
    for socket in [&inside, &outside] {
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    }
    let mut buffer = [0; 9];
    inside.send_to(b"first", Routed::B4)?;
    let (_, mapped) = outside.recv_from(&mut buffer)?;
    assert_eq!(mapped.ip().to_string(), Routed::ROUTER_B4);
    outside.send_to(b"answer", mapped)?;
    assert_eq!(inside.recv(&mut buffer)?, 6);
    std::thread::sleep(Duration::from_millis(2500));
    outside.send_to(b"too late", mapped)?;
    assert!(inside.recv(&mut buffer).is_err(), "the mapping lives on");
    Ok(())
}

#[test]
fn the_relay_does_what_its_seed_says() -> Result<()> {
    let run = |seed| -> Result<_> {
        let lab = Lab::new("relay")?;
        let net = Routed::new(&lab)?;
        let front = format!("{}:{PORT}", Routed::ROUTER_A4);
        let relay = Relay::start(&net.router, &front, Routed::B4, seed)?;
        let inbox = net.b.enter(|| Ok(std::net::UdpSocket::bind(Routed::B4)?))?;
        inbox.set_read_timeout(Some(Duration::from_millis(300)))?;
        let outbox = net.a.enter(|| Ok(std::net::UdpSocket::bind("0.0.0.0:0")?))?;
        relay.set(Faults {
            drop: 0.3,
            duplicate: 0.2,
            flip: 0.2,
            truncate: 0.1,
            ..Faults::default()
        });
        relay.record();
        for number in 0..100_u8 {
            outbox.send_to(&[number; 100], &front)?;
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut arrived = Vec::new();
        let mut buffer = [0; 200];
        while let Ok(len) = inbox.recv(&mut buffer) {
            arrived.push(buffer[..len].to_vec());
        }
        assert_eq!(relay.recorded().len(), 100);
        assert!(relay.recorded().iter().all(|one| one.direction == Direction::ToTarget));
        Ok(arrived)
    };
    let first = run(7)?;
    assert_eq!(first, run(7)?);
    assert_ne!(first, run(8)?);
    assert!((50..110).contains(&first.len()), "{}", first.len());
    Ok(())
}

#[test]
fn the_relay_reorders_rebinds_and_replays() -> Result<()> {
    let lab = Lab::new("relay")?;
    let net = Routed::new(&lab)?;
    let front = format!("{}:{PORT}", Routed::ROUTER_A4);
    let relay = Relay::start(&net.router, &front, Routed::B4, 1)?;
    let inbox = net.b.enter(|| Ok(std::net::UdpSocket::bind(Routed::B4)?))?;
    inbox.set_read_timeout(Some(Duration::from_secs(2)))?;
    let outbox = net.a.enter(|| Ok(std::net::UdpSocket::bind("0.0.0.0:0")?))?;
    outbox.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut buffer = [0; 9];

    let late = Duration::from_millis(300)..Duration::from_millis(301);
    relay.set(Faults { late: 1.0, delay: late, ..Faults::default() });
    outbox.send_to(b"1", &front)?;
    std::thread::sleep(Duration::from_millis(100));
    relay.set(Faults::default());
    outbox.send_to(b"2", &front)?;
    inbox.recv(&mut buffer)?;
    assert_eq!(buffer[0], b'2');
    let (_, before) = inbox.recv_from(&mut buffer)?;
    assert_eq!(buffer[0], b'1');

    relay.rebind()?;
    relay.inject(Direction::ToTarget, b"3")?;
    let (_, after) = inbox.recv_from(&mut buffer)?;
    assert_eq!((before.ip(), after.port()), (after.ip(), relay.back_port()?));
    assert_ne!(before, after);
    inbox.send_to(b"back", after)?;
    assert_eq!(outbox.recv(&mut buffer)?, 4);
    Ok(())
}

#[test]
fn a_switch_joins_many_and_a_pulled_cable_parts_them() -> Result<()> {
    let lab = Lab::new("switch")?;
    let switch = Switch::new(&lab, "switch")?;
    let hosts = ["x", "y", "z"].map(|name| lab.host(name));
    for (host, address) in hosts.iter().zip(["198.18.0.1/24", "198.18.0.2/24", "198.18.0.3/24"]) {
        let Ok(host) = host else { anyhow::bail!("no host") };
        switch.plug(port(host, "eth0"))?;
        port(host, "eth0").address(&[address])?;
    }
    let [Ok(x), Ok(_), Ok(z)] = hosts else { anyhow::bail!("no host") };
    ping::until_answered(&x, "198.18.0.3", Duration::from_secs(3))?;
    port(&z, "eth0").down()?;
    assert!(ping::once(&x, "198.18.0.3").is_err());
    Ok(())
}

#[test]
fn a_host_and_its_processes_are_gone_after_a_panic() -> Result<()> {
    let (tell, told) = std::sync::mpsc::channel();
    let panicked = std::thread::spawn(move || -> Result<()> {
        let lab = Lab::new("panic")?;
        let host = lab.host("h")?;
        let mut command = host.command("sleep");
        command.arg("1000");
        let process = host.spawn("sleep", command)?;
        tell.send((lab.path().to_owned(), process.id()))?;
        panic!("on purpose");
    });
    assert!(panicked.join().is_err());
    let (path, id) = told.recv()?;
    assert!(!path.exists());
    assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
    Ok(())
}

#[test]
fn iperf_prints_a_figure() -> Result<()> {
    let lab = Lab::new("iperf")?;
    let wire = Wire::new(&lab)?;
    let figure = iperf::tcp(&wire.a, &wire.b, "192.0.2.2", 1)?;
    assert!(figure.megabits > 1.0, "{figure:?}");
    Ok(())
}
