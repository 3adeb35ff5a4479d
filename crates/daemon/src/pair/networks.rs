//! The networks of a pair: behind the sites, and inside the tunnel.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A network with an address for each site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InnerNet {
    /// Each site's address in the network.
    pub(crate) addresses: [IpNet; 2],
}

impl InnerNet {
    /// The network.
    pub(crate) fn net(&self) -> IpNet {
        self.addresses[0].trunc()
    }
}

/// Parses a network and chooses both sites' addresses.
pub(crate) fn inner_network(text: &str) -> Result<InnerNet, String> {
    let net: IpNet = text.parse().map_err(|_| "a network such as 10.99.0.0/30".to_owned())?;
    // The first address of an IPv6 network is the subnet-router anycast address (RFC 4291 §2.6.1).
    let anycast = net.addr().is_ipv6() && net.prefix_len() < 127;
    let mut hosts = net.trunc().hosts().skip(usize::from(anycast));
    let mut host = || {
        let address = hosts.next().ok_or_else(|| format!("{net} has no two addresses"))?;
        IpNet::new(address, net.prefix_len()).map_err(|error| error.to_string())
    };
    Ok(InnerNet { addresses: [host()?, host()?] })
}

/// Parses a network behind a site.
pub(crate) fn network(text: &str) -> Result<IpNet, String> {
    let wrong = || format!("`{text}` is not a network: write it as 192.168.10.0/24 or fd10::/48");
    let net: IpNet = text.parse().map_err(|_| wrong())?;
    let whole = net.trunc();
    if whole == net {
        Ok(net)
    } else {
        Err(format!("`{text}` is an address: its network is {whole}"))
    }
}

/// Parses networks behind a site, with commas or spaces between them; `all` is everything.
pub(crate) fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    let words = text.split([',', ' ', '\t']).filter(|word| !word.is_empty());
    let mut all = Vec::new();
    for word in words {
        match word {
            "all" => all.extend(EVERYTHING),
            word => all.push(network(word)?),
        }
    }
    Ok(all)
}

/// All addresses of both families.
const EVERYTHING: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(std::net::Ipv6Addr::UNSPECIFIED, 0)),
];

/// Networks for the tunnel's own addresses that none of `behind` overlaps: an IPv4 network, and an IPv6 network if one
/// is behind a site.
pub(crate) fn free_inner(behind: &[IpNet]) -> Vec<InnerNet> {
    let is_free = |net: &InnerNet| {
        !behind.iter().any(|other| !is_default(other) && overlap(&net.net(), other))
    };
    let parsed = |text: String| inner_network(&text).ok();
    let places = ["10.99", "172.31", "192.168"];
    let v4 = places.iter().flat_map(|place| (0..=255).map(move |n| format!("{place}.{n}.0/30")));
    let v6 = (0..=0xffff).map(|n| format!("fd99:0:0:{n:x}::/64"));
    let v6_behind = behind.iter().any(|net| net.addr().is_ipv6());
    let v4 = v4.filter_map(parsed).find(is_free);
    let v6 = v6_behind.then(|| v6.filter_map(parsed).find(is_free)).flatten();
    v4.into_iter().chain(v6).collect()
}

/// Whether two networks have an address in common.
pub(crate) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Whether a network is all addresses of its family.
pub(crate) fn is_default(net: &IpNet) -> bool {
    net.prefix_len() == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sites_get_an_address() {
        let addresses =
            |text| inner_network(text).map(|net| net.addresses.map(|it| it.to_string()));
        let expect = |a: &str, b: &str| Ok([a.to_owned(), b.to_owned()]);
        assert_eq!(addresses("10.99.0.0/30"), expect("10.99.0.1/30", "10.99.0.2/30"));
        assert_eq!(addresses("10.99.0.0/31"), expect("10.99.0.0/31", "10.99.0.1/31"));
        assert_eq!(addresses("fd99::/64"), expect("fd99::1/64", "fd99::2/64"));
        assert_eq!(addresses("fd99::/127"), expect("fd99::/127", "fd99::1/127"));
        assert_eq!(addresses("10.99.0.0/32"), Err("10.99.0.0/32 has no two addresses".into()));
    }

    #[test]
    fn networks_are_written_as_networks() {
        let nets = |text| networks(text).map(|all| all.iter().map(ToString::to_string).collect());
        assert_eq!(
            nets("10.0.0.0/8, fd10::/48"),
            Ok(vec!["10.0.0.0/8".into(), "fd10::/48".into()])
        );
        assert_eq!(nets("all"), Ok(vec!["0.0.0.0/0".to_owned(), "::/0".into()]));
        assert_eq!(nets(" "), Ok(vec![]));
        assert!(nets("10.0.0.1/8").unwrap_err().ends_with("10.0.0.0/8"));
        assert!(nets("10.0.0.0").is_err());
    }

    #[test]
    fn the_default_is_nobody_elses() {
        let free = |behind: &str| -> Vec<String> {
            let free = free_inner(&networks(behind).unwrap());
            free.iter().map(|net| net.net().to_string()).collect()
        };
        let expect = |nets: &[&str]| nets.iter().map(|net| (*net).to_owned()).collect::<Vec<_>>();
        assert_eq!(free("192.168.1.0/24"), expect(&["10.99.0.0/30"]));
        assert_eq!(free("10.99.0.0/23 fd99::/64"), expect(&["10.99.2.0/30", "fd99:0:0:1::/64"]));
        assert_eq!(free("10.0.0.0/8"), expect(&["172.31.0.0/30"]));
        assert_eq!(free("all"), expect(&["10.99.0.0/30", "fd99::/64"]));
        assert_eq!(free("10.0.0.0/8 172.16.0.0/12 192.168.0.0/16"), expect(&[]));
    }
}
