//! What systemd is told: ready, how it goes, stopping, alive. Started by anybody else, it is told
//! to nobody.

use std::time::Duration;

use sd_notify::NotifyState;

/// The service manager, and what it knows.
#[derive(Debug, Default)]
pub(crate) struct Service {
    status: String,
}

impl Service {
    /// The device is up and the socket bound.
    pub(crate) fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// One line on how the tunnel fares; said again only when it has changed.
    pub(crate) fn status(&mut self, line: &str) {
        if self.status != line {
            tell(&[NotifyState::Status(line)]);
            line.clone_into(&mut self.status);
        }
    }

    /// The stop has begun.
    pub(crate) fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// The event loop turns.
    pub(crate) fn alive(&self) {
        tell(&[NotifyState::Watchdog]);
    }

    /// How often to say so: twice in the time that systemd grants; `None` if it does not watch.
    pub(crate) fn watchdog_interval() -> Option<Duration> {
        sd_notify::watchdog_enabled().map(|granted| granted / 2).filter(|half| !half.is_zero())
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        // systemd sees for itself if it matters: it waits for READY and for the watchdog.
        tracing::debug!(%error, "systemd was not reached");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::in_child;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn systemd_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let environment =
            [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "10000000")];
        in_child("service::tests::systemd_is_told", &environment, || {
            let manager = UnixDatagram::bind(std::env::var("NOTIFY_SOCKET").unwrap()).unwrap();
            manager.set_nonblocking(true).unwrap();
            let mut service = Service::default();
            service.ready();
            service.status("up");
            service.status("up");
            service.alive();
            service.stopping();
            let heard = || {
                let mut buffer = [0; 64];
                let len = manager.recv(&mut buffer).unwrap();
                String::from_utf8_lossy(&buffer[..len]).into_owned()
            };
            for expected in ["READY=1\n", "STATUS=up\n", "WATCHDOG=1\n", "STOPPING=1\n"] {
                assert_eq!(heard(), expected);
            }
            assert!(manager.recv(&mut [0; 64]).is_err(), "nothing is said twice");
            assert_eq!(Service::watchdog_interval(), Some(Duration::from_secs(5)));
        });
    }

    #[test]
    fn without_systemd_nothing_is_said() {
        let mut service = Service::default();
        service.ready();
        service.status("up");
        service.stopping();
    }
}
