//! The TUN and TAP device with its offloads, and two pure functions that convert between the kernel's
//! super-packets and single packets.
//!
//! [`open()`] returns a [`Device`]; each read of a [`Queue`] returns a [`VnetHeader`] and one packet or
//! super-packet. [`split()`] splits a super-packet; [`Coalescer`] does the reverse before a write.
#![deny(unsafe_code)]

mod adopt;
mod carrier;
mod checksum;
mod clear;
mod coalesce;
mod flow;
mod inherit;
mod ioctl;
mod layout;
mod link;
mod make;
mod open;
mod persist;
mod probe;
mod split;
mod taken;
mod vnet;
pub mod wire;

pub use adopt::Adopt;
pub use carrier::Carrier;
pub use checksum::{Sum, pseudo_header};
pub use clear::release;
pub use coalesce::{Coalescer, Limits, unmerge};
pub use inherit::{Attached, inherit};
pub use open::{Descriptors, Device, Mode, Offload, OpenError, Options, Queue, open};
pub use persist::{Owner, PersistError, Persistent, keep, kind_of, remove};
pub use split::{Segments, SplitError, split};
pub use taken::Taken;
pub use vnet::{READ_BUFFER, VNET_LEN, VnetHeader};
