//! What `pair` makes: two sites, and the tunnel between them. A [`Plan`] fits together, whoever has made it: the
//! options, the dialogue, or the code of an invitation.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use thiserror::Error;

use super::networks::{InnerNet, is_default, overlap};
use crate::config::{Endpoint, Protocol};

/// The name of a site, which its tunnel and its files have too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name(String);

impl Name {
    /// The longest name, in bytes; it is part of the paths of files and sockets.
    const LONGEST: usize = 64;
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if text.is_empty() || text.starts_with('-') || !text.bytes().all(allowed) {
            return Err(format!("`{text}` cannot name a site: letters, digits, - and _ can"));
        }
        if text.len() > Self::LONGEST {
            return Err(format!("`{text}` is too long: at most {} letters", Self::LONGEST));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// The name of a network device: a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device(String);

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.@".contains(&b);
        if text.is_empty() || text.len() > 15 || text.starts_with(['.', '-']) {
            return Err(format!("`{text}` cannot name a device: 1 to 15 letters, as in br0"));
        }
        if !text.bytes().all(allowed) {
            return Err(format!(
                "`{text}` cannot name a device: letters, digits, -, _, . and @ can"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One site of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    /// The name of its tunnel and files.
    pub(crate) name: Name,
    /// The endpoint at which the other site reaches this one; without one, this site initiates.
    pub(crate) endpoint: Option<Endpoint>,
}

impl FromStr for Site {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, endpoint) = match text.split_once('=') {
            Some((name, endpoint)) => (name, Some(endpoint)),
            None => (text, None),
        };
        let endpoint = endpoint.map(Endpoint::from_str).transpose().map_err(|e| e.to_string())?;
        Ok(Self { name: name.parse()?, endpoint })
    }
}

/// What crosses the tunnel; both sites' parts are in the order of the sites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// IP packets between the networks behind the sites.
    Routed(Routed),
    /// Ethernet frames: each site has a bridge, and both LANs become one. This takes the protocol `vpnd`.
    Bridged([Device; 2]),
}

/// The networks of a routed tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Routed {
    /// The networks behind each site; a network of prefix length 0 is all that is reached through that site.
    pub(crate) behind: [Vec<IpNet>; 2],
    /// The networks of the tunnel's own addresses.
    pub(crate) inner: Vec<InnerNet>,
    /// What both ends speak.
    pub(crate) protocol: Protocol,
}

/// Two sites and the tunnel between them, which fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    sites: [Site; 2],
    link: Link,
}

/// The most networks of each kind.
const MOST_NETWORKS: usize = 128;

/// Why two sites make no pair.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum PlanError {
    /// Both sites have the same name.
    #[error("both sites are called `{0}`: give them two names")]
    SameName(Name),
    /// Neither site has an endpoint, so neither could reach the other.
    #[error("neither site has an endpoint: give one as NAME=HOST:PORT")]
    NoEndpoint,
    /// The same addresses are behind both sites.
    #[error(
        "{0} and {1} overlap, and are behind different sites: no route could tell them apart. Renumber one, or \
         bridge both LANs"
    )]
    BehindBoth(IpNet, IpNet),
    /// The tunnel's own addresses are also those of other hosts.
    #[error("the tunnel's own network {inner} overlaps {other}: choose another one")]
    Inner { inner: IpNet, other: IpNet },
    /// More networks than a code has room for.
    #[error(
        "more than {MOST_NETWORKS} networks behind one site: write the others as [[route]] later"
    )]
    TooMany,
    /// The other site would send the tunnel's own packets into the tunnel.
    #[error(
        "the endpoint {endpoint} is within {net}, a network behind the same site: the tunnel's own packets would be \
         routed into the tunnel"
    )]
    Loop { endpoint: Endpoint, net: IpNet },
}

impl Plan {
    /// Checks that sites and link fit together.
    ///
    /// # Errors
    ///
    /// The first thing that does not.
    pub(crate) fn new(sites: [Site; 2], link: Link) -> Result<Self, PlanError> {
        names_differ(&sites[0].name, &sites[1].name)?;
        one_is_reached(&sites)?;
        if let Link::Routed(Routed { behind: [a, b], inner, .. }) = &link {
            apart(a, b)?;
            if [a.len(), b.len(), inner.len()].iter().any(|len| *len > MOST_NETWORKS) {
                return Err(PlanError::TooMany);
            }
            is_free(inner, a.iter().chain(b))?;
            sites.iter().zip([a, b]).try_for_each(|(site, behind)| no_loop(site, behind))?;
        }
        Ok(Self { sites, link })
    }

    /// What crosses the tunnel.
    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// Both sites.
    pub(crate) fn sites(&self) -> &[Site; 2] {
        &self.sites
    }

    /// The tunnel as each site sees it.
    pub(crate) fn ends(&self) -> [End<'_>; 2] {
        [End { plan: self, own: 0, other: 1 }, End { plan: self, own: 1, other: 0 }]
    }
}

/// The tunnel as one site sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    plan: &'a Plan,
    own: usize,
    other: usize,
}

impl<'a> End<'a> {
    /// The site.
    pub(crate) fn site(self) -> &'a Site {
        &self.plan.sites[self.own]
    }

    /// The other site.
    pub(crate) fn peer(self) -> &'a Site {
        &self.plan.sites[self.other]
    }

    /// The name of the tunnel's device at this site.
    pub(crate) fn device(self) -> String {
        format!("vpn-{}", self.site().name).chars().take(15).collect()
    }

    /// The bridge, if both LANs become one.
    pub(crate) fn bridge(self) -> Option<&'a Device> {
        match &self.plan.link {
            Link::Routed(_) => None,
            Link::Bridged(bridges) => Some(&bridges[self.own]),
        }
    }

    /// What both ends speak.
    pub(crate) fn protocol(self) -> Protocol {
        match &self.plan.link {
            Link::Routed(routed) => routed.protocol,
            Link::Bridged(_) => Protocol::Vpnd,
        }
    }

    /// The site's addresses inside the tunnel.
    pub(crate) fn addresses(self) -> Vec<IpNet> {
        self.inner(self.own)
    }

    /// The other site's addresses inside the tunnel.
    pub(crate) fn peer_addresses(self) -> Vec<IpNet> {
        self.inner(self.other)
    }

    /// The networks behind this site.
    pub(crate) fn behind(self) -> &'a [IpNet] {
        self.networks(self.own)
    }

    /// The networks behind the other site.
    pub(crate) fn beyond(self) -> &'a [IpNet] {
        self.networks(self.other)
    }

    fn inner(self, at: usize) -> Vec<IpNet> {
        match &self.plan.link {
            Link::Routed(routed) => routed.inner.iter().map(|net| net.addresses[at]).collect(),
            Link::Bridged(_) => Vec::new(),
        }
    }

    fn networks(self, at: usize) -> &'a [IpNet] {
        match &self.plan.link {
            Link::Routed(routed) => &routed.behind[at],
            Link::Bridged(_) => &[],
        }
    }
}

/// Checks that the sites have two names.
pub(super) fn names_differ(a: &Name, b: &Name) -> Result<(), PlanError> {
    if a == b { Err(PlanError::SameName(a.clone())) } else { Ok(()) }
}

/// Checks that one of the sites can be reached.
pub(super) fn one_is_reached(sites: &[Site; 2]) -> Result<(), PlanError> {
    let reached = sites.iter().any(|site| site.endpoint.is_some());
    if reached { Ok(()) } else { Err(PlanError::NoEndpoint) }
}

/// Checks that no address is behind both sites. Everything may be behind one, and a network behind the other.
pub(super) fn apart(a: &[IpNet], b: &[IpNet]) -> Result<(), PlanError> {
    let both = a.iter().flat_map(|a| b.iter().map(move |b| (*a, *b)));
    let meet = |(a, b): &(IpNet, IpNet)| overlap(a, b) && is_default(a) == is_default(b);
    both.into_iter().find(meet).map_or(Ok(()), |(a, b)| Err(PlanError::BehindBoth(a, b)))
}

/// Checks that nobody else uses the tunnel's own addresses.
pub(super) fn is_free<'a>(
    inner: &[InnerNet],
    behind: impl Iterator<Item = &'a IpNet>,
) -> Result<(), PlanError> {
    let mut others: Vec<IpNet> = behind.filter(|net| !is_default(net)).copied().collect();
    for net in inner.iter().map(InnerNet::net) {
        if let Some(other) = others.iter().find(|other| overlap(&net, other)) {
            return Err(PlanError::Inner { inner: net, other: *other });
        }
        others.push(net);
    }
    Ok(())
}

/// Checks that the other site's routes to the networks behind this one do not cover its endpoint. vpnd's rules for
/// default routes exclude it.
pub(super) fn no_loop(site: &Site, behind: &[IpNet]) -> Result<(), PlanError> {
    let Some(endpoint) = &site.endpoint else { return Ok(()) };
    let Some(address) = endpoint.address() else { return Ok(()) };
    let covers = |net: &&IpNet| !is_default(net) && net.contains::<&IpAddr>(&address);
    match behind.iter().find(covers) {
        Some(net) => Err(PlanError::Loop { endpoint: endpoint.clone(), net: *net }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{both_families, bridged, road_warrior, routed};
    use super::*;

    #[test]
    fn sites() {
        let site: Site = "a=[2001:db8::1]:51820".parse().unwrap();
        assert_eq!(site.endpoint.unwrap().to_string(), "[2001:db8::1]:51820");
        assert_eq!("b".parse(), Ok(Site { name: Name("b".into()), endpoint: None }));
        assert!("../b".parse::<Site>().is_err());
        assert!("b=nowhere".parse::<Site>().is_err());
        assert!("b".repeat(65).parse::<Site>().is_err());
    }

    #[test]
    fn what_makes_no_pair() {
        let (a, b) = ("a=192.0.2.1:51820", "b");
        let error = |sites, behind| routed(sites, behind, &["10.99.0.0/30"]).unwrap_err();
        assert_eq!(error(["a", "b"], [&[], &[]]), PlanError::NoEndpoint);
        assert!(matches!(error([a, "a"], [&[], &[]]), PlanError::SameName(_)));
        let both: [&[&str]; 2] = [&["10.0.0.0/16"], &["192.168.1.0/24", "10.0.7.0/24"]];
        assert!(matches!(error([a, b], both), PlanError::BehindBoth(..)));
        let all: [&[&str]; 2] = [&["0.0.0.0/0"], &["0.0.0.0/0"]];
        assert!(matches!(error([a, b], all), PlanError::BehindBoth(..)));
        let inner: [&[&str]; 2] = [&[], &["10.99.0.0/16"]];
        assert!(matches!(error([a, b], inner), PlanError::Inner { .. }));
        assert!(matches!(error([a, b], [&["192.0.2.0/24"], &[]]), PlanError::Loop { .. }));
        let twice = routed([a, b], [&[], &[]], &["10.99.0.0/30", "10.99.0.0/31"]);
        assert!(matches!(twice, Err(PlanError::Inner { .. })));
    }

    #[test]
    fn everything_may_be_behind_one_site() {
        let plan = road_warrior();
        let [home, road] = plan.ends();
        assert_eq!((home.behind().len(), road.behind().len()), (2, 1));
    }

    #[test]
    fn each_end_sees_the_other() {
        let plan = both_families();
        let [a, b] = plan.ends();
        assert_eq!((a.site(), a.behind()), (b.peer(), b.beyond()));
        assert_eq!((a.addresses(), b.addresses()), (b.peer_addresses(), a.peer_addresses()));
        assert_eq!(a.device(), "vpn-site-a");
        let bridged = bridged();
        let bridges = bridged.ends().map(|end| end.bridge().unwrap().to_string());
        assert_eq!(bridges, ["br0", "br-lan"]);
    }
}
