//! What the file says of the device's life, and the words it says it in.

use std::fmt;
use std::str::FromStr;

use nix::unistd::{Group, User};
use serde::{Serialize, Serializer};

use super::problem::Problem;
use super::section::{Parsed, Value};
use super::value::{TextResult, expected, integer};

/// What the device carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// IP packets.
    Tun,
    /// Ethernet frames.
    Tap,
}

/// Whether a device that is there already is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Adopt {
    /// It is, and one that is not there is made.
    Auto,
    /// It has to be there.
    Require,
    /// It must not be there.
    Never,
}

/// Through how many queues packets leave the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Queues {
    /// One for each processor, but not more than the one way in keeps up with.
    Auto,
    /// This many.
    #[serde(untagged)]
    Fixed(u16),
}

/// What the device's carrier tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Carrier {
    /// Whether the peer is there.
    Peer,
    /// Nothing.
    Always,
}

/// A user or a group, by name or by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// As the file says it.
    pub(crate) name: String,
    /// The number.
    pub(crate) id: u32,
}

/// The address of one Ethernet station.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

pub(super) const ADOPT: &[(&str, Adopt)] =
    &[("auto", Adopt::Auto), ("require", Adopt::Require), ("never", Adopt::Never)];

pub(super) const CARRIER: &[(&str, Carrier)] =
    &[("peer", Carrier::Peer), ("always", Carrier::Always)];

/// More threads than this have more under way at once than the peer's replay window is wide.
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

/// The last number is no user's: it stands for nobody at all.
fn holder(text: &str, kind: &str, by_name: impl Fn(&str) -> Option<u32>) -> TextResult<Holder> {
    let by_number = || text.parse().ok().filter(|id| *id != u32::MAX);
    let unknown = || Problem::error(format!("no {kind} `{text}` on this system"));
    let id = by_name(text).or_else(by_number).ok_or_else(unknown)?;
    Ok(Holder { name: text.to_owned(), id })
}

/// An address that one station can have.
pub(super) fn mac(text: &str) -> TextResult<Mac> {
    let problem = || Problem::error(format!("`{text}` is no station's address"));
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

/// Not six bytes in hexadecimal.
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
