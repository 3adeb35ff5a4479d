//! The sans-IO tunnel protocol: datagrams, `now` and an RNG go in; datagrams, events and the next
//! deadline come out. [`peer::Peer`] is the control plane. The data threads use [`session`],
//! [`receive_order`], [`staging`] and [`activity`].
#![forbid(unsafe_code)]

pub mod activity;
pub mod call;
pub mod cookie;
pub mod drop_reason;
pub mod endpoint;
pub mod fragment;
pub mod frame;
pub mod handshake;
mod high_water;
pub mod inheritance;
pub mod inner;
pub mod key_log;
mod keyring;
pub mod limits;
mod liveness;
pub mod message;
pub mod peer;
pub mod profile;
pub mod receive_order;
pub mod replay;
pub mod session;
pub mod staging;
pub mod table;
pub mod terms;
pub mod time;
pub mod timers;
pub mod timestamp;
pub mod upgrade;
#[cfg(test)]
mod vectors;
pub mod wake_flag;
