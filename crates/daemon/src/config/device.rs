//! The configuration of the device: types, and the words for them in the file.

use std::fmt;
use std::str::FromStr;

use nix::unistd::{Group, User};
use serde::{Serialize, Serializer};

use super::problem::Problem;
use super::section::{Parsed, Value};
use super::value::{TextResult, expected, integer};
use super::word::Word;

/// The number of queues that are read from the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Queues {
    /// One for each processor, but not more than the single receiving worker can keep up with.
    Auto,
    /// This many.
    #[serde(untagged)]
    Fixed(u16),
}

/// What the device's carrier indicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// Whether the peer is alive.
    Peer,
    /// Nothing: it is always on.
    Always,
}

impl Word for Carrier {
    const WORDS: &'static [(&'static str, Self)] =
        &[("peer", Self::Peer), ("always", Self::Always)];
}

/// A user or a group, by name or by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// As written in the file.
    pub(crate) name: String,
    /// The number.
    pub(crate) id: u32,
}

/// The hardware address of one Ethernet station.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

/// With more threads, more packets could be in flight than the peer's replay window is wide.
const MAX_QUEUES: i64 = 32;

pub(super) fn queues(value: &Value<'_>) -> Parsed<Queues> {
    match value.get_ref().as_str() {
        Some("auto") => Ok(Queues::Auto),
        Some(_) => Err(vec![expected("\"auto\" or a number of queues", value)]),
        None => integer(1..=MAX_QUEUES)(value).map(Queues::Fixed),
    }
}

pub(super) fn user(text: &str) -> TextResult<Holder> {
    holder(text, "user", |name| Some(User::from_name(name).ok()??.uid.as_raw()))
}

pub(super) fn group(text: &str) -> TextResult<Holder> {
    holder(text, "group", |name| Some(Group::from_name(name).ok()??.gid.as_raw()))
}

/// The highest number is no user: it means nobody.
fn holder(text: &str, kind: &str, by_name: impl Fn(&str) -> Option<u32>) -> TextResult<Holder> {
    let by_number = || text.parse().ok().filter(|id| *id != u32::MAX);
    let unknown = || Problem::error(format!("no {kind} `{text}` on this system"));
    let id = by_name(text).or_else(by_number).ok_or_else(unknown)?;
    Ok(Holder { name: text.to_owned(), id })
}

/// A unicast hardware address.
pub(super) fn mac(text: &str) -> TextResult<Mac> {
    let problem = || Problem::error(format!("`{text}` is not a hardware address"));
    let mac: Mac = text.parse().map_err(|NotMac| {
        problem().help("six bytes in hexadecimal, such as \"02:00:5e:00:53:01\"")
    })?;
    match mac {
        Mac([first, ..]) if first & 1 != 0 => {
            Err(problem().help("an odd first byte stands for a group of stations"))
        }
        Mac([0, 0, 0, 0, 0, 0]) => Err(problem()),
        _ => Ok(mac),
    }
}

/// The text is not six bytes in hexadecimal.
#[derive(Debug)]
pub(crate) struct NotMac;

impl FromStr for Mac {
    type Err = NotMac;

    fn from_str(text: &str) -> Result<Self, NotMac> {
        let mut bytes = [0; 6];
        let mut words = text.split(':');
        for byte in &mut bytes {
            let word = words.next().filter(|word| word.len() == 2).ok_or(NotMac)?;
            let digits = word.bytes().all(|digit| digit.is_ascii_hexdigit());
            *byte = u8::from_str_radix(word, 16).ok().filter(|_| digits).ok_or(NotMac)?;
        }
        if words.next().is_none() { Ok(Self(bytes)) } else { Err(NotMac) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl Serialize for Holder {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.name)
    }
}
