//! Another MTU, clamp or filter while packets flow.

use std::time::Duration;

use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::session::OVERHEAD;
use vpnd_tunnel::clamp::Clamp;

use crate::data::TCP;
use crate::end::{MTU, Side, policy};
use crate::network::Kind;
use crate::world::{World, millis, seconds};

/// Both ends send 50 packets a second.
fn flowing(slow_device: bool) -> World {
    let mut world = World::with(5, |_, options| options.slow_device = slow_device);
    for side in Side::BOTH {
        world.resolve(side);
        world.offer_every(side, millis(20));
    }
    world.run_for(seconds(2));
    world
}

fn ensure_nothing_lost(world: &World) {
    for side in Side::BOTH {
        let (offered, arrived) =
            world.oracle.tally(side, Duration::ZERO, world.now.saturating_sub(seconds(1)));
        assert!(offered > 100 && offered == arrived, "{side:?}: {arrived} of {offered}");
    }
}

/// An IPv4 packet of this length with an empty TCP header behind its own.
fn tcp(len: u16, source: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0; len.into()];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[9] = TCP;
    packet[12..16].copy_from_slice(&source);
    packet[32] = 5 << 4;
    packet
}

/// A SYN that offers this MSS (RFC 9293 §3.2).
fn syn(mss: u16) -> Vec<u8> {
    let mut packet = tcp(44, [10, 99, 0, 1]);
    (packet[32], packet[33]) = (6 << 4, 2);
    packet[40..42].copy_from_slice(&[2, 4]);
    packet[42..44].copy_from_slice(&mss.to_be_bytes());
    packet
}

/// What B's device was given of a packet that A has sent.
fn delivered(world: &mut World, packet: Vec<u8>) -> Option<Vec<u8>> {
    world.at(Side::A, |a, now| a.offer(now, &[packet]));
    world.run_for(millis(15));
    world[Side::B].data.tcp.pop()
}

fn mss_of(packet: Option<Vec<u8>>) -> u16 {
    let packet = packet.expect("delivered");
    u16::from_be_bytes([packet[42], packet[43]])
}

#[test]
fn a_reload_changes_the_clamp_and_the_filter_from_the_next_batch_on() {
    let mut world = flowing(false);
    assert_eq!(mss_of(delivered(&mut world, syn(1460))), 1460);
    for (clamp, limit) in
        [(Some(Clamp::Mss(1200)), 1200), (Some(Clamp::Mtu), MTU - 40), (None, 1460)]
    {
        world.at(Side::A, |a, now| a.set_policy(now, policy(MTU, clamp, &["10.99.0.0/16"])));
        assert_eq!(mss_of(delivered(&mut world, syn(1460))), limit, "{clamp:?}");
    }
    let guest = || tcp(100, [10, 99, 7, 7]);
    assert!(delivered(&mut world, guest()).is_some());
    for (allowed, passes) in [("10.99.0.0/24", false), ("10.99.0.0/16", true)] {
        world.at(Side::B, |b, now| b.set_policy(now, policy(MTU, None, &[allowed])));
        assert_eq!(delivered(&mut world, guest()).is_some(), passes, "{allowed}");
    }
    assert_eq!(world[Side::B].drops(DropReason::SourceNotAllowed), 1);
    world.run_for(seconds(5));
    ensure_nothing_lost(&world);
}

/// A offers the largest packet that its device takes at every instant; [`crate::data::Data`] panics at one that is larger
/// than its policy's MTU.
#[test]
fn the_device_never_takes_what_the_data_path_does_not() {
    let mut world = flowing(true);
    for (mtu, confirmed) in [(1300, true), (1420, true), (1280, false), (9000, false), (9000, true)]
    {
        let before = world[Side::A].device_mtu;
        world.at(Side::A, |a, now| a.set_policy(now, policy(mtu, None, &["10.99.0.0/16"])));
        largest_passes(&mut world);
        world.at(Side::A, |a, now| a.answer_mtu(now, confirmed));
        assert_eq!(world[Side::A].device_mtu, if confirmed { mtu } else { before });
        let changed = world.now;
        largest_passes(&mut world);
        let most = padded(world[Side::A].device_mtu);
        let mut sent = world.captured(Side::A, Kind::Data).filter(|sent| sent.at >= changed);
        assert!(sent.all(|sent| sent.datagram.bytes.len() <= most));
    }
    world.run_for(seconds(5));
    ensure_nothing_lost(&world);
}

fn largest_passes(world: &mut World) {
    for _ in 0..10 {
        let largest = tcp(world[Side::A].device_mtu, [10, 99, 0, 1]);
        assert_eq!(delivered(world, largest.clone()), Some(largest));
    }
}

/// The longest datagram over a device of this MTU: padding ends there.
fn padded(mtu: u16) -> usize {
    usize::from(mtu) + OVERHEAD
}
