//! The command line of `pair`, and what it requests.

use std::path::PathBuf;

use clap::Args;
use ipnet::IpNet;
use thiserror::Error;

use super::networks::{InnerNet, free_inner, inner_network, networks};
use super::plan::{Device, Link, Name, Plan, PlanError, Routed, Site};
use super::ssh::Login;
use crate::config::Protocol;

/// Options of `pair`.
#[derive(Debug, Default, Args)]
pub(crate) struct PairOptions {
    /// One site: its name, and the endpoint at which the other site reaches it; a site without one initiates. Without
    /// sites, `pair` asks for everything
    #[arg(value_name = "NAME[=HOST:PORT]", requires = "b")]
    pub(crate) a: Option<Site>,
    /// The other site
    #[arg(value_name = "NAME[=HOST:PORT]")]
    pub(crate) b: Option<Site>,
    /// Where to write: one directory a site, with all that belongs there. With --invite, --join and --finish, the
    /// directory of this site's files [default: . or, with these three, /etc/vpnd]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// A network behind a site, which the other one routes into the tunnel; `all` is everything. May be repeated
    #[arg(long, value_name = "NAME=NET", value_parser = named_networks, requires = "a")]
    pub(crate) network: Vec<Named<Vec<IpNet>>>,
    /// A network for the tunnel's own addresses; may be given twice, for IPv4 and IPv6 [default: 10.99.0.0/30, or
    /// another one if that is behind a site]
    #[arg(long, value_name = "NET", value_parser = inner_network, requires = "a")]
    pub(crate) inner: Vec<InnerNet>,
    /// Joins both LANs to one: the bridge at both sites, or at the site NAME
    #[arg(long, value_name = "[NAME=]DEVICE", value_parser = named_bridge, requires = "a", conflicts_with_all = ["network", "inner"])]
    pub(crate) bridge: Vec<Named<Device>>,
    /// What both ends speak: vpnd, or wireguard [default: vpnd]
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol, requires = "a")]
    pub(crate) protocol: Option<Protocol>,
    /// Copies the files of the second site, or of the site NAME, to /etc/vpnd there by ssh, and starts its tunnel
    #[arg(long, value_name = "[NAME=]USER@HOST", value_parser = named_login, requires = "a")]
    pub(crate) ssh: Vec<Named<Login>>,
    /// Makes the first site's files here, and prints a code with which the other site can join
    #[arg(long, conflicts_with = "ssh")]
    pub(crate) invite: bool,
    /// Makes this site's files from the code of an invitation, and prints an answer; `-` asks for the code, or reads
    /// it from standard input
    #[arg(long, value_name = "CODE", conflicts_with_all = ["a", "invite", "finish"])]
    pub(crate) join: Option<String>,
    /// Completes the files of the site that has invited, with the answer; `-` as for --join
    #[arg(long, value_name = "ANSWER", conflicts_with_all = ["a", "invite"])]
    pub(crate) finish: Option<String>,
}

/// A value for a site, or for whichever site is meant without a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named<T> {
    site: Option<Name>,
    value: T,
}

/// Splits `NAME=VALUE`; the name may be missing.
fn named<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Named<T>, String> {
    match text.split_once('=') {
        Some((name, value)) => Ok(Named { site: Some(name.parse()?), value: parse(value)? }),
        None => Ok(Named { site: None, value: parse(text)? }),
    }
}

fn named_networks(text: &str) -> Result<Named<Vec<IpNet>>, String> {
    let named = named(text, networks)?;
    if named.site.is_some() { Ok(named) } else { Err("behind which site? NAME=NET".to_owned()) }
}

fn named_bridge(text: &str) -> Result<Named<Device>, String> {
    named(text, str::parse)
}

fn named_login(text: &str) -> Result<Named<Login>, String> {
    named(text, str::parse)
}

/// Parses a protocol.
pub(super) fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "vpnd" => Ok(Protocol::Vpnd),
        "wireguard" => Ok(Protocol::WireGuard),
        _ => Err("vpnd or wireguard".to_owned()),
    }
}

/// What is to be made, and whom ssh connects to for each site.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Both sites and the tunnel.
    pub(crate) plan: Plan,
    /// The logins of both sites; a site without one gets its files otherwise.
    pub(crate) logins: [Option<Login>; 2],
}

/// Why the options make no request.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum RequestError {
    /// An option names a site that is none of the two.
    #[error("no site is called `{0}`: they are called `{1}` and `{2}`")]
    NoSuchSite(Name, Name, Name),
    /// Only one site has a bridge.
    #[error("`{0}` has no bridge: give `--bridge {0}=DEVICE`, or --bridge DEVICE for both")]
    NoBridge(Name),
    /// WireGuard carries no frames.
    #[error("--bridge takes the protocol vpnd: WireGuard carries no Ethernet frames")]
    Frames,
    /// Too much is behind the sites.
    #[error("no network is left for the tunnel's own addresses: give one with --inner")]
    NoInner,
    /// The sites do not fit together.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl PairOptions {
    /// What the options request; `None` if they name no sites.
    ///
    /// # Errors
    ///
    /// If that does not fit together.
    pub(crate) fn request(&self) -> Result<Option<Request>, RequestError> {
        let (Some(a), Some(b)) = (&self.a, &self.b) else { return Ok(None) };
        let sites = [a.clone(), b.clone()];
        let link =
            if self.bridge.is_empty() { self.routed(&sites)? } else { self.bridged(&sites)? };
        let mut logins = [None, None];
        for Named { site, value } in &self.ssh {
            // Without a name it is the far end.
            let at = site.as_ref().map_or(Ok(1), |name| place(&sites, name))?;
            logins[at] = Some(value.clone());
        }
        Ok(Some(Request { plan: Plan::new(sites, link)?, logins }))
    }

    fn routed(&self, sites: &[Site; 2]) -> Result<Link, RequestError> {
        let mut behind = [Vec::new(), Vec::new()];
        for Named { site, value } in &self.network {
            let at = site.as_ref().map_or(Ok(1), |name| place(sites, name))?;
            behind[at].extend(value);
        }
        let inner =
            if self.inner.is_empty() { free_inner(&behind.concat()) } else { self.inner.clone() };
        if inner.is_empty() {
            return Err(RequestError::NoInner);
        }
        let protocol = self.protocol.unwrap_or(Protocol::Vpnd);
        Ok(Link::Routed(Routed { behind, inner, protocol }))
    }

    fn bridged(&self, sites: &[Site; 2]) -> Result<Link, RequestError> {
        if self.protocol == Some(Protocol::WireGuard) {
            return Err(RequestError::Frames);
        }
        let mut bridges = [None, None];
        for Named { site, value } in &self.bridge {
            match site {
                None => bridges.fill(Some(value)),
                Some(name) => bridges[place(sites, name)?] = Some(value),
            }
        }
        let bridge = |at: usize| {
            let missing = || RequestError::NoBridge(sites[at].name.clone());
            bridges[at].cloned().ok_or_else(missing)
        };
        Ok(Link::Bridged([bridge(0)?, bridge(1)?]))
    }
}

fn place(sites: &[Site; 2], name: &Name) -> Result<usize, RequestError> {
    let [a, b] = sites;
    let unknown = || RequestError::NoSuchSite(name.clone(), a.name.clone(), b.name.clone());
    sites.iter().position(|site| site.name == *name).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse, requested};
    use super::*;

    #[test]
    fn networks_are_behind_the_sites_that_are_named() {
        let request = requested(
            "a=a.example.net:51820 b --network b=10.0.0.0/8 --network a=192.168.1.0/24,fd10::/48",
        );
        let request = request.unwrap();
        let [a, b] = request.plan.ends();
        assert_eq!((a.behind().len(), b.behind().len()), (2, 1));
        assert_eq!(a.addresses()[0].to_string(), "172.31.0.1/30");
        assert_eq!(request.logins, [None, None]);
    }

    #[test]
    fn the_far_end_is_the_second_site() {
        let logins = |line: &str| {
            let line = format!("a=192.0.2.1:1 b {line}");
            requested(&line).unwrap().logins.map(|it| it.map(|it| it.to_string()))
        };
        assert_eq!(logins("--ssh root@b"), [None, Some("root@b".into())]);
        let both = "--ssh a=root@a --ssh b=root@b";
        assert_eq!(logins(both), [Some("root@a".into()), Some("root@b".into())]);
    }

    #[test]
    fn one_bridge_is_for_both_sites() {
        let bridges = |line: &str| {
            let plan = requested(&format!("a=192.0.2.1:1 b {line}"))?.plan;
            Ok(plan.ends().map(|end| end.bridge().unwrap().to_string()))
        };
        assert_eq!(bridges("--bridge br0"), Ok(["br0".into(), "br0".into()]));
        assert_eq!(bridges("--bridge br0 --bridge b=lan"), Ok(["br0".into(), "lan".into()]));
        let missing = RequestError::NoBridge("b".parse().unwrap());
        assert_eq!(bridges("--bridge a=br0"), Err(missing));
        assert_eq!(bridges("--bridge br0 --protocol wireguard"), Err(RequestError::Frames));
    }

    #[test]
    fn what_is_no_command_line() {
        for line in [
            "a=192.0.2.1:1",
            "--network a=10.0.0.0/8",
            "a=192.0.2.1:1 b --network 10.0.0.0/8",
            "a=192.0.2.1:1 b --bridge br0 --network a=10.0.0.0/8",
            "a=192.0.2.1:1 b --join X",
            "a=192.0.2.1:1 b --invite --ssh root@b",
            "--join X --finish Y",
            "a=192.0.2.1:1 b --ssh -oProxyCommand=x",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert_eq!(parse("").unwrap().request(), Ok(None));
        let unknown = requested("a=192.0.2.1:1 b --network c=10.0.0.0/8");
        assert!(matches!(unknown, Err(RequestError::NoSuchSite(..))));
        let none = requested("a=192.0.2.1:1 b --network a=10.0.0.0/8,172.16.0.0/12,192.168.0.0/16");
        assert_eq!(none, Err(RequestError::NoInner));
    }
}
