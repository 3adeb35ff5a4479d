//! The sans-IO tunnel protocol: datagrams, `now` and an RNG go in; datagrams, events and the
//! next deadline come out.
#![forbid(unsafe_code)]

pub mod cookie;
pub mod handshake;
pub mod message;
pub mod time;
pub mod timestamp;
