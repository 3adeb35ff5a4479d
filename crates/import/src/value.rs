//! Values that several formats have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::{IpNet, Ipv4Net};

use crate::host::Host;

/// An address with or without a prefix length; without one it is a single host.
pub(crate) fn net(text: &str) -> Option<IpNet> {
    match text.split_once('/') {
        Some((address, length)) => {
            IpNet::new(self::address(address)?, decimal(length)?.try_into().ok()?).ok()
        }
        None => address(text).map(IpNet::from),
    }
}

/// An address in decimal or hexadecimal notation, without a zone.
pub(crate) fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

/// An IPv4 network with its mask: `192.0.2.0` and `255.255.255.0`.
pub(crate) fn masked(address: Ipv4Addr, mask: Ipv4Addr) -> Option<Ipv4Net> {
    Ipv4Net::with_netmask(address, mask).ok()
}

/// vpnd refuses the address of a network, or its broadcast address, as an address of a host: it is taken without its
/// network.
pub(crate) fn own_address(net: IpNet) -> IpNet {
    let roomy = net.prefix_len() + 1 < net.max_prefix_len();
    let broadcast = net.addr().is_ipv4() && net.addr() == net.broadcast();
    if roomy && (net.addr() == net.network() || broadcast) { net.addr().into() } else { net }
}

/// A number without a sign.
pub(crate) fn decimal(text: &str) -> Option<u32> {
    text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
}

/// A number within bounds.
pub(crate) fn within(text: &str, least: u32, most: u32) -> Option<u32> {
    decimal(text).filter(|number| (least..=most).contains(number))
}

/// The MTU of a device.
pub(crate) fn mtu(text: &str) -> Option<u16> {
    within(text, 576, 65535)?.try_into().ok()
}

/// A port from 1.
pub(crate) fn port(text: &str) -> Option<u16> {
    within(text, 1, 65535)?.try_into().ok()
}

/// A mark in decimal, or in hexadecimal after `0x`.
pub(crate) fn mark(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) if !digits.starts_with('+') => u32::from_str_radix(digits, 16).ok(),
        Some(_) => None,
        None => decimal(text),
    }
}

/// The words for true and false of the formats.
pub(crate) fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "yes" | "true" | "on" | "y" | "t" | "enabled" => Some(true),
        "0" | "no" | "false" | "off" | "n" | "f" | "disabled" => Some(false),
        _ => None,
    }
}

/// `host:port` as vpnd writes it.
pub(crate) fn endpoint(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Splits `host:port` at the last colon, and removes brackets.
pub(crate) fn split_endpoint(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    let inside = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    Some((inside.unwrap_or(host), port))
}

/// Whether vpnd accepts this as a host: a name or an address.
pub(crate) fn is_host(text: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(letter) && !label.starts_with('-')
    };
    let labels = text.strip_suffix('.').unwrap_or(text);
    let zone = text.split_once('%').map_or(text, |(address, _)| address);
    let numeric = labels.rsplit('.').next().is_some_and(decimal_digits);
    text.parse::<Ipv4Addr>().is_ok()
        || zone.parse::<Ipv6Addr>().is_ok()
        || (text.len() <= 253 && labels.split('.').all(label) && !numeric)
}

fn decimal_digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

/// The port of a service's name, from /etc/services.
pub(crate) fn service_port(name: &str, host: &dyn Host) -> Option<u16> {
    let services = host.read(Path::new("/etc/services")).ok()?;
    services.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let (known, port) = (words.next()?, words.next()?);
        let number = port.strip_suffix("/udp")?;
        (known == name || words.any(|alias| alias == name)).then(|| self::port(number)).flatten()
    })
}

/// A routing table by number, or by a name of `rt_tables`.
pub(crate) fn table(text: &str, host: &dyn Host) -> Option<u32> {
    const FILES: [&str; 2] = ["/etc/iproute2/rt_tables", "/usr/share/iproute2/rt_tables"];
    match text {
        "main" => return Some(254),
        "default" => return Some(253),
        "local" => return Some(255),
        _ => {}
    }
    let named = || {
        let files = FILES.iter().filter_map(|file| host.read(Path::new(file)).ok());
        files.into_iter().find_map(|tables| tables.lines().find_map(|line| named_table(line, text)))
    };
    mark(text).filter(|table| *table != 0).or_else(named)
}

fn named_table(line: &str, name: &str) -> Option<u32> {
    let mut words = line.split('#').next()?.split_whitespace();
    let number = mark(words.next()?)?;
    (words.next()? == name).then_some(number)
}

/// Whether this is a name for a device: the kernel accepts more, but these are wg-quick's characters, none of which means
/// anything to a shell. The name stands in commands in place of `%i`.
pub(crate) fn is_device(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_=+.-".contains(&b);
    (1..=15).contains(&text.len()) && text.bytes().all(allowed) && text != "." && text != ".."
}

/// Whether vpnd accepts this as a domain of `[dns]`.
pub(crate) fn is_domain(text: &str) -> bool {
    let name = text.strip_prefix('~').unwrap_or(text);
    let labels = name.strip_suffix('.').unwrap_or(name);
    let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(letter);
    text == "~." || (labels.len() < 254 && labels.split('.').all(label))
}

/// Whether this can be an address of a host, as a name server's.
pub(crate) fn is_host_address(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast)
}

/// A name for the tunnel of these characters, if any is left.
pub(crate) fn tunnel_name(text: &str) -> Option<String> {
    let fit = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '-' };
    let name: String = text.trim().chars().map(fit).collect();
    let name = name.trim_matches('-');
    (!name.is_empty()).then(|| name.to_owned())
}
