//! Datagrams that must not come out of the device: those of this tunnel itself, and those that have passed
//! through tunnels of this host too often.

use std::time::Duration;

use vpnd_protocol::time::BootTime;

use super::trouble::Trouble;
use crate::effect::Notice;
use crate::outlook::Outlook;

/// A loop is over if no such datagram was seen for this time.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// The numbers of such datagrams, and the latest fault that they show.
#[derive(Debug, Default)]
pub(super) struct CameBack {
    own: u64,
    nested: u64,
    latest: Option<(Trouble, BootTime)>,
}

impl CameBack {
    /// Takes the new numbers. If a route leads into the tunnel, that already explains the tunnel's own
    /// datagrams.
    pub(super) fn watch(
        &mut self,
        now: BootTime,
        (own, nested): (u64, u64),
        outlook: &Outlook,
    ) -> Option<Notice> {
        let before = std::mem::replace(&mut self.own, own);
        let before_nested = std::mem::replace(&mut self.nested, nested);
        let route = outlook.current.clone();
        if nested > before_nested {
            self.latest = Some((Trouble::Nested(route.clone()), now));
            return Some(Notice::Nested(route));
        }
        if own > before && outlook.loops.is_empty() {
            self.latest = Some((Trouble::Back(route.clone()), now));
            return Some(Notice::Back(route));
        }
        self.latest.take_if(|(_, at)| now >= *at + FORGOTTEN);
        None
    }

    /// The route to the peer has changed, so the datagrams that came back on the former one no longer matter.
    pub(super) fn forget(&mut self) {
        self.latest = None;
    }

    pub(super) fn trouble(&self) -> Option<&Trouble> {
        self.latest.as_ref().map(|(trouble, _)| trouble)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_stands_for_a_while() {
        let at = |seconds| BootTime::default() + Duration::from_secs(seconds);
        let (mut came_back, outlook) = (CameBack::default(), Outlook::default());
        assert_eq!(came_back.watch(at(1), (0, 0), &outlook), None);
        assert_eq!(came_back.watch(at(2), (1, 0), &outlook), Some(Notice::Back(None)));
        assert_eq!(came_back.watch(at(3), (2, 1), &outlook), Some(Notice::Nested(None)));
        assert_eq!(came_back.watch(at(12), (2, 1), &outlook), None);
        assert_eq!(came_back.trouble(), Some(&Trouble::Nested(None)));
        assert_eq!(came_back.watch(at(13), (2, 1), &outlook), None);
        assert_eq!(came_back.trouble(), None);
    }
}
