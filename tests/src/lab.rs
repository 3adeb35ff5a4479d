//! The place of one scenario: a directory for keys, configurations and logs, and the hosts.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{Host, binaries};

/// Lines of each log that are shown when a scenario fails.
const TAIL: usize = 40;

/// The directory and the hosts of one scenario; both are gone when it ends.
#[derive(Debug)]
pub struct Lab {
    directory: TempDir,
}

impl Lab {
    /// Creates the directory; the first one of a process also installs missing tools.
    ///
    /// # Errors
    /// When they cannot be, or the directory for temporary files cannot be written.
    pub fn new(name: &str) -> Result<Self> {
        binaries::prepare()?;
        Self::within(&env::temp_dir(), name)
    }

    /// Creates the directory inside another, without installing anything.
    ///
    /// # Errors
    /// When the other cannot be written.
    pub fn within(parent: &Path, name: &str) -> Result<Self> {
        let plain: String =
            name.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        let directory = tempfile::Builder::new()
            .prefix(&format!("vpnd-{plain}-"))
            .permissions(traversable())
            .tempdir_in(parent)
            .context("cannot make a directory for the scenario; is TMPDIR writable?")?;
        Ok(Self { directory })
    }

    /// Makes a host: its own network namespace and its own `/run`.
    ///
    /// # Errors
    /// Without the privilege to make namespaces.
    pub fn host(&self, name: &str) -> Result<Host> {
        Host::new(name, &self.subdirectory(name)?)
    }

    /// The directory of this scenario's files.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The last lines of every log written so far, to be read beside a failure.
    pub fn log_tails(&self) -> String {
        logs(self.path()).iter().map(|path| tail(path)).collect()
    }

    fn subdirectory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        fs::create_dir(&path).with_context(|| format!("host {name} exists already"))?;
        Ok(path)
    }
}

/// Other users may traverse it: a daemon that drops its privileges still has to reach its own files.
fn traversable() -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o755)
}

fn logs(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            found.extend(logs(&path));
        } else if path.extension().is_some_and(|extension| extension == "log") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let kept = &lines[lines.len().saturating_sub(TAIL)..];
    format!("--- {}\n{}\n", path.display(), kept.join("\n"))
}
