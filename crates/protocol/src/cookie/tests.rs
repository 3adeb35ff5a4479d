//! Cookies over time: who gets one, how long it is valid, and what is rejected.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::message::{INITIATION_LEN, RESPONSE_LEN};

const RECEIVER: PublicKey = PublicKey::from_bytes([9; 32]);
const FROM: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 51820);

fn at(seconds: u64) -> BootTime {
    BootTime::from_nanos(seconds * 1_000_000_000)
}

/// A receiver under load, and a sender that has heard nothing yet.
struct Ends {
    checker: Checker,
    jar: Jar,
    rng: StdRng,
}

fn ends() -> Ends {
    let rng = StdRng::seed_from_u64(1);
    Ends { checker: Checker::new(&RECEIVER), jar: Jar::new(&RECEIVER), rng }
}

impl Ends {
    fn send(&mut self, now: BootTime) -> Vec<u8> {
        let mut datagram = vec![0x5a; INITIATION_LEN];
        self.jar.seal_macs(now, &mut datagram);
        datagram
    }

    fn reject(&mut self, now: BootTime, datagram: &[u8]) -> CookieReply {
        let (_, macs) = split_macs(datagram).unwrap();
        self.checker.reply(now, FROM, Index::new(3), &macs, &mut self.rng)
    }

    /// Gives the jar a cookie at `now`.
    fn exchange(&mut self, now: BootTime) {
        let rejected = self.send(now);
        let reply = self.reject(now, &rejected);
        self.jar.receive(now, &reply).unwrap();
    }

    /// Whether the datagram that the jar sends at `sent` passes at `now`.
    fn passes(&mut self, sent: BootTime, now: BootTime) -> bool {
        let datagram = self.send(sent);
        self.checker.verify_mac2(now, FROM, &datagram)
    }
}

#[test]
fn mac1_takes_the_right_key_and_every_byte() {
    let mut ends = ends();
    for len in [INITIATION_LEN, RESPONSE_LEN] {
        let mut datagram = vec![7; len];
        ends.jar.seal_macs(at(0), &mut datagram);
        assert!(Mac1Key::new(&RECEIVER).verify(&datagram));
        assert!(!Mac1Key::new(&PublicKey::from_bytes([8; 32])).verify(&datagram));
        for byte in 0..len - 16 {
            datagram[byte] ^= 1;
            assert!(!Mac1Key::new(&RECEIVER).verify(&datagram), "{byte}");
            datagram[byte] ^= 1;
        }
    }
}

#[test]
fn nothing_short_verifies_or_panics() {
    let mut ends = ends();
    for len in 0..MACS_LEN {
        let mut datagram = vec![0; len];
        ends.jar.seal_macs(at(0), &mut datagram);
        assert!(!Mac1Key::new(&RECEIVER).verify(&datagram));
        assert!(!ends.checker.verify_mac2(at(0), FROM, &datagram));
    }
}

#[test]
fn a_zero_mac2_is_never_valid() {
    let mut ends = ends();
    let datagram = ends.send(at(0));
    assert_eq!(datagram[INITIATION_LEN - 16..], [0; 16]);
    assert!(!ends.checker.verify_mac2(at(0), FROM, &datagram));
    ends.reject(at(0), &datagram);
    assert!(!ends.checker.verify_mac2(at(0), FROM, &datagram));
}

#[test]
fn a_cookie_passes_from_its_address_and_port_alone() {
    let mut ends = ends();
    ends.exchange(at(0));
    let datagram = ends.send(at(1));
    assert!(ends.checker.verify_mac2(at(1), FROM, &datagram));
    let elsewhere = ["192.0.2.1:51821", "192.0.2.2:51820", "[2001:db8::1]:51820"];
    for from in elsewhere.map(|from| from.parse().unwrap()) {
        assert!(!ends.checker.verify_mac2(at(1), from, &datagram), "{from}");
    }
}

#[test]
fn a_cookie_is_bound_to_the_whole_message() {
    let mut ends = ends();
    ends.exchange(at(0));
    let mut datagram = ends.send(at(1));
    for byte in 0..INITIATION_LEN {
        datagram[byte] ^= 1;
        assert!(!ends.checker.verify_mac2(at(1), FROM, &datagram), "{byte}");
        datagram[byte] ^= 1;
    }
}

#[test]
fn a_cookie_counts_for_one_period_after_its_secret_is_replaced() {
    for made in [0, 119] {
        let mut ends = ends();
        ends.reject(at(0), &[0; INITIATION_LEN]);
        ends.exchange(at(made));
        let datagram = ends.send(at(made));
        assert!(ends.checker.verify_mac2(at(119), FROM, &datagram));
        ends.reject(at(120), &[0; INITIATION_LEN]);
        assert!(ends.checker.verify_mac2(at(239), FROM, &datagram));
        assert!(!ends.checker.verify_mac2(at(240), FROM, &datagram));
    }
}

#[test]
fn a_cookie_dies_at_the_same_age_when_nobody_asks_for_another() {
    let mut ends = ends();
    ends.exchange(at(0));
    let datagram = ends.send(at(1));
    assert!(ends.checker.verify_mac2(at(239), FROM, &datagram));
    assert!(!ends.checker.verify_mac2(at(240), FROM, &datagram));
    ends.reject(at(300), &datagram);
    assert!(!ends.checker.verify_mac2(at(300), FROM, &datagram));
}

#[test]
fn a_sender_uses_a_cookie_for_one_period() {
    let mut ends = ends();
    ends.exchange(at(10));
    assert!(ends.passes(at(129), at(129)));
    assert!(!ends.passes(at(130), at(130)));
    let datagram = ends.send(at(131));
    assert_eq!(datagram[INITIATION_LEN - 16..], [0; 16]);
}

#[test]
fn a_cookie_answers_the_last_message_once() {
    let mut ends = ends();
    let first = ends.send(at(0));
    let reply = ends.reject(at(0), &first);
    assert_eq!(reply.receiver, Index::new(3));
    let mut second = vec![1; RESPONSE_LEN];
    ends.jar.seal_macs(at(1), &mut second);
    assert_eq!(ends.jar.receive(at(1), &reply), Err(HandshakeError::ForgedCookie));
    let reply = ends.reject(at(1), &second);
    assert_eq!(ends.jar.receive(at(1), &reply), Ok(()));
    assert_eq!(ends.jar.receive(at(1), &reply), Err(HandshakeError::UnexpectedCookie));
}

#[test]
fn an_idle_jar_takes_no_cookie() {
    let mut ends = ends();
    let reply = ends.reject(at(0), &[0; INITIATION_LEN]);
    assert_eq!(ends.jar.receive(at(0), &reply), Err(HandshakeError::UnexpectedCookie));
}

#[test]
fn a_forged_cookie_leaves_room_for_the_true_one() {
    let mut ends = ends();
    let datagram = ends.send(at(0));
    let reply = ends.reject(at(0), &datagram);
    for byte in 8..size_of::<CookieReply>() {
        let mut forged = reply;
        forged.as_mut_bytes()[byte] ^= 1;
        assert_eq!(ends.jar.receive(at(0), &forged), Err(HandshakeError::ForgedCookie), "{byte}");
    }
    assert_eq!(ends.jar.receive(at(0), &reply), Ok(()));
    assert!(ends.passes(at(1), at(1)));
}

impl Ends {
    /// Anybody who knows the receiver's public key and sees the message can do this.
    fn forge(&mut self, now: BootTime, datagram: &[u8]) {
        let mut other = Checker::new(&RECEIVER);
        let (_, macs) = split_macs(datagram).unwrap();
        let reply = other.reply(now, FROM, Index::new(3), &macs, &mut self.rng);
        self.jar.receive(now, &reply).unwrap();
    }

    /// Sends a message, and is answered if the receiver, which is under load, lets it pass.
    fn try_once(&mut self, now: BootTime) -> (Vec<u8>, bool) {
        let datagram = self.send(now);
        let passes = self.checker.verify_mac2(now, FROM, &datagram);
        if passes {
            self.jar.answered();
        }
        (datagram, passes)
    }
}

#[test]
fn a_forged_cookie_never_replaces_one_that_was_good() {
    let mut ends = ends();
    ends.exchange(at(0));
    assert!(ends.try_once(at(1)).1, "the cookie is good");
    for n in 1..10 {
        // The forger is faster than the true answer, every time.
        let datagram = ends.send(at(n * 10));
        ends.forge(at(n * 10), &datagram);
        let tries = [1, 2].map(|later| ends.try_once(at(n * 10 + later)).1);
        assert!(tries.contains(&true), "{n}: {tries:?}");
    }
}

#[test]
fn a_new_cookie_is_used_at_once_and_takes_over_when_it_is_answered() {
    let mut ends = ends();
    ends.exchange(at(0));
    assert!(ends.try_once(at(1)).1);
    // The receiver restarts, and asks for another cookie.
    ends.checker = Checker::new(&RECEIVER);
    let (rejected, passed) = ends.try_once(at(20));
    assert!(!passed);
    let reply = ends.reject(at(20), &rejected);
    ends.jar.receive(at(20), &reply).unwrap();
    assert!(ends.try_once(at(25)).1);
    assert!(ends.try_once(at(139)).1, "as old as the newer one");
    assert!(!ends.try_once(at(140)).1);
}

#[test]
fn a_cookie_for_a_message_that_was_answered_is_nobodys() {
    let mut ends = ends();
    let datagram = ends.send(at(0));
    ends.forge(at(0), &datagram);
    ends.jar.answered();
    assert_eq!(ends.send(at(1))[INITIATION_LEN - 16..], [0; 16]);
    let (_, macs) = split_macs(&datagram).unwrap();
    let late = ends.checker.reply(at(2), FROM, Index::new(3), &macs, &mut ends.rng);
    ends.send(at(2));
    ends.jar.answered();
    assert_eq!(ends.jar.receive(at(2), &late), Err(HandshakeError::UnexpectedCookie));
}

fn v4(last: u8) -> IpAddr {
    Ipv4Addr::new(198, 51, 100, last).into()
}

#[test]
fn a_source_gets_a_burst_of_five_and_then_twenty_a_second() {
    let mut limiter = RateLimiter::new();
    let allowed = (0..100).filter(|_| limiter.allow(at(5), v4(1))).count();
    assert_eq!(allowed, 5);
    assert!(limiter.allow(at(5), v4(2)));
    let each_ms = |ms| at(6) + Duration::from_millis(ms);
    let allowed = (0..1000).filter(|&ms| limiter.allow(each_ms(ms), v4(1))).count();
    assert_eq!(allowed, 5 + 19);
}

#[test]
fn a_v6_host_is_its_64() {
    let mut limiter = RateLimiter::new();
    let host = |net: u16, host: u16| Ipv6Addr::new(0x2001, 0xdb8, 0, net, 0, 0, 0, host).into();
    let allowed = (0..100).filter(|&low| limiter.allow(at(0), host(1, low))).count();
    assert_eq!(allowed, 5);
    assert!(limiter.allow(at(0), host(2, 0)));
}

#[test]
fn a_mapped_address_is_the_v4_address() {
    let mut limiter = RateLimiter::new();
    let mapped = Ipv4Addr::new(198, 51, 100, 1).to_ipv6_mapped().into();
    (0..5).for_each(|_| assert!(limiter.allow(at(0), v4(1))));
    assert!(!limiter.allow(at(0), mapped));
}

#[test]
fn too_many_sources_wait_until_others_are_done() {
    let mut limiter = RateLimiter::new();
    let source = |n: u32| IpAddr::from(Ipv4Addr::from_bits(0xc612_0000 + n));
    let flood = (0..10_000).filter(|&n| limiter.allow(at(1), source(n))).count();
    assert_eq!((flood, limiter.full_at.len()), (MAX_SOURCES, MAX_SOURCES));
    assert!(limiter.allow(at(1), source(0)), "a known source goes on");
    assert!(limiter.allow(at(2), source(9_999)));
    assert_eq!(limiter.full_at.len(), 1);
}

#[test]
fn where_the_peer_is_expected_no_flood_takes_its_place() {
    let mut limiter = RateLimiter::new();
    let peer: SocketAddr = "[2001:db8::1]:51820".parse().unwrap();
    let neighbour = |n: u16| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n).into();
    let stranger = |n: u32| IpAddr::from(Ipv4Addr::from_bits(0xc612_0000 + n));
    let neighbours = (0..100).filter(|&n| limiter.allow(at(0), neighbour(n))).count();
    let strangers = (0..5000).filter(|&n| limiter.allow(at(0), stranger(n))).count();
    assert_eq!((neighbours, strangers), (5, MAX_SOURCES - 1));
    assert!(!limiter.allow(at(0), peer.ip()) && !limiter.allow(at(0), stranger(6000)));
    let allowed = (0..100).filter(|_| limiter.allow_expected(at(0), peer)).count();
    assert_eq!(allowed, 5, "a bucket like any other");
}

proptest! {
    #[test]
    fn no_source_gets_more_than_its_rate(gaps in proptest::collection::vec(0u64..200, 1..300)) {
        let (mut limiter, mut ms, mut allowed) = (RateLimiter::new(), 0, 0);
        for gap in gaps {
            ms += gap;
            allowed += u64::from(limiter.allow(at(0) + Duration::from_millis(ms), v4(1)));
            prop_assert!(allowed <= 5 + ms / 50);
        }
    }
}
