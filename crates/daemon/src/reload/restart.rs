//! The restart that a reload may take.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::config::{Difference, Takes};
use crate::terminal::shell_word;
use crate::{ask, program, systemd};

/// How the process of a tunnel can be replaced by one with another configuration.
pub(super) enum Restart {
    /// Its process belongs to this unit of systemd.
    Unit(String),
    /// Somebody has started it, and has to start the next process too: a process that this command left behind would be
    /// nobody's.
    ByHand { file: PathBuf },
}

impl Restart {
    /// The way for the tunnel at this socket.
    ///
    /// # Errors
    ///
    /// If nobody listens there.
    pub(super) fn of(socket: &Path, file: &Path) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let unit = match ask::listener(socket)? {
            Some(process) => runtime.block_on(systemd::unit_of(process)),
            None => None,
        };
        Ok(unit.map_or_else(|| Self::ByHand { file: file.to_owned() }, Self::Unit))
    }

    /// The command that restarts the tunnel without a loss.
    pub(super) fn command(&self) -> String {
        match self {
            Self::Unit(unit) => format!("systemctl restart {}", shell_word(unit)),
            Self::ByHand { file } => {
                let file = file.display().to_string();
                format!("vpnd --config {} --take-over", shell_word(&file))
            }
        }
    }

    /// Whether this program can do it.
    pub(super) const fn is_ours(&self) -> bool {
        matches!(self, Self::Unit(_))
    }

    /// Restarts the tunnel. It is ready again when this returns.
    ///
    /// # Errors
    ///
    /// If systemd refuses, or the tunnel was started by hand.
    pub(super) fn run(&self, differences: &[Difference]) -> anyhow::Result<()> {
        let Self::Unit(unit) = self else {
            bail!(
                "{} a restart, and the tunnel is no unit of systemd: `{}` continues with it without a loss, as a process in \
                 the foreground; nothing was changed",
                taking_a_restart(differences),
                self.command()
            );
        };
        let systemctl = program::look_at("systemctl").context("cannot restart the tunnel")?;
        let status = Command::new(systemctl).args(["restart", "--", unit]).status();
        let status = status.with_context(|| format!("cannot run `{}`", self.command()))?;
        ensure!(status.success(), "`{}` failed: `journalctl -u {unit}` shows why", self.command());
        Ok(())
    }
}

/// The keys that take a restart, with the verb.
fn taking_a_restart(differences: &[Difference]) -> String {
    let keys: Vec<_> = differences
        .iter()
        .filter(|one| one.takes == Takes::Restart)
        .map(|one| format!("`{}`", one.key))
        .collect();
    format!("{} {}", keys.join(", "), if keys.len() == 1 { "takes" } else { "take" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_typed_as_it_is_shown() {
        let by_hand = |file: &str| Restart::ByHand { file: file.into() }.command();
        assert_eq!(by_hand("/etc/vpnd/a.toml"), "vpnd --config /etc/vpnd/a.toml --take-over");
        assert_eq!(by_hand("/x y/$(z).toml"), "vpnd --config '/x y/$(z).toml' --take-over");
        let unit = Restart::Unit(r"vpnd@a\x2db.service".to_owned()).command();
        assert_eq!(unit, r"systemctl restart 'vpnd@a\x2db.service'");
    }
}
