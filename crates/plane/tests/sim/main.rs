//! The simulator: two ends or three, one clock that jumps to whatever comes next, and a network between
//! them that may be as bad as it likes. Each end is a real [`vpnd_plane::Plane`] and the very
//! types the data threads use, in the order the data threads use them.
//!
//! `VPND_SEEDS=n` sets how many hostile networks to survive, `VPND_TESTS=long` survives ten
//! thousand, `VPND_SEED=n` replays one.

#![expect(clippy::print_stdout, reason = "the figures, the seeds that failed and their stories")]

mod alternating;
mod change;
mod contest;
mod crossed;
mod crossing;
mod data;
mod diagnosis;
mod duplicate;
mod echo;
mod end;
mod failover;
mod handshake;
mod heir;
mod hostile;
mod keepalive;
mod liveness;
mod network;
mod options;
mod oracle;
mod path_mtu;
mod policy;
mod preshared;
mod reach;
mod rekey;
mod restart;
mod retune;
mod roaming;
mod stamps;
mod states;
mod upgrade;
mod world;
