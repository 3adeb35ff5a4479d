//! The device's carrier follows the peer, but not so often that the peer keeps the host busy: routing daemons and
//! hooks of others act on each change.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use vpnd_tun::Carrier;

/// From one change to the next.
const APART: Duration = Duration::from_secs(1);

/// A carrier that changes once in this time; of what the peer does meanwhile the last counts.
pub(crate) struct PacedCarrier<C = Carrier> {
    carrier: Option<C>,
    is_on: bool,
    wanted: bool,
    changed: Option<Instant>,
}

/// What has a carrier.
pub(crate) trait SetCarrier {
    /// Puts it on or off.
    fn set(&self, on: bool) -> io::Result<()>;
}

impl SetCarrier for Carrier {
    fn set(&self, on: bool) -> io::Result<()> {
        Self::set(self, on)
    }
}

impl<C: SetCarrier> PacedCarrier<C> {
    /// A carrier that is off; none where it does not follow the peer.
    pub(crate) const fn new(carrier: Option<C>) -> Self {
        Self { carrier, is_on: false, wanted: false, changed: None }
    }

    /// The peer is alive, or dead. The first change after a rest is made at once.
    pub(crate) fn follow(&mut self, alive: bool) {
        self.wanted = alive;
        if self.next().is_some_and(|next| next <= Instant::now()) {
            self.apply();
        }
    }

    /// Waits until a change is due.
    pub(crate) async fn due(&self) {
        match self.next() {
            Some(next) => sleep_until(next).await,
            None => std::future::pending().await,
        }
    }

    /// Makes the change that is due.
    pub(crate) fn apply(&mut self) {
        (self.is_on, self.changed) = (self.wanted, Some(Instant::now()));
        // If the device is gone, its threads report that.
        if let Some(Err(error)) = self.carrier.as_ref().map(|carrier| carrier.set(self.wanted)) {
            tracing::debug!("the carrier does not follow: {error}");
        }
    }

    /// When the carrier may become what it should be, if it is not.
    fn next(&self) -> Option<Instant> {
        let is_due = self.carrier.is_some() && self.is_on != self.wanted;
        is_due.then(|| self.changed.map_or_else(Instant::now, |changed| changed + APART))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[derive(Default)]
    struct Changes(RefCell<Vec<bool>>);

    impl SetCarrier for Changes {
        fn set(&self, on: bool) -> io::Result<()> {
            self.0.borrow_mut().push(on);
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_peer_that_comes_and_goes_changes_it_once_a_second() {
        let mut paced = PacedCarrier::new(Some(Changes::default()));
        let began = Instant::now();
        (0..100).for_each(|turn| paced.follow(turn % 2 == 0));
        assert_eq!(*paced.carrier.as_ref().unwrap().0.borrow(), [true], "the first at once");
        paced.due().await;
        assert!(began.elapsed() >= APART);
        paced.apply();
        assert_eq!(*paced.carrier.as_ref().unwrap().0.borrow(), [true, false], "the last counts");
        paced.follow(true);
        paced.follow(false);
        assert_eq!(paced.next(), None, "as it was");
        assert_eq!(paced.carrier.as_ref().unwrap().0.borrow().len(), 2);
    }
}
