//! UCI's notation: `config TYPE 'NAME'`, `option KEY 'VALUE'`, `list KEY 'VALUE'`.

use zeroize::Zeroizing;

use crate::line::{Line, Source};
use crate::table::Verdict;

/// Reads every line that is no section, no comment and not blank. A section is called `TYPE NAME`.
pub(super) fn parse(source: &Source) -> Vec<Line> {
    let (mut section, mut group) = (String::new(), 0);
    let mut lines = vec![];
    for (index, text) in source.text.lines().enumerate() {
        let words = words(text);
        let words: Vec<&str> = words.iter().map(|word| word.as_str()).collect();
        let (key, value, decided) = match words.as_slice() {
            [] => continue,
            ["package", _] => continue,
            ["config", kind] => {
                ((section, group) = ((*kind).to_owned(), group + 1));
                continue;
            }
            ["config", kind, name] => {
                ((section, group) = (format!("{kind} {name}"), group + 1));
                continue;
            }
            ["option" | "list", key, value] => ((*key).to_owned(), *value, None),
            _ => {
                let verdict = Verdict::dropped("no `option KEY VALUE`: correct the line");
                (String::new(), "", Some(verdict))
            }
        };
        let (number, section) = (index + 1, section.clone());
        let value = Zeroizing::new(value.to_owned());
        lines.push(Line {
            file: 0,
            first: number,
            last: number,
            section,
            group,
            key,
            shown: None,
            value,
            decided,
        });
    }
    lines
}

/// The words of a line: blanks separate them, except within quotes and after `\`. `#` begins a comment.
fn words(text: &str) -> Vec<Zeroizing<String>> {
    let mut words: Vec<Zeroizing<String>> = vec![];
    let (mut inside, mut quote) = (false, None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => inside = false,
            (None, '#') if !inside => break,
            (Some(end), c) if c == end => quote = None,
            (quoted, c) => {
                if !inside {
                    words.push(Zeroizing::default());
                    inside = true;
                }
                let literal = match (quoted, c) {
                    (None, '\'' | '"') => {
                        quote = Some(c);
                        None
                    }
                    (None | Some('"'), '\\') => chars.next(),
                    _ => Some(c),
                };
                if let (Some(word), Some(literal)) = (words.last_mut(), literal) {
                    word.push(literal);
                }
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_as_in_uci() {
        let read = |text| words(text).iter().map(|word| word.to_string()).collect::<Vec<_>>();
        assert_eq!(read("\toption  a 'b c'"), ["option", "a", "b c"]);
        assert_eq!(read(r#"list a "b \"c" # d"#), ["list", "a", "b \"c"]);
        assert_eq!(read("option a ''"), ["option", "a", ""]);
        assert_eq!(read("option a b'c d'e"), ["option", "a", "bc de"]);
        assert_eq!(read("# all of it"), Vec::<String>::new());
    }
}
