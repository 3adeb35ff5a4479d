//! One table of the file, read key by key. Every problem is kept, so that one run reports all of them.

use std::borrow::Cow;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::Problem;

/// A value and its position.
pub(super) type Value<'t> = Spanned<DeValue<'t>>;

/// A checked value, or everything that is wrong with it.
pub(super) type Parsed<T> = Result<T, Vec<Problem>>;

/// Every table and its keys; the first row is the file itself.
pub(crate) const TABLES: &[(&str, &[&str])] = &[
    ("", &["interface", "peer", "route", "path", "socket", "dns", "hooks", "metrics", "service"]),
    (
        "[interface]",
        &[
            "name",
            "mode",
            "address",
            "peer_address",
            "private_key_file",
            "next_private_key_file",
            "listen",
            "mtu",
            "txqueuelen",
            "queues",
            "persist",
            "adopt",
            "owner",
            "group",
            "mac",
            "bridge",
            "stp_cost",
            "vrf",
            "multicast",
            "carrier",
            "netns",
        ],
    ),
    (
        "[peer]",
        &[
            "protocol",
            "cipher",
            "post_quantum",
            "also_accept",
            "public_key",
            "next_public_key",
            "preshared_key_file",
            "next_preshared_key_file",
            "endpoint",
            "allowed_ips",
            "allowed_macs",
            "guard",
            "keepalive",
            "dead_after",
            "roam",
            "return_after",
            "resolve_every",
        ],
    ),
    ("[[route]]", &["to", "metric", "table", "when_down"]),
    ("[socket]", &["fwmark", "bind_device", "source", "dscp", "rcvbuf", "sndbuf", "netns"]),
    ("[path]", &["mss_clamp", "mtu_max", "raise_every", "icmp", "gso", "offload"]),
    ("[dns]", &["servers", "domains"]),
    ("[hooks]", &["up", "established", "lost", "down", "timeout"]),
    ("[metrics]", &["listen"]),
    (
        "[service]",
        &[
            "state_dir",
            "control",
            "uapi",
            "allow_key_log",
            "user",
            "nice",
            "firewall",
            "sandbox",
            "log_level",
            "log_format",
        ],
    ),
];

/// One table, and the problems found in it so far.
pub(super) struct Section<'t> {
    title: &'static str,
    table: Option<&'t DeTable<'t>>,
    /// The position of the table's header, for problems with missing keys.
    span: Option<Range<usize>>,
    problems: Vec<Problem>,
}

impl<'t> Section<'t> {
    /// The table `value`, or an empty one where the file has none.
    pub(super) fn new(title: &'static str, value: Option<&'t Value<'t>>) -> Self {
        let table = value.and_then(|value| value.get_ref().as_table());
        let mut section = Self { title, table, span: value.map(Spanned::span), problems: vec![] };
        if let (Some(value), None) = (value, table) {
            section.problems.push(not_a_table(title, value));
        }
        section
    }

    /// The top level of the file.
    pub(super) fn root(table: &'t Spanned<DeTable<'t>>) -> Self {
        Self { title: "", table: Some(table.get_ref()), span: None, problems: vec![] }
    }

    /// The unchecked value of `key`.
    pub(super) fn raw(&self, key: &str) -> Option<&'t Value<'t>> {
        debug_assert!(keys_of(self.title).contains(&key), "{key} is missing from TABLES");
        self.table?.get(key)
    }

    /// The checked value of `key`, if it exists and is valid.
    pub(super) fn take<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&Value<'t>) -> Parsed<T>,
    ) -> Option<T> {
        match parse(self.raw(key)?) {
            Ok(good) => Some(good),
            Err(problems) => {
                let subject = self.subject(key);
                self.problems.extend(problems.into_iter().map(|problem| problem.of(&subject)));
                None
            }
        }
    }

    /// The checked value of `key`, or `default`.
    pub(super) fn or<T>(
        &mut self,
        key: &str,
        default: T,
        parse: impl FnOnce(&Value<'t>) -> Parsed<T>,
    ) -> T {
        self.take(key, parse).unwrap_or(default)
    }

    /// The checked value of `key`; without one, adds a problem.
    pub(super) fn required<T>(
        &mut self,
        key: &str,
        help: &str,
        parse: impl FnOnce(&Value<'t>) -> Parsed<T>,
    ) -> Option<T> {
        if self.raw(key).is_none() {
            let missing = Problem::error("missing").of(&self.subject(key)).help(help);
            self.problems.push(missing.at(self.span.clone()));
        }
        self.take(key, parse)
    }

    /// Returns all problems of the table, including unknown keys.
    pub(super) fn close(mut self) -> Vec<Problem> {
        let unknown = self.table.into_iter().flatten();
        let unknown =
            unknown.filter(|(key, _)| !keys_of(self.title).contains(&key.get_ref().as_ref()));
        self.problems.extend(unknown.map(|(key, _)| unknown_key(self.title, key)));
        self.problems
    }

    fn subject(&self, key: &str) -> String {
        subject(self.title, key)
    }
}

/// The name of a key in messages.
pub(super) fn subject(title: &str, key: &str) -> String {
    if title.is_empty() { key.to_owned() } else { format!("{title} {key}") }
}

fn keys_of(title: &str) -> &'static [&'static str] {
    TABLES.iter().find(|(known, _)| *known == title).map_or(&[], |(_, keys)| keys)
}

fn not_a_table(title: &str, value: &Value<'_>) -> Problem {
    let help = match value.get_ref() {
        DeValue::Array(_) => format!("one file is one tunnel, with one {title}"),
        _ => format!("write {title} on a line of its own, and its keys below"),
    };
    Problem::error(format!("{title} is a table")).at(value.span()).help(help)
}

/// The line is not shown if somebody may have put a secret key there.
fn unknown_key(title: &str, key: &Spanned<Cow<'_, str>>) -> Problem {
    let (name, place) = (key.get_ref(), if title.is_empty() { "the file" } else { title });
    let problem = Problem::error(format!("unknown key `{name}` in {place}"));
    let problem = problem.at(key.span()).help(advice(title, name));
    let secret = ["private", "preshared", "secret"].iter().any(|word| plain(name).contains(word));
    if secret { problem.secret() } else { problem }
}

fn advice(title: &str, name: &str) -> String {
    let elsewhere = TABLES.iter().find(|(_, keys)| keys.contains(&name));
    match (nearest(name, keys_of(title)), elsewhere) {
        (_, Some(("", _))) => format!("`{name}` is a table of its own"),
        (_, Some((table, _))) => format!("`{name}` belongs in {table}"),
        (Some(key), None) => format!("did you mean `{key}`?"),
        (None, None) => format!("known here: {}", keys_of(title).join(", ")),
    }
}

/// The most similar name, if any is similar to `name`.
pub(crate) fn nearest<'a>(name: &str, among: &[&'a str]) -> Option<&'a str> {
    let likeness = |known: &&str| strsim::jaro_winkler(&plain(name), &plain(known));
    let best = among.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) > 0.8).then_some(best)
}

/// Normalizes other spellings of a name: `AllowedIPs`, `allowed-ips`.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_wg_quick_finds_ours() {
        let peer = keys_of("[peer]");
        assert_eq!(nearest("AllowedIPs", peer), Some("allowed_ips"));
        assert_eq!(nearest("PersistentKeepalive", peer), None);
        assert_eq!(nearest("preshared_key", peer), Some("preshared_key_file"));
        assert_eq!(nearest("dns", peer), None);
    }
}
