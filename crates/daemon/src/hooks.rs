//! Commands that are run when the tunnel comes up, finds its peer, loses it and goes down, and those
//! that tell systemd-resolved of name servers behind it.
//!
//! 1. Before vpnd gives anything up, a *runner* is started ([`runner`]) and handed the plan.
//! 2. `up` is run when the device is configured. One command after the other; if one fails the start
//!    fails.
//! 3. While the tunnel runs, `established` and `lost` follow the peer, each at most every five seconds.
//!    They take turns: what changed and changed back while a command ran, or was waited for, is passed over.
//!    Between them the name servers are set again where another program has taken them away ([`names`]).
//! 4. At the end, and before anything is undone, `down` is run. What fails is logged.

mod client;
mod dns;
mod exec;
mod names;
mod output;
mod plan;
mod runner;
mod talk;
mod variables;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

pub(crate) use plan::{Moment, Plan};
pub(crate) use runner::{WORD, run, stand_apart};
pub(crate) use variables::{Facts, plan};

use client::Runner;
use names::{Found, Names};
use plan::Argv;
use talk::{Changed, End, Order};

/// After one of `established` has begun, the next does so much later at the earliest; `lost` likewise. What the peer
/// does is not to keep us running commands.
const APART: Duration = Duration::from_secs(5);

/// Why the start failed over a hook.
#[derive(Debug, Error)]
pub(crate) enum HookError {
    /// Nobody could run it.
    #[error("the hook runner, which is vpnd itself (/proc/self/exe), cannot be started: {0}")]
    Start(io::Error),
    /// The runner was killed, or hangs.
    #[error("the hook runner is gone: {0}; start vpnd again")]
    Gone(io::Error),
    /// It was run, and failed.
    #[error(
        "hook {hook}: `{command}` {end}; what this start had changed is undone, and `down` is not run. \
         Nothing crosses the tunnel before `up` has ended: what needs the peer belongs in `established`"
    )]
    Failed { hook: &'static str, command: String, end: End },
}

/// The commands of one tunnel.
pub(crate) struct Hooks {
    /// None where nothing is ever run, and when it was lost.
    runner: Option<Runner>,
    plan: Plan,
    changed: Changed,
    /// The name servers that are to stay as they were set; none where none were.
    names: Option<Names>,
}

impl Hooks {
    /// Starts the runner if `wanted`. Belongs before everything that a command must not inherit.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub(crate) fn start(wanted: bool) -> Result<Self, HookError> {
        let runner = wanted.then(Runner::start).transpose().map_err(HookError::Start)?;
        Ok(Self { runner, plan: Plan::default(), changed: Changed::default(), names: None })
    }

    /// Hands the plan over and runs what belongs to a start. `None` if it ended before, as `stop`
    /// asked.
    ///
    /// # Errors
    ///
    /// If a command of `up` fails; the ones after it are not run.
    pub(crate) async fn up(
        mut self,
        plan: Plan,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<Following>, HookError> {
        self.plan = plan;
        let done = tokio::select! {
            done = self.bring_up() => Some(done),
            () = stop => None,
        };
        match done {
            Some(Ok(())) => Ok(Some(self.follow())),
            other => {
                // It kills what runs.
                self.end().await;
                other.transpose().map(|_stopped| None)
            }
        }
    }

    async fn bring_up(&mut self) -> Result<(), HookError> {
        if let Some(runner) = &mut self.runner {
            runner.plan(&self.plan).await.map_err(HookError::Gone)?;
        }
        self.set_dns().await;
        for index in 0..self.plan.at(Moment::Up).len() {
            let end = self.command(Moment::Up, index, None).await.map_err(HookError::Gone)?;
            if !end.is_good() {
                let command = self.plan.at(Moment::Up)[index].to_string();
                return Err(HookError::Failed { hook: Moment::Up.word(), command, end });
            }
        }
        Ok(())
    }

    /// A tunnel without its names is better than none.
    async fn set_dns(&mut self) {
        match self.tell_names().await {
            Ok(()) if self.plan.at(Moment::SetDns).is_empty() => {}
            Ok(()) => self.names = Some(Names::new(self.plan.at(Moment::SetDns))),
            Err(Untold { index, why }) => {
                tracing::warn!(
                    "[dns] has no effect: {why}; it takes systemd-resolved, or a hook that does as much"
                );
                if index == 0 {
                    self.plan.commands.remove(&Moment::RevertDns);
                }
            }
        }
    }

    /// Has systemd-resolved told of the names, up to the first command that fails.
    async fn tell_names(&mut self) -> Result<(), Untold> {
        for index in 0..self.plan.at(Moment::SetDns).len() {
            let end = self.command(Moment::SetDns, index, None).await;
            if !end.as_ref().is_ok_and(End::is_good) {
                let why = end.map_or_else(|error| error.to_string(), |end| end.to_string());
                let command =
                    planned(&self.plan, self.changed.device.as_deref(), Moment::SetDns, index);
                return Err(Untold { index, why: format!("`{command}` {why}") });
            }
        }
        Ok(())
    }

    /// Looks after the names, and sets them again where they may be gone.
    async fn keep_names(&mut self) {
        let Some(mut names) = self.names.take() else { return };
        let found = names.look(Instant::now());
        if found != Found::Kept {
            let told = self.tell_names().await;
            names.set_again(Instant::now(), found, told.is_ok());
            report(found, told);
        }
        self.names = self.runner.is_some().then_some(names);
    }

    /// Runs one command of the plan; nothing where there is no runner.
    async fn command(
        &mut self,
        moment: Moment,
        index: usize,
        endpoint: Option<SocketAddr>,
    ) -> io::Result<End> {
        let Some(runner) = &mut self.runner else { return Ok(End::Exited(0)) };
        let argv = planned(&self.plan, self.changed.device.as_deref(), moment, index);
        let order = Order { moment, index, endpoint, changed: self.changed.clone() };
        let end = runner.run(order, &argv, self.plan.limit).await;
        if end.is_err() {
            // What it says from now on would be about something else.
            self.runner = None;
        }
        end
    }

    /// Runs a command whose failure changes nothing, and says how it went.
    async fn attend(&mut self, moment: Moment, index: usize, endpoint: Option<SocketAddr>) {
        let (hook, had_runner) = (moment.word(), self.runner.is_some());
        let end = self.command(moment, index, endpoint).await;
        let command = planned(&self.plan, self.changed.device.as_deref(), moment, index);
        match end {
            Ok(end) if end.is_good() => tracing::info!("hook {hook}: `{command}` is done"),
            Ok(end) => tracing::warn!("hook {hook}: `{command}` {end}"),
            Err(error) if had_runner => {
                tracing::warn!("hook {hook}: {}", HookError::Gone(error));
            }
            Err(_known) => {}
        }
    }

    /// From here on commands are run beside everything else.
    fn follow(self) -> Following {
        let (wishes, seen) = watch::channel(Wish::default());
        let task = tokio::spawn(self.run(seen));
        Following { news: News(Arc::new(wishes)), task: Some(task) }
    }

    async fn run(mut self, mut wishes: watch::Receiver<Wish>) {
        let (mut alive, mut begun) = (false, [None; 2]);
        loop {
            let Some(wish) = self.next(&mut wishes, alive).await else { break };
            let begun = &mut begun[usize::from(wish.alive)];
            if let Some(begun) = *begun {
                let back = wishes.wait_for(|wish| wish.end || wish.alive == alive);
                if timeout_at(begun + APART, back).await.is_ok() {
                    continue;
                }
            }
            *begun = Some(Instant::now());
            let wish = wishes.borrow().clone();
            self.changed = wish.changed;
            alive = !alive;
            let moment = if alive { Moment::Established } else { Moment::Lost };
            for index in 0..self.plan.at(moment).len() {
                self.attend(moment, index, wish.endpoint).await;
                if wishes.borrow().end {
                    break;
                }
            }
        }
        let wish = wishes.borrow().clone();
        self.changed = wish.changed;
        self.bring_down(wish.endpoint).await;
    }

    /// Looks after the names until the peer is there, or is there no more; none at the end.
    async fn next(&mut self, wishes: &mut watch::Receiver<Wish>, alive: bool) -> Option<Wish> {
        loop {
            let due = self.names.as_ref().map(Names::due);
            tokio::select! {
                biased;
                changed = wishes.wait_for(|wish| wish.end || wish.alive != alive) => {
                    return changed.ok().map(|wish| wish.clone()).filter(|wish| !wish.end);
                }
                () = until(due) => {}
            }
            self.changed = wishes.borrow().changed.clone();
            self.keep_names().await;
        }
    }

    async fn bring_down(mut self, endpoint: Option<SocketAddr>) {
        for index in 0..self.plan.at(Moment::Down).len() {
            self.attend(Moment::Down, index, endpoint).await;
        }
        for index in 0..self.plan.at(Moment::RevertDns).len() {
            // With the device went what systemd-resolved knew of it.
            let end = self.command(Moment::RevertDns, index, None).await;
            tracing::debug!("names are looked up as before: {end:?}");
        }
        self.end().await;
    }

    async fn end(self) {
        if let Some(runner) = self.runner {
            runner.end().await;
        }
    }
}

/// The command that systemd-resolved was not told by, and what came of it.
struct Untold {
    index: usize,
    why: String,
}

/// Says that names were set again, if they were gone.
fn report(found: Found, told: Result<(), Untold>) {
    match told {
        Ok(()) if found == Found::Gone => tracing::info!(
            "systemd-resolved no longer had the name servers of [dns]: another program changed them, or \
             it was started anew; they are set again"
        ),
        Ok(()) => tracing::debug!("[dns] is set again, in case that something of it was gone"),
        Err(Untold { why, .. }) => {
            tracing::warn!("[dns] cannot be set again: {why}; it is tried on");
        }
    }
}

/// Then; never if there is no then.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// What is to be run next, as far as it is known.
#[derive(Clone, Debug, Default)]
struct Wish {
    alive: bool,
    endpoint: Option<SocketAddr>,
    changed: Changed,
    end: bool,
}

/// What the tunnel's state is told to.
#[derive(Clone)]
pub(crate) struct News(Arc<watch::Sender<Wish>>);

impl News {
    /// The peer is there, or gone. Never waits.
    pub(crate) fn peer(&self, alive: bool, endpoint: Option<SocketAddr>) {
        self.0.send_modify(|wish| {
            wish.alive = alive;
            wish.endpoint = endpoint.or(wish.endpoint);
        });
    }
}

impl News {
    /// The device has another name.
    pub(crate) fn renamed(&self, device: &str) {
        self.0.send_modify(|wish| wish.changed.device = Some(device.to_owned()));
    }

    /// The device has another MTU.
    pub(crate) fn mtu(&self, mtu: u16) {
        self.0.send_modify(|wish| wish.changed.mtu = Some(mtu));
    }
}

/// A command of the plan, for a device that may have another name by now.
fn planned(plan: &Plan, device: Option<&str>, moment: Moment, index: usize) -> Argv {
    let argv = &plan.at(moment)[index];
    device.map_or_else(|| argv.clone(), |name| argv.with_device(name))
}

/// Commands that are run beside everything else.
pub(crate) struct Following {
    news: News,
    task: Option<JoinHandle<()>>,
}

impl Following {
    /// For whoever knows how the tunnel fares.
    pub(crate) fn news(&self) -> News {
        self.news.clone()
    }

    /// Lets the command that runs end, runs `down`, and waits for all of it. The second time does
    /// nothing.
    pub(crate) async fn end(&mut self) {
        self.news.0.send_modify(|wish| wish.end = true);
        if let Some(task) = &mut self.task {
            let _panicked = task.await;
            self.task = None;
        }
    }
}

#[cfg(test)]
mod tests;
