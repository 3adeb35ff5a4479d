//! What others do to the device while the tunnel runs, and what is made of it. Addresses and routes that go
//! with it are put back elsewhere, by the device's `Keeper`.

use vpnd_device::{Seen, Watch};

use crate::presence::Presence;

/// The way to see what becomes of the device.
pub(crate) struct Life {
    watch: Watch,
    presence: Presence,
    name: String,
    /// Whether it was set down since the start, which sets it up itself.
    was_down: bool,
}

/// What the rest of the daemon has to know.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The device is where it should be.
    Stays,
    /// It has another name now.
    Renamed(String),
    /// It is gone.
    Gone,
}

impl Life {
    /// Watches over a device that is, or is going to be, configured.
    pub(crate) fn new(name: &str, watch: Watch, presence: Presence) -> Self {
        Self { watch, presence, name: name.to_owned(), was_down: false }
    }

    /// The device's number.
    pub(crate) fn index(&self) -> u32 {
        self.watch.index()
    }

    /// Waits until somebody does something to it.
    pub(crate) async fn changed(&mut self) -> Seen {
        self.watch.next().await
    }

    /// Says what it is.
    pub(crate) fn attend(&mut self, seen: Seen) -> Fate {
        let name = &self.name;
        match seen {
            // Packets go through the descriptor, whichever namespace the device is in.
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
                tracing::info!("device {name} has another name: {new}");
                self.name.clone_from(&new);
                return Fate::Renamed(new);
            }
        }
        Fate::Stays
    }
}
