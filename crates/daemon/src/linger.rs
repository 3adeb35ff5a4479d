//! What happens to a kill switch when vpnd is asked to stop. A stop has to remove it and a restart must not,
//! but both begin with the same signal.
//!
//! The unit file sends SIGUSR1 before a restart. Without that signal, vpnd asks systemd over D-Bus whether this
//! is a stop or a restart; a service with `DynamicUser=yes` may not ask `dbus-daemon`. If there is no answer,
//! another process, the opener, removes the kill switch a few seconds later, unless a new vpnd has taken it
//! over by then. The opener is started together with vpnd. It has the journal and `CAP_NET_ADMIN`, but no key.
//! If vpnd is killed, the opener removes nothing.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use nix::unistd::getpid;
use vpnd_device::{Leftover, Undo};

use crate::changes::{self, HandedOn};
use crate::config::Config;
use crate::exit::Exit;
use crate::firewall;
use crate::helper::{self, Helper, RunAs};
use crate::netns::{Netns, NetnsError};
use crate::privilege;
use crate::stop::Asked;
use crate::systemd::{self, Job};

/// The internal subcommand.
pub(crate) const WORD: &str = "kill-switch-opener";

/// The time before the opener removes the kill switch, which is longer than a restart takes.
pub(crate) const WAIT: Duration = Duration::from_secs(3);

/// What to do with a kill switch after a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterStop {
    /// Remove it.
    Open,
    /// Remove it a little later, unless vpnd has been started by then.
    OpenLater,
    /// Keep it for the next start.
    Shut,
}

/// Decides what to do with the kill switch after vpnd was asked to stop.
pub(crate) async fn after_stop(asked: Option<Asked>) -> AfterStop {
    match asked {
        Some(Asked::Restart) => stays(),
        Some(Asked::Terminate) => ask_systemd().await,
        Some(Asked::Interrupt) | None => AfterStop::Open,
    }
}

fn stays() -> AfterStop {
    tracing::info!("the kill switch stays in place for the restart that systemd has planned");
    AfterStop::Shut
}

async fn ask_systemd() -> AfterStop {
    match systemd::job().await {
        Some(Job::Restart) => stays(),
        Some(Job::Other) => AfterStop::Open,
        // If PID 1 ends, all processes of the container end.
        None if is_first() => AfterStop::Open,
        None => {
            let seconds = WAIT.as_secs();
            tracing::info!(
                "the kill switch will be removed in {seconds} s, unless vpnd is started by then"
            );
            AfterStop::OpenLater
        }
    }
}

fn is_first() -> bool {
    getpid().as_raw() == 1
}

/// The process that removes the kill switch after vpnd has ended. Dropping this value ends the process, unless
/// the kill switch was handed to it.
pub(crate) struct Opener(Helper);

impl Opener {
    /// Starts the opener in the device's network namespace `inside`, if it may be needed. Call this before the
    /// privileges are dropped.
    ///
    /// # Errors
    ///
    /// If that namespace cannot be entered or left.
    pub(crate) fn start(
        config: &Config,
        undo: &Undo,
        inside: &Netns,
    ) -> Result<Option<Self>, NetnsError> {
        if !config.has_kill_switch() || systemd::started_us() || is_first() {
            return Ok(None);
        }
        let start = || match undo.journal()? {
            Some(journal) => Helper::start(WORD, config.service.user.as_ref(), journal).map(Some),
            None => Ok(None),
        };
        let helper = inside.within(start)?.unwrap_or_else(|error: io::Error| {
            let seconds = WAIT.as_secs();
            tracing::warn!(
                "cannot start the helper process {WORD}: {error}; after a SIGTERM vpnd itself waits {seconds} s \
                 and then removes the kill switch"
            );
            None
        });
        Ok(helper.map(Self))
    }
}

/// Lets the opener remove the kill switch. If there is no opener, this process waits and removes it.
pub(crate) fn open_later(HandedOn { leftover, table }: HandedOn, opener: Option<Opener>) {
    let handed = opener.map(|Opener(helper)| helper.leave(leftover.text()));
    if let Some(Err(error)) = &handed {
        tracing::warn!("the helper process {WORD} cannot take over the kill switch: {error}");
    }
    if !matches!(handed, Some(Ok(()))) {
        // This process may be in another network namespace by now, but the table's socket still belongs to the
        // right namespace.
        leftover.open_after(WAIT, |_| changes::open(table.as_deref()));
    }
}

/// Runs the opener: waits until vpnd hands the kill switch over or has ended. If vpnd has handed it over,
/// removes it later.
///
/// # Errors
///
/// If vpnd did not start this process, or the journal is not the one that was handed over.
pub(crate) fn wait(user: RunAs) -> anyhow::Result<ExitCode> {
    helper::begin(c"vpnd-killswitch")?;
    privilege::drop_to(user.account().as_ref())?;
    let journal = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text)?;
    if !text.is_empty() {
        Leftover::take_over(journal, text)?.open_after(WAIT, firewall::open_left);
    }
    Ok(Exit::Success.into())
}
