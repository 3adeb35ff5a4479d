//! A user of this system, as the password database lists it.

use serde::Serialize;

/// A user of this system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Account {
    /// Its name.
    pub(crate) name: String,
    /// Its user id.
    pub(crate) uid: u32,
    /// Its primary group.
    pub(crate) gid: u32,
}
