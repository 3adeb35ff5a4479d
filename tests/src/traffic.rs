//! Traffic through a tunnel in a scenario, with an exact account of what arrived.

pub mod echo;
pub mod iperf;
pub mod ping;
pub mod stream;
pub mod tcp;
pub mod udp;
