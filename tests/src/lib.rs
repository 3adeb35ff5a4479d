//! A laboratory of network namespaces: hosts, links, filters, relays, captures, traffic, and the
//! daemons under test.
//!
//! A [`Lab`] owns the directory of one scenario; its [`Host`]s are anonymous namespaces, which the
//! kernel removes with the last descriptor: a panic, a `kill -9` or two runs at once leave nothing
//! behind and never meet. Everything that runs inside is a [`Process`] that dies with the test.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use vpnd_tests::{Lab, Wire, peer::{Kind, Peer}, site, traffic::ping};
//!
//! let lab = Lab::new("two-peers")?;
//! let wire = Wire::new(&lab)?;
//! let (site_a, site_b) = site::pair()?;
//! let _a = Peer::start(Kind::WireguardGo, &wire.a, &site_a)?;
//! let _b = Peer::start(Kind::Boringtun, &wire.b, &site_b)?;
//! ping::once(&wire.a, site::INNER_B4)?;
//! # Ok(()) }
//! ```

pub mod binaries;
pub mod bird;
pub mod capture;
pub mod frame;
mod guest;
mod host;
mod key;
mod lab;
pub mod link;
mod manager;
pub mod memory;
pub mod nft;
pub mod peer;
mod process;
pub mod relay;
pub mod runner;
pub mod site;
pub mod status;
mod sys;
pub mod terminal;
mod topology;
pub mod traffic;
pub mod tun;
pub mod vpnd;
mod wait;

pub use frame::Frame;
pub use guest::Guest;
pub use host::Host;
pub use key::{Key, KeyPair};
pub use lab::Lab;
pub use manager::Manager;
pub use process::{Process, TICK, kill_all};
pub use topology::{Routed, Wire};
pub use vpnd::Vpnd;
pub use wait::{eventually, within};

/// Whether the long tests were requested (`VPND_TESTS=long`), instead of a quick run.
pub fn long() -> bool {
    std::env::var("VPND_TESTS").is_ok_and(|size| size == "long")
}
