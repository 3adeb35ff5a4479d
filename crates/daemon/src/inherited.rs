//! What an earlier process of the tunnel has left to this one ([`hand_on`](crate::hand_on)): its descriptors, as systemd
//! or that process itself hands them over, and the sessions.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, getsockopt, recvmsg};
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
use crate::hand_on::{Kept, RECORD};
use crate::keys::Keys;
use crate::service;

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
    sessions: Vec<OwnedFd>,
    left: Option<Inheritance>,
    configuration: Option<OwnedFd>,
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

    /// Everything of the tunnel that runs with this control socket. It has ended when this returns.
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
        }
        // The sessions come last, when that process has let go.
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

    /// Reads the sessions, and wipes them where they came from, so that no other process can read them any more. They are of
    /// use only under the keys and terms that they were made with.
    pub(crate) fn open_sessions(&mut self, config: &Config, keys: &Keys) {
        let mut read = std::mem::take(&mut self.sessions).into_iter().map(read_sessions);
        self.left = match (read.next(), read.next()) {
            (Some(Ok((binding, left))), None) if binding == expected(&binding, config, keys) => {
                Some(left)
            }
            (None, _) => None,
            (Some(Err(error)), None) => {
                tracing::warn!("the sessions of the earlier process cannot be continued: {error}");
                None
            }
            (Some(_), _) => {
                tracing::info!("the sessions of the earlier process are of other keys or terms");
                None
            }
        };
    }

    /// The sessions, if the earlier process has ended in order; `None` if it has crashed.
    pub(crate) fn sessions(&mut self) -> Option<Inheritance> {
        self.left.take()
    }
}

type Binding = [u8; 64];

/// The binding of sessions under these keys, with the salt of this one.
fn expected(binding: &Binding, config: &Config, keys: &Keys) -> Binding {
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

enum Received {
    Descriptor(String, OwnedFd),
    /// An answer in words.
    Text(Vec<u8>),
    End,
}

fn receive(stream: &UnixStream) -> io::Result<Received> {
    let mut record = [0; RECORD];
    let mut room = nix::cmsg_space!([RawFd; 1]);
    let (len, mut descriptors) = {
        let mut parts = [IoSliceMut::new(&mut record)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut room), flags)?;
        let mut descriptors = Vec::new();
        for one in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(some) = one {
                descriptors.extend(some.into_iter().map(own));
            }
        }
        (message.bytes, descriptors)
    };
    match (len, descriptors.pop()) {
        (0, _) => Ok(Received::End),
        (RECORD, Some(descriptor)) if descriptors.is_empty() => {
            let name = record.split(|byte| *byte == 0).next().unwrap_or_default();
            Ok(Received::Descriptor(String::from_utf8_lossy(name).into_owned(), descriptor))
        }
        (len, None) => {
            let mut text = record[..len].to_vec();
            stream.take(4096).read_to_end(&mut text)?;
            Ok(Received::Text(text))
        }
        _ => Err(io::Error::other("a record with another number of descriptors than one")),
    }
}

/// The reason in a refusal.
fn reason(text: &[u8]) -> String {
    let refusal = serde_json::from_slice::<crate::control::Refusal>(text);
    refusal.map_or_else(|_| "its answer makes no sense".to_owned(), |refusal| refusal.error)
}

/// A descriptor that was given to this process.
fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: systemd and the kernel have just given this descriptor to this process, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
