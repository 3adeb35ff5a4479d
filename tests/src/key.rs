//! Keys made by `wg`, so that no program under test makes its own.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::sys;

/// A key in base64: private, public or preshared.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

/// A private key and its public one.
#[derive(Debug, Clone)]
pub struct KeyPair {
    /// The secret.
    pub private: Key,
    /// The public key.
    pub public: Key,
}

impl KeyPair {
    /// Makes a new pair.
    ///
    /// # Errors
    /// When `wg` is not installed.
    pub fn generate() -> Result<Self> {
        let private = wg("genkey", "")?;
        let public = wg("pubkey", &private.0)?;
        Ok(Self { private, public })
    }
}

impl Key {
    /// Makes a new preshared key.
    ///
    /// # Errors
    /// When `wg` is not installed.
    pub fn preshared() -> Result<Self> {
        wg("genpsk", "")
    }

    /// In the format of configuration files.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Writes it to a file that only its owner can read.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        // A restart writes the same key again.
        let _ = fs::remove_file(path);
        let mut file = File::options()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(writeln!(file, "{}", self.0)?)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", &self.0[..4])
    }
}

fn wg(verb: &str, input: &str) -> Result<Key> {
    let output = sys::output(Command::new("wg").arg(verb), input)
        .with_context(|| format!("cannot run `wg {verb}`; install wireguard-tools"))?;
    ensure!(output.status.success(), "`wg {verb}` failed: {}", output.status);
    Ok(Key(String::from_utf8(output.stdout)?.trim().to_owned()))
}
