//! Programs that act for the tunnel: the commands of `[hooks]`, and the name servers of `[dns]`.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Serialize, Serializer};
use toml::Spanned;
use toml::de::DeValue;

use super::problem::Problem;
use super::section::{Parsed, Section, Value};
use super::value::{self, TextResult, expected, list, text};

/// `[dns]`: systemd-resolved's settings for the tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Dns {
    /// The name servers, which are asked through the tunnel.
    pub(crate) servers: Vec<IpAddr>,
    /// The domains that they resolve; a `~` in front means that the domain is not searched.
    pub(crate) domains: Vec<String>,
}

/// `[hooks]`: commands, each a program and its arguments, no shell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Hooks {
    /// Run once the device is configured.
    pub(crate) up: Vec<Argv>,
    /// Run when the peer becomes alive.
    pub(crate) established: Vec<Argv>,
    /// Run when the peer is dead.
    pub(crate) lost: Vec<Argv>,
    /// Run before the device goes.
    pub(crate) down: Vec<Argv>,
    /// The time limit of one command.
    #[serde(serialize_with = "as_span")]
    pub(crate) timeout: Duration,
}

/// A program and its arguments; never empty.
pub(crate) type Argv = Vec<String>;

pub(super) fn dns(s: &mut Section<'_>) -> Dns {
    Dns {
        servers: s.or("servers", vec![], list(value::host_address)),
        domains: s.or("domains", vec![], list(domain)),
    }
}

pub(super) fn hooks(s: &mut Section<'_>) -> Hooks {
    Hooks {
        up: s.or("up", vec![], commands),
        established: s.or("established", vec![], commands),
        lost: s.or("lost", vec![], commands),
        down: s.or("down", vec![], commands),
        timeout: s.or("timeout", Duration::from_secs(10), value::duration("1s", "5m")),
    }
}

/// In the format of the file: `10s`.
pub(super) fn as_span<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&humantime::format_duration(*value))
}

/// A DNS name (RFC 1035 §2.3.1, and underscores, which are in use); `~.` means all names.
fn domain(text: &str) -> TextResult<String> {
    let name = text.strip_prefix('~').unwrap_or(text);
    let labels = name.strip_suffix('.').unwrap_or(name);
    let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(letter);
    if text == "~." || (labels.len() < 254 && labels.split('.').all(label)) {
        return Ok(text.to_owned());
    }
    let help = "such as \"corp.example\" to search in, \"~corp.example\" to ask of, \"~.\" for all";
    Err(Problem::error(format!("`{text}` is no domain")).help(help))
}

/// One command, or a list of them.
fn commands(value: &Value<'_>) -> Parsed<Vec<Argv>> {
    let DeValue::Array(items) = value.get_ref() else { return Err(vec![not_argv(value)]) };
    if items.iter().any(|item| item.get_ref().is_array()) {
        return all(items.iter().map(argv));
    }
    if items.is_empty() { Ok(vec![]) } else { Ok(vec![argv(value)?]) }
}

fn argv(value: &Value<'_>) -> Parsed<Argv> {
    let DeValue::Array(words) = value.get_ref() else { return Err(vec![not_argv(value)]) };
    if words.first().is_none_or(|word| word.get_ref().as_str() == Some("")) {
        return Err(vec![Problem::error("names no program").at(value.span())]);
    }
    all(words.iter().map(text(word)))
}

fn word(text: &str) -> TextResult<String> {
    if text.contains('\0') {
        return Err(Problem::error("a zero byte ends an argument"));
    }
    Ok(text.to_owned())
}

fn not_argv(value: &Spanned<DeValue<'_>>) -> Problem {
    let what = "a program and its arguments: [\"/usr/sbin/nft\", \"-f\", \"/etc/vpnd/up.nft\"]";
    expected(what, value)
}

/// All items, or all problems of any of them.
fn all<T>(items: impl Iterator<Item = Parsed<T>>) -> Parsed<Vec<T>> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for item in items {
        match item {
            Ok(item) => good.push(item),
            Err(problems) => bad.extend(problems),
        }
    }
    if bad.is_empty() { Ok(good) } else { Err(bad) }
}
