//! The outer TOS byte (IPv4) or traffic class (IPv6): DSCP and ECN, with one value for a whole batch.

use std::ffi::c_int;

use super::Received;
use super::cmsg::{Encoder, Kind, Message};
use super::sys::IntOption;

pub(super) const OPTION_V4: IntOption =
    IntOption { level: libc::SOL_IP, name: libc::IP_RECVTOS, label: "IP_RECVTOS" };
pub(super) const OPTION_V6: IntOption =
    IntOption { level: libc::SOL_IPV6, name: libc::IPV6_RECVTCLASS, label: "IPV6_RECVTCLASS" };

const V4: Kind = Kind { level: libc::SOL_IP, name: libc::IP_TOS };
const V6: Kind = Kind { level: libc::SOL_IPV6, name: libc::IPV6_TCLASS };

/// Sets the byte for one send. The protocol level is that of the destination, not that of the socket.
pub(super) fn encode(control: &mut Encoder, v4: bool, tos: u8) {
    control.push(if v4 { V4 } else { V6 }, &c_int::from(tos).to_ne_bytes());
}

/// Reads the byte; for IPv4 the kernel reports a `u8`, for IPv6 an `int`.
pub(super) fn decode(message: &Message<'_>, received: &mut Received) {
    let tos = match message.kind {
        V4 => message.value.first().copied(),
        V6 => message.int().and_then(|class| u8::try_from(class).ok()),
        _ => return,
    };
    received.tos = tos.unwrap_or_default();
}
