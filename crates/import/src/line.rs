//! The lines of a file that set something.

use zeroize::Zeroizing;

use crate::table::Verdict;

/// A file to import.
pub struct Source {
    /// Its name, or `-`.
    pub name: String,
    /// Its text, which may contain keys.
    pub text: Zeroizing<String>,
}

impl Source {
    /// The name without directories.
    pub(crate) fn file_name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or_default()
    }

    /// The name without directories and the last extension.
    pub(crate) fn stem(&self) -> &str {
        let name = self.file_name();
        name.rsplit_once('.').map_or(name, |(stem, _)| stem)
    }

    /// The directory; empty for the current one.
    pub(crate) fn directory(&self) -> &str {
        self.name.rsplit_once('/').map_or("", |(directory, _)| directory)
    }
}

/// One key and its value.
pub(crate) struct Line {
    /// The index of the source.
    pub(crate) file: usize,
    /// The number of the line, from 1.
    pub(crate) first: usize,
    /// The number of the last line, if the value takes several.
    pub(crate) last: usize,
    /// The section that it is in, in the format's own notation.
    pub(crate) section: String,
    /// Which section of the file it is in, counted from the first: keys of one group belong together.
    pub(crate) group: usize,
    /// The key, as the format's table spells it.
    pub(crate) key: String,
    /// The key in reports, if it is another.
    pub(crate) shown: Option<String>,
    pub(crate) value: Zeroizing<String>,
    /// An outcome that does not depend on the key: the line is no setting, or belongs to something else.
    pub(crate) decided: Option<Verdict>,
}

impl Line {
    /// Decides the outcome, unless it is decided already.
    pub(crate) fn decide(&mut self, verdict: impl FnOnce() -> Verdict) {
        self.decided.get_or_insert_with(verdict);
    }

    /// The value's words.
    pub(crate) fn words(&self) -> impl Iterator<Item = &str> {
        self.value.split_whitespace()
    }

    /// The items of a list, separated by blanks or by any of `separators`.
    pub(crate) fn items(&self, separators: &[char]) -> impl Iterator<Item = &str> {
        let ends = move |c: char| c.is_whitespace() || separators.contains(&c);
        self.value.split(ends).filter(|item| !item.is_empty())
    }
}
