//! The arguments of `ip tuntap`, in any order.

use nix::unistd::{Group, User};
use thiserror::Error;
use vpnd_tun::{Mode, Persistent};

/// The meaning of the arguments, for `--help`.
pub(crate) const WORDS: &str = "\
Words, in any order:
  dev NAME, name NAME  the device; absent, or with %d in it, the kernel picks a number
  mode tun, mode tap   IP packets, or Ethernet frames
  user USER            who may open it without a privilege: a name or a number
  group GROUP          whose members may
  multi_queue          several descriptors may be attached; who opens it must ask for that too
  pi, vnet_hdr, one_queue
                       shown until somebody opens the device, who says all three anew: a program
                       gets what it asks for, whatever stands here";

/// The known words, with which a mistyped word is compared.
const KNOWN: [&str; 9] =
    ["dev", "name", "mode", "user", "group", "multi_queue", "pi", "vnet_hdr", "one_queue"];

/// Why the arguments are invalid.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum WordError {
    /// A word without its value.
    #[error("`{0}` needs a value after it")]
    NoValue(String),
    /// A word was given twice.
    #[error("a second `{word}`: {value}; one is enough")]
    Twice { word: &'static str, value: String },
    /// There are two modes.
    #[error("`mode {0}`: the modes are tun and tap")]
    Mode(String),
    /// No user has that name or number.
    #[error("no user `{0}` on this system")]
    User(String),
    /// No group has that name or number.
    #[error("no group `{0}` on this system")]
    Group(String),
    /// A bare name that looks like a mistyped word.
    #[error("`{word}`: did you mean {like}? A device of that name is `dev {word}`")]
    Like { word: String, like: &'static str },
    /// `add` needs a mode.
    #[error("which mode? write `mode tun` for IP packets or `mode tap` for Ethernet frames")]
    NoMode,
    /// `del` needs a name.
    #[error("which device? write `dev NAME`")]
    NoName,
    /// The word does not apply to this command.
    #[error("`{word}` has no meaning for {command}")]
    Idle { word: &'static str, command: &'static str },
}

/// The parsed arguments.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    name: Option<String>,
    kind: Option<Mode>,
    user: Option<u32>,
    group: Option<u32>,
    multi_queue: bool,
    packet_info: bool,
    vnet_header: bool,
    one_queue: bool,
}

impl Arguments {
    /// Parses the arguments.
    ///
    /// # Errors
    ///
    /// The first invalid argument.
    pub(crate) fn parse(words: &[String]) -> Result<Self, WordError> {
        let mut said = Self::default();
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            said.take(word, &mut words)?;
        }
        Ok(said)
    }

    fn take<'a>(
        &mut self,
        word: &str,
        rest: &mut impl Iterator<Item = &'a str>,
    ) -> Result<(), WordError> {
        let mut value = || rest.next().ok_or_else(|| WordError::NoValue(word.to_owned()));
        match word {
            "dev" | "name" => put(&mut self.name, "dev", value()?, |name| Ok(name.to_owned()))?,
            "mode" => put(&mut self.kind, "mode", value()?, mode)?,
            "user" => put(&mut self.user, "user", value()?, user)?,
            "group" => put(&mut self.group, "group", value()?, group)?,
            "multi_queue" => self.multi_queue = true,
            "pi" => self.packet_info = true,
            "vnet_hdr" => self.vnet_header = true,
            "one_queue" => self.one_queue = true,
            name => put(&mut self.name, "dev", name, bare)?,
        }
        Ok(())
    }

    /// The device that `add` makes.
    ///
    /// # Errors
    ///
    /// If there is no mode.
    pub(crate) fn into_device(self) -> Result<Persistent, WordError> {
        Ok(Persistent {
            name: self.name,
            kind: self.kind.ok_or(WordError::NoMode)?,
            user: self.user,
            group: self.group,
            multi_queue: self.multi_queue,
            packet_info: self.packet_info,
            vnet_header: self.vnet_header,
            one_queue: self.one_queue,
        })
    }

    /// The device that `del` deletes, and the mode that it must have. As with `ip`, the flags of `add` may be
    /// repeated; they have no effect here.
    ///
    /// # Errors
    ///
    /// If there is no name, or an owner is given.
    pub(crate) fn into_target(self) -> Result<(String, Option<Mode>), WordError> {
        let idle = |word| WordError::Idle { word, command: "del" };
        match self {
            Self { user: Some(_), .. } => Err(idle("user")),
            Self { group: Some(_), .. } => Err(idle("group")),
            Self { name: None, .. } => Err(WordError::NoName),
            Self { name: Some(name), kind, .. } => Ok((name, kind)),
        }
    }

    /// The device that `list` shows; `None` means all.
    ///
    /// # Errors
    ///
    /// If any argument other than a name is given.
    pub(crate) fn into_filter(self) -> Result<Option<String>, WordError> {
        let others = [
            ("mode", self.kind.is_some()),
            ("user", self.user.is_some()),
            ("group", self.group.is_some()),
            ("multi_queue", self.multi_queue),
            ("pi", self.packet_info),
            ("vnet_hdr", self.vnet_header),
            ("one_queue", self.one_queue),
        ];
        match others.into_iter().find(|(_, said)| *said) {
            Some((word, _)) => Err(WordError::Idle { word, command: "list" }),
            None => Ok(self.name),
        }
    }
}

fn put<T>(
    slot: &mut Option<T>,
    word: &'static str,
    value: &str,
    read: impl FnOnce(&str) -> Result<T, WordError>,
) -> Result<(), WordError> {
    // The value is parsed first, because a mistyped word is in the position of a name, and should be reported
    // as such.
    let read = read(value)?;
    if slot.is_some() {
        return Err(WordError::Twice { word, value: value.to_owned() });
    }
    *slot = Some(read);
    Ok(())
}

fn mode(word: &str) -> Result<Mode, WordError> {
    let known = [Mode::Tun, Mode::Tap].into_iter().find(|kind| kind.word() == word);
    known.ok_or_else(|| WordError::Mode(word.to_owned()))
}

fn user(word: &str) -> Result<u32, WordError> {
    let by_name = || Some(User::from_name(word).ok()??.uid.as_raw());
    id(word).or_else(by_name).ok_or_else(|| WordError::User(word.to_owned()))
}

fn group(word: &str) -> Result<u32, WordError> {
    let by_name = || Some(Group::from_name(word).ok()??.gid.as_raw());
    id(word).or_else(by_name).ok_or_else(|| WordError::Group(word.to_owned()))
}

/// Parses an id; the highest number means no user or group, and is invalid.
fn id(word: &str) -> Option<u32> {
    word.parse().ok().filter(|id| *id != u32::MAX)
}

/// A name without `dev` before it; an error if it looks like a mistyped word.
fn bare(name: &str) -> Result<String, WordError> {
    let slips = |known: &str| strsim::osa_distance(known, &name.replace('-', "_"));
    match KNOWN.into_iter().find(|known| slips(known) <= known.len() / 4) {
        Some(like) => Err(WordError::Like { word: name.to_owned(), like }),
        None => Ok(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, WordError> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        Arguments::parse(&words)
    }

    #[test]
    fn words_in_any_order() {
        let expected = Arguments {
            name: Some("tun7".into()),
            kind: Some(Mode::Tun),
            user: Some(0),
            multi_queue: true,
            ..Arguments::default()
        };
        for line in [
            "dev tun7 mode tun user root multi_queue",
            "multi_queue user 0 name tun7 mode tun",
            "mode tun tun7 multi_queue user root",
        ] {
            assert_eq!(parse(line).as_ref(), Ok(&expected), "{line}");
        }
    }

    #[test]
    fn every_flag_is_its_own() {
        let flags = |line| {
            let Arguments { multi_queue, packet_info, vnet_header, one_queue, .. } =
                parse(line).unwrap();
            [multi_queue, packet_info, vnet_header, one_queue]
        };
        assert_eq!(flags("multi_queue"), [true, false, false, false]);
        assert_eq!(flags("pi"), [false, true, false, false]);
        assert_eq!(flags("vnet_hdr"), [false, false, true, false]);
        assert_eq!(flags("one_queue"), [false, false, false, true]);
        assert_eq!(parse("group 7 mode tap").unwrap().into_device().unwrap().group, Some(7));
    }

    #[test]
    fn a_word_of_a_name_is_a_name_after_dev() {
        assert_eq!(parse("dev mode").unwrap().name.as_deref(), Some("mode"));
        assert_eq!(parse("name pi pi").unwrap().name.as_deref(), Some("pi"));
        assert_eq!(parse("vpn0").unwrap().name.as_deref(), Some("vpn0"));
        assert_eq!(parse("home").unwrap().name.as_deref(), Some("home"));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let twice = |word, value: &str| WordError::Twice { word, value: value.into() };
        let like = |word: &str, like| WordError::Like { word: word.into(), like };
        for (line, expected) in [
            ("dev", WordError::NoValue("dev".into())),
            ("mode tun user", WordError::NoValue("user".into())),
            ("mode tup", WordError::Mode("tup".into())),
            ("user nobody-of-that-name", WordError::User("nobody-of-that-name".into())),
            ("user -1", WordError::User("-1".into())),
            ("user 4294967295", WordError::User("4294967295".into())),
            ("group none-of-that-name", WordError::Group("none-of-that-name".into())),
            ("dev a dev b", twice("dev", "b")),
            ("tun7 name b", twice("dev", "b")),
            ("mode tun mode tap", twice("mode", "tap")),
            ("dev a multiqueue", like("multiqueue", "multi_queue")),
            ("vnet-hdr", like("vnet-hdr", "vnet_hdr")),
        ] {
            assert_eq!(parse(line), Err(expected), "{line}");
        }
    }

    #[test]
    fn each_command_has_its_words() {
        let idle = |word, command| WordError::Idle { word, command };
        assert_eq!(parse("dev a").unwrap().into_device(), Err(WordError::NoMode));
        assert_eq!(parse("mode tun").unwrap().into_target(), Err(WordError::NoName));
        assert_eq!(parse("a user root").unwrap().into_target(), Err(idle("user", "del")));
        let tap = Some(Mode::Tap);
        assert_eq!(parse("a mode tap pi").unwrap().into_target(), Ok(("a".into(), tap)));
        assert_eq!(parse("a pi").unwrap().into_filter(), Err(idle("pi", "list")));
        assert_eq!(parse("dev a").unwrap().into_filter(), Ok(Some("a".into())));
        assert_eq!(Arguments::parse(&[]).unwrap().into_filter(), Ok(None));
    }
}
