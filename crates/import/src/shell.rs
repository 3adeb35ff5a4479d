//! Words for a shell.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A word as it could be typed into a shell: one argument, whatever it contains. If it contains control characters, everything
/// unusual is written in numbers, as `$'\012'`, so that a command stays on one line, and what a terminal shows is what the
/// shell gets. dash does not know that form: it reads another word, but one word.
///
/// A leading `-` makes an option with and without quotes: only `--` before the word prevents that.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if word.chars().any(char::is_control) {
        return in_numbers(word.as_bytes());
    }
    // zsh reads `=NAME` as the path of a program.
    if !word.is_empty() && !word.starts_with('=') && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The same for a path, which may be no text.
pub fn shell_path(path: &Path) -> String {
    path.to_str().map_or_else(|| in_numbers(path.as_os_str().as_bytes()), shell_word)
}

/// In the quotes `$'…'` of bash, ksh and zsh. No quote and no backslash is written as it is: dash would end the word there.
fn in_numbers(bytes: &[u8]) -> String {
    let mut text = "$'".to_owned();
    for byte in bytes {
        match byte {
            b'\'' | b'\\' | ..=0x1f | 0x7f.. => {
                // Writing to a string cannot fail.
                let _written = write!(text, r"\{byte:03o}");
            }
            byte => text.push(char::from(*byte)),
        }
    }
    text.push('\'');
    text
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_needs_no_quotes_has_none() {
        for word in ["nft", "-f", "/etc/vpnd/a_b.toml", "wg-quick@wg0", "fe80::1%eth0", "a=b,c+d"] {
            assert_eq!(shell_word(word), word);
        }
        assert_eq!(shell_word(""), "''");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word("~root"), "'~root'");
        assert_eq!(shell_word("=ls"), "'=ls'");
        assert_eq!(shell_word("a\n'b\\"), r"$'a\012\047b\134'");
    }

    #[test]
    fn a_path_need_not_be_text() {
        use std::ffi::OsStr;
        let path = Path::new(OsStr::from_bytes(b"/tmp/\xff'x"));
        assert_eq!(shell_path(path), r"$'/tmp/\377\047x'");
        assert_eq!(shell_path(Path::new("/tmp/é")), "'/tmp/é'");
    }

    fn words() -> impl Strategy<Value = Vec<String>> {
        let special = r#"[-~=$`"'\\;&|<>()*?!#\[\]{} a-f\n\t\r\x1b\x7fé\u{85}\u{202e}]{0,8}"#;
        prop::collection::vec(prop_oneof![special, "[^\0]{0,8}"], 1..50)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn bash_reads_back_the_same(words in words()) {
            let typed: Vec<_> = words.iter().map(|word| shell_word(word)).collect();
            prop_assert!(typed.iter().all(|word| !word.contains(char::is_control)));
            let command = format!(r"printf '%s\0' {}", typed.join(" "));
            let output = Command::new("bash").args(["-c", &command]).output().unwrap();
            let expected: String = words.iter().map(|word| format!("{word}\0")).collect();
            prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{}", command);
        }

        /// A shell that does not know these quotes gets another word, and runs nothing of it.
        #[test]
        fn every_word_is_one_word_for_dash(words in words()) {
            let typed: Vec<_> = words.iter().map(|word| shell_word(word)).collect();
            let command = format!(r"printf '%s\0' {}", typed.join(" "));
            let output = Command::new("dash").args(["-c", &command]).output().unwrap();
            prop_assert!(output.stderr.is_empty(), "{command}");
            let read = output.stdout.iter().filter(|byte| **byte == 0).count();
            prop_assert_eq!(read, words.len(), "{}", command);
        }
    }
}
