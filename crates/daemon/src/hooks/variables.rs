//! The plan of a configuration: which commands it names, and what they are told of the tunnel. No
//! secret is among that.

use std::path::Path;

use super::plan::{Argv, Moment, Plan};
use super::{dns, program};
use crate::config::{Config, Mode};

/// What is known of a tunnel once its device is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// The device's name.
    pub(crate) device: &'a str,
    /// Its MTU.
    pub(crate) mtu: u16,
    /// The UDP port.
    pub(crate) listen_port: u16,
}

fn environment(config: &Config, facts: Facts<'_>) -> Vec<(String, String)> {
    let interface = &config.interface;
    let mode = match interface.mode {
        Mode::Tun => "tun",
        Mode::Tap => "tap",
    };
    let routes: Vec<_> = config.routes.iter().map(|route| route.to).collect();
    let variables = [
        ("PATH", program::search_path().to_string_lossy().into_owned()),
        ("HOME", "/".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("VPND_NAME", config.name.clone()),
        ("VPND_CONFIG", absolute(&config.file)),
        ("VPND_DEVICE", facts.device.to_owned()),
        ("VPND_MODE", mode.to_owned()),
        ("VPND_MTU", facts.mtu.to_string()),
        ("VPND_ADDRESSES", joined(&interface.addresses)),
        ("VPND_PEER_ADDRESSES", joined(&interface.peer_addresses)),
        ("VPND_ROUTES", joined(&routes)),
        ("VPND_LISTEN_PORT", facts.listen_port.to_string()),
        ("VPND_PEER", config.peer.public_key.to_string()),
    ];
    variables.map(|(name, value)| (name.to_owned(), value)).into()
}

fn joined(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Commands run in the root directory.
fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).to_string_lossy().into_owned()
}
