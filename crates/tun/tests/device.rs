//! Tests with a real device in a separate network namespace: which packets the kernel accepts and delivers.
#![allow(clippy::unwrap_used, reason = "what does not unwrap fails its test")]

mod common;

use std::io::{ErrorKind, IoSlice};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::devices::{options, router};
use common::namespace::{
    add_ipv4, in_namespace, is_running, persist, set_up, without_capabilities,
};
use common::super_packet::segments;
use common::{ACK, PSH, Spec, checksum};
use vpnd_tun::{
    Carrier, Coalescer, Limits, Offload, OpenError, Options, Queue, READ_BUFFER, VnetHeader, open,
};

#[test]
fn the_kernel_agrees_to_offloads_while_down() {
    in_namespace("the_kernel_agrees_to_offloads_while_down", || {
        let device = open(&options("vpnd%d")).unwrap();
        assert_eq!(device.name, "vpnd0");
        assert!(!device.adopted);
        let offload = device.queues[0].offload();
        assert!(offload.checksum && offload.read_tcp && offload.write_tcp, "{offload:?}");
        assert_eq!(offload.read_udp, offload.write_udp, "both came with Linux 6.2");

        // No probe packet was delivered.
        set_up(&device.name);
        let mut buffer = vec![0; READ_BUFFER];
        let to_documentation = |packet: &[u8]| packet[26..30] == [192, 0, 2, 2];
        while let Ok(len) = device.queues[0].read(&mut buffer) {
            assert!(!to_documentation(&buffer[..len]));
        }

        let plain = open(&Options { offload: false, name: None, ..options("") }).unwrap();
        assert_eq!(plain.queues[0].offload(), Offload::default());
    });
}

#[test]
fn what_stands_in_the_way_is_named() {
    in_namespace("what_stands_in_the_way_is_named", || {
        let _held = open(&options("vpnd0")).unwrap();
        let error = |name| open(&options(name)).unwrap_err();
        assert!(matches!(error("vpnd0"), OpenError::Busy { name } if name == "vpnd0"));
        assert!(matches!(error("lo"), OpenError::Kind { name } if name == "lo"));
        for name in ["a name", "sixteen-letters-", "a/b", ".."] {
            assert!(matches!(error(name), OpenError::Name { .. }), "{name}");
        }
    });
}

#[test]
fn several_queues_and_a_device_that_outlives_us() {
    in_namespace("several_queues_and_a_device_that_outlives_us", || {
        let device = open(&Options { queues: 3, ..options("vpnd0") }).unwrap();
        assert_eq!(device.queues.len(), 3);
        persist(&device.queues[0].as_fd());
        drop(device);

        // A multi_queue device is opened even though it refuses a plain attach, and even though it
        // is up and cannot be probed.
        set_up("vpnd0");
        let again = open(&options("vpnd0")).unwrap();
        assert!(again.adopted);
        assert!(again.queues[0].offload().write_tcp);
    });
}

#[test]
fn an_echo_request_is_answered() {
    in_namespace("an_echo_request_is_answered", || {
        let device = open(&options("vpnd0")).unwrap();
        let queue = &device.queues[0];
        let request = echo_request();
        let plain = VnetHeader::PLAIN.encode();
        let write = [IoSlice::new(&plain), IoSlice::new(&request)];
        assert_eq!(queue.write(&write).unwrap_err().raw_os_error(), Some(libc::EIO));

        add_ipv4("vpnd0", Ipv4Addr::new(192, 0, 2, 200));
        set_up("vpnd0");
        assert_eq!(queue.write(&write).unwrap(), plain.len() + request.len());
        let reply = receive(queue, 1, |packet| packet[0] >> 4 == 4 && packet[9] == 1).remove(0);
        assert_eq!(reply[12..20], [192, 0, 2, 200, 192, 0, 2, 1]);
        assert_eq!(reply[20], 0);
        assert_eq!(reply[24..], request[24..]);
    });
}

/// Setting the carrier needs no capability.
#[test]
fn a_device_without_carrier_takes_packets_and_gives_none() {
    in_namespace("a_device_without_carrier_takes_packets_and_gives_none", || {
        let device = open(&options("vpnd0")).unwrap();
        let queue = &device.queues[0];
        let carrier = Carrier::of(queue).unwrap();
        without_capabilities(|| carrier.set(false).unwrap());
        add_ipv4("vpnd0", Ipv4Addr::new(192, 0, 2, 200));
        set_up("vpnd0");
        await_running("vpnd0", false);

        let (plain, request) = (VnetHeader::PLAIN.encode(), echo_request());
        let write = [IoSlice::new(&plain), IoSlice::new(&request)];
        let echo = |packet: &[u8]| packet[0] >> 4 == 4 && packet[9] == 1;
        assert_eq!(queue.write(&write).unwrap(), plain.len() + request.len());
        sleep(Duration::from_millis(50));
        assert_eq!(receive(queue, 0, echo), Vec::<Vec<u8>>::new());

        without_capabilities(|| carrier.set(true).unwrap());
        await_running("vpnd0", true);
        assert_eq!(queue.write(&write).unwrap(), plain.len() + request.len());
        assert_eq!(receive(queue, 1, echo).len(), 1);
    });
}

/// The kernel announces a change of carrier within a second (`link_watch.c`).
fn await_running(link: &str, running: bool) {
    let start = Instant::now();
    while is_running(link) != running {
        assert!(start.elapsed() < Duration::from_secs(5), "{link} is never running: {running}");
        sleep(Duration::from_millis(1));
    }
}

fn echo_request() -> Vec<u8> {
    let spec = Spec { payload: b"anyone there?".to_vec(), ..Spec::new(false, true) };
    let mut packet = spec.build();
    packet[9] = 1;
    packet[10..12].fill(0);
    let sum = checksum(&[&packet[..20]]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[20..28].copy_from_slice(&[8, 0, 0, 0, 1, 2, 3, 4]);
    let sum = checksum(&[&packet[20..]]);
    packet[22..24].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The kernel forwards our super-packets. To a device without offloads it delivers them split; to a device with
/// offloads it delivers them whole, and we split them ourselves.
#[test]
fn the_kernel_splits_what_we_merge_and_as_we_do() {
    in_namespace("the_kernel_splits_what_we_merge_and_as_we_do", || {
        for offload in [false, true] {
            let (entry, exit) = router(offload);
            for (v6, udp) in [(false, false), (true, false), (false, true), (true, true)] {
                let sent = stream(v6, udp);
                let writes = merge_into(&entry.writer, &sent);
                assert!(writes.len() <= 3, "merged into {writes:?}");
                let (marker, protocol) = if v6 { (6, 6) } else { (4, 9) };
                let of_stream = |packet: &[u8]| {
                    packet[0] >> 4 == marker && packet[protocol] == if udp { 17 } else { 6 }
                };
                let received = receive(&exit.queues[0], sent.len(), of_stream);
                let forwarded = |spec: &Spec| Spec { ttl: spec.ttl - 1, ..spec.clone() }.build();
                assert_eq!(received, sent.iter().map(forwarded).collect::<Vec<_>>());
            }
        }
    });
}

/// Full packets, a short packet that ends the GRO batch, and a new batch.
fn stream(v6: bool, udp: bool) -> Vec<Spec> {
    let mut next = Spec::new(v6, udp);
    if !udp {
        next.options = vec![1; 12];
    }
    (0u8..60)
        .map(|at| {
            let len = if at == 40 { 333 } else { 1201 };
            let flags = if at == 40 { ACK | PSH } else { ACK };
            let spec = Spec { payload: vec![at; len], flags, ..next.clone() };
            next.id = next.id.wrapping_add(1);
            next.sequence = next.sequence.wrapping_add(u32::try_from(len).unwrap());
            spec
        })
        .collect()
}

/// Writes `sent` through the coalescer, and returns the number of packets in each write.
fn merge_into(queue: &Queue, sent: &[Spec]) -> Vec<usize> {
    let mut buffer = Vec::new();
    let mut coalescer = Coalescer::new(Limits { tcp: true, udp: true, prefix: 0 });
    let ranges: Vec<_> = sent
        .iter()
        .map(|spec| {
            let start = buffer.len() + 16;
            buffer.resize(start, 0);
            buffer.extend(spec.build());
            start..buffer.len()
        })
        .collect();
    for range in ranges {
        coalescer.push(&buffer, range);
    }
    let mut writes = Vec::new();
    coalescer.flush(&mut buffer, |slices, packets| {
        let len: usize = slices.iter().map(|slice| slice.len()).sum();
        assert_eq!(queue.write(slices).unwrap(), len);
        writes.push(packets);
    });
    writes
}

/// Reads and splits until `count` of the `wanted` packets have arrived, and then checks that no more arrive.
fn receive(queue: &Queue, count: usize, wanted: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut buffer = vec![0; READ_BUFFER];
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match queue.read(&mut buffer) {
            Ok(len) => packets.extend(split_read(&buffer[..len]).into_iter().filter(|p| wanted(p))),
            Err(e) if e.kind() == ErrorKind::WouldBlock && packets.len() >= count => break,
            Err(e) if e.kind() == ErrorKind::WouldBlock => sleep(Duration::from_millis(1)),
            Err(e) => panic!("{e}"),
        }
        assert!(Instant::now() < deadline, "{} of {count} packets", packets.len());
    }
    packets
}

fn split_read(read: &[u8]) -> Vec<Vec<u8>> {
    let (header, packet) = VnetHeader::decode(read).unwrap();
    segments(header, packet, 0)
}
