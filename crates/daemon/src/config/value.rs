//! Parsers of values. Their errors name the expected value and the value in the file.

use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use ipnet::IpNet;
use toml::de::DeValue;
use vpnd_tunnel::udp::Gso;

use super::problem::Problem;
use super::section::{Parsed, Value, nearest};

/// A parser of a text. Its problem does not have a position yet.
pub(super) type TextResult<T> = Result<T, Problem>;

/// A text that `parse` accepts.
pub(super) fn text<T>(parse: impl Fn(&str) -> TextResult<T>) -> impl Fn(&Value<'_>) -> Parsed<T> {
    move |value| match value.get_ref() {
        DeValue::String(text) => parse(text).map_err(|problem| vec![problem.at(value.span())]),
        _ => Err(vec![expected("a text in quotes", value)]),
    }
}

/// A list of texts that `parse` accepts, without duplicates; a single one needs no brackets.
pub(super) fn list<T: PartialEq>(
    parse: impl Fn(&str) -> TextResult<T>,
) -> impl Fn(&Value<'_>) -> Parsed<Vec<T>> {
    let parse = text(parse);
    move |value| match value.get_ref() {
        DeValue::Array(items) => distinct(items.iter().map(|item| (item.span(), parse(item)))),
        DeValue::String(_) => parse(value).map(|item| vec![item]),
        _ => Err(vec![expected("a text in quotes, or a list of them", value)]),
    }
}

/// An integer in `range`.
pub(super) fn integer<T: TryFrom<i64>>(
    range: RangeInclusive<i64>,
) -> impl Fn(&Value<'_>) -> Parsed<T> {
    move |value| {
        let number = as_integer(value).filter(|number| range.contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| vec![expected(&span_of(&range), value)])
    }
}

/// One of several words.
pub(super) fn choice<T: Copy>(
    words: &'static [(&'static str, T)],
) -> impl Fn(&str) -> TextResult<T> {
    move |text| {
        let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let found = words.iter().find(|(word, _)| *word == text);
        found.map(|(_, value)| *value).ok_or_else(|| unknown_word(text, &known))
    }
}

/// `true` or `false`.
pub(super) fn truth(value: &Value<'_>) -> Parsed<bool> {
    value.get_ref().as_bool().ok_or_else(|| vec![expected("true or false", value)])
}

/// `false`, or "auto", which means `true` if the kernel supports it.
pub(super) fn switch(value: &Value<'_>) -> Parsed<bool> {
    match value.get_ref() {
        DeValue::Boolean(false) => Ok(false),
        DeValue::String(text) if text == "auto" => Ok(true),
        _ => Err(vec![expected("\"auto\" or false", value)]),
    }
}

/// "auto" decides by the kernel and by what arrives.
pub(super) fn gso(value: &Value<'_>) -> Parsed<Gso> {
    match value.get_ref() {
        DeValue::Boolean(false) => Ok(Gso::Off),
        DeValue::Boolean(true) => Ok(Gso::On),
        DeValue::String(text) if text == "auto" => Ok(Gso::Auto),
        _ => Err(vec![expected("\"auto\", true or false", value)]),
    }
}

/// An address with its prefix length; host bits are kept.
pub(super) fn interface_address(text: &str) -> TextResult<IpNet> {
    let net = prefix(text, "10.99.0.1/30")?;
    let roomy = net.prefix_len() + 1 < net.max_prefix_len();
    let why = match net.addr() {
        address if !is_host(address) => "not an address a host can have",
        address if roomy && address == net.network() => "the network, not a host in it",
        IpAddr::V4(_) if roomy && net.addr() == net.broadcast() => "the broadcast address",
        _ => return Ok(net),
    };
    Err(Problem::error(format!("`{text}` is {why}")))
}

/// A network. Host bits are refused, because either they or the prefix length is a mistake.
pub(super) fn network(text: &str) -> TextResult<IpNet> {
    let net = prefix(text, "192.168.20.0/24")?;
    if net == net.trunc() {
        return Ok(net);
    }
    let problem = Problem::error(format!("`{text}` has bits set beyond its prefix length"));
    Err(problem.help(format!("the network is \"{}\"", net.trunc())))
}

/// An address without a prefix length.
pub(super) fn host_address(text: &str) -> TextResult<IpAddr> {
    let address = address(text).filter(|address| is_host(*address));
    address.ok_or_else(|| {
        Problem::error(format!("expected an address such as \"10.99.0.2\", found `{text}`"))
    })
}

/// An address from which the tunnel's datagrams can be sent.
pub(super) fn source(text: &str) -> TextResult<IpAddr> {
    let address = address(text).filter(|address| is_host(*address)).ok_or_else(|| {
        Problem::error(format!("expected an address such as \"192.0.2.1\", found `{text}`"))
    })?;
    match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            let problem = Problem::error(format!("`{text}` is valid on one link only"));
            Err(problem.help("bind_device chooses a link"))
        }
        _ => Ok(address),
    }
}

/// A packet mark: an integer, or a text in hexadecimal, as `ip rule` shows it.
pub(super) fn mark(value: &Value<'_>) -> Parsed<u32> {
    const EXPECTED: &str = "a number from 0 to 4294967295, such as 51820 or \"0xca6c\"";
    let mark = match value.get_ref() {
        DeValue::String(text) => text.strip_prefix("0x").and_then(hexadecimal),
        _ => as_integer(value).and_then(|number| u32::try_from(number).ok()),
    };
    mark.ok_or_else(|| vec![expected(EXPECTED, value)])
}

fn hexadecimal(digits: &str) -> Option<u32> {
    u32::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))
}

/// A differentiated services code point, by number or by name.
pub(super) fn dscp(value: &Value<'_>) -> Parsed<u8> {
    const EXPECTED: &str = "0 to 63, or a name such as \"cs1\", \"ef\" or \"af41\"";
    let point = match value.get_ref() {
        DeValue::String(name) => named_dscp(name.as_bytes()),
        _ => as_integer(value).and_then(|number| u8::try_from(number).ok()),
    };
    point.filter(|point| *point < 64).ok_or_else(|| vec![expected(EXPECTED, value)])
}

/// The names of RFC 2474 §4.2.2, RFC 2597 §6, RFC 3246 §2.7 and RFC 8622 §5.
fn named_dscp(name: &[u8]) -> Option<u8> {
    match name {
        [b'c', b's', class @ b'0'..=b'7'] => Some((class - b'0') << 3),
        [b'a', b'f', class @ b'1'..=b'4', drop @ b'1'..=b'3'] => {
            Some((class - b'0') << 3 | (drop - b'0') << 1)
        }
        b"ef" => Some(46),
        b"le" => Some(1),
        _ => None,
    }
}

/// "off", or an interval in WireGuard's whole seconds.
pub(super) fn keepalive(value: &Value<'_>) -> Parsed<Option<Duration>> {
    const EXPECTED: &str = "\"off\" or whole seconds from \"1s\" to \"65535s\"";
    let text = value.get_ref().as_str();
    if text == Some("off") {
        return Ok(None);
    }
    let duration = text.and_then(|text| humantime::parse_duration(text).ok());
    let fits = |d: &Duration| d.subsec_nanos() == 0 && (1..=65535).contains(&d.as_secs());
    duration.filter(fits).map(Some).ok_or_else(|| vec![expected(EXPECTED, value)])
}

/// A duration within bounds.
pub(super) fn duration(
    least: &'static str,
    most: &'static str,
) -> impl Fn(&Value<'_>) -> Parsed<Duration> {
    let parse = |text: &str| humantime::parse_duration(text).ok();
    let range = parse(least).unwrap_or(Duration::ZERO)..=parse(most).unwrap_or(Duration::MAX);
    move |value| {
        let duration = value.get_ref().as_str().and_then(parse).filter(|d| range.contains(d));
        duration.ok_or_else(|| vec![expected(&format!("\"{least}\" to \"{most}\""), value)])
    }
}

/// Bytes: an integer, or a text such as "4MiB".
pub(super) fn size(range: RangeInclusive<i64>) -> impl Fn(&Value<'_>) -> Parsed<usize> {
    move |value| {
        let bytes = match value.get_ref() {
            DeValue::String(text) => parse_size(text),
            _ => as_integer(value),
        };
        let bytes = bytes.filter(|bytes| range.contains(bytes));
        let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
        bytes.ok_or_else(|| vec![expected("bytes from \"64KiB\" to \"1GiB\"", value)])
    }
}

/// An error that says what was expected and what was found.
pub(super) fn expected(what: &str, value: &Value<'_>) -> Problem {
    let found = match value.get_ref() {
        DeValue::String(text) => format!("\"{text}\""),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Boolean(truth) => truth.to_string(),
        other => format!("{} {}", article(other.type_str()), other.type_str()),
    };
    Problem::error(format!("expected {what}, found {found}")).at(value.span())
}

fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// All items, or all problems of any of them.
fn distinct<T: PartialEq>(
    items: impl Iterator<Item = (Range<usize>, Parsed<T>)>,
) -> Parsed<Vec<T>> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (span, item) in items {
        match item {
            Ok(item) if good.contains(&item) => bad.push(Problem::error("listed twice").at(span)),
            Ok(item) => good.push(item),
            Err(problems) => bad.extend(problems),
        }
    }
    if bad.is_empty() { Ok(good) } else { Err(bad) }
}

fn as_integer(value: &Value<'_>) -> Option<i64> {
    let number = value.get_ref().as_integer()?;
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

fn span_of(range: &RangeInclusive<i64>) -> String {
    format!("an integer from {} to {}", range.start(), range.end())
}

fn unknown_word(text: &str, known: &[&str]) -> Problem {
    let quoted: Vec<_> = known.iter().map(|word| format!("\"{word}\"")).collect();
    let one_of = if known.len() > 1 { "one of " } else { "" };
    let quoted = quoted.join(", ");
    let problem = Problem::error(format!("expected {one_of}{quoted}, found \"{text}\""));
    match nearest(text, known) {
        Some(word) => problem.help(format!("did you mean \"{word}\"?")),
        None => problem,
    }
}

/// An address. An IPv4 address in IPv6 notation (`::ffff:192.0.2.1`) becomes an IPv4 address.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok().map(|address: IpAddr| address.to_canonical())
}

/// The same for a network: `::ffff:192.0.2.0/120` becomes `192.0.2.0/24`.
fn canonical(net: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    let length = net.prefix_len().checked_sub(MAPPED_BITS);
    match (net.addr().to_canonical(), length) {
        (address @ IpAddr::V4(_), Some(length)) if net.addr().is_ipv6() => {
            IpNet::new(address, length).unwrap_or(net)
        }
        _ => net,
    }
}

/// An address and its prefix length.
fn prefix(text: &str, example: &str) -> TextResult<IpNet> {
    let problem = || {
        Problem::error(format!(
            "expected an address and a prefix length such as \"{example}\", found `{text}`"
        ))
    };
    text.parse().map(canonical).map_err(|_| match text.parse::<IpAddr>() {
        Ok(address) => {
            problem().help(format!("for this address alone: \"{}\"", IpNet::from(address)))
        }
        Err(_) => problem(),
    })
}

/// Whether a host may have this address.
fn is_host(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast)
}

fn parse_size(text: &str) -> Option<i64> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let unit = units.iter().find_map(|(name, bytes)| Some((text.strip_suffix(name)?, *bytes)));
    let (number, unit) = unit.unwrap_or((text, 1));
    number.trim_end().parse::<i64>().ok()?.checked_mul(unit)
}
