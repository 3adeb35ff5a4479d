//! Reacts to changes that others make to the device while the tunnel runs. The device's `Keeper` restores
//! addresses and routes that were lost with them.

use vpnd_device::{Seen, Watch};

use crate::presence::Presence;

/// Watches the device.
pub(crate) struct Life {
    watch: Watch,
    presence: Presence,
    name: String,
    /// Whether it was set down since the start; the start itself sets it up.
    was_down: bool,
}

/// A change of the device that the rest of the daemon has to know.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing to react to.
    Stays,
    /// The device was renamed.
    Renamed(String),
    /// The device is gone.
    Gone,
}

impl Life {
    /// Watches a device that is configured or will be.
    pub(crate) fn new(name: &str, watch: Watch, presence: Presence) -> Self {
        Self { watch, presence, name: name.to_owned(), was_down: false }
    }

    /// The device's number.
    pub(crate) fn index(&self) -> u32 {
        self.watch.index()
    }

    /// Waits until somebody changes it.
    pub(crate) async fn changed(&mut self) -> Seen {
        self.watch.next().await
    }

    /// Logs the change, and returns what the rest of the daemon has to know.
    pub(crate) fn attend(&mut self, seen: Seen) -> Fate {
        let name = &self.name;
        match seen {
            // Packets pass through the descriptor, whichever namespace the device is in.
            Seen::Gone if self.presence.is_there() => tracing::warn!(
                "device {name} was moved to another network namespace: the tunnel goes on; its addresses and \
                 routes are to be set there, or name the namespace in [interface] netns and start again"
            ),
            Seen::Gone => return Fate::Gone,
            Seen::Down => {
                tracing::warn!("device {name} was set down: nothing passes until it is up");
                self.was_down = true;
            }
            Seen::Up if self.was_down => tracing::info!("device {name} is up again"),
            Seen::Up => {}
            Seen::Renamed(new) => {
                tracing::info!("device {name} was renamed to {new}");
                self.name.clone_from(&new);
                return Fate::Renamed(new);
            }
        }
        Fate::Stays
    }
}
