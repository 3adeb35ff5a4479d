//! Detects changes that others make to the device at run time.

use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::heard::{Heard, Told};

/// An event of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It was deleted, or moved to another network namespace.
    Gone,
    /// It was set down: no packet passes, and the kernel removes its routes and IPv6 addresses.
    Down,
    /// It is up again.
    Up,
    /// It was renamed.
    Renamed(String),
}

/// Reports the events of one device.
pub struct Watch {
    heard: Heard,
    index: u32,
    name: String,
    up: bool,
}

impl Watch {
    /// Watches a device whose current state is `link`, and ignores earlier events.
    pub(crate) fn new(mut heard: Heard, link: &LinkMessage) -> Self {
        heard.skip();
        let (name, up) = (name(link).unwrap_or_default().to_owned(), is_up(link));
        Self { heard, index: link.header.index, name, up }
    }

    /// The device's index.
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Waits for the next change.
    pub async fn next(&mut self) -> Seen {
        while let Some(told) = self.heard.next().await {
            if let Told::Route(message) = told
                && let Some(seen) = self.see(&message)
            {
                return seen;
            }
        }
        // The socket is closed, so no message will arrive.
        std::future::pending().await
    }

    fn see(&mut self, message: &RouteNetlinkMessage) -> Option<Seen> {
        match message {
            // A bridge sends this message for each port that leaves it, with the family of bridges.
            RouteNetlinkMessage::DelLink(link) if self.is_about(link) => Some(Seen::Gone),
            RouteNetlinkMessage::NewLink(link) if self.is_about(link) => self.changed(link),
            _ => None,
        }
    }

    fn is_about(&self, link: &LinkMessage) -> bool {
        let header = &link.header;
        header.index == self.index && header.interface_family == AddressFamily::Unspec
    }

    fn changed(&mut self, link: &LinkMessage) -> Option<Seen> {
        if let Some(name) = name(link).filter(|name| *name != self.name) {
            name.clone_into(&mut self.name);
            return Some(Seen::Renamed(name.to_owned()));
        }
        let up = is_up(link);
        if std::mem::replace(&mut self.up, up) == up {
            return None;
        }
        Some(if up { Seen::Up } else { Seen::Down })
    }
}

pub(crate) fn name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

pub(crate) fn is_up(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up)
}
