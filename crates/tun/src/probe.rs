//! Finds out which super-packets the kernel accepts, without sending any.
//!
//! Some kernels (6.6.44, 6.10.3 and vendor kernels with the same fix) reject valid super-packets with EINVAL.
//! The kernel checks the header before it notices that the device is down. So EIO from a device that is down
//! means that the kernel accepts the header.

use std::io::{self, IoSlice, Write};

use crate::layout::{Layout, Transport, Version};
use crate::vnet::{NEEDS_CSUM, VnetHeader};
use crate::wire::{IPV4_HEADER, TCP_HEADER, UDP_HEADER, low16, put16};

/// Whether the device accepts a write of two and a half segments of `transport`. The device must be down.
pub(crate) fn accepts(mut device: impl Write, transport: Transport) -> io::Result<bool> {
    let mut packet = [0; PACKET];
    let (header, len) = super_packet(transport, &mut packet);
    let slices = [IoSlice::new(&header), IoSlice::new(&packet[..len])];
    match device.write_vectored(&slices) {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(e) => Err(e),
    }
}

/// A super-packet between two documentation addresses.
fn super_packet(transport: Transport, packet: &mut [u8; PACKET]) -> ([u8; 10], usize) {
    let header = match transport {
        Transport::Tcp => TCP_HEADER,
        Transport::Udp => UDP_HEADER,
    };
    let l4 = IPV4_HEADER;
    let layout = Layout { version: Version::V4, transport, ip: 0, l4, payload: l4 + header };
    let len = layout.payload + SEGMENT * 5 / 2;
    packet[..10].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, transport.protocol()]);
    packet[12..20].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
    packet[l4..l4 + 4].copy_from_slice(&[0, 9, 0, 9]);
    if transport == Transport::Tcp {
        packet[l4 + 12..l4 + 14].copy_from_slice(&[0x50, 0x10]);
    }
    layout.set_lengths(packet, len);
    let partial = layout.pseudo_header(packet, len).partial();
    put16(packet, layout.checksum_at(), partial);
    (vnet(&layout).encode(), len)
}

fn vnet(layout: &Layout) -> VnetHeader {
    VnetHeader {
        flags: NEEDS_CSUM,
        gso_type: layout.gso_type(),
        hdr_len: low16(layout.payload),
        gso_size: low16(SEGMENT),
        csum_start: low16(layout.l4),
        csum_offset: layout.transport.checksum_offset(),
    }
}

const SEGMENT: usize = 100;
const PACKET: usize = 300;
