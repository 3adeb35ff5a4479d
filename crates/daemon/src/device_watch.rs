//! Reacts to changes that others make to the device while the tunnel runs. The device's `Keeper` restores the
//! addresses and routes that were lost with such a change.

use vpnd_device::{Seen, Watch};

use crate::presence::Presence;

/// Watches the device.
pub(crate) struct DeviceWatch {
    watch: Watch,
    presence: Presence,
    name: String,
    /// Whether the device was set down since the start. The start itself sets it up.
    was_down: bool,
}

/// A change of the device to which the rest of the daemon has to react.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DeviceChange {
    /// No reaction is needed.
    Stays,
    /// The device was renamed.
    Renamed(String),
    /// The device is gone.
    Gone,
}

impl DeviceWatch {
    /// Watches a device that is configured, or will be.
    pub(crate) fn new(name: &str, watch: Watch, presence: Presence) -> Self {
        Self { watch, presence, name: name.to_owned(), was_down: false }
    }

    /// The device's number.
    pub(crate) fn index(&self) -> u32 {
        self.watch.index()
    }

    /// Waits until the device is changed.
    pub(crate) async fn changed(&mut self) -> Seen {
        self.watch.next().await
    }

    /// Logs the change, and returns it for the rest of the daemon.
    pub(crate) fn attend(&mut self, seen: Seen) -> DeviceChange {
        let name = &self.name;
        match seen {
            // Packets pass through the descriptor, even if the device is in another namespace.
            Seen::Gone if self.presence.is_there() => tracing::warn!(
                "device {name} was moved to another network namespace: the tunnel continues to run, but its \
                 addresses and routes must be set there; or name that namespace in [interface] netns and \
                 start vpnd again"
            ),
            Seen::Gone => return DeviceChange::Gone,
            Seen::Down => {
                tracing::warn!("device {name} was set down: no packet passes until it is up again");
                self.was_down = true;
            }
            Seen::Up if self.was_down => tracing::info!("device {name} is up again"),
            Seen::Up => {}
            Seen::Renamed(new) => {
                tracing::info!("device {name} was renamed to {new}");
                self.name.clone_from(&new);
                return DeviceChange::Renamed(new);
            }
        }
        DeviceChange::Stays
    }
}
