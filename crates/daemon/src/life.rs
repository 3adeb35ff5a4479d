//! What others do to the device while the tunnel runs, and what is made of it.

use vpnd_device::{Link, Netlink, Seen, Watch};

/// The device as it should be, and the way to see that it is.
pub(crate) struct Life {
    netlink: Netlink,
    link: Link,
    watch: Watch,
}

/// What the rest of the daemon has to know.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The device is where it should be.
    Stays,
    /// It has another name now.
    Renamed(String),
    /// It is gone, or out of reach.
    Gone,
}

impl Life {
    /// Watches over a device that is configured.
    pub(crate) fn new(netlink: Netlink, link: Link, watch: Watch) -> Self {
        Self { netlink, link, watch }
    }

    /// Waits until somebody does something to it.
    pub(crate) async fn changed(&mut self) -> Seen {
        self.watch.next().await
    }

    /// Puts right what can be.
    pub(crate) async fn attend(&mut self, seen: Seen) -> Fate {
        let name = &self.link.name;
        match seen {
            Seen::Gone => return Fate::Gone,
            Seen::Down => {
                tracing::warn!("device {name} was set down: nothing passes until it is up")
            }
            Seen::Up => self.repair().await,
            Seen::Renamed(new) => {
                tracing::info!("device {name} has another name: {new}");
                self.link.name.clone_from(&new);
                return Fate::Renamed(new);
            }
        }
        Fate::Stays
    }

    /// With a link that goes down the kernel forgets its routes, and its IPv6 addresses.
    async fn repair(&self) {
        match self.netlink.repair(&self.link).await {
            Ok(()) => tracing::info!("device {} is up again, with all it had", self.link.name),
            Err(error) => {
                tracing::warn!("device {} is up again, and not whole: {error}", self.link.name)
            }
        }
    }
}
