//! Tests of a device with several queues: each flow stays on one of them.
#![allow(clippy::unwrap_used, reason = "what does not unwrap fails its test")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::BorrowedFd;

use common::Spec;
use common::devices::{device, options};
use common::namespace::{add_ipv4, in_namespace, set_up};
use vpnd_tun::{
    Attached, Descriptors, Device, Mode, OpenError, Options, Persistent, Queue, READ_BUFFER,
    VnetHeader, inherit, kind_of, open,
};

const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const FLOWS: u8 = 40;

#[test]
fn a_flow_stays_on_its_queue_whatever_is_written() {
    in_namespace("a_flow_stays_on_its_queue_whatever_is_written", || {
        let device = open(&Options { queues: 3, ..options("vpnd0") }).unwrap();
        let socket = host(&device);
        let before = flows(&device, &socket);
        assert_eq!(before.len(), usize::from(FLOWS));
        assert_eq!(before.values().collect::<BTreeSet<_>>().len(), 3, "{before:?}");
        answer(&device.writer, &socket);
        assert_eq!(flows(&device, &socket), before);
        // This is why the writer is detached: flows that are written to an attached queue move to it.
        answer(&device.queues[0], &socket);
        assert!(flows(&device, &socket).values().all(|queue| *queue == 0));
    });
}

#[test]
fn a_device_of_one_queue_is_read_and_written_through_that() {
    in_namespace("a_device_of_one_queue_is_read_and_written_through_that", || {
        let device = open(&options("vpnd0")).unwrap();
        let socket = host(&device);
        assert!(flows(&device, &socket).values().all(|queue| *queue == 0));
        answer(&device.writer, &socket);
    });
}

#[test]
fn a_device_made_beforehand_has_as_many_queues_as_are_asked_for() {
    in_namespace("a_device_made_beforehand_has_as_many_queues_as_are_asked_for", || {
        let made =
            |name: &str, multi_queue| Persistent { multi_queue, ..device(Some(name), Mode::Tun) };
        made("vpnd0", true).create().unwrap();
        for queues in [1, 3] {
            let device = open(&Options { queues, ..options("vpnd0") }).unwrap();
            assert_eq!((device.queues.len(), device.adopted), (queues.into(), true));
        }
        made("vpnd1", false).create().unwrap();
        let several = |name| open(&Options { queues: 2, ..options(name) }).unwrap_err();
        assert!(matches!(several("vpnd1"), OpenError::SingleQueue { name } if name == "vpnd1"));
        assert!(matches!(several("lo"), OpenError::Kind { .. }));
        // The failed attempt made no device.
        assert_eq!(kind_of("vpnd1").unwrap(), Mode::Tun);
        assert_eq!(open(&options("vpnd1")).unwrap().queues.len(), 1);
    });
}

#[test]
fn the_next_process_has_as_many_queues_as_it_wants() {
    in_namespace("the_next_process_has_as_many_queues_as_it_wants", || {
        let mut device = open(&Options { queues: 2, ..options("vpnd0") }).unwrap();
        let socket = host(&device);
        for queues in [4, 4, 1, 3] {
            let wanted = Options { queues, ..options("vpnd0") };
            let next = inherit(attached(&device), &wanted).unwrap();
            drop(device);
            assert_eq!(next.queues.len(), usize::from(queues));
            let seen = flows(&next, &socket);
            assert_eq!(seen.len(), usize::from(FLOWS));
            assert_eq!(seen.values().collect::<BTreeSet<_>>().len(), usize::from(queues));
            answer(&next.writer, &socket);
            device = next;
        }
        let single = open(&options("vpnd1")).unwrap();
        let several = Options { queues: 2, ..options("vpnd1") };
        assert!(inherit(attached(&single), &several).is_err());
    });
}

/// Copies of a device's descriptors, as another process gets them.
fn attached(device: &Device) -> Attached {
    let Descriptors { queues, writer } = device.descriptors();
    let copy = |descriptor: BorrowedFd<'_>| descriptor.try_clone_to_owned().unwrap();
    Attached { queues: queues.into_iter().map(copy).collect(), writer: writer.map(copy) }
}

/// A socket of the host behind the device.
fn host(device: &Device) -> UdpSocket {
    add_ipv4(&device.name, HOST);
    set_up(&device.name);
    let socket = UdpSocket::bind((HOST, 9)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Sends a packet of each flow; returns the queue on which it arrived, by the peer's port.
fn flows(device: &Device, socket: &UdpSocket) -> BTreeMap<u16, usize> {
    for flow in 0..FLOWS {
        socket.send_to(b"question", (PEER, 0xc000 + u16::from(flow))).unwrap();
    }
    let mut came = BTreeMap::new();
    let mut buffer = vec![0; READ_BUFFER];
    for (at, queue) in device.queues.iter().enumerate() {
        while let Ok(len) = queue.read(&mut buffer) {
            let (_, packet) = VnetHeader::decode(&buffer[..len]).unwrap();
            if packet[0] == 0x45 && packet[9] == 17 {
                assert_eq!(came.insert(u16::from_be_bytes([packet[22], packet[23]]), at), None);
            }
        }
    }
    came
}

/// Writes the peer's answer of each flow to the host.
fn answer(queue: &Queue, socket: &UdpSocket) {
    let plain = VnetHeader::PLAIN.encode();
    for flow in 0..FLOWS {
        let packet = Spec { flow: (1, flow), ..Spec::new(false, true) }.build();
        queue.write(&[IoSlice::new(&plain), IoSlice::new(&packet)]).unwrap();
    }
    let mut buffer = [0; 100];
    let came = std::iter::from_fn(|| socket.recv_from(&mut buffer).ok()).count();
    assert_eq!(came, usize::from(FLOWS));
}
