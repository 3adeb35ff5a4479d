//! OpenVPN's notation: an option and its arguments on a line, files between `<option>` and `</option>`.

use zeroize::Zeroizing;

use crate::line::{Line, Source};

/// Reads every option. A `<connection>` is a group of its own; other blocks are the value of their option.
pub(super) fn parse(file: usize, source: &Source) -> Vec<Line> {
    let mut lines = vec![];
    let (mut group, mut last_group) = (0, 0);
    let mut texts = source.text.lines().enumerate();
    while let Some((index, text)) = texts.next() {
        let trimmed = text.trim();
        let first = index + 1;
        match tag(trimmed) {
            Some("connection") => {
                last_group += 1;
                group = last_group;
            }
            Some("/connection") => group = 0,
            Some(name) => {
                let end = format!("</{name}>");
                let (mut value, mut last) = (Zeroizing::new(String::new()), first);
                for (index, text) in texts.by_ref() {
                    last = index + 1;
                    if text.trim() == end {
                        break;
                    }
                    value.push_str(text);
                    value.push('\n');
                }
                lines.push(line(file, first, last, group, name, value));
            }
            None => {
                let (key, value) = option(trimmed);
                if !key.is_empty() {
                    lines.push(line(
                        file,
                        first,
                        first,
                        group,
                        key,
                        Zeroizing::new(value.to_owned()),
                    ));
                }
            }
        }
    }
    lines
}

fn tag(text: &str) -> Option<&str> {
    text.strip_prefix('<')?.strip_suffix('>').filter(|name| !name.is_empty())
}

/// The option and the rest of its line. It may be written as on the command line.
fn option(text: &str) -> (&str, &str) {
    if text.starts_with(['#', ';']) {
        return ("", "");
    }
    let (key, value) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let plain = key.strip_prefix("--").filter(|plain| !plain.is_empty());
    (plain.unwrap_or(key), value.trim())
}

fn line(
    file: usize,
    first: usize,
    last: usize,
    group: usize,
    key: &str,
    value: Zeroizing<String>,
) -> Line {
    let (section, key) = (String::new(), key.to_owned());
    Line { file, first, last, section, group, key, shown: None, value, decided: None }
}

/// The arguments: blanks separate them, except within quotes and after `\`; a comment ends them.
pub(super) fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = vec![];
    let (mut inside, mut quote) = (false, None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let literal = match (quote, c) {
            (None, c) if c.is_whitespace() => {
                inside = false;
                continue;
            }
            (None, '#' | ';') if !inside => break,
            (Some(end), c) if c == end => {
                quote = None;
                continue;
            }
            (None, '"' | '\'') => {
                quote = Some(c);
                None
            }
            (None | Some('"'), '\\') => chars.next(),
            (_, c) => Some(c),
        };
        if !inside {
            words.push(String::new());
            inside = true;
        }
        if let Some(word) = words.last_mut() {
            word.extend(literal);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_quoted_as_in_openvpn() {
        assert_eq!(words(r#"a "b c" 'd\e' f\ g # h"#), ["a", "b c", r"d\e", "f g"]);
        assert_eq!(words("10.8.0.1 10.8.0.2 ; both"), ["10.8.0.1", "10.8.0.2"]);
        assert_eq!(words(r#""""#), [""]);
        assert_eq!(words("a#b"), ["a#b"]);
    }

    #[test]
    fn a_block_is_one_value() {
        let text = "dev tun\n<secret>\n-----\nabc\n</secret>\n<connection>\nremote a\n</connection>\nverb 3";
        let source = Source { name: "x.conf".into(), text: Zeroizing::new(text.into()) };
        let lines = parse(0, &source);
        let shown: Vec<_> = lines
            .iter()
            .map(|line| (line.key.as_str(), line.first, line.last, line.group))
            .collect();
        assert_eq!(
            shown,
            [("dev", 1, 1, 0), ("secret", 2, 5, 0), ("remote", 7, 7, 1), ("verb", 9, 9, 0)]
        );
    }
}
