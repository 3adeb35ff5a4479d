//! The outer TTL (IPv4) or hop limit (IPv6) of a batch, if it is not the host's default.

use std::ffi::c_int;
use std::num::NonZeroU8;

use super::cmsg::{Encoder, Kind};

const V4: Kind = Kind { level: libc::SOL_IP, name: libc::IP_TTL };
const V6: Kind = Kind { level: libc::SOL_IPV6, name: libc::IPV6_HOPLIMIT };

/// Sets the limit for one send. The protocol level is that of the destination, not that of the socket.
pub(super) fn encode(control: &mut Encoder, v4: bool, hops: NonZeroU8) {
    control.push(if v4 { V4 } else { V6 }, &c_int::from(hops.get()).to_ne_bytes());
}
