//! `UDP_GRO`: the kernel returns several datagrams of equal size in one receive.

use super::Received;
use super::cmsg::{Kind, Message};
use super::sys::IntOption;

pub(super) const OPTION: IntOption =
    IntOption { level: libc::SOL_UDP, name: libc::UDP_GRO, label: "UDP_GRO" };

const STRIDE: Kind = Kind { level: libc::SOL_UDP, name: libc::UDP_GRO };

/// Reads the size of the datagrams from the message, which is absent if nothing was merged.
pub(super) fn decode(message: &Message<'_>, received: &mut Received) {
    if message.kind != STRIDE {
        return;
    }
    let stride = message.int().and_then(|stride| usize::try_from(stride).ok());
    if let Some(stride) = stride.filter(|stride| *stride > 0) {
        received.stride = stride;
    }
}
