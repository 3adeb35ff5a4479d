//! The table of a format: every key, and what becomes of it.

use crate::line::Line;
use crate::report::Outcome;

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It means the same in vpnd's configuration.
    Taken,
    /// It has become something else, or vpnd does it by itself in another way.
    Changed,
    /// vpnd has nothing like it.
    Dropped,
}

impl Kind {
    /// The word in reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Changed => "changed",
            Self::Dropped => "dropped",
        }
    }
}

/// What has become of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The outcome.
    pub kind: Kind,
    /// What the line has become; or why it was dropped, and what to do.
    pub text: String,
}

impl Verdict {
    pub(crate) fn taken(text: impl Into<String>) -> Self {
        Self { kind: Kind::Taken, text: text.into() }
    }

    pub(crate) fn changed(text: impl Into<String>) -> Self {
        Self { kind: Kind::Changed, text: text.into() }
    }

    pub(crate) fn dropped(text: impl Into<String>) -> Self {
        Self { kind: Kind::Dropped, text: text.into() }
    }

    /// A value that the format itself would refuse.
    pub(crate) fn invalid(expected: &str) -> Self {
        Self::dropped(format!("not {expected}: correct the line and import again"))
    }
}

/// A function that reads a line of one key into the draft `D`.
pub(crate) type Read<D> = fn(&mut D, &Line) -> Verdict;

enum Does<D> {
    /// The outcome is the same whatever the value.
    Always,
    Reads(Read<D>),
}

/// Keys of one section that become the same.
pub(crate) struct Row<D: 'static> {
    pub(crate) section: &'static str,
    /// The keys; `*` stands for every other key of the section.
    pub(crate) keys: &'static [&'static str],
    /// The outcomes that its lines can have, besides [`Verdict::invalid`].
    pub(crate) kinds: &'static [Kind],
    /// What it becomes, or why it is dropped.
    pub(crate) text: &'static str,
    does: Does<D>,
}

pub(crate) const TAKEN: &[Kind] = &[Kind::Taken];
pub(crate) const CHANGED: &[Kind] = &[Kind::Changed];
pub(crate) const DROPPED: &[Kind] = &[Kind::Dropped];
pub(crate) const TAKEN_OR_CHANGED: &[Kind] = &[Kind::Taken, Kind::Changed];
pub(crate) const TAKEN_OR_DROPPED: &[Kind] = &[Kind::Taken, Kind::Dropped];
pub(crate) const CHANGED_OR_DROPPED: &[Kind] = &[Kind::Changed, Kind::Dropped];
pub(crate) const ANY: &[Kind] = &[Kind::Taken, Kind::Changed, Kind::Dropped];

/// A row whose lines are read by a function.
pub(crate) const fn reads<D>(
    section: &'static str,
    keys: &'static [&'static str],
    kinds: &'static [Kind],
    text: &'static str,
    read: Read<D>,
) -> Row<D> {
    Row { section, keys, kinds, text, does: Does::Reads(read) }
}

/// A row with one outcome, `kinds[0]`.
pub(crate) const fn always<D>(
    section: &'static str,
    keys: &'static [&'static str],
    kinds: &'static [Kind],
    text: &'static str,
) -> Row<D> {
    Row { section, keys, kinds, text, does: Does::Always }
}

/// Reads the lines into the draft, in the order of the rows: a row may use what the rows above it have read. Returns
/// an outcome for each line, in the order of the lines.
pub(crate) fn apply<D>(rows: &[Row<D>], mut lines: Vec<Line>, draft: &mut D) -> Vec<Outcome> {
    let open = lines.iter_mut().filter(|line| line.decided.is_none());
    let mut in_turn: Vec<_> = open.filter_map(|line| Some((row_of(rows, line)?, line))).collect();
    // Lines of one row keep their order.
    in_turn.sort_by_key(|(row, _)| *row);
    for (row, line) in in_turn {
        line.decided = Some(rows[row].verdict(line, draft));
    }
    lines.into_iter().map(outcome).collect()
}

fn outcome(line: Line) -> Outcome {
    let Line { file, first, last, section, key, shown, decided, .. } = line;
    match decided {
        Some(verdict) => Outcome { file, first, last, section, key: shown.unwrap_or(key), verdict },
        None if is_presentable(&section, &key) => {
            let verdict = unknown(&section, &key);
            Outcome { file, first, last, section, key, verdict }
        }
        None => {
            let verdict = Verdict::dropped("no key that is known: not shown, it may be a secret");
            Outcome { file, first, last, section, key: String::new(), verdict }
        }
    }
}

/// Whether an unknown key may be shown. A line of a secret, torn from its place, begins with a word too: one of
/// OpenVPN's keys with 32 digits, one of base64 with capital letters where options have none.
fn is_presentable(section: &str, key: &str) -> bool {
    let option = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let key_of_section =
        |c: char| !section.is_empty() && (c.is_ascii_alphanumeric() || "_.".contains(c));
    (1..=24).contains(&key.len()) && key.chars().all(|c| option(c) || key_of_section(c))
}

fn unknown(section: &str, key: &str) -> Verdict {
    let place = if section.is_empty() { String::new() } else { format!(" in [{section}]") };
    Verdict::dropped(format!(
        "`{key}` is not known{place}: if the tunnel needs it, look for it in docs/configuration.md"
    ))
}

fn row_of<D>(rows: &[Row<D>], line: &Line) -> Option<usize> {
    let of = |key: &str| {
        rows.iter().position(|row| row.section == line.section && row.keys.contains(&key))
    };
    of(&line.key).or_else(|| of("*"))
}

impl<D> Row<D> {
    fn verdict(&self, line: &Line, draft: &mut D) -> Verdict {
        match self.does {
            Does::Reads(read) => read(draft, line),
            Does::Always => {
                let kind = self.kinds.first().copied().unwrap_or(Kind::Dropped);
                Verdict { kind, text: self.text.to_owned() }
            }
        }
    }
}
