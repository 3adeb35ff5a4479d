//! Refusals: a number for the client, and a reason for the log.

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// A positive number of `errno.h`.
    pub(crate) errno: i32,
    /// What it is about, for the limit on log lines.
    pub(crate) about: &'static str,
    /// For the log. It contains no secret.
    pub(crate) why: String,
}

impl Refused {
    /// The request contains something that the protocol does not know.
    pub(crate) fn invalid(why: impl Into<String>) -> Self {
        Self { errno: libc::EINVAL, about: "lines", why: why.into() }
    }

    /// The request did not arrive in time.
    pub(crate) fn endless() -> Self {
        let why = "the request has no end".to_owned();
        Self { errno: libc::ETIMEDOUT, about: "time", why }
    }

    /// The request is valid, and this daemon cannot do it.
    pub(crate) fn unsupported(about: &'static str, why: impl Into<String>) -> Self {
        Self { errno: libc::EOPNOTSUPP, about, why: why.into() }
    }
}
