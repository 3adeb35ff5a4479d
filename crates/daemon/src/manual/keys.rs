//! `vpnd help config`: the keys of the configuration, as `docs/configuration.md` describes them.

use std::fmt::Write;

use super::{page, table};
use crate::config;

/// The header of the tables that describe keys.
const HEADER: [&str; 4] = ["key", "type", "default", "meaning"];
/// The width of the text.
const WIDTH: usize = 76;

/// The description of a key.
#[derive(Debug)]
pub(super) struct Key {
    /// The table of the file: `[peer]`.
    pub(super) table: String,
    /// The name.
    pub(super) name: String,
    /// Its values.
    pub(super) kind: String,
    /// The default; empty if there is none.
    pub(super) default: String,
    /// What it does.
    pub(super) meaning: String,
}

/// Every key, in the order of the page.
pub(super) fn all() -> Vec<Key> {
    let tables = table::all(page::CONFIGURATION).into_iter().filter(|table| table.header == HEADER);
    tables
        .flat_map(|table| {
            let key = move |cells: Vec<String>| {
                let [name, kind, default, meaning] = cells.try_into().ok()?;
                Some(Key { table: table.section.clone(), name, kind, default, meaning })
            };
            table.rows.into_iter().filter_map(key)
        })
        .collect()
}

/// All keys, each with the first sentence of its description.
pub(super) fn list() -> String {
    let mut text = String::new();
    let mut table = String::new();
    for key in all() {
        if key.table != table {
            let gap = if table.is_empty() { "" } else { "\n" };
            let _infallible = writeln!(text, "{gap}{}", key.table);
            table.clone_from(&key.table);
        }
        let first = key.meaning.split_inclusive(". ").next().unwrap_or_default();
        let _infallible = writeln!(text, "  {:<24} {}", key.name, first.trim_end());
    }
    text.push_str("\n`vpnd help config KEY` has more, and vpnd.toml(5) everything.\n");
    text
}

/// The keys that `asked` names: `keepalive`, `peer.keepalive` or `[peer] keepalive`; a table's name is all of its keys.
///
/// # Errors
///
/// If there is none.
pub(super) fn describe(asked: &str) -> anyhow::Result<String> {
    let all = all();
    let asked = plain(asked);
    let is_meant = |key: &&Key| {
        [plain(&key.name), plain(&key.table), plain(&format!("{} {}", key.table, key.name))]
            .contains(&asked)
    };
    let texts: Vec<_> = all.iter().filter(is_meant).map(text).collect();
    if texts.is_empty() {
        let names: Vec<_> = all.iter().map(|key| key.name.as_str()).collect();
        let meant = config::nearest(&asked, &names).map(|name| format!("; did you mean {name:?}?"));
        anyhow::bail!("no key {asked:?} in the configuration{}", meant.unwrap_or_default());
    }
    Ok(texts.join("\n"))
}

/// `[peer] keepalive` as `peer.keepalive`.
fn plain(name: &str) -> String {
    let words = name.split(|c: char| "[]. ".contains(c)).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(".")
}

fn text(key: &Key) -> String {
    let mut text = format!("{} {}\n", key.table, key.name);
    let default = if key.default.is_empty() { "none" } else { &key.default };
    for (label, value) in [("values", key.kind.as_str()), ("default", default), ("", &key.meaning)]
    {
        for (line, content) in wrapped(value, WIDTH - 12).iter().enumerate() {
            let label = if line == 0 { label } else { "" };
            let _infallible = writeln!(text, "    {label:<8}{content}");
        }
    }
    text
}

/// The words of `text` in lines of at most `width` characters.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().filter(|line| line.chars().count() + word.len() < width);
        match line {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}
