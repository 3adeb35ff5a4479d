//! The text of a code: bytes that people copy from one machine to the other. It is in Crockford's base32, which has no
//! letters that look alike, in groups, and small and capital letters are the same. Its last bytes are a checksum.

use std::sync::LazyLock;

use data_encoding::{Encoding, Specification};
use thiserror::Error;
use vpnd_crypto::hash;
use zeroize::Zeroizing;

/// What a code is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The first one: from the site that invites.
    Invitation,
    /// The answer to it.
    Answer,
}

impl Kind {
    const fn number(self) -> u8 {
        match self {
            Self::Invitation => 1,
            Self::Answer => 2,
        }
    }
}

/// Why a text is not the code that is wanted.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum CodeError {
    /// A character that is in no code.
    #[error("`{0}` is in no code: letters and digits are, without U")]
    Letter(char),
    /// The checksum is wrong.
    #[error("the code is incomplete, or a letter of it is mistyped: compare it, or copy it again")]
    Mistyped,
    /// The code of another version.
    #[error(
        "the code is of version {0}, and this vpnd knows version {VERSION}: use the same vpnd at both ends"
    )]
    Version(u8),
    /// An answer in place of an invitation.
    #[error("this is an answer: it is for `vpnd pair --finish`, where the invitation came from")]
    IsAnswer,
    /// An invitation in place of an answer.
    #[error("this is an invitation: it is for `vpnd pair --join`, at the other site")]
    IsInvitation,
    /// The contents are not what a vpnd writes.
    #[error(
        "the code is whole, but does not make sense to this vpnd: use the same vpnd at both ends"
    )]
    Content,
}

/// The version of all codes.
const VERSION: u8 = 1;
const CHECKSUM: usize = 4;
/// Letters between two dashes, and groups in a line.
const GROUP: usize = 5;
const GROUPS: usize = 10;

/// The text of a code with this content.
pub(super) fn write(kind: Kind, content: &[u8]) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(content.len() + 2 + CHECKSUM));
    bytes.extend([VERSION, kind.number()]);
    bytes.extend(content);
    let sum = checksum(&bytes);
    bytes.extend(sum);
    let letters = Zeroizing::new(ALPHABET.encode(&bytes));
    // The full capacity is reserved at the start, because a growing text would leave copies behind.
    let mut text = Zeroizing::new(String::with_capacity(letters.len() * 2));
    for (at, letter) in letters.chars().enumerate() {
        match at {
            0 => {}
            at if at % (GROUP * GROUPS) == 0 => text.push('\n'),
            at if at % GROUP == 0 => text.push('-'),
            _ => {}
        }
        text.push(letter);
    }
    text
}

/// The content of a code of this kind.
///
/// # Errors
///
/// If it is mistyped, or another code than the one that is wanted.
pub(super) fn read(wanted: Kind, text: &str) -> Result<Zeroizing<Vec<u8>>, CodeError> {
    let known = |c: char| c.is_ascii_whitespace() || c == '-' || c.is_ascii_alphanumeric();
    if let Some(letter) = text.chars().find(|c| !known(*c) || matches!(c, 'u' | 'U')) {
        return Err(CodeError::Letter(letter));
    }
    let bytes = ALPHABET.decode(text.as_bytes()).map(Zeroizing::new);
    let mut bytes = bytes.map_err(|_| CodeError::Mistyped)?;
    let end = bytes.len().checked_sub(CHECKSUM).ok_or(CodeError::Mistyped)?;
    let (body, sum) = bytes.split_at(end);
    if checksum(body) != *sum {
        return Err(CodeError::Mistyped);
    }
    match *body {
        [VERSION, kind, ..] if kind == wanted.number() => {}
        [VERSION, kind, ..] if kind == Kind::Answer.number() => return Err(CodeError::IsAnswer),
        [VERSION, kind, ..] if kind == Kind::Invitation.number() => {
            return Err(CodeError::IsInvitation);
        }
        [VERSION, ..] | [] => return Err(CodeError::Content),
        [version, ..] => return Err(CodeError::Version(version)),
    }
    bytes.truncate(end);
    bytes.drain(..2);
    Ok(bytes)
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM] {
    let [a, b, c, d, ..] = hash(&[b"vpnd pair code", body]);
    [a, b, c, d]
}

/// Crockford's base32: O is 0, I and L are 1.
static ALPHABET: LazyLock<Encoding> = LazyLock::new(|| {
    let mut of = Specification::new();
    of.symbols.push_str("0123456789ABCDEFGHJKMNPQRSTVWXYZ");
    of.translate.from.push_str("abcdefghjkmnpqrstvwxyzOoIiLl");
    of.translate.to.push_str("ABCDEFGHJKMNPQRSTVWXYZ001111");
    of.ignore.push_str("- \t\r\n");
    of.encoding().expect("32 different symbols")
});

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(content: &[u8]) -> String {
        write(Kind::Invitation, content).to_string()
    }

    #[test]
    fn codes_are_read_as_people_write_them() {
        let code = text(&[7; 60]);
        assert!(code.lines().all(|line| line.len() < 60), "{code}");
        for same in [
            code.to_lowercase(),
            code.replace('-', " "),
            code.replace(['-', '\n'], ""),
            code.replace('0', "O").replace('1', "l"),
            format!("  {}\r\n", code.replace('\n', "\r\n")),
        ] {
            assert_eq!(*read(Kind::Invitation, &same).unwrap(), [7; 60], "{same}");
        }
    }

    #[test]
    fn what_is_another_code() {
        let (a, b) = (write(Kind::Answer, &[]), text(&[]));
        assert_eq!(read(Kind::Invitation, &a).unwrap_err(), CodeError::IsAnswer);
        assert_eq!(read(Kind::Answer, &b).unwrap_err(), CodeError::IsInvitation);
        let mut next = vec![VERSION + 1, 1, 2, 3];
        next.extend(checksum(&next));
        let next = ALPHABET.encode(&next);
        assert_eq!(read(Kind::Answer, &next).unwrap_err(), CodeError::Version(VERSION + 1));
        for text in ["", "A", "hello", "00000-00000"] {
            assert!(read(Kind::Answer, text).is_err(), "{text}");
        }
        assert_eq!(read(Kind::Answer, "ABC!").unwrap_err(), CodeError::Letter('!'));
        assert_eq!(read(Kind::Answer, "U").unwrap_err(), CodeError::Letter('U'));
    }

    proptest! {
        #[test]
        fn one_wrong_letter_is_noticed(content: Vec<u8>, at: prop::sample::Index, by in 1..32_u8) {
            let code = text(&content);
            prop_assert_eq!(&*read(Kind::Invitation, &code).unwrap(), &content);
            let symbols = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
            let mut letters = code.into_bytes();
            let places: Vec<_> =
                (0..letters.len()).filter(|at| letters[*at].is_ascii_alphanumeric()).collect();
            let place = places[at.index(places.len())];
            let value = symbols.iter().position(|it| *it == letters[place]).unwrap();
            letters[place] = symbols[(value + usize::from(by)) % 32];
            let wrong = String::from_utf8(letters).unwrap();
            prop_assert!(read(Kind::Invitation, &wrong).is_err());
        }

        #[test]
        fn whatever_is_typed_gives_no_panic(text: String) {
            prop_assert!(read(Kind::Answer, &text).is_err());
        }
    }
}
