//! Words for a shell.

use std::fmt::Write as _;

/// A word as it could be typed into a shell: one argument, whatever it contains. Control characters are written as
/// `$'\x0a'`, so that a command stays on one line, and what a terminal shows is what the shell gets.
///
/// A leading `-` makes an option with and without quotes: only `--` before the word prevents that.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if word.chars().any(char::is_control) {
        return in_numbers(word);
    }
    // zsh reads `=NAME` as the path of a program.
    if !word.is_empty() && !word.starts_with('=') && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// In the quotes `$'…'` of bash, ksh and zsh.
fn in_numbers(word: &str) -> String {
    let mut text = "$'".to_owned();
    for c in word.chars() {
        if c.is_control() {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                // Writing to a string cannot fail.
                let _written = write!(text, r"\x{byte:02x}");
            }
            continue;
        }
        text.extend(['\'', '\\'].contains(&c).then_some('\\'));
        text.push(c);
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
        assert_eq!(shell_word("a\n'b\\"), r"$'a\x0a\'b\\'");
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
    }
}
