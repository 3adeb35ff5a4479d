//! What was changed, put back.

use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Error, Handle};

use crate::error::errno;

/// Every change made to a device, in order.
#[derive(Debug, Default)]
#[must_use = "what was changed stays so unless it is undone"]
pub struct Undo {
    changes: Vec<Change>,
}

/// One change, by what takes it back.
#[derive(Debug)]
pub(crate) enum Change {
    /// An address that was added.
    Address(AddressMessage),
    /// A route that was added.
    Route(RouteMessage),
    /// What a property of the device was before.
    Link(LinkMessage),
}

impl Undo {
    pub(crate) fn extend(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.changes.extend(changes);
    }

    /// All but what was done to the device and its addresses and routes, which stay with it.
    pub fn but_the_device(mut self) -> Self {
        self.changes.retain(|change| match change {
            Change::Address(_) | Change::Route(_) | Change::Link(_) => false,
        });
        self
    }

    pub(crate) async fn run(self, handle: &Handle) {
        for change in self.changes.into_iter().rev() {
            let Err(error) = change.take_back(handle).await else { continue };
            if !is_gone(&error) {
                tracing::warn!(%error, "a change to the device could not be put back");
            }
        }
    }
}

impl Change {
    async fn take_back(self, handle: &Handle) -> Result<(), Error> {
        match self {
            Self::Address(address) => handle.address().del(address).execute().await,
            Self::Route(route) => handle.route().del(route).execute().await,
            Self::Link(before) => handle.link().set(before).execute().await,
        }
    }
}

/// The device, address or route went away before us.
fn is_gone(error: &Error) -> bool {
    matches!(errno(error), libc::ENODEV | libc::ENXIO | libc::EADDRNOTAVAIL | libc::ESRCH)
}
