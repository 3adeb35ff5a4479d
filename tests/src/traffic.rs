//! What crosses a tunnel in a scenario, and exactly what arrived of it.

pub mod iperf;
pub mod ping;
pub mod stream;
pub mod tcp;
pub mod udp;
