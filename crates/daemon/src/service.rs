//! Messages to systemd: ready, status, stopping, watchdog, and descriptors that it keeps. Without systemd they are not sent. A service manager
//! that does not read never blocks the tunnel.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use sd_notify::NotifyState;

/// The shortest time between two status messages: the status contains the peer's address, which the network can
/// change.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// The service manager, and the state that was reported to it.
#[derive(Debug, Default)]
pub(crate) struct Service {
    /// The state to report, and the state that was reported.
    wanted: State,
    told: State,
    /// The earliest time for the next message.
    next: Option<Instant>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    ready: bool,
    status: String,
}

impl Service {
    /// Reports that the device is up and the socket bound.
    pub(crate) fn ready(&mut self) {
        self.wanted.ready = true;
        self.catch_up();
        self.next = None;
    }

    /// Sets the one-line status of the tunnel. It is sent when it has changed, once a second at most, always
    /// the latest one.
    pub(crate) fn status(&mut self, line: &str) {
        if self.wanted.status != line {
            line.clone_into(&mut self.wanted.status);
            self.catch_up();
        }
    }

    /// Waits until a delayed message is due: then call [`Service::catch_up`].
    pub(crate) async fn due(&self) {
        if self.told == self.wanted {
            std::future::pending().await
        }
        if let Some(at) = self.next {
            tokio::time::sleep_until(at.into()).await;
        }
    }

    /// Sends what has changed, if it is due.
    pub(crate) fn catch_up(&mut self) {
        let now = Instant::now();
        if self.told == self.wanted || self.next.is_some_and(|at| now < at) {
            return;
        }
        self.next = Some(now + STATUS_INTERVAL);
        let Self { wanted, told, .. } = self;
        let ready = (wanted.ready && !told.ready).then_some(NotifyState::Ready);
        let status = NotifyState::Status(&wanted.status);
        let status = (wanted.status != told.status).then_some(status);
        if send(&ready.into_iter().chain(status).collect::<Vec<_>>()) {
            self.told.clone_from(&self.wanted);
        }
    }

    /// Reports that the stop has begun.
    pub(crate) fn stopping(&self) {
        send(&[NotifyState::Stopping]);
    }

    /// Reports that the event loop is running.
    pub(crate) fn alive(&self) {
        send(&[NotifyState::Watchdog]);
    }

    /// How often to call [`Service::alive`]: twice within systemd's watchdog timeout; `None` without a
    /// watchdog.
    pub(crate) fn watchdog_interval() -> Option<Duration> {
        sd_notify::watchdog_enabled().map(|granted| granted / 2).filter(|half| !half.is_zero())
    }
}

/// Gives systemd a descriptor to keep over a restart and a crash. It is closed when the unit is stopped. Without
/// `FDPOLL=0`, a pending ICMP error would make systemd close a socket.
pub(crate) fn keep(name: &str, descriptor: BorrowedFd<'_>) {
    let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
    done(notify(&state, &[descriptor]));
}

/// Makes systemd close every descriptor that it keeps by this name.
pub(crate) fn forget(name: &str) {
    send(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

/// Returns whether the message is done with: only a full queue is worth a retry.
fn send(state: &[NotifyState<'_>]) -> bool {
    done(notify(state, &[]))
}

fn done(result: io::Result<()>) -> bool {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        // A failure needs no handling here: systemd notices a missing READY or watchdog message by itself.
        Err(error) => {
            tracing::debug!(%error, "systemd was not reached");
            true
        }
        Ok(()) => true,
    }
}

/// Like [`sd_notify::notify`], but does not wait for room in the queue.
fn notify(state: &[NotifyState<'_>], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let message: String = state.iter().map(|one| format!("{one}\n")).collect();
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address(&path)?)?;
    let descriptors: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let rights = if descriptors.is_empty() { &[] } else { &rights[..] };
    let parts = [IoSlice::new(message.as_bytes())];
    sendmsg::<()>(socket.as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// A path, or a name in the abstract namespace after an `@`.
fn address(path: &OsStr) -> io::Result<SocketAddr> {
    match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(path),
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

    /// Runs until all pending messages were sent.
    fn catch_up(service: &mut Service) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().build().unwrap().block_on(service.due());
        service.catch_up();
    }

    #[test]
    fn a_status_that_flaps_is_said_once_a_second_and_the_newest_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let environment = [("NOTIFY_SOCKET", path.to_str().unwrap())];
        let name =
            "service::tests::a_status_that_flaps_is_said_once_a_second_and_the_newest_counts";
        in_child(name, &environment, || {
            let manager = UnixDatagram::bind(std::env::var("NOTIFY_SOCKET").unwrap()).unwrap();
            manager.set_nonblocking(true).unwrap();
            let mut service = Service::default();
            let start = Instant::now();
            (0..10_000).for_each(|n| service.status(&format!("peer at port {n}")));
            catch_up(&mut service);
            let mut buffer = [0; 64];
            let mut heard = || manager.recv(&mut buffer).map(|len| buffer[..len].to_vec());
            assert_eq!(heard().unwrap(), b"STATUS=peer at port 0\n");
            let seconds = start.elapsed().as_secs();
            let more = std::iter::from_fn(|| heard().ok()).collect::<Vec<_>>();
            assert!(seconds >= 1 && more.len() as u64 <= seconds, "{more:?} in {seconds} s");
            assert_eq!(more.last().unwrap(), b"STATUS=peer at port 9999\n");
        });
    }

    #[test]
    fn a_manager_that_does_not_read_holds_nobody_up_and_hears_of_it_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let environment = [("NOTIFY_SOCKET", path.to_str().unwrap())];
        let name =
            "service::tests::a_manager_that_does_not_read_holds_nobody_up_and_hears_of_it_later";
        in_child(name, &environment, || {
            let manager = UnixDatagram::bind(std::env::var("NOTIFY_SOCKET").unwrap()).unwrap();
            manager.set_nonblocking(true).unwrap();
            let mut service = Service::default();
            // More messages than fit the queue.
            (0..5000).for_each(|_| service.alive());
            service.ready();
            service.status("up");
            service.stopping();
            let mut buffer = [0; 64];
            let mut heard = || manager.recv(&mut buffer).map(|len| buffer[..len].to_vec());
            let full = std::iter::from_fn(|| heard().ok()).collect::<Vec<_>>();
            assert!(full.iter().all(|message| message == b"WATCHDOG=1\n"));
            catch_up(&mut service);
            assert_eq!(heard().unwrap(), b"READY=1\nSTATUS=up\n");
        });
    }

    #[test]
    fn an_abstract_address_begins_with_an_at() {
        assert_eq!(address("@vpnd".as_ref()).unwrap().as_abstract_name(), Some(&b"vpnd"[..]));
        let path = address("/run/systemd/notify".as_ref()).unwrap();
        assert_eq!(path.as_pathname(), Some("/run/systemd/notify".as_ref()));
    }

    #[test]
    fn without_systemd_nothing_is_said() {
        let mut service = Service::default();
        service.ready();
        service.status("up");
        service.stopping();
    }
}
