//! Tests of the socket with a real kernel, each in a separate network namespace.

use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Type};

use super::*;
use crate::namespace::{self, ip};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const ROOM: usize = 8 << 20;
/// The protocol number for IPv4 packets in a packet socket, in network byte order.
const ETH_P_IP: u16 = 0x0800_u16.to_be();

/// Runs `test` in a namespace whose loopback device is up.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    namespace::in_namespace(|| {
        ip("link set lo up mtu 1500");
        test();
    });
}

/// The number of a link in `ip -o link`: "2: left@right: <…>".
fn link_index(name: &str) -> u32 {
    let line = ip(&format!("-o link show {name}"));
    line.split_once(':').unwrap().0.parse().unwrap()
}

fn dual() -> Socket {
    bound(Listen::Port(0), Egress::default()).unwrap()
}

pub(crate) fn bound(listen: Listen, egress: Egress) -> Result<Socket, BindError> {
    let options = Options { receive_buffer: ROOM, send_buffer: ROOM, gso: Gso::Auto, egress };
    Socket::bind(listen, &options)
}

/// A batch with default settings, segmented at `segment` if that is not zero.
fn batch(destination: SocketAddr, contents: &[u8], segment: u16) -> Transmit<'_> {
    let segment_size = NonZeroU16::new(segment);
    Transmit {
        destination,
        source: None,
        tos: 0,
        hops: None,
        contents,
        segment_size,
        singly: false,
    }
}

fn receive(socket: &Socket) -> (Received, Vec<u8>) {
    let mut buffer = vec![0; RECEIVE_BUFFER];
    let start = Instant::now();
    loop {
        let mut received = [Received::NOTHING];
        match socket.receive(&mut buffer, &mut received) {
            Ok(_one) => {
                buffer.truncate(received[0].len);
                return (received[0], buffer);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                assert!(start.elapsed() < Duration::from_secs(5), "nothing arrived");
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn at(ip: IpAddr, socket: &Socket) -> SocketAddr {
    SocketAddr::new(ip, socket.local_port())
}

fn numbered(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

#[test]
fn both_families_cross_with_addresses_and_tos() {
    in_namespace(|| {
        ip("addr add 2001:db8::2/128 dev lo nodad");
        let (a, b) = (dual(), dual());
        let sources = [(V4, "127.0.0.2"), (V6, "2001:db8::2")];
        for (to, source) in sources.map(|(to, source)| (to, source.parse::<IpAddr>().unwrap())) {
            let wanted =
                Transmit { source: Some(source), tos: 0xb9, ..batch(at(to, &b), b"hello", 0) };
            let sent = a.send(&wanted).unwrap();
            assert_eq!(sent, Sent { len: 5, skipped: 0, too_big: false, source_lost: false });
            let (received, contents) = receive(&b);
            assert_eq!(contents, b"hello");
            let expected =
                Received { from: at(source, &a), local: Some(to), tos: 0xb9, len: 5, stride: 5 };
            assert_eq!(received, expected);
        }
    });
}

#[test]
fn an_ipv4_socket_speaks_to_a_dual_stack_one() {
    in_namespace(|| {
        let a = bound(Listen::Address(SocketAddr::new(V4, 0)), Egress::default()).unwrap();
        let b = dual();
        let wanted = Transmit { source: Some(V4), tos: 1, ..batch(at(V4, &b), &[7; 3000], 1000) };
        a.send(&wanted).unwrap();
        let (received, _) = receive(&b);
        let expected =
            Received { from: at(V4, &a), local: Some(V4), tos: 1, len: 3000, stride: 1000 };
        assert_eq!(received, expected);
        b.send(&batch(received.from, b"back", 0)).unwrap();
        assert_eq!(receive(&a).0.from, at(V4, &b));
        assert!(a.send(&batch(at(V6, &b), b"no", 0)).is_err());
    });
}

#[test]
fn a_batch_travels_whole() {
    in_namespace(|| {
        let (a, b) = (dual(), dual());
        let contents = numbered(40 * 1200 + 17);
        for to in [V4, V6] {
            assert_eq!(a.send(&batch(at(to, &b), &contents, 1200)).unwrap().len, contents.len());
            let (received, got) = receive(&b);
            assert_eq!((received.stride, got == contents), (1200, true));
        }
    });
}

/// A batch that must not be segmented costs a call for each [`MAX_RUNS`] datagrams.
#[test]
fn single_datagrams_leave_together() {
    in_namespace(|| {
        let (a, b) = (dual(), dual());
        let contents = numbered(40 * 1200);
        let one = Transmit { singly: true, ..batch(at(V4, &b), &contents, 1200) };
        assert_eq!(a.send_all([one]).unwrap().len, MAX_RUNS * 1200);
        let rest = Transmit { contents: &contents[MAX_RUNS * 1200..], ..one };
        assert_eq!(a.send_all([rest]).unwrap().len, (40 - MAX_RUNS) * 1200);
        let mut got = Vec::new();
        while got.len() < contents.len() {
            got.extend(receive(&b).1);
        }
        assert!(got == contents);
    });
}

/// GSO batches and single datagrams of several sizes and marks, in one call per direction.
#[test]
fn batches_of_different_sizes_leave_and_arrive_together() {
    in_namespace(|| {
        let (a, b) = (dual(), dual());
        let contents = numbered(3000);
        let batches = [(1000, 0), (3000, 2), (700, 0), (900, 3)].map(|(segment, tos)| Transmit {
            tos,
            ..batch(at(V4, &b), &contents[..3000.min(2 * segment)], u16::try_from(segment).unwrap())
        });
        let all = batches.iter().map(|one| one.contents.len()).sum();
        assert_eq!(a.send_all(batches).unwrap(), Sent { len: all, ..Sent::default() });
        let mut buffer = vec![0; MAX_RECEIVED * RECEIVE_BUFFER];
        let mut received = [Received::NOTHING; MAX_RECEIVED];
        assert_eq!(b.receive(&mut buffer, &mut received).unwrap(), 4);
        for (at, (sent, got)) in batches.iter().zip(received).enumerate() {
            let size = usize::from(sent.segment_size.unwrap().get());
            assert_eq!((got.len, got.stride, got.tos), (sent.contents.len(), size, sent.tos));
            assert!(buffer[at * RECEIVE_BUFFER..][..got.len] == *sent.contents);
        }
    });
}

/// If a call refuses a batch in the middle of several, that batch is sent one datagram at a time, and the
/// following batches are not lost.
#[test]
fn a_batch_that_is_refused_among_others_goes_out_all_the_same() {
    in_namespace(|| {
        let (a, b) = (dual(), dual());
        let contents = numbered(3200);
        let batches = [1000, 1600, 800]
            .map(|segment| batch(at(V4, &b), &contents[..2 * usize::from(segment)], segment));
        let all: usize = batches.iter().map(|one| one.contents.len()).sum();
        let (mut sent, mut too_big) = (0, false);
        while sent < all {
            let mut done = 0;
            let left = batches.into_iter().filter(|one| {
                done += one.contents.len();
                done > sent
            });
            let result = a.send_all(left.collect::<Vec<_>>()).unwrap();
            sent += result.len;
            too_big |= result.too_big;
        }
        assert!(too_big, "1600 bytes do not fit the link");
        let mut got = 0;
        while got < all {
            got += receive(&b).0.len;
        }
        assert_eq!(got, all);
    });
}

#[test]
fn as_many_datagrams_as_the_kernel_takes_and_more() {
    in_namespace(|| {
        let (a, b) = (dual(), dual());
        assert!([64, 128].contains(&a.max_segments()));
        let contents = numbered(a.max_segments() * 10);
        a.send(&batch(at(V6, &b), &contents, 10)).unwrap();
        assert_eq!(receive(&b).0.len, contents.len());

        let more = numbered(contents.len() + 10);
        assert_eq!(a.send(&batch(at(V6, &b), &more, 10)).unwrap().len, more.len());
        let mut got = Vec::new();
        while got.len() < more.len() {
            got.extend(receive(&b).1);
        }
        assert_eq!(got, more);
    });
}

#[test]
fn datagrams_beyond_the_mtu_are_fragmented_and_segmentation_stays_on() {
    in_namespace(|| {
        let (a, b) = (dual(), dual());
        for to in [V4, V6] {
            let contents = numbered(3 * 1600);
            let sent = a.send(&batch(at(to, &b), &contents, 1600)).unwrap();
            assert_eq!(
                sent,
                Sent { len: contents.len(), skipped: 0, too_big: true, source_lost: false }
            );
            let got: Vec<u8> = (0..3).flat_map(|_| receive(&b).1).collect();
            assert_eq!(got, contents);

            a.send(&batch(at(to, &b), &contents, 1200)).unwrap();
            assert_eq!(receive(&b).0.stride, 1200);
        }
    });
}

#[test]
fn fragments_of_ipv6_are_as_small_as_was_said_and_batches_that_fit_stay_whole() {
    in_namespace(|| {
        let (a, b) = (dual(), dual());
        a.fragment_at(Some(1280)).unwrap();
        let contents = numbered(3 * 1400);
        let sent = a.send(&batch(at(V6, &b), &contents, 1400)).unwrap();
        assert!(sent.too_big && sent.skipped == 0, "{sent:?}");
        let got: Vec<u8> = (0..3).flat_map(|_| receive(&b).1).collect();
        assert_eq!(got, contents);
        assert!(!a.send(&batch(at(V6, &b), &contents, 1200)).unwrap().too_big);
        assert_eq!(receive(&b).0.stride, 1200);
        // IPv4 uses other options.
        assert!(!a.send(&batch(at(V4, &b), &contents, 1400)).unwrap().too_big);
        assert_eq!(receive(&b).0.len, contents.len());

        a.fragment_at(None).unwrap();
        assert!(!a.send(&batch(at(V6, &b), &contents, 1400)).unwrap().too_big);
    });
}

#[test]
fn what_is_to_arrive_whole_is_not_fragmented_over_ipv6() {
    in_namespace(|| {
        let (a, b) = (dual(), dual());
        let contents = numbered(1600);
        let sent = a.send_whole(&batch(at(V6, &b), &contents, 0)).unwrap();
        assert_eq!((sent.skipped, sent.too_big), (1, true));
        assert!(!a.send(&batch(at(V6, &b), b"next", 0)).unwrap().too_big);
        assert_eq!(receive(&b).1, b"next");
    });
}

#[test]
fn a_datagram_that_fits_nowhere_is_skipped_and_said() {
    in_namespace(|| {
        let (a, b) = (dual(), dual());
        let contents = numbered(65_508);
        let sent = a.send(&batch(at(V4, &b), &contents, 0)).unwrap();
        assert_eq!(
            sent,
            Sent { len: contents.len(), skipped: 1, too_big: true, source_lost: false }
        );
        a.send(&batch(at(V4, &b), b"next", 0)).unwrap();
        assert_eq!(receive(&b).1, b"next");
    });
}

#[test]
fn routers_may_fragment_what_we_send() {
    in_namespace(|| {
        let (a, b) = (dual(), dual());
        let wire =
            socket2::Socket::new(Domain::PACKET, Type::DGRAM, Some(i32::from(ETH_P_IP).into()))
                .unwrap();
        a.send(&batch(at(V4, &b), b"hello", 0)).unwrap();
        let mut header = [0; 20];
        (&wire).read_exact(&mut header).unwrap();
        assert_eq!(header[6] & 0x40, 0, "the DF bit");
    });
}

#[test]
fn a_source_that_is_gone_is_replaced_and_said() {
    in_namespace(|| {
        let (a, b) = (dual(), dual());
        let cases = [(V4, "192.0.2.77"), (V6, "2001:db8::77")];
        for (to, gone) in cases.map(|(to, gone)| (to, gone.parse::<IpAddr>().unwrap())) {
            let contents = numbered(5000);
            let wanted = Transmit { source: Some(gone), ..batch(at(to, &b), &contents, 1000) };
            for _ in 0..4 {
                let sent = a.send(&wanted).unwrap();
                assert_eq!(sent, Sent { len: 5000, skipped: 0, too_big: false, source_lost: true });
                let (received, _) = receive(&b);
                assert_eq!((received.from, received.stride), (at(to, &a), 1000));
            }
        }
    });
}

#[test]
fn a_link_local_address_keeps_its_scope() {
    in_namespace(|| {
        ip("link add left type veth peer name right");
        ip("link set left up");
        ip("link set right up");
        ip("addr add fe80::5/64 dev left nodad");
        let scope = link_index("left");
        let (a, b) = (dual(), dual());
        let local = "fe80::5".parse().unwrap();
        let to = SocketAddrV6::new(local, b.local_port(), 0, scope);
        let wanted = Transmit { source: Some(local.into()), ..batch(to.into(), b"near", 0) };
        assert!(!a.send(&wanted).unwrap().source_lost);
        let (received, _) = receive(&b);
        let expected = SocketAddrV6::new(local, a.local_port(), 0, scope);
        assert_eq!((received.from, received.local), (expected.into(), Some(local.into())));
    });
}

#[test]
fn an_empty_datagram_is_no_datagram_to_iterate() {
    in_namespace(|| {
        let (a, b) = (std::net::UdpSocket::bind((V4, 0)).unwrap(), dual());
        a.send_to(b"", at(V4, &b)).unwrap();
        let (received, _) = receive(&b);
        assert_eq!((received.len, received.stride), (0, 1));
    });
}

#[test]
fn an_idle_socket_would_block_and_has_the_room_asked_for() {
    in_namespace(|| {
        let socket = dual();
        let mut buffer = vec![0; RECEIVE_BUFFER];
        let error = socket.receive(&mut buffer, &mut [Received::NOTHING]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(socket.inner.recv_buffer_size().unwrap() >= ROOM);
        assert!(socket.inner.send_buffer_size().unwrap() >= ROOM);
    });
}

#[test]
fn a_bind_error_says_what_to_do() {
    in_namespace(|| {
        let taken = dual();
        let said = |listen| bound(listen, Egress::default()).unwrap_err().to_string();
        let again = said(Listen::Port(taken.local_port()));
        assert!(again.contains(&taken.local_port().to_string()), "{again}");
        assert!(again.contains("already in use"), "{again}");
    });
}

/// The socket waits for an address that is added later, and does not send from it before.
#[test]
fn an_address_that_is_not_there_yet_is_listened_on() {
    in_namespace(|| {
        for (at, address) in
            [("192.0.2.9:0", "192.0.2.9/32"), ("[2001:db8:9::9]:0", "2001:db8:9::9/128")]
        {
            let listen = Listen::Address(at.parse().unwrap());
            let socket = bound(listen, Egress::default()).unwrap();
            let to = SocketAddr::new(at.parse::<SocketAddr>().unwrap().ip(), socket.local_port());
            let sender =
                std::net::UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })
                    .unwrap();
            if to.is_ipv4() {
                assert!(sender.send_to(b"early", to).is_err(), "nobody has {to}");
            }
            ip(&format!("address add {address} dev lo"));
            socket.inner.set_nonblocking(false).unwrap();
            socket.inner.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let (mut bytes, begun) = ([0; 16], Instant::now());
            // The kernel completes an IPv6 address a little later, and refuses or drops datagrams until then.
            let len = loop {
                let sent = sender.send_to(b"late", to);
                match (&socket.inner).read(&mut bytes) {
                    Ok(len) => break len,
                    Err(error) => {
                        assert!(begun.elapsed() < Duration::from_secs(10), "{sent:?}, {error}");
                    }
                }
            };
            assert_eq!(&bytes[..len], b"late");
        }
    });
}

/// Two links without a host at the far end; each has a route to the same destination.
fn two_cables() {
    for (near, far, address) in
        [("one", "far1", "192.0.2.1/24"), ("two", "far2", "198.51.100.1/24")]
    {
        ip(&format!("link add {near} type veth peer name {far}"));
        ip(&format!("link set {near} up"));
        ip(&format!("link set {far} up"));
        ip(&format!("addr add {address} dev {near}"));
        // No host would answer a neighbour solicitation or an ARP request.
        ip(&format!("neigh add 203.0.113.9 lladdr 02:00:00:00:00:09 dev {near}"));
    }
    ip("route add 203.0.113.9 dev one mtu 1400");
    ip("route add 203.0.113.9 dev two table 77 mtu 1300");
}

/// A socket that receives all IPv4 packets that leave by an interface.
fn listen_on(device: &str) -> socket2::Socket {
    let protocol = i32::from(ETH_P_IP).into();
    let wire = socket2::Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)).unwrap();
    // SAFETY: the address is that of a packet socket, with the length that it has.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, len| {
            let link = libc::sockaddr_ll {
                sll_family: libc::AF_PACKET.try_into().unwrap(),
                sll_protocol: ETH_P_IP,
                sll_ifindex: link_index(device).try_into().unwrap(),
                sll_hatype: 0,
                sll_pkttype: 0,
                sll_halen: 0,
                sll_addr: [0; 8],
            };
            storage.cast::<libc::sockaddr_ll>().write(link);
            *len = size_of::<libc::sockaddr_ll>().try_into().unwrap();
            Ok(())
        })
    }
    .unwrap();
    wire.bind(&address).unwrap();
    wire.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    wire
}

/// The IP header and payload of the next packet.
fn next_on(mut wire: &socket2::Socket) -> Vec<u8> {
    let mut packet = vec![0; 2000];
    let len = wire.read(&mut packet).expect("nothing left here");
    packet.truncate(len);
    packet
}

fn beyond() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 9], 9))
}

#[test]
fn a_mark_is_seen_by_the_rules_of_routing() {
    in_namespace(|| {
        two_cables();
        ip("rule add fwmark 0x4d2 lookup 77");
        let (one, two) = (listen_on("far1"), listen_on("far2"));
        let marked = Egress { mark: 0x4d2, device: None };
        let socket = bound(Listen::Port(0), marked.clone()).unwrap();
        socket.send(&batch(beyond(), b"marked", 0)).unwrap();
        assert_eq!(next_on(&two)[28..], *b"marked");
        dual().send(&batch(beyond(), b"plain", 0)).unwrap();
        assert_eq!(next_on(&one)[28..], *b"plain", "and not what is marked");

        let largest = |egress: &Egress| largest_payload(beyond(), None, egress).unwrap();
        assert_eq!(largest(&Egress::default()), 1400 - 28);
        assert_eq!(largest(&marked), 1300 - 28, "asked for the way that is marked");
    });
}

#[test]
fn a_socket_of_one_device_leaves_and_hears_by_no_other() {
    in_namespace(|| {
        two_cables();
        ip("route add 203.0.113.9 dev two metric 100");
        let two = listen_on("far2");
        let egress = Egress { mark: 0, device: Some("two".to_owned()) };
        let socket = bound(Listen::Port(0), egress.clone()).unwrap();
        socket.send(&batch(beyond(), b"bound", 0)).unwrap();
        let packet = next_on(&two);
        assert_eq!((&packet[12..16], &packet[28..]), (&[198, 51, 100, 1][..], &b"bound"[..]));
        assert_eq!(largest_payload(beyond(), None, &egress).unwrap(), 1500 - 28);

        dual().send(&batch(at(V4, &socket), b"by lo", 0)).unwrap();
        let mut received = [Received::NOTHING];
        let error = socket.receive(&mut vec![0; RECEIVE_BUFFER], &mut received).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "it came by another");
    });
}

#[test]
fn the_largest_payload_is_that_of_the_way_from_a_source() {
    in_namespace(|| {
        two_cables();
        ip("rule add from 198.51.100.1 lookup 77");
        let egress = Egress::default();
        let from = |source: &str| largest_payload(beyond(), source.parse().ok(), &egress).unwrap();
        assert_eq!(from("198.51.100.1"), 1300 - 28);
        assert_eq!(from("192.0.2.1"), 1400 - 28);
        assert_eq!(from("192.0.2.77"), 1400 - 28, "not ours any more: the kernel chooses");
    });
}

#[test]
fn what_the_kernel_has_against_a_way_is_said() {
    in_namespace(|| {
        let missing = Egress { mark: 0, device: Some("eth9".to_owned()) };
        let said = bound(Listen::Port(0), missing).unwrap_err().to_string();
        assert!(said.contains("`eth9`") && said.contains("no such interface"), "{said}");

        let egress = Egress::default();
        assert!(egress.check_source(V4).is_ok() && egress.check_source(V6).is_ok());
        for gone in ["192.0.2.77", "2001:db8::77"] {
            let said = egress.check_source(gone.parse().unwrap()).unwrap_err().to_string();
            assert!(said.starts_with(&format!("cannot send from {gone}: no interface")), "{said}");
        }
    });
}

#[test]
fn each_direction_has_the_room_asked_for() {
    in_namespace(|| {
        let options = Options {
            receive_buffer: ROOM,
            send_buffer: ROOM / 4,
            gso: Gso::Auto,
            egress: Egress::default(),
        };
        let socket = Socket::bind(Listen::Port(0), &options).unwrap();
        // The kernel doubles the value that is set.
        assert_eq!(socket.inner.recv_buffer_size().unwrap(), 2 * ROOM);
        assert_eq!(socket.inner.send_buffer_size().unwrap(), ROOM / 2);
    });
}
