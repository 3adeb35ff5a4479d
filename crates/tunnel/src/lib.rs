//! Moves packets between the device and the UDP socket on two straight paths. One thread handles a packet from
//! end to end.
//!
//! Start reading with `outbound`, then `inbound`: they contain the steps of a packet from top to bottom.
//! [`engine`] starts and stops the threads, and connects them with the control plane.

mod batch;
pub mod clamp;
pub mod clock;
pub mod counters;
mod delivery;
mod ecn;
pub mod engine;
pub mod filter;
mod gate;
pub mod guard;
mod headers;
mod inbound;
mod intake;
mod nested;
mod outbound;
mod outer;
mod pacing;
mod refused;
mod shared;
pub mod tap;
pub mod udp;
mod unpack;
mod urgent;
pub mod view;
mod watch;

#[cfg(test)]
#[path = "../../../tests/common/namespace.rs"]
mod namespace;
#[cfg(test)]
mod tests;
