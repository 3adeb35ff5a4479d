//! The names of enum values in the file. The names for enums of other crates are in this module; those for the
//! configuration's own enums are next to the enum.

use serde::Serializer;
use tracing::level_filters::LevelFilter;
use vpnd_crypto::Algorithm;
use vpnd_device::WhenDown;
use vpnd_protocol::endpoint::Roam;
use vpnd_tun::{Adopt, Mode};

use super::value::{TextResult, choice};

/// A type whose values have names in the file.
pub(super) trait Word: Copy + PartialEq + 'static {
    /// Every value, and its name.
    const WORDS: &'static [(&'static str, Self)];
}

/// The value that `text` names.
pub(super) fn word<T: Word>(text: &str) -> TextResult<T> {
    choice(T::WORDS)(text)
}

/// The name of `value`.
pub(super) fn name<T: Word>(value: T) -> &'static str {
    T::WORDS.iter().find(|(_, known)| *known == value).map_or("", |(name, _)| name)
}

/// Serializes a value as its name in the file.
pub(super) fn as_word<T: Word, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(name(*value))
}

/// Serializes a list of values as their names.
pub(super) fn as_words<T: Word, S: Serializer>(values: &[T], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(values.iter().map(|value| name(*value)))
}

impl Word for Mode {
    const WORDS: &'static [(&'static str, Self)] =
        &[(Self::Tun.word(), Self::Tun), (Self::Tap.word(), Self::Tap)];
}

impl Word for Adopt {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("require", Self::Require), ("never", Self::Never)];
}

impl Word for Algorithm {
    const WORDS: &'static [(&'static str, Self)] = &[
        (Self::ChaCha20Poly1305.name(), Self::ChaCha20Poly1305),
        (Self::Aes256Gcm.name(), Self::Aes256Gcm),
    ];
}

impl Word for Roam {
    const WORDS: &'static [(&'static str, Self)] =
        &[("any", Self::Any), ("same-ip", Self::SameIp), ("off", Self::Off)];
}

impl Word for WhenDown {
    const WORDS: &'static [(&'static str, Self)] =
        &[("keep", Self::Keep), ("remove", Self::Remove), ("blackhole", Self::Blackhole)];
}

impl Word for LevelFilter {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("off", Self::OFF),
        ("error", Self::ERROR),
        ("warn", Self::WARN),
        ("info", Self::INFO),
        ("debug", Self::DEBUG),
        ("trace", Self::TRACE),
    ];
}
