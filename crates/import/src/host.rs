//! What an import needs of the host.

use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Files that a configuration names, and new keys.
pub trait Host {
    /// The text of a file that the configuration names: a key, a script, a table of names.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    fn read(&self, path: &Path) -> io::Result<Zeroizing<String>>;

    /// The path from the root on, because hooks run in `/`.
    fn absolute(&self, path: &Path) -> PathBuf;

    /// Why this program is not one that root alone can change; `None` if it is.
    fn distrust(&self, path: &Path) -> Option<String>;

    /// A new private key in base64.
    fn private_key(&self) -> Zeroizing<String>;

    /// A new preshared key in base64.
    fn preshared_key(&self) -> Zeroizing<String>;
}
