//! The tables of `docs/import.md`.

use std::fmt::Write as _;

use crate::table::{Kind, Row};
use crate::{Format, network_manager, networkd, openvpn, openwrt, wg_quick};

/// A key of a format, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The section; empty if the format has none.
    pub section: &'static str,
    /// The key, or `*` for every other key of the section.
    pub key: &'static str,
    /// The outcomes that its lines can have.
    pub kinds: &'static [Kind],
    /// What it becomes, or why it is dropped.
    pub text: &'static str,
}

/// Every key of a format.
pub fn keys(format: Format) -> Vec<Key> {
    match format {
        Format::WgQuick => of(wg_quick::ROWS),
        Format::Networkd => of(networkd::ROWS),
        Format::NetworkManager => of(network_manager::ROWS),
        Format::OpenWrt => of(openwrt::ROWS),
        Format::OpenVpn => of(openvpn::ROWS),
    }
}

fn of<D>(rows: &[Row<D>]) -> Vec<Key> {
    let key = |row: &Row<D>| Key { section: row.section, key: row.key, kinds: row.kinds, text: row.text };
    rows.iter().map(key).collect()
}

/// The table of a format in Markdown. Keys of one section with the same text are one line.
pub fn table(format: Format) -> String {
    let keys = keys(format);
    let sections = keys.iter().any(|key| !key.section.is_empty());
    let head = if sections { "| section | key |" } else { "| option |" };
    let lines = if sections { "|---|---|" } else { "|---|" };
    let mut text = format!("{head} outcome | becomes, or why not |\n{lines}---|---|\n");
    let same = |a: &Key, b: &Key| (a.section, a.kinds, a.text) == (b.section, b.kinds, b.text);
    for group in keys.chunk_by(same) {
        let Key { section, kinds, text: becomes, .. } = group[0];
        let section = if sections { format!("`[{section}]` | ") } else { String::new() };
        let names: Vec<_> = group.iter().map(|key| self::key(key.key)).collect();
        let becomes = becomes.replace('|', "\\|");
        // Writing to a string cannot fail.
        let _written = writeln!(text, "| {section}{} | {} | {becomes} |", names.join(", "), words(kinds));
    }
    text
}

fn key(key: &str) -> String {
    if key == "*" { "all others".to_owned() } else { format!("`{key}`") }
}

fn words(kinds: &[Kind]) -> String {
    kinds.iter().map(|kind| kind.word()).collect::<Vec<_>>().join(" or ")
}
