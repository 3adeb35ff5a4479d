//! Names of interfaces in link-local addresses. A number identifies an interface only as long as the interface
//! exists; the configuration and people use its name.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use nix::net::if_::{if_indextoname, if_nametoindex};

/// The names of the interfaces in addresses that were learned so far, by interface number.
#[derive(Default)]
pub(crate) struct Zones(BTreeMap<u32, String>);

impl Zones {
    /// Stores the name of the interface of a link-local address.
    pub(crate) fn learn(&mut self, address: SocketAddr) {
        if let Some(index) = zone(address)
            && !self.0.contains_key(&index)
            && let Some(name) = name_of(index)
        {
            self.0.insert(index, name);
        }
    }

    /// The interfaces whose number has changed: the old and the new number of each.
    pub(crate) fn renumbered(&mut self) -> Vec<(u32, u32)> {
        let now = |(old, name): (&u32, &String)| Some((*old, if_nametoindex(name.as_str()).ok()?));
        let changed: Vec<_> =
            self.0.iter().filter_map(now).filter(|(old, new)| old != new).collect();
        for (old, new) in &changed {
            if let Some(name) = self.0.remove(old) {
                self.0.insert(*new, name);
            }
        }
        changed
    }

    /// Formats an address as a user would write it in the configuration.
    pub(crate) fn show(&self, address: SocketAddr) -> String {
        let name =
            zone(address).and_then(|index| self.0.get(&index).cloned().or_else(|| name_of(index)));
        match name {
            Some(name) => format!("[{}%{name}]:{}", address.ip(), address.port()),
            None => address.to_string(),
        }
    }
}

fn zone(address: SocketAddr) -> Option<u32> {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => Some(v6.scope_id()),
        _ => None,
    }
}

fn name_of(index: u32) -> Option<String> {
    if_indextoname(index).ok()?.into_string().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddrV6;

    fn link_local(index: u32) -> SocketAddr {
        SocketAddrV6::new([0xfe80, 0, 0, 0, 0, 0, 0, 2].into(), 51820, 0, index).into()
    }

    #[test]
    fn a_link_local_address_is_shown_with_the_name_of_its_interface() {
        let mut zones = Zones::default();
        let lo = if_nametoindex("lo").unwrap();
        zones.learn(link_local(lo));
        assert_eq!(zones.show(link_local(lo)), "[fe80::2%lo]:51820");
        assert_eq!(zones.show("[2001:db8::1]:1".parse().unwrap()), "[2001:db8::1]:1");
        assert_eq!(zones.renumbered(), []);
    }

    #[test]
    fn a_name_that_has_another_number_is_found() {
        let lo = if_nametoindex("lo").unwrap();
        let mut zones =
            Zones([(lo + 1000, "lo".to_owned()), (7_000_000, "gone".to_owned())].into());
        assert_eq!(zones.renumbered(), [(lo + 1000, lo)]);
        assert_eq!(zones.show(link_local(lo)), "[fe80::2%lo]:51820");
        assert_eq!(zones.show(link_local(7_000_000)), "[fe80::2%gone]:51820");
    }
}
