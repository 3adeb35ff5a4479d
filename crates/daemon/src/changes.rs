//! What a tunnel changes in the system besides its device's own properties: made at the start, kept while it
//! runs, put back at the end, and found again by the next start when there was no end.

use std::path::PathBuf;

use vpnd_device::{
    Error, Heard, Journal, Keeper, Link, Mark, Namespace, Netlink, OwnState, PeerState, Stays, Undo,
};
use vpnd_tunnel::udp::Way;

use crate::config::Config;

/// Addresses, rules and routes, and who keeps them.
pub(crate) struct Changes {
    netlink: Netlink,
    keeper: Keeper,
    found_guards: bool,
}

impl Changes {
    /// Makes them, and begins to keep them.
    ///
    /// # Errors
    ///
    /// What the kernel refuses; nothing is changed then.
    pub(crate) async fn make(
        netlink: Netlink,
        news: Heard,
        link: &Link,
        config: &Config,
    ) -> Result<Self, Error> {
        let left_behind = left_behind(config, netlink.namespace());
        let found_guards = left_behind.guards();
        let setup = netlink.configure(link, left_behind).await?;
        let keeper = Keeper::spawn(&netlink, news, setup);
        Ok(Self { netlink, keeper, found_guards })
    }

    /// Whether an earlier run had left routes that drop.
    pub(crate) const fn found_guards(&self) -> bool {
        self.found_guards
    }

    /// Who is told of the peer.
    pub(crate) fn peer(&self) -> PeerState {
        self.keeper.peer()
    }

    /// Who is told of the tunnel's own datagrams.
    pub(crate) fn own(&self) -> OwnState {
        self.keeper.own()
    }

    /// Puts them back, but for what `stays`.
    pub(crate) async fn put_back(self, stays: Stays) {
        match self.keeper.stop().await {
            Some(setup) => self.netlink.undo(setup, stays).await,
            None => tracing::error!("what was changed in the system is left to the next start"),
        }
    }
}

/// By which way datagrams leave. Where even they would be led into the tunnel, a mark tells them, ours where
/// the file says none.
pub(crate) async fn way(config: &Config, netlink: &Netlink, would_loop: bool) -> Way {
    let mut way = config.socket.way();
    if way.mark == 0 && would_loop {
        way.mark = netlink.free_mark().await.value;
    }
    way
}

/// How rules tell the tunnel's own datagrams by their mark. Of a mark that the file says, each bit may mean
/// something to others; in one that we chose, none does.
pub(crate) fn mark(config: &Config, way: &Way) -> Mark {
    if config.socket.fwmark == 0 { Mark::bits(way.mark) } else { Mark::exact(way.mark) }
}

/// What an earlier run left, as the file beside the control socket says: a boot empties both that directory
/// and the kernel's tables.
fn left_behind(config: &Config, namespace: Namespace) -> Undo {
    let path = journal(config);
    let opened = Journal::open(&path, namespace).inspect_err(|error| {
        let path = path.display();
        tracing::warn!(
            "cannot keep {path}: {error}; what a crash leaves is not found by the next start"
        );
    });
    opened.map_or_else(|_| Undo::default(), Undo::resume)
}

fn journal(config: &Config) -> PathBuf {
    config.service.control.with_extension("changes")
}
