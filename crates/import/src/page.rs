//! The tables of `docs/import.md`.

use std::fmt::Write as _;

use crate::table::{Kind, Row};
use crate::{Format, network_manager, networkd, openvpn, openwrt, wg_quick};

/// Keys of a format that become the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The section; empty if the format has none.
    pub section: &'static str,
    /// The keys; `*` stands for every other key of the section.
    pub keys: &'static [&'static str],
    /// The outcomes that its lines can have.
    pub kinds: &'static [Kind],
    /// What it becomes, or why it is dropped.
    pub text: &'static str,
}

/// Every key of a format.
pub fn keys(format: Format) -> Vec<Keys> {
    match format {
        Format::WgQuick => of(wg_quick::ROWS),
        Format::Networkd => of(networkd::ROWS),
        Format::NetworkManager => of(network_manager::ROWS),
        Format::OpenWrt => of(openwrt::ROWS),
        Format::OpenVpn => of(openvpn::ROWS),
    }
}

fn of<D>(rows: &[Row<D>]) -> Vec<Keys> {
    let keys = |row: &Row<D>| Keys {
        section: row.section,
        keys: row.keys,
        kinds: row.kinds,
        text: row.text,
    };
    rows.iter().map(keys).collect()
}

/// The table of a format in Markdown.
pub fn table(format: Format) -> String {
    let rows = keys(format);
    let sections = rows.iter().any(|row| !row.section.is_empty());
    let head = if sections { "| section | key |" } else { "| option |" };
    let lines = if sections { "|---|---|" } else { "|---|" };
    let mut text = format!("{head} outcome | becomes, or why not |\n{lines}---|---|\n");
    for Keys { section, keys, kinds, text: becomes } in rows {
        let section = if sections { format!("`[{section}]` | ") } else { String::new() };
        let names: Vec<_> = keys.iter().map(|name| key(name)).collect();
        let becomes = becomes.replace('|', "\\|");
        // Writing to a string cannot fail.
        let _written =
            writeln!(text, "| {section}{} | {} | {becomes} |", names.join(", "), words(kinds));
    }
    text
}

fn key(key: &str) -> String {
    if key == "*" { "all others".to_owned() } else { format!("`{key}`") }
}

fn words(kinds: &[Kind]) -> String {
    kinds.iter().map(|kind| kind.word()).collect::<Vec<_>>().join(" or ")
}
