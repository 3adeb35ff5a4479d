//! The datagram that a ruleset is asked about, and whether a condition of a rule holds for it. What is not known
//! for certain stays unknown.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    Yes,
    No,
    Unknown,
}

impl Truth {
    const fn of(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }

    /// Whether both conditions hold.
    pub(super) const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::Unknown,
        }
    }

    const fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Unknown => Self::Unknown,
        }
    }

    /// Whether one of the conditions holds.
    fn any(all: impl Iterator<Item = Self>) -> Self {
        all.fold(Self::No, |found, one| found.not().and(one.not()).not())
    }
}

/// The direction of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::doctor) enum Way {
    /// To this host.
    In,
    /// From this host.
    Out,
}

/// The state that the connection tracker knows a datagram in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::doctor) enum Flow {
    /// It is the first one of its flow.
    New,
    /// It answers one of ours.
    Answer,
}

/// A UDP datagram of the tunnel; what is absent is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::doctor) struct Packet {
    pub(in crate::doctor) way: Way,
    pub(in crate::doctor) flow: Flow,
    pub(in crate::doctor) is_v4: bool,
    pub(in crate::doctor) from: (Option<IpAddr>, Option<u16>),
    pub(in crate::doctor) to: (Option<IpAddr>, Option<u16>),
    /// The device by which it comes or goes.
    pub(in crate::doctor) device: Option<String>,
}

/// The elements of named sets and maps of a table.
pub(super) type Sets = BTreeMap<String, Value>;

/// A property of the datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    Number(u64),
    Address(IpAddr),
    Word(String),
    /// It has no such property, so every comparison fails.
    Absent,
    Unknown,
}

impl Fact {
    fn number(number: Option<u16>) -> Self {
        number.map_or(Self::Unknown, |number| Self::Number(number.into()))
    }

    fn address(address: Option<IpAddr>) -> Self {
        address.map_or(Self::Unknown, Self::Address)
    }

    fn word(word: &str) -> Self {
        Self::Word(word.to_owned())
    }

    fn unless(absent: bool, fact: Self) -> Self {
        if absent { Self::Absent } else { fact }
    }
}

/// UDP's number in an IP header.
const UDP: u64 = 17;

impl Packet {
    /// Whether a `match` holds.
    pub(super) fn matches(&self, condition: &Value, sets: &Sets) -> Truth {
        let [op, left, right] = ["op", "left", "right"].map(|key| &condition[key]);
        let among = match self.fact(left) {
            Fact::Absent => return Truth::No,
            Fact::Unknown => return Truth::Unknown,
            fact => is_among(&fact, right, sets),
        };
        match op.as_str() {
            Some("==" | "in") => among,
            Some("!=") => among.not(),
            _ => Truth::Unknown,
        }
    }

    /// The property that the left side of a comparison names.
    pub(super) fn fact(&self, left: &Value) -> Fact {
        let Some((kind, of)) = only_entry(left) else { return Fact::Unknown };
        let key = of["key"].as_str().unwrap_or_default();
        match kind {
            "meta" => self.meta(key),
            "ct" if key == "state" => self.state(),
            "payload" => self.field(
                of["protocol"].as_str().unwrap_or_default(),
                of["field"].as_str().unwrap_or_default(),
            ),
            _ => Fact::Unknown,
        }
    }

    fn meta(&self, key: &str) -> Fact {
        let device = || self.device.as_deref().map_or(Fact::Unknown, Fact::word);
        match key {
            "l4proto" => Fact::word("udp"),
            "nfproto" => Fact::word(if self.is_v4 { "ipv4" } else { "ipv6" }),
            "protocol" => Fact::word(if self.is_v4 { "ip" } else { "ip6" }),
            "iifname" | "iif" => Fact::unless(self.way == Way::Out, device()),
            "oifname" | "oif" => Fact::unless(self.way == Way::In, device()),
            "pkttype" if self.way == Way::In => Fact::word("host"),
            _ => Fact::Unknown,
        }
    }

    fn state(&self) -> Fact {
        Fact::word(match self.flow {
            Flow::New => "new",
            Flow::Answer => "established",
        })
    }

    fn field(&self, protocol: &str, field: &str) -> Fact {
        const OTHERS: [&str; 10] =
            ["tcp", "sctp", "dccp", "udplite", "icmp", "icmpv6", "igmp", "esp", "ah", "comp"];
        match (protocol, field) {
            ("udp" | "th", "sport") => Fact::number(self.from.1),
            ("udp" | "th", "dport") => Fact::number(self.to.1),
            ("ip", _) if !self.is_v4 => Fact::Absent,
            ("ip6", _) if self.is_v4 => Fact::Absent,
            ("ip" | "ip6", "saddr") => Fact::address(self.from.0),
            ("ip" | "ip6", "daddr") => Fact::address(self.to.0),
            ("ip", "protocol") | ("ip6", "nexthdr") => Fact::word("udp"),
            _ if OTHERS.contains(&protocol) => Fact::Absent,
            _ => Fact::Unknown,
        }
    }
}

/// The only entry of an object: `nft` writes each expression so.
pub(super) fn only_entry(value: &Value) -> Option<(&str, &Value)> {
    let object = value.as_object().filter(|object| object.len() == 1)?;
    object.iter().next().map(|(key, value)| (key.as_str(), value))
}

/// Whether the right side of a comparison contains this property.
pub(super) fn is_among(fact: &Fact, right: &Value, sets: &Sets) -> Truth {
    let any = |all: &[Value]| Truth::any(all.iter().map(|one| is_among(fact, one, sets)));
    match right {
        Value::Array(all) => any(all),
        Value::Object(_) => match only_entry(right) {
            Some(("set", Value::Array(all))) => any(all),
            Some(("set", one)) => is_among(fact, one, sets),
            Some(("elem", element)) => is_among(fact, &element["val"], sets),
            Some(("range", ends)) => in_range(fact, ends),
            Some(("prefix", prefix)) => in_prefix(fact, prefix),
            _ => Truth::Unknown,
        },
        Value::String(name) if name.starts_with('@') => match sets.get(&name[1..]) {
            Some(Value::Array(all)) => any(all),
            _ => Truth::Unknown,
        },
        scalar => equals(fact, scalar),
    }
}

fn equals(fact: &Fact, scalar: &Value) -> Truth {
    match (fact, scalar) {
        (Fact::Number(ours), Value::Number(theirs)) => Truth::of(theirs.as_u64() == Some(*ours)),
        (Fact::Address(ours), Value::String(theirs)) => match theirs.parse::<IpAddr>() {
            Ok(theirs) => Truth::of(theirs == *ours),
            Err(_) => Truth::Unknown,
        },
        (Fact::Word(ours), Value::String(theirs)) => Truth::of(fits(ours, theirs)),
        (Fact::Word(ours), Value::Number(theirs)) if ours == "udp" => {
            Truth::of(theirs.as_u64() == Some(UDP))
        }
        _ => Truth::Unknown,
    }
}

/// Whether a word is the pattern, which may end with a `*`.
fn fits(word: &str, pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(begin) => word.starts_with(begin),
        None => word == pattern,
    }
}

fn in_range(fact: &Fact, ends: &Value) -> Truth {
    match (fact, &ends[0], &ends[1]) {
        (Fact::Number(ours), Value::Number(first), Value::Number(last)) => {
            let [Some(first), Some(last)] = [first, last].map(serde_json::Number::as_u64) else {
                return Truth::Unknown;
            };
            Truth::of((first..=last).contains(ours))
        }
        (Fact::Address(ours), Value::String(first), Value::String(last)) => {
            let [Ok(first), Ok(last)] = [first, last].map(|end| end.parse::<IpAddr>()) else {
                return Truth::Unknown;
            };
            Truth::of((first..=last).contains(ours))
        }
        _ => Truth::Unknown,
    }
}

fn in_prefix(fact: &Fact, prefix: &Value) -> Truth {
    let net = match (&prefix["addr"], &prefix["len"]) {
        (Value::String(address), Value::Number(len)) => {
            format!("{address}/{len}").parse::<ipnet::IpNet>()
        }
        _ => return Truth::Unknown,
    };
    match (fact, net) {
        (Fact::Address(ours), Ok(net)) => Truth::of(net.contains(ours)),
        _ => Truth::Unknown,
    }
}
