//! The tables while vpnd runs: their sets follow the routes of this host, their rules follow the configuration, and the
//! kill switch's table is made again if somebody has removed it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vpnd_device::SpecificRoutes;

use super::{FirewallError, Tunnel, families, keeps_in, lasting, lasting_plan, own, plan, sets};
use crate::config::Config;
use crate::nft::{Connection, Table};

/// The tables, and the task that keeps them as they should be.
pub(crate) struct Firewall {
    /// The task, which must end before the tables are dropped.
    following: JoinHandle<()>,
    tables: Arc<Tables>,
    rules: Rules,
}

/// The tables that exist.
struct Tables {
    own: Table,
    /// The kill switch's table, which is not removed when this value is dropped.
    kill_switch: Mutex<Option<Arc<Table>>>,
}

impl Tables {
    fn kill_switch(&self) -> MutexGuard<'_, Option<Arc<Table>>> {
        self.kill_switch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Firewall {
    /// Keeps these tables: our own one, and that of the kill switch, if there is one.
    pub(super) fn follow(
        (own, kill_switch): (Table, Option<Table>),
        connection: Connection,
        config: Config,
        tunnel: Tunnel,
        specific: SpecificRoutes,
    ) -> Self {
        let kill_switch = Mutex::new(kill_switch.map(Arc::new));
        let tables = Arc::new(Tables { own, kill_switch });
        let (orders, received) = mpsc::channel(1);
        let (updates, weak) = (Updates::default(), Arc::downgrade(&tables));
        let following = Following { config, tunnel, specific, connection, tables: weak, updates };
        let following = tokio::spawn(following.run(received));
        let rules = Rules { orders, tables: Arc::clone(&tables) };
        Self { following, tables, rules }
    }

    /// The table of the kill switch, if there is one.
    pub(crate) fn kill_switch(&self) -> Option<Arc<Table>> {
        self.tables.kill_switch().clone()
    }

    /// The handle that gives the tables other rules.
    pub(crate) fn rules(&self) -> Rules {
        self.rules.clone()
    }

    /// Deletes our own table. That of a kill switch stays.
    pub(crate) fn end(self) {
        self.stop_following();
        if let Err(error) = self.tables.own.delete() {
            tracing::debug!(%error, "our nftables table goes with its socket");
        }
    }

    /// Stops updating and restoring the tables, because they are about to be deleted.
    pub(crate) fn stop_following(&self) {
        self.following.abort();
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        self.stop_following();
    }
}

/// Gives the tables the rules of another configuration.
#[derive(Clone)]
pub(crate) struct Rules {
    orders: mpsc::Sender<Order>,
    tables: Arc<Tables>,
}

enum Order {
    Change(Change),
    /// Do nothing until the holder of the answer goes.
    Pause(oneshot::Sender<Paused>),
}

/// Tables that nobody changes, because another process of the tunnel may. When this is dropped, they get their rules again.
#[must_use = "the tables are changed again when this is dropped"]
pub(crate) struct Paused {
    _release: oneshot::Sender<()>,
}

/// A configuration, and the channel for the answer.
struct Change {
    config: Box<Config>,
    tunnel: Tunnel,
    done: oneshot::Sender<Result<(), FirewallError>>,
}

impl Rules {
    /// Returns when the tables have their new rules. No packet passes between the former rules and the new ones.
    ///
    /// # Errors
    ///
    /// The kernel's error; then the tables are as before.
    pub(crate) async fn become_new(
        &self,
        config: &Config,
        tunnel: Tunnel,
    ) -> Result<(), FirewallError> {
        let gone = || FirewallError {
            table: own(config),
            error: io::Error::other("the task that keeps it has ended, which is a bug"),
        };
        let (done, answer) = oneshot::channel();
        let change = Change { config: Box::new(config.clone()), tunnel, done };
        self.orders.send(Order::Change(change)).await.map_err(|_stopped| gone())?;
        answer.await.map_err(|_stopped| gone())?
    }

    /// Returns when this process changes the tables no more; `None` if it has stopped to do so anyway.
    pub(crate) async fn pause(&self) -> Option<Paused> {
        let (done, answer) = oneshot::channel();
        self.orders.send(Order::Pause(done)).await.ok()?;
        answer.await.ok()
    }

    /// The socket that our own table belongs to, for the next process of the tunnel.
    ///
    /// # Errors
    ///
    /// If the process has no descriptor left.
    pub(crate) fn socket(&self) -> io::Result<OwnedFd> {
        self.tables.own.descriptor()
    }
}

/// Updates the sets whenever the routes change, and makes the lasting table again if somebody has removed it.
struct Following {
    config: Config,
    tunnel: Tunnel,
    specific: SpecificRoutes,
    /// For a kill switch's table that is made later. It is another connection than that of our own table, which would
    /// otherwise exist as long as the kill switch's.
    connection: Connection,
    tables: Weak<Tables>,
    updates: Updates,
}

/// Whether the last update of the sets has failed.
#[derive(Default)]
struct Updates {
    failing: bool,
}

impl Updates {
    /// Records an update's result. Returns a text for the log at the first of several failures, and at the
    /// first success after a failure. A log line for each update would let the local network fill the log.
    fn take(&mut self, result: io::Result<()>) -> Option<String> {
        let was_failing = std::mem::replace(&mut self.failing, result.is_err());
        match result {
            Err(error) if !was_failing => Some(format!(
                "cannot update the kill switch's nftables tables with this host's new routes: {error}; until \
                 an update succeeds, the kill switch may drop packets for these routes"
            )),
            Ok(()) if was_failing => Some(
                "the kill switch's nftables tables contain the routes of this host again"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// How often to check that the lasting table exists, and to repeat a failed update. Until the lasting table is
/// restored, the other table drops packets.
const CHECKED_EVERY: Duration = Duration::from_secs(5);

impl Following {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            let changed = tokio::select! {
                Some(order) = orders.recv() => {
                    match order {
                        Order::Change(change) => self.take(change),
                        Order::Pause(done) => self.pause(done).await,
                    }
                    continue;
                }
                changed = timeout(CHECKED_EVERY, self.specific.changed()) => changed.is_ok(),
            };
            let Some(tables) = self.tables.upgrade() else { return };
            let kill_switch = tables.kill_switch().clone();
            let Some(kill_switch) = kill_switch else { continue };
            self.restore(&kill_switch);
            if changed || self.updates.failing {
                // An error of one table does not prevent the update of the other.
                let results = [&tables.own, &kill_switch].map(|table| self.update(table));
                let said = self.updates.take(results.into_iter().collect());
                said.iter().for_each(|said| tracing::warn!("{said}"));
            }
        }
    }

    fn take(&mut self, Change { config, tunnel, done }: Change) {
        let result = self.become_new(&config, tunnel);
        if result.is_ok() {
            (self.config, self.tunnel) = (*config, tunnel);
        }
        // The requester may no longer wait for the result.
        let _gone = done.send(result);
    }

    /// Does nothing until the other process has failed, and then sets the rules again.
    async fn pause(&mut self, done: oneshot::Sender<Paused>) {
        let (release, released) = oneshot::channel();
        let _left = done.send(Paused { _release: release });
        let _gone = released.await;
        if let Err(error) = self.become_new(&self.config, self.tunnel) {
            tracing::warn!("{error}");
        }
    }

    /// The kill switch's table is made before our own one has new rules, and deleted after it, so that a packet that the
    /// former and the new rules drop is dropped all the time.
    fn become_new(&self, config: &Config, tunnel: Tunnel) -> Result<(), FirewallError> {
        let refused = |table| move |error| FirewallError { table, error };
        let Some(tables) = self.tables.upgrade() else { return Ok(()) };
        let former = tables.kill_switch().clone();
        let name = lasting(config);
        if keeps_in(config) {
            let made = self.make_lasting(config, tunnel);
            *tables.kill_switch() = Some(Arc::new(made.map_err(refused(name.clone()))?));
        }
        let rules = plan(config, &own(config), tunnel, &self.specific);
        if let Err(error) = rules.and_then(|plan| tables.own.make_anew(&plan)) {
            self.undo(&tables, former);
            return Err(refused(own(config))(error));
        }
        match former.filter(|_| !keeps_in(config)) {
            Some(table) => {
                *tables.kill_switch() = None;
                table.delete().map_err(refused(name))
            }
            None => Ok(()),
        }
    }

    fn make_lasting(&self, config: &Config, tunnel: Tunnel) -> io::Result<Table> {
        let plan = lasting_plan(config, &lasting(config), tunnel, &self.specific)?;
        self.connection.make(&plan)
    }

    /// Makes the kill switch's table as it was.
    fn undo(&self, tables: &Tables, former: Option<Arc<Table>>) {
        let undone = match &former {
            Some(_) => self.make_lasting(&self.config, self.tunnel).map(drop),
            None => tables.kill_switch().as_ref().map_or(Ok(()), |table| table.delete()),
        };
        if let Err(error) = undone {
            let table = lasting(&self.config);
            tracing::warn!("cannot restore nftables' table inet {table}: {error}");
        }
        *tables.kill_switch() = former;
    }

    fn restore(&self, kill_switch: &Table) {
        if kill_switch.is_there().unwrap_or(true) {
            return;
        }
        let name = lasting(&self.config);
        let plan = lasting_plan(&self.config, &name, self.tunnel, &self.specific);
        match plan.and_then(|plan| kill_switch.make_again(&plan)) {
            Ok(()) => {
                tracing::warn!("restored nftables' table inet {name}, which had been removed")
            }
            Err(error) => tracing::debug!(%error, "nftables' table inet {name} cannot be restored"),
        }
    }

    fn update(&self, table: &Table) -> io::Result<()> {
        let sets = sets(self.specific.networks(), families(&self.config));
        sets.iter().try_for_each(|set| table.replace(set))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_that_keeps_failing_is_reported_once() {
        let mut updates = Updates::default();
        let failed = || Err(io::Error::other("busy"));
        assert_eq!(updates.take(Ok(())), None);
        assert!(updates.take(failed()).is_some_and(|said| said.contains("busy")));
        assert!((0..100).all(|_| updates.take(failed()).is_none()) && updates.failing);
        assert!(updates.take(Ok(())).is_some_and(|said| said.contains("again")));
        assert!(updates.take(failed()).is_some());
    }
}
