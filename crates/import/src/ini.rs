//! Files of sections and `key = value`: WireGuard's, systemd's and NetworkManager's.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use crate::line::{Line, Source};
use crate::table::Verdict;

/// How the formats differ.
pub(crate) struct Dialect {
    /// What begins a comment at the beginning of a line.
    pub(crate) comments: &'static [char],
    /// What begins a comment anywhere.
    pub(crate) trailing: Option<char>,
    /// Whether `\` at the end of a line continues it.
    pub(crate) continues: bool,
    /// The sections and keys, which are written in any case and with blanks inside; empty if exactly one spelling is
    /// valid.
    pub(crate) spelling: &'static [&'static str],
}

/// WireGuard's, which `wg setconf` and `wg-quick` read.
pub(crate) const WIREGUARD: Dialect = Dialect {
    comments: &['#'],
    trailing: Some('#'),
    continues: false,
    spelling: crate::wg_quick::SPELLING,
};

/// systemd's.
pub(crate) const SYSTEMD: Dialect =
    Dialect { comments: &['#', ';'], trailing: None, continues: true, spelling: &[] };

/// GLib's keyfile, which NetworkManager uses.
pub(crate) const KEYFILE: Dialect =
    Dialect { comments: &['#'], trailing: None, continues: false, spelling: &[] };

/// Reads every line that is no section, no comment and not blank.
pub(crate) fn parse(file: usize, source: &Source, dialect: &Dialect) -> Vec<Line> {
    let mut reader = Reader { dialect, file, section: String::new(), group: 0, lines: vec![] };
    let mut texts = source.text.lines().enumerate();
    while let Some((index, text)) = texts.next() {
        let mut whole = Zeroizing::new(text.to_owned());
        let mut last = index;
        while dialect.continues && !reader.is_comment(&whole) && whole.ends_with('\\') {
            whole.pop();
            let Some((next, more)) = texts.next() else { break };
            whole.push(' ');
            whole.push_str(more);
            last = next;
        }
        reader.read(index + 1, last + 1, &whole);
    }
    reader.lines
}

struct Reader<'d> {
    dialect: &'d Dialect,
    file: usize,
    section: String,
    group: usize,
    lines: Vec<Line>,
}

impl Reader<'_> {
    fn read(&mut self, first: usize, last: usize, text: &str) {
        let text = match self.dialect.trailing {
            Some(mark) => text.split(mark).next().unwrap_or_default(),
            None => text,
        };
        if text.trim().is_empty() || self.is_comment(text) {
            return;
        }
        if let Some(section) = text.trim().strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
            self.section = self.spelled(section);
            self.group += 1;
            return;
        }
        let (key, value, decided) = match text.split_once('=') {
            Some((key, value)) => (self.spelled(key), value.trim(), None),
            None => {
                (String::new(), "", Some(Verdict::dropped("no `KEY = VALUE`: correct the line")))
            }
        };
        let (section, group, file) = (self.section.clone(), self.group, self.file);
        let value = Zeroizing::new(value.to_owned());
        self.lines.push(Line {
            file,
            first,
            last,
            section,
            group,
            key,
            shown: None,
            value,
            decided,
        });
    }

    fn is_comment(&self, text: &str) -> bool {
        text.trim_start().starts_with(self.dialect.comments)
    }

    /// A name as the tables spell it.
    fn spelled(&self, name: &str) -> String {
        if self.dialect.spelling.is_empty() {
            return name.trim().to_owned();
        }
        let plain: String = name.chars().filter(|c| !c.is_whitespace()).collect();
        let known = self.dialect.spelling.iter().find(|known| known.eq_ignore_ascii_case(&plain));
        known.map_or(plain, |known| (*known).to_owned())
    }
}

/// In systemd's files an empty value forgets the earlier ones of the same key: they are dropped.
pub(crate) fn forget_cleared(lines: &mut [Line]) {
    let mut cleared = BTreeMap::new();
    for line in lines.iter_mut().rev().filter(|line| !line.key.is_empty()) {
        let place = (line.section.clone(), line.key.clone());
        if line.value.is_empty() {
            line.decide(|| Verdict::taken("clears the earlier values of this key"));
            cleared.insert(place, line.first);
        } else if let Some(number) = cleared.get(&place) {
            line.decide(|| Verdict::dropped(format!("line {number} clears it")));
        }
    }
}
