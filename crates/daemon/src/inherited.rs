//! What an earlier process of the tunnel has left to this one ([`hand_on`](crate::hand_on)): its descriptors, as systemd
//! or that process itself hands them over, and the sessions.

mod receive;

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::Uid;
use thiserror::Error;
use vpnd_protocol::inheritance::{self, Inheritance};
use vpnd_tun::Attached;
use vpnd_tunnel::clock;
use zeroize::Zeroizing;

use crate::ask::{AskError, explain};
use crate::config::{Config, MAX_LEN};
use crate::control::Ask;
use crate::exit::Exit;
use crate::fingerprint::Fingerprints;
use crate::hand_on::{Kept, READY};
use crate::keys::Keys;
use crate::nft::Connection;
use crate::service;
use crate::socket_file;

use receive::{Received, own, reason, receive};

/// How long the running tunnel may take to finish its work.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most descriptors of one tunnel.
const MOST: usize = 64;

/// The descriptors of an earlier process, not checked yet.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    queues: Vec<OwnedFd>,
    writer: Option<OwnedFd>,
    socket: Option<OwnedFd>,
    firewall: Option<OwnedFd>,
    /// Sockets with clients.
    listeners: Vec<(Kept, OwnedFd)>,
    /// The sessions, or what is known without them.
    sessions: Vec<OwnedFd>,
    left: Option<Inheritance>,
    configuration: Option<OwnedFd>,
    /// All that comes before the sessions is there.
    is_prepared: bool,
    earlier: Option<Earlier>,
}

/// Why a running tunnel was not taken over; it continues to run, unless it has already let go.
#[derive(Debug, Error)]
pub(crate) enum TakeOverError {
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The tunnel refused, or is of another version.
    #[error("the running tunnel refuses to be taken over: {0}")]
    Refused(String),
    #[error(
        "uid {uid} listens at {}, neither root, nor you, nor the user that the tunnel runs as: nothing is taken over",
        path.display()
    )]
    Stranger { path: PathBuf, uid: u32 },
    #[error("cannot take the running tunnel over: {0}")]
    Io(#[from] io::Error),
}

impl TakeOverError {
    /// The exit code of `vpnd`.
    pub(crate) const fn exit(&self) -> Exit {
        match self {
            Self::Ask(error) => error.exit(),
            Self::Stranger { .. } => Exit::Permission,
            Self::Refused(_) | Self::Io(_) => Exit::Failure,
        }
    }
}

/// Another user could hand over a device and a socket of its own.
fn trust(stream: &UnixStream, config: &Config) -> Result<(), TakeOverError> {
    let uid = getsockopt(stream, PeerCredentials).map_err(io::Error::from)?.uid();
    let user = config.service.user.as_ref().map(|user| user.uid);
    if uid == 0 || uid == Uid::effective().as_raw() || Some(uid) == user {
        return Ok(());
    }
    Err(TakeOverError::Stranger { path: config.service.control.clone(), uid })
}

impl Inherited {
    /// What systemd has kept. The sessions are removed from its store before anybody reads them, so that no later process
    /// gets the same sessions.
    pub(crate) fn from_service_manager() -> Self {
        let mut inherited = Self::default();
        let Ok(kept) = sd_notify::listen_fds_with_names() else { return inherited };
        for (descriptor, name) in kept {
            inherited.take(&name, own(descriptor));
        }
        if !inherited.sessions.is_empty() {
            service::forget(Kept::Sessions.name());
        }
        inherited
    }

    /// Everything but the sessions of the tunnel that runs with this control socket, and continues to run until this process
    /// is ready.
    ///
    /// # Errors
    ///
    /// If there is no such tunnel, it refuses, or this process is not allowed to.
    pub(crate) fn from_process(config: &Config) -> Result<Self, TakeOverError> {
        let control = &config.service.control;
        let stream = UnixStream::connect(control).map_err(|error| explain(control, error))?;
        trust(&stream, config)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let ask = serde_json::to_string(&Ask::new("take-over")).map_err(io::Error::other)?;
        (&stream).write_all(format!("{ask}\n").as_bytes())?;
        let mut inherited = Self::default();
        for _ in 0..MOST {
            match receive(&stream)? {
                Received::Descriptor(name, descriptor) => inherited.take(&name, descriptor),
                Received::Text(text) => return Err(TakeOverError::Refused(reason(&text))),
                Received::End => break,
            }
            if inherited.is_prepared {
                inherited.earlier = Some(Earlier { stream, taken: Vec::new() });
                break;
            }
        }
        if inherited.queues.is_empty() || inherited.sessions.is_empty() {
            return Err(TakeOverError::Refused("it handed nothing over".to_owned()));
        }
        Ok(inherited)
    }

    fn take(&mut self, name: &str, descriptor: OwnedFd) {
        match Kept::named(name) {
            Some(Kept::Queue) => self.queues.push(descriptor),
            Some(Kept::Writer) => self.writer = Some(descriptor),
            Some(Kept::Socket) => self.socket = Some(descriptor),
            Some(Kept::Firewall) => self.firewall = Some(descriptor),
            Some(kept @ (Kept::Control | Kept::Uapi | Kept::Metrics)) => {
                self.listeners.push((kept, descriptor));
            }
            Some(Kept::Outlook) => {
                self.is_prepared = true;
                self.sessions.push(descriptor);
            }
            Some(Kept::Sessions) => self.sessions.push(descriptor),
            Some(Kept::Configuration) => self.configuration = Some(descriptor),
            None => tracing::debug!("{name:?} is kept, and nobody knows what it is"),
        }
    }

    /// The text of the configuration that the earlier process ran with.
    pub(crate) fn configuration(&self) -> Option<String> {
        let mut text = String::new();
        let file = self.configuration.as_ref()?.try_clone().ok()?;
        read(file, MAX_LEN as u64, |file| file.read_to_string(&mut text)).ok()?;
        Some(text)
    }

    /// The device; `None` if there is none.
    pub(crate) fn device(&mut self) -> Option<Attached> {
        let queues = std::mem::take(&mut self.queues);
        (!queues.is_empty()).then(|| Attached { queues, writer: self.writer.take() })
    }

    /// The UDP socket.
    pub(crate) fn socket(&mut self) -> Option<OwnedFd> {
        self.socket.take()
    }

    /// The connection that the earlier process's nftables table belongs to.
    pub(crate) fn firewall(&mut self) -> Option<Connection> {
        self.firewall.take().map(Connection::inherited)
    }

    /// A socket with clients. If it is the right one, call [`continues_with`](Self::continues_with).
    pub(crate) fn listener(&mut self, wanted: Kept) -> Option<OwnedFd> {
        let at = self.listeners.iter().position(|(kept, _)| *kept == wanted)?;
        Some(self.listeners.remove(at).1)
    }

    /// A socket in the file system with clients, if it has this name.
    pub(crate) fn listener_at(&mut self, wanted: Kept, path: &Path) -> Option<UnixListener> {
        let listener = UnixListener::from(self.listener(wanted)?);
        socket_file::is_at(&listener, path).then(|| {
            self.continues_with(wanted);
            listener
        })
    }

    /// This process has a socket with clients of the earlier one, which must not remove its name.
    pub(crate) fn continues_with(&mut self, taken: Kept) {
        self.earlier.iter_mut().for_each(|earlier| earlier.taken.push(taken));
    }

    /// Whether the earlier process still runs the tunnel.
    pub(crate) const fn is_asked_for(&self) -> bool {
        self.earlier.is_some()
    }

    /// The earlier process that still runs the tunnel.
    pub(crate) fn earlier(&mut self) -> Option<Earlier> {
        self.earlier.take()
    }

    /// Reads the sessions, and wipes them where they came from, so that no other process can read them any more. They are of
    /// use only under the keys and terms that they were made with.
    pub(crate) fn open_sessions(&mut self, config: &Config, keys: &Keys) {
        let mut read = std::mem::take(&mut self.sessions).into_iter().map(read_sessions);
        self.left = match (read.next(), read.next()) {
            (None, _) => None,
            (Some(one), None) => usable(one, |binding| expected(binding, config, keys)),
            (Some(_), Some(_)) => {
                tracing::warn!(
                    "there are sessions of several earlier processes: none is continued"
                );
                None
            }
        };
    }

    /// The sessions, if the earlier process has ended in order; `None` if it has crashed.
    pub(crate) fn sessions(&mut self) -> Option<Inheritance> {
        self.left.take()
    }
}

/// The process that runs the tunnel, until this one is ready.
#[derive(Debug)]
pub(crate) struct Earlier {
    stream: UnixStream,
    /// The sockets with clients that this process continues with.
    taken: Vec<Kept>,
}

impl Earlier {
    /// Makes the process end, and returns its sessions if they are bound to the keys and terms that `expected` returns for
    /// their salt; `None` otherwise, and if it has crashed. From now on the tunnel is this process's.
    ///
    /// # Errors
    ///
    /// If the process does not wait any more: it continues to run the tunnel.
    pub(crate) fn end(
        self,
        expected: impl FnOnce(&Binding) -> Binding,
    ) -> io::Result<Option<Inheritance>> {
        let Self { stream, taken } = self;
        let names = taken.iter().map(|kept| format!(" {}", kept.name())).collect::<String>();
        // If the process has left, what it has sent before says why.
        let _left = (&stream).write_all(format!("{READY}{names}\n").as_bytes());
        let mut sessions = None;
        // The process closes the connection when it has let go. Who continues to run the tunnel never closes it without a
        // word.
        loop {
            match receive(&stream) {
                Ok(Received::Descriptor(name, descriptor)) if name == Kept::Sessions.name() => {
                    sessions = Some(descriptor);
                }
                Ok(Received::Descriptor(..)) => {}
                Ok(Received::Text(text)) => return Err(io::Error::other(reason(&text))),
                Ok(Received::End) => break,
                // It has crashed.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
                Err(error) => return Err(error),
            }
        }
        if sessions.is_none() {
            tracing::warn!("the earlier process has ended without a word about its sessions");
        }
        Ok(sessions.and_then(|sessions| usable(read_sessions(sessions), expected)))
    }
}

type Binding = [u8; 64];

/// What was read, if it is bound to what is expected.
fn usable(
    read: io::Result<(Binding, Inheritance)>,
    expected: impl FnOnce(&Binding) -> Binding,
) -> Option<Inheritance> {
    match read {
        Ok((binding, left)) if binding == expected(&binding) => Some(left),
        Ok(_) => {
            tracing::info!("the sessions of the earlier process are of other keys or terms");
            None
        }
        Err(error) => {
            tracing::warn!("the sessions of the earlier process cannot be continued: {error}");
            None
        }
    }
}

/// The binding of sessions under these keys, with the salt of this one.
pub(crate) fn expected(binding: &Binding, config: &Config, keys: &Keys) -> Binding {
    let salt = binding.first_chunk().copied().unwrap_or_default();
    Fingerprints::binding_of(keys, config, salt)
}

/// Reads the sessions, and what they are bound to, and wipes the file: all processes that have it share it.
fn read_sessions(file: OwnedFd) -> io::Result<(Binding, Inheritance)> {
    let most = size_of::<Binding>() + inheritance::MAX_LEN;
    // With its full capacity from the beginning, so that no copy of a key is left in memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(most + 1));
    read(file.try_clone()?, most as u64, |file| file.read_to_end(&mut bytes))?;
    let file = File::from(file);
    file.write_all_at(&vec![0; bytes.len()], 0)?;
    file.set_len(0)?;
    let (binding, left) = bytes.split_first_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((*binding, Inheritance::decode(left).map_err(io::Error::other)?))
}

/// Reads at most `most` bytes from the beginning: the position is shared with whoever has written them.
fn read<T>(
    file: OwnedFd,
    most: u64,
    with: impl FnOnce(&mut io::Take<File>) -> io::Result<T>,
) -> io::Result<T> {
    let mut file = File::from(file);
    file.rewind()?;
    with(&mut file.take(most))
}

/// The crash of an earlier process leaves its device. The peer counts as alive if the device's carrier says so.
pub(crate) fn of_a_crash(carrier_says_so: bool) -> Inheritance {
    if carrier_says_so { Inheritance::of_a_crash(clock::boot()) } else { Inheritance::default() }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::thread;

    use nix::sys::socket::{MsgFlags, recv};

    use super::*;

    /// What a process learns that says that it is ready, when the running one does `then` without having read that: whether there
    /// are sessions, or the reason for a refusal.
    #[expect(clippy::unwrap_in_result, reason = "the result is what is tested")]
    fn ends(then: impl FnOnce(UnixStream) + Send + 'static) -> Result<bool, String> {
        let (stream, running) = UnixStream::pair().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let running = thread::spawn(move || {
            let seen = recv(running.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_PEEK).unwrap();
            assert_eq!(seen, 1);
            then(running);
        });
        let ended = Earlier { stream, taken: Vec::new() }.end(|binding| *binding);
        running.join().unwrap();
        ended.map(|sessions| sessions.is_some()).map_err(|error| error.to_string())
    }

    #[test]
    fn who_refuses_at_the_last_moment_has_not_crashed() {
        let refused = ends(|mut running| {
            running.write_all(b"{\"schema\":3,\"error\":\"it takes too long\"}\n").unwrap();
        });
        assert_eq!(refused.unwrap_err(), "it takes too long");
    }

    #[test]
    fn who_is_gone_without_a_word_has_crashed() {
        assert!(!ends(drop).unwrap());
        let reads = |mut running: UnixStream| assert!(running.read(&mut [0; 64]).unwrap() > 0);
        assert!(!ends(reads).unwrap());
    }
}
