//! What happens to a kill switch when vpnd is asked to stop. A stop has to open it, a restart must not, and both
//! begin with the same signal.
//!
//! The unit file sends SIGUSR1 before a restart. Without that signal, vpnd asks systemd over D-Bus which of the two
//! it is; a service with `DynamicUser=yes` may not ask `dbus-daemon`. If there is no answer, another process, the
//! opener, opens the kill switch a few seconds later, unless a new vpnd has taken it over by then. The opener is
//! started with vpnd, and holds the journal, `CAP_NET_ADMIN` and no key. If vpnd is killed, it opens nothing.

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

/// Longer than a restart takes.
pub(crate) const WAIT: Duration = Duration::from_secs(3);

/// What to do with a kill switch after a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterStop {
    /// Remove it.
    Open,
    /// Remove it a little later, unless vpnd is started by then.
    OpenLater,
    /// Keep it for the next start.
    Shut,
}

/// Decides what to do with the kill switch now that vpnd was asked to stop.
pub(crate) async fn after_stop(asked: Option<Asked>) -> AfterStop {
    match asked {
        Some(Asked::Restart) => stays(),
        Some(Asked::Terminate) => ask_systemd().await,
        Some(Asked::Interrupt) | None => AfterStop::Open,
    }
}

fn stays() -> AfterStop {
    tracing::info!("the kill switch keeps blocking, because systemd is about to start vpnd again");
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
            tracing::info!("the kill switch opens in {seconds} s, unless vpnd is started by then");
            AfterStop::OpenLater
        }
    }
}

fn is_first() -> bool {
    getpid().as_raw() == 1
}

/// The process that opens the kill switch after vpnd has ended. Dropping it ends the process, unless the kill
/// switch was handed to it.
pub(crate) struct Opener(Helper);

impl Opener {
    /// Starts the opener in the device's network namespace `inside`, if it may be needed. Call it before the
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
                "cannot start the helper process: {error}; after a SIGTERM vpnd itself waits {seconds} s \
                 and then opens the kill switch"
            );
            None
        });
        Ok(helper.map(Self))
    }
}

/// Lets the opener open the kill switch. If there is no opener, this process waits and does it itself.
pub(crate) fn open_later(HandedOn { leftover, table }: HandedOn, opener: Option<Opener>) {
    let handed = opener.map(|Opener(helper)| helper.leave(leftover.text()));
    if let Some(Err(error)) = &handed {
        tracing::warn!("the process {WORD} does not take over: {error}");
    }
    if !matches!(handed, Some(Ok(()))) {
        // This process may be in another network namespace by now, but the table's socket still belongs to the
        // right one.
        leftover.open_after(WAIT, |_| changes::open(table.as_deref()));
    }
}

/// The opener: waits until vpnd hands the kill switch to it or has ended. If it was handed over, opens it
/// later.
///
/// # Errors
///
/// If vpnd did not start it, or the journal is not the one that was handed over.
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
