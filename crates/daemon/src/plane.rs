//! The control plane's task: the one place that owns the peer. It waits for whatever comes
//! first, hands it to the peer, and does what the peer asks: publish, send, tell.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::peer::{Event, Load, Peer};
use vpnd_protocol::table::Admitted;
use vpnd_protocol::time::BootTime;
use vpnd_protocol::timestamp::Timestamp;
use vpnd_tunnel::clock;
use vpnd_tunnel::engine::{Engine, LOAD_THRESHOLD, Reports};

use crate::alarm::Alarm;
use crate::watch::watch;

/// Load lasts this long after it was last seen.
const LOAD_LINGERS: Duration = Duration::from_secs(1);

/// Why the tunnel ends other than by being asked to.
#[derive(Debug, Error)]
pub(crate) enum PlaneError {
    /// A data thread ended.
    #[error("the device is gone ({0}): somebody deleted it; start vpnd again to make a new one")]
    DeviceGone(io::Error),
    /// The event loop itself does not work.
    #[error("the event loop: {0}")]
    Loop(#[from] io::Error),
}

/// A running tunnel's control plane.
pub(crate) struct Plane {
    peer: Peer,
    engine: Engine,
    reports: Reports,
    wake: AsyncFd<OwnedFd>,
    alarm: Alarm,
    addresses: mpsc::Receiver<Vec<SocketAddr>>,
    load_until: BootTime,
    datagram: Vec<u8>,
}

impl Plane {
    /// A plane over a data path that runs already.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub(crate) fn new(
        peer: Peer,
        engine: Engine,
        reports: Reports,
        addresses: mpsc::Receiver<Vec<SocketAddr>>,
    ) -> io::Result<Self> {
        let wake = watch(engine.wake_fd())?;
        Ok(Self {
            peer,
            engine,
            reports,
            wake,
            alarm: Alarm::new()?,
            addresses,
            load_until: BootTime::default(),
            datagram: Vec::new(),
        })
    }

    /// Runs the tunnel until `stop` resolves.
    ///
    /// # Errors
    /// When the device is gone.
    pub(crate) async fn run(&mut self, stop: impl Future<Output = ()>) -> Result<(), PlaneError> {
        tokio::pin!(stop);
        loop {
            self.settle()?;
            tokio::select! {
                () = &mut stop => return Ok(()),
                Some(error) = self.reports.ended.recv() => return Err(PlaneError::DeviceGone(error)),
                Some(admitted) = self.reports.handshakes.recv() => self.handshake(&admitted),
                woken = self.wake.readable() => {
                    woken?.clear_ready();
                    self.engine.drain();
                    self.peer.handle_wake(clock::now());
                }
                expired = self.alarm.expired() => {
                    expired?;
                    self.peer.handle_wake(clock::now());
                }
                Some(addresses) = self.addresses.recv() => {
                    self.peer.handle_endpoints(clock::now(), addresses);
                }
            }
        }
    }

    fn handshake(&mut self, admitted: &Admitted) {
        let now = clock::now();
        if self.reports.handshakes.len() + 1 >= LOAD_THRESHOLD {
            self.load_until = now.boot + LOAD_LINGERS;
        }
        let load = if now.boot < self.load_until { Load::Under } else { Load::Normal };
        if let Err(reason) = self.peer.handle_handshake(now, load, admitted) {
            self.engine.counters().count(reason, 1);
        }
    }

    /// Does what the peer asks: publish first, then send, then tell.
    fn settle(&mut self) -> io::Result<()> {
        loop {
            if let Some(table) = self.peer.poll_table() {
                self.engine.publish(table);
            }
            while let Some(transmit) = self.peer.poll_transmit(&mut self.datagram) {
                if self.engine.send(transmit.to, transmit.from, &self.datagram).is_err() {
                    self.engine.counters().count(DropReason::SendFailed, 1);
                }
            }
            let Some(event) = self.peer.poll_event() else { break };
            self.tell(event);
        }
        self.alarm.set(self.peer.poll_timeout().map(|(at, _)| at))
    }

    fn tell(&mut self, event: Event) {
        match event {
            Event::KeepFloor(stamp) => self.keep_floor(stamp),
            other => tracing::info!(?other),
        }
    }

    fn keep_floor(&mut self, stamp: Timestamp) {
        self.peer.floor_kept(clock::now(), stamp);
    }
}
