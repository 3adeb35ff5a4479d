//! Where a peer may be reached: a host, by name or address, and a port.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Serialize, Serializer};
use thiserror::Error;

/// A host and a port. A name is resolved later, again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// A DNS name, an IPv4 address or an IPv6 address without brackets.
    pub(crate) host: String,
    /// The UDP port, never 0.
    pub(crate) port: u16,
}

/// Why a text is not an [`Endpoint`].
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum EndpointError {
    /// No `:port` at the end.
    #[error("no port: write \"host:port\", as in \"b.example.net:51820\"")]
    NoPort,
    /// The port is not a number from 1 to 65535.
    #[error("`{0}` is not a port: give a number from 1 to 65535")]
    Port(String),
    /// An IPv6 address without brackets.
    #[error("an IPv6 address needs brackets, as in \"[2001:db8::2]:51820\"")]
    Brackets,
    /// Neither a name nor an address.
    #[error("`{0}` is neither a host name nor an address")]
    Host(String),
}

impl Endpoint {
    /// The host's address, if it is not a name.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        if text.parse::<Ipv6Addr>().is_ok() {
            return Err(EndpointError::Brackets);
        }
        let (host, port) = text.rsplit_once(':').ok_or(EndpointError::NoPort)?;
        Ok(Self { host: parse_host(host)?, port: parse_port(port)? })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

fn parse_port(text: &str) -> Result<u16, EndpointError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port) if port != 0 && digits => Ok(port),
        _ => Err(EndpointError::Port(text.to_owned())),
    }
}

fn parse_host(text: &str) -> Result<String, EndpointError> {
    if text.contains(':') && !text.starts_with('[') {
        return Err(EndpointError::Brackets);
    }
    let (host, good) = match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => {
            match address.parse::<Ipv6Addr>().ok().and_then(|v6| v6.to_ipv4_mapped()) {
                // The same address in IPv6 notation; it is stored as IPv4 everywhere.
                Some(v4) => return Ok(v4.to_string()),
                None => (address, is_v6(address)),
            }
        }
        None => (text, text.parse::<Ipv4Addr>().is_ok() || is_name(text)),
    };
    if good { Ok(host.to_owned()) } else { Err(EndpointError::Host(text.to_owned())) }
}

/// An IPv6 address, or a link-local one with its zone (`fe80::1%eth0`).
fn is_v6(text: &str) -> bool {
    let (address, zone) = text.split_once('%').unwrap_or((text, "1"));
    let zone_is_name = !zone.is_empty() && zone.bytes().all(|b| b.is_ascii_graphic());
    address.parse::<Ipv6Addr>().is_ok() && zone_is_name
}

/// A DNS name; underscores are allowed, as resolvers allow them. A name whose last label is a number would be a
/// mistyped address (RFC 1123 §2.1).
fn is_name(text: &str) -> bool {
    let labels = || text.strip_suffix('.').unwrap_or(text).split('.');
    let numeric = labels().next_back().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
    text.len() <= 253 && labels().all(is_label) && !numeric
}

fn is_label(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=63).contains(&text.len()) && text.bytes().all(good) && !text.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses() {
        for text in [
            "b.example.net:51820",
            "192.0.2.1:1",
            "[2001:db8::2]:65535",
            "[fe80::1%eth0]:51820",
            "localhost:51820",
            "b.example.net.:51820",
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), text);
        }
    }

    #[test]
    fn brackets_are_not_part_of_the_host() {
        let endpoint: Endpoint = "[2001:db8::2]:51820".parse().unwrap();
        assert_eq!(endpoint, Endpoint { host: "2001:db8::2".into(), port: 51820 });
    }

    #[test]
    fn an_ipv4_address_in_ipv6_spelling_is_that_address() {
        for text in ["[::ffff:192.0.2.2]:51820", "[::FFFF:c000:202]:51820"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), "192.0.2.2:51820");
        }
    }

    #[test]
    fn what_is_no_endpoint() {
        let error = |text: &str| text.parse::<Endpoint>().unwrap_err();
        assert_eq!(error("b.example.net"), EndpointError::NoPort);
        assert_eq!(error("b.example.net:0"), EndpointError::Port("0".into()));
        assert_eq!(error("b.example.net:+1"), EndpointError::Port("+1".into()));
        assert_eq!(error("b.example.net:65536"), EndpointError::Port("65536".into()));
        assert_eq!(error("2001:db8::2"), EndpointError::Brackets);
        assert_eq!(error("2001:db8::2:51820"), EndpointError::Brackets);
        assert_eq!(error("2001:db8:0:0:0:0:0:2:51820"), EndpointError::Brackets);
        assert_eq!(error("192.0.2.300:51820"), EndpointError::Host("192.0.2.300".into()));
        assert_eq!(error("a b:51820"), EndpointError::Host("a b".into()));
        assert_eq!(error(":51820"), EndpointError::Host(String::new()));
        assert_eq!(error("[192.0.2.1]:51820"), EndpointError::Host("[192.0.2.1]".into()));
    }
}
