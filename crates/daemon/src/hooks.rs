//! Commands that run when the tunnel starts, when the peer becomes alive or silent, and when the tunnel stops.
//! Also the commands that set systemd-resolved's name servers behind the tunnel.
//!
//! 1. Before vpnd drops any privilege, it starts a *runner* ([`runner`]) and sends it the plan.
//! 2. `up` runs when the device is configured: one command after the other. If one fails, the start fails.
//! 3. While the tunnel runs, `established` and `lost` follow the state of the peer, each at most every five
//!    seconds. The two never run at the same time. If the state changes and changes back while a command runs,
//!    no further command runs. Between them, vpnd sets the name servers again if another program has removed them
//!    ([`names`]).
//! 4. At the end, before anything is reverted, `down` runs. A failure is logged.

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

pub(crate) use plan::{Event, Plan};
pub(crate) use runner::{WORD, isolate, run};
pub(crate) use variables::{Facts, plan};

use client::Runner;
use names::{Found, Names};
use plan::Argv;
use talk::{Changed, End, Order};

/// The shortest time from one start of `established` to the next, and from one start of `lost` to the next, so
/// that the peer cannot keep vpnd busy with commands.
const SAME_EVENT_INTERVAL: Duration = Duration::from_secs(5);

/// Why hooks made the start fail.
#[derive(Debug, Error)]
pub(crate) enum HookError {
    /// The runner could not be started.
    #[error("the hook runner, which is vpnd itself (/proc/self/exe), cannot be started: {0}")]
    Start(io::Error),
    /// The runner was killed, or does not answer.
    #[error("the hook runner is gone: {0}; start vpnd again")]
    Gone(io::Error),
    /// A command failed.
    #[error(
        "hook {hook}: `{command}` {end}; what this start had changed is undone, and `down` is not run. \
         Nothing crosses the tunnel before `up` has ended: what needs the peer belongs in `established`"
    )]
    Failed { hook: &'static str, command: String, end: End },
}

/// The commands of one tunnel.
pub(crate) struct Hooks {
    /// `None` if no command is configured, or after the runner has failed.
    runner: Option<Runner>,
    plan: Plan,
    changed: Changed,
    /// The name servers that were set, which vpnd keeps set; `None` if none were set.
    names: Option<Names>,
}

impl Hooks {
    /// Starts the runner if `wanted`. Call it before opening anything that a command must not inherit.
    ///
    /// # Errors
    ///
    /// If the runner cannot be started.
    pub(crate) fn start(wanted: bool) -> Result<Self, HookError> {
        let runner = wanted.then(Runner::start).transpose().map_err(HookError::Start)?;
        Ok(Self { runner, plan: Plan::default(), changed: Changed::default(), names: None })
    }

    /// Sends the plan to the runner, and runs the commands of a start. `None` if `stop` ended it early.
    ///
    /// # Errors
    ///
    /// If a command of `up` fails; the commands after it are not run.
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
            Some(Ok(())) => Ok(Some(self.follow(false))),
            other => {
                // This kills the running command.
                self.end().await;
                other.transpose().map(|_stopped| None)
            }
        }
    }

    /// Sends the plan to the runner. An earlier process has run the commands of the start, and its peer was `alive`.
    ///
    /// # Errors
    ///
    /// If the runner is gone.
    pub(crate) async fn continue_with(
        mut self,
        plan: Plan,
        alive: bool,
    ) -> Result<Following, HookError> {
        self.plan = plan;
        if let Some(runner) = &mut self.runner {
            runner.plan(&self.plan).await.map_err(HookError::Gone)?;
        }
        let names = self.plan.at(Event::SetDns);
        self.names = (!names.is_empty()).then(|| Names::inherited(names));
        Ok(self.follow(alive))
    }

    async fn bring_up(&mut self) -> Result<(), HookError> {
        if let Some(runner) = &mut self.runner {
            runner.plan(&self.plan).await.map_err(HookError::Gone)?;
        }
        self.set_dns().await;
        for index in 0..self.plan.at(Event::Up).len() {
            let end = self.command(Event::Up, index, None).await.map_err(HookError::Gone)?;
            if !end.is_good() {
                let command = self.plan.at(Event::Up)[index].to_string();
                return Err(HookError::Failed { hook: Event::Up.word(), command, end });
            }
        }
        Ok(())
    }

    /// Sets the name servers. A failure only logs a warning, because a tunnel without its name servers is
    /// better than no tunnel.
    async fn set_dns(&mut self) {
        match self.set_name_servers().await {
            Ok(()) if self.plan.at(Event::SetDns).is_empty() => {}
            Ok(()) => self.names = Some(Names::new(self.plan.at(Event::SetDns))),
            Err(SetDnsError { index, why }) => {
                tracing::warn!(
                    "cannot apply [dns]: {why}; it needs systemd-resolved, or a hook that sets the name servers"
                );
                if index == 0 {
                    self.plan.commands.remove(&Event::RevertDns);
                }
            }
        }
    }

    /// Sets the name servers with systemd-resolved, up to the first command that fails.
    async fn set_name_servers(&mut self) -> Result<(), SetDnsError> {
        for index in 0..self.plan.at(Event::SetDns).len() {
            let end = self.command(Event::SetDns, index, None).await;
            if !end.as_ref().is_ok_and(End::is_good) {
                let why = end.map_or_else(|error| error.to_string(), |end| end.to_string());
                let command =
                    planned(&self.plan, self.changed.device.as_deref(), Event::SetDns, index);
                return Err(SetDnsError { index, why: format!("`{command}` {why}") });
            }
        }
        Ok(())
    }

    /// Checks the name servers, and sets them again if they may be missing.
    async fn keep_name_servers(&mut self) {
        let Some(mut names) = self.names.take() else { return };
        let found = names.check(Instant::now());
        if found != Found::Kept {
            let told = self.set_name_servers().await;
            names.set_again(Instant::now(), found, told.is_ok());
            report(found, told);
        }
        self.names = self.runner.is_some().then_some(names);
    }

    /// Runs one command of the plan; does nothing without a runner.
    async fn command(
        &mut self,
        event: Event,
        index: usize,
        endpoint: Option<SocketAddr>,
    ) -> io::Result<End> {
        let Some(runner) = &mut self.runner else { return Ok(End::Exited(0)) };
        let argv = planned(&self.plan, self.changed.device.as_deref(), event, index);
        let order = Order { event, index, endpoint, changed: self.changed.clone() };
        let end = runner.run(order, &argv, self.plan.limit).await;
        if end.is_err() {
            // The next report of this runner would be about another command.
            self.runner = None;
        }
        end
    }

    /// Runs a command whose failure has no consequences, and logs its result.
    async fn run_and_log(&mut self, event: Event, index: usize, endpoint: Option<SocketAddr>) {
        let (hook, had_runner) = (event.word(), self.runner.is_some());
        let end = self.command(event, index, endpoint).await;
        let command = planned(&self.plan, self.changed.device.as_deref(), event, index);
        match end {
            Ok(end) if end.is_good() => tracing::info!("hook {hook}: `{command}` succeeded"),
            Ok(end) => tracing::warn!("hook {hook}: `{command}` {end}"),
            Err(error) if had_runner => {
                tracing::warn!("hook {hook}: {}", HookError::Gone(error));
            }
            Err(_known) => {}
        }
    }

    /// Runs commands concurrently with the tunnel from now on. Those for the peer that is `alive` have run.
    fn follow(self, alive: bool) -> Following {
        let (changes, seen) = watch::channel(Desired { alive, ..Desired::default() });
        let task = tokio::spawn(self.run(seen, alive));
        Following { news: News(Arc::new(changes)), task: Some(task) }
    }

    async fn run(mut self, mut changes: watch::Receiver<Desired>, mut alive: bool) {
        let mut begun = [None; 2];
        loop {
            let Some(desired) = self.next(&mut changes, alive).await else { break };
            let begun = &mut begun[usize::from(desired.alive)];
            if let Some(begun) = *begun {
                let back =
                    changes.wait_for(|desired| desired.over.is_some() || desired.alive == alive);
                if timeout_at(begun + SAME_EVENT_INTERVAL, back).await.is_ok() {
                    continue;
                }
            }
            *begun = Some(Instant::now());
            let desired = changes.borrow().clone();
            self.changed = desired.changed;
            alive = !alive;
            let event = if alive { Event::Established } else { Event::Lost };
            for index in 0..self.plan.at(event).len() {
                self.run_and_log(event, index, desired.endpoint).await;
                if changes.borrow().ends() {
                    break;
                }
            }
        }
        let desired = changes.borrow().clone();
        if !desired.ends() {
            return;
        }
        self.changed = desired.changed;
        self.bring_down(desired.endpoint).await;
    }

    /// Maintains the name servers until the peer's state changes; `None` at the end.
    async fn next(
        &mut self,
        changes: &mut watch::Receiver<Desired>,
        alive: bool,
    ) -> Option<Desired> {
        loop {
            let due = self.names.as_ref().map(Names::due);
            tokio::select! {
                biased;
                changed = changes.wait_for(|desired| desired.over.is_some() || desired.alive != alive) => {
                    return changed.ok().map(|desired| desired.clone()).filter(|desired| desired.over.is_none());
                }
                () = until(due) => {}
            }
            self.changed = changes.borrow().changed.clone();
            self.keep_name_servers().await;
        }
    }

    async fn bring_down(mut self, endpoint: Option<SocketAddr>) {
        for index in 0..self.plan.at(Event::Down).len() {
            self.run_and_log(Event::Down, index, endpoint).await;
        }
        for index in 0..self.plan.at(Event::RevertDns).len() {
            // If the device is gone, systemd-resolved has already forgotten them, so a failure does not matter.
            let end = self.command(Event::RevertDns, index, None).await;
            tracing::debug!("reverting [dns]: {end:?}");
        }
        self.end().await;
    }

    async fn end(self) {
        if let Some(runner) = self.runner {
            runner.end().await;
        }
    }
}

/// The command that failed to set the name servers, and why.
struct SetDnsError {
    index: usize,
    why: String,
}

/// Logs that the name servers were set again, if they were missing.
fn report(found: Found, told: Result<(), SetDnsError>) {
    match told {
        Ok(()) if found == Found::Gone => tracing::info!(
            "systemd-resolved had lost the name servers of [dns]: another program removed them, or it was \
             restarted; they are set again"
        ),
        Ok(()) => tracing::debug!("[dns] was set again as a precaution"),
        Err(SetDnsError { why, .. }) => {
            tracing::warn!("cannot apply [dns] again: {why}; vpnd keeps trying");
        }
    }
}

/// Waits until `then`; forever if it is `None`.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// The state for which hooks have to run.
#[derive(Clone, Debug, Default)]
struct Desired {
    alive: bool,
    endpoint: Option<SocketAddr>,
    changed: Changed,
    over: Option<Over>,
}

/// Why no further hook of the peer is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// The tunnel ends: `down` is run.
    End,
    /// The next process runs them.
    HandedOn,
}

impl Desired {
    fn ends(&self) -> bool {
        self.over == Some(Over::End)
    }
}

/// Reports changes of the tunnel's state to the hooks.
#[derive(Clone)]
pub(crate) struct News(Arc<watch::Sender<Desired>>);

impl News {
    /// Reports that the peer is alive or dead. Never waits.
    pub(crate) fn peer(&self, alive: bool, endpoint: Option<SocketAddr>) {
        self.0.send_modify(|desired| {
            desired.alive = alive;
            desired.endpoint = endpoint.or(desired.endpoint);
        });
    }
}

impl News {
    /// Reports that the device was renamed.
    pub(crate) fn renamed(&self, device: &str) {
        self.0.send_modify(|desired| desired.changed.device = Some(device.to_owned()));
    }

    /// Reports that the device's MTU has changed.
    pub(crate) fn mtu(&self, mtu: u16) {
        self.0.send_modify(|desired| desired.changed.mtu = Some(mtu));
    }
}

/// A command of the plan, with the device's current name.
fn planned(plan: &Plan, device: Option<&str>, event: Event, index: usize) -> Argv {
    let argv = &plan.at(event)[index];
    device.map_or_else(|| argv.clone(), |name| argv.with_device(name))
}

/// The task that runs commands concurrently with the tunnel.
pub(crate) struct Following {
    news: News,
    task: Option<JoinHandle<()>>,
}

impl Following {
    /// A handle to report changes of the tunnel's state.
    pub(crate) fn news(&self) -> News {
        self.news.clone()
    }

    /// Waits for the running command, runs `down`, and waits for it. A second call does nothing.
    pub(crate) async fn end(&mut self) {
        self.finish(Over::End).await;
    }

    /// Waits for the running command. The next process of the tunnel runs those that follow.
    pub(crate) async fn hand_on(&mut self) {
        self.finish(Over::HandedOn).await;
    }

    async fn finish(&mut self, over: Over) {
        self.news.0.send_modify(|desired| desired.over = Some(over));
        if let Some(task) = &mut self.task {
            let _panicked = task.await;
            self.task = None;
        }
    }
}

#[cfg(test)]
mod tests;
