//! Why this host itself refuses to send a datagram, as far as the error number shows it.

use std::fmt;
use std::io;

/// Why a datagram did not leave this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A rule of the packet filter drops or rejects the datagram.
    Filter,
    /// A `prohibit` route or rule matches.
    Prohibit,
    /// A `blackhole` route or rule matches; over IPv6 also an address that is valid only on another link.
    Blackhole,
    /// An `unreachable` route matches.
    Unreachable,
    /// There is no route.
    NoRoute,
    /// The link is down.
    LinkDown,
    /// The interface is gone.
    NoDevice,
    /// This host has no source address for the datagram.
    NoSource,
    /// The socket supports only the other version of IP.
    Family,
    /// Another error, with its number.
    Other(i32),
}

impl Refusal {
    /// The meaning of a send error; `None` if sending the same datagram may succeed shortly afterwards.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.raw_os_error().and_then(Self::from_errno)
    }

    pub(crate) const fn from_errno(errno: i32) -> Option<Self> {
        Some(match errno {
            0 | libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM | libc::EMSGSIZE => {
                return None;
            }
            libc::EPERM => Self::Filter,
            libc::EACCES => Self::Prohibit,
            libc::EINVAL => Self::Blackhole,
            libc::EHOSTUNREACH => Self::Unreachable,
            libc::ENETUNREACH => Self::NoRoute,
            libc::ENETDOWN => Self::LinkDown,
            libc::ENODEV | libc::ENXIO => Self::NoDevice,
            libc::EADDRNOTAVAIL => Self::NoSource,
            libc::EAFNOSUPPORT => Self::Family,
            other => Self::Other(other),
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => {
                "this host's packet filter refuses it (EPERM): look for a rule that drops or rejects \
                 it on its way out, with `nft list ruleset` or `iptables-save`"
            }
            Self::Prohibit => {
                "a `prohibit` route or rule of this host refuses it (EACCES): see `ip route get`, \
                 `ip rule`"
            }
            Self::Blackhole => {
                "a `blackhole` route or rule of this host drops it, or the address is good on another \
                 link (EINVAL): see `ip route get`, `ip rule`"
            }
            Self::Unreachable => {
                "an `unreachable` route of this host refuses it (EHOSTUNREACH): see `ip route get`"
            }
            Self::NoRoute => "this host has no route to there (ENETUNREACH): see `ip route get`",
            Self::LinkDown => "the link that it should leave by is down (ENETDOWN)",
            Self::NoDevice => "the interface that it should leave by is gone (ENODEV)",
            Self::NoSource => {
                "this host has no address that it could leave from (EADDRNOTAVAIL): see `ip address`"
            }
            Self::Family => {
                "the socket speaks the other version of IP only (EAFNOSUPPORT): `listen` names an \
                 address of that one, or the kernel lacks IPv6"
            }
            Self::Other(errno) => return io::Error::from_raw_os_error(*errno).fmt(f),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_by_itself_is_no_refusal() {
        for errno in [libc::EAGAIN, libc::ENOBUFS, libc::EMSGSIZE, libc::EINTR] {
            assert_eq!(Refusal::of(&io::Error::from_raw_os_error(errno)), None);
        }
        assert_eq!(Refusal::of(&io::Error::other("no number")), None);
    }

    #[test]
    fn each_names_who_refuses() {
        for (errno, word) in [
            (libc::EPERM, "packet filter"),
            (libc::EACCES, "`prohibit`"),
            (libc::EINVAL, "`blackhole`"),
            (libc::EHOSTUNREACH, "`unreachable`"),
            (libc::ENETUNREACH, "no route"),
            (libc::EIO, "os error"),
        ] {
            let said = Refusal::of(&io::Error::from_raw_os_error(errno)).unwrap().to_string();
            assert!(said.contains(word), "{errno}: {said}");
        }
    }
}
