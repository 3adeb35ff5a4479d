use clap::{Command, CommandFactory};

use super::{keys, page};
use crate::cli::Cli;
use crate::config::tests::TABLES;

/// Every page, with the escapes of roff undone.
fn pages() -> Vec<(String, String)> {
    let pages = page::all(&Cli::command()).unwrap();
    pages.into_iter().map(|(name, text)| (name, text.replace(r"\-", "-"))).collect()
}

fn page_of<'a>(pages: &'a [(String, String)], name: &str) -> &'a str {
    let page = pages.iter().find(|(page, _)| page == name);
    &page.unwrap_or_else(|| panic!("no page {name}")).1
}

fn covers(pages: &[(String, String)], command: &Command, name: &str) {
    let page = page_of(pages, &format!("{name}.8"));
    for option in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        let long = option.get_long().map(|long| format!("--{long}"));
        let value = option.get_value_names().map(|names| names.join(" "));
        let shown = long.or(value).unwrap();
        assert!(page.contains(&shown), "{name}.8 lacks {shown}");
    }
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let sub_name = format!("{name}-{}", sub.get_name());
        assert!(page.contains(&format!("{sub_name}(8)")), "{name}.8 lacks {sub_name}");
        covers(pages, sub, &sub_name);
    }
}

#[test]
fn the_pages_have_every_command_and_option() {
    let mut command = Cli::command();
    command.build();
    covers(&pages(), &command, "vpnd");
}

#[test]
fn the_keys_that_are_described_are_those_that_are_read() {
    let described = keys::all().into_iter().map(|key| (key.table, key.name));
    let mut described: Vec<_> = described.collect();
    let tables = TABLES.iter().filter(|(table, _)| !table.is_empty());
    let read = tables
        .flat_map(|(table, keys)| keys.iter().map(|key| ((*table).to_owned(), (*key).to_owned())));
    let mut read: Vec<_> = read.collect();
    described.sort();
    read.sort();
    assert_eq!(described, read);
}

#[test]
fn each_key_has_its_page_and_its_help() {
    let (pages, list) = (pages(), keys::list());
    let manual = page_of(&pages, "vpnd.toml.5");
    for key in keys::all() {
        assert!(manual.contains(&format!(".TP\n\\fB{}\\fR", key.name)), "{key:?}");
        assert!(list.contains(&format!("\n  {} ", key.name)), "{key:?}");
        let help = keys::describe(&format!("{} {}", key.table, key.name)).unwrap();
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words(&help).ends_with(&words(&key.meaning)), "{help}");
    }
}

#[test]
fn a_key_is_found_in_any_spelling() {
    let keepalive = keys::describe("[peer] keepalive").unwrap();
    for asked in ["keepalive", "peer.keepalive", "peer keepalive"] {
        assert_eq!(keys::describe(asked).unwrap(), keepalive);
    }
    assert!(
        keepalive.starts_with("[peer] keepalive\n    values  \"1s\" to \"65535s\""),
        "{keepalive}"
    );
    assert_eq!(keys::describe("netns").unwrap().matches("netns").count(), 2);
    assert_eq!(keys::describe("dns").unwrap().matches("[dns]").count(), 2);
    let error = keys::describe("keepalives").unwrap_err().to_string();
    assert_eq!(error, "no key \"keepalives\" in the configuration; did you mean \"keepalive\"?");
}
