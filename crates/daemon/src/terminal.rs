//! Makes text from others safe for a terminal and for a log: text of a configuration, an answer on a socket,
//! the output of a command, the name of a file. Characters that move the cursor, change the direction of
//! writing, begin a line or are invisible are shown as escapes.

use std::fmt::{self, Display, Write as _};
use std::io::{self, Write as _};

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;
pub(crate) use vpnd_import::{shell_path, shell_word};

/// Prints a text on standard output. It is not an error if the reader has closed it, as `head` does.
pub(crate) fn print(text: impl Display) -> anyhow::Result<()> {
    match write!(io::stdout(), "{text}").and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("cannot write to standard output"),
    }
}

/// Whether a terminal might do anything with this character other than showing it.
pub(crate) fn is_unfit(c: char) -> bool {
    // C0, DEL and C1.
    c.is_control()
        || matches!(
            c,
            // The Arabic letter mark, zero-width characters and marks of direction.
            '\u{61c}' | '\u{200b}'..='\u{200f}'
            // Ends of lines and paragraphs, embeddings and overrides of direction.
            | '\u{2028}'..='\u{202e}'
            // Invisible operators, isolates of direction, and deprecated characters in the same range.
            | '\u{2060}'..='\u{206f}' | '\u{feff}'
            // Tags.
            | '\u{e0000}'..='\u{e007f}'
        )
}

/// Shows a text on one line; unsafe characters become `\n`, `\t` or `\u{1b}`.
pub(crate) struct Printable<T>(pub(crate) T);

impl<T: Display> Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping { to: f, keep: |_| false }, "{}", self.0)
    }
}

/// Like [`Printable`], for a text whose line breaks vpnd has written itself.
pub(crate) struct PrintableLines<T>(pub(crate) T);

impl<T: Display> Display for PrintableLines<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping { to: f, keep: |c| c == '\n' }, "{}", self.0)
    }
}

/// Writes safe characters unchanged, and escapes the others.
struct Escaping<'a, 'f> {
    to: &'a mut fmt::Formatter<'f>,
    keep: fn(char) -> bool,
}

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let keep = self.keep;
        for piece in text.split_inclusive(|c| is_unfit(c) && !keep(c)) {
            match piece.char_indices().next_back() {
                Some((at, last)) if is_unfit(last) && !keep(last) => {
                    self.to.write_str(&piece[..at])?;
                    Display::fmt(&last.escape_default(), self.to)?;
                }
                _ => self.to.write_str(piece)?,
            }
        }
        Ok(())
    }
}

/// The same text with unsafe characters replaced by `?` and spaces. Its length in bytes is the same. Line
/// breaks and tabs are kept.
pub(crate) fn in_place(text: &str) -> String {
    let mut fit = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => fit.push(c),
            // Part of a line break before `\n`; elsewhere it would move the cursor to the start of the line.
            '\r' => fit.push(' '),
            c if is_unfit(c) => fit.extend(std::iter::repeat_n('?', c.len_utf8())),
            c => fit.push(c),
        }
    }
    fit
}

/// Escapes every string within a value.
pub(crate) fn escape_within(value: &mut Value) {
    match value {
        Value::String(text) if text.contains(is_unfit) => *text = Printable(&text).to_string(),
        Value::Array(items) => items.iter_mut().for_each(escape_within),
        Value::Object(fields) => {
            let old = std::mem::take(fields);
            fields.extend(old.into_iter().map(|(key, mut value)| {
                escape_within(&mut value);
                (Printable(key).to_string(), value)
            }));
        }
        _ => {}
    }
}

/// Serializes to JSON on one line, with unsafe characters escaped.
pub(crate) fn json(value: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string(value).map(|json| escape_json(&json))
}

/// Serializes to JSON for people to read, with unsafe characters escaped.
pub(crate) fn pretty_json(value: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string_pretty(value).map(|json| escape_json(&json))
}

/// Escapes the unsafe characters that JSON permits unescaped. They can occur only in strings.
pub(crate) fn escape_json(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        if !is_unfit(c) || c == '\n' {
            escaped.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a string does not fail.
            let _written = write!(escaped, "\\u{unit:04x}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// One of each kind: C0, DEL, C1, marks, lines, overrides, isolates, tags.
    const UNFIT: &str = "\u{0}\u{7}\u{1b}\r\u{7f}\u{85}\u{9b}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2066}\
                         \u{2069}\u{feff}\u{e0041}";

    #[test]
    fn nothing_unfit_is_left() {
        let shown = Printable(UNFIT).to_string();
        assert!(!shown.contains(is_unfit), "{shown}");
        assert!(shown.starts_with(r"\u{0}\u{7}\u{1b}\r\u{7f}\u{85}\u{9b}"), "{shown}");
        assert_eq!(Printable("a\nb\x1b[2Jc").to_string(), r"a\nb\u{1b}[2Jc");
        assert_eq!(PrintableLines("a\nb\x1b").to_string(), "a\nb\\u{1b}");
    }

    #[test]
    fn what_people_write_stays() {
        for text in ["", "plain", "é 漢字 ✓ — … 🙂", "شكرا"] {
            assert_eq!(Printable(text).to_string(), text);
            assert_eq!(in_place(text), text);
        }
    }

    #[test]
    fn places_stay_what_they_were() {
        let text = format!("a = '{UNFIT}'\r\n\tb");
        let fit = in_place(&text);
        assert_eq!(fit.len(), text.len());
        assert!(!fit.contains(|c| is_unfit(c) && c != '\n' && c != '\t'), "{fit:?}");
        assert!(fit.ends_with("' \n\tb"));
    }

    #[test]
    fn json_reads_back_the_same() {
        let value = json!({ "a\u{9b}": [UNFIT, "b"], "c": { "d": 1 } });
        for text in [json(&value).unwrap(), pretty_json(&value).unwrap()] {
            assert!(!text.contains(|c| is_unfit(c) && c != '\n'), "{text}");
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        }
        let mut escaped = value;
        escape_within(&mut escaped);
        assert_eq!(escaped[r"a\u{9b}"][0], Printable(UNFIT).to_string());
        assert_eq!(escaped["c"]["d"], 1);
    }
}
