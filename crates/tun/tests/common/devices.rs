//! Devices for the tests.

use std::net::{Ipv4Addr, Ipv6Addr};

use vpnd_tun::{Adopt, Device, Mode, Options, Owner, Persistent, open};

use super::namespace::{add_ipv4, add_ipv6, set_mtu, set_up, sysctl};

pub(crate) fn options(name: &str) -> Options {
    let name = Some(name.to_owned());
    let owner = Owner::default();
    Options { name, mode: Mode::Tun, offload: true, queues: 1, adopt: Adopt::Auto, owner }
}

/// A device into which packets are written, and another to which the kernel forwards them. The second accepts
/// packets of any length.
pub(crate) fn router(offload: bool) -> (Device, Device) {
    let entry = open(&options("entry")).unwrap();
    let exit = open(&Options { offload, ..options("exit") }).unwrap();
    for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        sysctl(family, "1");
    }
    for link in ["all", "entry"] {
        sysctl(&format!("ipv4/conf/{link}/rp_filter"), "0");
        sysctl(&format!("ipv6/conf/{link}/disable_ipv6"), "0");
    }
    add_ipv4("entry", Ipv4Addr::new(198, 51, 100, 1));
    add_ipv4("exit", Ipv4Addr::new(192, 0, 2, 201));
    set_up("entry");
    set_mtu("exit", 65_535);
    set_up("exit");
    add_ipv6("exit", Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 201));
    (entry, exit)
}

/// A single-queue device that is to be made, without an owner.
pub(crate) fn device(name: Option<&str>, kind: Mode) -> Persistent {
    Persistent {
        name: name.map(str::to_owned),
        kind,
        user: None,
        group: None,
        multi_queue: false,
        packet_info: false,
        vnet_header: false,
        one_queue: false,
    }
}
