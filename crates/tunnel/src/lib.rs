//! Moves packets between the device and the UDP socket: two straight lines, no hand-offs.
pub mod clamp;
pub mod filter;
pub mod udp;
